//! Whether processes can share memory, wake each other, and notice each other's death: what a sandbox may forbid.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::Timespec;
use rustix::io::Errno;
use rustix::thread::futex;
use serde::Serialize;
use windlass_memory::{Mapping, Segment};

/// What was tried, each with what the kernel said against it.
#[derive(Clone, Debug, Serialize)]
pub struct Sharing {
    /// Memory made, sealed and mapped twice: why that fails.
    pub segment_error: Option<String>,
    /// How long it took to wake a thread that slept on a word in that memory, seen through the other mapping, in microseconds; `None`: it was not woken.
    pub wake_us: Option<f64>,
    /// Descriptors of processes, by which a rank's death is noticed: why there are none.
    pub pidfd_error: Option<String>,
}

/// How long a wake-up is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

impl Sharing {
    pub(super) fn gather() -> Self {
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        let pidfd_error = pidfd.err().map(|errno| format!("pidfd_open: {errno}"));
        match Segment::create(0, 4096).and_then(|segment| Ok((Mapping::open(segment.descriptor())?, segment)))
        {
            Ok((mapping, segment)) => {
                Self { segment_error: None, wake_us: wake(&segment, &mapping), pidfd_error }
            }
            Err(error) => Self { segment_error: Some(error.to_string()), wake_us: None, pidfd_error },
        }
    }
}

/// Through two mappings, as two processes have: a private futex would not wake anybody.
fn wake(one: &Segment, other: &Mapping) -> Option<f64> {
    // SAFETY: the segment's first bytes are zero, aligned to a page, and mapped as long as `one`; they are used as this word alone.
    let ours = unsafe { AtomicU32::from_ptr(one.mapping().base().as_ptr().cast()) };
    // SAFETY: as above, by the other mapping.
    let theirs = unsafe { AtomicU32::from_ptr(other.base().as_ptr().cast()) };
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            let until = Instant::now() + PATIENCE;
            let patience = Timespec { tv_sec: 1, tv_nsec: 0 };
            while theirs.load(Ordering::Acquire) == 0 {
                if Instant::now() > until {
                    return None;
                }
                let slept = futex::wait(theirs, futex::Flags::empty(), 0, Some(&patience));
                if slept == Err(Errno::TIMEDOUT) || slept == Err(Errno::NOSYS) {
                    return None;
                }
            }
            Some(Instant::now())
        });
        // So that it sleeps, most probably; a futex that never wakes lets it sleep until its time is over.
        std::thread::sleep(Duration::from_millis(5));
        let begin = Instant::now();
        ours.store(1, Ordering::Release);
        let _ = futex::wake(ours, futex::Flags::empty(), 1);
        let woken = sleeper.join().ok().flatten()?;
        Some(woken.saturating_duration_since(begin).as_secs_f64() * 1e6)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_shares_memory() {
        let sharing = Sharing::gather();
        assert_eq!((sharing.segment_error, sharing.pidfd_error), (None, None));
        assert!(sharing.wake_us.is_some_and(|us| us >= 0.0));
    }
}
