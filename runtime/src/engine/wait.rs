//! How to wait when nothing can advance: spin, yield, park.
//!
//! A rank with a core of its own spins briefly, since its peers answer in well under a microsecond. Where ranks share cores, spinning
//! keeps the peer from the core it needs, so a rank yields at once. Both park on the doorbell, or on the transport's
//! descriptor, when it takes longer: an idle wait costs no processor time.

use std::time::{Duration, Instant};

use crate::group::{Group, Overdue};
use crate::job::Job;

/// How long a waiter with a core of its own spins.
const SPIN_FOR: Duration = Duration::from_micros(100);
/// How long a waiter yields before it parks.
const YIELD_FOR: Duration = Duration::from_micros(200);
/// For a limit that no clock can tell the end of.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// One wait.
#[derive(Debug)]
pub(crate) struct Waiter {
    crowded: bool,
    since: Option<Instant>,
    overdue: Overdue,
    /// How long it may take in all, and when that is over. The clock is first asked when there is something to wait for.
    limit: Option<Duration>,
    until: Option<Instant>,
}

impl Waiter {
    pub(crate) fn new(job: &Job) -> Self {
        Self { crowded: job.is_crowded(), since: None, overdue: Overdue::default(), limit: None, until: None }
    }

    /// A wait that may be given up after `limit`.
    pub(crate) fn limited(job: &Job, limit: Duration) -> Self {
        Self { limit: Some(limit), ..Self::new(job) }
    }

    /// How often to look before pausing.
    pub(crate) const fn spins(&self, most: u32) -> u32 {
        if self.crowded { 2 } else { most }
    }

    /// Something moved: begin anew.
    #[inline]
    pub(crate) fn moved(&mut self, job: &Job) {
        if self.since.take().is_some() {
            self.overdue.reset(job);
        }
    }

    /// The wait is over.
    #[inline]
    pub(crate) fn over(&mut self, job: &Job) {
        self.moved(job);
    }

    /// Waits a little, the more the longer nothing has moved. An engine at work may need this core for its own thread: a waiter that
    /// spun for as long as an exchange of flags takes would only delay what it waits for. Whether there is time left to wait.
    pub(crate) fn pause(&mut self, group: &Group, engine_works: bool) -> bool {
        let now = Instant::now();
        let left = self.limit.map(|limit| {
            let until = *self.until.get_or_insert_with(|| now.checked_add(limit).unwrap_or(now + FOREVER));
            until.saturating_duration_since(now)
        });
        if left.is_some_and(|left| left.is_zero()) {
            return false;
        }
        let waited = now.duration_since(*self.since.get_or_insert(now));
        let spin = if self.crowded || engine_works { Duration::ZERO } else { SPIN_FOR };
        if waited < spin {
            std::hint::spin_loop();
            return true;
        }
        // Peers may sleep on what this rank has signalled.
        group.with_stream(|stream| stream.ring(group));
        if waited < spin + YIELD_FOR {
            std::thread::yield_now();
            return true;
        }
        let again = group.overdue(&mut self.overdue).min(group.overdue_transfers());
        if group.failure().is_none() {
            group.job.park(left.map_or(again, |left| left.min(again)), || group.stirs());
        }
        true
    }
}
