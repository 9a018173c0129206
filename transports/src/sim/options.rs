//! What a simulated network is like.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Rank;
use crate::link::{Limits, Planted};

/// One direction between two ranks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wire {
    /// Nanoseconds that a packet travels. Each has its own; packets of one wire never overtake each other, those of
    /// different wires do.
    pub latency: Range<u64>,
    /// Bytes a second: a packet leaves when the ones before it have left. `None`: at once.
    pub bandwidth: Option<u64>,
    /// Most bytes of a packet; each has a random size up to it, so frames are cut anywhere. A small one makes every write a partial one.
    pub packet: usize,
    /// Bytes that may be on their way, or unread. A small one makes the queue full most of the time.
    pub window: usize,
}

impl Default for Wire {
    fn default() -> Self {
        Self { latency: 1_000..20_000, bandwidth: None, packet: 64 << 10, window: 256 << 10 }
    }
}

/// What the network is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Every wire that is not in `wires`.
    pub wire: Wire,
    /// Wires that differ, by sender and receiver.
    pub wires: BTreeMap<(Rank, Rank), Wire>,
    /// Per cent of the chances to move bytes that a poll lets pass.
    pub stutter: u32,
    /// Writes in a million whose bytes arrive although the sender is told of an error.
    pub errored: u32,
    /// Nanoseconds after which the streams over a wire that is still cut break.
    pub patience: u64,
    /// The links' limits.
    pub limits: Limits,
    /// What the links and their connections do wrong, for tests of those who look.
    #[doc(hidden)]
    pub planted: Option<Planted>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wire: Wire::default(),
            wires: BTreeMap::new(),
            stutter: 10,
            errored: 0,
            patience: 15_000_000_000,
            limits: Limits::default(),
            planted: None,
        }
    }
}

/// What one rank has sent another.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    /// Messages posted.
    pub messages: u64,
    /// Packets that left.
    pub packets: u64,
    /// Bytes that left, headers included.
    pub bytes: u64,
}

/// What can go wrong, at the moment it is [injected](super::Network::inject).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The rank dies: what it has sent arrives, then its end. It moves nothing any more.
    Lose(Rank),
    /// The rank is stopped: it makes no progress until it is continued. What is sent to it arrives, and waits.
    Stop(Rank),
    /// A stopped rank goes on.
    Continue(Rank),
    /// The rank rests for so many nanoseconds after each poll that moved something; 0 ends it.
    Slow(Rank, u64),
    /// Nothing passes between these ranks and the others until the network heals; what is on its way waits.
    Partition(Vec<Rank>),
    /// Every cut wire works again.
    Heal,
    /// The wire becomes another one: slower, narrower, in smaller packets. What is on its way is not touched.
    Rewire(Rank, Rank, Wire),
    /// The stream between two ranks breaks: of what is on its way, in each direction, a part arrives, and then both ends are told.
    Break(Rank, Rank),
    /// The next write from the first to the second rank arrives, but the sender is told that it failed, and the stream ends behind it.
    ErrorWrite(Rank, Rank),
}
