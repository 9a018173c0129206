//! A Combine over memory that can move: summed and stored by the accelerator's engine, and done again where it must be.
//!
//! A flight is one task of a schedule, or a part of one. Its sum goes to scratch first and from there to all outputs, as the scheduler's
//! [`Reduction`] says: what it reads is never overwritten before the sum stands, and a store that is done again stores the same. It holds
//! leases on everything it touches while the engine works, and none while it waits for memory to come back, so that a region
//! moves between two of its steps.

use std::sync::Arc;

use windlass_collectives::Task;
use windlass_kernels::{Combine, DataType};
use windlass_memory::accelerator::{AcceleratorError, Fence, Operand, Region, Work};

use crate::device::regions::{Hold, Purpose};
use crate::device::{Attached, PIECE_BYTES, address, gone, refused};
use crate::error::Error;
use crate::group::Group;
use crate::scheduler::{Generation, Reduction, RegionName};

use super::Stream;

/// So many tasks of a stream are under way at a time: while memory of some is on its way, the engine has others. How many it is given
/// at a time, [`Attached::engine_has_room`] says.
const MOST: usize = 4;
/// A task covers about so much of a rank's part.
pub(super) const TASK_BYTES: u64 = PIECE_BYTES as u64;
/// Operands in scratch begin on their own cache lines.
const ALIGNMENT: u64 = 64;

/// Where an operand lies.
#[derive(Clone, Copy, Debug)]
enum At {
    Host(*mut u8),
    Device {
        name: RegionName,
        /// The generation at which it was lent.
        lent: u32,
        offset: u64,
    },
}

#[derive(Debug)]
struct Flight {
    step: u32,
    first: u32,
    end: u32,
    /// The part of the vector that this rank reduces.
    block: u32,
    inputs: Vec<At>,
    outputs: Vec<At>,
    bytes: usize,
    divisor: u64,
    /// It is no sum of the plan's, but a copy.
    copies: bool,
    /// Its place in the scratch, once there is one.
    slot: Option<usize>,
    /// Its single chunk is this task.
    reduction: Reduction,
    holds: Vec<Hold>,
    /// What the engine is doing for it, and whether that is the commit.
    work: Option<(Fence, bool)>,
}

/// The flights of one stream, and their scratch on the device.
#[derive(Debug, Default)]
pub(super) struct Flights {
    /// What is being bound: step, first chunk, end.
    pub(super) task: (u32, u32, u32),
    flights: Vec<Flight>,
    scratch: Option<Scratch>,
    /// Somebody has taken flights on who does not wait for the operation.
    pub(super) taken_on: bool,
}

#[derive(Clone, Copy, Debug)]
struct Scratch {
    segment: u32,
    /// Of the sum, and of each operand that has to come from the host.
    operand_bytes: u64,
    operands: u64,
}

impl Scratch {
    fn slot_bytes(&self) -> u64 {
        self.operand_bytes * self.operands
    }

    fn sum(&self, slot: usize) -> u64 {
        slot as u64 * self.slot_bytes()
    }

    fn operand(&self, slot: usize, index: usize) -> u64 {
        self.sum(slot) + (1 + index as u64) * self.operand_bytes
    }
}

impl Flights {
    /// Whether another task may be taken.
    pub(super) const fn has_room(&self) -> bool {
        self.flights.len() < MOST
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// The memory that they touch, of those that the engine has nothing to do for now.
    pub(super) fn awaited(&self) -> impl Iterator<Item = RegionName> {
        let waiting = self.flights.iter().filter(|flight| flight.work.is_none());
        waiting.flat_map(|flight| flight.inputs.iter().chain(&flight.outputs)).filter_map(|at| match at {
            At::Device { name, .. } => Some(*name),
            At::Host(_) => None,
        })
    }

    /// The communicator is gone: nothing uses its scratch any more.
    pub(super) fn close(&mut self, group: &Group) {
        if let (Some(scratch), Some(attached)) = (self.scratch.take(), group.job.attached.get()) {
            attached.regions().free(scratch.segment);
        }
    }

    /// How many tasks are under way.
    pub(super) const fn count(&self) -> usize {
        self.flights.len()
    }
}

impl Stream {
    /// Whether an engine does some of the operation under way.
    pub(crate) fn engine_works(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Hears of memory that moves, and answers what its work on it allows.
    #[inline]
    pub(super) fn attend(&self, group: &Group) {
        if (self.devices || self.shadow.is_some())
            && let Some(attached) = group.job.attached.get()
        {
            attached.attend(&group.job);
        }
    }

    /// Begins a copy of device memory.
    pub(super) fn launch_copy(&mut self, group: &Group, source: *const u8, target: *mut u8, bytes: usize) {
        (self.inputs[0], self.outputs[0]) = (source, target);
        self.launch(group, (1, 1), bytes, 1);
        if let Some(flight) = self.flights.flights.last_mut() {
            flight.copies = true;
        }
    }

    /// Begins a Combine whose operands are in the stream's lists of inputs and outputs.
    pub(super) fn launch(&mut self, group: &Group, counts: (usize, usize), bytes: usize, divisor: u64) {
        let (step, first, end) = self.flights.task;
        // By messages all operands are this rank's own, however many they are.
        let many = |count: usize| count == group.ranks as usize && count > 1 && !self.by_messages;
        let owner = |index: usize, all: bool| if all { index } else { group.rank as usize };
        let attached = group.job.attached.get();
        let at = |address: *const u8, rank: usize| match address::decode(address) {
            Some((slot, offset)) => {
                let (segment, lent) = if rank == group.rank as usize {
                    (attached.map_or(u32::MAX, |attached| attached.regions().segment(slot)), u32::MAX)
                } else {
                    self.lent[rank].segments[slot as usize]
                };
                At::Device { name: RegionName { owner: group.members[rank], segment }, lent, offset }
            }
            None => At::Host(address.cast_mut()),
        };
        let (inputs, outputs) = counts;
        let place = |(index, address): (usize, *const u8), all| at(address, owner(index, all));
        let inputs =
            self.inputs[..inputs].iter().copied().enumerate().map(|i| place(i, many(inputs))).collect();
        let outputs = self.outputs[..outputs].iter().enumerate();
        let outputs = outputs.map(|(i, address)| place((i, address.cast_const()), many(counts.1))).collect();
        let reduction = Reduction::new(1, 1, 1, true);
        let (holds, block) = (Vec::new(), group.rank);
        let flight = Flight {
            step,
            first,
            end,
            block,
            inputs,
            outputs,
            bytes,
            divisor,
            copies: false,
            slot: None,
            reduction,
            holds,
            work: None,
        };
        self.flights.flights.push(flight);
    }

    /// Takes flights as far as they go, and begins those that there is room for.
    pub(crate) fn keep_flying(&mut self, group: &Group) -> Result<(), Error> {
        while self.fly(group)? {
            // Whoever waits for the operation finds that it has moved.
            self.flights.taken_on = true;
            let limit = self.limit();
            while self.flights.has_room()
                && let Some(task) = self.execution.as_mut().and_then(|execution| execution.poll(limit))
            {
                let Task { step, first, end, .. } = task;
                self.perform(group, &task, step, first, end);
            }
        }
        Ok(())
    }

    /// Takes every flight as far as it goes. Whether any moved.
    pub(super) fn fly(&mut self, group: &Group) -> Result<bool, Error> {
        if self.flights.is_empty() {
            return Ok(false);
        }
        let Some(attached) = group.job.attached.get().map(Arc::clone) else { return Ok(false) };
        let mut flights = std::mem::take(&mut self.flights.flights);
        let mut moved = false;
        let mut result = Ok(());
        for flight in &mut flights {
            match self.land(&attached, flight) {
                Ok(went) => moved |= went,
                Err(error) => result = Err(error),
            }
        }
        let mut at_work = flights.iter().filter(|flight| flight.work.is_some()).count();
        let under_way = flights.iter().filter(|flight| !flight.reduction.is_delivered());
        let mut slots: Vec<usize> = under_way.filter_map(|flight| flight.slot).collect();
        for flight in &mut flights {
            if flight.work.is_some() || flight.reduction.is_delivered() || result.is_err() {
                continue;
            }
            if flight.slot.is_none() {
                flight.slot = (0..MOST).find(|slot| !slots.contains(slot));
                slots.extend(flight.slot);
            }
            if at_work > 0 && !attached.engine_has_room() {
                break;
            }
            match self.begin_half(&attached, flight) {
                Ok(begun) => {
                    at_work += usize::from(begun);
                    moved |= begun;
                }
                Err(error) => result = Err(error),
            }
        }
        let mut landed: Vec<_> = flights.extract_if(.., |flight| flight.reduction.is_delivered()).collect();
        while let Some(Flight { step, first, end, .. }) = landed.pop() {
            // A task may be several flights.
            let of_task = |other: &Flight| (other.step, other.first) == (step, first);
            if !landed.iter().chain(&flights).any(of_task) {
                self.complete(step, first, end);
            }
        }
        self.flights.flights = flights;
        result.map(|()| moved)
    }

    /// Takes in what the engine has ended.
    fn land(&self, attached: &Attached, flight: &mut Flight) -> Result<bool, Error> {
        let Some((fence, commits)) = &flight.work else { return Ok(false) };
        let Some(outcome) = fence.outcome() else { return Ok(false) };
        let (outcome, commits) = (outcome.clone(), *commits);
        flight.work = None;
        attached.engine_ended();
        flight.landed(attached, outcome, commits, self.flights.scratch.as_ref())
    }

    /// Gives a flight's next half to the engine, unless memory for it is on its way.
    fn begin_half(&mut self, attached: &Attached, flight: &mut Flight) -> Result<bool, Error> {
        let Some(slot) = flight.slot else { return Ok(false) };
        let commits = flight.reduction.poll_commit(0).is_some();
        let scratch = self.scratch_for(attached, flight)?;
        let own = RegionName { owner: attached.rank(), segment: scratch.segment };
        let touched = if commits { &flight.outputs } else { &flight.inputs };
        let names = touched.iter().filter_map(|at| match at {
            At::Device { name, lent, .. } => Some((*name, *lent)),
            At::Host(_) => None,
        });
        if !attached.regions().hold(names.chain([(own, u32::MAX)]), &mut flight.holds)? {
            return Ok(false);
        }
        let plan = self.active.as_ref().map(|active| &active.plan);
        let combine = match plan {
            Some(plan) if !flight.copies => Some((plan.reduce, plan.element_shift)),
            _ => None,
        };
        match flight.submit(attached, &scratch, slot, commits, combine) {
            Ok(fence) => {
                if commits {
                    flight.reduction.ledger_mut(0).handle_started(0, Generation(0));
                } else {
                    flight.reduction.handle_summing(0);
                }
                flight.work = Some((fence, commits));
                attached.engine_begun();
                Ok(true)
            }
            Err(error) => {
                let gone = gone(&error);
                attached.regions().give_back(&mut flight.holds, gone);
                if gone.is_some() { Ok(false) } else { Err(refused(&error)) }
            }
        }
    }

    /// Scratch that is large enough for every task of the operation, made when first needed.
    fn scratch_for(&mut self, attached: &Attached, flight: &Flight) -> Result<Scratch, Error> {
        let on_host = |at: &At| matches!(at, At::Host(_));
        let operands = if flight.inputs.iter().any(on_host) { 1 + flight.inputs.len() as u64 } else { 1 };
        let most = self.active.as_ref().map_or(0, |active| {
            let geometry = &active.plan.geometry;
            if self.by_messages {
                return geometry.chunk_bytes.max(geometry.piece_bytes);
            }
            let (layout, rank) = (&geometry.layout, flight.block);
            let part = layout.start(rank + 1) - layout.start(rank);
            active.plan.choice.piece_bytes.max(TASK_BYTES).min(part)
        });
        assert!(flight.bytes as u64 <= most, "a task of {} bytes, where {most} are the most", flight.bytes);
        if let Some(scratch) = self.flights.scratch {
            if scratch.operand_bytes >= most && scratch.operands >= operands {
                return Ok(scratch);
            }
            // All tasks of an operation find the same scratch, so nothing is in it.
            attached.regions().free(scratch.segment);
            self.flights.scratch = None;
        }
        let operand_bytes = most.next_multiple_of(ALIGNMENT);
        let mut scratch = Scratch { segment: 0, operand_bytes, operands };
        scratch.segment =
            attached.regions().allocate(scratch.slot_bytes() * MOST as u64, Purpose::Scratch)?;
        self.flights.scratch = Some(scratch);
        Ok(scratch)
    }

    /// The operation has failed. What the engine is doing for it, it ends; until then the memory stays held.
    pub(super) fn ground(&mut self, group: &Group) {
        let Some(attached) = group.job.attached.get() else { return };
        for mut flight in self.flights.flights.drain(..) {
            match flight.work.take() {
                Some((fence, _)) => {
                    attached.engine_ended();
                    attached.regions().abandon(fence, flight.holds);
                }
                None => attached.regions().give_back(&mut flight.holds, None),
            }
        }
    }
}

impl Flight {
    fn submit(
        &self,
        attached: &Attached,
        scratch: &Scratch,
        slot: usize,
        commits: bool,
        combine: Option<(Combine, u32)>,
    ) -> Result<Fence, AcceleratorError> {
        let own = RegionName { owner: attached.rank(), segment: scratch.segment };
        let operand = |name: RegionName, offset: u64| {
            let hold = self.holds.iter().find(|hold| hold.name() == name);
            let missing = AcceleratorError::Away { region: Region::new(0, 0) };
            hold.and_then(|hold| hold.operand(offset)).ok_or(missing)
        };
        let sum = operand(own, scratch.sum(slot))?;
        if commits {
            let outputs: Result<Vec<Operand>, _> = self
                .outputs
                .iter()
                .filter_map(|at| match *at {
                    At::Device { name, offset, .. } => Some(operand(name, offset)),
                    At::Host(_) => None,
                })
                .collect();
            let outputs = outputs?;
            if outputs.is_empty() {
                return Ok(Fence::done(Ok(())));
            }
            let copy = Combine::copy(DataType::U8);
            let count = self.bytes as u64;
            let work =
                Work { combine: copy, divisor: 1, count, inputs: &[sum], outputs: &outputs, after: None };
            return attached.accelerator.submit(&work);
        }
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (index, at) in self.inputs.iter().enumerate() {
            inputs.push(match *at {
                At::Device { name, offset, .. } => operand(name, offset)?,
                At::Host(address) => {
                    let to = operand(own, scratch.operand(slot, index))?;
                    // SAFETY: the operand lies in memory that the operation owns, borrows or was lent, and that nobody writes now: the
                    // schedule's proof.
                    let bytes = unsafe { std::slice::from_raw_parts(address.cast_const(), self.bytes) };
                    attached.accelerator.write(to, bytes)?;
                    to
                }
            });
        }
        let (combine, element_shift) = combine.unwrap_or((Combine::copy(DataType::U8), 0));
        let count = (self.bytes >> element_shift) as u64;
        let work =
            Work { combine, divisor: self.divisor, count, inputs: &inputs, outputs: &[sum], after: None };
        attached.accelerator.submit(&work)
    }

    /// The engine has ended some work. That its fence ended well says that the stores are in what the owner carries on: it is the
    /// receiver's word, so the chunk is delivered.
    fn landed(
        &mut self,
        attached: &Attached,
        outcome: Result<(), AcceleratorError>,
        commits: bool,
        scratch: Option<&Scratch>,
    ) -> Result<bool, Error> {
        let outcome = match (outcome, scratch) {
            (Ok(()), Some(scratch)) if commits => self.to_host(attached, scratch),
            (outcome, _) => outcome,
        };
        let gone = outcome.as_ref().err().and_then(gone);
        attached.regions().give_back(&mut self.holds, gone);
        let ledger = self.reduction.ledger_mut(0);
        // The single chunk is under way, so no input is stale.
        let _ = match (&outcome, commits) {
            (Ok(()), true) => ledger.handle_written(0).and_then(|()| ledger.handle_delivered(1)),
            (Err(_), true) => ledger.handle_failed(0),
            (Ok(()), false) => {
                self.reduction.handle_summed(0);
                Ok(())
            }
            (Err(_), false) => {
                self.reduction.handle_broken(0);
                Ok(())
            }
        };
        self.reduction.handle_watermarks();
        match outcome {
            Ok(()) => Ok(true),
            Err(_) if gone.is_some() => {
                attached.regions().history.replayed();
                Ok(true)
            }
            Err(error) => Err(refused(&error)),
        }
    }

    /// Copies the sum to outputs in host memory.
    fn to_host(&self, attached: &Attached, scratch: &Scratch) -> Result<(), AcceleratorError> {
        let own = RegionName { owner: attached.rank(), segment: scratch.segment };
        for at in &self.outputs {
            let At::Host(address) = *at else { continue };
            let hold = self.holds.iter().find(|hold| hold.name() == own);
            let from = hold.zip(self.slot).and_then(|(hold, slot)| hold.operand(scratch.sum(slot)));
            let from = from.ok_or(AcceleratorError::Away { region: Region::new(0, 0) })?;
            // SAFETY: the result's memory is the operation's, or was lent to it, and nobody else touches this piece of it now: the
            // schedule's proof.
            let bytes = unsafe { std::slice::from_raw_parts_mut(address, self.bytes) };
            attached.accelerator.read(from, bytes)?;
        }
        Ok(())
    }
}
