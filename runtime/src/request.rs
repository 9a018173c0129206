//! A call with its memory, checked: the one door through which every face of the API goes.

use std::time::Duration;

use windlass_collectives::{Call, Collective, Extent};
use windlass_kernels::{DataType, ReduceOp};
use windlass_transports::message::COLLECTIVE_TAG;

use crate::error::{Error, Problem};
use crate::group::Group;
use crate::operation::Kind;
use crate::transfer;

/// A call whose types are known at run time only.
///
/// `count` is in elements: of one rank's block where the vector has a block for each rank ([`Collective::has_blocks`]), else of the
/// vector or message.
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
    /// The root, or the peer of a send or recv.
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

    /// Elements of the operand and of the result of `rank` among `ranks`.
    fn lengths(&self, rank: u32, ranks: u32) -> Option<(usize, usize)> {
        let of = |extent: Extent| extent.elements(self.count, ranks as usize, rank == self.root);
        Some((of(self.collective.input())?, of(self.collective.output())?))
    }

    /// Two requests with the same key differ in their memory alone.
    #[inline]
    pub(crate) const fn key(&self) -> Key {
        let what = self.collective as u64 | (self.data_type as u64) << 8 | (self.op as u64) << 16;
        Key { what: what | (self.root as u64) << 24, count: self.count }
    }

    /// Checks everything a rank can check alone, but for the memory.
    pub(crate) fn check(&self, group: &Group) -> Result<Checked, Error> {
        let operation = self.collective.name();
        let wrong = |argument, problem| Err(Error::InvalidArgument { operation, argument, problem });
        let too_large = Problem::TooLarge { count: self.count as u64 };
        let size = self.data_type.size_bytes();
        let Some((input, output)) = self.lengths(group.rank, group.ranks) else {
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
        if matches!(self.collective, Collective::Scan | Collective::ExScan) && self.op == ReduceOp::Avg {
            return wrong("the operator", Problem::NotOfPrefixes);
        }
        // Only where blocks are meant does the product mean anything, and there `lengths` has bounded it.
        let block = self.count.wrapping_mul(size).wrapping_mul(group.rank as usize);
        let in_place = match (self.collective.input(), self.collective.output()) {
            _ if !self.collective.may_be_in_place() => NEVER,
            (Extent::Block, _) => block,
            (_, Extent::Block) => block.wrapping_neg(),
            _ => 0,
        };
        let call = Call {
            collective: self.collective,
            data_type: self.data_type,
            op: if self.collective.reduces() { self.op } else { ReduceOp::Sum },
            count: self.count as u64,
            root: if self.collective.rooted() { self.root } else { 0 },
        };
        // Kernels load and store unaligned; a misaligned address is refused because it is a mistake elsewhere.
        let alignment = if size == 2 { 2 } else { size.min(8) };
        Ok(Checked { call, input, output, alignment, in_place })
    }

    /// Checks where the memory lies.
    #[inline]
    pub(crate) fn check_memory(&self, checked: &Checked) -> Result<(), Error> {
        let (i, o) = (self.input.addr(), self.output.addr());
        let misplaced = |address: usize, bytes: usize| {
            bytes > 0 && (address == 0 || address & (checked.alignment - 1) != 0)
        };
        let overlaps = || {
            let in_place = i == o.wrapping_add(checked.in_place);
            let (input, output) = (checked.input, checked.output);
            input > 0 && output > 0 && !in_place && i < o.wrapping_add(output) && o < i.wrapping_add(input)
        };
        if misplaced(i, checked.input) || misplaced(o, checked.output) || overlaps() {
            return Err(self.misplaced(checked));
        }
        Ok(())
    }

    #[cold]
    fn misplaced(&self, checked: &Checked) -> Error {
        let operation = self.collective.name();
        let alignment = checked.alignment;
        for (argument, address, bytes) in [
            ("the input", self.input.addr(), checked.input),
            ("the output", self.output.addr(), checked.output),
        ] {
            if bytes > 0 && (address == 0 || !address.is_multiple_of(alignment)) {
                let problem = Problem::Misaligned { address, alignment };
                return Error::InvalidArgument { operation, argument, problem };
            }
        }
        Error::InvalidArgument { operation, argument: "the input", problem: Problem::Overlap }
    }

    fn transfer(&self, call: Call, asynchronous: bool) -> transfer::Request {
        let memory = if call.collective == Collective::Send { self.input.cast_mut() } else { self.output };
        transfer::Request { call, peer: self.root, tag: self.tag, memory, asynchronous }
    }
}

/// What tells requests apart but for their memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Key {
    /// Collective, type, operator and root.
    what: u64,
    count: usize,
}

impl Key {
    /// One of sixteen places in a table.
    #[inline]
    pub(crate) const fn place(self) -> usize {
        let mixed = (self.what ^ (self.count as u64).rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 60) as usize
    }
}

/// A request found right, but for its memory, and what that has to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked {
    pub(crate) call: Call,
    /// Bytes of the operand.
    pub(crate) input: usize,
    /// Bytes of the result.
    pub(crate) output: usize,
    /// A power of two.
    alignment: usize,
    /// How far the operand lies behind the result in place; elsewhere they may not overlap.
    in_place: usize,
}

/// Further apart than any two addresses.
const NEVER: usize = 1 << (usize::BITS - 1);

impl Group {
    /// Starts a request.
    pub(crate) fn submit(&self, request: &RawRequest) -> Result<Kind, Error> {
        self.usable(request.collective.name())?;
        if request.collective.is_point_to_point() {
            return self.start_transfer(self.transfer_of(request, true)?).map(Kind::Transfer);
        }
        self.post(request).map(Kind::Collective)
    }

    /// Runs a request to its end.
    #[inline]
    pub(crate) fn perform(&self, request: &RawRequest) -> Result<(), Error> {
        self.usable(request.collective.name())?;
        if request.collective.is_point_to_point() {
            let ticket = self.start_transfer(self.transfer_of(request, false)?)?;
            return self.finish_transfer(ticket);
        }
        self.run(request)
    }

    /// Runs a request for `time` at most. What has not ended by then goes on, and is returned.
    pub(crate) fn perform_for(&self, request: &RawRequest, time: Duration) -> Result<Option<Kind>, Error> {
        self.usable(request.collective.name())?;
        if request.collective.is_point_to_point() {
            let transfer = self.transfer_of(request, false)?;
            return Ok(self.run_transfer_for(transfer, time)?.map(Kind::Transfer));
        }
        Ok(self.run_for(request, time)?.map(Kind::Collective))
    }

    fn transfer_of(&self, request: &RawRequest, asynchronous: bool) -> Result<transfer::Request, Error> {
        let checked = request.check(self)?;
        request.check_memory(&checked)?;
        if crate::device::address::decode(request.output).is_some() {
            let operation = request.collective.name();
            let problem = Problem::OnDevice;
            return Err(Error::InvalidArgument { operation, argument: "the buffer", problem });
        }
        Ok(request.transfer(checked.call, asynchronous))
    }
}
