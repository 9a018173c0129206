//! Accelerator memory: memory that the CPU never touches, that peers and NICs reach by descriptor, and that may move.
//!
//! An [`Accelerator`] allocates [`Region`]s, exports ranges of them as descriptors, imports its peers' descriptors, copies and reduces
//! over both by its own engine, and tells by [`Notice`]s how its memory moves. Memory is named by region, generation and
//! offset, never by address. A generation is one stay of a region in one place: a descriptor, an import and an operand are of one
//! generation, and worth nothing after it.
//!
//! # How memory moves
//!
//! | [`Movement`] | before the move | what becomes of imports | what the runtime does |
//! |---|---|---|---|
//! | `Transparent` | nothing is said | they follow; generation and descriptor stay | nothing: it sees latency |
//! | `Pinned` | [`Notice::MoveAsked`] | they hold the memory in place | stops, releases every import everywhere, then acknowledges |
//! | `Revocable` | nothing is said; [`Notice::Revoked`] comes after it | they are dead at once; work ends [`Stale`](AcceleratorError::Stale) | waits for [`Notice::Replaced`], imports anew, does the work again |
//! | `Cooperative` | [`Notice::MoveAsked`], perhaps [`Notice::Announced`] | dead from the acknowledgement on | drains the work, acknowledges, imports the new generation |
//!
//! A revoke may strike in any mode (a driver reset, a device unplugged): a mode says what ordinary moves look like.
//!
//! ```text
//!             move asked             acknowledged              arrived: Moved
//!  Active(g) ───────────▶ MoveAsked ──────────────▶ Away ─────────────────────▶ Active(g+n)
//!     ▲                      │                       ▲  └── Replaced{contents} ──▶
//!     └──────────────────────┘                       │
//!       refused, or too late: Abandoned              └── Revoked, from Active and MoveAsked
//! ```
//!
//! Generations only grow, not always by one: an announced generation whose move is abandoned is never used.
//!
//! # Accelerators
//!
//! [`open`] opens one by its name. [`simulated`] is the one that every machine has; those of [`kernel`] have memory that the kernel exports as dma-bufs.

#[cfg(not(loom))]
mod dma_buf;
// Device memory is mapped memory, and loom's atomics do not lie in mapped memory.
#[cfg(not(loom))]
mod driven;
mod error;
mod export;
mod fence;
#[cfg(not(loom))]
pub mod kernel;
pub mod life;
mod notice;
mod options;
#[cfg(not(loom))]
mod registry;
#[cfg(not(loom))]
pub mod simulated;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use windlass_kernels::Combine;

#[cfg(not(loom))]
pub use dma_buf::is as is_dma_buf;
pub use error::{AcceleratorError, BadDescriptor};
pub use export::{DeviceRange, Export, Exported, Import, Region};
pub use fence::{Fence, Outcome};
pub use notice::{Contents, Notice, Notices, Ticket};
pub use options::{BadOption, Counters, Drive, Options};
#[cfg(not(loom))]
pub use registry::{NAMES, OpenError, open};

/// How an accelerator's memory moves: who copes with it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Movement {
    /// The importers' hardware: it faults, and maps the memory anew.
    Transparent,
    /// Nobody, while it is imported: the owner asks first, and every import must end before the acknowledgement.
    Pinned,
    /// The runtime, afterwards: imports die without warning.
    Revocable,
    /// The runtime, beforehand: the owner asks, the runtime quiesces.
    Cooperative,
}

impl Movement {
    /// Whether nothing moves before the runtime has agreed.
    pub const fn asks(self) -> bool {
        matches!(self, Self::Pinned | Self::Cooperative)
    }
}

/// Where a region is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Condition {
    /// At its generation, for use.
    Active,
    /// For use still, but a move waits for an answer.
    MoveAsked {
        /// What to answer with.
        ticket: Ticket,
        /// When the move is given up, on the accelerator's clock.
        deadline: Duration,
    },
    /// On its way, without memory.
    Away,
}

/// What is known of a region. A reader who lost notices finds here all they said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status {
    /// Its length.
    pub bytes: u64,
    /// The generation it is at, or was at last.
    pub generation: u32,
    /// The generation announced ahead, if one is.
    pub announced: Option<u32>,
    /// Whether this generation began with the bytes of the one before. Of the first generation: `Preserved`.
    pub contents: Contents,
    /// Whether it can be used.
    pub condition: Condition,
}

/// Where an operand lies.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Place {
    /// This accelerator's own region, at a generation.
    Own(Region, u32),
    /// A descriptor that it imported; offsets count from the exported range's begin.
    Imported(Import),
}

/// Where an operand begins.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Operand {
    /// In which memory.
    pub place: Place,
    /// At which of its bytes.
    pub offset: u64,
}

/// Work for an engine: `count` elements of each input, folded in input order, stored to each output.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The copy or reduction, with its type; its crate says what is calculated.
    pub combine: Combine,
    /// What an average divides by, if more than 1.
    pub divisor: u64,
    /// Elements, not bytes.
    pub count: u64,
    /// One for a copy, at least one for a reduction.
    pub inputs: &'a [Operand],
    /// Each equals an input exactly or overlaps none; no two overlap.
    pub outputs: &'a [Operand],
    /// The work starts when this is done; if it ended with an error, the work ends with the same.
    pub after: Option<&'a Fence>,
}

/// A device whose memory is exported as descriptors.
///
/// Every method may be called from any thread; none waits for work, for a peer or for an answer. What it costs is said where it is
/// more than a look-up.
pub trait Accelerator: fmt::Debug + Send + Sync {
    /// How its memory moves.
    fn movement(&self) -> Movement;

    /// Its clock, which deadlines are on.
    fn now(&self) -> Duration;

    /// Where notices go from now on; there is one reader. Moves that ask find no answer, and do not happen, while there is none.
    fn listen(&self, notices: Arc<Notices>);

    /// New memory, of unspecified contents; generation 0.
    ///
    /// # Errors
    /// [`AcceleratorError::OutOfMemory`]; `System`.
    fn allocate(&self, bytes: u64) -> Result<Region, AcceleratorError>;

    /// Takes memory of another exporter into use: a range of its dma-buf, which stays where it is, or moves transparently, for as long as it is used. Generation 0.
    /// The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// `BadDescriptor`; [`AcceleratorError::AdoptsNothing`], unless an accelerator says otherwise; `System`.
    fn adopt(&self, descriptor: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<Region, AcceleratorError> {
        let _ = (descriptor, offset, bytes);
        Err(AcceleratorError::AdoptsNothing)
    }

    /// Gives memory back, in whatever condition it is. Work on it that has not ended ends stale; imports of it are dead.
    ///
    /// # Errors
    /// [`AcceleratorError::UnknownRegion`], also the second time.
    fn free(&self, region: Region) -> Result<(), AcceleratorError>;

    /// What is known of a region.
    ///
    /// # Errors
    /// [`AcceleratorError::UnknownRegion`].
    fn status(&self, region: Region) -> Result<Status, AcceleratorError>;

    /// A descriptor of a range, for peers and NICs. The generation is the region's own, or one announced ahead.
    ///
    /// # Errors
    /// `UnknownRegion`, `OutOfRange`; [`AcceleratorError::Stale`] for another generation; `Away`; `System` when descriptors run out.
    fn export(&self, range: DeviceRange) -> Result<Export, AcceleratorError>;

    /// Makes a peer's exported range, or an own one, reachable for this engine. The descriptor may be closed afterwards. To
    /// import what was announced ahead is the use of announcing it.
    ///
    /// # Errors
    /// `BadDescriptor`; [`AcceleratorError::Stale`] when the memory has gone already; `System`.
    fn import(&self, descriptor: BorrowedFd<'_>, exported: &Exported) -> Result<Import, AcceleratorError>;

    /// Ends an import. Work that was submitted with it still ends as it would, and holds the memory's pin until then.
    ///
    /// # Errors
    /// [`AcceleratorError::UnknownImport`], also the second time.
    fn release(&self, import: Import) -> Result<(), AcceleratorError>;

    /// Lets a move go on: from this call on, nobody touches the generation that the ticket was for. Whoever does breaks the rule.
    ///
    /// # Errors
    /// [`AcceleratorError::UnknownTicket`] when the move no longer waits: the second time, or past the deadline, and then the
    /// generation went on. `StillPinned`: the move goes on waiting. `System`: the move is abandoned.
    fn acknowledge(&self, ticket: Ticket) -> Result<(), AcceleratorError>;

    /// Keeps the region where it is; [`Notice::Abandoned`] follows.
    ///
    /// # Errors
    /// [`AcceleratorError::UnknownTicket`].
    fn refuse(&self, ticket: Ticket) -> Result<(), AcceleratorError>;

    /// Starts work; the fence ends with it. Work is ordered by start fences alone.
    ///
    /// The fence ends well only if every store is surely in what a later move or preserved revoke carries on. It ends with
    /// [`AcceleratorError::Stale`] when the memory of any operand went away before that was sure, and with `Early`
    /// when an operand has not arrived.
    ///
    /// # Errors
    /// What is wrong with the call itself: `UnknownRegion`, `UnknownImport`, `OutOfRange`, `Overlap`, `InputCount`. O(k·m)
    /// for k inputs and m outputs.
    fn submit(&self, work: &Work<'_>) -> Result<Fence, AcceleratorError>;

    /// Copies device memory to the host: for transports that cannot reach it. O(bytes), on the calling thread, ordered by nothing:
    /// wait for the fences of the work before.
    ///
    /// # Errors
    /// As [`Accelerator::submit`] and its fence; what was copied is then unspecified. `Away`.
    fn read(&self, from: Operand, to: &mut [u8]) -> Result<(), AcceleratorError>;

    /// Copies host memory to the device, as [`Accelerator::read`] does the other way.
    ///
    /// # Errors
    /// As [`Accelerator::read`]; the device's bytes are then unspecified.
    fn write(&self, to: Operand, from: &[u8]) -> Result<(), AcceleratorError>;

    /// Stores to memory that had been given up, by whomever, as the device counts them: evidence against the runtime, its peers and its NICs. The simulated
    /// one counts places that it finds; the testbed's counts bytes, of every process since this one was opened. None where nobody counts.
    /// O(bytes given up lately).
    fn stale_stores(&self) -> Option<u64> {
        None
    }

    /// The kernel's driver that its memory comes from, if there is one: for whoever tries how a NIC takes moves of such memory, because nobody can be asked.
    #[cfg(not(loom))]
    fn driver(&self) -> Option<kernel::Driver> {
        None
    }
}
