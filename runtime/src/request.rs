//! A call with its memory, checked: the one door through which every face of the API goes.

use std::time::Duration;

use windlass_collectives::call::MAX_USER_COUNT;
use windlass_collectives::{Call, Collective, Extent, Layout, hash_of_lengths};
use windlass_kernels::{DataType, ReduceOp};
use windlass_transports::message::COLLECTIVE_TAG;

use crate::device::address;
use crate::engine::bind::scale;
use crate::error::{Error, Problem};
use crate::group::Group;
use crate::list::Piece;
use crate::memory::NO_PIECES;
use crate::operation::Kind;
use crate::transfer;

/// A call whose types are known at run time only.
///
/// `count` is in elements: of one rank's block where the vector has a block for each rank ([`Collective::has_blocks`]), else of the
/// vector or message. Where the blocks have different lengths ([`Collective::is_uneven`]), it is that of this rank's own block, and ignored for
/// all_to_all_v.
#[derive(Clone, Copy, Debug)]
pub struct RawRequest {
    /// Which collective, or send or recv.
    pub collective: Collective,
    /// The elements' type.
    pub data_type: DataType,
    /// The operator, where the collective reduces.
    pub op: ReduceOp,
    /// What [`ReduceOp::ScaledSum`] multiplies this rank's operand by; ranks may differ.
    pub scalar: f64,
    /// Elements, see above.
    pub count: usize,
    /// The root, or the peer of a send or recv, or of a recv [`ANY_SOURCE`](Self::ANY_SOURCE).
    pub root: u32,
    /// The tag of a send or recv.
    pub tag: u32,
    /// Where a recv writes the sender's rank, for those from any source; null: nowhere. Valid as the memory is.
    pub source: *mut u32,
    /// How long the call may take from now on, if not as long as [`Config::timeout`](crate::Config::timeout) says: see
    /// [`Communicator::with_timeout`](crate::Communicator::with_timeout).
    pub timeout: Option<Duration>,
    /// The operand; equal to `output` in place.
    pub input: *const u8,
    /// The result. For send the same as `input`.
    pub output: *mut u8,
    /// Where the operand is a list: its pieces, one after the other, instead of `input`; else null. Read during the call only.
    pub input_pieces: *const [Piece],
    /// The same of the result. In place the two are the same.
    pub output_pieces: *const [Piece],
    /// Where blocks have different lengths: the elements of the operand's blocks, one for each rank, if this rank has them all. Read during the call only.
    pub input_lengths: *const [usize],
    /// The same of the result's.
    pub output_lengths: *const [usize],
}

const NO_LENGTHS: *const [usize] = std::ptr::slice_from_raw_parts(std::ptr::null(), 0);

impl RawRequest {
    /// In the place of a recv's peer: whoever sends first.
    pub const ANY_SOURCE: u32 = transfer::ANY_SOURCE;

    /// A request without memory: fill in what the collective needs.
    pub const fn new(collective: Collective, data_type: DataType, count: usize) -> Self {
        Self {
            collective,
            data_type,
            op: ReduceOp::Sum,
            scalar: 1.0,
            count,
            root: 0,
            tag: 0,
            source: std::ptr::null_mut(),
            timeout: None,
            input: std::ptr::null(),
            output: std::ptr::null_mut(),
            input_pieces: NO_PIECES,
            output_pieces: NO_PIECES,
            input_lengths: NO_LENGTHS,
            output_lengths: NO_LENGTHS,
        }
    }

    /// Elements of the operand and of the result of `rank` among `ranks`.
    pub(crate) fn sizes(&self, rank: u32, ranks: u32) -> Result<(usize, usize), Wrong> {
        let too_large = ("the buffer", Problem::TooLarge { count: self.count as u64 });
        let of = |extent: Extent, lengths: Option<&[usize]>| match lengths {
            _ if !self.collective.is_uneven() => {
                extent.elements(self.count, ranks as usize, rank == self.root)
            }
            _ if extent == Extent::Block => self.own_length(rank),
            Some(lengths) => lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length)),
            None => Some(0),
        };
        let (input, output) = self.lengths_of(rank, ranks)?;
        let input = of(self.collective.input(), input).ok_or_else(|| too_large.clone())?;
        Ok((input, of(self.collective.output(), output).ok_or(too_large)?))
    }

    /// The elements of this rank's own block.
    fn own_length(&self, rank: u32) -> Option<usize> {
        let shared = match self.collective {
            Collective::AllGatherV => lengths(self.output_lengths),
            Collective::ReduceScatterV => lengths(self.input_lengths),
            _ => None,
        };
        shared.map_or(Some(self.count), |lengths| lengths.get(rank as usize).copied())
    }

    /// The lengths of the blocks of the operand and of the result, where this rank has all of them and they differ.
    fn lengths_of(&self, rank: u32, ranks: u32) -> Result<Known<'_>, Wrong> {
        let needed = |extent: Extent, given: *const [usize], argument| match extent {
            Extent::BlocksAtRoot if rank != self.root => Ok(None),
            Extent::Blocks | Extent::BlocksAtRoot if self.collective.is_uneven() => {
                let given = lengths(given).unwrap_or_default();
                if given.len() == ranks as usize {
                    return Ok(Some(given));
                }
                let (expected, actual) = (u64::from(ranks), given.len() as u64);
                Err((argument, Problem::WrongLength { expected, actual }))
            }
            _ => Ok(None),
        };
        let input = needed(self.collective.input(), self.input_lengths, "the list of the operand's lengths")?;
        let output =
            needed(self.collective.output(), self.output_lengths, "the list of the result's lengths")?;
        // What a rank has for itself is in both.
        let own = |lengths: &[usize]| lengths[rank as usize];
        let (one, other) = match self.collective.even() {
            Collective::AllToAll => (input.map(own), output.map(own)),
            Collective::Gather => (Some(self.count), output.map(own)),
            Collective::Scatter => (input.map(own), Some(self.count)),
            _ => (None, None),
        };
        match (one, other) {
            (Some(expected), Some(actual)) if expected != actual && self.collective.is_uneven() => {
                let (expected, actual) = (expected as u64, actual as u64);
                Err(("the length of this rank's own block", Problem::WrongLength { expected, actual }))
            }
            _ => Ok((input, output)),
        }
    }

    /// The layouts of operand and result where blocks have different lengths. The request has been checked.
    pub(crate) fn layouts(&self, rank: u32, ranks: u32) -> Option<(Layout, Layout)> {
        if !self.collective.is_uneven() {
            return None;
        }
        let size = self.data_type.size_bytes() as u64;
        let (input, output) = self.lengths_of(rank, ranks).ok()?;
        let known = |lengths: Option<&[usize]>| {
            lengths.map(|lengths| lengths.iter().map(|length| *length as u64).collect::<Vec<_>>())
        };
        // A rank that knows its own block only has only that.
        let own = || {
            let own = self.own_length(rank).unwrap_or_default() as u64;
            (0..ranks).map(|q| if q == rank { own } else { 0 }).collect::<Vec<_>>()
        };
        let (input, output) = (known(input), known(output));
        let either = || input.clone().or_else(|| output.clone()).unwrap_or_else(own);
        let of = |lengths: Option<Vec<u64>>| Layout::uneven(&lengths.unwrap_or_else(either), size);
        Some((of(input.clone()), of(output.clone())))
    }

    /// Whether the blocks have the lengths that `other` says.
    pub(crate) fn has_lengths(&self, known: &Lengths) -> bool {
        let same = |given, known: &[usize]| lengths(given).unwrap_or_default() == known;
        same(self.input_lengths, &known.0) && same(self.output_lengths, &known.1)
    }

    pub(crate) fn lengths(&self) -> Lengths {
        let of = |given| lengths(given).unwrap_or_default().into();
        (of(self.input_lengths), of(self.output_lengths))
    }

    /// Two requests with the same key differ in their memory alone.
    #[inline]
    pub(crate) const fn key(&self) -> Key {
        let what = self.collective as u64 | (self.data_type as u64) << 8 | (self.op.code() as u64) << 16;
        let operator = if let ReduceOp::User(op) = self.op { op.number() } else { 0 };
        Key { what: what | (self.root as u64) << 24, count: self.count, operator }
    }

    /// Checks everything a rank can check alone, but for the memory.
    pub(crate) fn check(&self, group: &Group) -> Result<Checked, Error> {
        let operation = self.collective.name();
        let error = |argument, problem| Error::InvalidArgument { operation, argument, problem };
        let wrong = |argument, problem| Err(error(argument, problem));
        let size = self.data_type.size_bytes();
        let (input, output) =
            self.sizes(group.rank, group.ranks).map_err(|(argument, problem)| error(argument, problem))?;
        let bytes = |count: usize| count.checked_mul(size).filter(|b| isize::try_from(*b).is_ok());
        // Nothing is before the first rank.
        let untouched = self.collective == Collective::ExScan && group.rank == 0;
        let elements = (input, if untouched { 0 } else { output });
        let (input, output) = elements;
        let (Some(input), Some(output)) = (bytes(input), bytes(output)) else {
            return wrong("the buffer", Problem::TooLarge { count: input.max(output) as u64 });
        };
        if self.collective.reduces()
            && let Err(problem) = self.check_operator(group)
        {
            return wrong("the operator", problem);
        }
        let from_any = self.collective == Collective::Recv && self.root == Self::ANY_SOURCE;
        if from_any && group.ranks == 1 {
            return wrong("the peer", Problem::OwnRank);
        }
        if self.collective.rooted() && self.root >= group.ranks && !from_any {
            let argument = if self.collective.is_point_to_point() { "the peer" } else { "the root" };
            return wrong(
                argument,
                Problem::OutOfRange { value: u64::from(self.root), limit: u64::from(group.ranks) },
            );
        }
        if self.collective.is_point_to_point() && self.tag == COLLECTIVE_TAG {
            return wrong(
                "the tag",
                Problem::OutOfRange { value: u64::from(self.tag), limit: u64::from(COLLECTIVE_TAG) },
            );
        }
        if matches!(self.collective, Collective::Scan | Collective::ExScan) && self.op == ReduceOp::Avg {
            return wrong("the operator", Problem::NotOfPrefixes);
        }
        // Only where blocks are meant does the product mean anything, and there `lengths` has bounded it.
        let block = match self.layouts(group.rank, group.ranks) {
            Some((input, _)) => input.start(group.rank) as usize,
            None => self.count.wrapping_mul(size).wrapping_mul(group.rank as usize),
        };
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
            count: match self.collective {
                _ if !self.collective.is_uneven() => self.count as u64,
                _ if self.collective.shares_lengths() => elements.0.max(elements.1) as u64,
                _ => 0,
            },
            root: match self.collective {
                Collective::AllGatherV => hash_of_lengths(lengths(self.output_lengths).unwrap_or_default()),
                Collective::ReduceScatterV => {
                    hash_of_lengths(lengths(self.input_lengths).unwrap_or_default())
                }
                _ if self.collective.rooted() => self.root,
                _ => 0,
            },
        };
        // Kernels load and store unaligned; a misaligned address is refused because it is a mistake elsewhere.
        let alignment = self.data_type.alignment();
        Ok(Checked { call, input, output, alignment, in_place })
    }

    /// Whether the operator is defined on the elements' type.
    fn check_operator(&self, group: &Group) -> Result<(), Problem> {
        let ReduceOp::User(op) = self.op else {
            return self.op.on(self.data_type).map(|_| ()).map_err(Problem::Unsupported);
        };
        let operator = group.job.operators.find(op).ok_or(Problem::NotRegistered)?;
        if operator.data_type() != self.data_type {
            return Err(Problem::WrongType { expected: self.data_type, actual: operator.data_type() });
        }
        if self.count as u64 > MAX_USER_COUNT {
            return Err(Problem::OutOfRange { value: self.count as u64, limit: MAX_USER_COUNT + 1 });
        }
        Ok(())
    }

    /// Checks where the memory lies.
    #[inline]
    pub(crate) fn check_memory(&self, group: &Group, checked: &Checked) -> Result<(), Error> {
        if self.is_listed() {
            return self.check_pieces(group, checked);
        }
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
        if address::is_device(self.input) || address::is_device(self.output) {
            let sides = [
                ("the input", self.input, checked.input),
                ("the output", self.output.cast_const(), checked.output),
            ];
            for (argument, memory, bytes) in sides {
                self.check_device(group, checked, argument, memory, bytes)?;
            }
        }
        Ok(())
    }

    /// Checks that device memory is there, if that is what an address stands for.
    pub(crate) fn check_device(
        &self,
        group: &Group,
        checked: &Checked,
        argument: &'static str,
        memory: *const u8,
        bytes: usize,
    ) -> Result<(), Error> {
        if bytes == 0 || !address::is_device(memory) {
            return Ok(());
        }
        let problem = match group.job.attached.get() {
            Some(attached) => attached.regions().check(memory, bytes, checked.alignment).err(),
            None => Some(Problem::NoDeviceMemory { address: memory.addr() }),
        };
        let operation = self.collective.name();
        problem.map_or(Ok(()), |problem| Err(Error::InvalidArgument { operation, argument, problem }))
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
}

/// The lengths of a request's blocks, where they differ.
pub(crate) type Lengths = (Box<[usize]>, Box<[usize]>);

/// The lengths of the blocks of an operand and of a result, where a rank has all of them.
type Known<'r> = (Option<&'r [usize]>, Option<&'r [usize]>);

/// Which argument is wrong, and how.
pub(crate) type Wrong = (&'static str, Problem);

fn lengths<'r>(given: *const [usize]) -> Option<&'r [usize]> {
    // SAFETY: whoever makes a request says that its lists are valid during the call, and it is looked at during the call only.
    (!given.is_null()).then(|| unsafe { &*given })
}

/// What tells requests apart but for their memory, and the lengths of their blocks where they differ.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Key {
    /// Collective, type, operator and root.
    what: u64,
    count: usize,
    /// The number of a program's own operator, of which `what` has a part.
    operator: u32,
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
    pub(crate) in_place: usize,
}

/// Further apart than any two addresses.
const NEVER: usize = 1 << (usize::BITS - 1);

/// A message to this rank itself that nothing receives, or a receive of none.
pub(crate) const fn own_rank(request: &RawRequest) -> Error {
    let operation = request.collective.name();
    Error::InvalidArgument { operation, argument: "the peer", problem: Problem::OwnRank }
}

impl Group {
    /// Starts a request.
    pub(crate) fn submit(&self, request: &RawRequest) -> Result<Kind, Error> {
        self.usable(request.collective.name())?;
        if request.collective.is_point_to_point() {
            return self.start_exchange(&[self.transfer_of(request)?], true).map(Kind::Transfer);
        }
        match self.scaled(request)? {
            None => self.post(request),
            Some(request) => self.post(&request),
        }
        .map(Kind::Collective)
    }

    /// Runs a request to its end.
    #[inline]
    pub(crate) fn perform(&self, request: &RawRequest) -> Result<(), Error> {
        self.usable(request.collective.name())?;
        if request.collective.is_point_to_point() {
            let ticket = self.start_exchange(&[self.transfer_of(request)?], false)?;
            return self.finish_transfer(ticket);
        }
        match self.scaled(request)? {
            None => self.run(request),
            Some(request) => self.run(&request),
        }
    }

    /// Of a scaled sum, the same on what this rank has scaled: then it is in the output, which is reduced in place.
    #[inline]
    fn scaled(&self, request: &RawRequest) -> Result<Option<RawRequest>, Error> {
        if request.op != ReduceOp::ScaledSum || !request.collective.reduces() {
            return Ok(None);
        }
        let checked = request.check(self)?;
        request.check_memory(self, &checked)?;
        if request.collective != Collective::AllReduce || request.is_on_device() {
            let operation = request.collective.name();
            let problem = Problem::Scaled;
            return Err(Error::InvalidArgument { operation, argument: "the operator", problem });
        }
        scale(request, request.tables(&checked, &mut Vec::new()));
        let (input, input_pieces) = (request.output.cast_const(), request.output_pieces);
        Ok(Some(RawRequest { input, input_pieces, ..*request }))
    }

    /// Runs a request for `time` at most. What has not ended by then goes on, and is returned.
    pub(crate) fn perform_for(&self, request: &RawRequest, time: Duration) -> Result<Option<Kind>, Error> {
        self.usable(request.collective.name())?;
        if request.collective.is_point_to_point() {
            let transfer = self.transfer_of(request)?;
            return Ok(self.run_exchange_for(&[transfer], time)?.map(Kind::Transfer));
        }
        let ended = match self.scaled(request)? {
            None => self.run_for(request, time)?,
            Some(request) => self.run_for(&request, time)?,
        };
        Ok(ended.map(Kind::Collective))
    }

    /// A message that goes alone.
    fn transfer_of(&self, request: &RawRequest) -> Result<transfer::Request, Error> {
        let transfer = self.message_of(request)?;
        if transfer.peer == self.rank { Err(own_rank(request)) } else { Ok(transfer) }
    }
}
