//! The limit of shared buffers.

use core::sync::atomic::Ordering;

use super::Width;
use super::arena::{Arena, Cell, MAX_RANKS, Wait};

/// Up to here the data travels in the flag's own cache line.
pub const LINE_BYTES: usize = 40;

/// Up to here data can be published beside its flag.
pub const PUBLISH_BYTES: usize = 4096;

/// Up to here publishing wins over summing slices in place: with two far cores it takes a fifth less
/// at 1 KiB and a third more at 2 KiB.
const PUBLISH_BEST_BYTES: usize = 1024;

/// From this size of one output up, the sums are stored past the caches. Measured with two ranks that rotate
/// three buffers each: cached stores win by a third up to 2 MiB; streamed ones win from 4 MiB far, and lose
/// a sixth at 16 MiB near. At 4 MiB what rotates (24 MiB) nears the last cache's 32 MiB.
pub const STREAM_BYTES: usize = 4 << 20;

/// Where the payload of a line starts: after its sequence number and a word to spare.
const PAYLOAD: usize = 64 - LINE_BYTES;

/// Floats of one cache line.
const LINE_FLOATS: usize = 16;

/// How an operation is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One exchange; the data is in the flag's line. Up to [`LINE_BYTES`].
    Line,
    /// Copy to a slot, one exchange, every rank sums all slots. Up to [`PUBLISH_BYTES`].
    Publish,
    /// Exchange, every rank sums its slice into all buffers, exchange.
    Slices,
}

impl Way {
    /// The fastest for this size.
    pub fn best(bytes: usize) -> Self {
        if bytes <= LINE_BYTES {
            Self::Line
        } else if bytes <= PUBLISH_BEST_BYTES {
            Self::Publish
        } else {
            Self::Slices
        }
    }
}

/// All-reduce in place on the arena's shared buffers.
#[derive(Debug)]
pub struct Direct {
    arena: Arena,
    rank: usize,
    width: Width,
    wait: Wait,
    exchanges: u64,
    small: Small,
    /// Overrides [`Way::best`], to compare; a way that the size does not allow is not taken.
    pub way: Option<Way>,
    /// Overrides [`STREAM_BYTES`].
    pub stream_bytes: usize,
}

impl Direct {
    /// This rank's part. All ranks make theirs at the same point of the arena's history, and an earlier
    /// `Direct` of the same arena and rank is not used any more.
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
            exchanges: arena.flag(Cell::Exchanged, rank).load(Ordering::Relaxed),
            small: Small::new(arena, rank, wait, DIRECT),
            way: None,
            stream_bytes: STREAM_BYTES,
        }
    }

    /// How an operation of this size will be done.
    pub fn way(&self, bytes: usize) -> Way {
        match self.way {
            Some(Way::Line) if bytes <= LINE_BYTES => Way::Line,
            Some(Way::Publish) if bytes <= PUBLISH_BYTES => Way::Publish,
            Some(Way::Slices) => Way::Slices,
            _ => Way::best(bytes),
        }
    }

    /// One operation: sums `count` floats of the ranks' buffers number `index` into all of them.
    ///
    /// # Panics
    /// When the buffers are smaller than `count`, or there is no such buffer.
    #[inline]
    pub fn run(&mut self, index: usize, count: usize) {
        assert!(count * size_of::<f32>() <= self.arena.shape().bytes, "{count} floats exceed the buffers");
        let own = self.arena.buffer(self.rank, index);
        // SAFETY: `own` is this rank's buffer and holds `count` floats, as asserted; other ranks touch it
        // only in `slices`, between the two exchanges.
        unsafe {
            match self.way(count * size_of::<f32>()) {
                Way::Line => self.small.line(own, count),
                Way::Publish => self.small.publish(own, count),
                Way::Slices => self.slices(index, count),
            }
        }
    }

    fn slices(&mut self, index: usize, count: usize) {
        let ranks = self.arena.shape().ranks;
        let (from, to) = (part(self.rank, ranks, count), part(self.rank + 1, ranks, count));
        let mut outputs = [core::ptr::null_mut(); MAX_RANKS];
        let mut inputs = [core::ptr::null(); MAX_RANKS];
        for rank in 0..ranks {
            // Wrapping, because the bound `count` was checked by `run`.
            outputs[rank] = self.arena.buffer(rank, index).wrapping_add(from);
            inputs[rank] = outputs[rank].cast_const();
        }
        let streaming = count * size_of::<f32>() >= self.stream_bytes;
        self.exchange();
        // SAFETY: between the exchanges only this rank touches this slice of any buffer: the others have
        // arrived and own other slices. The slices end within `count`.
        unsafe { self.width.sum(&inputs[..ranks], &outputs[..ranks], to - from, streaming) };
        self.exchange();
    }

    #[inline(always)]
    fn exchange(&mut self) {
        self.exchanges += 1;
        self.arena.flag(Cell::Exchanged, self.rank).store(self.exchanges, Ordering::Release);
        for other in (0..self.arena.shape().ranks).filter(|&other| other != self.rank) {
            self.wait.until(self.arena.flag(Cell::Exchanged, other), self.exchanges);
        }
    }
}

/// Where part `index` of `count` floats in `parts` begins: on a cache line, so that no two ranks store to one.
#[inline(always)]
pub(super) fn part(index: usize, parts: usize, count: usize) -> usize {
    if index == parts { count } else { index * count / parts / LINE_FLOATS * LINE_FLOATS }
}

/// Which cells and slots a [`Small`] uses: shared and private buffers count their operations apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cells {
    lines: [Cell; 2],
    published: [Cell; 2],
    first_slot: usize,
}

pub(super) const DIRECT: Cells = Cells {
    lines: [Cell::DirectLineEven, Cell::DirectLineOdd],
    published: [Cell::DirectPublishedEven, Cell::DirectPublishedOdd],
    first_slot: 0,
};

pub(super) const HEAP: Cells = Cells {
    lines: [Cell::HeapLineEven, Cell::HeapLineOdd],
    published: [Cell::HeapPublishedEven, Cell::HeapPublishedOdd],
    first_slot: 2,
};

/// The one-exchange ways, which shared and private buffers have in common.
///
/// Two slots in turn are enough: who begins operation n+2 has seen everybody's flag of n+1, which each stored
/// after it had read the slots of n.
#[derive(Debug)]
pub(super) struct Small {
    cells: Cells,
    arena: Arena,
    rank: usize,
    wait: Wait,
    width: Width,
    lines: u64,
    publications: u64,
}

impl Small {
    pub(super) fn new(arena: Arena, rank: usize, wait: Wait, cells: Cells) -> Self {
        let newest = |[even, odd]: [Cell; 2]| {
            let read = |cell| arena.flag(cell, rank).load(Ordering::Relaxed);
            u64::max(read(even), read(odd))
        };
        Self {
            cells,
            arena,
            rank,
            wait,
            width: Width::detect(),
            lines: newest(cells.lines),
            publications: newest(cells.published),
        }
    }

    /// # Safety
    /// `own` holds `count` floats, at most [`LINE_BYTES`], that only this rank touches.
    #[inline(always)]
    pub(super) unsafe fn line(&mut self, own: *mut f32, count: usize) {
        const FLOATS: usize = LINE_BYTES / size_of::<f32>();
        let count = count.min(FLOATS);
        self.lines += 1;
        let cell = self.cells.lines[(self.lines & 1) as usize];
        let mine = self.arena.cell(cell, self.rank);
        let mut sums = [0.0_f32; FLOATS];
        // SAFETY: the payload lies inside this rank's line, which nobody reads before its flag is stored; the
        // others' payloads are complete once their flags are, and stay until this rank's next operation but
        // one. `own` is the caller's promise.
        unsafe {
            let payload = mine.add(PAYLOAD).cast::<f32>();
            for i in 0..count {
                payload.add(i).write(own.add(i).read());
            }
            self.arena.flag(cell, self.rank).store(self.lines, Ordering::Release);
            for rank in 0..self.arena.shape().ranks {
                // Its own operand comes from the buffer: a load from the line just stored would stall.
                let from = if rank == self.rank {
                    own.cast_const()
                } else {
                    self.wait.until(self.arena.flag(cell, rank), self.lines);
                    self.arena.cell(cell, rank).add(PAYLOAD).cast_const().cast::<f32>()
                };
                for (i, sum) in sums.iter_mut().enumerate().take(count) {
                    *sum += from.add(i).read();
                }
            }
            for (i, sum) in sums.iter().enumerate().take(count) {
                own.add(i).write(*sum);
            }
        }
    }

    /// # Safety
    /// `own` holds `count` floats, at most [`PUBLISH_BYTES`], that only this rank touches.
    #[inline(always)]
    pub(super) unsafe fn publish(&mut self, own: *mut f32, count: usize) {
        self.publications += 1;
        let parity = (self.publications & 1) as usize;
        let cell = self.cells.published[parity];
        let turn = self.cells.first_slot + parity;
        let slot = self.arena.published(turn, self.rank);
        let mut inputs = [core::ptr::null(); MAX_RANKS];
        let ranks = self.arena.shape().ranks;
        // SAFETY: the slot is this rank's and nobody reads it before its flag is stored; the others' slots are
        // complete once their flags are, and stay until this rank's next operation but one. `own` is the
        // caller's promise.
        unsafe {
            self.width.sum(&[own.cast_const()], &[slot], count, false);
            self.arena.flag(cell, self.rank).store(self.publications, Ordering::Release);
            for (rank, input) in inputs.iter_mut().enumerate().take(ranks) {
                *input = if rank == self.rank {
                    own.cast_const()
                } else {
                    self.wait.until(self.arena.flag(cell, rank), self.publications);
                    self.arena.published(turn, rank).cast_const()
                };
            }
            self.width.sum(&inputs[..ranks], &[own], count, false);
        }
    }
}
