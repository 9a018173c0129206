//! Host memory that stands in for device memory where a schedule cannot reach that: over messages, in slots, and with peers that have no
//! accelerator.
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
use super::plan::Plan;
use super::scratch::Line;

/// A piece of device memory, and where it is on the host meanwhile.
#[derive(Clone, Copy, Debug)]
struct Piece {
    slot: u32,
    offset: u64,
    /// In the shadow.
    at: usize,
    bytes: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shadow {
    memory: Vec<Line>,
    input: Option<Piece>,
    output: Option<Piece>,
}

impl Shadow {
    /// The shadow of a call that needs one, and the memory that the schedule is to use.
    pub(super) fn of(plan: &Plan, input: *mut u8, output: *mut u8) -> Option<(Self, *mut u8, *mut u8)> {
        let (from, to) = (address::decode(input), address::decode(output));
        if from.is_none() && to.is_none() {
            return None;
        }
        let lines = |bytes: usize| bytes.div_ceil(size_of::<Line>());
        let (first, second) = (lines(plan.checked.input), lines(plan.checked.output));
        let mut memory = vec![Line([0; size_of::<Line>()]); first + second];
        let base: *mut u8 = memory.as_mut_ptr().cast();
        let piece =
            |(slot, offset), at: usize, bytes| Piece { slot, offset, at: at * size_of::<Line>(), bytes };
        let source = from.map(|place| piece(place, 0, plan.checked.input));
        // In place stays in place.
        let beside = if input == output { 0 } else { first };
        let target = to.map(|place| piece(place, beside, plan.checked.output));
        let within = |piece: &Option<Piece>, own| piece.map_or(own, |piece| base.wrapping_add(piece.at));
        let addresses = (within(&source, input), within(&target, output));
        Some((Self { memory, input: source, output: target }, addresses.0, addresses.1))
    }

    /// The device memory that has yet to be read or stored.
    pub(super) fn slots(&self) -> impl Iterator<Item = u32> {
        self.input.iter().chain(&self.output).map(|piece| piece.slot)
    }

    fn at(&mut self, piece: Piece) -> &mut [u8] {
        // SAFETY: the memory is lines of bytes, and the piece lies in it.
        let all = unsafe {
            std::slice::from_raw_parts_mut(
                self.memory.as_mut_ptr().cast::<u8>(),
                size_of_val(&self.memory[..]),
            )
        };
        &mut all[piece.at..piece.at + piece.bytes]
    }
}

impl Stream {
    /// Copies the operand from the device, unless that is done. False when its memory is on its way.
    pub(super) fn enter_shadow(&mut self, group: &Group) -> Result<bool, Error> {
        let Some(shadow) = &mut self.shadow else { return Ok(true) };
        let Some(mut left) = shadow.input else { return Ok(true) };
        let Some(attached) = group.job.attached.get().map(Arc::clone) else { return Ok(true) };
        let read = |operand, piece| attached.accelerator.read(operand, shadow.at(piece));
        let entered = copy(&attached, &mut left, read)?;
        shadow.input = (!entered).then_some(left);
        Ok(entered)
    }

    /// Copies the result to the device. False when its memory is on its way.
    pub(super) fn leave_shadow(&mut self, group: &Group) -> Result<bool, Error> {
        let Some(shadow) = &mut self.shadow else { return Ok(true) };
        let Some(attached) = group.job.attached.get().map(Arc::clone) else { return Ok(true) };
        if let Some(mut left) = shadow.output {
            let write = |operand, piece| attached.accelerator.write(operand, shadow.at(piece));
            if !copy(&attached, &mut left, write)? {
                shadow.output = Some(left);
                return Ok(false);
            }
        }
        self.shadow = None;
        Ok(true)
    }
}

/// Copies what is left, piece by piece, while the memory stays. False when it did not.
fn copy(
    attached: &Attached,
    left: &mut Piece,
    mut f: impl FnMut(Operand, Piece) -> Result<(), AcceleratorError>,
) -> Result<bool, Error> {
    let name = RegionName { owner: attached.rank(), segment: attached.regions().segment(left.slot) };
    let mut holds: Vec<Hold> = Vec::new();
    while left.bytes > 0 {
        if !attached.regions().hold(std::iter::once((name, u32::MAX)), &mut holds)? {
            return Ok(false);
        }
        let piece = Piece { bytes: left.bytes.min(PIECE_BYTES), ..*left };
        let outcome = holds[0].operand(piece.offset).map_or(Ok(()), |operand| f(operand, piece));
        let gone = outcome.as_ref().err().and_then(gone);
        attached.regions().give_back(&mut holds, gone);
        match outcome {
            Ok(()) => {
                left.offset += piece.bytes as u64;
                left.at += piece.bytes;
                left.bytes -= piece.bytes;
            }
            Err(_) if gone.is_some() => return Ok(false),
            Err(error) => return Err(refused(&error)),
        }
    }
    Ok(true)
}
