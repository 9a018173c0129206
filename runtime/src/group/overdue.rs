//! Operations that do not move: compared, reported, and given up in time.

use std::time::{Duration, Instant};

use crate::bootstrap::protocol::ToServer;
use crate::engine::Status;
use crate::error::Error;
use crate::job::Job;

use super::{Group, lock};

/// After this long without progress, the ranks' calls are compared.
pub(crate) const STALL_AFTER: Duration = Duration::from_millis(200);

/// A sleeper looks around this often: for deaths, time limits and stalls.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long one operation may take from its call on, and when that is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) timeout: Duration,
    until: Instant,
}

impl Limit {
    /// From now on; `None` when it ends later than any clock can tell.
    pub(crate) fn new(timeout: Duration, now: Instant) -> Option<Self> {
        now.checked_add(timeout).map(|until| Self { timeout, until })
    }

    pub(crate) const fn until(&self) -> Instant {
        self.until
    }

    /// What is left; nothing when it is over.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }

    /// How long ago the call was.
    fn since(&self, now: Instant) -> Duration {
        self.timeout + now.saturating_duration_since(self.until)
    }
}

/// What a waiter has already done about an operation that does not move.
#[derive(Debug, Default)]
pub(crate) struct Overdue {
    sequence: Option<u64>,
    since: Option<Instant>,
    compared: bool,
    reported: bool,
}

impl Overdue {
    /// It moves again: what was told is taken back.
    pub(crate) fn reset(&mut self, job: &Job) {
        if std::mem::take(self).compared {
            job.tell(&ToServer::Moving);
        }
    }
}

impl Group {
    /// Rank `by` has given up in time. If this one has waited for somebody else as long, or nearly, that is the better name: `by` may have
    /// waited for this one, and been the first to look at its clock.
    pub(super) fn as_late(&self, by: u32) -> Option<Error> {
        let stream = lock(&self.stream);
        let active = stream.active()?;
        let after = self.job.now().duration_since(active.blocked?);
        let timeout = active.limit.map_or(self.job.config.timeout, |limit| limit.timeout);
        let waiting_on: Vec<u32> = stream.waiting_on(self).into_iter().filter(|rank| *rank != by).collect();
        if waiting_on.is_empty() || after < timeout * 3 / 4 {
            return None;
        }
        let (operation, sequence) = stream.doing();
        Some(Error::TimedOut { operation, sequence, communicator: self.id, waiting_on, after })
    }

    /// Called by who waits and sees nothing move: compares, reports and gives up in time. After how long at most this is to be called again.
    pub(crate) fn overdue(&self, waited: &mut Overdue) -> Duration {
        let Ok(mut stream) = self.stream.try_lock() else { return LOOK_AGAIN };
        if !stream.has_work() {
            waited.reset(&self.job);
            return LOOK_AGAIN;
        }
        let now = self.job.now();
        let (operation, sequence) = stream.doing();
        if waited.sequence != Some(sequence) {
            waited.reset(&self.job);
            *waited = Overdue { sequence: Some(sequence), since: Some(now), ..Overdue::default() };
        }
        let since =
            stream.active_mut().map_or(waited.since, |a| Some(*a.blocked.get_or_insert(now))).unwrap_or(now);
        let after = now.duration_since(since);
        let timeout = self.job.config.timeout;
        let limited = stream.active().is_some_and(|active| active.limit.is_some());
        let first = stream.first_limit();
        let again = first.map_or(LOOK_AGAIN, |(limit, ..)| limit.left(now).min(LOOK_AGAIN));
        if after < STALL_AFTER.min(timeout) && !again.is_zero() && !self.job.knows_dead() {
            // A wait like any other: nobody asks for whom, and nothing is allocated.
            return again;
        }
        let waiting_on = stream.waiting_on(self);
        if let Some((rank, cause)) = self.job.culprit(&waiting_on, &self.members) {
            // What the peer did before it died counts; only when that does not suffice, its death is an error.
            let moved = matches!(stream.advance(self), Ok(Status::Moved));
            if !moved {
                let error = stream.peer_failed(self, rank, cause);
                drop(stream);
                self.fail(error, true);
            }
            return again;
        }
        // An operation's own limit counts from its call, also while others are before it.
        let late = match first.filter(|_| again.is_zero()) {
            Some((limit, operation, sequence)) => Some((operation, sequence, limit.since(now))),
            None => (after >= timeout && !limited).then_some((operation, sequence, after)),
        };
        if let Some((operation, sequence, after)) = late {
            let error = Error::TimedOut { operation, sequence, communicator: self.id, waiting_on, after };
            drop(stream);
            self.fail(error, true);
            return LOOK_AGAIN;
        }
        if after >= STALL_AFTER && !waited.compared {
            waited.compared = true;
            let calls = stream.recent_calls();
            let doing =
                format!("{operation} #{sequence} on communicator {}, waiting for {waiting_on:?}", self.id);
            let message =
                ToServer::Stalled { communicator: self.id, calls, members: self.members.clone(), doing };
            self.job.tell(&message);
        }
        let report_after = self.job.config.report_after;
        if !report_after.is_zero() && after >= report_after && !waited.reported {
            waited.reported = true;
            crate::error::report(format_args!(
                "rank {} has waited {after:.1?} in {operation} #{sequence} of communicator {} for rank(s) {waiting_on:?}, {}",
                self.job.rank,
                self.id,
                stream.position()
            ));
        }
        again
    }
}
