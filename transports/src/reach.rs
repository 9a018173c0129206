//! Memory that the ranks of a host read where it lies with its owner.

use std::fmt;

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
