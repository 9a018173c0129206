//! Where blocks lie in a rank's memory, told to peers that do not know how long its other blocks are: the block boundaries, in the slot
//! that a schedule without published operands leaves free.
//!
//! A rank writes its boundaries before it signals its arrival, and not again before every peer has ended the operation; a peer
//! reads two of them after that signal. So the order that holds for a published operand holds for them.

use windlass_collectives::{Call, Collective, Fingerprint, Role};
use windlass_transports::shm::Board;

use crate::error::Error;
use crate::group::Group;

use super::{Active, Stream};

/// The boundary before block `block`, in the slot of `rank`.
fn boundary(board: &Board, rank: u32, sequence: u64, block: u32) -> *mut u64 {
    // Algorithms are chosen such that a slot holds one boundary more than there are ranks.
    debug_assert!(8 * (u64::from(block) + 1) <= board.shape().slot_bytes);
    board.slot(rank as usize, sequence).as_ptr().cast::<u64>().wrapping_add(block as usize)
}

/// Tells the peers where the blocks of this rank's operand lie. Before its arrival.
pub(super) fn tell(group: &Group, board: &Board, active: &Active) {
    let layout = &active.plan.geometry.layout;
    let blocks = match active.plan.call.collective {
        // A leaf has its own block only.
        Collective::GatherV => group.rank..group.rank + 2,
        _ => 0..group.ranks + 1,
    };
    for block in blocks {
        let at = boundary(board, group.rank, active.sequence, block);
        // SAFETY: inside this rank's slot, which is page-aligned; no peer reads the slot until this rank's arrival is signalled, and all
        // have ended the operation that last used it.
        unsafe { at.write(layout.start(block)) };
    }
}

impl Stream {
    /// Where the block that rank `q` lends this rank begins in `q`'s operand, and where it ends. After `q`'s arrival.
    ///
    /// # Errors
    /// When that is not as long as what this rank expects.
    pub(super) fn place_of_block(
        group: &Group,
        active: &Active,
        board: &Board,
        q: u32,
    ) -> Result<(u64, u64), Error> {
        let call = &active.plan.call;
        // The number that the block has in `q`'s operand, and in this rank's result.
        let (block, into) = match call.collective {
            Collective::GatherV => (q, q),
            Collective::AllToAllV => (group.rank, q),
            _ => (group.rank, group.rank),
        };
        let [begin, end] = [block, block + 1].map(|block| {
            let at = boundary(board, q, active.sequence, block);
            // SAFETY: inside the slot of `q`, page-aligned; `q` has written it before its arrival, which has been seen, and leaves it as it
            // is until this rank has ended the operation.
            unsafe { at.read() }
        });
        let expected = active.plan.geometry.block_piece(Role::Output, into, 0, u32::MAX).bytes;
        if end.checked_sub(begin) == Some(expected) {
            return Ok((begin, end));
        }
        let of = |bytes: u64| {
            let count = bytes / call.data_type.size_bytes() as u64;
            Call { count, ..*call }.fingerprint()
        };
        let (ours, theirs): (Fingerprint, Fingerprint) = (of(expected), of(end.wrapping_sub(begin)));
        Err(Error::Mismatch {
            communicator: group.id,
            sequence: active.sequence,
            ours,
            theirs,
            rank: group.members[q as usize],
        })
    }
}
