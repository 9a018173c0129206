//! Memory that comes, and goes.

use windlass_memory::accelerator::{self, AcceleratorError};

use super::{FREE_PATIENCE, MOST_SEGMENTS, Own, Purpose, Regions, Return, nanoseconds};
use crate::device::address::{self, Slot};
use crate::device::refused;
use crate::error::{Error, Problem};
use crate::scheduler::{Access, Descriptor, Limits, Notice, Region, RegionName};

/// What an address stands for.
#[derive(Debug)]
pub(super) struct Named {
    _slot: Slot,
    segment: u32,
    bytes: u64,
    /// Where in what it lies in it begins: elements are aligned there.
    begin: u64,
}

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

    /// An address for one's own segment, which begins at byte `begin` of what it lies in; `None` when there are too many buffers at a time.
    pub(crate) fn address(&mut self, segment: u32, begin: u64) -> Option<u32> {
        let slot = Slot::take()?;
        let number = slot.number();
        let bytes = self.own.get(&segment).map_or(0, |own| own.bytes);
        self.named.insert(number, Named { _slot: slot, segment, bytes, begin });
        Some(number)
    }

    /// The segment that an address of this rank stands for.
    pub(crate) fn segment(&self, slot: u32) -> u32 {
        self.named.get(&slot).map_or(u32::MAX, |named| named.segment)
    }

    /// The slots of a segment.
    pub(super) fn slots(&self, segment: u32) -> Vec<u32> {
        self.named.iter().filter(|(_, named)| named.segment == segment).map(|(slot, _)| *slot).collect()
    }

    /// The address stands for nothing any more.
    pub(crate) fn forget(&mut self, slot: u32) {
        self.named.remove(&slot);
    }

    /// Whether so many bytes from an address on are this rank's, and such elements can lie there.
    pub(crate) fn check(&self, memory: *const u8, bytes: usize, alignment: usize) -> Result<(), Problem> {
        let named = address::decode(memory).and_then(|(slot, offset)| Some((self.named.get(&slot)?, offset)));
        let Some((named, offset)) = named else {
            return Err(Problem::NoDeviceMemory { address: memory.addr() });
        };
        if offset.checked_add(bytes as u64).is_none_or(|end| end > named.bytes) {
            return Err(Problem::BeyondEnd { offset, bytes: bytes as u64, limit: named.bytes });
        }
        let address = (named.begin + offset) as usize;
        if !address.is_multiple_of(alignment) {
            return Err(Problem::Misaligned { address, alignment });
        }
        Ok(())
    }

    pub(crate) fn memory_of(&self, segment: u32) -> Option<accelerator::Region> {
        self.own.get(&segment).map(|own| own.memory)
    }
}
