//! Private memory for what messages bring and for partial sums: the host's, or the device's where an engine adds. The host's is registered where a
//! transport's devices write into such memory; else what messages bring would be copied once more.

use windlass_collectives::Role;
use windlass_memory::Allocation;

use crate::device::{address, regions::Purpose};
use crate::group::Group;

/// Private scratch rings, cache-line aligned.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    lines: Vec<Line>,
    /// In the place of those.
    registered: Option<Allocation>,
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
    pub(super) fn reserve(&mut self, group: &Group, (rings, partial): (u64, u64)) {
        self.on_device = false;
        let lines = usize::try_from(rings.div_ceil(64) + partial.div_ceil(64)).unwrap_or(usize::MAX);
        self.partial_at = rings.next_multiple_of(64) as usize;
        let registered = self.registered.as_ref().map_or(0, |memory| memory.len() / size_of::<Line>());
        if lines <= self.lines.len().max(registered) {
            return;
        }
        if group.job.reaches_memory {
            // Where there is no room for it, what is not registered does as well.
            self.registered = group.job.pool.allocate(lines.saturating_mul(size_of::<Line>())).ok();
        }
        if self.registered.is_none() {
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
        let base = match (self.device, &self.registered) {
            (Some((_, slot, _)), _) if self.on_device => address::encode(slot, 0),
            (_, Some(memory)) => memory.base().as_ptr(),
            _ => self.lines.as_mut_ptr().cast(),
        };
        if matches!(role, Role::Partial(_)) { base.wrapping_add(self.partial_at) } else { base }
    }
}
