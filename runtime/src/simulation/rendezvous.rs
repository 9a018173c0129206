//! What ranks of a simulated job tell each other beside the wires, as the launcher's rendezvous does: who has died, and which
//! communicator has failed; and, as over the lines between them, what becomes of device memory. Both reach a rank also where the wires are cut, and nothing
//! they say is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use crate::bootstrap::protocol::{ToRank, ToServer};
use crate::error::PeerCause;
use crate::job::Job;

/// Nanoseconds from a rank, or from a death, to the ranks that hear of it.
const NEWS: u64 = 100_000;
/// Nanoseconds from a rank to another over the line between them, where news of device memory goes: it overtakes what goes the other way.
const LINE: u64 = 15_000;

/// For whom, what, and what is attached to it.
pub(super) type News = (u32, ToRank, Option<OwnedFd>);

#[derive(Debug, Default)]
pub(super) struct Rendezvous {
    /// By the time and the order in which they are due: for whom, and what.
    news: BTreeMap<(u64, u64), News>,
    order: u64,
    /// For ranks that were not awake when it was due.
    held: Vec<News>,
    lost: BTreeSet<u32>,
}

impl Rendezvous {
    fn send(&mut self, time: u64, rank: u32, message: ToRank) {
        self.order += 1;
        self.news.insert((time, self.order), (rank, message, None));
    }

    /// A rank has died.
    pub(super) fn lost(&mut self, rank: u32, now: u64, ranks: u32) {
        if self.lost.insert(rank) {
            for other in (0..ranks).filter(|other| *other != rank) {
                self.send(now + NEWS, other, ToRank::Lost { rank, cause: PeerCause::Killed(9) });
            }
        }
    }

    pub(super) fn is_lost(&self, rank: u32) -> bool {
        self.lost.contains(&rank)
    }

    /// Takes what a rank tells. Stalled calls are not compared: ranks of a simulation share every link, whose frames tell a mismatch.
    pub(super) fn hear(&mut self, from: u32, job: &Job, now: u64) {
        for (message, descriptor) in job.take_untold() {
            let (communicator, members, failure) = match message {
                ToServer::Failed { communicator, members, failure } => (communicator, members, failure),
                ToServer::Region { to, message } => {
                    self.order += 1;
                    let news = (to, ToRank::Region { from, message }, descriptor);
                    self.news.insert((now + LINE, self.order), news);
                    continue;
                }
                _ => continue,
            };
            for member in members.into_iter().filter(|member| *member != from) {
                let failure = failure.clone();
                self.send(now + NEWS, member, ToRank::Failed { communicator, failure });
            }
        }
    }

    /// When the next news is due.
    pub(super) fn next(&self) -> Option<u64> {
        self.news.first_key_value().map(|((time, _), _)| *time)
    }

    /// The news that is due. Who sleeps hears it when awake.
    pub(super) fn due(&mut self, now: u64, awake: impl Fn(u32) -> bool) -> Vec<News> {
        let mut due = std::mem::take(&mut self.held);
        while let Some(entry) = self.news.first_entry().filter(|entry| entry.key().0 <= now) {
            due.push(entry.remove());
        }
        due.retain(|(rank, ..)| !self.lost.contains(rank));
        let (due, held) = due.into_iter().partition(|(rank, ..)| awake(*rank));
        self.held = held;
        due
    }
}
