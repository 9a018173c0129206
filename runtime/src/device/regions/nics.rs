//! What NICs are given of this rank's memory, and how it is taken back.

use std::sync::Arc;

use windlass_memory::accelerator::{DeviceRange, Status};
use windlass_transports::reach::{Registrable, SegmentKey, Source};

use super::Regions;
use crate::error::Error;
use crate::scheduler::{RegionName, table};

/// Segments of the host's memory have the numbers below.
const DEVICE: u64 = 1 << 32;

/// What NICs know a segment by.
pub(crate) const fn key(segment: u32) -> u64 {
    DEVICE | segment as u64
}

impl Regions {
    /// What a NIC registers to reach these bytes of the memory in a slot; none while that may not be touched, or cannot be exported.
    pub(crate) fn registrable(&mut self, slot: u32, offset: u64, bytes: usize) -> Option<Registrable> {
        let segment = self.segment(slot);
        let own = self.own.get_mut(&segment)?;
        let inside = offset.checked_add(bytes as u64).is_some_and(|end| end <= own.bytes);
        if own.machine.state() != table::owner::State::Active || !inside {
            return None;
        }
        if own.given.as_ref().is_none_or(|(_, exported)| exported.generation != own.place) {
            let range =
                DeviceRange { region: own.memory, generation: own.place, offset: 0, bytes: own.bytes };
            let export = self.accelerator.export(range).ok()?;
            own.given = Some((Arc::new(export.descriptor), export.exported));
        }
        let (descriptor, exported) = own.given.as_ref()?;
        let (first, length) = exported.pages();
        let source = Source::DmaBuf {
            descriptor: Arc::clone(descriptor),
            bytes: (first + length) as usize,
            asks: own.asks,
        };
        let key = SegmentKey { segment: key(segment), generation: own.place };
        Some(Registrable { key, offset: (exported.offset + offset) as usize, source })
    }

    /// Whether the memory in a slot is in its place.
    pub(crate) fn is_here(&self, slot: u32) -> bool {
        let own = self.own.get(&self.segment(slot));
        own.is_some_and(|own| own.machine.state() == table::owner::State::Active)
    }

    /// The segments that NICs are to give back, with the slots of each.
    pub(crate) fn take_wanted(&mut self) -> Vec<(u32, Vec<u32>)> {
        let wanted = std::mem::take(&mut self.wanted);
        wanted.into_iter().map(|segment| (segment, self.slots(segment))).collect()
    }

    /// No NIC touches the segment any more.
    pub(crate) fn released(&mut self, segment: u32) {
        let now = self.now();
        if let Some(own) = self.own.get_mut(&segment) {
            own.given = None;
            own.machine.handle_deregistered(now);
        }
        self.act(segment);
    }

    /// A NIC does not reach a segment any more. Unless its accelerator knows, and has said so or will, nobody brings it back.
    pub(crate) fn vanished(&mut self, key: SegmentKey) {
        use windlass_memory::accelerator::{Condition, Contents, Notice as Said};
        self.turn();
        let segment = (key.segment & (DEVICE - 1)) as u32;
        let Some(own) = self.own.get(&segment) else { return };
        let (region, generation) = (own.memory, own.place);
        if generation != key.generation || own.machine.state() != table::owner::State::Active {
            return;
        }
        let unaware =
            |status: Status| status.generation == generation && matches!(status.condition, Condition::Active);
        if self.accelerator.status(region).is_ok_and(unaware) {
            let (next, contents) = (generation.saturating_add(1), Contents::Lost);
            self.heed(segment, Said::Revoked { region, generation });
            self.heed(segment, Said::Replaced { region, generation: next, contents });
        }
    }

    /// Why the memory in a slot will never be usable again, if so.
    pub(crate) fn lost_in(&self, slot: u32) -> Option<Error> {
        self.lost(RegionName { owner: self.rank, segment: self.segment(slot) })
    }
}
