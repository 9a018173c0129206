//! The limit of private buffers, staged through shared memory.

use core::sync::atomic::Ordering;

use super::Width;
use super::arena::{Arena, Cell, MAX_RANKS, Wait};
use super::direct::{HEAP, LINE_BYTES, Small, part};

/// The size of a staging slot, and the largest chunk.
pub const CHUNK_BYTES: usize = 64 << 10;

/// Slots per rank.
pub(super) const DEPTH: usize = 3;

/// How the work is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeapWay {
    /// Every rank stages all it has and sums everything: one wait per chunk, p loads per element and rank.
    Whole,
    /// Every rank stages what the others sum, sums its part, and fetches the others': two waits per chunk,
    /// three loads per element and rank.
    Parts,
}

/// All-reduce in place on private memory.
#[derive(Debug)]
pub struct Heap {
    arena: Arena,
    rank: usize,
    width: Width,
    wait: Wait,
    small: Small,
    /// Chunks done since the arena was new; the flags count them.
    chunks: u64,
    /// Overrides the choice by rank count.
    pub way: Option<HeapWay>,
    /// Overrides the chunk's size; a multiple of 64, at most [`CHUNK_BYTES`].
    pub chunk_bytes: Option<usize>,
    /// Whether what is staged is stored past the caches; measured with near cores only, it is slower.
    pub streamed: bool,
}

impl Heap {
    /// This rank's part. All ranks make theirs at the same point of the arena's history, and an earlier
    /// `Heap` of the same arena and rank is not used any more.
    ///
    /// # Panics
    /// When the arena has no such rank.
    pub fn new(arena: Arena, rank: usize) -> Self {
        assert!(rank < arena.shape().ranks, "no rank {rank}");
        let wait = Wait::for_ranks(arena.shape().ranks);
        Self {
            arena,
            rank,
            width: Width::detect(),
            wait,
            small: Small::new(arena, rank, wait, HEAP),
            chunks: arena.flag(Cell::Filled, rank).load(Ordering::Relaxed),
            way: None,
            chunk_bytes: None,
            streamed: false,
        }
    }

    /// How an operation of more than 4 KiB will be done. With two ranks whole chunks were as fast or faster at
    /// every size, near and far; with more they cost p loads per element.
    pub fn chosen_way(&self) -> HeapWay {
        self.way.unwrap_or(if self.arena.shape().ranks == 2 { HeapWay::Whole } else { HeapWay::Parts })
    }

    /// One operation: sums `values` over all ranks, in place.
    #[inline]
    pub fn run(&mut self, values: &mut [f32]) {
        let bytes = size_of_val(values);
        if bytes <= LINE_BYTES {
            // SAFETY: the slice is this rank's alone, and short enough.
            return unsafe { self.small.line(values.as_mut_ptr(), values.len()) };
        }
        if bytes <= SMALL_BYTES {
            // SAFETY: the slice is this rank's alone, and short enough.
            return unsafe { self.small.publish(values.as_mut_ptr(), values.len()) };
        }
        let chunk = self.chunk_bytes.unwrap_or(CHUNK_BYTES).clamp(64, CHUNK_BYTES) / size_of::<f32>();
        match self.chosen_way() {
            HeapWay::Whole => self.whole(values, chunk),
            HeapWay::Parts => self.parts(values, chunk),
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank;
        (0..self.arena.shape().ranks).filter(move |&rank| rank != own)
    }

    /// Waits until all others have done `value` chunks of a stage.
    #[inline(always)]
    fn await_others(&self, stage: Cell, value: u64) {
        for rank in self.others() {
            self.wait.until(self.arena.flag(stage, rank), value);
        }
    }

    #[inline(always)]
    fn announce(&self, stage: Cell, value: u64) {
        self.arena.flag(stage, self.rank).store(value, Ordering::Release);
    }

    /// Stages one chunk ahead of the one that is summed.
    fn whole(&mut self, values: &mut [f32], chunk: usize) {
        let (first, count) = (self.chunks, values.len().div_ceil(chunk) as u64);
        for turn in 0..=count {
            if turn < count {
                self.stage_whole(first + turn, piece(values, turn, chunk));
            }
            if turn > 0 {
                self.sum_whole(first + turn - 1, piece(values, turn - 1, chunk));
            }
        }
        self.finish(first + count);
    }

    fn stage_whole(&self, number: u64, values: &mut [f32]) {
        self.await_others(Cell::Drained, (number + 1).saturating_sub(DEPTH as u64));
        let slot = self.arena.staged(self.rank, slot_of(number));
        // SAFETY: all others have drained what was in this slot before; it holds a chunk.
        unsafe { self.width.sum(&[values.as_ptr()], &[slot], values.len(), self.streamed) };
        self.announce(Cell::Filled, number + 1);
    }

    fn sum_whole(&self, number: u64, values: &mut [f32]) {
        let ranks = self.arena.shape().ranks;
        let mut inputs = [core::ptr::null(); MAX_RANKS];
        for (rank, input) in inputs.iter_mut().enumerate().take(ranks) {
            *input = self.arena.staged(rank, slot_of(number)).cast_const();
        }
        inputs[self.rank] = values.as_ptr();
        self.await_others(Cell::Filled, number + 1);
        // SAFETY: the others have filled these slots and refill them only after this rank's announcement; the
        // output is this rank's own and the same address as its own input.
        unsafe { self.width.sum(&inputs[..ranks], &[values.as_mut_ptr()], values.len(), false) };
        self.announce(Cell::Drained, number + 1);
    }

    /// Three stages, each one chunk behind the one before it.
    fn parts(&mut self, values: &mut [f32], chunk: usize) {
        let (first, count) = (self.chunks, values.len().div_ceil(chunk) as u64);
        for turn in 0..count + 2 {
            if turn < count {
                self.stage_parts(first + turn, piece(values, turn, chunk));
            }
            if (1..=count).contains(&turn) {
                self.sum_part(first + turn - 1, piece(values, turn - 1, chunk));
            }
            if turn >= 2 {
                self.fetch_parts(first + turn - 2, piece(values, turn - 2, chunk));
            }
        }
        self.finish(first + count);
    }

    fn stage_parts(&self, number: u64, values: &mut [f32]) {
        let ranks = self.arena.shape().ranks;
        self.await_others(Cell::Reduced, (number + 1).saturating_sub(DEPTH as u64));
        let slot = self.arena.staged(self.rank, slot_of(number));
        for rank in self.others() {
            let (from, to) = (part(rank, ranks, values.len()), part(rank + 1, ranks, values.len()));
            // SAFETY: all others have summed what was in this slot before; the part lies in slot and chunk.
            unsafe {
                self.width.sum(&[values.as_ptr().add(from)], &[slot.add(from)], to - from, self.streamed)
            };
        }
        self.announce(Cell::Filled, number + 1);
    }

    fn sum_part(&self, number: u64, values: &mut [f32]) {
        let ranks = self.arena.shape().ranks;
        let (from, to) = (part(self.rank, ranks, values.len()), part(self.rank + 1, ranks, values.len()));
        let mut inputs = [core::ptr::null(); MAX_RANKS];
        for (rank, input) in inputs.iter_mut().enumerate().take(ranks) {
            *input = self.arena.staged(rank, slot_of(number)).wrapping_add(from).cast_const();
        }
        inputs[self.rank] = values.as_ptr().wrapping_add(from);
        self.await_others(Cell::Filled, number + 1);
        self.await_others(Cell::Drained, (number + 1).saturating_sub(DEPTH as u64));
        let outputs = [
            values.as_mut_ptr().wrapping_add(from),
            self.arena.summed(self.rank, slot_of(number)).wrapping_add(from),
        ];
        // SAFETY: the others have filled their slots, and have fetched what this rank's sum slot held before;
        // the part lies in slots and chunk.
        unsafe { self.width.sum(&inputs[..ranks], &outputs, to - from, false) };
        self.announce(Cell::Reduced, number + 1);
    }

    fn fetch_parts(&self, number: u64, values: &mut [f32]) {
        let ranks = self.arena.shape().ranks;
        for rank in self.others() {
            let (from, to) = (part(rank, ranks, values.len()), part(rank + 1, ranks, values.len()));
            let slot = self.arena.summed(rank, slot_of(number)).cast_const();
            self.wait.until(self.arena.flag(Cell::Reduced, rank), number + 1);
            // SAFETY: the other rank has stored its sums and stores new ones only after this rank's
            // announcement; the part lies in slot and chunk.
            unsafe {
                self.width.sum(&[slot.add(from)], &[values.as_mut_ptr().add(from)], to - from, false);
            }
        }
        self.announce(Cell::Drained, number + 1);
    }

    /// All three flags count chunks of both ways, so that the ways may alternate on one arena.
    fn finish(&mut self, chunks: u64) {
        self.chunks = chunks;
        self.announce(Cell::Reduced, chunks);
    }
}

/// Up to here one copy, one exchange and one sum are the whole operation.
const SMALL_BYTES: usize = super::direct::PUBLISH_BYTES;

fn slot_of(number: u64) -> usize {
    (number % DEPTH as u64) as usize
}

fn piece(values: &mut [f32], number: u64, chunk: usize) -> &mut [f32] {
    let from = number as usize * chunk;
    let to = values.len().min(from + chunk);
    &mut values[from..to]
}
