//! The device as its users see it.

use std::fmt;
use std::time::Duration;

use super::memory::Memory;
use super::vacated::Breach;
use crate::accelerator::driven::{Driven, Drives, Next, Owner};
use crate::accelerator::{AcceleratorError, Contents, Counters, Options, Region};

/// An accelerator in user space; see the [module](super).
///
/// When it is dropped, its memory dies for all who imported it, and work that has not ended ends with
/// [`AcceleratorError::Gone`].
pub struct SimulatedAccelerator(Driven<Memory>);

impl fmt::Debug for SimulatedAccelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimulatedAccelerator({:?})", self.0)
    }
}

impl Drives for SimulatedAccelerator {
    type Owner = Memory;
    fn driven(&self) -> &Driven<Memory> {
        &self.0
    }
}

impl SimulatedAccelerator {
    /// A device with no memory allocated.
    ///
    /// # Panics
    /// When the system cannot start a thread.
    pub fn new(options: Options) -> Self {
        Self(Driven::new(Memory::new(options)))
    }

    /// Sets the clock, which never goes back, and does what is due: moves, fences, and one chunk of one piece of work.
    ///
    /// # Panics
    /// When the device has a thread of its own.
    pub fn step(&self, now: Duration) -> Next {
        self.0.step(now)
    }

    /// Moves a region as the device's mode does: asks, revokes with contents preserved, or just moves. Nothing, if a move has
    /// begun already.
    ///
    /// # Errors
    /// `UnknownRegion`, `Away`; `System` when there is nothing to move to.
    pub fn move_now(&self, region: Region) -> Result<(), AcceleratorError> {
        self.0.with(|memory| memory.move_now(region))
    }

    /// Takes a region's memory away without warning, in any mode. A replacement follows.
    ///
    /// # Errors
    /// `UnknownRegion`, `Away`; `System` when there is nothing to replace it by.
    pub fn revoke_now(&self, region: Region, contents: Contents) -> Result<(), AcceleratorError> {
        self.0.with(|memory| memory.revoke_now(region, contents))
    }

    /// Looks for broken rules: those found since the last call, at most 1024. O(bytes watched).
    pub fn audit(&self) -> Vec<Breach> {
        self.0.with(Memory::audit)
    }

    /// What it has done.
    pub fn counters(&self) -> Counters {
        self.0.look(Memory::counters)
    }
}
