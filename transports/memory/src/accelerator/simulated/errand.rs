//! What a device does with whole regions, a piece at a time: it makes memory ready for a move, copies, poisons, and looks at poison.
//!
//! An errand is one piece. It holds what it needs and touches nothing else, so the device's thread runs it without the device's lock: neither
//! its users nor its engine's work wait for a region's copy, at most for a piece of it. One thread runs them all, one after the other; whoever sent it out
//! finds out what has become of the region meanwhile when it comes back.

use std::sync::Arc;

use crate::accelerator::AcceleratorError;
use crate::accelerator::driven::pages::Pages;
use crate::page_bytes;

/// A piece. At least one call of the system for the bytes.
const PIECE_BYTES: u64 = 256 << 10;

#[derive(Clone, Debug)]
pub(in crate::accelerator) enum Errand {
    /// Memory for a region's next generation: a shortage is found before anybody is asked.
    Ready { region: u64, next: Arc<Pages>, at: u64, poison: bool },
    /// The region's bytes to their next place, or poison if there is nothing to copy. What was announced still has its poison, unless somebody
    /// came early.
    Carry { region: u64, old: Option<Arc<Pages>>, next: Arc<Pages>, at: u64, announced: bool },
    /// Poison under whoever comes too late.
    Poison { pages: Arc<Pages>, at: u64 },
    /// Whether somebody came.
    Look { pages: Arc<Pages>, at: u64 },
}

/// How far it came: where the next piece begins, and the first byte that is no poison although it should be.
pub(in crate::accelerator) type Ran = Result<(u64, Option<i64>), AcceleratorError>;

/// Where the pieces of a memory begin: behind the header.
pub(super) fn begin() -> u64 {
    page_bytes() as u64
}

impl Errand {
    pub(super) fn run(&self) -> Ran {
        let (pages, at) = match self {
            Self::Ready { next, at, .. } | Self::Carry { next, at, .. } => (next, *at),
            Self::Poison { pages, at } | Self::Look { pages, at } => (pages, *at),
        };
        let end = pages.length().min(at + PIECE_BYTES);
        let mut touched = None;
        match self {
            Self::Ready { poison, .. } => {
                pages.populate(at, end)?;
                if *poison {
                    pages.poison(at, end)?;
                }
            }
            Self::Carry { old, announced, .. } => {
                pages.populate(at, end)?;
                if *announced {
                    touched = pages.first_touched(at, end);
                }
                match old {
                    Some(old) => old.copy_to(pages, at, end)?,
                    None => pages.poison(at, end)?,
                }
            }
            Self::Poison { .. } => pages.poison(at, end)?,
            Self::Look { .. } => touched = pages.first_touched(at, end),
        }
        Ok((end, touched))
    }
}
