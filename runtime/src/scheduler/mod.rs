//! The scheduler's region life: memory that moves, without losing or counting twice a single element.
//!
//! A driver may move or take back a buffer at any moment, also while peers read and write it. These machines decide who has
//! to stop, when the owner may be told that everybody has stopped, and what is done again afterwards. They are pure: no clock
//! (time comes in as nanoseconds), thread, lock or I/O, and no knowledge of transports. `docs/scheduler.md` tells the story.
//!
//! | machine | there is one for | it decides |
//! |---|---|---|
//! | [`Region`] | each segment this rank owns | when to withdraw, acknowledge, refuse, register, advertise |
//! | [`Import`] | each segment of a peer that this rank maps or holds a key of | when to map, drain, unmap, answer |
//! | [`Connection`] | each peer whose stream can break | when to open it anew, and when to give the peer up |
//! | [`Ledger`] | each stream of chunks this rank writes to one target | which chunks are done again |
//! | [`Receipt`] | each stream of chunks that reaches this rank | how far the delivery has come: the watermark |
//! | [`Reduction`] | each Combine whose inputs or outputs can vanish | what is summed into scratch, and committed from it |
//!
//! **Calling order.** Give a machine its inputs with `handle_*` (and `lease`, `give_back`), then drain its `poll_action` until it
//! is empty, before anything else is done. Call [`Region::handle_time`] when [`Region::deadline_ns`] has come. Everything else is a getter.
//!
//! **Who may touch what.** Each machine belongs to the one engine that drives it; all its fields are private to it. The tables in
//! [`table`] are what the first two run on. Between ranks the engine carries five messages, in order between any two ranks:
//! *Advertise(g, descriptor, watermark)*, *Announce(g, descriptor)*, *Withdraw(g)* and *End(g)* from owner to importer,
//! *Withdrawn(g, watermark)* back. Watermarks are the ledgers' and never pass through a region's machine: regions decide when,
//! ledgers decide what.
#![forbid(unsafe_code)]

mod connection;
mod import;
mod notice;
mod reduction;
mod region;
pub mod table;

pub use connection::{Connection, ConnectionAction, Hopeless};
pub use import::{Import, ImportAction};
pub use notice::{Notice, Replacement};
pub use reduction::{Place, Reduction};
pub use region::{Access, Limits, Region, RegionAction};
pub use windlass_transports::ledger::{Chunk, Generation, Ledger, NotUnderWay, Receipt};

use std::fmt;

/// A segment of one rank, by a number that the rank never gives twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RegionName {
    /// The rank that owns it.
    pub owner: u32,
    /// Its segment.
    pub segment: u32,
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of rank {}", self.segment, self.owner)
    }
}

/// The exporter's name for something it asked; it is answered exactly once.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub u64);

/// The engine's name for memory that can be mapped or registered, a dma-buf for example.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Descriptor(pub u64);

/// The right to touch one generation of a region for one chunk of one step.
///
/// It does not allow itself to be copied, so it is given back once. (`Clone` exists for model checkers, which clone whole worlds.)
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[must_use = "a lease that is not given back holds up the region's next move"]
pub struct Lease {
    region: RegionName,
    generation: Generation,
}

impl Lease {
    /// What every access under this lease carries.
    pub const fn generation(&self) -> Generation {
        self.generation
    }
}

/// The region cannot be touched now. The step waits; the machine says `Resume` or `Fail`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("segment {region} cannot be touched now")]
pub struct Paused {
    /// Which.
    pub region: RegionName,
}

/// Something spoke of a generation, a chunk or a ticket that is over or has never been: a broken peer or a late echo. Nothing changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Stale {
    /// A message about a region.
    #[error("rank {rank} spoke of generation {said:?} of segment {region}, which is at {now:?}")]
    Generation {
        /// Who spoke.
        rank: u32,
        /// Of what.
        region: RegionName,
        /// The generation it named.
        said: Generation,
        /// The generation that is valid.
        now: Generation,
    },
}

/// Why the operations that use a region fail.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// Its contents are lost, or it was freed while in use.
    #[error("generation {} of segment {region} was revoked and its contents are lost; run the operation on new memory", generation.0)]
    RegionRevoked {
        /// Which.
        region: RegionName,
        /// The last generation that held the contents.
        generation: Generation,
    },
    /// The exporter took it away and did not bring it back.
    #[error("generation {} of segment {region} was taken by its exporter, which did not return it within {after_ns} ns", generation.0)]
    NotReturned {
        /// Which.
        region: RegionName,
        /// The generation that was withdrawn.
        generation: Generation,
        /// How long this rank waited.
        after_ns: u64,
    },
    /// It could not be registered or mapped at its new place; the system's error.
    #[error("generation {} of segment {region} cannot be registered or mapped: the system's error {errno}", generation.0)]
    Unregistrable {
        /// Which.
        region: RegionName,
        /// The generation that could not begin.
        generation: Generation,
        /// The system's error.
        errno: i32,
    },
}

/// Why a ticket is refused: the memory must stay where it is.
#[derive(Clone, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// These ranks might still touch the old place, and cannot be forced not to.
    #[error("not withdrawn in time: waiting for rank(s) {waiting_on:?}")]
    TimedOut {
        /// The ranks.
        waiting_on: Vec<u32>,
    },
    /// The memory had been revoked already: there is nothing left to move.
    #[error("generation {} was revoked", generation.0)]
    Revoked {
        /// The generation that died.
        generation: Generation,
    },
    /// More tickets are open than a region holds.
    #[error("more than {limit} tickets are open")]
    TooMany {
        /// How many may be.
        limit: usize,
    },
}

/// A planted fault, by which the tests show that they would notice. Nothing else makes one.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Fault {
    /// An importer answers while its leases are out and its mapping stands.
    SkipFence,
    /// An owner begins its next life under the old generation's number.
    ReuseGeneration,
    /// A sender takes its own completion for the delivery.
    TrustCompletion,
    /// A reduction adds up in its output, although that can vanish.
    AccumulateInPlace,
    /// An owner acknowledges before its peers have answered.
    AcknowledgeEarly,
    /// A sender takes everything written before a break for delivered, whatever the receiver says.
    IgnoreWatermark,
}

impl Fault {
    /// What it plants in a ledger.
    const fn in_ledger(self) -> Option<windlass_transports::ledger::Fault> {
        match self {
            Self::TrustCompletion => Some(windlass_transports::ledger::Fault::TrustCompletion),
            Self::IgnoreWatermark => Some(windlass_transports::ledger::Fault::IgnoreWatermark),
            _ => None,
        }
    }
}
