//! Host memory that stands in for device memory where a schedule cannot reach that: over messages, in slots, and with peers that have no
//! accelerator; and for lists where a schedule needs them in one piece.
//!
//! The operand is copied to the host before the schedule begins and the result back after it has ended, so the device's memory may
//! move in between. Both copies are made in pieces, and a piece again when the memory moves under it.

use windlass_collectives::{Algorithm, Collective};
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

/// A run of a device's memory, and where it is in the host's meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) slot: u32,
    pub(crate) offset: u64,
    pub(crate) at: usize,
    pub(crate) bytes: usize,
}

/// A piece of an operand.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Device(Run),
    /// Of the host's, which a list brings along.
    Host {
        memory: *mut u8,
        at: usize,
        bytes: usize,
    },
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
                Some(match address::decode(base) {
                    Some((slot, offset)) => Piece::Device(Run { slot, offset, at, bytes }),
                    None => Piece::Host { memory: base, at, bytes },
                })
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
        self.input.iter().chain(&self.output).filter_map(|piece| match piece {
            Piece::Device(run) => Some(run.slot),
            Piece::Host { .. } => None,
        })
    }

    fn at(&mut self, at: usize, bytes: usize) -> &mut [u8] {
        &mut bytes_of(&mut self.memory)[at..at + bytes]
    }
}

/// Lines as bytes.
pub(crate) fn bytes_of(memory: &mut [Line]) -> &mut [u8] {
    // SAFETY: lines are bytes.
    unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u8>(), size_of_val(memory)) }
}

impl Stream {
    /// The memory that the schedule uses: the caller's, or what stands in for device memory that it cannot reach.
    #[inline]
    pub(super) fn on_host(
        &mut self,
        group: &Group,
        plan: &Plan,
        input: *mut u8,
        output: *mut u8,
    ) -> (*mut u8, *mut u8) {
        (self.devices, self.by_messages) = (false, false);
        let on_device = |address: *mut u8| address::decode(address).is_some();
        if !on_device(input) && !on_device(output) && !self.lists.in_use {
            return (input, output);
        }
        let reachable = plan.choice.algorithm == Algorithm::Direct && group.ranks > 1 && group.uses_devices();
        self.devices = reachable
            && plan.operator.is_none()
            && match plan.call.collective {
                Collective::AllReduce => on_device(input) && on_device(output),
                // What an engine has added is read into memory in one piece.
                Collective::ReduceScatter => on_device(input) && !is_list(output),
                _ => false,
            };
        let used = |bytes: usize, address| bytes == 0 || on_device(address);
        self.by_messages = !plan.choice.algorithm.needs_mapped_peers()
            && group.ranks > 1
            && plan.operator.is_none()
            && (!plan.call.collective.reduces()
                || (group.job.config.adds_on_device || group.job.reaches_devices))
            && used(plan.checked.input, input)
            && used(plan.checked.output, output)
            && (on_device(input) || on_device(output))
            && self.scratch.reserve_on_device(group, plan.scratch);
        self.devices |= self.by_messages;
        if self.devices {
            return (input, output);
        }
        let reaches = Self::reaches_pieces(group, plan);
        match Shadow::of(plan, &self.lists, reaches, (input, output), &mut self.spare_shadow) {
            Some((shadow, input, output)) => {
                self.shadow = Some(shadow);
                self.lists.in_use = is_list(input) || is_list(output);
                (input, output)
            }
            None => (input, output),
        }
    }

    /// Copies the operand to the shadow, unless that is done. False when device memory is on its way.
    pub(super) fn enter_shadow(&mut self, group: &Group) -> Result<bool, Error> {
        let Some(shadow) = &mut self.shadow else { return Ok(true) };
        while let Some(mut piece) = shadow.input.pop() {
            let entered = match &mut piece {
                Piece::Host { memory, at, bytes } => {
                    bind::copy(*memory, shadow.at(*at, *bytes).as_mut_ptr(), *bytes);
                    true
                }
                Piece::Device(run) => {
                    let Some(attached) = group.job.attached.get() else { return Ok(true) };
                    let read = |from, at, bytes| attached.accelerator.read(from, shadow.at(at, bytes));
                    copy(attached, run, read)?
                }
            };
            if !entered {
                shadow.input.push(piece);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Copies the result back. False when device memory is on its way.
    pub(super) fn leave_shadow(&mut self, group: &Group) -> Result<bool, Error> {
        let Some(shadow) = &mut self.shadow else { return Ok(true) };
        while let Some(mut piece) = shadow.output.pop() {
            let left = match &mut piece {
                Piece::Host { memory, at, bytes } => {
                    bind::copy(shadow.at(*at, *bytes).as_ptr(), *memory, *bytes);
                    true
                }
                Piece::Device(run) => {
                    let Some(attached) = group.job.attached.get() else { return Ok(true) };
                    let write = |to, at, bytes| attached.accelerator.write(to, shadow.at(at, bytes));
                    copy(attached, run, write)?
                }
            };
            if !left {
                shadow.output.push(piece);
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

/// Copies what is left of a run, part by part, while the memory stays: `f` is given a part's operand, and where it is in the host's memory. False when
/// the memory did not stay.
pub(crate) fn copy(
    attached: &Attached,
    left: &mut Run,
    mut f: impl FnMut(Operand, usize, usize) -> Result<(), AcceleratorError>,
) -> Result<bool, Error> {
    let name = RegionName { owner: attached.rank(), segment: attached.regions().segment(left.slot) };
    let mut holds: Vec<Hold> = Vec::new();
    while left.bytes > 0 {
        if !attached.regions().hold(std::iter::once((name, u32::MAX)), &mut holds)? {
            return Ok(false);
        }
        let bytes = left.bytes.min(PIECE_BYTES);
        let outcome = holds[0].operand(left.offset).map_or(Ok(()), |operand| f(operand, left.at, bytes));
        let gone = outcome.as_ref().err().and_then(gone);
        attached.regions().give_back(&mut holds, gone);
        match outcome {
            Ok(()) => {
                left.offset += bytes as u64;
                left.at += bytes;
                left.bytes -= bytes;
            }
            Err(_) if gone.is_some() => return Ok(false),
            Err(error) => return Err(refused(&error)),
        }
    }
    Ok(true)
}
