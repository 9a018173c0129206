//! How an interpreter ends, and that a forked child has no part in the job.
//!
//! At exit, operations under way still write Python's memory. They have a moment to end; what has not ended then is aborted, which
//! tells the peers. The communicators are not dropped: peers that still need this rank are to hear how its process ended.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::operation::Pending;

/// How long operations under way may take at exit.
const GRACE: Duration = Duration::from_secs(1);

/// A communicator, and what it has under way in Python's memory.
pub(crate) struct Open {
    pub(crate) communicator: windlass::Communicator,
    /// Operations that keep Python's memory.
    pub(crate) under_way: Arc<AtomicUsize>,
    /// Those whose `Operation` is still there; some have ended. Locked with the interpreter held, and for a moment.
    observed: Mutex<Vec<Weak<Pending>>>,
}

/// The communicators of this process. Locked with the interpreter held, and for a moment.
static OPEN: Mutex<Vec<Weak<Open>>> = Mutex::new(Vec::new());
static PROCESS: AtomicU32 = AtomicU32::new(0);
static RANK: AtomicU32 = AtomicU32::new(0);

impl Open {
    pub(crate) fn new(communicator: windlass::Communicator) -> Arc<Self> {
        let open = Self { communicator, under_way: Arc::default(), observed: Mutex::default() };
        let open = Arc::new(open);
        let mut list = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|one| one.strong_count() > 0);
        list.push(Arc::downgrade(&open));
        open
    }

    /// Looks after `pending` at exit.
    pub(crate) fn observe(&self, pending: &Arc<Pending>) {
        let mut observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        if observed.len() == observed.capacity() {
            observed.retain(|one| one.strong_count() > 0);
        }
        observed.push(Arc::downgrade(pending));
    }

    fn observed(&self) -> Vec<Arc<Pending>> {
        let observed = self.observed.lock().unwrap_or_else(PoisonError::into_inner);
        observed.iter().filter_map(Weak::upgrade).collect()
    }

    /// Waits until nothing is under way. Whether that came to be.
    fn settle(&self, py: Python<'_>, until: Instant) -> bool {
        for pending in self.observed() {
            let left = until.saturating_duration_since(Instant::now());
            py.detach(|| pending.advance(left));
            pending.settle(py);
        }
        let is_idle = || self.under_way.load(Ordering::Acquire) == 0;
        py.detach(|| {
            while !is_idle() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        is_idle()
    }
}

/// This process is rank `rank` of a job.
pub(crate) fn joined(rank: u32) {
    RANK.store(rank, Ordering::Relaxed);
    PROCESS.store(std::process::id(), Ordering::Release);
}

/// The error, when this process is a fork of the one that joined.
pub(crate) fn forked() -> Option<windlass::Error> {
    let process = PROCESS.load(Ordering::Acquire);
    let forked = process != 0 && process != std::process::id();
    forked.then(|| windlass::Error::Forked { rank: RANK.load(Ordering::Relaxed) })
}

/// Registered with `atexit`.
#[pyfunction]
pub(crate) fn at_exit(py: Python<'_>) {
    if forked().is_some() {
        return;
    }
    let list = std::mem::take(&mut *OPEN.lock().unwrap_or_else(PoisonError::into_inner));
    let until = Instant::now() + GRACE;
    for open in list.iter().filter_map(Weak::upgrade) {
        if !open.settle(py, until) {
            py.detach(|| open.communicator.abort());
            open.settle(py, Instant::now() + GRACE);
        }
        std::mem::forget(open.communicator.clone());
    }
}
