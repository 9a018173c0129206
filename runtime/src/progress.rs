//! The thread that looks after asynchronous operations while nobody waits for them.
//!
//! It sleeps while there are none, and is kicked by whoever starts one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use crate::engine::Status;
use crate::group::{Overdue, lock};
use crate::job::Job;

/// What the thread and those who kick it share.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) started: OnceLock<bool>,
    pub(crate) state: Mutex<ProgressState>,
    pub(crate) changed: Condvar,
    pub(crate) parked: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct ProgressState {
    pub(crate) closing: bool,
    pub(crate) kicked: bool,
}

impl Progress {
    /// There is to be no thread: a simulation moves everything itself.
    pub(crate) fn forbid(&self) {
        let _ = self.started.set(false);
    }
}

/// The thread's life.
pub(crate) fn run(job: &Weak<Job>) {
    // By communicator, from round to round: when its wait began, and what has been told about it.
    let mut waits: BTreeMap<(u16, u32), Overdue> = BTreeMap::new();
    loop {
        let Some(job) = job.upgrade() else { return };
        let groups: Vec<_> = job.living_groups().into_iter().filter(|g| g.is_detached()).collect();
        let busy = groups.iter().filter(|g| g.failure().is_none() && g.has_pending()).collect::<Vec<_>>();
        if busy.is_empty() {
            drop(groups);
            // Whoever posts after this store kicks; what was posted before it is seen by one more look.
            if !job.progress.parked.swap(true, Ordering::AcqRel) {
                continue;
            }
            let state = lock(&job.progress.state);
            if state.closing {
                return;
            }
            let weak = Arc::downgrade(&job);
            let wait = |state: std::sync::MutexGuard<'_, ProgressState>| {
                let woken = job.progress.changed.wait_timeout_while(state, Duration::from_secs(1), |s| !s.kicked && !s.closing);
                woken.map_or_else(|p| p.into_inner().0.closing, |(mut s, _)| {
                    s.kicked = false;
                    s.closing
                })
            };
            let closing = wait(state);
            job.progress.parked.store(false, Ordering::Release);
            if closing {
                return;
            }
            drop(job);
            if weak.strong_count() == 0 {
                return;
            }
            continue;
        }
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
                for group in &groups {
                    group.overdue(waits.entry((group.slot(), group.id)).or_default());
                    group.overdue_transfers();
                }
                job.park(Duration::from_millis(50), || groups.iter().any(|g| g.stirs()));
                break;
            }
            if crowded {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}
