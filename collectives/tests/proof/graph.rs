//! All tasks of all ranks, what happens before what, and whether everything can happen.
//!
//! An *event* is the beginning or the end of a task; a Combine, a Signal and a Wait are one event. An
//! edge is *strict* when it holds on every transport: dependencies, a Signal before its Wait, the beginning
//! of a Send before the end of its Recv. It is *loose* when it only holds things up: messages that
//! leave when the receiver is posted, and the bounds of `Execution`. No deadlock may come from either
//! kind, and only the strict ones may excuse two accesses to one place.

use windlass_collectives::execution::WINDOW;
use windlass_collectives::{Action, Peers, Phase, Rank, Rule, Step};

use super::case::Operation;

/// What an event is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    /// A rank is between two operations: it has ended those below this number.
    Boundary(usize, Rank),
    /// A task whose beginning and end are one, a Send's beginning or a Recv's end.
    Acts(u32),
    /// The beginning of a Recv or the end of a Send; or a point where many edges meet.
    Passes,
}

/// One chunk of one step of one rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) turn: usize,
    pub(crate) rank: Rank,
    pub(crate) step: u32,
    pub(crate) chunk: u32,
    pub(crate) begin: u32,
    pub(crate) end: u32,
}

/// A step of the graph: its tasks are contiguous.
struct Node {
    first_task: u32,
    chunks: u32,
    /// The event at which every chunk has ended.
    whole: u32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
struct Message {
    turn: usize,
    from: Rank,
    to: Rank,
    label: u32,
    chunk: u32,
    task: u32,
    bytes: u64,
}

#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) events: Vec<Event>,
    pub(crate) tasks: Vec<Task>,
    /// For a Recv, the task of its Send.
    pub(crate) sender: Vec<u32>,
    strict: Vec<(u32, u32)>,
    loose: Vec<(u32, u32)>,
    sends: Vec<Message>,
    recvs: Vec<Message>,
    /// Events in an order in which they may happen.
    pub(crate) order: Vec<u32>,
    position: Vec<u32>,
    /// Row `position[e]`: which earlier positions happen before event e.
    before: Vec<u64>,
    rows: Vec<usize>,
}

impl Graph {
    /// Builds the graph of `operations`, done one after the other by every rank.
    pub(crate) fn build(&mut self, operations: &[Operation]) -> Result<(), String> {
        for list in [&mut self.strict, &mut self.loose] {
            list.clear();
        }
        for list in [&mut self.sends, &mut self.recvs] {
            list.clear();
        }
        self.events.clear();
        self.tasks.clear();
        let ranks = operations[0].ranks();
        let mut boundaries: Vec<u32> = (0..ranks).map(|r| self.event(Event::Boundary(0, r))).collect();
        for (turn, operation) in operations.iter().enumerate() {
            let mut nodes = Vec::with_capacity(ranks as usize);
            for rank in 0..ranks {
                let next = self.event(Event::Boundary(turn + 1, rank));
                let entered = std::mem::replace(&mut boundaries[rank as usize], next);
                nodes.push(self.rank(operation, turn, rank, entered, next)?);
            }
            self.signals(operation, &nodes)?;
        }
        self.messages()?;
        self.sort()?;
        self.close();
        Ok(())
    }

    /// Whether event `a` has always happened when `b` does.
    pub(crate) fn precedes(&self, a: u32, b: u32) -> bool {
        let (a, b) = (self.position[a as usize] as usize, self.position[b as usize] as usize);
        a < b && self.before[self.rows[b] + a / 64] >> (a % 64) & 1 == 1
    }

    fn event(&mut self, event: Event) -> u32 {
        self.events.push(event);
        self.events.len() as u32 - 1
    }

    fn rank(
        &mut self,
        operation: &Operation,
        turn: usize,
        rank: Rank,
        entered: u32,
        left: u32,
    ) -> Result<Vec<Node>, String> {
        let steps = &operation.steps[rank as usize];
        let mut nodes = Vec::with_capacity(steps.len());
        self.strict.push((entered, left));
        for (index, step) in steps.iter().enumerate() {
            let (first_task, chunks) =
                (self.tasks.len() as u32, operation.geometry(rank).chunks(&step.action));
            let whole = self.event(Event::Passes);
            for chunk in 0..chunks {
                let task = self.tasks.len() as u32;
                let acts = self.event(Event::Acts(task));
                let (begin, end) = match step.action {
                    Action::Send { .. } => (acts, self.event(Event::Passes)),
                    Action::Recv { .. } => (self.event(Event::Passes), acts),
                    _ => (acts, acts),
                };
                self.tasks.push(Task { turn, rank, step: index as u32, chunk, begin, end });
                self.strict.extend([(entered, begin), (end, whole)]);
                if begin != end {
                    self.strict.push((begin, end));
                }
            }
            self.strict.push((whole, left));
            nodes.push(Node { first_task, chunks, whole });
        }
        for (index, step) in steps.iter().enumerate() {
            self.dependencies(operation, rank, step, &nodes, index)?;
            self.post(operation, turn, rank, step, &nodes[index]);
        }
        self.bounds(steps, &nodes);
        Ok(nodes)
    }

    fn dependencies(
        &mut self,
        operation: &Operation,
        rank: Rank,
        step: &Step,
        nodes: &[Node],
        index: usize,
    ) -> Result<(), String> {
        let node = &nodes[index];
        for (position, dependency) in step.dependencies().enumerate() {
            if operation.dropped == Some((rank, index as u32, position)) {
                continue;
            }
            let Some(other) = nodes.get(dependency.step as usize) else {
                return Err(format!("step {index} waits for step {}, which is none", dependency.step));
            };
            if dependency.rule != Rule::All && other.chunks != node.chunks {
                return Err(format!("steps {index} and {} have different chunks", dependency.step));
            }
            for chunk in 0..node.chunks {
                let begin = self.tasks[(node.first_task + chunk) as usize].begin;
                let awaited = match dependency.rule {
                    Rule::Same => Some(chunk),
                    Rule::Reuse => chunk.checked_sub(operation.case.depth),
                    Rule::All => {
                        self.strict.push((other.whole, begin));
                        None
                    }
                };
                if let Some(c) = awaited {
                    self.strict.push((self.tasks[(other.first_task + c) as usize].end, begin));
                }
            }
        }
        Ok(())
    }

    /// Notes the messages of a step.
    fn post(&mut self, operation: &Operation, turn: usize, rank: Rank, step: &Step, node: &Node) {
        let (span, from, to, label) = match step.action {
            Action::Send { to, from: span, label } => (span, rank, to, label),
            Action::Recv { from, into: span, label } => (span, from, rank, label),
            _ => return,
        };
        let windlass_collectives::Blocks::Range { first, end } = span.blocks else { return };
        for chunk in 0..node.chunks {
            let bytes = operation.geometry(rank).range_piece(span.role, first, end, chunk).bytes;
            let message = Message { turn, from, to, label, chunk, task: node.first_task + chunk, bytes };
            match step.action {
                Action::Send { .. } => self.sends.push(message),
                _ => self.recvs.push(message),
            }
            if operation.doubled == Some((rank, self.tasks[message.task as usize].step, chunk)) {
                self.sends.push(message);
            }
        }
    }

    /// What `Execution` does not do: hand out chunks of a step out of order, work on a step more than a
    /// window ahead, or have more than a window of chunks of one step under way.
    fn bounds(&mut self, steps: &[Step], nodes: &[Node]) {
        for (step, node) in steps.iter().zip(nodes) {
            for chunk in 1..node.chunks {
                let task = (node.first_task + chunk) as usize;
                self.loose.push((self.tasks[task - 1].begin, self.tasks[task].begin));
                if chunk >= WINDOW && !matches!(step.action, Action::Wait { .. }) {
                    self.loose.push((self.tasks[task - WINDOW as usize].end, self.tasks[task].begin));
                }
            }
        }
        for (index, node) in nodes.iter().enumerate() {
            if index > 0 {
                self.loose.push((nodes[index - 1].whole, node.whole));
            }
            if let Some(earlier) = index.checked_sub(WINDOW as usize) {
                for task in node.first_task..node.first_task + node.chunks {
                    self.loose.push((nodes[earlier].whole, self.tasks[task as usize].begin));
                }
            }
        }
    }

    fn signals(&mut self, operation: &Operation, nodes: &[Vec<Node>]) -> Result<(), String> {
        for phase in [Phase::Arrival, Phase::Relayed, Phase::Done] {
            let of = |rank: Rank| {
                let steps = operation.steps[rank as usize].iter().zip(&nodes[rank as usize]);
                steps
                    .filter(|(s, _)| s.action == Action::Signal { phase })
                    .map(|(_, n)| n)
                    .collect::<Vec<_>>()
            };
            let signals: Vec<_> = (0..operation.ranks()).map(of).collect();
            if let Some(twice) = signals.iter().position(|s| s.len() > 1) {
                return Err(format!("rank {twice} signals {phase:?} in two steps"));
            }
            for (rank, steps) in operation.steps.iter().enumerate() {
                let mut waits = 0;
                for (step, node) in steps.iter().zip(&nodes[rank]) {
                    let Action::Wait { phase: p, from } = step.action else { continue };
                    if p != phase {
                        continue;
                    }
                    waits += 1;
                    for (peer, signal) in signals.iter().enumerate() {
                        let meant = match from {
                            Peers::All => peer != rank,
                            Peers::One(one) => peer == one as usize,
                        };
                        if !meant {
                            continue;
                        }
                        // Who knows its own blocks alone may have fewer chunks or more; then its last signal stands for all after it.
                        let private = operation.case.collective.has_private_lengths();
                        let differ = |signal: &Node| signal.chunks != node.chunks && !private;
                        if peer == rank || signal.is_empty() || differ(signal[0]) {
                            return Err(format!("rank {rank} waits in vain for {phase:?} of rank {peer}"));
                        }
                        for chunk in 0..node.chunks {
                            let signalled = signal[0].first_task + chunk.min(signal[0].chunks - 1);
                            let given = self.tasks[signalled as usize].end;
                            let awaits = self.tasks[(node.first_task + chunk) as usize].begin;
                            self.strict.push((given, awaits));
                        }
                    }
                }
                if waits > 1 {
                    return Err(format!("rank {rank} waits for {phase:?} in two steps"));
                }
            }
        }
        Ok(())
    }

    /// Every message has exactly one sender and one receiver, who agree on its length.
    fn messages(&mut self) -> Result<(), String> {
        self.sends.sort_unstable();
        self.recvs.sort_unstable();
        self.sender.clear();
        self.sender.resize(self.tasks.len(), u32::MAX);
        let name = |m: &Message| (m.turn, m.from, m.to, m.label, m.chunk);
        for (i, send) in self.sends.iter().enumerate() {
            let Some(recv) = self.recvs.get(i).filter(|r| name(r) == name(send)) else {
                return Err(format!("unmatched message: {send:?}, {:?}", self.recvs.get(i)));
            };
            if send.from == send.to || send.bytes != recv.bytes {
                return Err(format!("ill-matched message: {send:?}, {recv:?}"));
            }
            if i > 0 && name(&self.sends[i - 1]) == name(send) {
                return Err(format!("message twice: {send:?}"));
            }
            self.sender[recv.task as usize] = send.task;
            let (sent, received) = (self.tasks[send.task as usize], self.tasks[recv.task as usize]);
            self.strict.push((sent.begin, received.end));
            self.loose.push((received.begin, sent.end));
        }
        if self.recvs.len() > self.sends.len() {
            return Err(format!("a receive without its message: {:?}", self.recvs.last()));
        }
        Ok(())
    }

    /// Puts the events in order, or names one that waits for itself.
    fn sort(&mut self) -> Result<(), String> {
        let count = self.events.len();
        let mut waiting = vec![0_u32; count];
        let mut starts = vec![0_u32; count + 1];
        for &(a, b) in self.strict.iter().chain(&self.loose) {
            starts[a as usize + 1] += 1;
            waiting[b as usize] += 1;
        }
        for i in 0..count {
            starts[i + 1] += starts[i];
        }
        let mut fill = starts.clone();
        let mut targets = vec![0_u32; starts[count] as usize];
        for &(a, b) in self.strict.iter().chain(&self.loose) {
            targets[fill[a as usize] as usize] = b;
            fill[a as usize] += 1;
        }
        self.order.clear();
        self.order.extend((0..count as u32).filter(|e| waiting[*e as usize] == 0));
        let mut next = 0;
        while let Some(&event) = self.order.get(next) {
            next += 1;
            for &target in &targets[starts[event as usize] as usize..starts[event as usize + 1] as usize] {
                waiting[target as usize] -= 1;
                if waiting[target as usize] == 0 {
                    self.order.push(target);
                }
            }
        }
        if next < count {
            let stuck = (0..count).find(|e| waiting[*e] > 0).map(|e| self.events[e]);
            return Err(format!("deadlock: {stuck:?} and {} others wait for themselves", count - next - 1));
        }
        self.position.clear();
        self.position.resize(count, 0);
        for (position, event) in self.order.iter().enumerate() {
            self.position[*event as usize] = position as u32;
        }
        Ok(())
    }

    /// Fills the rows of `before`: a union over the strict edges, in order.
    fn close(&mut self) {
        let count = self.events.len();
        self.rows.clear();
        let mut length = 0;
        for i in 0..count {
            self.rows.push(length);
            length += i / 64 + 1;
        }
        if self.before.len() < length {
            self.before.resize(length, 0);
        }
        for edge in &mut self.strict {
            *edge = (self.position[edge.0 as usize], self.position[edge.1 as usize]);
        }
        // By target, and the nearest source first: what it knows often includes the others.
        self.strict.sort_unstable_by_key(|&(a, b)| (b, std::cmp::Reverse(a)));
        let mut edges = self.strict.iter().peekable();
        for target in 0..count {
            let (earlier, row) = self.before.split_at_mut(self.rows[target]);
            let row = &mut row[..target / 64 + 1];
            row.fill(0);
            while let Some(&&(a, b)) = edges.peek() {
                if b as usize != target {
                    break;
                }
                edges.next();
                let a = a as usize;
                if row[a / 64] >> (a % 64) & 1 == 1 {
                    continue;
                }
                for (word, known) in row.iter_mut().zip(&earlier[self.rows[a]..=self.rows[a] + a / 64]) {
                    *word |= known;
                }
                row[a / 64] |= 1 << (a % 64);
            }
        }
    }
}
