//! Host memory that stands in for device memory where a schedule cannot reach that: over messages, in slots, and with peers that have no
//! accelerator; and for lists where a schedule needs them in one piece.
//!
//! The operand is copied to the host before the schedule begins and the result back after it has ended, so the device's memory may
//! move in between. Both copies are made in pieces, and a piece again when the memory moves under it.

use std::sync::Arc;

use windlass_memory::accelerator::{AcceleratorError, Operand};

use crate::device::regions::Hold;
use crate::device::{Attached, PIECE_BYTES, address, gone, refused};
use crate::error::Error;
use crate::group::Group;
use crate::scheduler::RegionName;

use super::Stream;
use super::bind;
use super::lists::{Lists, is_list};
use super::plan::Plan;
use super::scratch::Line;

/// A stream keeps a shadow of up to this many bytes for its next operation: fresh pages cost as much as the copies.
const KEPT_BYTES: usize = 64 << 20;

/// Where a piece really lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// A slot of the device's, and an offset.
    Device(u32, u64),
    Host(*mut u8),
}

/// A piece of memory, and where it is in the shadow meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) place: Place,
    pub(crate) at: usize,
    pub(crate) bytes: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shadow {
    memory: Vec<Line>,
    /// What is to be copied yet, the first last.
    input: Vec<Piece>,
    output: Vec<Piece>,
}

impl Shadow {
    /// The shadow of a call that needs one, and the memory that the schedule is to use. It may reach the pieces of lists, or not. `spare` is memory
    /// that it takes if it needs any.
    pub(super) fn of(
        plan: &Plan,
        lists: &Lists,
        reaches: bool,
        (input, output): (*mut u8, *mut u8),
        spare: &mut Vec<Line>,
    ) -> Option<(Self, *mut u8, *mut u8)> {
        let on_device = |address: *mut u8| address::decode(address).is_some();
        let needed = |address: *mut u8| {
            on_device(address)
                || is_list(address) && (!reaches || lists.pieces(address).any(|(base, _)| on_device(base)))
        };
        let (from, to) = (needed(input), needed(output));
        if !from && !to {
            return None;
        }
        let lines = |bytes: usize| bytes.div_ceil(size_of::<Line>());
        let (first, second) = (lines(plan.checked.input), lines(plan.checked.output));
        let mut memory = std::mem::take(spare);
        memory.resize(first + second, Line([0; size_of::<Line>()]));
        let base: *mut u8 = memory.as_mut_ptr().cast();
        // In place stays in place.
        let beside = if input == output { 0 } else { first * size_of::<Line>() };
        let pieces = |address: *mut u8, begin: usize, bytes: usize, needed: bool| {
            let whole = (needed && !is_list(address)).then_some((address, bytes as u64));
            let pieces = whole.into_iter().chain(lists.pieces(address).filter(|_| needed));
            let placed = pieces.scan(begin, |end, (base, bytes)| {
                let (at, bytes) = (*end, bytes as usize);
                *end += bytes;
                let place = address::decode(base)
                    .map_or(Place::Host(base), |(slot, offset)| Place::Device(slot, offset));
                Some(Piece { place, at, bytes })
            });
            let mut placed: Vec<_> = placed.collect();
            placed.reverse();
            placed
        };
        let source = pieces(input, 0, plan.checked.input, from);
        let target = pieces(output, beside, plan.checked.output, to);
        let within = |needed, at, own| if needed { base.wrapping_add(at) } else { own };
        let addresses = (within(from, 0, input), within(to, beside, output));
        Some((Self { memory, input: source, output: target }, addresses.0, addresses.1))
    }

    /// The device memory that has yet to be read or stored.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> {
        self.input.iter().chain(&self.output).filter_map(|piece| match piece.place {
            Place::Device(slot, _) => Some(slot),
            Place::Host(_) => None,
        })
    }

    fn at(&mut self, piece: Piece) -> &mut [u8] {
        bytes_of(&mut self.memory, piece)
    }
}

/// The bytes of a piece in the host's memory.
pub(crate) fn bytes_of(memory: &mut [Line], piece: Piece) -> &mut [u8] {
    // SAFETY: the memory is lines of bytes.
    let all =
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), size_of_val(memory)) };
    &mut all[piece.at..piece.at + piece.bytes]
}

impl Stream {
    /// Copies the operand to the shadow, unless that is done. False when device memory is on its way.
    pub(super) fn enter_shadow(&mut self, group: &Group) -> Result<bool, Error> {
        let Some(shadow) = &mut self.shadow else { return Ok(true) };
        while let Some(mut left) = shadow.input.pop() {
            let entered = match left.place {
                Place::Host(from) => {
                    bind::copy(from, shadow.at(left).as_mut_ptr(), left.bytes);
                    true
                }
                Place::Device(..) => {
                    let Some(attached) = group.job.attached.get().map(Arc::clone) else { return Ok(true) };
                    let read = |operand, piece| attached.accelerator.read(operand, shadow.at(piece));
                    copy(&attached, &mut left, read)?
                }
            };
            if !entered {
                shadow.input.push(left);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies the result back. False when device memory is on its way.
    pub(super) fn leave_shadow(&mut self, group: &Group) -> Result<bool, Error> {
        let Some(shadow) = &mut self.shadow else { return Ok(true) };
        while let Some(mut left) = shadow.output.pop() {
            let left_it = match left.place {
                Place::Host(to) => {
                    bind::copy(shadow.at(left).as_ptr(), to, left.bytes);
                    true
                }
                Place::Device(..) => {
                    let Some(attached) = group.job.attached.get().map(Arc::clone) else { return Ok(true) };
                    let write = |operand, piece| attached.accelerator.write(operand, shadow.at(piece));
                    copy(&attached, &mut left, write)?
                }
            };
            if !left_it {
                shadow.output.push(left);
                return Ok(false);
            }
        }
        let memory = self.shadow.take().map_or_else(Vec::new, |shadow| shadow.memory);
        if size_of_val(&memory[..]) <= KEPT_BYTES {
            self.spare_shadow = memory;
        }
        Ok(true)
    }
}

/// Copies what is left of a piece of device memory, part by part, while the memory stays. False when it did not.
pub(crate) fn copy(
    attached: &Attached,
    left: &mut Piece,
    mut f: impl FnMut(Operand, Piece) -> Result<(), AcceleratorError>,
) -> Result<bool, Error> {
    let Place::Device(slot, mut offset) = left.place else { return Ok(true) };
    let name = RegionName { owner: attached.rank(), segment: attached.regions().segment(slot) };
    let mut holds: Vec<Hold> = Vec::new();
    while left.bytes > 0 {
        if !attached.regions().hold(std::iter::once((name, u32::MAX)), &mut holds)? {
            return Ok(false);
        }
        let piece = Piece { bytes: left.bytes.min(PIECE_BYTES), ..*left };
        let outcome = holds[0].operand(offset).map_or(Ok(()), |operand| f(operand, piece));
        let gone = outcome.as_ref().err().and_then(gone);
        attached.regions().give_back(&mut holds, gone);
        match outcome {
            Ok(()) => {
                offset += piece.bytes as u64;
                left.place = Place::Device(slot, offset);
                left.at += piece.bytes;
                left.bytes -= piece.bytes;
            }
            Err(_) if gone.is_some() => return Ok(false),
            Err(error) => return Err(refused(&error)),
        }
    }
    Ok(true)
}
