//! What time it is: the machine's, or a simulation's.

use std::time::{Duration, Instant};

use crate::registry::Network;

/// What deadlines are measured by.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The machine's clock.
    Machine,
    /// A simulated network's, counted from an instant that means nothing.
    Simulated(Network, Instant),
}

impl Clock {
    /// A simulation's clock.
    pub(crate) fn simulated(network: &Network) -> Self {
        Self::Simulated(network.clone(), Instant::now())
    }

    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::Machine => Instant::now(),
            Self::Simulated(network, begin) => *begin + Duration::from_nanos(network.now()),
        }
    }
}
