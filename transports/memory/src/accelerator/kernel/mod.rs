//! Accelerators whose memory the kernel exports as dma-bufs: what RDMA NICs import is what peers' engines map.
//!
//! | name | memory | how it moves |
//! |---|---|---|
//! | `testbed` | `/dev/windlass_accelerator`, of the virtual machine in `deploy/testbed` | in every way there is, and it counts who writes too late |
//! | `dma-heap` | `/dev/dma_heap/system`: the kernel's own, of pages of RAM | never |
//! | `udmabuf` | `/dev/udmabuf`: pages of a memfd | never |
//! | `habanalabs` | a Gaudi's DRAM, by `/dev/accel/accel*` | never; the processor does not reach it |
//!
//! Any of them [adopts](super::Accelerator::adopt) a dma-buf of somebody else's.
//!
//! Where the processor may map the memory, an engine in this process works on it: it stands for the device's own, as the simulated one does.
//! Each region begins with a header in which engines find out that it has gone (see [`life`](super::life)); what NICs register begins behind it. An engine brackets its looks by
//! `DMA_BUF_IOCTL_SYNC`, and outlives memory that the kernel takes away under it.
//!
//! # How the testbed's memory moves
//!
//! | mode | a move | who is told |
//! |---|---|---|
//! | `Transparent` | `MOVE`: new pages, the same dma-buf and generation. The processor's mappings and dynamic NICs fault; a NIC that pins makes it fail, and it is given up | nobody |
//! | `Pinned` | asked; acknowledged only when no engine and no NIC holds the memory; then `MOVE` | `MoveAsked`, `Moved` |
//! | `Cooperative` | asked, acknowledged, then `MOVE` with `FORCE`: a registration that is still there is dead by the rules, and whoever uses it is counted | the same |
//! | `Revocable` | not asked: the generation dies, then `MOVE` with `FORCE` | `Revoked`, `Replaced` |
//!
//! A revoke, in any mode, ends the dma-buf (`REVOKE`) and continues in a new one, to which the bytes are copied first if they are to be preserved. So does a
//! move that finds an engine at work where there should be none: its late stores must not reach the memory that goes on.
//! Somebody else's `REVOKE` is noticed by a look every 50 ms, and means that the contents are lost.
//!
//! `MOVE` does not disturb the header's words: the kernel takes the processor's mappings away first, copies, and lets faults wait until then, so that each store is in the
//! old pages before they are copied, or in the new ones. That is why a forced move must find no engine at work, and why no engine can store too late: only a NIC can.

mod buffers;
mod driver;
mod habanalabs;
mod heaps;
pub mod testbed;

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::driven::{Driven, Drives, Next};
use super::{AcceleratorError, Contents, Counters, Movement, OpenError, Options, Region};
use buffers::Buffers;

pub use driver::{Driver, Mover};

/// A driver that exports memory.
trait Exporter: fmt::Debug + Send + Sync {
    /// New memory of whole pages, as a dma-buf.
    fn allocate(&self, bytes: u64) -> Result<OwnedFd, AcceleratorError>;

    /// Whether the processor may map it.
    fn is_mappable(&self) -> bool {
        true
    }

    /// A dma-buf of its own has been closed here.
    fn closed(&self, file: (u64, u64)) {
        let _ = file;
    }

    /// What can be asked of memory that moves.
    fn mover(&self) -> Option<&dyn Mover> {
        None
    }
}

/// The names of this module's accelerators.
pub const NAMES: [&str; 4] = ["testbed", "dma-heap", "udmabuf", "habanalabs"];

/// An accelerator on memory of the kernel's; see the [module](self).
pub struct KernelAccelerator {
    name: &'static str,
    driven: Driven<Buffers>,
}

impl fmt::Debug for KernelAccelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KernelAccelerator({}, {:?})", self.name, self.driven)
    }
}

impl Drives for KernelAccelerator {
    type Owner = Buffers;
    fn driven(&self) -> &Driven<Buffers> {
        &self.driven
    }
}

impl KernelAccelerator {
    /// Opens the one of a name. One whose memory never moves is [`Movement::Pinned`], whatever the options say.
    ///
    /// # Errors
    /// [`OpenError::Unknown`]; `NoDevice` when its driver is not there; `NeverMoves` when the options want moves of memory that stays.
    ///
    /// # Panics
    /// When the system cannot start a thread.
    pub fn open(name: &str, options: Options) -> Result<Self, OpenError> {
        let Driver { name, exporter } = Driver::open(name)?;
        let mut options = options;
        if exporter.mover().is_none() {
            if options.moves_per_second > 0.0 || options.revokes_per_second > 0.0 {
                return Err(OpenError::NeverMoves { accelerator: name });
            }
            options.movement = Movement::Pinned;
        }
        Ok(Self { name, driven: Driven::new(Buffers::new(Driver { name, exporter }, options)) })
    }

    /// See [`SimulatedAccelerator::step`](super::simulated::SimulatedAccelerator::step).
    ///
    /// # Panics
    /// When the device has a thread of its own.
    pub fn step(&self, now: Duration) -> Next {
        self.driven.step(now)
    }

    /// Moves a region as the mode has it. Nothing, if a move has begun already.
    ///
    /// # Errors
    /// `UnknownRegion`, `Away`; [`AcceleratorError::NeverMoves`].
    pub fn move_now(&self, region: Region) -> Result<(), AcceleratorError> {
        use super::driven::Owner;
        self.driven.with(|buffers| buffers.move_now(region))
    }

    /// Takes a region's memory away without warning, in any mode. A replacement follows.
    ///
    /// # Errors
    /// As [`move_now`](Self::move_now).
    pub fn revoke_now(&self, region: Region, contents: Contents) -> Result<(), AcceleratorError> {
        use super::driven::Owner;
        self.driven.with(|buffers| buffers.revoke_now(region, contents))
    }

    /// How many importers, NICs mostly, hold a region's memory at present; none where its exporter does not say.
    ///
    /// # Errors
    /// `UnknownRegion`, `Away`; `System`.
    pub fn importers(&self, region: Region) -> Result<Option<u64>, AcceleratorError> {
        self.driven.look(|buffers| buffers.importers(region))
    }

    /// What it has done.
    pub fn counters(&self) -> Counters {
        use super::driven::Owner;
        self.driven.look(|buffers| buffers.common().counters)
    }
}
