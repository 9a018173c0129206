//! A call to its schedule, geometry and kernels, remembered.

use std::rc::Rc;

use windlass_collectives::{Call, Choice, Collective, Geometry, Layout, Schedule};
use windlass_kernels::{Combine, DataType};
use windlass_transports::shm::INLINE_BYTES;

use crate::error::Error;
use crate::group::Group;

use super::schedules;

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
    config.model.choose(call, &group.topology, config.algorithm).map_err(|_| UNSUPPORTED)
}

/// Everything about a call that does not depend on where its memory is.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) call: Call,
    pub(crate) choice: Choice,
    pub(crate) registered: Schedule,
    pub(crate) staged: Schedule,
    pub(crate) geometry: Geometry,
    pub(crate) reduce: Combine,
    pub(crate) copy: Combine,
    pub(crate) streaming: bool,
    /// The offsets at which the first block that this rank holds begins, in its input and in its output.
    pub(crate) first_blocks: (usize, usize),
    /// The bytes of the operand and of the result.
    pub(crate) bytes: (usize, usize),
    /// The bytes of scratch rings, and of memory for partial sums.
    pub(crate) scratch: (u64, u64),
    /// It fits into the arrival line.
    pub(crate) inline: bool,
}

impl Plan {
    fn new(group: &Group, call: &Call) -> Result<Self, Error> {
        let choice = choose(group, call)?;
        let (registered, staged) =
            schedules(call, choice.algorithm, group.rank, group.ranks).ok_or(UNSUPPORTED)?;
        let geometry = choice.geometry(call, group.ranks, &registered);
        Ok(Self {
            call: *call,
            choice,
            registered,
            staged,
            geometry,
            reduce: Combine::reduce(call.data_type, call.op),
            copy: Combine::copy(DataType::U8),
            streaming: geometry.layout.bytes() >= STREAMING_BYTES,
            first_blocks: first_blocks(call, &geometry, group.rank),
            bytes: operand_bytes(call, group.ranks),
            scratch: (
                geometry.scratch_bytes(registered.scratch_rings()),
                if registered.keeps_partial() { geometry.partial_bytes() } else { 0 },
            ),
            inline: geometry.layout.bytes() <= INLINE_BYTES as u64,
        })
    }

    /// The range of rank `owner`'s lent memory that `reader` touches, in bytes from block 0.
    pub(crate) fn lent_bounds(&self, owner: u32, reader: u32) -> (u64, u64) {
        let layout: &Layout = &self.geometry.layout;
        match self.call.collective {
            Collective::AllGather => (layout.start(owner), layout.start(owner + 1)),
            Collective::Broadcast => (0, layout.bytes()),
            _ => (layout.start(reader), layout.start(reader + 1)),
        }
    }
}

fn first_blocks(call: &Call, geometry: &Geometry, rank: u32) -> (usize, usize) {
    let start = geometry.layout.start(rank) as usize;
    match call.collective {
        Collective::AllGather => (start, 0),
        Collective::ReduceScatter => (0, start),
        _ => (0, 0),
    }
}

fn operand_bytes(call: &Call, ranks: u32) -> (usize, usize) {
    let one = call.bytes() as usize;
    let all = one * ranks as usize;
    match call.collective {
        Collective::AllGather => (one, all),
        Collective::ReduceScatter => (all, one),
        _ => (one, one),
    }
}

/// The plans of recent calls.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    entries: [Option<Rc<Plan>>; 16],
}

impl Plans {
    const fn place(call: &Call) -> usize {
        let print = call.fingerprint();
        let mixed = (print.what ^ print.count.rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 60) as usize
    }

    /// The plan of `call`, if it is among the recent ones.
    #[inline]
    pub(crate) fn known(&self, call: &Call) -> Option<Rc<Plan>> {
        self.entries[Self::place(call)].as_ref().filter(|plan| plan.call == *call).map(Rc::clone)
    }

    /// Makes the plan of `call` and remembers it in the place of another.
    pub(crate) fn make(&mut self, group: &Group, call: &Call) -> Result<Rc<Plan>, Error> {
        let plan = Rc::new(Plan::new(group, call)?);
        self.entries[Self::place(call)] = Some(Rc::clone(&plan));
        Ok(plan)
    }
}
