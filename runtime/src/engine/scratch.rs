//! Private memory for what messages bring and for partial sums.

use windlass_collectives::Role;

/// Private scratch rings, cache-line aligned.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    lines: Vec<Line>,
    /// Where the memory for partial sums begins, behind the rings.
    partial_at: usize,
}

/// A cache line, as which private memory is allocated.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Scratch {
    pub(super) fn reserve(&mut self, (rings, partial): (u64, u64)) {
        let lines = usize::try_from(rings.div_ceil(64) + partial.div_ceil(64)).unwrap_or(usize::MAX);
        self.partial_at = rings.next_multiple_of(64) as usize;
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
    }

    /// Where a private role's memory begins.
    pub(crate) fn base(&mut self, role: Role) -> *mut u8 {
        let base: *mut u8 = self.lines.as_mut_ptr().cast();
        if matches!(role, Role::Partial(_)) { base.wrapping_add(self.partial_at) } else { base }
    }
}
