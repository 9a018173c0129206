//! libibverbs, typed and without policy.
//!
//! [`Verbs::load`] finds the library; a [`Device`] is an open one with its protection domain. What is made of a device keeps it open. Queue pairs are
//! reliable-connected. Every failure is a [`VerbError`], or says more where more is known ([`RegisterError`], [`PostError`]).
//!
//! All of it may be used from several threads, as the verbs may. Nothing here blocks but [`QueuePair::reset`], which waits for the NIC to let go of a
//! queue pair and says so after a bounded time.

mod completion;
mod device;
mod error;
mod event;
mod library;
mod port;
mod queue_pair;
mod region;
mod work;

pub use completion::{Completion, CompletionChannel, CompletionQueue, Failure, Kind, Status};
pub use device::Device;
pub use error::{PostError, RegisterError, VerbError};
pub use event::Event;
pub use library::{Absent, ForkSafety, Verbs};
pub use port::{Attachment, Gid, GidEntry, GidKind, LinkLayer, Mtu, Port, PortState};
pub use queue_pair::{Address, Capacities, QueuePair, State, Timing};
pub use region::{Access, DmaBufSupport, MemoryRegion};
pub use work::{Local, Place, Read, Sge, Write};
