//! Accelerators by their names.

use std::fs::File;
use std::sync::Arc;

use super::kernel::{self, KernelAccelerator};
use super::simulated::SimulatedAccelerator;
use super::{Accelerator, BadOption, Options};

/// What [`open`] opens, in the order in which one would try them.
pub const NAMES: [&str; 5] =
    ["simulated", kernel::NAMES[0], kernel::NAMES[1], kernel::NAMES[2], kernel::NAMES[3]];

/// Why an accelerator was not opened.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is none of that name.
    #[error("no accelerator is called {name:?}: it is one of {}", NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Its driver is not there, or does not let this user in.
    #[error("{accelerator}: {node}: {} ({fix})", std::io::Error::from_raw_os_error(*errno))]
    NoDevice {
        /// Which accelerator.
        accelerator: &'static str,
        /// Its device node.
        node: String,
        /// Why it was not opened.
        errno: i32,
        /// What to do.
        fix: &'static str,
    },
    /// Moves were asked for, of memory that stays where it is.
    #[error(
        "memory of {accelerator} never moves: ask for 0 moves and 0 revokes a second, or take testbed or simulated"
    )]
    NeverMoves {
        /// Which accelerator.
        accelerator: &'static str,
    },
    /// Its options, as text, are wrong.
    #[error(transparent)]
    Option(#[from] BadOption),
}

/// Opens an accelerator by its name: `simulated`, or one of those of [`kernel`](super::kernel). Whoever wants more of it than the trait
/// offers (steps, moves on command) makes its type by itself.
///
/// # Errors
/// See [`OpenError`].
///
/// # Panics
/// When the system cannot start a thread.
pub fn open(name: &str, options: Options) -> Result<Arc<dyn Accelerator>, OpenError> {
    match name {
        "simulated" => Ok(Arc::new(SimulatedAccelerator::new(options))),
        _ => Ok(Arc::new(KernelAccelerator::open(name, options)?)),
    }
}

/// Opens a device node.
pub(super) fn node(accelerator: &'static str, node: &str, fix: &'static str) -> Result<File, OpenError> {
    File::options().read(true).write(true).open(node).map_err(|error| OpenError::NoDevice {
        accelerator,
        node: node.to_owned(),
        errno: error.raw_os_error().unwrap_or(libc::EIO),
        fix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_says_what_to_do() {
        let unknown = open("gpu", Options::default()).unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "no accelerator is called \"gpu\": it is one of simulated, testbed, dma-heap, udmabuf, habanalabs"
        );
        let missing = node("testbed", "/dev/nothing here", "buy one").unwrap_err();
        assert_eq!(
            missing.to_string(),
            "testbed: /dev/nothing here: No such file or directory (os error 2) (buy one)"
        );
        assert!(open("simulated", Options::default()).is_ok());
    }
}
