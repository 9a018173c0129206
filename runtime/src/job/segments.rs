//! The shared memory of a job's ranks: this rank's own, and where the others' is mapped.

use std::sync::{Arc, PoisonError, RwLock};

use windlass_memory::{Location, Mapping, Pool};
use windlass_transports::Rank;
use windlass_transports::reach::{Found, Reach, Register, Registrable, SegmentKey, Source};

/// By rank and by the owner's number. What is mapped stays mapped.
type Mapped = Vec<Vec<Option<Arc<Mapping>>>>;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Segments {
    pool: Arc<Pool>,
    peers: RwLock<Mapped>,
}

impl Segments {
    pub(crate) fn new(ranks: u32, pool: Arc<Pool>) -> Self {
        Self { pool, peers: RwLock::new(vec![Vec::new(); ranks as usize]) }
    }

    pub(crate) const fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// A peer's segment has come.
    pub(crate) fn insert(&self, rank: u32, number: u32, mapping: Mapping) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let Some(segments) = peers.get_mut(rank as usize) else { return };
        if segments.len() <= number as usize {
            segments.resize(number as usize + 1, None);
        }
        segments[number as usize].get_or_insert_with(|| Arc::new(mapping));
    }

    /// A peer's segment, once its descriptor has come.
    pub(crate) fn of(&self, rank: u32, number: u32) -> Option<Arc<Mapping>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(rank as usize)?.get(number as usize)?.clone()
    }
}

// SAFETY: what is found lies in a mapping (compared here) that stays in the table, and so mapped, as long as the table lives.
unsafe impl Reach for Segments {
    fn lend(&self, memory: &[u8]) -> Option<Location> {
        self.pool.locate(memory.as_ptr(), memory.len()).map(|(_, location)| location)
    }

    fn find(&self, peer: Rank, location: Location, bytes: usize) -> Found {
        let Some(mapping) = self.of(peer, location.segment) else { return Found::NotYet };
        match usize::try_from(location.offset) {
            Ok(offset) if offset <= mapping.len() && bytes <= mapping.len() - offset => {
                Found::At(mapping.base().as_ptr().wrapping_add(offset))
            }
            _ => Found::Outside,
        }
    }
}

// SAFETY: the pool keeps its segments, and so their mappings, as long as it lives.
unsafe impl Register for Segments {
    fn find(&self, memory: *const u8, bytes: usize) -> Option<Registrable> {
        let (segment, location) = self.pool.locate(memory, bytes)?;
        let key = SegmentKey { segment: u64::from(location.segment), generation: location.generation };
        let mapping = segment.mapping();
        let source = Source::Host { base: mapping.base().as_ptr(), bytes: mapping.len() };
        Some(Registrable { key, offset: usize::try_from(location.offset).ok()?, source })
    }
}
