//! The shared region of the limits: flags, buffers and staging, at the same offsets in every rank.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use super::direct::PUBLISH_BYTES;
use super::heap::{CHUNK_BYTES, DEPTH};
use crate::clock::Clock;
use crate::stats::{Label, Summary};

/// Below this median of one exchange of flags, in nanoseconds, two cores count as near. The machine that the
/// figure comes from shows 50 or 200, never anything between for long.
pub const PROBE_NEAR_NS: f64 = 110.0;

/// More ranks than this have no place in one machine's limit.
pub const MAX_RANKS: usize = 128;

const PAGE: usize = 4096;
/// A flag sits alone on the pair of lines that the prefetcher fetches together.
const CELL: usize = 128;

/// What the cells are for; each kind has one per rank.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cell {
    Exchanged,
    DirectLineEven,
    DirectLineOdd,
    DirectPublishedEven,
    DirectPublishedOdd,
    HeapLineEven,
    HeapLineOdd,
    HeapPublishedEven,
    HeapPublishedOdd,
    Filled,
    Reduced,
    Drained,
    Barrier,
    Probe,
    ProbeLabel,
}

/// Per rank: two in turn for shared buffers, and two for private ones.
const PUBLISHED_SLOTS: usize = 4;

const CELL_KINDS: usize = Cell::ProbeLabel as usize + 1;

/// How many ranks and buffers an [`Arena`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Ranks, from 1 to [`MAX_RANKS`].
    pub ranks: usize,
    /// Shared buffers per rank, for rotation.
    pub buffers: usize,
    /// The size of the largest operation, in bytes.
    pub bytes: usize,
}

impl Shape {
    /// How many bytes the arena of this shape takes.
    pub fn arena_bytes(&self) -> usize {
        self.buffers_at() + self.ranks * self.buffers * self.buffer_bytes()
    }

    fn buffer_bytes(&self) -> usize {
        // One page more, so that the buffers of a power of two do not all compete for the same cache sets.
        self.bytes.next_multiple_of(PAGE) + PAGE
    }

    fn published_at(&self) -> usize {
        (CELL_KINDS * self.ranks * CELL).next_multiple_of(PAGE)
    }

    fn staging_at(&self) -> usize {
        self.published_at() + PUBLISHED_SLOTS * self.ranks * PUBLISH_BYTES
    }

    fn buffers_at(&self) -> usize {
        self.staging_at() + 2 * self.ranks * DEPTH * CHUNK_BYTES
    }
}

/// Why a region cannot be an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// Too short for the shape.
    #[error("the region has {have} bytes, the arena needs {need}: map Shape::arena_bytes()")]
    TooShort {
        /// The region's length.
        have: usize,
        /// What the shape needs.
        need: usize,
    },
    /// Not on a page, so flags would share cache lines.
    #[error("the region starts at {address:#x}, which is no multiple of 4096: pass what mmap gave")]
    Unaligned {
        /// Where it starts.
        address: usize,
    },
    /// No ranks, no buffers, or too many ranks.
    #[error("an arena has 1 to {MAX_RANKS} ranks and at least 1 buffer, not {ranks} and {buffers}")]
    Shape {
        /// The ranks asked for.
        ranks: usize,
        /// The buffers asked for.
        buffers: usize,
    },
}

/// One rank's view of the region that all ranks map. It does not own the mapping.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    base: NonNull<u8>,
    shape: Shape,
}

// SAFETY: an arena is an address and sizes; what is at the address is shared between ranks by the protocol of
// flags, whichever thread runs a rank.
unsafe impl Send for Arena {}

impl Arena {
    /// The arena over `length` bytes at `base`.
    ///
    /// # Safety
    /// The region is mapped shared, readable and writable, and was zero before any rank used it; it stays
    /// mapped as long as any copy of this arena or any limit over it lives.
    ///
    /// # Errors
    /// When the region does not fit the shape.
    pub unsafe fn new(base: NonNull<u8>, length: usize, shape: Shape) -> Result<Self, ArenaError> {
        if shape.ranks == 0 || shape.ranks > MAX_RANKS || shape.buffers == 0 {
            return Err(ArenaError::Shape { ranks: shape.ranks, buffers: shape.buffers });
        }
        let (address, need) = (base.as_ptr() as usize, shape.arena_bytes());
        if !address.is_multiple_of(PAGE) {
            return Err(ArenaError::Unaligned { address });
        }
        if length < need {
            return Err(ArenaError::TooShort { have: length, need });
        }
        Ok(Self { base, shape })
    }

    /// What it holds.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The start of a rank's shared buffer. Between operations a rank may read and write its own.
    ///
    /// # Panics
    /// When there is no such rank or buffer.
    pub fn buffer(&self, rank: usize, index: usize) -> *mut f32 {
        assert!(rank < self.shape.ranks && index < self.shape.buffers, "no buffer {index} of rank {rank}");
        let which = rank * self.shape.buffers + index;
        self.at(self.shape.buffers_at() + which * self.shape.buffer_bytes()).cast()
    }

    /// Waits until all ranks have come here as often as this one. Who shares a core gives it up at once: a rank that is not here yet may be
    /// in the middle of what is timed.
    pub fn barrier(&self, rank: usize, wait: Wait) {
        let wait = Wait { spins: wait.spins.map(|_| 0) };
        let own = self.flag(Cell::Barrier, rank);
        let turn = own.load(Ordering::Relaxed) + 1;
        own.store(turn, Ordering::Release);
        for other in 0..self.shape.ranks {
            wait.until(self.flag(Cell::Barrier, other), turn);
        }
    }

    #[inline(always)]
    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.shape.arena_bytes());
        // SAFETY: `new` checked that the region holds `arena_bytes`, and every offset is computed from the
        // same shape below that.
        unsafe { self.base.as_ptr().add(offset) }
    }

    #[inline(always)]
    pub(super) fn cell(&self, kind: Cell, rank: usize) -> *mut u8 {
        debug_assert!(rank < self.shape.ranks);
        self.at((kind as usize * self.shape.ranks + rank) * CELL)
    }

    #[inline(always)]
    pub(super) fn flag(&self, kind: Cell, rank: usize) -> &AtomicU64 {
        // SAFETY: the cell is inside the mapping, aligned to 128, zeroed at first, and its first eight bytes
        // are only ever accessed as this atomic; the mapping outlives `self`, as `new` demands.
        unsafe { &*self.cell(kind, rank).cast::<AtomicU64>() }
    }

    #[inline(always)]
    pub(super) fn published(&self, slot: usize, rank: usize) -> *mut f32 {
        debug_assert!(slot < PUBLISHED_SLOTS);
        self.at(self.shape.published_at() + (slot * self.shape.ranks + rank) * PUBLISH_BYTES).cast()
    }

    /// A rank's slot for what it brings.
    #[inline(always)]
    pub(super) fn staged(&self, rank: usize, slot: usize) -> *mut f32 {
        self.at(self.shape.staging_at() + (2 * rank * DEPTH + slot) * CHUNK_BYTES).cast()
    }

    /// A rank's slot for what it summed.
    #[inline(always)]
    pub(super) fn summed(&self, rank: usize, slot: usize) -> *mut f32 {
        self.at(self.shape.staging_at() + ((2 * rank + 1) * DEPTH + slot) * CHUNK_BYTES).cast()
    }
}

/// How a rank waits for a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Pauses before the first `sched_yield`; none for ever.
    spins: Option<u32>,
}

/// With more ranks than cores: about the time of one exchange, in case the other rank is running just now.
const CROWDED_SPINS: u32 = 32;

impl Wait {
    /// Spin with a core per rank; otherwise yield after a short spin.
    pub fn for_ranks(ranks: usize) -> Self {
        Self { spins: (ranks > cpus()).then_some(CROWDED_SPINS) }
    }

    /// Whether there are more ranks than cores.
    pub fn is_crowded(self) -> bool {
        self.spins.is_some()
    }

    /// Returns when `flag` is at least `value`, with everything that happened before it was stored.
    #[inline(always)]
    pub fn until(self, flag: &AtomicU64, value: u64) {
        let mut left = self.spins.unwrap_or(u32::MAX);
        while flag.load(Ordering::Acquire) < value {
            if left > 0 {
                core::hint::spin_loop();
                left -= u32::from(self.spins.is_some());
            } else {
                rustix::thread::sched_yield();
            }
        }
    }
}

/// How many CPUs the process was allowed when this was first asked: later a rank may have pinned itself.
pub fn cpus() -> usize {
    static CPUS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Pins the calling thread to one of the allowed CPUs, if there is one for each rank or each has as many; says whether it did. Where the
/// kernel puts ranks that take turns is chance: three of four on one core take half as long again as two and two.
pub fn pin(rank: usize, ranks: usize) -> bool {
    let cpus = cpus();
    if ranks > cpus && !ranks.is_multiple_of(cpus) {
        return false;
    }
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return false };
    let number = if ranks > cpus { rank * cpus / ranks } else { rank };
    let Some(cpu) = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).nth(number)
    else {
        return false;
    };
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpu);
    rustix::thread::sched_setaffinity(None, &one).is_ok()
}

/// Measures the exchange of flags between ranks 0 and 1: the median of one, in nanoseconds, and what it says.
/// All ranks call it, at the same point, and all get the same answer. It takes about 40 µs.
///
/// The samples of one batch are labelled by the probes before and after it ([`Label::of_batch`]).
pub fn probe_near_far(arena: &Arena, rank: usize, wait: Wait) -> (f64, Label) {
    const BATCHES: usize = 20;
    const BATCH: u64 = 10;
    if arena.shape.ranks < 2 || wait.is_crowded() {
        return (0.0, Label::Unsettled);
    }
    let answer = arena.flag(Cell::ProbeLabel, 0);
    let round = arena.flag(Cell::ProbeLabel, 1);
    let before = answer.load(Ordering::Acquire);
    // Nobody may answer before everybody has read the previous answer.
    arena.barrier(rank, wait);
    if rank < 2 {
        let clock = Clock::get();
        let (own, other) = (arena.flag(Cell::Probe, rank), arena.flag(Cell::Probe, 1 - rank));
        let mut turn = own.load(Ordering::Relaxed);
        let mut batches = [0.0; BATCHES];
        for batch in &mut batches {
            let start = clock.now();
            for _ in 0..BATCH {
                turn += 1;
                own.store(turn, Ordering::Release);
                wait.until(other, turn);
            }
            *batch = clock.ns_between(start, clock.now()) / BATCH as f64;
        }
        if rank == 0 {
            let median = Summary::of(batches).map_or(0.0, |summary| summary.median_ns);
            // Picoseconds, to carry the fraction.
            round.store((median * 1e3) as u64, Ordering::Relaxed);
            answer.store(before + 1, Ordering::Release);
        }
    }
    wait.until(answer, before + 1);
    let median = round.load(Ordering::Relaxed) as f64 / 1e3;
    (median, if median < PROBE_NEAR_NS { Label::Near } else { Label::Far })
}
