//! Combines by an operator of the program's own: on private copies, and without the communicator's lock.
//!
//! What a user's function does is not windlass's to know: it may take long, wait for another thread, or panic. So a Combine that needs it is
//! queued here, in pieces. Whoever drives the operation takes a piece's operands out under the lock (copies of a few KiB), folds them without it,
//! and stores the result under the lock again, if the operation is still there: one that was given up meanwhile has given its memory back.
//!
//! Everything in [`Folding`] is touched under the lock. Of one stream a single piece is out at a time, and it belongs to the thread that took it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::operator::{Operator, Panicked};

use super::Stream;
use super::scratch::Line;

/// The operands of a piece together; a page of the first few levels of cache.
const PIECE_BYTES: usize = 32 << 10;
/// A piece of one operand is no smaller than this, nor larger than the next.
const LEAST_BYTES: usize = 1 << 10;
const MOST_BYTES: usize = 16 << 10;

/// One call's worth of operands and results, in the list of pointers.
#[derive(Clone, Copy, Debug)]
struct Fold {
    inputs: usize,
    outputs: usize,
    bytes: usize,
}

/// The Combine under way by a user's operator.
#[derive(Debug, Default)]
pub(super) struct Folding {
    /// Step, first chunk and end of the task.
    task: Option<(u32, u32, u32)>,
    /// Of the folds, one after the other: its operands in rank order, then where the result goes.
    pointers: VecDeque<*mut u8>,
    folds: VecDeque<Fold>,
    /// Bytes of the first fold that are done.
    done: usize,
    /// A driver has a piece.
    out: bool,
    /// The memory of a piece, to use again.
    lines: Vec<Line>,
}

/// A piece that is taken out to be folded.
#[derive(Debug)]
pub(crate) struct Piece {
    operator: Arc<Operator>,
    /// The operands, each beginning on a line of its own.
    lines: Vec<Line>,
    inputs: usize,
    bytes: usize,
    element_bytes: usize,
}

impl Piece {
    /// Lines of one operand.
    const fn stride(&self) -> usize {
        self.bytes.div_ceil(size_of::<Line>())
    }

    /// Folds the operands into the first of them.
    pub(crate) fn fold(&mut self) -> Result<(), Panicked> {
        let (stride, count) = (self.stride(), self.bytes / self.element_bytes);
        let (first, others) = self.lines.split_at_mut(stride);
        for x in others.chunks_exact(stride.max(1)).take(self.inputs - 1) {
            // SAFETY: both are of `stride` whole lines, which hold `count` elements and are aligned for any type; the piece is this
            // thread's alone.
            unsafe { self.operator.fold_into(first.as_mut_ptr().cast(), x.as_ptr().cast(), count)? };
        }
        Ok(())
    }
}

impl Folding {
    /// Whether nothing is queued.
    pub(super) fn is_idle(&self) -> bool {
        self.folds.is_empty()
    }

    /// Queues a fold of the task that is being bound.
    pub(super) fn push(&mut self, inputs: &[*const u8], outputs: &[*mut u8], bytes: usize) {
        self.pointers.extend(inputs.iter().map(|p| p.cast_mut()).chain(outputs.iter().copied()));
        self.folds.push_back(Fold { inputs: inputs.len(), outputs: outputs.len(), bytes });
    }

    /// What was queued belongs to this task.
    pub(super) fn begin(&mut self, task: (u32, u32, u32)) {
        self.task = Some(task);
    }

    /// The operation was given up: its memory is not touched any more.
    pub(super) fn clear(&mut self) {
        (self.task, self.done) = (None, 0);
        self.pointers.clear();
        self.folds.clear();
    }
}

impl Stream {
    /// Whether there is a piece for [`next_piece`](Self::next_piece).
    #[inline]
    pub(crate) fn has_piece(&self) -> bool {
        self.folding.task.is_some() && !self.folding.out
    }

    /// Takes out a piece to be folded without the lock; it comes back by [`folded`](Self::folded).
    pub(crate) fn next_piece(&mut self) -> Option<Piece> {
        if !self.has_piece() {
            return None;
        }
        let plan = &self.active()?.plan;
        let (operator, element_bytes) = (plan.operator.clone()?, 1 << plan.element_shift);
        let folding = &mut self.folding;
        let fold = *folding.folds.front()?;
        // Every bound is a power of two and as large as the largest element, so whole elements are cut off.
        let most = (PIECE_BYTES / fold.inputs.next_power_of_two()).clamp(LEAST_BYTES, MOST_BYTES);
        let bytes = (fold.bytes - folding.done).min(most);
        let lines = std::mem::take(&mut folding.lines);
        let mut piece = Piece { operator, lines, inputs: fold.inputs, bytes, element_bytes };
        let stride = piece.stride();
        if piece.lines.len() < stride * fold.inputs {
            piece.lines.resize(stride * fold.inputs, Line([0; 64]));
        }
        for (source, target) in
            folding.pointers.iter().zip(piece.lines.chunks_exact_mut(stride)).take(fold.inputs)
        {
            // SAFETY: the source is an operand of the operation under way, at least `done + bytes` long, which nobody writes now, as the
            // schedule's proof shows; the target is private, and its lines hold that many bytes.
            unsafe {
                let source = source.wrapping_add(folding.done).cast_const();
                std::ptr::copy_nonoverlapping(source, target.as_mut_ptr().cast(), bytes);
            }
        }
        folding.out = true;
        Some(piece)
    }

    /// Stores a piece that has been folded, unless the operation was given up meanwhile.
    pub(crate) fn folded(&mut self, piece: Piece) {
        let folding = &mut self.folding;
        folding.out = false;
        let (Some((step, first, end)), Some(fold)) = (folding.task, folding.folds.front().copied()) else {
            return;
        };
        for target in folding.pointers.iter().skip(fold.inputs).take(fold.outputs) {
            // SAFETY: the target is a result of the operation under way, at least `done + bytes` long, which nobody else touches now, as the
            // schedule's proof shows; the source is private.
            unsafe {
                let target = target.wrapping_add(folding.done);
                std::ptr::copy_nonoverlapping(piece.lines.as_ptr().cast(), target, piece.bytes);
            }
        }
        folding.done += piece.bytes;
        folding.lines = piece.lines;
        if folding.done < fold.bytes {
            return;
        }
        folding.done = 0;
        folding.folds.pop_front();
        folding.pointers.drain(..fold.inputs + fold.outputs);
        if folding.folds.is_empty() {
            folding.task = None;
            self.complete(step, first, end);
        }
    }
}
