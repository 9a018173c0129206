//! Memory that comes, and goes.

use windlass_memory::accelerator::{self, AcceleratorError};

use super::{FREE_PATIENCE, MOST_SEGMENTS, Own, Purpose, Regions, Return, nanoseconds};
use crate::device::{address, refused};
use crate::error::Error;
use crate::scheduler::{Access, Descriptor, Limits, Notice, Region, RegionName};

impl Regions {
    /// New memory. Its segment.
    pub(crate) fn allocate(&mut self, bytes: u64, purpose: Purpose) -> Result<u32, Error> {
        if self.next_segment == MOST_SEGMENTS || bytes > address::MOST_BYTES {
            return Err(refused(&AcceleratorError::OutOfMemory {
                wanted_bytes: bytes,
                free_bytes: 0,
                reclaiming: false,
            }));
        }
        let memory = self.accelerator.allocate(bytes).map_err(|error| refused(&error))?;
        Ok(self.insert(memory, bytes, purpose, self.accelerator.movement().asks()))
    }

    /// The segment that the accelerator's memory is from now on; `asks`: it moves only after a question.
    pub(crate) fn insert(
        &mut self,
        memory: accelerator::Region,
        bytes: u64,
        purpose: Purpose,
        asks: bool,
    ) -> u32 {
        let segment = self.next_segment;
        self.next_segment += 1;
        let name = RegionName { owner: self.rank, segment };
        let peers = (0..self.ranks).filter(|&peer| peer != self.rank && purpose == Purpose::Lent);
        let peers: Vec<_> = peers.map(|peer| (peer, Access::Mapped)).collect();
        // A mapping cannot be forced, so there is nothing to do when a drain takes long; and an accelerator that took memory has as
        // long to return it as an operation may take.
        let limits = Limits { drain_ns: u64::MAX, return_ns: self.patience() };
        let machine = Region::new(name, Descriptor(0), &peers, limits);
        let own = Own {
            machine,
            memory,
            bytes,
            place: 0,
            heard: 0,
            lent_from: 0,
            asks,
            failure: None,
            paused: None,
            asked: None,
            given: None,
            way: (purpose != Purpose::Scratch).then(Return::default),
        };
        self.own.insert(segment, own);
        self.act(segment);
        segment
    }

    /// The buffer is gone: its memory goes as soon as nobody can touch it.
    pub(crate) fn free(&mut self, segment: u32) {
        let now = self.now();
        let (ticket, deadline_ns) = (self.own_ticket(), now + nanoseconds(FREE_PATIENCE));
        if let Some(own) = self.own.get_mut(&segment) {
            own.machine.handle_notice(Notice::Free { ticket, deadline_ns }, now);
        }
        self.act(segment);
    }

    /// An address for one's own segment; `None` when there are too many buffers at a time.
    pub(crate) fn address(&mut self, segment: u32) -> Option<u32> {
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if free == address::MOST_SLOTS as usize {
            return None;
        }
        if free == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[free] = Some(segment);
        Some(free as u32)
    }

    /// The segment that an address of this rank stands for.
    pub(crate) fn segment(&self, slot: u32) -> u32 {
        self.slots.get(slot as usize).copied().flatten().unwrap_or(u32::MAX)
    }

    /// The address may be given again.
    pub(crate) fn forget(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = None;
        }
    }

    pub(crate) fn memory_of(&self, segment: u32) -> Option<accelerator::Region> {
        self.own.get(&segment).map(|own| own.memory)
    }
}
