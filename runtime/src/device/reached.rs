//! This rank's memory as a transport's devices reach it: the host's by its segment, an accelerator's by its descriptor, while it stays in its place.
//!
//! A NIC holds no lease. It is given a region's descriptor while the region is active, and before its owner answers that nobody touches it any more, the
//! transport [releases](windlass_transports::Transport::release) it. What was under way then goes on by way of the host: read and written piece by
//! piece under leases, as everything that no NIC can register. What arrives for memory that is on its way is kept until it is back.
//!
//! Called by the transport, under its lock; takes the regions' lock for moments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use windlass_transports::reach::{Register, Registrable};

use super::{Attached, address};
use crate::engine::shadow::{self, Run};
use crate::error::Error;
use crate::group::lock;
use crate::job::segments::Segments;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Reached {
    segments: Arc<Segments>,
    attached: OnceLock<Weak<Attached>>,
    /// Bytes for memory that is on its way.
    kept: Mutex<Vec<(Run, Vec<u8>)>>,
    keeps: AtomicBool,
}

impl Reached {
    pub(crate) fn new(segments: Arc<Segments>) -> Self {
        Self { segments, attached: OnceLock::new(), kept: Mutex::default(), keeps: AtomicBool::new(false) }
    }

    pub(crate) const fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    /// The rank has an accelerator.
    pub(crate) fn attach(&self, attached: &Arc<Attached>) {
        // There is one for good: the first.
        let _ = self.attached.set(Arc::downgrade(attached));
    }

    fn attached(&self) -> Option<Arc<Attached>> {
        self.attached.get()?.upgrade()
    }

    /// Stores what was kept for the memory in a slot. False while that is on its way still.
    pub(crate) fn settle(&self, slot: u32) -> Result<bool, Error> {
        if !self.keeps.load(Ordering::Acquire) {
            return Ok(true);
        }
        let Some(attached) = self.attached() else { return Ok(true) };
        let mut kept = lock(&self.kept);
        let mut settled: Result<bool, Error> = Ok(true);
        kept.retain_mut(|(run, bytes)| {
            if run.slot != slot || !matches!(settled, Ok(true)) {
                return true;
            }
            settled = store(&attached, run, bytes);
            run.bytes > 0
        });
        self.keeps.store(!kept.is_empty(), Ordering::Release);
        settled
    }

    /// Nothing that was kept for this memory is wanted any more. What was kept for the rest of its slot is.
    pub(crate) fn forget(&self, memory: &Run) {
        if self.keeps.load(Ordering::Acquire) {
            let all = memory.offset..memory.offset + memory.bytes as u64;
            lock(&self.kept).retain(|(run, _)| run.slot != memory.slot || !all.contains(&run.offset));
        }
    }
}

fn store(attached: &Attached, run: &mut Run, bytes: &[u8]) -> Result<bool, Error> {
    shadow::copy(attached, run, |to, at, count| attached.accelerator.write(to, &bytes[at..at + count]))
}

// SAFETY: the pool of the segments keeps their mappings as long as it lives, and a descriptor that was given is kept by whoever was given it.
unsafe impl Register for Reached {
    fn find(&self, memory: *const u8, bytes: usize) -> Option<Registrable> {
        match address::decode(memory) {
            None => self.segments.find(memory, bytes),
            Some((slot, offset)) => self.attached()?.regions().registrable(slot, offset, bytes),
        }
    }

    fn is_foreign(&self, memory: *const u8) -> bool {
        address::is_device(memory)
    }

    fn is_here(&self, memory: *const u8) -> bool {
        let (Some((slot, _)), Some(attached)) = (address::decode(memory), self.attached()) else {
            return false;
        };
        attached.regions().is_here(slot)
    }

    fn load(&self, from: *const u8, to: &mut [u8]) -> bool {
        let (Some((slot, offset)), Some(attached)) = (address::decode(from), self.attached()) else {
            return false;
        };
        let mut run = Run { slot, offset, at: 0, bytes: to.len() };
        let read = |from, at, count| attached.accelerator.read(from, &mut to[at..at + count]);
        matches!(shadow::copy(&attached, &mut run, read), Ok(true))
    }

    fn store(&self, to: *mut u8, from: &[u8]) {
        let (Some((slot, offset)), Some(attached)) = (address::decode(to), self.attached()) else { return };
        let mut run = Run { slot, offset, at: 0, bytes: from.len() };
        // What is kept came before it, and may be for the same bytes: half a message whose sender has withdrawn. If the memory is lost, whoever waits
        // for the message finds that out.
        let is_first = matches!(self.settle(slot), Ok(true));
        if !is_first || !matches!(store(&attached, &mut run, from), Ok(true)) {
            let rest = from[run.at..].to_vec();
            lock(&self.kept).push((Run { at: 0, ..run }, rest));
            self.keeps.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use windlass_memory::Pool;

    use super::*;

    #[test]
    fn a_withdrawn_receive_takes_nothing_from_others_of_its_memory() {
        let pool = Arc::new(Pool::new(Box::new(|_| Ok(()))));
        let reached = Reached::new(Arc::new(Segments::new(1, pool)));
        for (slot, offset) in [(1, 0), (1, 100), (1, 199), (1, 200), (2, 100)] {
            lock(&reached.kept).push((Run { slot, offset, at: 0, bytes: 1 }, vec![7]));
        }
        reached.keeps.store(true, Ordering::Release);
        reached.forget(&Run { slot: 1, offset: 100, at: 0, bytes: 100 });
        let left: Vec<_> = lock(&reached.kept).iter().map(|(run, _)| (run.slot, run.offset)).collect();
        assert_eq!(left, [(1, 0), (1, 200), (2, 100)]);
    }
}
