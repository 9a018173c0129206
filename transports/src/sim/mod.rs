//! Links over a simulated network with virtual time.
//!
//! A [`Network`] joins [`Endpoint`]s. Each (sender, receiver) pair is a byte pipe that keeps order; packets of different pairs overtake each other at
//! random, frames are cut anywhere, a poll may do little or nothing. [`Options`] say what the wires are like; a [`Fault`] makes ranks or wires fail.
//! Everything random comes from the seed: a program that calls in the same order sees the same network, and
//! [`Network::trace`] proves it. Time moves only in [`Network::step`].

mod endpoint;
mod options;
mod random;

pub use endpoint::Endpoint;
pub use options::{Fault, Options, Traffic, Wire};

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Rank;
use crate::link::{Limits, Planted, Position};
use random::Random;

/// What travels.
#[derive(Debug)]
enum Packet {
    /// Of a connection: who has another one throws them away.
    Bytes(u32, Vec<u8>),
    /// The sender is gone.
    End,
    /// This connection, and all before it, broke.
    Reset(u32),
    /// The stream is to be opened anew, and the sender has come so far.
    Call(u32, Position),
    /// It is.
    Answer(u32, Position),
}

/// One direction between two ranks.
#[derive(Debug)]
struct Pipe {
    /// Sent and not yet arrived, in order.
    travelling: VecDeque<Packet>,
    /// Arrived and not yet read.
    arrived: VecDeque<u8>,
    /// Likewise, of what makes and breaks connections.
    signals: VecDeque<Packet>,
    /// The connection whose bytes the sender sends, and the one that the receiver takes them from.
    sends: u32,
    takes: Option<u32>,
    /// Sent and not yet read.
    occupied: usize,
    /// When the wire has taken what was sent.
    free: u64,
    /// When the last packet arrives.
    latest: u64,
    /// The end has arrived.
    ended: bool,
    /// Nothing passes; so many packets wait to arrive.
    cut: bool,
    held: usize,
    /// It was cut for too long.
    given_up: bool,
    /// The sender found no room.
    full: bool,
    /// The next write is an error to the sender.
    errs: bool,
    traffic: Traffic,
}

impl Default for Pipe {
    fn default() -> Self {
        Self {
            travelling: VecDeque::new(),
            arrived: VecDeque::new(),
            signals: VecDeque::new(),
            sends: 0,
            // All ranks are connected from the beginning.
            takes: Some(0),
            occupied: 0,
            free: 0,
            latest: 0,
            ended: false,
            cut: false,
            held: 0,
            given_up: false,
            full: false,
            errs: false,
            traffic: Traffic::default(),
        }
    }
}

/// What the agenda holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd)]
enum Appointment {
    Arrival(Rank, Rank),
    /// A slow rank may go on.
    Wake(Rank),
    /// A partition of this number has lasted long enough.
    GiveUp(u64),
}

/// How a rank fares.
#[derive(Clone, Copy, Debug, Default)]
struct Condition {
    dead: bool,
    stopped: bool,
    /// How long it rests after each poll that moved something, and until when it does.
    pause: u64,
    resting_until: u64,
}

#[derive(Debug)]
struct State {
    now: u64,
    random: Random,
    options: Options,
    /// When, in which order of making, and what happens.
    agenda: BinaryHeap<Reverse<(u64, u64, Appointment)>>,
    appointments: u64,
    pipes: BTreeMap<(Rank, Rank), Pipe>,
    /// By receiver: who has sent something that is not read.
    mail: Vec<BTreeSet<Rank>>,
    ranks: Vec<Condition>,
    partitions: u64,
    /// Ranks that may have something to do.
    stirred: BTreeSet<Rank>,
    trace: u64,
}

impl State {
    fn record(&mut self, words: [u64; 4]) {
        for word in words {
            self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn wire(&self, from: Rank, to: Rank) -> &Wire {
        self.options.wires.get(&(from, to)).unwrap_or(&self.options.wire)
    }

    fn appoint(&mut self, time: u64, what: Appointment) {
        self.appointments += 1;
        self.agenda.push(Reverse((time, self.appointments, what)));
    }

    fn dispatch(&mut self, from: Rank, to: Rank, packet: Packet) {
        let Wire { latency, bandwidth, .. } = self.wire(from, to).clone();
        let travels = self.random.within(latency);
        let now = self.now;
        let pipe = self.pipes.entry((from, to)).or_default();
        let bytes = if let Packet::Bytes(_, bytes) = &packet { bytes.len() } else { 0 };
        let takes = bandwidth.map_or(0, |each| bytes as u64 * 1_000_000_000 / each.max(1));
        pipe.free = pipe.free.max(now) + takes;
        pipe.latest = pipe.latest.max(pipe.free + travels);
        pipe.occupied += bytes;
        pipe.traffic.packets += u64::from(bytes > 0);
        pipe.traffic.bytes += bytes as u64;
        pipe.travelling.push_back(packet);
        let latest = pipe.latest;
        self.appoint(latest, Appointment::Arrival(from, to));
    }

    fn advance(&mut self) -> bool {
        let Some(Reverse((time, order, what))) = self.agenda.pop() else { return false };
        self.now = self.now.max(time);
        match what {
            Appointment::Arrival(from, to) => self.arrive(from, to, order),
            Appointment::Wake(rank) => drop(self.stirred.insert(rank)),
            Appointment::GiveUp(partition) if partition == self.partitions => self.give_up(),
            Appointment::GiveUp(_) => {}
        }
        true
    }

    fn arrive(&mut self, from: Rank, to: Rank, order: u64) {
        let pipe = self.pipes.entry((from, to)).or_default();
        if pipe.cut {
            pipe.held += 1;
            return;
        }
        let size = match pipe.travelling.pop_front() {
            Some(Packet::Bytes(connection, bytes)) if pipe.takes == Some(connection) => {
                pipe.arrived.extend(&bytes);
                bytes.len() as u64
            }
            Some(Packet::Bytes(_, bytes)) => {
                pipe.occupied -= bytes.len();
                if std::mem::take(&mut pipe.full) {
                    self.stirred.insert(from);
                }
                return;
            }
            Some(Packet::End) => {
                pipe.ended = true;
                u64::MAX
            }
            Some(signal) => {
                pipe.signals.push_back(signal);
                u64::MAX - 1
            }
            None => return,
        };
        self.mail[to as usize].insert(from);
        self.stirred.insert(to);
        self.record([self.now, order, u64::from(from) << 32 | u64::from(to), size]);
    }

    fn give_up(&mut self) {
        for (&(from, to), pipe) in self.pipes.iter_mut().filter(|(_, pipe)| pipe.cut) {
            pipe.given_up = true;
            let lost = pipe.travelling.drain(..);
            let lost: usize =
                lost.map(|p| if let Packet::Bytes(_, bytes) = p { bytes.len() } else { 0 }).sum();
            pipe.occupied -= lost;
            pipe.held = 0;
            self.mail[to as usize].insert(from);
            self.stirred.insert(to);
        }
    }

    fn inject(&mut self, fault: Fault) {
        let word = match &fault {
            Fault::Lose(rank) | Fault::Stop(rank) | Fault::Continue(rank) | Fault::Slow(rank, _) => *rank,
            Fault::Rewire(from, to, _) | Fault::ErrorWrite(from, to) | Fault::Break(from, to) => {
                from << 16 | to
            }
            Fault::Partition(side) => side.iter().sum(),
            Fault::Heal => 0,
        };
        self.record([self.now, u64::MAX, u64::from(word), 0]);
        match fault {
            Fault::Lose(rank) => self.kill(rank),
            Fault::Stop(rank) => self.ranks[rank as usize].stopped = true,
            Fault::Continue(rank) => {
                self.ranks[rank as usize].stopped = false;
                self.stirred.insert(rank);
            }
            Fault::Slow(rank, pause) => self.ranks[rank as usize].pause = pause,
            Fault::Partition(side) => self.partition(&side),
            Fault::Heal => self.heal(),
            Fault::Rewire(from, to, wire) => {
                self.options.wires.insert((from, to), wire);
                // Its window may be larger.
                self.stirred.insert(from);
            }
            Fault::Break(one, other) => self.break_stream(one, other),
            Fault::ErrorWrite(from, to) => self.pipes.entry((from, to)).or_default().errs = true,
        }
    }

    /// What is on its way arrives up to a byte that chance decides, and then news of the break.
    fn break_stream(&mut self, one: Rank, other: Rank) {
        let ways = [(one, other), (other, one)];
        let connection = ways.iter().map(|way| self.pipes.entry(*way).or_default().sends).max();
        for way in ways {
            let Self { pipes, random, .. } = self;
            let pipe = pipes.entry(way).or_default();
            let size = |packet: &Packet| if let Packet::Bytes(_, bytes) = packet { bytes.len() } else { 0 };
            let mut left = random.within(0..pipe.travelling.len() as u64 + 1);
            let mut passed = VecDeque::new();
            for mut packet in std::mem::take(&mut pipe.travelling) {
                let before = size(&packet);
                match &mut packet {
                    Packet::End => {}
                    _ if left == 0 => {
                        pipe.occupied -= before;
                        continue;
                    }
                    Packet::Bytes(_, bytes) if left == 1 => bytes.truncate(random.up_to(before)),
                    _ => {}
                }
                left = left.saturating_sub(1);
                pipe.occupied -= before - size(&packet);
                passed.push_back(packet);
            }
            pipe.travelling = passed;
            self.dispatch(way.0, way.1, Packet::Reset(connection.unwrap_or(0)));
        }
    }

    fn kill(&mut self, rank: Rank) {
        if std::mem::replace(&mut self.ranks[rank as usize].dead, true) {
            return;
        }
        for other in 0..self.ranks.len() as Rank {
            if other != rank && !self.ranks[other as usize].dead {
                self.dispatch(rank, other, Packet::End);
            }
        }
    }

    fn partition(&mut self, side: &[Rank]) {
        for from in 0..self.ranks.len() as Rank {
            for to in 0..self.ranks.len() as Rank {
                if side.contains(&from) != side.contains(&to) {
                    self.pipes.entry((from, to)).or_default().cut = true;
                }
            }
        }
        self.partitions += 1;
        self.appoint(self.now + self.options.patience, Appointment::GiveUp(self.partitions));
    }

    fn heal(&mut self) {
        self.partitions += 1;
        let cut: Vec<_> = self.pipes.iter().filter(|(_, p)| p.cut).map(|(&ends, _)| ends).collect();
        for (from, to) in cut {
            let travels = self.random.within(self.wire(from, to).latency.clone());
            let now = self.now;
            let pipe = self.pipes.entry((from, to)).or_default();
            pipe.cut = false;
            pipe.latest = pipe.latest.max(now + travels);
            let (held, latest) = (std::mem::take(&mut pipe.held), pipe.latest);
            // Those still on their way have appointments later than these or alike: the order within the pipe is its queue's.
            (0..held).for_each(|_| self.appoint(latest, Appointment::Arrival(from, to)));
        }
    }

    fn is_awake(&self, rank: Rank) -> bool {
        let condition = &self.ranks[rank as usize];
        !condition.dead && !condition.stopped && condition.resting_until <= self.now
    }

    /// A rank has moved something: a slow one rests now.
    fn tire(&mut self, rank: Rank) {
        let condition = &mut self.ranks[rank as usize];
        if condition.pause > 0 {
            condition.resting_until = self.now + condition.pause;
            let until = condition.resting_until;
            self.appoint(until, Appointment::Wake(rank));
        }
    }
}

impl Pipe {
    /// The receiver's connection is over: what has arrived of it is thrown away, and what still comes.
    fn forget(&mut self) {
        self.occupied -= self.arrived.len();
        self.arrived.clear();
        self.takes = None;
    }
}

/// The network, and the clock.
#[derive(Clone, Debug)]
pub struct Network {
    state: Arc<Mutex<State>>,
    limits: Limits,
    planted: Option<Planted>,
}

impl Network {
    /// A network of so many ranks, whose chance comes from `seed`.
    pub fn new(ranks: usize, seed: u64, options: Options) -> Self {
        let (limits, planted) = (options.limits, options.planted);
        let state = State {
            now: 0,
            random: Random::new(seed),
            options,
            agenda: BinaryHeap::new(),
            appointments: 0,
            pipes: BTreeMap::new(),
            mail: vec![BTreeSet::new(); ranks],
            ranks: vec![Condition::default(); ranks],
            partitions: 0,
            stirred: BTreeSet::new(),
            trace: seed,
        };
        Self { state: Arc::new(Mutex::new(state)), limits, planted }
    }

    /// The transport of one rank; each rank has one.
    pub fn endpoint(&self, rank: Rank) -> Endpoint {
        Endpoint::new(rank, self.clone())
    }

    /// The transports of all ranks.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let ranks = self.lock().ranks.len() as Rank;
        (0..ranks).map(|rank| self.endpoint(rank)).collect()
    }

    /// Lets the next thing happen: a packet arrives, or a rank or a wire changes. False if nothing is on its way.
    pub fn step(&self) -> bool {
        self.lock().advance()
    }

    /// The same, if it happens by `time`; otherwise it is that time now.
    pub fn step_until(&self, time: u64) -> bool {
        let mut state = self.lock();
        if state.agenda.peek().is_some_and(|Reverse((next, ..))| *next <= time) {
            return state.advance();
        }
        state.now = state.now.max(time);
        false
    }

    /// The time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.lock().now
    }

    /// Makes something go wrong, now.
    pub fn inject(&self, fault: Fault) {
        self.lock().inject(fault);
    }

    /// A rank dies: [`Fault::Lose`].
    pub fn lose(&self, rank: Rank) {
        self.inject(Fault::Lose(rank));
    }

    /// Whether a rank can do anything now: it is neither dead nor stopped nor at rest.
    pub fn is_awake(&self, rank: Rank) -> bool {
        self.lock().is_awake(rank)
    }

    /// The ranks to which something has happened since this was last asked, in order.
    pub fn take_stirred(&self) -> BTreeSet<Rank> {
        std::mem::take(&mut self.lock().stirred)
    }

    /// What was sent over each wire that was used.
    pub fn traffic(&self) -> BTreeMap<(Rank, Rank), Traffic> {
        let state = self.lock();
        let used = state.pipes.iter().filter(|(_, pipe)| pipe.traffic != Traffic::default());
        used.map(|(&ends, pipe)| (ends, pipe.traffic)).collect()
    }

    /// A number made from everything that happened so far.
    pub fn trace(&self) -> u64 {
        self.lock().trace
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in one endpoint's thread leaves the state consistent enough for the others to end.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
