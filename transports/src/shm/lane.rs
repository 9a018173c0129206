//! A ring of cells from one rank to another.
//!
//! One writer, one reader. Cells are numbered from 1; cell `n` lies in place `n % CELLS`. A cell's word says its number and what it holds, on the
//! line of the bytes themselves: a small message is one line to write and one to read, and no position is asked for.
//!
//! # Who writes what, and why the order holds
//! * A cell's body is stored, then its word with release. The reader loads the word with acquire; when that shows the awaited number, the body is
//!   that cell's. Numbers do not come again, so a word that an earlier lap left shows nothing.
//! * The reader loads a body, then stores `read` with release. The writer loads `read` with acquire before it stores over the
//!   cell, or over the bounce buffer that the cell named.
//! * The writer's last store is `closed`, with release, after its last word: a reader that sees it and then no cell has read everything.
//! * A cell may name memory that is *lent*: it is read where it lies, until the writer *revokes* it, after which its owner may write it. The
//!   writer stores `revoked`, fences, and only then gives the memory back; the reader loads the memory, fences, and then looks at `revoked`: if it
//!   has loaded anything that was written after the fence, it sees the revocation, and what it has loaded counts for nothing. How many lent bytes
//!   count is `taken`, stored before `read`.
//!
//! `tests/loom/lane.rs` checks the four.

use super::sync::{AtomicU64, Ordering, fence};

/// Cells of a ring.
pub const CELLS: u64 = 128;

/// Bytes that a cell holds beside its word.
pub const CELL_BYTES: usize = 8 * BODY_WORDS;

const BODY_WORDS: usize = 15;

/// What a cell holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// So many bytes.
    Bytes(usize),
    /// Where bytes lie in the writer's bounce buffers, and how many: two words.
    Bounced,
    /// Where they lie in memory that the writer lends, and how many: three words.
    Lent,
    /// Nothing that a writer of this version stores.
    Unknown,
}

const BOUNCED: u64 = 0xfe;
const LENT: u64 = 0xff;

/// A pair of cache lines.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Cell {
    word: AtomicU64,
    body: [AtomicU64; BODY_WORDS],
}

impl Cell {
    /// Shows the body to the reader, as that of cell `number`.
    #[inline]
    pub fn show(&self, number: u64, content: Content) {
        let what = match content {
            Content::Bytes(bytes) => bytes as u64,
            Content::Bounced => BOUNCED,
            Content::Lent => LENT,
            Content::Unknown => 0,
        };
        self.word.store(number << 8 | what, Ordering::Release);
    }

    /// What cell `number` holds, once it is shown.
    #[inline]
    pub fn shown(&self, number: u64) -> Option<Content> {
        let word = self.word.load(Ordering::Acquire);
        (word >> 8 == number).then_some(match word & 0xff {
            bytes @ 1..=120 => Content::Bytes(bytes as usize),
            BOUNCED => Content::Bounced,
            LENT => Content::Lent,
            _ => Content::Unknown,
        })
    }

    /// Stores words of the body.
    #[inline]
    pub fn store(&self, words: &[u64]) {
        for (word, value) in self.body.iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    /// Loads the first words of the body.
    #[inline]
    pub fn load<const N: usize>(&self) -> [u64; N] {
        std::array::from_fn(|at| self.body[at].load(Ordering::Relaxed))
    }

    /// Where the body's bytes lie.
    #[cfg(not(loom))]
    #[inline]
    pub const fn bytes(&self) -> *mut u8 {
        self.body[0].as_ptr().cast()
    }

    /// A cell of its own, for the model.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0), body: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

const _: () = assert!(CELL_BYTES == 120 && CELL_BYTES < BOUNCED as usize);

/// What the writer says beside the cells.
#[derive(Debug)]
#[repr(C, align(128))]
struct Says {
    closed: AtomicU64,
    /// What was lent in cells up to this one is lent no more.
    revoked: AtomicU64,
}

/// How far the reader is.
#[derive(Debug)]
#[repr(C, align(128))]
struct Reads {
    read: AtomicU64,
    taken: AtomicU64,
}

/// The words of a lane beside its cells, each rank's on a line of its own.
#[derive(Debug)]
#[repr(C)]
pub struct Positions {
    says: Says,
    reads: Reads,
}

impl Positions {
    /// The last cell that has been read.
    #[inline]
    pub fn read(&self) -> u64 {
        self.reads.read.load(Ordering::Acquire)
    }

    /// The cells up to `number` have been read.
    #[inline]
    pub fn set_read(&self, number: u64) {
        self.reads.read.store(number, Ordering::Release);
    }

    /// How many lent bytes the reader has taken, of the cells up to the last [`read`](Self::read).
    pub fn taken(&self) -> u64 {
        self.reads.taken.load(Ordering::Relaxed)
    }

    /// Says so, before the cell is [read](Self::set_read).
    pub fn set_taken(&self, bytes: u64) {
        self.reads.taken.store(bytes, Ordering::Relaxed);
    }

    /// What was lent in cells up to `number` is lent no more: it may be written when this returns.
    pub fn revoke(&self, number: u64) {
        self.says.revoked.store(number, Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// Whether what was loaded, before this was asked, from memory lent in cell `number` was lent all the while.
    pub fn is_lent(&self, number: u64) -> bool {
        fence(Ordering::Acquire);
        self.says.revoked.load(Ordering::Relaxed) < number
    }

    /// The writer will store no more.
    pub fn close(&self) {
        self.says.closed.store(1, Ordering::Release);
    }

    /// Whether the writer has closed. What it stored before is seen by the next look.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.says.closed.load(Ordering::Acquire) != 0
    }

    /// Positions of their own, for the model.
    #[cfg(loom)]
    pub fn new() -> Self {
        let word = || AtomicU64::new(0);
        Self { says: Says { closed: word(), revoked: word() }, reads: Reads { read: word(), taken: word() } }
    }
}
