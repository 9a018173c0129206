//! A Combine of many inputs into many outputs, on memory that can vanish: sum into scratch, then commit.
//!
//! In place, the outputs are inputs too. If the sum went straight to them and broke half way, nobody could tell what had been added.
//! So a chunk is summed into a slot of scratch first, while nothing that it reads is written; a broken sum is done again from the
//! inputs. Then the slot is copied to each output by a [`Ledger`] of its own; a broken copy is done again from the slot, which is held
//! until every output's owner has said that it has the chunk.
//!
//! ```text
//! inputs ──sum──▶ slot (chunk mod slots) ──commit──▶ output 0, output 1 …   each with its ledger
//! ```

use std::collections::VecDeque;

use super::{Fault, Ledger};

/// Where a sum is kept until it is committed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Place {
    /// In this slot of scratch.
    Slot(usize),
    /// In the output itself: only where the memory cannot vanish.
    Output,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Sum {
    Idle,
    Busy,
    Ready,
}

/// The chunks that this rank sums, for one operation.
///
/// - Inputs: [`handle_summing`](Self::handle_summing), [`handle_summed`](Self::handle_summed), [`handle_broken`](Self::handle_broken), and
///   those of the [ledgers](Self::ledger) of its outputs, after which [`handle_watermarks`](Self::handle_watermarks) is called.
/// - Outputs: [`poll_sum`](Self::poll_sum), [`poll_commit`](Self::poll_commit).
/// - Getters: the rest.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Reduction {
    count: u32,
    slots: usize,
    /// Chunks before this are delivered everywhere, and their slots free.
    released: u32,
    /// The sums from there on, one for each slot.
    window: VecDeque<Sum>,
    ledgers: Vec<Ledger>,
    in_place: bool,
}

impl Reduction {
    /// This many chunks, through this many slots, to this many outputs. Scratch is used unless the memory `can_vanish` not.
    pub fn new(count: u32, slots: usize, outputs: usize, can_vanish: bool) -> Self {
        let mut reduction = Self {
            count,
            slots,
            released: 0,
            window: VecDeque::new(),
            ledgers: vec![Ledger::new(count, slots); outputs],
            in_place: !can_vanish,
        };
        reduction.handle_watermarks();
        reduction
    }

    /// The same with a planted fault.
    #[doc(hidden)]
    pub fn plant(mut self, fault: Option<Fault>) -> Self {
        self.in_place |= fault == Some(Fault::AccumulateInPlace);
        let fault = fault.and_then(Fault::in_ledger);
        self.ledgers = self.ledgers.into_iter().map(|ledger| ledger.plant(fault)).collect();
        self
    }

    /// The sum of a chunk that [`poll_sum`](Self::poll_sum) gave begins.
    ///
    /// # Panics
    ///
    /// If it gave another one.
    pub fn handle_summing(&mut self, chunk: u32) {
        self.turn(chunk, Sum::Idle, Sum::Busy);
    }

    /// It stands in its place.
    ///
    /// # Panics
    ///
    /// If it had not begun.
    pub fn handle_summed(&mut self, chunk: u32) {
        self.turn(chunk, Sum::Busy, Sum::Ready);
    }

    /// An input vanished: it is done again from the inputs.
    ///
    /// # Panics
    ///
    /// If it had not begun.
    pub fn handle_broken(&mut self, chunk: u32) {
        self.turn(chunk, Sum::Busy, Sum::Idle);
    }

    /// A ledger's watermark has moved: slots that every output has passed are free.
    pub fn handle_watermarks(&mut self) {
        let passed = self.ledgers.iter().map(Ledger::delivered).min().unwrap_or(self.count);
        self.window.drain(..((passed - self.released) as usize).min(self.window.len()));
        self.released = passed;
        let left = (self.count - passed) as usize;
        self.window.resize(self.slots.min(left), Sum::Idle);
    }

    /// The operation is over. Nothing is committed any more.
    pub fn handle_end(&mut self) {
        self.ledgers.iter_mut().for_each(Ledger::handle_end);
    }

    /// The next chunk to sum, and where.
    pub fn poll_sum(&self) -> Option<(u32, Place)> {
        let first = self.window.iter().position(|sum| *sum == Sum::Idle)?;
        let chunk = self.released + first as u32;
        Some((chunk, self.place(chunk)))
    }

    /// The next chunk to commit to an output, and from where.
    pub fn poll_commit(&self, output: usize) -> Option<(u32, Place)> {
        let ready = self.window.iter().take_while(|sum| **sum == Sum::Ready).count() as u32;
        let chunk = self.ledgers[output].poll_idle(self.released + ready)?;
        Some((chunk, self.place(chunk)))
    }

    /// An output's ledger.
    pub fn ledger(&self, output: usize) -> &Ledger {
        &self.ledgers[output]
    }

    /// The same, for its inputs.
    pub fn ledger_mut(&mut self, output: usize) -> &mut Ledger {
        &mut self.ledgers[output]
    }

    /// Whether every output has everything.
    pub const fn is_delivered(&self) -> bool {
        self.released == self.count
    }

    const fn place(&self, chunk: u32) -> Place {
        if self.in_place { Place::Output } else { Place::Slot(chunk as usize % self.slots) }
    }

    fn turn(&mut self, chunk: u32, from: Sum, to: Sum) {
        let index = chunk.checked_sub(self.released).expect("a chunk that is not released") as usize;
        assert_eq!(self.window[index], from, "chunk {chunk} is summed in order");
        self.window[index] = to;
    }
}
