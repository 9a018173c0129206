//! libwindlass: windlass for C, and for whatever calls C. `include/windlass.h` is made from this crate, and a test compares the two.
//!
//! | module | one idea |
//! |---|---|
//! | [`table`] | handles that tell when they are stale |
//! | [`error`] | codes, the last error's message, and what no panic crosses |
//! | [`communicator`] | joining a job, and its communicators |
//! | [`collectives`] | one row for each collective, from which its two functions are made |
//! | [`exchange`] | several messages as one call |
//! | [`list`] | many buffers as one vector |
//! | [`operator`] | operators that a program brings along |
//! | [`operation`] | what has been started and has not been waited for |
//! | [`memory`] | registered memory, and what C holds of an accelerator's |
//! | [`device`] | accelerators, and memory on them |
//! | [`version`] | which library this is |
//!
//! The functions deal with C's arguments and nothing else: each call becomes a [`windlass::RawRequest`], which the runtime checks and runs.
//!
//! # Safety
//! One contract holds for every function, so it stands here once. A pointer is null, which is refused where the argument is needed, or valid for what
//! its type says; the memory of a call is valid for the call's counts, and not touched otherwise, until the call has returned, or until the
//! operation that it started has ended. Handles and numbers may have any value.

#![expect(clippy::missing_safety_doc, reason = "one contract holds for every function, and stands above")]
#![expect(non_camel_case_types, reason = "these are the names that C sees")]

pub mod collectives;
pub mod communicator;
pub mod device;
pub mod error;
pub mod exchange;
pub mod list;
pub mod memory;
pub mod operation;
pub mod operator;
mod table;
pub mod version;

pub use collectives::*;
pub use communicator::*;
pub use device::*;
pub use error::*;
pub use exchange::*;
pub use list::*;
pub use memory::*;
pub use operation::*;
pub use operator::*;
pub use version::*;
