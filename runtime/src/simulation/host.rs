//! Accelerators of simulated ranks, and ranks that share a host: all on one thread.
//!
//! On a shared host the order is drawn from the seed. The board is a real one, and the engine, the flights, the scheduler's machines and the accelerators are those of the product. What would be
//! threads is taken a step at a time: a rank drives its operations, a device does one chunk of its work, a rank hears its device's
//! notices, a message arrives.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use windlass_memory::accelerator::simulated::{Next, SimulatedAccelerator};
use windlass_transports::shm::Board;

use super::{Simulation, lock};
use crate::clock::Clock;
use crate::communicator::Communicator;
use crate::config::Config;
use crate::device::Device;
use crate::engine::Status;
use crate::error::{Error, JoinError};
use crate::job::board_shape;
use crate::registry::{self, Network, SimulationOptions};

/// Nanoseconds that a device takes for one chunk.
const DEVICE_STEP: u64 = 2_000;

#[derive(Debug, Default)]
pub(super) struct Host {
    /// The ranks reach each other's memory.
    pub(super) is_shared: bool,
    chance: u64,
    accelerators: Vec<Arc<SimulatedAccelerator>>,
    /// When each has something to do again.
    due: Vec<Option<u64>>,
}

impl Host {
    /// The ranks whose devices have something to do by this time.
    pub(super) fn due_by(&self, now: u64) -> BTreeSet<u32> {
        let due = (0..).zip(&self.due).filter(|(_, due)| due.is_some_and(|due| due <= now));
        due.map(|(rank, _)| rank).collect()
    }

    /// A number below `limit`, drawn from the seed (xorshift64*).
    fn draw(&mut self, limit: usize) -> usize {
        self.chance ^= self.chance >> 12;
        self.chance ^= self.chance << 25;
        self.chance ^= self.chance >> 27;
        ((self.chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % limit
    }
}

impl Simulation {
    /// A job of `ranks` ranks on one host, which reach each other's memory. They have no messages between two ranks, only collectives.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn on_one_host(ranks: u32, seed: u64, config: &Config) -> Result<Self, JoinError> {
        let network = Network::new(ranks as usize, seed, SimulationOptions::default());
        let clock = Clock::simulated(&network);
        let segment = Board::create(board_shape(config, ranks))?;
        let communicators: Result<_, JoinError> = (0..ranks)
            .map(|rank| {
                let board = Arc::new(Board::open(segment.descriptor())?);
                let carriers = registry::simulated_host(clock.clone());
                Communicator::simulated(rank, ranks, config.clone(), Some(board), carriers)
            })
            .collect();
        let chance = seed.wrapping_mul(2).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let host = Host { is_shared: true, chance, ..Host::default() };
        Ok(Self::of(network, communicators?, host))
    }

    /// Gives every rank its accelerator, which this simulation steps from now on.
    ///
    /// # Errors
    /// As [`Communicator::attach`].
    ///
    /// # Panics
    /// When there are more or fewer accelerators than ranks.
    pub fn attach(&self, accelerators: Vec<Arc<SimulatedAccelerator>>) -> Result<Vec<Device>, Error> {
        assert_eq!(accelerators.len(), self.communicators.len(), "each rank has an accelerator");
        let devices = self.communicators.iter().zip(&accelerators).map(|(communicator, accelerator)| {
            let device = Device::attach(&communicator.group().job, accelerator.clone());
            communicator.group().use_devices();
            device
        });
        let devices = devices.collect();
        let mut host = lock(&self.host);
        host.due = vec![None; accelerators.len()];
        host.accelerators = accelerators;
        devices
    }

    /// When a device wants to be looked at.
    pub(super) fn next_of_devices(&self) -> u64 {
        let host = lock(&self.host);
        let awake = (0..).zip(&host.due).filter(|(rank, _)| self.network.is_awake(*rank));
        awake.filter_map(|(_, due)| *due).min().unwrap_or(u64::MAX)
    }

    /// Takes ranks of a shared host, and their devices, as far as they go at this time.
    pub(super) fn drive_host(&self) {
        let ranks = 0..self.communicators.len();
        // Whoever comes next is drawn; it is over when nobody has moved for long enough that each has had its turns.
        let (mut quiet, patience) = (0, 8 * ranks.len() + 8);
        while quiet < patience {
            quiet = if self.take_turn() { 0 } else { quiet + 1 };
        }
        // None may have been missed: every device once more, and every rank after all of them.
        let stepped = ranks
            .clone()
            .fold(false, |moved, rank| self.step_device(rank).is_some_and(|next| next.at_once) | moved);
        if ranks.fold(stepped, |moved, rank| self.drive_rank(rank) | moved) {
            self.drive_host();
        }
    }

    fn take_turn(&self) -> bool {
        let (rank, drives) = {
            let mut host = lock(&self.host);
            (host.draw(self.communicators.len()), host.draw(2) == 0)
        };
        if drives { self.drive_rank(rank) } else { self.step_device(rank).is_some_and(|next| next.at_once) }
    }

    fn drive_rank(&self, rank: usize) -> bool {
        if !self.network.is_awake(rank as u32) {
            return false;
        }
        let group = self.communicators[rank].group();
        let moved = group.try_drive() == Status::Moved;
        lock(&self.rendezvous).hear(rank as u32, &group.job, self.network.now());
        moved
    }

    /// A device does a chunk of work, and its rank hears of it.
    pub(super) fn step_device(&self, rank: usize) -> Option<Next> {
        let accelerator = lock(&self.host).accelerators.get(rank).cloned()?;
        if !self.network.is_awake(rank as u32) {
            return None;
        }
        let now = self.network.now();
        let next = accelerator.step(Duration::from_nanos(now));
        let due = next.due.map(|due| (due.as_nanos() as u64).max(now + 1));
        let shared = {
            let mut host = lock(&self.host);
            host.due[rank] = due;
            host.is_shared
        };
        if next.at_once && shared {
            // Work takes time; without it a move could never fall into the middle of an operation.
            self.network.step_until(now + DEVICE_STEP);
        }
        let job = &self.communicators[rank].group().job;
        if let Some(attached) = job.attached.get() {
            attached.turn(job);
        }
        lock(&self.rendezvous).hear(rank as u32, job, self.network.now());
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use windlass_memory::accelerator::simulated::{Drive, Options};
    use windlass_memory::accelerator::{Accelerator, Condition};

    use super::*;
    use crate::ReduceOp;
    use crate::bootstrap::protocol::{ToRank, ToServer};

    /// The threads that look after moves may wait for a core meanwhile: whoever drives the operation hears the accelerator, gives back what the
    /// engine has ended, and answers.
    #[test]
    fn a_move_is_answered_by_whoever_drives_the_operations() {
        let mut config = Config::default();
        config.model.slot_bytes = 0;
        let simulation = Simulation::on_one_host(2, 7, &config).unwrap();
        let accelerator = |rank| {
            // Small chunks: the operation lasts for longer than the question.
            let (drive, chunk_bytes) = (Drive::Stepped, 16 << 10);
            let options = Options { drive, chunk_bytes, device: rank, ..Options::default() };
            Arc::new(SimulatedAccelerator::new(options))
        };
        let accelerators = vec![accelerator(1), accelerator(2)];
        let devices = simulation.attach(accelerators.clone()).unwrap();
        let buffers: Vec<_> = devices.iter().map(|device| device.alloc::<f32>(1 << 18).unwrap()).collect();
        let region = buffers[0].region();
        let groups: Vec<_> = simulation.communicators().iter().map(Communicator::group).collect();
        // As the lines do.
        let relay = || {
            for (from, group) in (0..).zip(&groups) {
                for (message, descriptor) in group.job.take_untold() {
                    let ToServer::Region { to, message } = message else { continue };
                    groups[to as usize].job.hear(ToRank::Region { from, message }, descriptor);
                }
            }
        };
        // Both hear of each other's memory, as before an operation that uses it.
        for group in &groups {
            group.job.attached.get().unwrap().turn(&group.job);
        }
        relay();
        let both = simulation.communicators().iter().zip(buffers);
        let operations: Vec<_> = both.map(|(comm, memory)| comm.all_reduce(memory, ReduceOp::Sum)).collect();
        let mut now = Duration::ZERO;
        let mut drive = || {
            for group in &groups {
                group.try_drive();
            }
            relay();
            now += Duration::from_micros(1);
            for accelerator in &accelerators {
                accelerator.step(now);
            }
        };
        for _ in 0..2 {
            drive();
        }
        assert!(operations.iter().all(|operation| !operation.is_done()));
        accelerators[0].move_now(region).unwrap();
        let condition = || accelerators[0].status(region).unwrap().condition;
        let moved = (0..200).any(|_| {
            drive();
            accelerators[0].counters().moves > 0
        });
        assert!(moved, "nobody has answered: {:?}", condition());
        assert_eq!(condition(), Condition::Active);
        assert!(operations.iter().all(|operation| !operation.is_done()), "it was over before");
        for _ in 0..2000 {
            drive();
        }
        assert!(operations.iter().all(|operation| operation.is_done()), "the work does not go on");
    }

    /// What another thread has taken on is no standstill for whoever waits for the operation.
    #[test]
    fn a_flight_that_another_thread_takes_on_is_progress() {
        let mut config = Config::default();
        config.model.slot_bytes = 0;
        let simulation = Simulation::on_one_host(2, 7, &config).unwrap();
        let options = |device| Options { drive: Drive::Stepped, device, ..Options::default() };
        let accelerators: Vec<_> =
            [1, 2].map(|device| Arc::new(SimulatedAccelerator::new(options(device)))).into();
        let devices = simulation.attach(accelerators.clone()).unwrap();
        let buffers: Vec<_> = devices.iter().map(|device| device.alloc::<f32>(1 << 20).unwrap()).collect();
        simulation.run_until(Duration::from_millis(1));
        let both = simulation.communicators().iter().zip(buffers);
        let operations: Vec<_> = both.map(|(comm, memory)| comm.all_reduce(memory, ReduceOp::Sum)).collect();
        let groups: Vec<_> = simulation.communicators().iter().map(Communicator::group).collect();
        for _ in 0..3 {
            groups.iter().for_each(|group| while group.try_drive() == Status::Moved {});
        }
        assert_ne!(groups[0].try_drive(), Status::Moved, "its engine has not begun");
        while accelerators[0].step(Duration::from_millis(2)).at_once {}
        groups[0].try_fly();
        assert_eq!(groups[0].try_drive(), Status::Moved);
        assert_ne!(groups[0].try_drive(), Status::Moved, "it has moved once");
        assert!(!operations[0].is_done());
    }
}
