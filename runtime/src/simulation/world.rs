//! The ranks of an experiment, and what happens between them.

use windlass_collectives::{
    Action, Blocks, Collective, Execution, Geometry, Operands, Peers, Phase, Policy, Role, Schedule, Span,
    Take, Task, Topology, Unsupported,
};

use super::agenda::{Agenda, Time, picoseconds};
use super::experiment::{Estimate, Experiment, ExperimentError};
use super::mailbox::{Mailbox, Name};
use super::watched::{Values, Watched, chance};

/// How many events happen between two reports.
const REPORT_EVERY: u64 = 1 << 16;

#[derive(Clone, Copy, Debug)]
enum Event {
    Enter {
        rank: u32,
    },
    /// A message begins to leave.
    Leaves {
        message: u32,
    },
    /// It has left.
    Left {
        message: u32,
    },
    /// It is there.
    Arrived {
        message: u32,
    },
    /// It has left and is there.
    Passed {
        message: u32,
    },
    /// A rank has combined a chunk, or seen the signals that it waited for.
    Done {
        rank: u32,
        step: u32,
        first: u32,
        end: u32,
    },
    /// A rank's signal can be seen.
    Raised {
        rank: u32,
        phase: Phase,
        end: u32,
    },
}

#[derive(Debug, Default)]
struct Message {
    /// The name holds the sender.
    name: Name,
    to: u32,
    /// The sender's step.
    step: u32,
    bytes: u64,
    values: Values,
    /// It has left, and it has been received: the sooner of the two.
    settled: bool,
}

/// A wait that is not over.
#[derive(Clone, Copy, Debug)]
struct Wait {
    step: u32,
    from: Peers,
    seen: u32,
    total: u32,
}

/// When a rank's ports and its processor are free. Apart from the rest, which is large: a message touches those of two ranks.
#[derive(Clone, Copy, Debug, Default)]
struct Free {
    outwards: Time,
    inwards: Time,
    processor: Time,
}

#[derive(Debug)]
struct Rank {
    execution: Execution,
    mailbox: Mailbox,
    /// To whom it has sent how much: few, in every algorithm.
    sent: Vec<(u32, u64)>,
    waits: [Option<Wait>; 3],
    raised: [u32; 3],
    ended: Option<Time>,
}

pub(super) struct World<'a> {
    experiment: &'a Experiment,
    geometry: Geometry,
    ranks: Vec<Rank>,
    free: Vec<Free>,
    agenda: Agenda<Event>,
    messages: Vec<Message>,
    spare: Vec<u32>,
    watched: Watched,
    now: Time,
    /// Messages received.
    received: u64,
    last_entry: Time,
}

/// The ranks whose schedules are counted.
const SAMPLE: u32 = 64;

impl<'a> World<'a> {
    /// A rank's schedule, and how it is cut into chunks.
    fn plan(experiment: &Experiment, rank: u32) -> Result<(Schedule, Geometry), Unsupported> {
        let Experiment { call, algorithm, ranks, model, .. } = experiment;
        let topology =
            Topology { ranks: *ranks, mapped: algorithm.needs_mapped_peers(), cores: *ranks, nodes: None };
        let choice = model.choose(call, &topology, Policy { algorithm: Some(*algorithm), by_rank: false })?;
        // An experiment has a size, and no lengths of blocks.
        if choice.algorithm != *algorithm || call.collective.is_uneven() {
            return Err(Unsupported { algorithm: *algorithm, collective: call.collective, ranks: *ranks });
        }
        let schedule = Schedule::new(call.collective, *algorithm, rank, *ranks, call.root, false)?;
        Ok((schedule, choice.geometry(call, *ranks, &schedule)))
    }

    /// No rank sends more than all could, or receives more: a tree's root sends many, but each rank receives one.
    pub(super) fn messages(experiment: &Experiment) -> Result<u64, Unsupported> {
        let mut most = [0, 0];
        // All of them where they are few, else some from everywhere.
        let apart = experiment.ranks.div_ceil(SAMPLE) as usize;
        for rank in (0..experiment.ranks).step_by(apart).chain([experiment.call.root, experiment.ranks - 1]) {
            let (schedule, geometry) = Self::plan(experiment, rank)?;
            let mut here = [0, 0];
            for action in (0..schedule.len()).map(|index| schedule.step(index).action) {
                match action {
                    Action::Send { .. } => here[0] += u64::from(geometry.chunks(&action)),
                    Action::Recv { .. } => here[1] += u64::from(geometry.chunks(&action)),
                    _ => {}
                }
            }
            most = [most[0].max(here[0]), most[1].max(here[1])];
        }
        Ok(most[0].min(most[1]) * u64::from(experiment.ranks))
    }

    pub(super) fn new(experiment: &'a Experiment) -> Result<Self, Unsupported> {
        let Experiment { call, ranks, seed, .. } = experiment;
        let (first, geometry) = Self::plan(experiment, 0)?;
        let rank = |rank| {
            Ok(Rank {
                execution: Execution::new(Self::plan(experiment, rank)?.0, geometry.clone()),
                mailbox: Mailbox::default(),
                sent: Vec::new(),
                waits: [None; 3],
                raised: [0; 3],
                ended: None,
            })
        };
        Ok(Self {
            experiment,
            geometry: geometry.clone(),
            ranks: (0..*ranks).map(rank).collect::<Result<_, Unsupported>>()?,
            free: vec![Free::default(); *ranks as usize],
            agenda: Agenda::default(),
            messages: Vec::new(),
            spare: Vec::new(),
            watched: Watched::new(call, *ranks, &first, &geometry, *seed),
            now: 0,
            received: 0,
            last_entry: 0,
        })
    }

    pub(super) fn run(&mut self, mut progress: impl FnMut(u64)) {
        for rank in 0..self.ranks.len() as u32 {
            let entry = self.entry(rank);
            self.last_entry = self.last_entry.max(entry);
            self.agenda.push(entry, Event::Enter { rank });
        }
        let mut events = 0_u64;
        while let Some((time, event)) = self.agenda.pop() {
            self.now = time;
            self.handle(event);
            events += 1;
            if events.is_multiple_of(REPORT_EVERY) {
                progress(self.received);
            }
        }
    }

    /// When a rank makes the call: at once, so that times compare; but a barrier that nobody is late for would prove nothing.
    fn entry(&self, rank: u32) -> Time {
        match self.experiment.call.collective {
            Collective::Barrier => {
                picoseconds(self.experiment.model.message_ns)
                    * (chance(self.experiment.seed, u64::from(rank)) % 1024)
                    / 1024
            }
            _ => 0,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Enter { rank } => self.advance(rank),
            Event::Leaves { message } => self.leaves(message),
            Event::Left { message } => self.left(message),
            Event::Arrived { message } => self.arrived(message),
            Event::Passed { message } => {
                self.left(message);
                self.arrived(message);
            }
            Event::Done { rank, step, first, end } => {
                self.complete(rank, step, first, end);
                self.advance(rank);
            }
            Event::Raised { rank, phase, end } => self.raise(rank, phase, end),
        }
    }

    /// How long a message occupies a port: α + b·β.
    fn takes(&self, bytes: u64) -> Time {
        let model = &self.experiment.model;
        picoseconds(model.message_ns + bytes as f64 * model.message_byte_ns)
    }

    fn complete(&mut self, rank: u32, step: u32, first: u32, end: u32) {
        self.ranks[rank as usize].execution.complete(step, first..end);
    }

    /// Does all that is ready.
    fn advance(&mut self, rank: u32) {
        while let Some(task) = self.ranks[rank as usize].execution.poll(u32::MAX) {
            self.perform(rank, &task);
        }
        let (now, place) = (self.now, &mut self.ranks[rank as usize]);
        if place.ended.is_none() && place.execution.is_done() {
            place.ended = Some(now);
        }
    }

    fn perform(&mut self, rank: u32, task: &Task) {
        let chunks = task.first..task.end;
        match task.action {
            Action::Send { to, from, label } => {
                chunks.for_each(|chunk| {
                    self.send(rank, to, from, task.step, Name { peer: rank, label, chunk })
                });
            }
            Action::Recv { from, label, .. } => {
                for chunk in chunks {
                    let name = Name { peer: from, label, chunk };
                    if let Some(message) = self.ranks[rank as usize].mailbox.post(name, task.step) {
                        self.receive(message, task.step);
                    }
                }
            }
            Action::Copy { .. }
            | Action::Reduce { .. }
            | Action::Gather { .. }
            | Action::Fetch { .. }
            | Action::Scan { .. } => chunks.for_each(|chunk| self.combine(rank, task, chunk)),
            Action::Signal { phase } => {
                let seen = self.now + picoseconds(self.experiment.model.flag_ns);
                self.agenda.push(seen, Event::Raised { rank, phase, end: task.end });
                self.complete(rank, task.step, task.first, task.end);
            }
            Action::Wait { phase, from } => {
                let slot = &mut self.ranks[rank as usize].waits[phase as usize];
                let seen = slot.map_or(task.first, |wait| wait.seen);
                *slot = Some(Wait { step: task.step, from, seen, total: task.end });
                let lowest = self.lowest(phase);
                self.look(rank, phase, lowest);
            }
        }
    }

    // ---- messages ----------------------------------------------------------------------------------------------------------

    fn send(&mut self, rank: u32, to: u32, span: Span, step: u32, name: Name) {
        let Blocks::Range { first, end } = span.blocks else { return };
        let bytes = self.geometry.range_piece(span.role, first, end, name.chunk).bytes;
        let message = self.spare.pop().unwrap_or_else(|| {
            self.messages.push(Message::default());
            self.messages.len() as u32 - 1
        });
        let place = &mut self.messages[message as usize];
        (place.name, place.to, place.step, place.bytes, place.settled) = (name, to, step, bytes, false);
        place.values.clear();
        self.watched.load(rank, span, name.chunk, &mut place.values);
        let takes = self.takes(bytes);
        let sender = &mut self.ranks[rank as usize];
        match sender.sent.iter_mut().find(|(peer, _)| *peer == to) {
            Some((_, sum)) => *sum += bytes,
            None => sender.sent.push((to, bytes)),
        }
        let port = &mut self.free[rank as usize].outwards;
        let leaves = (*port).max(self.now);
        *port = leaves + takes;
        if leaves == self.now {
            self.leaves(message);
        } else {
            self.agenda.push(leaves, Event::Leaves { message });
        }
    }

    /// The sender's port is free for it; the receiver's may be busy for longer.
    fn leaves(&mut self, message: u32) {
        let Message { to, bytes, .. } = self.messages[message as usize];
        let left = self.now + self.takes(bytes);
        let port = &mut self.free[to as usize].inwards;
        *port = (*port).max(self.now) + (left - self.now);
        let arrived = *port;
        if arrived == left {
            self.agenda.push(left, Event::Passed { message });
        } else {
            self.agenda.push(left, Event::Left { message });
            self.agenda.push(arrived, Event::Arrived { message });
        }
    }

    fn left(&mut self, message: u32) {
        let Message { name, step, .. } = self.messages[message as usize];
        self.settle(message);
        self.complete(name.peer, step, name.chunk, name.chunk + 1);
        self.advance(name.peer);
    }

    fn arrived(&mut self, message: u32) {
        let Message { to, name, bytes, .. } = self.messages[message as usize];
        if let Some(step) = self.ranks[to as usize].mailbox.arrive(name, message, bytes) {
            self.receive(message, step);
            self.advance(to);
        }
    }

    /// A message and its receive have met.
    fn receive(&mut self, message: u32, step: u32) {
        let place = &mut self.messages[message as usize];
        let (to, chunk) = (place.to, place.name.chunk);
        if let Action::Recv { into, .. } = self.ranks[to as usize].execution.schedule().step(step).action {
            self.watched.store(to, into, chunk, &mut place.values);
        }
        self.settle(message);
        self.received += 1;
        self.complete(to, step, chunk, chunk + 1);
    }

    /// The message has left, or has been received; after both, its place is free.
    fn settle(&mut self, message: u32) {
        let place = &mut self.messages[message as usize];
        if std::mem::replace(&mut place.settled, true) {
            self.spare.push(message);
        }
    }

    // ---- combining ---------------------------------------------------------------------------------------------------------

    fn combine(&mut self, rank: u32, task: &Task, chunk: u32) {
        let model = &self.experiment.model;
        let range = |span: Span| match span.blocks {
            Blocks::Range { first, end } => {
                Some(self.geometry.range_piece(span.role, first, end, chunk).bytes)
            }
            _ => None,
        };
        if let Action::Reduce {
            inputs: Operands::Received(ranks, blocks), outputs: Operands::Mine(to), ..
        } = task.action
        {
            let role = |q| if q == rank { Role::Input } else { Role::Partial(q as u16) };
            self.watched.combine(rank, (0..ranks).map(|q| Span { role: role(q), blocks }), to, chunk);
            let bytes = range(to).unwrap_or_default() * u64::from(ranks.saturating_sub(1));
            return self.occupy(rank, task.step, chunk, bytes as f64 * model.reduce_byte_ns);
        }
        let (work, cost) = match task.action {
            Action::Copy { whose: None, from, to } if range(from).is_some() => {
                ((from, None, to), range(from).map(|bytes| 2.0 * bytes as f64 * model.cached_byte_ns))
            }
            Action::Reduce { inputs: Operands::Pair(a, b), outputs: Operands::Mine(to), .. } => {
                ((a, Some(b), to), range(a).map(|bytes| bytes as f64 * model.reduce_byte_ns))
            }
            Action::Reduce { inputs: Operands::Mine(from), outputs: Operands::Mine(to), .. }
                if range(from).is_some() =>
            {
                ((from, None, to), range(from).map(|bytes| bytes as f64 * model.reduce_byte_ns))
            }
            action => return self.combine_mapped(rank, task.step, &action, chunk),
        };
        self.watched.combine(rank, std::iter::once(work.0).chain(work.1), work.2, chunk);
        self.occupy(rank, task.step, chunk, cost.unwrap_or(0.0));
    }

    /// The rank's processor works on a chunk.
    fn occupy(&mut self, rank: u32, step: u32, chunk: u32, ns: f64) {
        let processor = &mut self.free[rank as usize].processor;
        *processor = (*processor).max(self.now) + picoseconds(ns);
        if *processor == self.now {
            return self.complete(rank, step, chunk, chunk + 1);
        }
        self.agenda.push(*processor, Event::Done { rank, step, first: chunk, end: chunk + 1 });
    }

    /// A chunk that lies in memory which peers map.
    fn combine_mapped(&mut self, rank: u32, step: u32, action: &Action, chunk: u32) {
        let (blocks, ranks) = (self.geometry.layout.blocks(), self.ranks.len() as u32);
        let chunks = (chunk, chunk + 1);
        let mut touched = 0;
        let span = |of: &Operands| match of {
            Operands::Mine(span)
            | Operands::All(span)
            | Operands::First(_, span)
            | Operands::Of(_, span)
            | Operands::Node(span)
            | Operands::Pair(span, _) => *span,
            Operands::Received(_, blocks) | Operands::Relays(blocks) => {
                Span { role: Role::Input, blocks: *blocks }
            }
        };
        let among = |of: Blocks, block: u32| match of {
            Blocks::Range { first, end } => (first..end).contains(&block),
            Blocks::One(only) => block == only,
            Blocks::Each => true,
            Blocks::Others(but) => block != but,
            // An experiment is on one NUMA node.
            Blocks::Relayed | Blocks::Unrelayed => false,
        };
        for block in 0..blocks {
            let bytes = self.geometry.block_piece(Role::Output, block, chunk, chunk + 1).bytes;
            match action {
                Action::Copy { whose, from, to } if among(from.blocks, block) => {
                    let source = (whose.unwrap_or(rank), from.role);
                    self.watched.copy_piece((block, block), chunks, source, (rank, to.role));
                    touched += 2 * bytes;
                }
                Action::Gather { from, take } => {
                    let role = if block == rank { Role::Input } else { *from };
                    let source = if *take == Take::Ours { rank } else { block };
                    self.watched.copy_piece((source, block), chunks, (block, role), (rank, Role::Output));
                    touched += 2 * bytes;
                }
                Action::Reduce { inputs, outputs, .. } if among(span(inputs).blocks, block) => {
                    let many = match inputs {
                        Operands::First(many, _) => *many,
                        Operands::Mine(_) => 1,
                        _ => ranks,
                    };
                    let operands = if matches!(inputs, Operands::Mine(_)) { rank..rank + 1 } else { 0..many };
                    self.watched.reduce_piece(block, chunks, rank, (operands, span(inputs).role), outputs);
                    let written = if matches!(outputs, Operands::All(_)) { ranks } else { 1 };
                    touched += u64::from(many + written) * bytes;
                }
                Action::Scan { exclusive } if block == rank => {
                    for q in (u32::from(*exclusive)..ranks).rev() {
                        let operands = 0..q + u32::from(!exclusive);
                        touched += (1 + u64::from(operands.end)) * bytes;
                        let to = Operands::Of(q, Span::one(Role::Output, block));
                        self.watched.reduce_piece(block, chunks, rank, (operands, Role::Input), &to);
                    }
                }
                _ => {}
            }
        }
        self.occupy(rank, step, chunk, touched as f64 * self.experiment.model.cached_byte_ns);
    }

    // ---- signals -----------------------------------------------------------------------------------------------------------

    fn raise(&mut self, rank: u32, phase: Phase, end: u32) {
        self.ranks[rank as usize].raised[phase as usize] = end;
        let lowest = self.lowest(phase);
        for waiting in 0..self.ranks.len() as u32 {
            self.look(waiting, phase, lowest);
        }
    }

    /// The rank that has signalled least, how much that is, and the least of the others.
    fn lowest(&self, phase: Phase) -> (u32, u32, u32) {
        let mut lowest = (0, u32::MAX, u32::MAX);
        for (rank, place) in self.ranks.iter().enumerate() {
            let raised = place.raised[phase as usize];
            if raised < lowest.1 {
                lowest = (rank as u32, raised, lowest.1);
            } else if raised < lowest.2 {
                lowest.2 = raised;
            }
        }
        lowest
    }

    fn look(&mut self, rank: u32, phase: Phase, lowest: (u32, u32, u32)) {
        let Some(wait) = self.ranks[rank as usize].waits[phase as usize] else { return };
        let reached = match wait.from {
            Peers::One(q) => self.ranks[q as usize].raised[phase as usize],
            Peers::All if lowest.0 == rank => lowest.2,
            Peers::All => lowest.1,
        };
        let reached = reached.min(wait.total);
        if reached <= wait.seen {
            return;
        }
        let open = (reached < wait.total).then_some(Wait { seen: reached, ..wait });
        self.ranks[rank as usize].waits[phase as usize] = open;
        let lines = match wait.from {
            Peers::One(_) => 0,
            Peers::All => self.ranks.len().saturating_sub(2),
        };
        let seen = self.now + picoseconds(lines as f64 * self.experiment.model.line_ns);
        self.agenda.push(seen, Event::Done { rank, step: wait.step, first: wait.seen, end: reached });
    }

    // ---- the end -----------------------------------------------------------------------------------------------------------

    pub(super) fn estimate(&self) -> Result<Estimate, ExperimentError> {
        let algorithm = self.experiment.algorithm;
        let mut last = 0;
        for (rank, place) in (0..).zip(&self.ranks) {
            match (place.ended, place.execution.position()) {
                (Some(ended), _) if ended < self.last_entry => {
                    return Err(ExperimentError::LeftEarly { rank });
                }
                (Some(ended), _) => last = last.max(ended),
                (None, Some((action, ..))) => {
                    return Err(ExperimentError::Deadlock { rank, action, algorithm });
                }
                (None, None) => {}
            }
        }
        if let Some((rank, element)) = self.watched.wrong() {
            return Err(ExperimentError::Wrong { rank, element });
        }
        let links = || self.ranks.iter().flat_map(|place| &place.sent).map(|(_, bytes)| *bytes);
        let schedule = self.ranks[0].execution.schedule();
        let partial = self.geometry.partial_bytes(schedule.partials());
        let scratch = self.geometry.scratch_bytes(schedule.scratch_rings()) + partial;
        let waiting = self.ranks.iter().map(|place| place.mailbox.most_waiting).max().unwrap_or(0);
        let (watched, elements) = self.watched.count();
        Ok(Estimate {
            time_ns: (last - self.last_entry) as f64 / 1e3,
            messages: self.received,
            bytes: links().sum(),
            links: links().count() as u64,
            most_link_bytes: links().max().unwrap_or(0),
            memory_bytes: scratch + waiting,
            watched,
            elements,
        })
    }
}

#[cfg(test)]
mod tests;
