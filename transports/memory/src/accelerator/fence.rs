//! Fences: one says when work may start, another that it has ended.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::accelerator::AcceleratorError;

/// How work ended.
pub type Outcome = Result<(), AcceleratorError>;

/// A point that work reaches once: pending, then done with an outcome that never changes.
///
/// Clones are the same fence. Asking is one atomic load, never blocks, and may be done from any thread; who sees a fence done
/// sees the stores that came before it. An accelerator signals the fences it returns; who makes a fence by [`Fence::new`]
/// to start work with signals it.
#[derive(Clone, Default)]
pub struct Fence(Arc<OnceLock<Outcome>>);

impl Fence {
    /// A pending fence.
    pub fn new() -> Self {
        Self::default()
    }

    /// A fence that is done.
    pub fn done(outcome: Outcome) -> Self {
        let fence = Self::new();
        fence.signal(outcome);
        fence
    }

    /// Whether the outcome is known.
    pub fn is_done(&self) -> bool {
        self.0.get().is_some()
    }

    /// The outcome, once it is known.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.0.get()
    }

    /// Ends it. Only the first outcome counts.
    pub fn signal(&self, outcome: Outcome) {
        let _ = self.0.set(outcome);
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome() {
            None => f.write_str("Fence(pending)"),
            Some(outcome) => write!(f, "Fence({outcome:?})"),
        }
    }
}
