//! A call to its schedule, geometry and kernels, remembered.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use windlass_collectives::{
    Action, Algorithm, Call, Choice, Collective, Execution, Extent, Fingerprint, Geometry, Layout, Policy,
    Schedule, Topology, WINDOW,
};
use windlass_kernels::{Combine, DataType, ReduceOp};
use windlass_transports::shm::INLINE_BYTES;

use crate::error::Error;
use crate::group::Group;
use crate::metrics::Series;
use crate::operator::Operator;
use crate::request::{Checked, Key, Lengths, RawRequest};

use super::bind::Run;
use super::{Stream, schedules};

/// Sums this large are stored past the caches: they would not stay in them anyway.
const STREAMING_BYTES: u64 = 4 << 20;

const UNSUPPORTED: Error = Error::System {
    call: "choosing an algorithm",
    errno: rustix::io::Errno::NOTSUP.raw_os_error(),
    hint: "WINDLASS_ALGORITHM names an algorithm that needs shared memory, and this communicator has none; unset it",
};

/// What all ranks do for a call.
pub(crate) fn choose(group: &Group, call: &Call) -> Result<Choice, Error> {
    let config = &group.job.config;
    // An operator that need not be associative has one order only.
    let by_rank = config.reproducible || matches!(call.op, ReduceOp::User(_));
    let policy = Policy { by_rank, ..config.policy() };
    // What a relay sums lies in host memory, where no accelerator's engine works.
    let nodes = group.topology.nodes.clone().filter(|_| !group.uses_devices());
    let topology = Topology { nodes, ..group.topology };
    config.model.choose(call, &topology, policy).map_err(|_| UNSUPPORTED)
}

/// Everything about a call that does not depend on where its memory is.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What it is found by.
    key: Key,
    /// And by these, where its blocks have different lengths.
    lengths: Option<Lengths>,
    pub(crate) checked: Checked,
    pub(crate) call: Call,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) series: Series,
    pub(crate) choice: Choice,
    pub(crate) registered: Schedule,
    pub(crate) staged: Schedule,
    pub(crate) geometry: Geometry,
    pub(crate) reduce: Combine,
    /// In the place of that: the program's own operator.
    pub(crate) operator: Option<Arc<Operator>>,
    pub(crate) copy: Combine,
    pub(crate) streaming: bool,
    /// The offsets at which the first block that this rank holds begins, in its input and in its output.
    pub(crate) first_blocks: (usize, usize),
    /// The bytes of scratch rings, and of memory for partial sums.
    pub(crate) scratch: (u64, u64),
    /// It fits into the arrival line.
    pub(crate) inline: bool,
    /// This rank publishes in a slot and waits for nobody: when it ends, its peers have yet to read, so it has time to prepare the next slot.
    pub(crate) gives_only: bool,
    /// The binary logarithm of an element's bytes.
    pub(crate) element_shift: u32,
    /// By step of the registered schedule, where all its steps are of one chunk, and all ranks know where all blocks lie.
    pub(crate) bound: Box<[Option<Run>]>,
    /// The executions of the two schedules, loaded by the first operation and kept for the next: in a training loop nothing is
    /// left to load.
    spare: Spare,
}

impl Plan {
    fn new(group: &Group, key: Key, request: &RawRequest) -> Result<Self, Error> {
        let checked = request.check(group)?;
        let call = &checked.call;
        let choice = choose(group, call)?;
        let (registered, staged) = schedules(group, call, choice.algorithm).ok_or(UNSUPPORTED)?;
        let geometry = match request.layouts(group.rank, group.ranks) {
            Some((input, output)) if input == output => choice.geometry_of(input),
            Some((input, output)) => choice.geometry_of(input).with_output(output),
            None => choice.geometry(call, group.ranks, &registered),
        };
        let inline = geometry.layout.bytes() <= INLINE_BYTES as u64;
        let bytes = if call.collective.is_uneven() {
            checked.input.max(checked.output) as u64
        } else {
            call.size_bytes(group.ranks)
        };
        Ok(Self {
            key,
            checked,
            call: *call,
            fingerprint: call.fingerprint(),
            lengths: call.collective.is_uneven().then(|| request.lengths()),
            series: Series::of(call.collective, bytes),
            choice,
            registered,
            staged,
            geometry: geometry.clone(),
            operator: match call.op {
                ReduceOp::User(op) => group.job.operators.find(op),
                _ => None,
            },
            reduce: match call.op {
                // What does not reduce may be of a type that has no sum.
                _ if !call.collective.reduces() => Combine::copy(DataType::U8),
                ReduceOp::User(_) => Combine::copy(DataType::U8),
                op => Combine::reduce(call.data_type, op),
            },
            copy: Combine::copy(DataType::U8),
            streaming: geometry.layout.bytes() >= STREAMING_BYTES,
            first_blocks: first_blocks(call, &geometry, group.rank),
            scratch: (
                geometry.scratch_bytes(registered.scratch_rings()),
                geometry.partial_bytes(registered.partials()),
            ),
            inline,
            gives_only: !inline
                && choice.algorithm == Algorithm::Publish
                && !(0..registered.len()).any(|i| matches!(registered.step(i).action, Action::Wait { .. })),
            element_shift: call.data_type.size_bytes().trailing_zeros(),
            bound: if call.collective.has_private_lengths() {
                Box::default()
            } else {
                bound(&registered, &geometry, group.ranks)
            },
            spare: Spare::default(),
        })
    }

    /// An execution at its beginning, for registered or for heap memory.
    #[inline]
    pub(crate) fn execution(&self, staged: bool) -> Box<Execution> {
        if let Some(mut execution) = self.spare.0[usize::from(staged)].take() {
            execution.rewind();
            return execution;
        }
        Box::new(Execution::new(if staged { self.staged } else { self.registered }, self.geometry.clone()))
    }

    /// Takes back an execution that has ended.
    #[inline]
    pub(crate) fn keep(&self, staged: bool, execution: Box<Execution>) {
        self.spare.0[usize::from(staged)].set(Some(execution));
    }

    /// The range of rank `owner`'s lent memory that `reader` touches, in bytes from block 0.
    pub(crate) fn lent_bounds(&self, owner: u32, reader: u32) -> (u64, u64) {
        let layout: &Layout = &self.geometry.layout;
        match self.call.collective.even() {
            Collective::AllGather | Collective::Gather => (layout.start(owner), layout.start(owner + 1)),
            Collective::Broadcast => (0, layout.bytes()),
            // It relays blocks of others, too.
            _ if self.choice.algorithm == Algorithm::Hierarchical => (0, layout.bytes()),
            _ => (layout.start(reader), layout.start(reader + 1)),
        }
    }
}

/// Touched under the communicator's lock, as all of its plans.
#[derive(Default)]
struct Spare([Cell<Option<Box<Execution>>>; 2]);

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spare")
    }
}

fn bound(schedule: &Schedule, geometry: &Geometry, ranks: u32) -> Box<[Option<Run>]> {
    if schedule.len() > WINDOW {
        return Box::default();
    }
    let actions = || (0..schedule.len()).map(|index| schedule.step(index).action);
    if actions().any(|action| geometry.chunks(&action) != 1) {
        return Box::default();
    }
    actions().map(|action| Run::of(&action, geometry, ranks)).collect()
}

fn first_blocks(call: &Call, geometry: &Geometry, rank: u32) -> (usize, usize) {
    let first = |extent| if extent == Extent::Block { geometry.layout.start(rank) as usize } else { 0 };
    (first(call.collective.input()), first(call.collective.output()))
}

/// The plans of recent calls.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    entries: [Option<Rc<Plan>>; 16],
}

impl Plans {
    /// The plan of `request`, remembered or made, in the place of another then.
    #[inline]
    pub(crate) fn of(&mut self, group: &Group, request: &RawRequest) -> Result<Rc<Plan>, Error> {
        let key = request.key();
        match &self.entries[key.place()] {
            Some(plan)
                if plan.key == key
                    && plan.lengths.as_ref().is_none_or(|known| request.has_lengths(known)) =>
            {
                Ok(Rc::clone(plan))
            }
            _ => self.make(group, key, request),
        }
    }

    #[cold]
    fn make(&mut self, group: &Group, key: Key, request: &RawRequest) -> Result<Rc<Plan>, Error> {
        let plan = Rc::new(Plan::new(group, key, request)?);
        self.entries[key.place()] = Some(Rc::clone(&plan));
        Ok(plan)
    }
}

impl Stream {
    /// Other algorithms may be chosen from now on.
    pub(crate) fn forget_plans(&mut self) {
        self.plans = Plans::default();
    }
}
