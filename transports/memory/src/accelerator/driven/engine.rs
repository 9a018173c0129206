//! The engine: the only code that looks at device memory's addresses. Together with the runtime's binding of steps it is the only
//! caller of the kernels.
//!
//! Work runs chunk by chunk, one chunk a step, so that moves and revokes strike in the middle of it. It counts itself in at the
//! memory of every operand before its first chunk and out after its last one (see [`life`](crate::accelerator::life)), and what it
//! finds on the way out is its outcome. The fence is signalled a while after that, as real completions are.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use windlass_kernels::{Combine, Store};

use super::Owner;
use super::common::Common;
use super::pages::{Identity, Pages, Pin};
use crate::accelerator::life::State;
use crate::accelerator::{AcceleratorError, Exported, Fence, Import, Operand, Outcome, Place, Work};

type Result<T> = std::result::Result<T, AcceleratorError>;

/// An import: its drop may be the mapping's last.
#[derive(Debug)]
pub(super) struct Imported {
    pages: Arc<Pages>,
    pin: Arc<Pin>,
    /// The range's first byte, from the region's begin.
    begin: u64,
    bytes: u64,
}

/// An operand, resolved: checked against the ends of its memory.
#[derive(Debug)]
struct Bound {
    pages: Arc<Pages>,
    /// Work on pinned memory holds it in place, also after its import was released.
    _pin: Option<Arc<Pin>>,
    /// The first byte, from the region's begin.
    at: u64,
}

impl Bound {
    fn overlaps(&self, other: &Self, bytes: u64) -> bool {
        self.pages.distance(self.at, &other.pages, other.at).is_some_and(|distance| distance < bytes)
    }

    fn is(&self, other: &Self) -> bool {
        self.pages.distance(self.at, &other.pages, other.at) == Some(0)
    }
}

#[derive(Debug)]
struct Job {
    combine: Combine,
    divisor: u64,
    count: u64,
    inputs: Vec<Bound>,
    outputs: Vec<Bound>,
    after: Option<Fence>,
    fence: Fence,
    /// Elements done.
    done: u64,
    /// Whether it is counted in at its operands.
    inside: bool,
}

impl Job {
    fn operands(&self) -> impl Iterator<Item = &Bound> {
        self.inputs.iter().chain(&self.outputs)
    }

    /// Counts it in at all its memory, or at none.
    fn enter(&mut self) -> Result<()> {
        for (entered, bound) in self.operands().enumerate() {
            if let Err(error) = bound.pages.enter() {
                for bound in self.operands().take(entered) {
                    // It has touched nothing, so it does not matter what has become of it.
                    let _ = bound.pages.leave();
                }
                return Err(error);
            }
        }
        self.inside = true;
        Ok(())
    }

    /// Counts it out, and says whether everything it stored was stored in time.
    fn leave(&mut self) -> Outcome {
        let mut outcome = Ok(());
        if std::mem::take(&mut self.inside) {
            for bound in self.operands() {
                if let Err(error) = bound.pages.leave() {
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    fn is_dead(&self) -> bool {
        self.inside && self.operands().any(|bound| bound.pages.state() == State::Dead)
    }

    fn run_chunk(&mut self, chunk_bytes: u64) {
        let size = self.combine.data_type().size_bytes() as u64;
        let count = (chunk_bytes / size).max(1).min(self.count - self.done);
        let place = |bound: &Bound| bound.pages.address(bound.at + self.done * size);
        let inputs: Vec<*const u8> = self.inputs.iter().map(|bound| place(bound).cast_const()).collect();
        let outputs: Vec<*mut u8> = self.outputs.iter().map(place).collect();
        // SAFETY: `bind` has checked every operand against the end of its mapping, which its `Pages` keep; `submit` has checked that
        // outputs overlap nothing but an equal input. Nobody else in this process dereferences device addresses; that other
        // engines do not touch the outputs meanwhile is the submitter's to order by fences, and memory written from outside is
        // read by vector loads of plain numbers, any bits of which are values.
        unsafe { self.combine.run(&inputs, &outputs, count as usize, self.divisor, Store::Cached) };
        self.done += count;
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.leave();
        // Nobody waits for ever; for work that has ended this is the second signal, which does nothing.
        self.fence.signal(Err(AcceleratorError::Gone));
    }
}

/// Work that has the engine, without the device's lock: it holds all that it touches.
#[derive(Debug)]
pub(super) struct Turn {
    job: Job,
    /// Where it stood among the others.
    index: usize,
    outcome: Outcome,
    chunk_bytes: u64,
    /// It has done a chunk.
    ran: bool,
}

impl Turn {
    /// One chunk.
    pub(super) fn run(&mut self) {
        // What has died meanwhile is found on the way out; there is no use in going on until then.
        if self.outcome.is_ok() && !self.job.is_dead() {
            self.job.run_chunk(self.chunk_bytes);
            self.ran = true;
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Engine {
    imports: BTreeMap<u64, Imported>,
    next_import: u64,
    jobs: VecDeque<Job>,
    /// Work whose stores are done, in the order of completion.
    ending: VecDeque<(Duration, Job, Outcome)>,
}

impl Engine {
    /// The mapping of a memory that has one: there is one for each, so that operands that share bytes are seen to.
    pub(super) fn mapped(
        &self,
        owner: &impl Owner,
        identity: Identity,
        generation: u32,
    ) -> Option<Arc<Pages>> {
        let known = self.imports.values().map(|imported| &imported.pages).find(|pages| pages.is(identity));
        known.or_else(|| owner.find(identity)).map(|pages| pages.at(generation))
    }

    /// `opened` meanwhile, unless there was a mapping, or somebody else was faster.
    pub(super) fn import(
        &mut self,
        owner: &impl Owner,
        identity: Identity,
        opened: Arc<Pages>,
        exported: &Exported,
    ) -> Result<Import> {
        let pages = self.mapped(owner, identity, exported.generation).unwrap_or(opened);
        pages.check(exported)?;
        let pin = Arc::new(Pin::new(Arc::clone(&pages)));
        if owner.common().options.guarded && pages.state() == State::Dead {
            let Exported { region, generation, .. } = *exported;
            return Err(AcceleratorError::Stale { region, generation });
        }
        let (begin, bytes) = (exported.offset - pages.data, exported.bytes);
        self.next_import += 1;
        self.imports.insert(self.next_import, Imported { pages, pin, begin, bytes });
        Ok(Import::new(self.next_import))
    }

    /// What is to be dropped without the device's lock.
    pub(super) fn release(&mut self, import: Import) -> Result<Imported> {
        self.imports.remove(&import.number()).ok_or(AcceleratorError::UnknownImport(import))
    }

    fn bind(&self, owner: &impl Owner, operand: Operand, bytes: u64) -> Result<Bound> {
        let (pages, pin, begin, limit) = match operand.place {
            Place::Own(region, generation) => {
                let pages = owner.pages(region, generation)?;
                (pages, None, 0, pages.bytes)
            }
            Place::Imported(import) => {
                let imported = self.imports.get(&import.number());
                let imported = imported.ok_or(AcceleratorError::UnknownImport(import))?;
                (&imported.pages, Some(Arc::clone(&imported.pin)), imported.begin, imported.bytes)
            }
        };
        if operand.offset.checked_add(bytes).is_none_or(|end| end > limit) {
            let (region, offset) = (pages.region, operand.offset);
            return Err(AcceleratorError::OutOfRange { region, offset, bytes, limit });
        }
        if !pages.is_reachable() {
            return Err(AcceleratorError::Unreachable { region: pages.region });
        }
        Ok(Bound { pages: Arc::clone(pages), _pin: pin, at: begin + operand.offset })
    }

    pub(super) fn submit(&mut self, owner: &impl Owner, work: &Work<'_>) -> Result<Fence> {
        let count = work.inputs.len();
        if count == 0 || (work.combine.op().is_none() && count != 1) {
            return Err(AcceleratorError::InputCount { count });
        }
        let bytes = work.count.saturating_mul(work.combine.data_type().size_bytes() as u64);
        let bind = |operands: &[Operand]| -> Result<Vec<Bound>> {
            operands.iter().map(|&operand| self.bind(owner, operand, bytes)).collect()
        };
        let (inputs, outputs) = match bind(work.inputs).and_then(|inputs| Ok((inputs, bind(work.outputs)?))) {
            // Memory that went away is an event of the work, not a mistake of the call.
            Err(error @ AcceleratorError::Stale { .. }) => return Ok(Fence::done(Err(error))),
            bound => bound?,
        };
        for (index, output) in outputs.iter().enumerate() {
            let input_clash = |input: &Bound| output.overlaps(input, bytes) && !output.is(input);
            let output_clash = |other: &Bound| output.overlaps(other, bytes);
            if inputs.iter().any(input_clash) || outputs[..index].iter().any(output_clash) {
                return Err(AcceleratorError::Overlap { output: index });
            }
        }
        let fence = Fence::new();
        self.jobs.push_back(Job {
            combine: work.combine,
            divisor: work.divisor,
            count: work.count,
            inputs,
            outputs,
            after: work.after.cloned(),
            fence: fence.clone(),
            done: 0,
            inside: false,
        });
        Ok(fence)
    }

    /// A host copy, found right.
    pub(super) fn copy<'a>(
        &self,
        owner: &impl Owner,
        operand: Operand,
        host: Host<'a>,
    ) -> Result<HostCopy<'a>> {
        let bound = self.bind(owner, operand, host.bytes())?;
        Ok(HostCopy { bound, host, guarded: owner.common().options.guarded })
    }

    /// The fences that are due. Returns when the next one is, and whether work waits for what nobody will tell of.
    pub(super) fn signal(&mut self, common: &Common) -> (Option<Duration>, bool) {
        let mut told = false;
        while let Some((_, job, outcome)) = self.ending.pop_front_if(|(at, ..)| *at <= common.now) {
            job.fence.signal(outcome);
            told = true;
        }
        if let Some(notices) = common.notices.as_ref().filter(|_| told) {
            notices.wake();
        }
        (self.ending.front().map(|(at, ..)| *at), !self.jobs.is_empty())
    }

    /// The next work that can go on, for one [`Turn::run`].
    pub(super) fn take(&mut self, common: &mut Common) -> Option<Turn> {
        let count = self.jobs.len();
        let first = match common.options.reorder && count > 1 {
            true => common.random.below(count as u64) as usize,
            false => 0,
        };
        for index in (first..count).chain(0..first) {
            let job = &mut self.jobs[index];
            let outcome = match job.after.as_ref().map(Fence::outcome) {
                Some(None) => continue,
                Some(Some(Err(error))) => Err(error.clone()),
                _ if !job.inside && common.options.guarded => match job.enter() {
                    Ok(()) => Ok(()),
                    // It will be alive again.
                    Err(AcceleratorError::Away { .. }) => continue,
                    Err(error) => Err(error),
                },
                _ => Ok(()),
            };
            let chunk_bytes = common.options.chunk_bytes;
            return self.jobs.remove(index).map(|job| Turn { job, index, outcome, chunk_bytes, ran: false });
        }
        None
    }

    /// Takes back what has had its turn, and ends it if it is over.
    pub(super) fn put(&mut self, common: &mut Common, turn: Turn) {
        let Turn { mut job, index, outcome, ran, .. } = turn;
        if ran && job.done < job.count {
            return self.jobs.insert(index.min(self.jobs.len()), job);
        }
        let outcome = outcome.and(job.leave());
        self.end(common, job, outcome);
    }

    fn end(&mut self, common: &mut Common, job: Job, outcome: Outcome) {
        let mut at = common.now + common.random.between(&common.options.fence_delay);
        let mut index = self.ending.partition_point(|(other, ..)| *other <= at);
        if !common.options.reorder {
            at = self.ending.back().map_or(at, |(last, ..)| at.max(*last));
            index = self.ending.len();
        }
        self.ending.insert(index, (at, job, outcome));
    }

    /// Ends all work.
    pub(super) fn close(&mut self) {
        self.jobs.clear();
        self.ending.clear();
        self.imports.clear();
    }
}

/// A copy by the host, without the device's lock: it holds what it touches.
#[derive(Debug)]
pub(super) struct HostCopy<'a> {
    bound: Bound,
    host: Host<'a>,
    guarded: bool,
}

impl HostCopy<'_> {
    /// In and out of the memory as work does, at once.
    pub(super) fn run(self) -> Result<()> {
        let Self { bound, host, guarded } = self;
        if guarded {
            bound.pages.enter()?;
        }
        let copied = match host {
            Host::Read(to) => bound.pages.read(bound.at, to),
            Host::Write(from) => bound.pages.write(bound.at, from),
        };
        if guarded {
            bound.pages.leave()?;
        }
        copied
    }
}

/// The host's side of a copy, and its direction.
#[derive(Debug)]
pub(super) enum Host<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Host<'_> {
    fn bytes(&self) -> u64 {
        match self {
            Self::Read(to) => to.len() as u64,
            Self::Write(from) => from.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use windlass_kernels::{DataType, ReduceOp};

    use super::*;
    use crate::accelerator::Accelerator;
    use crate::accelerator::simulated::SimulatedAccelerator;
    use crate::accelerator::{Drive, Options};

    /// k inputs to m outputs, of every type by every operator, in chunks: as the kernels have it in one piece.
    #[test]
    fn an_engine_calculates_what_combine_does() {
        const COUNT: usize = 1001;
        let options = Options { drive: Drive::Stepped, chunk_bytes: 999, ..Options::default() };
        let device = SimulatedAccelerator::new(options);
        for &data_type in DataType::ALL {
            let bytes = COUNT * data_type.size_bytes();
            let own = |region| Operand { place: Place::Own(region, 0), offset: 1 };
            let memory: Vec<_> = (0..6).map(|_| device.allocate(bytes as u64 + 1).unwrap()).collect();
            let inputs: Vec<Vec<u8>> = (0..4u8)
                .map(|i| {
                    (0..bytes).map(|at| (at as u8).wrapping_mul(37).wrapping_add(i * 11) & 0x4f).collect()
                })
                .collect();
            let ops = ReduceOp::ALL.iter().filter(|op| op.supports(data_type));
            let reductions = ops.map(|&op| (Combine::reduce(data_type, op), 4));
            for (combine, k) in reductions.chain([(Combine::copy(data_type), 1)]) {
                for (i, input) in inputs.iter().enumerate() {
                    device.write(own(memory[i]), input).unwrap();
                }
                let mut expected = vec![0; bytes];
                let from: Vec<*const u8> = inputs[..k].iter().map(|input| input.as_ptr()).collect();
                // SAFETY: inputs and output are vectors of COUNT elements each, and nobody else's.
                unsafe { combine.run(&from, &[expected.as_mut_ptr()], COUNT, 3, Store::Cached) };
                let from: Vec<Operand> = memory[..k].iter().map(|&region| own(region)).collect();
                // The last output is in place.
                let outputs = [own(memory[4]), own(memory[5]), own(memory[k - 1])];
                let (inputs, outputs) = (from.as_slice(), outputs.as_slice());
                let work = Work { combine, divisor: 3, count: COUNT as u64, inputs, outputs, after: None };
                let fence = device.submit(&work).unwrap();
                while device.step(Duration::ZERO).at_once {}
                assert_eq!(fence.outcome(), Some(&Ok(())));
                for output in outputs {
                    let mut got = vec![0; bytes];
                    device.read(*output, &mut got).unwrap();
                    assert!(got == expected, "{combine:?}");
                }
            }
            memory.into_iter().for_each(|region| device.free(region).unwrap());
        }
    }
}
