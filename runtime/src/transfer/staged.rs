//! Messages of device memory go through the host: a chunk that is sent is copied out of it before it is posted, one that has come is
//! copied into it afterwards, each in pieces under leases of their own, so that the memory may move in between. A chunk whose memory is on its way waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use windlass_collectives::Collective;

use super::{Ended, Transfer, Transfers};
use crate::device::{Attached, address};
use crate::engine::scratch::Line;
use crate::engine::shadow::{self, Piece, Place};
use crate::error::Error;
use crate::group::Group;

/// The chunks of a message that are in the host's memory.
#[derive(Debug, Default)]
pub(super) struct Staged {
    chunks: BTreeMap<u32, (Vec<Line>, Piece)>,
    /// The memory of chunks that are done.
    spare: Vec<Vec<Line>>,
}

impl Staged {
    /// Room for a chunk of device memory.
    fn room(&mut self, chunk: u32, slot: u32, offset: u64, bytes: usize) -> *mut u8 {
        let mut memory = self.spare.pop().unwrap_or_default();
        memory.resize(bytes.div_ceil(size_of::<Line>()), Line([0; size_of::<Line>()]));
        let piece = Piece { place: Place::Device(slot, offset), at: 0, bytes };
        let (memory, _) = self.chunks.entry(chunk).insert_entry((memory, piece)).into_mut();
        memory.as_mut_ptr().cast()
    }

    /// Where a chunk lies.
    fn address(&mut self, chunk: u32) -> Option<*mut u8> {
        self.chunks.get_mut(&chunk).map(|(memory, _)| memory.as_mut_ptr().cast())
    }

    /// Copies what is left of a chunk, from the device or to it. False while its memory is on its way.
    fn copy(&mut self, attached: &Attached, chunk: u32, sends: bool) -> Result<bool, Error> {
        let Some((memory, left)) = self.chunks.get_mut(&chunk) else { return Ok(true) };
        shadow::copy(attached, left, |operand, piece| {
            let bytes = shadow::bytes_of(memory, piece);
            if sends {
                attached.accelerator.read(operand, bytes)
            } else {
                attached.accelerator.write(operand, bytes)
            }
        })
    }
}

impl Transfers {
    /// A chunk is to be posted: false if it has to be copied first. `address` becomes where it is posted from or to.
    pub(super) fn stage(
        &mut self,
        group: &Group,
        index: u32,
        chunk: u32,
        address: &mut *mut u8,
        bytes: usize,
    ) -> bool {
        let Some((slot, offset)) = address::decode(*address) else { return true };
        let Some(Some(transfer)) = self.table.get_mut(index as usize) else { return true };
        let staged = transfer.staged.get_or_insert_default();
        *address = staged.room(chunk, slot, offset, bytes);
        if transfer.sends() {
            self.carry_later(group, index, chunk);
            return false;
        }
        true
    }

    /// A chunk has left or come: true if it has to be copied yet.
    pub(super) fn unstage(&mut self, group: &Group, index: u32, chunk: u32) -> bool {
        let Some(Some(transfer)) = self.table.get_mut(index as usize) else { return false };
        let sends = transfer.sends();
        let Some(staged) = &mut transfer.staged else { return false };
        if sends {
            staged.spare.extend(staged.chunks.remove(&chunk).map(|(memory, _)| memory));
            return false;
        }
        let waits = staged.chunks.contains_key(&chunk);
        if waits {
            self.carry_later(group, index, chunk);
        }
        waits
    }

    fn carry_later(&mut self, group: &Group, index: u32, chunk: u32) {
        self.carried.push((index, chunk));
        group.carries.store(true, Ordering::Release);
    }

    /// Copies what can be copied now; posts what is to leave, and ends what has come. Whether anything moved.
    pub(crate) fn carry(&mut self, group: &Group, ended: &mut Vec<Ended>) -> Result<bool, Error> {
        let Some(attached) = group.job.attached.get().map(Arc::clone) else { return Ok(false) };
        let mut moved = false;
        for (index, chunk) in std::mem::take(&mut self.carried) {
            let Some(Some(transfer)) = self.table.get_mut(index as usize) else { continue };
            let sends = transfer.sends();
            let Some(staged) = &mut transfer.staged else { continue };
            if !staged.copy(&attached, chunk, sends)? {
                self.carried.push((index, chunk));
                continue;
            }
            moved = true;
            if sends {
                let Some(address) = staged.address(chunk) else { continue };
                transfer.post(group, index, chunk, address);
            } else {
                staged.spare.extend(staged.chunks.remove(&chunk).map(|(memory, _)| memory));
                ended.extend(self.arrived(group, index, chunk));
            }
        }
        group.carries.store(!self.carried.is_empty(), Ordering::Release);
        Ok(moved)
    }

    /// What a transfer that is forgotten had to have copied.
    pub(super) fn carry_no_more(&mut self, index: u32) {
        self.carried.retain(|(of, _)| *of != index);
    }
}

impl Transfer {
    pub(super) fn sends(&self) -> bool {
        self.request.call.collective == Collective::Send
    }
}
