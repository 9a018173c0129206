//! A call with its memory, checked: the one door through which every face of the API goes.

use windlass_collectives::{Call, Collective};
use windlass_kernels::{DataType, ReduceOp};
use windlass_transports::message::COLLECTIVE_TAG;

use crate::engine::Pending;
use crate::error::{Error, Problem};
use crate::group::Group;
use crate::operation::Kind;
use crate::transfer;

/// A call whose types are known at run time only.
///
/// `count` is in elements: of the whole vector for all_reduce and broadcast, of one rank's block for all_gather and
/// reduce_scatter, of the message for send and recv.
#[derive(Clone, Copy, Debug)]
pub struct RawRequest {
    /// Which collective, or send or recv.
    pub collective: Collective,
    /// The elements' type.
    pub data_type: DataType,
    /// The operator, where the collective reduces.
    pub op: ReduceOp,
    /// Elements, see above.
    pub count: usize,
    /// The root of a broadcast, the peer of a send or recv.
    pub root: u32,
    /// The tag of a send or recv.
    pub tag: u32,
    /// The operand; equal to `output` in place.
    pub input: *const u8,
    /// The result. For send the same as `input`.
    pub output: *mut u8,
}

impl RawRequest {
    /// A request without memory: fill in what the collective needs.
    pub const fn new(collective: Collective, data_type: DataType, count: usize) -> Self {
        Self {
            collective,
            data_type,
            op: ReduceOp::Sum,
            count,
            root: 0,
            tag: 0,
            input: std::ptr::null(),
            output: std::ptr::null_mut(),
        }
    }

    /// Elements of the operand and of the result on `ranks` ranks.
    fn lengths(&self, ranks: usize) -> Option<(usize, usize)> {
        let all = self.count.checked_mul(ranks)?;
        Some(match self.collective {
            Collective::AllGather => (self.count, all),
            Collective::ReduceScatter => (all, self.count),
            Collective::Barrier => (0, 0),
            _ => (self.count, self.count),
        })
    }

    /// Checks everything a rank can check alone.
    fn check(&self, group: &Group) -> Result<Call, Error> {
        let operation = self.collective.name();
        let wrong = |argument, problem| Err(Error::InvalidArgument { operation, argument, problem });
        let too_large = Problem::TooLarge { count: self.count as u64 };
        let size = self.data_type.size_bytes();
        let Some((input, output)) = self.lengths(group.ranks as usize) else {
            return wrong("the buffer", too_large);
        };
        let bytes = |count: usize| count.checked_mul(size).filter(|b| isize::try_from(*b).is_ok());
        let (Some(input), Some(output)) = (bytes(input), bytes(output)) else {
            return wrong("the buffer", too_large);
        };
        if self.collective.rooted() && self.root >= group.ranks {
            let argument = if self.collective.is_point_to_point() { "the peer" } else { "the root" };
            return wrong(
                argument,
                Problem::OutOfRange { value: u64::from(self.root), limit: u64::from(group.ranks) },
            );
        }
        if self.collective.is_point_to_point() {
            if self.root == group.rank {
                return wrong("the peer", Problem::OwnRank);
            }
            if self.tag == COLLECTIVE_TAG {
                return wrong(
                    "the tag",
                    Problem::OutOfRange { value: u64::from(self.tag), limit: u64::from(COLLECTIVE_TAG) },
                );
            }
        }
        // Kernels load and store unaligned; a misaligned address is refused because it is a mistake elsewhere.
        let alignment = if size == 2 { 2 } else { size.min(8) };
        for (argument, address, length) in
            [("the input", self.input.addr(), input), ("the output", self.output.addr(), output)]
        {
            if length > 0 && (address == 0 || !address.is_multiple_of(alignment)) {
                return wrong(argument, Problem::Misaligned { address, alignment });
            }
        }
        if self.overlaps(group, input, output) {
            return wrong("the input", Problem::Overlap);
        }
        Ok(Call {
            collective: self.collective,
            data_type: self.data_type,
            op: if self.collective.reduces() { self.op } else { ReduceOp::Sum },
            count: self.count as u64,
            root: if self.collective.rooted() { self.root } else { 0 },
        })
    }

    /// Whether input and output overlap otherwise than in place.
    fn overlaps(&self, group: &Group, input: usize, output: usize) -> bool {
        let (i, o) = (self.input.addr(), self.output.addr());
        // Only where blocks are meant does the product mean anything, and there `lengths` has bounded it.
        let block = (self.count * self.data_type.size_bytes()).wrapping_mul(group.rank as usize);
        let in_place = match self.collective {
            Collective::AllGather => i == o.wrapping_add(block),
            Collective::ReduceScatter => o == i.wrapping_add(block),
            _ => i == o,
        };
        input > 0 && output > 0 && !in_place && i < o.wrapping_add(output) && o < i.wrapping_add(input)
    }

    fn pending(&self, call: Call, asynchronous: bool) -> Pending {
        Pending { call, input: self.input.cast_mut(), output: self.output, asynchronous }
    }

    fn transfer(&self, call: Call, asynchronous: bool) -> transfer::Request {
        let memory = if call.collective == Collective::Send { self.input.cast_mut() } else { self.output };
        transfer::Request { call, peer: self.root, tag: self.tag, memory, asynchronous }
    }
}

impl Group {
    /// Starts a request.
    pub(crate) fn submit(&self, request: &RawRequest) -> Result<Kind, Error> {
        self.usable(request.collective.name())?;
        let call = request.check(self)?;
        if call.collective.is_point_to_point() {
            return self.start_transfer(request.transfer(call, true)).map(Kind::Transfer);
        }
        self.post(request.pending(call, true)).map(Kind::Collective)
    }

    /// Runs a request to its end.
    pub(crate) fn perform(&self, request: &RawRequest) -> Result<(), Error> {
        self.usable(request.collective.name())?;
        let call = request.check(self)?;
        if call.collective.is_point_to_point() {
            let ticket = self.start_transfer(request.transfer(call, false))?;
            return self.finish_transfer(ticket);
        }
        self.run(request.pending(call, false))
    }
}
