//! Sleeping until a peer has something to say.
//!
//! All ranks of a host share one futex word and a set of who is parked. A rank that has raised a line and then finds a peer
//! parked bumps the word and wakes the peers' bits: one system call, whoever and how many they are.
//!
//! # Why no wake-up is lost
//! The waiter sets its bit, fences, loads the word, and looks at its condition once more before it sleeps on the word's
//! value. The ringer raises its line, fences, and loads the bits. Both fences are sequentially consistent, so one comes first: if the
//! waiter's, the ringer sees the bit, bumps the word, and either the futex call finds a changed word or the wake finds a sleeper; if the
//! ringer's, the waiter's look sees the raised line. `tests/loom/` checks it.
//!
//! The word lies in shared memory, so the futex is a shared one: a private futex never meets another process.

#[cfg(not(loom))]
use std::num::NonZeroU32;
use std::sync::PoisonError;
use std::time::Duration;

use super::sync::{AtomicU32, AtomicU64, Mutex, Ordering, fence};

/// Ranks that one host's doorbell serves.
pub const MAX_LOCAL_RANKS: usize = 1024;

/// The shared word and who sleeps on it. Lies in the job's board.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Doorbell {
    word: AtomicU32,
    /// How many ranks are parked: what a ringer looks at first. On the same line as the word, which nobody writes while nobody parks.
    parked_ranks: AtomicU32,
    parked: [AtomicU64; MAX_LOCAL_RANKS / 64],
    #[cfg(loom)]
    futex: std::sync::Mutex<Vec<loom::thread::Thread>>,
}

/// Whether a waiter slept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parked {
    /// What it waits for had happened before it slept.
    Ready,
    /// It was woken, or the time was over: look again.
    Woken,
}

impl Doorbell {
    /// Says that local rank `rank` may sleep from now on.
    fn enter(&self, rank: usize) {
        self.parked[rank / 64].fetch_or(1 << (rank % 64), Ordering::Relaxed);
        self.parked_ranks.fetch_add(1, Ordering::Relaxed);
    }

    fn leave(&self, rank: usize) {
        self.parked_ranks.fetch_sub(1, Ordering::Relaxed);
        self.parked[rank / 64].fetch_and(!(1 << (rank % 64)), Ordering::Relaxed);
    }

    /// Whether a rank sleeps, to be asked after raising a line. Contains the fence.
    #[inline]
    pub fn somebody_sleeps(&self) -> bool {
        fence(Ordering::SeqCst);
        self.parked_ranks.load(Ordering::Relaxed) != 0
    }

    /// Wakes those of `ranks` that sleep. The caller has raised its lines and then called [`somebody_sleeps`](Self::somebody_sleeps).
    pub fn ring(&self, ranks: impl Iterator<Item = usize>) {
        let mut bits = 0u32;
        for rank in ranks {
            if self.parked[rank / 64].load(Ordering::Relaxed) & 1 << (rank % 64) != 0 {
                bits |= 1 << (rank % 32);
            }
        }
        if bits != 0 {
            self.word.fetch_add(1, Ordering::Release);
            self.wake(bits);
        }
    }

    /// Sleeps as local rank `rank` until rung or `timeout`, unless `ready` holds. `sleepers` counts the threads of this
    /// rank that sleep, so that the rank's bit stays while one of them does.
    pub fn park(
        &self,
        sleepers: &Mutex<u32>,
        rank: usize,
        timeout: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Parked {
        let change = |enter: bool| {
            let mut count = sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            match (enter, *count) {
                (true, 0) => self.enter(rank),
                (false, 1) => self.leave(rank),
                _ => {}
            }
            *count = if enter { *count + 1 } else { *count - 1 };
        };
        change(true);
        fence(Ordering::SeqCst);
        let seen = self.word.load(Ordering::Acquire);
        let result = if ready() {
            Parked::Ready
        } else {
            self.sleep(rank, seen, timeout);
            Parked::Woken
        };
        change(false);
        result
    }

    #[cfg(not(loom))]
    fn wake(&self, bits: u32) {
        if let Some(bits) = NonZeroU32::new(bits) {
            let flags = rustix::thread::futex::Flags::empty();
            let _ = rustix::thread::futex::wake_bitset(&self.word, flags, i32::MAX as u32, bits);
        }
    }

    #[cfg(not(loom))]
    fn sleep(&self, rank: usize, seen: u32, timeout: Duration) {
        let Some(bits) = NonZeroU32::new(1 << (rank % 32)) else { return };
        // FUTEX_WAIT_BITSET takes the time at which to give up, on the monotonic clock.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let end = now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec);
        let end = end.saturating_add(i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX));
        let end = rustix::time::Timespec { tv_sec: end / 1_000_000_000, tv_nsec: end % 1_000_000_000 };
        // Interrupted, timed out, word changed or woken: in every case the caller looks again.
        let flags = rustix::thread::futex::Flags::empty();
        let _ = rustix::thread::futex::wait_bitset(&self.word, flags, seen, Some(&end), bits);
    }

    /// Loom has no futex. Its model of one is a list of parked threads, all of which are woken.
    #[cfg(loom)]
    fn wake(&self, _: u32) {
        let sleepers = std::mem::take(&mut *self.futex.lock().unwrap_or_else(PoisonError::into_inner));
        sleepers.iter().for_each(loom::thread::Thread::unpark);
    }

    /// Without a time limit: a lost wake-up is a deadlock, which loom reports.
    #[cfg(loom)]
    fn sleep(&self, _: usize, seen: u32, _: Duration) {
        let queue = || self.futex.lock().unwrap_or_else(PoisonError::into_inner);
        let me = loom::thread::current();
        queue().push(me.clone());
        // The kernel compares under the lock that wake takes, so it reads no old value; nor does a read-modify-write.
        if self.word.fetch_add(0, Ordering::Relaxed) == seen {
            loom::thread::park();
        }
        queue().retain(|sleeper| sleeper.id() != me.id());
    }

    /// A doorbell of its own, for the model.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
            parked_ranks: AtomicU32::new(0),
            parked: std::array::from_fn(|_| AtomicU64::new(0)),
            futex: std::sync::Mutex::default(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;

    use super::*;

    fn doorbell() -> Arc<Doorbell> {
        // SAFETY: made of integers, for which zero is a value.
        Arc::new(unsafe { std::mem::zeroed() })
    }

    #[test]
    fn a_sleeper_wakes_when_rung_and_not_for_others() {
        let (bell, flag) = (doorbell(), Arc::new(AtomicBool::new(false)));
        let sleeper = {
            let (bell, flag) = (Arc::clone(&bell), Arc::clone(&flag));
            std::thread::spawn(move || {
                let begin = Instant::now();
                while !flag.load(Ordering::Acquire) {
                    bell.park(&Mutex::new(0), 3, Duration::from_secs(20), || flag.load(Ordering::Acquire));
                }
                begin.elapsed()
            })
        };
        while !bell.somebody_sleeps() {
            std::thread::yield_now();
        }
        bell.ring([5, 7].into_iter());
        assert_eq!(bell.word.load(Ordering::Relaxed), 0, "nobody meant sleeps: no system call");
        flag.store(true, Ordering::Release);
        assert!(bell.somebody_sleeps());
        bell.ring([3].into_iter());
        assert!(sleeper.join().unwrap() < Duration::from_secs(10));
        assert!(!bell.somebody_sleeps());
    }

    #[test]
    fn a_timeout_ends_the_sleep_and_a_ready_waiter_does_not_sleep() {
        let bell = doorbell();
        let begin = Instant::now();
        assert_eq!(bell.park(&Mutex::new(0), 0, Duration::from_millis(5), || false), Parked::Woken);
        assert!(begin.elapsed() >= Duration::from_millis(4));
        assert_eq!(bell.park(&Mutex::new(0), 1023, Duration::from_secs(100), || true), Parked::Ready);
    }
}
