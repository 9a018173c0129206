//! A job whose ranks live on one thread and whose network is simulated.
//!
//! The communicators, the engine, the executions and the links are the real ones; only time and the wires are not. The same
//! seed gives the same run, to the byte.

use std::time::Duration;

use crate::communicator::Communicator;
use crate::config::Config;
use crate::engine::Status;
use crate::error::JoinError;
use crate::registry::{self, Network, SimulationOptions};

/// A simulated job. Start operations on its [`communicators`](Self::communicators), then let it [`settle`](Self::settle).
///
/// Blocking calls would wait for ever, as nobody moves the network meanwhile.
#[derive(Debug)]
pub struct Simulation {
    network: Network,
    communicators: Vec<Communicator>,
}

impl Simulation {
    /// A job of `ranks` ranks over a network that `seed` and `options` determine.
    ///
    /// # Errors
    /// When there are no descriptors or no memory for so many ranks.
    pub fn new(
        ranks: u32,
        seed: u64,
        options: SimulationOptions,
        config: &Config,
    ) -> Result<Self, JoinError> {
        let network = Network::new(ranks as usize, seed, options);
        let communicators: Result<_, _> = (0..ranks)
            .map(|rank| {
                Communicator::simulated(
                    rank,
                    ranks,
                    config.clone(),
                    registry::simulated(network.endpoint(rank)),
                )
            })
            .collect();
        Ok(Self { network, communicators: communicators? })
    }

    /// The ranks' communicators, in rank order.
    pub fn communicators(&self) -> &[Communicator] {
        &self.communicators
    }

    /// Runs until nothing moves any more, and returns the time that has passed in the simulation since it began. Operations that have not
    /// ended then wait for a call that no rank has made.
    pub fn settle(&self) -> Duration {
        loop {
            let mut moved = false;
            for communicator in &self.communicators {
                let group = communicator.group();
                moved |= group.try_drive() == Status::Moved;
                moved |= group.drive_transfers();
            }
            if !moved && !self.network.step() {
                return Duration::from_nanos(self.network.now());
            }
        }
    }

    /// A number that two runs share only when everything on the network happened alike.
    pub fn trace(&self) -> u64 {
        self.network.trace()
    }
}
