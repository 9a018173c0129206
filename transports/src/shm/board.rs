//! One memfd a communicator: every local rank's flags, slots and stage.
//!
//! Each rank writes its own area and reads the others'. The memory is O(1) per rank, published to all its peers, and its pages come
//! with the first touch: a communicator that never stages never has a stage.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use windlass_memory::{Mapping, MemoryError, Segment};

use super::doorbell::Doorbell;
use super::lane::{CELLS, Cell, Positions};
use super::line::{ArrivalLine, Watermark, prepare};

/// How many operations a rank may be ahead of the slowest peer's last ended one.
pub const WAYS: u64 = 8;

/// The bytes of a rank's bounce buffers, through which its messages to all peers go. Touched only by ranks that send any that need them.
pub const BOUNCE_BYTES: usize = 512 << 10;

/// A lane's positions and cells. Touched only by pairs that send messages.
const LANE_STRIDE: usize = CELLS as usize * size_of::<Cell>() + PAGE;
const MAGIC: u64 = u64::from_le_bytes(*b"windlas4");
const PAGE: usize = 4096;
/// The lines of a rank: arrivals, done, ended, mail, relayed.
const LINES_BYTES: usize = (WAYS as usize + 4) * 128;

/// What a board is made for. All ranks must agree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Shape {
    /// Ranks of the communicator on this host.
    pub ranks: u64,
    /// Bytes a rank can publish at once.
    pub slot_bytes: u64,
    /// Bytes of a rank's stage.
    pub stage_bytes: u64,
    /// Whether each pair of ranks has lanes for messages.
    pub lanes: u64,
    /// Bytes of a rank's notes: what the layer above publishes to whoever maps the board.
    pub note_bytes: u64,
}

#[repr(C)]
struct Header {
    magic: u64,
    shape: Shape,
}

impl Shape {
    fn round(bytes: u64) -> usize {
        usize::try_from(bytes).unwrap_or(usize::MAX / 4).next_multiple_of(PAGE)
    }

    fn slots_at(&self) -> usize {
        LINES_BYTES.next_multiple_of(PAGE)
    }

    fn stage_at(&self) -> usize {
        self.slots_at() + WAYS as usize * Self::round(self.slot_bytes)
    }

    fn lanes_at(&self) -> usize {
        self.stage_at() + Self::round(self.stage_bytes)
    }

    fn bounce_at(&self) -> usize {
        let lanes = if self.lanes == 0 { 0 } else { self.ranks as usize * LANE_STRIDE };
        self.lanes_at() + lanes
    }

    fn notes_at(&self) -> usize {
        self.bounce_at() + if self.lanes == 0 { 0 } else { BOUNCE_BYTES }
    }

    fn stride(&self) -> usize {
        self.notes_at() + Self::round(self.note_bytes)
    }

    /// The bytes of the whole board: header, doorbell, areas.
    fn total(&self) -> usize {
        PAGE + self.ranks as usize * self.stride()
    }
}

/// A communicator's board, mapped.
#[derive(Debug)]
pub struct Board {
    mapping: Mapping,
    shape: Shape,
    /// The shape's offsets, worked out once: they are needed several times an operation.
    stride: usize,
    slots_at: usize,
    slot_stride: usize,
    stage_at: usize,
    lanes_at: usize,
}

impl Board {
    /// Makes a board; hand the segment's descriptor to the ranks, each of which opens it.
    pub fn create(shape: Shape) -> Result<Segment, MemoryError> {
        let segment = Segment::create(u32::MAX, shape.total())?;
        segment.mapping().populate(0, PAGE)?;
        // SAFETY: the first page of our own fresh mapping, aligned, not yet shared with anybody.
        unsafe { segment.mapping().base().cast::<Header>().write(Header { magic: MAGIC, shape }) };
        Ok(segment)
    }

    /// Maps a board.
    pub fn open(descriptor: BorrowedFd<'_>) -> Result<Self, MemoryError> {
        let mapping = Mapping::open(descriptor)?;
        let wrong = |bytes| MemoryError {
            call: "mmap",
            errno: rustix::io::Errno::INVAL.raw_os_error(),
            bytes,
            hint: "the descriptor is no board of this version of windlass",
        };
        if mapping.len() < PAGE {
            return Err(wrong(mapping.len()));
        }
        // SAFETY: inside the mapping, page-aligned; the header is written before the descriptor is handed out
        // and never again; any bits are valid integers.
        let Header { magic, shape } = unsafe { mapping.base().cast::<Header>().read() };
        let fits = shape.ranks < 1 << 20
            && shape.lanes <= 1
            && [shape.slot_bytes, shape.stage_bytes, shape.note_bytes].iter().all(|&b| b < 1 << 40);
        if magic != MAGIC || !fits || shape.total() > mapping.len() {
            return Err(wrong(mapping.len()));
        }
        Ok(Self {
            mapping,
            shape,
            stride: shape.stride(),
            slots_at: shape.slots_at(),
            slot_stride: Shape::round(shape.slot_bytes),
            stage_at: shape.stage_at(),
            lanes_at: shape.lanes_at(),
        })
    }

    /// What it was made for.
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The doorbell. Only the job's board has one that is used.
    pub fn doorbell(&self) -> &Doorbell {
        // SAFETY: inside the first page (checked by `open`), 128-aligned, zeroed at creation, accessed only as a Doorbell,
        // whose fields are atomics.
        unsafe { self.at(1024).cast::<Doorbell>().as_ref() }
    }

    /// The arrival line of local rank `rank` for operation `sequence`.
    #[inline]
    pub fn arrival(&self, rank: usize, sequence: u64) -> &ArrivalLine {
        let way = (sequence % WAYS) as usize;
        // SAFETY: inside the rank's lines, 128-aligned, accessed only as an ArrivalLine of atomics.
        unsafe { self.at(self.area(rank) + way * 128).cast::<ArrivalLine>().as_ref() }
    }

    /// How far `rank` is with touching its peers' memory.
    #[inline]
    pub fn done(&self, rank: usize) -> &Watermark {
        // SAFETY: inside the rank's lines, 128-aligned, accessed only as a Watermark of atomics.
        unsafe { self.at(self.area(rank) + WAYS as usize * 128).cast::<Watermark>().as_ref() }
    }

    /// How many operations `rank` has ended.
    #[inline]
    pub fn ended(&self, rank: usize) -> &Watermark {
        // SAFETY: inside the rank's lines, 128-aligned, accessed only as a Watermark of atomics.
        unsafe { self.at(self.area(rank) + (WAYS as usize + 1) * 128).cast::<Watermark>().as_ref() }
    }

    /// Whether something waits for `rank` that it finds elsewhere: 1 once it has been put there, 0 before the rank looks.
    #[inline]
    pub fn mail(&self, rank: usize) -> &Watermark {
        // SAFETY: inside the rank's lines, 128-aligned, accessed only as a Watermark of atomics.
        unsafe { self.at(self.area(rank) + (WAYS as usize + 2) * 128).cast::<Watermark>().as_ref() }
    }

    /// How far `rank` is with what it holds ready in its stage for its peers.
    #[inline]
    pub fn relayed(&self, rank: usize) -> &Watermark {
        // SAFETY: inside the rank's lines, 128-aligned, accessed only as a Watermark of atomics.
        unsafe { self.at(self.area(rank) + (WAYS as usize + 3) * 128).cast::<Watermark>().as_ref() }
    }

    /// The slot of `rank` for operation `sequence`: `slot_bytes` bytes.
    #[inline]
    pub fn slot(&self, rank: usize, sequence: u64) -> NonNull<u8> {
        let way = (sequence % WAYS) as usize;
        self.at(self.area(rank) + self.slots_at + way * self.slot_stride)
    }

    /// Begins to take the first `bytes` bytes of the slot of `rank` for operation `sequence` from its readers, for the stores to come.
    pub fn prepare_slot(&self, rank: usize, sequence: u64, bytes: usize) {
        let slot = self.slot(rank, sequence).as_ptr();
        (0..bytes.min(self.slot_stride)).step_by(64).for_each(|at| prepare(slot.wrapping_add(at)));
    }

    /// The stage of `rank`: `stage_bytes` bytes.
    #[inline]
    pub fn stage(&self, rank: usize) -> NonNull<u8> {
        self.at(self.area(rank) + self.stage_at)
    }

    /// The lane from `source` to `target`: its positions and its ring of cells.
    #[inline]
    pub fn lane(&self, source: usize, target: usize) -> (&Positions, &[Cell; CELLS as usize]) {
        assert!(self.shape.lanes != 0 && source < self.shape.ranks as usize, "this board has no such lane");
        let at = self.area(target) + self.lanes_at + source * LANE_STRIDE;
        // SAFETY: inside the target's area, page-aligned, accessed only as Positions and Cells of atomics.
        unsafe {
            (
                self.at(at).cast::<Positions>().as_ref(),
                self.at(at + PAGE).cast::<[Cell; CELLS as usize]>().as_ref(),
            )
        }
    }

    /// The bounce buffers of `rank`: [`BOUNCE_BYTES`] bytes.
    pub fn bounce(&self, rank: usize) -> NonNull<u8> {
        assert!(self.shape.lanes != 0, "this board has no bounce buffers");
        self.at(self.area(rank) + self.shape.bounce_at())
    }

    /// The notes of `rank`: `note_bytes` bytes.
    pub fn notes(&self, rank: usize) -> NonNull<u8> {
        self.at(self.area(rank) + self.shape.notes_at())
    }

    #[inline]
    fn area(&self, rank: usize) -> usize {
        assert!(rank < self.shape.ranks as usize, "rank {rank} has no area on this board");
        PAGE + rank * self.stride
    }

    #[inline]
    fn at(&self, offset: usize) -> NonNull<u8> {
        // A part of no bytes may lie at the end.
        debug_assert!(offset <= self.mapping.len());
        // SAFETY: callers pass offsets of the layout that `total` has summed up, and `open` has checked `total` against the mapping.
        unsafe { self.mapping.base().add(offset) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { ranks: 3, slot_bytes: 100, stage_bytes: 5000, lanes: 1, note_bytes: 8 };

    #[test]
    fn what_one_mapping_writes_the_other_reads() {
        let segment = Board::create(SHAPE).unwrap();
        let (a, b) = (Board::open(segment.descriptor()).unwrap(), Board::open(segment.descriptor()).unwrap());
        assert_eq!(*a.shape(), SHAPE);
        a.arrival(2, 9).describe([7, 8]);
        a.arrival(2, 9).raise(9, 1);
        assert_eq!((b.arrival(2, 9).ready(9), b.arrival(2, 9).fingerprint()), (1, [7, 8]));
        assert_eq!((b.arrival(2, 8).ready(8), b.arrival(1, 9).ready(9)), (0, 0));
    }

    #[test]
    fn areas_do_not_overlap() {
        let segment = Board::create(SHAPE).unwrap();
        let board = Board::open(segment.descriptor()).unwrap();
        let begin = board.mapping.base().as_ptr().addr();
        let mut ranges = vec![(0, PAGE)];
        for rank in 0..3 {
            let mut add = |at: usize, bytes: u64| ranges.push((at - begin, at - begin + bytes as usize));
            for way in 0..WAYS {
                add(std::ptr::from_ref(board.arrival(rank, way)).addr(), 128);
                add(board.slot(rank, way).as_ptr().addr(), SHAPE.slot_bytes);
            }
            add(std::ptr::from_ref(board.done(rank)).addr(), 128);
            add(std::ptr::from_ref(board.ended(rank)).addr(), 128);
            add(std::ptr::from_ref(board.mail(rank)).addr(), 128);
            add(std::ptr::from_ref(board.relayed(rank)).addr(), 128);
            add(board.stage(rank).as_ptr().addr(), SHAPE.stage_bytes);
            for source in 0..3 {
                let (positions, cells) = board.lane(source, rank);
                add(std::ptr::from_ref(positions).addr(), 256);
                add(std::ptr::from_ref(cells).addr(), size_of_val(cells) as u64);
            }
            add(board.bounce(rank).as_ptr().addr(), BOUNCE_BYTES as u64);
            add(board.notes(rank).as_ptr().addr(), SHAPE.note_bytes);
        }
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0), "{ranges:?}");
        assert!(ranges.last().unwrap().1 <= board.mapping.len());
        assert!(1024 + size_of::<Doorbell>() <= PAGE);
    }

    #[test]
    fn a_part_of_no_bytes_lies_at_the_end() {
        let shape = Shape { ranks: 1, slot_bytes: 0, stage_bytes: 0, lanes: 0, note_bytes: 0 };
        let segment = Board::create(shape).unwrap();
        let board = Board::open(segment.descriptor()).unwrap();
        let begin = board.mapping.base().as_ptr().addr();
        for part in [board.slot(0, 7), board.stage(0), board.notes(0)] {
            assert_eq!(part.as_ptr().addr() - begin, board.mapping.len());
        }
    }

    #[test]
    fn foreign_memory_is_no_board() {
        let segment = Segment::create(0, 1 << 16).unwrap();
        assert!(Board::open(segment.descriptor()).unwrap_err().to_string().contains("no board"));
    }
}
