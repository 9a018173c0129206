//! Ranks of one process over shared memory.

use std::sync::Arc;

use windlass_memory::Location;
use windlass_transports::link::Limits;
use windlass_transports::reach::{Found, Reach};
use windlass_transports::shm::{Board, Lanes, Shape};
use windlass_transports::{Rank, Transport};

/// Ranks that are one process: every one of them reaches everything.
#[derive(Debug)]
struct OneProcess;

// SAFETY: the memory of an operation of the suite lives as long as the transports do.
unsafe impl Reach for OneProcess {
    fn lend(&self, memory: &[u8]) -> Option<Location> {
        Some(Location { segment: 7, generation: 3, offset: memory.as_ptr().expose_provenance() as u64 })
    }

    fn find(&self, _: Rank, location: Location, _: usize) -> Found {
        assert_eq!((location.segment, location.generation), (7, 3));
        Found::At(std::ptr::with_exposed_provenance(location.offset as usize))
    }
}

/// Transports over the lanes of a board. Where `lends`, each reads the others' large messages where they lie.
pub(crate) fn lanes(ranks: usize, limits: Limits, lends: bool) -> Vec<Box<dyn Transport>> {
    let shape = Shape { ranks: ranks as u64, slot_bytes: 64, stage_bytes: 64, lanes: 1, note_bytes: 0 };
    let reach = lends.then(|| Arc::new(OneProcess) as Arc<dyn Reach>);
    let segment = Board::create(shape).expect("memory");
    let board = || Arc::new(Board::open(segment.descriptor()).expect("memory"));
    (0..ranks as u32)
        .map(|rank| Box::new(Lanes::with_limits(rank, board(), reach.clone(), limits)) as Box<dyn Transport>)
        .collect()
}
