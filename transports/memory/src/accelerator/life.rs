//! The life word: how engines in any process find out, in time, that memory has gone.
//!
//! It lies in the header page of each exported segment, beside a count of the engines at work there and a count of the imports. The owner
//! alone writes the word; engines count themselves in and out.
//!
//! # Why an engine that ends well has its stores in the snapshot
//!
//! A revoke waits for nobody, so an engine may be storing while the owner takes the snapshot that will be the next generation:
//!
//! ```text
//!     engine                                 owner
//!     S1  store data                         O1  store word = Dead
//!     S2  fence(SeqCst)                      O2  fence(SeqCst)
//!     S3  load word                          O3  read data (the snapshot)
//! ```
//!
//! The two fences have one order in which everybody sees them. If S2 comes first, what is before it (S1) is visible to what is
//! after O2 (O3): the snapshot has the stores. If O2 comes first, what is before it (O1) is visible to what is after S2
//! (S3): the engine reads `Dead`, and its work ends stale. So *the engine reads `Alive`* implies *the snapshot has its
//! stores*; both may fail (a stale end, yet the snapshot has some stores), which is why a stale work's outputs are unspecified.
//!
//! # Why poison is never put under an engine that keeps the rules
//!
//! The same argument the other way: an engine counts itself in, fences, then reads the word; the owner writes the word,
//! fences, then reads the count. Not both can miss the other. Once the owner has written `Dead` and then read a count of zero,
//! no engine that keeps the rules touches the pages any more, and whatever changes them afterwards broke a rule. The last
//! engine's counting out is a release that the owner's zero acquires, so its stores come before the poison.
//!
//! `Moving` (transparent moves) is the same with a way back: engines that read it wait outside and try again.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering, fence};

/// What an engine may do with the memory of a generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum State {
    /// Announced; the bytes are not here yet.
    Unborn = 0,
    /// Use it.
    Alive = 1,
    /// Wait: it will be alive again.
    Moving = 2,
    /// Never again.
    Dead = 3,
}

/// The shared words of a segment; all zeros is generation 0, unborn.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Life {
    /// Generation, and the state in the two lowest bits.
    word: AtomicU64,
    /// Engines at work on the segment, of all processes. One that died at work is counted for ever.
    busy: AtomicU64,
    /// Imports of the segment, of all processes.
    pins: AtomicU64,
}

impl Life {
    /// The words of a segment that is being made.
    pub fn new(generation: u32, state: State) -> Self {
        let word = AtomicU64::new(Self::word_of(generation, state));
        Self { word, busy: AtomicU64::new(0), pins: AtomicU64::new(0) }
    }

    const fn word_of(generation: u32, state: State) -> u64 {
        (generation as u64) << 2 | state as u64
    }

    /// The state of a generation; one that the word does not name is dead.
    pub fn state(&self, generation: u32) -> State {
        let word = self.word.load(Ordering::Acquire);
        if word >> 2 != u64::from(generation) {
            return State::Dead;
        }
        match word & 3 {
            0 => State::Unborn,
            1 => State::Alive,
            2 => State::Moving,
            _ => State::Dead,
        }
    }

    /// The owner's: changes the state. Its stores before this are visible to engines that enter afterwards, and its reads and
    /// [`Life::is_quiet`] after it see every engine that did not see the new state.
    pub fn set(&self, generation: u32, state: State) {
        self.word.store(Self::word_of(generation, state), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The owner's: whether no engine is at work. After [`Life::set`] to another state than alive, this stays true.
    pub fn is_quiet(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0
    }

    /// An engine's: before its first access. On an error it does not access, and is not counted.
    pub fn enter(&self, generation: u32) -> Result<(), State> {
        self.busy.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        match self.state(generation) {
            State::Alive => Ok(()),
            other => {
                self.busy.fetch_sub(1, Ordering::Release);
                Err(other)
            }
        }
    }

    /// An engine's: after its last access. `Ok` says that its stores are in the contents that go on.
    pub fn leave(&self, generation: u32) -> Result<(), State> {
        fence(Ordering::SeqCst);
        let state = self.state(generation);
        self.busy.fetch_sub(1, Ordering::Release);
        match state {
            // A mover that waits for this engine takes its stores along.
            State::Alive | State::Moving => Ok(()),
            other => Err(other),
        }
    }

    /// An importer's: holds pinned memory in place.
    pub fn pin(&self) {
        self.pins.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// An importer's: lets it go.
    pub fn unpin(&self) {
        self.pins.fetch_sub(1, Ordering::Release);
    }

    /// How many imports there are.
    pub fn pins(&self) -> u64 {
        self.pins.load(Ordering::Acquire)
    }
}
