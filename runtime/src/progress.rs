//! The thread that looks after asynchronous operations while nobody waits for them.
//!
//! It sleeps while there are none, and is kicked by whoever starts one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::engine::Status;
use crate::group::{LOOK_AGAIN, Overdue, lock};
use crate::job::Job;

/// How long the thread stays within reach after the last asynchronous operation, looking around by itself.
const DOZE_FOR: Duration = Duration::from_millis(10);
/// How often it looks around then: what a small operation that nobody waits for is late at most.
const DOZE: Duration = Duration::from_micros(100);

/// How urgent an operation is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kick {
    /// The thread is to begin at once.
    Now,
    /// A thread that dozes finds it soon enough, and to wake it would cost more than the operation.
    Soon,
}

/// What the thread and those who kick it share.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) started: OnceLock<bool>,
    pub(crate) state: Mutex<ProgressState>,
    pub(crate) changed: Condvar,
    rest: AtomicU8,
    /// The process has one core: begun at once, an operation would take it from the caller.
    one_core: AtomicBool,
}

/// The thread works, and will look again before it rests.
const AWAKE: u8 = 0;
/// It looks around every [`DOZE`].
const DOZING: u8 = 1;
/// It sleeps until it is kicked.
const PARKED: u8 = 2;

#[derive(Debug, Default)]
pub(crate) struct ProgressState {
    pub(crate) closing: bool,
    pub(crate) kicked: bool,
}

impl Progress {
    /// The thread that is about to start will be found resting until it runs.
    pub(crate) fn prepare(&self) {
        let one = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
        self.one_core.store(one, Ordering::Relaxed);
        self.rest.store(PARKED, Ordering::Release);
    }

    /// Makes sure the thread looks at what was posted before.
    pub(crate) fn kick(&self, kick: Kick) {
        let rest = self.rest.load(Ordering::SeqCst);
        let now = kick == Kick::Now && !self.one_core.load(Ordering::Relaxed);
        if rest == PARKED || rest == DOZING && now {
            lock(&self.state).kicked = true;
            self.changed.notify_one();
        }
    }

    /// Rests until kicked or `time` is over. Whether the job is closing.
    fn rest(&self, time: Duration) -> bool {
        let state = lock(&self.state);
        let woken = self.changed.wait_timeout_while(state, time, |s| !s.kicked && !s.closing);
        let mut state = woken.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        state.kicked = false;
        state.closing
    }

    /// There is to be no thread: a simulation moves everything itself.
    pub(crate) fn forbid(&self) {
        let _ = self.started.set(false);
    }
}

/// The thread's life.
pub(crate) fn run(job: &Weak<Job>) {
    // By communicator, from round to round: when its wait began, and what has been told about it.
    let mut waits: BTreeMap<(u16, u32), Overdue> = BTreeMap::new();
    let mut idle_since: Option<Instant> = None;
    loop {
        let Some(job) = job.upgrade() else { return };
        let groups: Vec<_> = job.living_groups().into_iter().filter(|g| g.is_detached()).collect();
        let busy = groups.iter().any(|g| g.failure().is_none() && g.has_pending());
        if !busy {
            drop(groups);
            let wanted = if idle_since.get_or_insert_with(Instant::now).elapsed() < DOZE_FOR {
                DOZING
            } else {
                PARKED
            };
            // Whoever posts after this store kicks; what was posted before it is seen by one more look.
            if job.progress.rest.swap(wanted, Ordering::SeqCst) != wanted {
                continue;
            }
            let progress = Arc::clone(&job.progress);
            drop(job);
            // Without a reference to the job, which may end meanwhile.
            if progress.rest(if wanted == DOZING { DOZE } else { Duration::from_secs(1) }) {
                return;
            }
            continue;
        }
        idle_since = None;
        job.progress.rest.store(AWAKE, Ordering::SeqCst);
        let crowded = job.is_crowded();
        let begin = Instant::now();
        waits.retain(|place, _| groups.iter().any(|g| (g.slot(), g.id) == *place));
        let mut last = begin;
        loop {
            let mut moved = false;
            let mut pending = false;
            for group in &groups {
                moved |= group.try_drive() == Status::Moved;
                moved |= group.drive_transfers();
                pending |= group.has_pending();
            }
            let now = Instant::now();
            if moved {
                last = now;
            }
            if !pending || now.duration_since(begin) > Duration::from_millis(20) {
                break;
            }
            if now.duration_since(last) > Duration::from_micros(if crowded { 50 } else { 100 }) {
                let mut again = LOOK_AGAIN;
                for group in &groups {
                    let waited = waits.entry((group.slot(), group.id)).or_default();
                    again = again.min(group.overdue(waited)).min(group.overdue_transfers());
                }
                job.park(again, || groups.iter().any(|g| g.stirs()));
                break;
            }
            // An engine may need this core for its own thread, and works far longer than an exchange of flags takes.
            if crowded || groups.iter().any(|group| group.engine_works()) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}
