//! Links over a simulated network with virtual time.
//!
//! A [`Network`] joins [`Endpoint`]s. Each (sender, receiver) pair is a byte pipe that keeps order; packets of different pairs overtake each other at
//! random, frames are cut anywhere, a poll may do little or nothing. Everything random comes from the seed: a program that calls in
//! the same order sees the same network, and [`Network::trace`] proves it. Time moves only in [`Network::step`].

mod endpoint;
mod random;

pub use endpoint::Endpoint;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Rank;
use crate::link::Limits;
use random::Random;

/// What the network is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nanoseconds from one rank to another.
    pub latency: Range<u64>,
    /// Most bytes of a packet; each has a random size up to it.
    pub packet: usize,
    /// Bytes that may be on their way, or unread, from one rank to another.
    pub window: usize,
    /// Per cent of the chances to move bytes that a poll lets pass.
    pub stutter: u32,
    /// The links' limits.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            latency: 1_000..20_000,
            packet: 64 << 10,
            window: 256 << 10,
            stutter: 10,
            limits: Limits::default(),
        }
    }
}

/// What travels.
#[derive(Debug)]
enum Packet {
    Bytes(Vec<u8>),
    /// The sender is gone.
    End,
}

/// One direction between two ranks.
#[derive(Debug, Default)]
struct Pipe {
    /// Sent and not yet arrived, in order.
    travelling: VecDeque<Packet>,
    /// Arrived and not yet read.
    arrived: VecDeque<u8>,
    /// Sent and not yet read.
    occupied: usize,
    /// When the last packet arrives.
    latest: u64,
    /// The end has arrived.
    ended: bool,
}

#[derive(Debug)]
struct State {
    now: u64,
    random: Random,
    options: Options,
    /// When, in which order of sending, and between whom a packet arrives.
    agenda: BinaryHeap<Reverse<(u64, u64, Rank, Rank)>>,
    sent: u64,
    pipes: BTreeMap<(Rank, Rank), Pipe>,
    /// By receiver: who has sent something that is not read.
    mail: Vec<BTreeSet<Rank>>,
    alive: Vec<bool>,
    trace: u64,
}

impl State {
    fn record(&mut self, words: [u64; 4]) {
        for word in words {
            self.trace = (self.trace.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn dispatch(&mut self, from: Rank, to: Rank, packet: Packet) {
        let arrival = self.now + self.random.within(self.options.latency.clone());
        let pipe = self.pipes.entry((from, to)).or_default();
        pipe.latest = pipe.latest.max(arrival);
        if let Packet::Bytes(bytes) = &packet {
            pipe.occupied += bytes.len();
        }
        pipe.travelling.push_back(packet);
        self.sent += 1;
        self.agenda.push(Reverse((pipe.latest, self.sent, from, to)));
    }

    fn kill(&mut self, rank: Rank) {
        if !std::mem::replace(&mut self.alive[rank as usize], false) {
            return;
        }
        for other in 0..self.alive.len() as Rank {
            if other != rank && self.alive[other as usize] {
                self.dispatch(rank, other, Packet::End);
            }
        }
    }

    fn advance(&mut self) -> bool {
        let Some(Reverse((time, order, from, to))) = self.agenda.pop() else { return false };
        self.now = self.now.max(time);
        let pipe = self.pipes.entry((from, to)).or_default();
        let size = match pipe.travelling.pop_front() {
            Some(Packet::Bytes(bytes)) => {
                pipe.arrived.extend(&bytes);
                bytes.len() as u64
            }
            Some(Packet::End) | None => {
                pipe.ended = true;
                u64::MAX
            }
        };
        self.mail[to as usize].insert(from);
        self.record([time, order, u64::from(from) << 32 | u64::from(to), size]);
        true
    }
}

/// The network, and the clock.
#[derive(Clone, Debug)]
pub struct Network {
    state: Arc<Mutex<State>>,
    limits: Limits,
}

impl Network {
    /// A network of so many ranks, whose chance comes from `seed`.
    pub fn new(ranks: usize, seed: u64, options: Options) -> Self {
        let limits = options.limits;
        let state = State {
            now: 0,
            random: Random::new(seed),
            options,
            agenda: BinaryHeap::new(),
            sent: 0,
            pipes: BTreeMap::new(),
            mail: vec![BTreeSet::new(); ranks],
            alive: vec![true; ranks],
            trace: seed,
        };
        Self { state: Arc::new(Mutex::new(state)), limits }
    }

    /// The transport of one rank; each rank has one.
    pub fn endpoint(&self, rank: Rank) -> Endpoint {
        Endpoint::new(rank, self.clone())
    }

    /// The transports of all ranks.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let ranks = self.lock().alive.len() as Rank;
        (0..ranks).map(|rank| self.endpoint(rank)).collect()
    }

    /// Lets the next packet arrive. False if none is on its way.
    pub fn step(&self) -> bool {
        self.lock().advance()
    }

    /// The time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.lock().now
    }

    /// A rank dies: what it has sent arrives, then its end. It moves nothing any more.
    pub fn lose(&self, rank: Rank) {
        self.lock().kill(rank);
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
