//! Private memory for what messages bring and for partial sums: the host's, or the device's where an engine adds.

use windlass_collectives::Role;

use crate::device::{address, regions::Purpose};
use crate::group::Group;

/// Private scratch rings, cache-line aligned.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    lines: Vec<Line>,
    /// Where the memory for partial sums begins, behind the rings.
    partial_at: usize,
    /// Of the device's memory: its segment, slot and bytes.
    device: Option<(u32, u32, u64)>,
    /// The operation under way has its scratch there.
    on_device: bool,
}

/// A cache line, as which private memory is allocated.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Scratch {
    pub(super) fn reserve(&mut self, (rings, partial): (u64, u64)) {
        self.on_device = false;
        let lines = usize::try_from(rings.div_ceil(64) + partial.div_ceil(64)).unwrap_or(usize::MAX);
        self.partial_at = rings.next_multiple_of(64) as usize;
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
    }

    /// The same in the device's memory. False when that has no room for it.
    pub(super) fn reserve_on_device(&mut self, group: &Group, (rings, partial): (u64, u64)) -> bool {
        let partial_at = rings.next_multiple_of(64);
        let bytes = partial_at + partial;
        let Some(attached) = group.job.attached.get() else { return false };
        if bytes > 0 && self.device.is_none_or(|(.., has)| has < bytes) {
            self.close(group);
            let mut regions = attached.regions();
            let Ok(segment) = regions.allocate(bytes, Purpose::Scratch) else { return false };
            let Some(slot) = regions.address(segment, 0) else {
                regions.free(segment);
                return false;
            };
            self.device = Some((segment, slot, bytes));
        }
        (self.on_device, self.partial_at) = (true, partial_at as usize);
        true
    }

    /// Nothing uses it any more.
    pub(super) fn close(&mut self, group: &Group) {
        if let (Some((segment, slot, _)), Some(attached)) = (self.device.take(), group.job.attached.get()) {
            let mut regions = attached.regions();
            regions.forget(slot);
            regions.free(segment);
        }
    }

    /// Where a private role's memory begins.
    pub(crate) fn base(&mut self, role: Role) -> *mut u8 {
        let base = match self.device {
            Some((_, slot, _)) if self.on_device => address::encode(slot, 0),
            _ => self.lines.as_mut_ptr().cast(),
        };
        if matches!(role, Role::Partial(_)) { base.wrapping_add(self.partial_at) } else { base }
    }
}
