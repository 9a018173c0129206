//! The real `Execution` of all ranks under random completion orders.
//!
//! A random rank polls with a random limit or gets on with a random task; chunks of messages end in any
//! order. Where a Recv is under way the memory holds nothing, and what a Send has read must still be there
//! when it ends, so that a race shows as a wrong value.

use std::collections::{BTreeMap, BTreeSet};

use windlass_collectives::{Action, Collective, Execution, Peers, Phase, Rank, Rule};

use super::case::Operation;
use super::resolve::{INPUT, OUTPUT, Resolver, SLOTS, Work, sizes};
use super::value::{Random, Sum, Value};

type Name = (usize, Rank, Rank, u32, u32);

/// Chunks `next..end` of a step, handed out and not complete.
#[derive(Clone, Copy, Debug)]
struct Flight {
    step: u32,
    next: u32,
    end: u32,
    action: Action,
    /// A Send whose bytes have left.
    sent: bool,
}

struct Runner {
    execution: Option<Execution>,
    turn: usize,
    flights: Vec<Flight>,
    issued: Vec<Vec<bool>>,
    done: Vec<Vec<bool>>,
    memories: Vec<Vec<Option<Value>>>,
}

/// All ranks, and what is between them.
pub(crate) struct World<'a> {
    operations: &'a [Operation],
    random: Random,
    runners: Vec<Runner>,
    /// `marks[turn][rank][phase]`: chunks signalled.
    marks: Vec<Vec<[u32; 3]>>,
    messages: BTreeMap<Name, Vec<Value>>,
    posted: BTreeSet<Name>,
    /// Whether a message leaves only when its receiver is posted.
    rendezvous: bool,
    trees: BTreeMap<(usize, u32), Value>,
    work: Work,
}

impl<'a> World<'a> {
    pub(crate) fn new(operations: &'a [Operation], seed: u64) -> Self {
        let ranks = operations[0].ranks() as usize;
        let memories: Vec<_> = sizes(operations).into_iter().map(|n| vec![None; n]).collect();
        let runner = || Runner {
            execution: None,
            turn: 0,
            flights: Vec::new(),
            issued: Vec::new(),
            done: Vec::new(),
            memories: memories.clone(),
        };
        Self {
            operations,
            random: Random(seed << 32),
            runners: (0..ranks).map(|_| runner()).collect(),
            marks: vec![vec![[0; 3]; ranks]; operations.len()],
            messages: BTreeMap::new(),
            posted: BTreeSet::new(),
            rendezvous: seed.is_multiple_of(2),
            trees: BTreeMap::new(),
            work: Work::default(),
        }
    }

    /// Runs until every rank has ended every operation.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        let ranks = self.runners.len();
        for rank in 0..ranks {
            self.enter(rank);
        }
        let mut idle = 0;
        while self.runners.iter().any(|r| r.turn < self.operations.len()) {
            let rank = self.random.below(ranks);
            if self.runners[rank].turn == self.operations.len() {
                continue;
            }
            if self.advance(rank)? {
                idle = 0;
                continue;
            }
            idle += 1;
            // Chance has had its time; now everything is tried.
            if idle > 20 * ranks {
                if !self.sweep()? {
                    let stuck: Vec<_> = self
                        .runners
                        .iter()
                        .map(|r| (r.turn, r.execution.as_ref().and_then(Execution::position)))
                        .collect();
                    return Err(format!("nothing moves any more: {stuck:?}"));
                }
                // A rank may have ended its operation now, and has to leave it.
                idle = 0;
            }
        }
        if let Some((name, _)) = self.messages.first_key_value() {
            return Err(format!("nobody received {name:?}"));
        }
        Ok(())
    }

    /// Tries everything that could happen; whether anything did.
    fn sweep(&mut self) -> Result<bool, String> {
        let mut any = false;
        for rank in 0..self.runners.len() {
            if self.runners[rank].turn < self.operations.len() {
                any |= self.runners[rank].execution.is_some() && self.poll(rank)?;
                for flight in (0..self.runners[rank].flights.len()).rev() {
                    any |= self.get_on(rank, flight)?;
                }
            }
        }
        Ok(any)
    }

    fn enter(&mut self, rank: usize) {
        let runner = &mut self.runners[rank];
        let Some(operation) = self.operations.get(runner.turn) else { return };
        for memory in &mut runner.memories[..SLOTS] {
            memory.fill(None);
        }
        let (first, end) = operation.input(rank as Rank);
        for element in first..end {
            runner.memories[INPUT][element as usize] = Some(Value::input(runner.turn, rank as Rank, element));
        }
        let steps = &operation.steps[rank];
        let flags = || {
            steps
                .iter()
                .map(|s| vec![false; operation.geometry(rank as Rank).chunks(&s.action) as usize])
                .collect()
        };
        (runner.issued, runner.done) = (flags(), flags());
        match (operation.case.schedule(rank as Rank), &mut runner.execution) {
            (Some(schedule), Some(execution)) => {
                execution.restart(schedule, operation.geometry(rank as Rank).clone());
            }
            (Some(schedule), none) => {
                *none = Some(Execution::new(schedule, operation.geometry(rank as Rank).clone()));
            }
            (None, execution) => *execution = None,
        }
    }

    fn leave(&mut self, rank: usize) -> Result<(), String> {
        let runner = &mut self.runners[rank];
        let turn = runner.turn;
        let operation = &self.operations[turn];
        if let Some(step) = runner.done.iter().position(|s| s.contains(&false)) {
            return Err(format!("rank {rank} has ended without step {step}"));
        }
        let memory = &runner.memories[if operation.is_in_place() { INPUT } else { OUTPUT }];
        let (first, end) = operation.output(rank as Rank);
        for element in first..end {
            let value = memory[element as usize].ok_or("a result is missing")?;
            if !operation.is_result(turn, rank as Rank, element, value) {
                return Err(format!("element {element} of rank {rank} is wrong"));
            }
            if operation.case.collective == Collective::AllReduce
                && *self.trees.entry((turn, element)).or_insert(value) != value
            {
                return Err(format!("element {element} of rank {rank} is added in another order"));
            }
        }
        runner.turn += 1;
        self.enter(rank);
        Ok(())
    }

    /// Whether anything happened.
    fn advance(&mut self, rank: usize) -> Result<bool, String> {
        let runner = &self.runners[rank];
        let Some(execution) = &runner.execution else { return self.leave(rank).map(|()| true) };
        if execution.is_done() {
            if !runner.flights.is_empty() {
                return Err(format!("rank {rank} has ended with work under way"));
            }
            return self.leave(rank).map(|()| true);
        }
        if runner.flights.is_empty() || self.random.one_in(2) {
            self.poll(rank)
        } else {
            let flight = self.random.below(self.runners[rank].flights.len());
            self.get_on(rank, flight)
        }
    }

    fn poll(&mut self, rank: usize) -> Result<bool, String> {
        let limit = [1, 2, 3, u32::MAX][self.random.below(4)];
        let apart = self.random.one_in(2);
        let runner = &mut self.runners[rank];
        let Some(execution) = &mut runner.execution else { return Ok(false) };
        let Some(task) = execution.poll(limit) else { return Ok(false) };
        let operation = &self.operations[runner.turn];
        let step = operation.steps[rank][task.step as usize];
        // A Wait is handed out as far as it may go, whatever the limit.
        let long = task.end - task.first > limit && !matches!(step.action, Action::Wait { .. });
        if task.action != step.action || long {
            return Err(format!("an odd task: {task:?} for {step}"));
        }
        let depth = operation.case.depth;
        for chunk in task.first..task.end {
            if std::mem::replace(&mut runner.issued[task.step as usize][chunk as usize], true) {
                return Err(format!("chunk {chunk} of step {} is handed out twice", task.step));
            }
            for dependency in step.dependencies() {
                let other = &runner.done[dependency.step as usize];
                let met = match dependency.rule {
                    Rule::Same => other[chunk as usize],
                    Rule::All => other.iter().all(|d| *d),
                    Rule::Reuse => chunk < depth || other[(chunk - depth) as usize],
                };
                if !met {
                    return Err(format!("chunk {chunk} of step {} is handed out too early", task.step));
                }
            }
        }
        let flight = |next, end| Flight { step: task.step, next, end, action: task.action, sent: false };
        let message = matches!(task.action, Action::Send { .. } | Action::Recv { .. });
        let ordered = matches!(task.action, Action::Signal { .. } | Action::Wait { .. });
        if message || (apart && !ordered) {
            runner.flights.extend((task.first..task.end).map(|c| flight(c, c + 1)));
        } else {
            runner.flights.push(flight(task.first, task.end));
        }
        if let Action::Recv { from, label, .. } = task.action {
            for chunk in task.first..task.end {
                self.posted.insert((self.runners[rank].turn, from, rank as Rank, label, chunk));
                self.perform(rank, &task.action, chunk, Some(None))?;
            }
        }
        Ok(true)
    }

    /// Gets on with a flight as far as chance and its peers allow.
    fn get_on(&mut self, rank: usize, index: usize) -> Result<bool, String> {
        let flight = self.runners[rank].flights[index];
        let turn = self.runners[rank].turn;
        let wanted = flight.next + 1 + self.random.below((flight.end - flight.next) as usize) as u32;
        let mut next = flight.next;
        while next < wanted && self.chunk(rank, turn, index, &flight, next)? {
            next += 1;
        }
        if next == flight.next {
            // A Send that has only left has got on too.
            return Ok(self.runners[rank].flights[index].sent != flight.sent);
        }
        let runner = &mut self.runners[rank];
        runner.done[flight.step as usize][flight.next as usize..next as usize].fill(true);
        if next == flight.end {
            runner.flights.swap_remove(index);
        } else {
            runner.flights[index].next = next;
        }
        if let Some(execution) = &mut runner.execution {
            execution.complete(flight.step, flight.next..next);
        }
        Ok(true)
    }

    /// Whether the chunk is now complete.
    fn chunk(
        &mut self,
        rank: usize,
        turn: usize,
        index: usize,
        flight: &Flight,
        chunk: u32,
    ) -> Result<bool, String> {
        let me = rank as Rank;
        match flight.action {
            Action::Signal { phase } => {
                let mark = &mut self.marks[turn][rank][phase_index(phase)];
                // Handed out in order: when two tasks of one Signal are done in another order, the
                // chunks of the first were ready too.
                // The last one stands for all that a peer with more chunks may wait for.
                let chunks = self.runners[rank].done[flight.step as usize].len() as u32;
                *mark = if chunk + 1 == chunks { u32::MAX } else { (chunk + 1).max(*mark) };
            }
            Action::Wait { phase, from } => {
                let behind = |q: usize| self.marks[turn][q][phase_index(phase)] <= chunk;
                let waits = match from {
                    Peers::All => (0..self.runners.len()).any(|q| q != rank && behind(q)),
                    Peers::One(q) => behind(q as usize),
                };
                return Ok(!waits);
            }
            Action::Send { to, label, .. } => {
                let name = (turn, me, to, label, chunk);
                let values = self.perform(rank, &flight.action, chunk, None)?;
                if !flight.sent {
                    if self.rendezvous && !self.posted.contains(&name) {
                        return Ok(false);
                    }
                    if self.messages.insert(name, values).is_some() {
                        return Err(format!("{name:?} is sent twice"));
                    }
                    self.runners[rank].flights[index].sent = true;
                    return Ok(false);
                }
                // Still on its way, and so comparable, or received.
                if self.messages.get(&name).is_some_and(|sent| *sent != values) {
                    return Err(format!("{name:?} changes while it is sent"));
                }
            }
            Action::Recv { from, label, .. } => {
                let name = (turn, from, me, label, chunk);
                let Some(values) = self.messages.remove(&name) else { return Ok(false) };
                self.perform(rank, &flight.action, chunk, Some(Some(&values)))?;
            }
            _ => {
                self.perform(rank, &flight.action, chunk, None)?;
            }
        }
        Ok(true)
    }

    /// Executes one chunk on the symbols and returns what a Send reads. `received` is what a Recv
    /// writes: nothing while it is under way.
    fn perform(
        &mut self,
        rank: usize,
        action: &Action,
        chunk: u32,
        received: Option<Option<&[Value]>>,
    ) -> Result<Vec<Value>, String> {
        let turn = self.runners[rank].turn;
        let mut work = std::mem::take(&mut self.work);
        let resolver = Resolver { operation: &self.operations[turn], turn, rank: rank as Rank, chunk };
        resolver.resolve(action, &mut work)?;
        let mut read = Vec::new();
        for one in &work.moves {
            let len = work.runs[one.inputs.start.min(one.outputs.start)].len as usize;
            for i in 0..len {
                let mut sum = Sum::default();
                let mut value = None;
                for run in &work.runs[one.inputs.clone()] {
                    let cell = self.runners[run.rank as usize].memories[run.memory][run.first as usize + i];
                    let cell =
                        cell.ok_or_else(|| format!("rank {rank}, {action}: reads what is not there"))?;
                    value = Some(cell);
                    if one.reduces.is_some() {
                        sum.add(cell)?;
                    }
                }
                if let Some(last) = one.reduces {
                    value = Some(sum.result(last));
                }
                if let Some(content) = received {
                    value = content.map(|values| values[i]);
                }
                if one.outputs.is_empty() {
                    read.extend(value);
                }
                for run in &work.runs[one.outputs.clone()] {
                    self.runners[run.rank as usize].memories[run.memory][run.first as usize + i] = value;
                }
            }
        }
        self.work = work;
        Ok(read)
    }
}

const fn phase_index(phase: Phase) -> usize {
    match phase {
        Phase::Arrival => 0,
        Phase::Done => 1,
        Phase::Relayed => 2,
    }
}
