//! What the ranks of a bench share beside windlass: flags, samples, and the memory of the limits.
//!
//! The launcher makes the file, without a name in any file system, and holds it open as long as the job runs; the
//! ranks open it through the launcher's entry in /proc. So nothing is left behind, whoever dies.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;
use windlass_benches::limits::{Arena, ArenaError, MAX_RANKS, Shape, Wait};

/// The most operations of one block.
pub(super) const MOST_ITERATIONS: usize = 4096;

/// Words of a rank's own pair of cache lines.
const LINE: usize = 16;
/// Rank 0's answer to a question.
const ANSWER: usize = 0;
/// Ports of the limit's TCP connection: the listener's, then rank 1's own.
const PORTS: [usize; 2] = [LINE, LINE + 1];
/// What sleeping ranks wait on.
const BELL: usize = 2 * LINE;
const RANK_LINES: usize = 4 * LINE;
const SAMPLES: usize = RANK_LINES + MAX_RANKS * LINE;
const PAGE_WORDS: usize = 4096 / size_of::<u64>();

fn words(ranks: usize) -> usize {
    (SAMPLES + ranks * MOST_ITERATIONS).next_multiple_of(PAGE_WORDS)
}

/// The file that the ranks will map. Sparse: what no rank touches takes no memory.
pub(super) fn create(shape: Shape) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("windlass-bench", MemfdFlags::CLOEXEC)?;
    let bytes = words(shape.ranks) * size_of::<u64>() + shape.arena_bytes();
    rustix::fs::ftruncate(&file, bytes as u64)?;
    Ok(file)
}

/// How another process of this user opens a descriptor of this process.
pub(super) fn path_of(descriptor: &impl AsRawFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), descriptor.as_raw_fd())
}

/// One rank's view.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared {
    words: &'static [AtomicU64],
    /// The limits' part.
    pub(super) arena: Arena,
    /// This rank.
    pub(super) rank: usize,
    /// How many there are.
    pub(super) ranks: usize,
    wait: Wait,
}

impl Shared {
    /// Maps the launcher's file, for the rest of this process's life.
    pub(super) fn open(path: &str, rank: usize, shape: Shape) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let words = words(shape.ranks);
        let bytes = words * size_of::<u64>() + shape.arena_bytes();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping where the kernel likes; it overlaps nothing, and is never unmapped. The launcher
        // has given the file this length and keeps it.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &file, 0)? };
        // SAFETY: the mapping begins with so many aligned words, zero at first, which all ranks access as these
        // atomics only.
        let own = unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>(), words) };
        let arena = NonNull::new(base.cast::<u8>().wrapping_add(words * size_of::<u64>()));
        let arena = arena.ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the rest of the mapping, shared, zero at first, never unmapped.
        let arena = unsafe { Arena::new(arena, shape.arena_bytes(), shape) };
        let arena = arena.map_err(|error: ArenaError| io::Error::other(error.to_string()))?;
        Ok(Self { words: own, arena, rank, ranks: shape.ranks, wait: Wait::for_ranks(shape.ranks) })
    }

    /// Waits for all ranks.
    #[inline(always)]
    pub(super) fn barrier(&self) {
        self.arena.barrier(self.rank, self.wait);
    }

    /// How ranks wait for each other here.
    pub(super) const fn wait(&self) -> Wait {
        self.wait
    }

    /// All ranks ask; rank 0's answer is everybody's.
    pub(super) fn agree(&self, answer: impl FnOnce() -> u64) -> u64 {
        if self.rank == 0 {
            self.words[ANSWER].store(answer(), Ordering::Relaxed);
        }
        self.barrier();
        let agreed = self.words[ANSWER].load(Ordering::Relaxed);
        self.barrier();
        agreed
    }

    /// Rank 0 does something while the others sleep, off the processors, until it has ended.
    pub(super) fn alone<R>(&self, action: impl FnOnce() -> R) -> Option<R> {
        let bell = self.bell();
        let before = bell.load(Ordering::Acquire);
        self.barrier();
        if self.rank == 0 {
            let result = action();
            bell.fetch_add(1, Ordering::Release);
            // Without the private flag: the sleepers are other processes.
            let _ = futex::wake(bell, futex::Flags::empty(), u32::MAX >> 1);
            return Some(result);
        }
        while bell.load(Ordering::Acquire) == before {
            // Returns early when the bell has rung meanwhile, or for a signal.
            let _ = futex::wait(bell, futex::Flags::empty(), before, None);
        }
        None
    }

    fn bell(&self) -> &AtomicU32 {
        // SAFETY: the word lies in the mapping, aligned, and is accessed by its first half only, as this atomic.
        unsafe { AtomicU32::from_ptr(self.words[BELL].as_ptr().cast()) }
    }

    /// The ports of the limit's connection; zero until known.
    pub(super) fn port(&self, of: usize) -> &AtomicU64 {
        &self.words[PORTS[of]]
    }

    /// The sum of a figure over all ranks, which all call this.
    pub(super) fn total(&self, figure: u64) -> u64 {
        let of = |rank: usize| &self.words[RANK_LINES + rank * LINE];
        of(self.rank).store(figure, Ordering::Relaxed);
        self.barrier();
        let total = (0..self.ranks).map(|rank| of(rank).load(Ordering::Relaxed)).sum();
        self.barrier();
        total
    }

    /// How many barriers under test a rank has entered.
    pub(super) fn entered(&self, rank: usize) -> &AtomicU64 {
        &self.words[RANK_LINES + rank * LINE + 1]
    }

    /// Keeps this rank's time of an operation.
    #[inline(always)]
    pub(super) fn record(&self, iteration: usize, ns: f64) {
        let at = SAMPLES + self.rank * MOST_ITERATIONS + iteration;
        self.words[at].store(ns.to_bits(), Ordering::Relaxed);
    }

    /// A rank's time of an operation; after a barrier.
    pub(super) fn recorded(&self, rank: usize, iteration: usize) -> f64 {
        let at = SAMPLES + rank * MOST_ITERATIONS + iteration;
        f64::from_bits(self.words[at].load(Ordering::Relaxed))
    }
}
