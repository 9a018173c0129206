//! Memory that others reach where it lies: the ranks of a host by their mappings, and devices by registration.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use windlass_memory::Location;

use crate::Rank;

/// Where a peer's memory lies in this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// Here.
    At(*const u8),
    /// Its segment has not come yet.
    NotYet,
    /// Nowhere: its segment is smaller.
    Outside,
}

/// Knows which of this rank's memory peers can map, and where theirs is mapped.
///
/// # Safety
/// What [`find`](Self::find) finds is valid for reads, as long as this value lives.
pub unsafe trait Reach: Send + Sync + fmt::Debug {
    /// How peers name this memory, if they can reach it.
    fn lend(&self, memory: &[u8]) -> Option<Location>;

    /// Where `bytes` bytes of a peer's memory lie.
    fn find(&self, peer: Rank, location: Location, bytes: usize) -> Found;
}

/// Memory of which a range can be registered with a device. It is known by its number, never by its address: what is freed and mapped again is
/// another segment, or another generation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SegmentKey {
    /// Which.
    pub segment: u64,
    /// It grows when the segment's memory becomes another.
    pub generation: u32,
}

/// What a device is given.
#[derive(Clone, Debug)]
pub enum Source {
    /// Memory of this process.
    Host {
        /// Where the segment begins.
        base: *const u8,
        /// Its length.
        bytes: usize,
    },
    /// Memory of an accelerator.
    DmaBuf {
        /// Its descriptor.
        descriptor: Arc<OwnedFd>,
        /// Its length.
        bytes: usize,
        /// It stays where it is until it is taken back from the device. Else it is given only to devices that have been seen to cope.
        asks: bool,
    },
}

/// Where some memory lies among what can be registered.
#[derive(Clone, Debug)]
pub struct Registrable {
    /// In which segment.
    pub key: SegmentKey,
    /// Where in it.
    pub offset: usize,
    /// The segment.
    pub source: Source,
}

/// Knows which memory a device may be given.
///
/// # Safety
/// A segment that was named once stays mapped where it was, or its descriptor open, as long as this value lives.
pub unsafe trait Register: Send + Sync + fmt::Debug {
    /// Where these bytes lie, if they can be registered. The pointer is not read: it may name memory that has no address.
    fn find(&self, memory: *const u8, bytes: usize) -> Option<Registrable>;

    /// Whether this is memory that the processor does not touch: what a device cannot reach of it is read and written by the calls below.
    fn is_foreign(&self, _memory: *const u8) -> bool {
        false
    }

    /// Whether foreign memory can be read now: it is neither on its way to another place nor lost.
    fn is_here(&self, _memory: *const u8) -> bool {
        false
    }

    /// Copies foreign memory to the host. False while it is on its way to another place, or lost; then nothing is promised of `to`.
    fn load(&self, _from: *const u8, _to: &mut [u8]) -> bool {
        false
    }

    /// Copies to foreign memory. While that is on its way the bytes are kept for it.
    fn store(&self, _to: *mut u8, _from: &[u8]) {}
}
