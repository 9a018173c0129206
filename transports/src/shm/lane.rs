//! A byte ring from one rank to another.
//!
//! One writer, one reader. Positions only grow; `tail - head` bytes are in the ring. The writer stores bytes, then the tail with release; the
//! reader loads the tail with acquire, so the bytes below it are there. The reader loads bytes, then stores the head with release; the
//! writer loads the head with acquire before it stores over them. The writer's last store is `closed`, with release, after its last
//! tail: a reader that sees it and then finds the ring empty has read everything. `tests/loom/` checks the three.

use super::sync::{AtomicU64, Ordering};

/// The positions of a lane; its bytes follow.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Tail {
    position: AtomicU64,
    closed: AtomicU64,
}

/// How far the reader is.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Head(AtomicU64);

/// The positions of a lane, each on a line of its own.
#[derive(Debug)]
#[repr(C)]
pub struct Positions {
    tail: Tail,
    head: Head,
}

impl Positions {
    /// Where the writer may store: the position, and how many bytes of `capacity` are free. `tail` is the writer's own.
    #[inline]
    pub fn room(&self, capacity: u64) -> (u64, u64) {
        let tail = self.tail.position.load(Ordering::Relaxed);
        (tail, capacity - tail.wrapping_sub(self.head.0.load(Ordering::Acquire)).min(capacity))
    }

    /// The writer has stored `bytes` bytes.
    #[inline]
    pub fn push(&self, bytes: u64) {
        let tail = self.tail.position.load(Ordering::Relaxed);
        self.tail.position.store(tail.wrapping_add(bytes), Ordering::Release);
    }

    /// Where the reader may load: the position, and how many bytes are there.
    #[inline]
    pub fn waiting(&self) -> (u64, u64) {
        let head = self.head.0.load(Ordering::Relaxed);
        (head, self.tail.position.load(Ordering::Acquire).wrapping_sub(head))
    }

    /// The reader has loaded `bytes` bytes.
    #[inline]
    pub fn pop(&self, bytes: u64) {
        let head = self.head.0.load(Ordering::Relaxed);
        self.head.0.store(head.wrapping_add(bytes), Ordering::Release);
    }

    /// The writer will store no more.
    pub fn close(&self) {
        self.tail.closed.store(1, Ordering::Release);
    }

    /// Whether the writer has closed. What it stored before is seen by the next look.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.tail.closed.load(Ordering::Acquire) != 0
    }

    /// Positions of their own, for the model.
    #[cfg(loom)]
    pub fn new() -> Self {
        let tail = Tail { position: AtomicU64::new(0), closed: AtomicU64::new(0) };
        Self { tail, head: Head(AtomicU64::new(0)) }
    }
}
