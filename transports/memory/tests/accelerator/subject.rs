//! The accelerator under test.

use std::ops::Deref;
use std::time::Duration;

use windlass_memory::accelerator::kernel::KernelAccelerator;
use windlass_memory::accelerator::simulated::{Breach, SimulatedAccelerator};
use windlass_memory::accelerator::{Accelerator, AcceleratorError, Contents, Counters, Options, Region};

/// Names one of the kernel's.
const VARIABLE: &str = "WINDLASS_TEST_ACCELERATOR";

/// What tests ask of an accelerator besides its trait.
pub(crate) enum Subject {
    Simulated(SimulatedAccelerator),
    Kernel(KernelAccelerator),
}

/// Whether a test that is about the simulated one is to end here.
pub(crate) fn not_simulated() -> bool {
    let kernel = std::env::var(VARIABLE).is_ok_and(|name| name != "simulated");
    if kernel {
        println!("skipped: only the simulated accelerator has this");
    }
    kernel
}

impl Subject {
    pub(crate) fn new(options: Options) -> Self {
        match std::env::var(VARIABLE).ok().filter(|name| name != "simulated") {
            None => Self::Simulated(SimulatedAccelerator::new(options)),
            // Where it is missing, whoever asked for it shall know.
            Some(name) => Self::Kernel(KernelAccelerator::open(&name, options).unwrap()),
        }
    }

    pub(crate) fn step(&self, now: Duration) -> windlass_memory::accelerator::simulated::Next {
        match self {
            Self::Simulated(device) => device.step(now),
            Self::Kernel(device) => device.step(now),
        }
    }

    pub(crate) fn move_now(&self, region: Region) -> Result<(), AcceleratorError> {
        match self {
            Self::Simulated(device) => device.move_now(region),
            Self::Kernel(device) => device.move_now(region),
        }
    }

    pub(crate) fn revoke_now(&self, region: Region, contents: Contents) -> Result<(), AcceleratorError> {
        match self {
            Self::Simulated(device) => device.revoke_now(region, contents),
            Self::Kernel(device) => device.revoke_now(region, contents),
        }
    }

    /// Broken rules. One of the kernel's counts bytes, of which there must be none; where they were it does not say.
    pub(crate) fn audit(&self) -> Vec<Breach> {
        match self {
            Self::Simulated(device) => device.audit(),
            Self::Kernel(device) => {
                assert_eq!(device.stale_stores().unwrap_or(0), 0, "stored too late");
                Vec::new()
            }
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        match self {
            Self::Simulated(device) => device.counters(),
            Self::Kernel(device) => device.counters(),
        }
    }
}

impl Deref for Subject {
    type Target = dyn Accelerator;
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Simulated(device) => device,
            Self::Kernel(device) => device,
        }
    }
}
