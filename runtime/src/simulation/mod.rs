//! Jobs without machines.
//!
//! | module | one idea |
//! |---|---|
//! | here | a whole job on one thread: the real communicators, engine, executions and links; only time and the wires are not |
//! | [`rendezvous`] | what ranks tell each other beside the wires: who has died, which communicator has failed |
//! | [`host`] | a job whose ranks share a host and have accelerators: interleavings drawn from the seed |
//! | [`experiment`] | one collective on thousands of ranks without payload: what it costs, and whether it is right |
//! | [`world`] | the ranks of an experiment: their executions, ports and processors |
//! | [`agenda`] | what happens when |
//! | [`mailbox`] | where messages meet their receives |
//! | [`watched`] | weights in place of data, of some elements |
//! | [`bound`] | what no algorithm can beat |

mod agenda;
mod bound;
mod experiment;
mod host;
mod mailbox;
mod rendezvous;
mod watched;
mod world;

pub use bound::LowerBound;
pub use experiment::{Estimate, Experiment, ExperimentError};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use crate::clock::Clock;
use crate::communicator::Communicator;
use crate::config::Config;
use crate::engine::Status;
use crate::error::JoinError;
use crate::group::{Overdue, lock};
use crate::registry::{self, Fault, Network, SimulationOptions, Traffic};
use host::Host;
use rendezvous::Rendezvous;

/// How often a rank that waits looks at its deadlines.
const LOOK: u64 = 10_000_000;

/// A simulated job. Start operations on its [`communicators`](Self::communicators), then let it [`settle`](Self::settle), or
/// [`finish`](Self::finish) by a time. The same seed and the same calls give the same run, to the byte.
///
/// Blocking calls would wait for ever, as nobody moves the network meanwhile.
#[derive(Debug)]
pub struct Simulation {
    network: Network,
    communicators: Vec<Communicator>,
    rendezvous: Mutex<Rendezvous>,
    /// What each rank has told about the operation it waits for.
    waits: Mutex<Vec<Overdue>>,
    /// The ranks' accelerators, and whether they share a host.
    host: Mutex<Host>,
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
        let clock = Clock::simulated(&network);
        let communicators: Result<_, _> = (0..ranks)
            .map(|rank| {
                let carriers = registry::simulated(&network, rank, clock.clone());
                Communicator::simulated(rank, ranks, config.clone(), None, carriers)
            })
            .collect();
        Ok(Self::of(network, communicators?, Host::default()))
    }

    fn of(network: Network, communicators: Vec<Communicator>, host: Host) -> Self {
        let waits = communicators.iter().map(|_| Overdue::default()).collect();
        let (waits, host) = (Mutex::new(waits), Mutex::new(host));
        Self { network, communicators, rendezvous: Mutex::default(), waits, host }
    }

    /// The ranks' communicators, in rank order.
    pub fn communicators(&self) -> &[Communicator] {
        &self.communicators
    }

    /// Runs until nothing moves any more, and returns the time that has passed in the simulation since it began. Operations that have not
    /// ended then wait for a call that no rank has made. Nobody looks at deadlines.
    pub fn settle(&self) -> Duration {
        self.drive_all();
        loop {
            if self.tell_news() {
                continue;
            }
            let news = lock(&self.rendezvous).next();
            let stepped = match news {
                Some(time) => self.network.step_until(time) || self.network.now() >= time,
                None => self.network.step(),
            };
            if !stepped {
                return self.now();
            }
            self.drive(self.network.take_stirred());
        }
    }

    /// Runs until it is `time`; ranks that wait look at their deadlines meanwhile.
    pub fn run_until(&self, time: Duration) {
        self.run(time, false);
    }

    /// Runs until no living rank waits for anything, or it is `time`. Whether no rank waits.
    pub fn finish(&self, time: Duration) -> bool {
        self.run(time, true);
        !self.waits()
    }

    fn run(&self, end: Duration, stop_when_idle: bool) {
        let end = end.as_nanos() as u64;
        self.drive_all();
        let mut look = self.network.now() / LOOK * LOOK + LOOK;
        while self.network.now() < end && (!stop_when_idle || self.waits()) {
            if self.tell_news() {
                continue;
            }
            let until = lock(&self.rendezvous).next().unwrap_or(u64::MAX).min(look).min(end);
            let until = until.min(self.next_of_devices());
            self.network.step_until(until);
            let mut stirred = self.network.take_stirred();
            stirred.append(&mut lock(&self.host).due_by(self.network.now()));
            self.drive(stirred);
            if self.network.now() >= look {
                look += LOOK;
                self.look_at_deadlines();
            }
        }
    }

    /// Makes something go wrong, now. The rendezvous sees a death, as the launcher does.
    pub fn inject(&self, fault: Fault) {
        if let Fault::Lose(rank) = fault {
            lock(&self.rendezvous).lost(rank, self.network.now(), self.communicators.len() as u32);
        }
        self.network.inject(fault);
    }

    /// The time that has passed in the simulation.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.network.now())
    }

    /// What each rank has sent each other, by (sender, receiver).
    pub fn traffic(&self) -> BTreeMap<(u32, u32), Traffic> {
        self.network.traffic()
    }

    /// A number that two runs share only when everything on the network happened alike.
    pub fn trace(&self) -> u64 {
        self.network.trace()
    }

    fn drive_all(&self) {
        self.drive((0..self.communicators.len() as u32).collect());
    }

    /// Takes these ranks, and those that they stir, as far as they go.
    fn drive(&self, mut stirred: BTreeSet<u32>) {
        if lock(&self.host).is_shared {
            return self.drive_host();
        }
        while let Some(rank) = stirred.pop_first() {
            let group = self.communicators[rank as usize].group();
            // A rank that is not awake is stirred when it wakes.
            while self.network.is_awake(rank)
                && self.step_device(rank as usize).is_some_and(|next| next.at_once)
                    | (group.try_drive() == Status::Moved)
                    | group.drive_transfers()
                    | group.job.tend_simulated_streams()
            {}
            lock(&self.rendezvous).hear(rank, &group.job, self.network.now());
            stirred.append(&mut self.network.take_stirred());
        }
    }

    /// Ranks hear what the rendezvous has for them by now. Whether one did.
    fn tell_news(&self) -> bool {
        let news = lock(&self.rendezvous).due(self.network.now(), |rank| self.network.is_awake(rank));
        let told: BTreeSet<u32> = news.iter().map(|(rank, ..)| *rank).collect();
        for (rank, message, descriptor) in news {
            self.communicators[rank as usize].group().job.hear(message, descriptor);
        }
        let any = !told.is_empty();
        self.drive(told);
        any
    }

    /// What a thread that waits does now and then.
    fn look_at_deadlines(&self) {
        for (rank, waited) in lock(&self.waits).iter_mut().enumerate() {
            if self.network.is_awake(rank as u32) {
                let group = self.communicators[rank].group();
                group.overdue(waited);
                group.overdue_transfers();
            }
        }
        self.drive_all();
    }

    /// Whether a rank that lives has an operation under way. A stopped one has, too: it may be continued.
    fn waits(&self) -> bool {
        self.communicators.iter().enumerate().any(|(rank, communicator)| {
            let group = communicator.group();
            !lock(&self.rendezvous).is_lost(rank as u32) && group.failure().is_none() && group.has_pending()
        })
    }
}
