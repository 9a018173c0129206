//! An accelerator in user space, for machines without one: for tests, for the simulator, and to develop on.
//!
//! Its memory is sealed memfds, which stand for dma-bufs: they are sent and mapped the same way, and any process's simulated
//! accelerator imports them. Nothing but the engine has an address of them, so whoever wants to cheat has to find
//! memory it was never shown. It is limited, fragments, and moves: on command, at random, or because there is no room. When
//! there is none, it first moves regions together; then it evicts some, which come back when others are freed (but not where moves
//! are transparent, and nobody could be told).
//!
//! # What happens to who breaks the rules
//!
//! | who | what happens |
//! |---|---|
//! | works on memory after its end | the work ends [`Stale`](super::AcceleratorError::Stale) and has stored nothing, or [`Early`](super::AcceleratorError::Early) |
//! | is at work while the move is acknowledged | the work ends stale, and [`audit`](SimulatedAccelerator::audit) says [`Breach::AtWork`] |
//! | stores to vacated memory past the life word ([`Options::guarded`] is off; a NIC; a mapping of its own) | the poison there is changed: [`Breach::StaleStore`], with region, generation and offset |
//! | stores to memory announced ahead | the same: [`Breach::EarlyStore`] |
//! | loads from either | gets poison, which is NaN in every float type: results come out wrong and are seen |
//! | acknowledges while pinned memory is imported | [`StillPinned`](super::AcceleratorError::StillPinned) |
//!
//! # A move
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use windlass_memory::accelerator::simulated::{Drive, Options, SimulatedAccelerator};
//! use windlass_memory::accelerator::{Accelerator, Notice, Notices, Operand, Place};
//!
//! let device = SimulatedAccelerator::new(Options { drive: Drive::Stepped, ..Options::default() });
//! let notices = Arc::new(Notices::new(16, || {}));
//! device.listen(Arc::clone(&notices));
//! let region = device.allocate(4096)?;
//! device.write(Operand { place: Place::Own(region, 0), offset: 0 }, b"gradients")?;
//!
//! device.move_now(region)?;
//! let Some(Notice::MoveAsked { ticket, .. }) = notices.pop() else { panic!("a cooperative device asks") };
//! // Here the scheduler waits for the fences of its work, and its peers withdraw.
//! device.acknowledge(ticket)?;
//! device.step(Duration::from_millis(1));
//! let copied = Duration::from_millis(1);
//! assert_eq!(notices.pop(), Some(Notice::Moved { region, generation: 1, copied }));
//!
//! let mut bytes = [0; 9];
//! device.read(Operand { place: Place::Own(region, 1), offset: 0 }, &mut bytes)?;
//! assert_eq!(&bytes, b"gradients");
//! # Ok::<(), windlass_memory::accelerator::AcceleratorError>(())
//! ```
//!
//! # Who does what
//!
//! | module | one idea |
//! |---|---|
//! | `extents` | the device's address space |
//! | `memory` | regions, and how they move |
//! | `errand` | regions made ready, copied, poisoned and looked at, a piece at a time |
//! | `vacated` | poison, and who stepped in it |
//! | `device` | what can be asked of it |
//!
//! What it shares with [accelerators of the kernel's](super::kernel) (the engine, the lock, the thread, and the argument why an engine finds out in time
//! that memory has gone, [`life`](super::life)) lies beside it. A transparent move holds the device's lock for its copy. It is a simulator, and its speed is no
//! measure of anything.

mod device;
mod errand;
mod extents;
mod memory;
mod vacated;

pub use super::driven::Next;
pub use super::options::{Counters, Drive, Options};
pub use device::SimulatedAccelerator;
pub use vacated::Breach;
