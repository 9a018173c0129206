//! What is timed: windlass.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use windlass::{
    Buffer, Collective, Communicator, DataType, Device, DeviceBuffer, Extent, Memory, Piece, RawRequest,
    ReduceOp,
};
use windlass_benches::uneven::{block, lengths};

use super::RankError;
use super::block::Subject;
use super::pattern::{Patterns, Values, block_start};
use super::shared::Shared;

/// Where a rank's buffers lie.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Registered,
    Heap,
    Device(Device),
}

/// One buffer. Its pieces are bytes; it is aligned for every type.
#[derive(Debug)]
enum Bytes {
    Registered(Buffer<u8>),
    Heap(Vec<u64>, usize),
    /// With a copy on the host, which is filled and looked at in its place.
    Device(DeviceBuffer<u8>, Vec<u8>),
    /// The members of a list.
    List(Vec<Self>),
}

impl Bytes {
    fn new(communicator: &Communicator, place: &Place, length: usize) -> Result<Self, RankError> {
        Ok(match place {
            Place::Registered => Self::Registered(communicator.alloc(length)?),
            Place::Heap => Self::Heap(vec![0; length.div_ceil(size_of::<u64>())], length),
            Place::Device(device) => {
                let mut buffer = device.alloc(length)?;
                let host = vec![0; length];
                buffer.write(&host)?;
                Self::Device(buffer, host)
            }
        })
    }

    /// A list of buffers that are `length` bytes together, all of about the same length and of whole elements.
    fn list(communicator: &Communicator, work: &Work, length: usize) -> Result<Self, RankError> {
        let size = work.data_type.size_bytes();
        let begin = |nth: usize| length / size * nth / work.tensors * size;
        let member = |nth| Self::new(communicator, &work.place, begin(nth + 1) - begin(nth));
        let members = (0..work.tensors).map(member).collect::<Result<_, _>>()?;
        Ok(Self::List(members))
    }

    /// The pieces of a list; none of anything else.
    fn pieces(&mut self, size: usize) -> Vec<Piece> {
        let Self::List(members) = self else { return Vec::new() };
        let piece = |member: &mut Self| Piece { address: member.address(), count: member.length() / size };
        members.iter_mut().map(piece).collect()
    }

    /// For an operation.
    fn address(&mut self) -> *mut u8 {
        match self {
            Self::Device(buffer, _) => buffer.span().address(),
            // What a list is reached by are its pieces.
            Self::List(_) => std::ptr::null_mut(),
            Self::Registered(buffer) => buffer.as_mut_ptr(),
            Self::Heap(words, _) => words.as_mut_ptr().cast(),
        }
    }

    /// Lets the accelerator have what was put in.
    fn put(&mut self) -> Result<(), RankError> {
        match self {
            Self::Device(buffer, host) => Ok(buffer.write(host)?),
            Self::List(members) => members.iter_mut().try_for_each(Self::put),
            _ => Ok(()),
        }
    }

    /// Gets what the accelerator has made.
    fn fetch(&mut self) -> Result<(), RankError> {
        match self {
            Self::Device(buffer, host) => Ok(buffer.read(host)?),
            Self::List(members) => members.iter_mut().try_for_each(Self::fetch),
            _ => Ok(()),
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Registered(buffer) => buffer.len(),
            Self::Heap(_, length) => *length,
            Self::Device(_, host) => host.len(),
            Self::List(members) => members.iter().map(Self::length).sum(),
        }
    }

    /// What it holds, piece by piece.
    fn get(&self) -> Vec<&[u8]> {
        match self {
            Self::Registered(buffer) => vec![buffer],
            Self::Device(_, host) => vec![host],
            Self::Heap(words, length) => {
                // SAFETY: the words hold at least `length` bytes, and every byte of a word is one.
                vec![unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), *length) }]
            }
            Self::List(members) => members.iter().flat_map(Self::get).collect(),
        }
    }

    fn get_mut(&mut self) -> Vec<&mut [u8]> {
        match self {
            Self::Registered(buffer) => vec![buffer],
            Self::Device(_, host) => vec![host],
            Self::Heap(words, length) => {
                // SAFETY: as above, borrowed mutably; every pattern of bits is a word.
                vec![unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), *length) }]
            }
            Self::List(members) => members.iter_mut().flat_map(Self::get_mut).collect(),
        }
    }
}

/// Cuts what lies in pieces where its blocks, of so many elements each, end: of each run the block, and the bytes of that before it.
fn runs<'a, T: 'a>(
    pieces: impl Iterator<Item = T> + 'a,
    (blocks, size): (&'a [usize], usize),
    length: impl Fn(&T) -> usize + 'a,
    split: impl Fn(T, usize) -> (T, T) + 'a,
) -> impl Iterator<Item = (usize, usize, T)> + 'a {
    let (mut block, mut at) = (0, 0);
    pieces.flat_map(move |mut piece| {
        let mut runs = Vec::new();
        while length(&piece) > 0 {
            while at == blocks[block] * size {
                (block, at) = (block + 1, 0);
            }
            let take = (blocks[block] * size - at).min(length(&piece));
            let (run, rest) = split(piece, take);
            runs.push((block, at, run));
            at += take;
            piece = rest;
        }
        runs
    })
}

/// The memory of one operation, and the call on it.
#[derive(Debug)]
struct Lane {
    memory: Bytes,
    /// Where input and output are not the same.
    result: Option<Bytes>,
    /// The elements of each block of both.
    blocks: [Vec<usize>; 2],
    /// The members of both, where they are lists.
    pieces: [Vec<Piece>; 2],
    request: RawRequest,
}

/// A call's arguments, the same for all operations of a size.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) collective: Collective,
    pub(super) data_type: DataType,
    pub(super) op: ReduceOp,
    /// Of a rooted collective; the rank whose message goes to and fro.
    pub(super) root: usize,
    /// The count of each buffer that rotates.
    pub(super) counts: Vec<usize>,
    /// How many buffers make up an operand or a result; more than one are a list.
    pub(super) tensors: usize,
    pub(super) place: Place,
    pub(super) patterns: Rc<Patterns>,
}

impl Work {
    /// How many ranks the reduction that a rank gets is over.
    pub(super) const fn reduced(collective: Collective, rank: usize, ranks: usize) -> usize {
        match collective {
            Collective::Scan => rank + 1,
            Collective::ExScan => rank,
            _ => ranks,
        }
    }

    /// What a rank puts into a block of its operand.
    fn operand(&self, rank: usize, block: usize) -> (Values, usize) {
        let blocks = matches!(self.collective.input(), Extent::Blocks | Extent::BlocksAtRoot);
        (Values::Of(rank), if blocks { block_start(block) } else { 0 })
    }

    /// What must be in a block of its result.
    fn expected(&self, rank: usize, block: usize) -> (Values, usize) {
        let values = match self.collective.output() {
            // Nobody is before rank 0, whose memory is left alone.
            _ if self.collective == Collective::ExScan && rank == 0 => Values::Of(0),
            _ if self.collective.reduces() => Values::Reduced,
            Extent::Blocks | Extent::BlocksAtRoot => Values::Of(block),
            _ => Values::Of(self.root),
        };
        // Of operands with a block for each rank it gets those of its number.
        (values, self.operand(rank, rank).1)
    }

    /// The elements of each block of a rank's extent. The sizes that can be asked for are far from what cannot be counted.
    fn blocks(&self, extent: Extent, count: usize, shared: Shared) -> Vec<usize> {
        let lengths = match self.collective.is_uneven() {
            true => lengths(count, shared.ranks),
            false => vec![count; shared.ranks],
        };
        let block = |from| block(self.collective, &lengths, from, shared.rank);
        match extent {
            Extent::WholeAtRoot | Extent::BlocksAtRoot if shared.rank != self.root => Vec::new(),
            Extent::Nothing => Vec::new(),
            Extent::Whole | Extent::WholeAtRoot => vec![count],
            Extent::Block => vec![block(shared.rank)],
            Extent::Blocks | Extent::BlocksAtRoot => (0..shared.ranks).map(block).collect(),
        }
    }
}

/// windlass, through its public interface.
#[derive(Debug)]
pub(super) struct Windlass {
    shared: Shared,
    communicator: Communicator,
    /// A second communicator, whose operation is under way at the same time.
    second: Option<Communicator>,
    work: Work,
    lanes: Vec<Lane>,
    second_lanes: Vec<Lane>,
}

impl Windlass {
    pub(super) fn new(
        shared: Shared,
        communicator: &Communicator,
        second: Option<&Communicator>,
        work: Work,
    ) -> Result<Self, RankError> {
        let lanes =
            |_| work.counts.iter().map(|&count| Lane::new(communicator, shared, &work, count)).collect();
        let second_lanes = second.map(lanes).unwrap_or_else(|| Ok(Vec::new()))?;
        let lanes = lanes(communicator)?;
        Ok(Self {
            shared,
            communicator: communicator.clone(),
            second: second.cloned(),
            work,
            lanes,
            second_lanes,
        })
    }

    /// To and fro between ranks 0 and 1.
    fn ping_pong(&self, request: &RawRequest) -> Result<(), RankError> {
        let receive = RawRequest { collective: Collective::Recv, ..*request };
        // Rank 1 sends back what it has received; rank 0 receives elsewhere than it sends from.
        let back = RawRequest { input: request.output, ..*request };
        let turns = if self.shared.rank == 0 { [*request, receive] } else { [receive, back] };
        for turn in &turns {
            // SAFETY: as in `run`.
            unsafe { self.communicator.blocking().perform(turn)? };
        }
        Ok(())
    }

    fn lane_wrong(&self, lane: &Lane, iteration: usize) -> u64 {
        let (shared, work) = (&self.shared, &self.work);
        match work.collective {
            Collective::Barrier => {
                let entered = |rank| shared.entered(rank).load(Ordering::Relaxed);
                let own = entered(shared.rank);
                return (0..shared.ranks).filter(|&rank| entered(rank) < own).count() as u64;
            }
            // To and fro between ranks 0 and 1; the others take no part.
            Collective::Send if shared.rank > 1 => return 0,
            _ => {}
        }
        let (result, blocks, is_operand) = lane.told();
        let size = work.data_type.size_bytes();
        let wrong = |(at, within, bytes): (usize, usize, &[u8])| {
            let (values, start) =
                if is_operand { work.operand(shared.rank, at) } else { work.expected(shared.rank, at) };
            work.patterns.wrong(bytes, values, iteration, start + within / size)
        };
        runs(result.get().into_iter(), (blocks, size), |run| run.len(), <[u8]>::split_at).map(wrong).sum()
    }

    /// Whether barriers hold back: in turn every rank comes late by more than any exchange takes.
    pub(super) fn prove_barrier(&mut self) -> Result<u64, RankError> {
        let mut early = 0;
        for turn in 0..16 * self.shared.ranks {
            if turn % self.shared.ranks == self.shared.rank {
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(50) {
                    std::hint::spin_loop();
                }
            }
            self.run(0)?;
            early += self.lane_wrong(&self.lanes[0], turn);
        }
        Ok(early)
    }
}

impl Lane {
    fn new(
        communicator: &Communicator,
        shared: Shared,
        work: &Work,
        count: usize,
    ) -> Result<Self, RankError> {
        let (operand, result) = (work.collective.input(), work.collective.output());
        let in_place =
            operand == result && work.collective.may_be_in_place() && !work.collective.is_point_to_point();
        let blocks = [operand, result].map(|extent| work.blocks(extent, count, shared));
        let bytes = |blocks: &Vec<usize>| {
            let length = blocks.iter().sum::<usize>() * work.data_type.size_bytes();
            if work.tensors > 1 {
                return Bytes::list(communicator, work, length);
            }
            Bytes::new(communicator, &work.place, length)
        };
        let memory = bytes(&blocks[0])?;
        let result = if in_place { None } else { Some(bytes(&blocks[1])?) };
        let mut request = RawRequest::new(work.collective, work.data_type, count);
        request.op = work.op;
        request.scalar = Patterns::scalar(shared.rank);
        request.root = work.root as u32;
        if work.collective.is_point_to_point() {
            request.root = 1 - (shared.rank as u32).min(1);
        }
        if work.collective.is_uneven() {
            request.count = work.blocks(Extent::Block, count, shared)[0];
            (request.input_lengths, request.output_lengths) = (&raw const *blocks[0], &raw const *blocks[1]);
        }
        Ok(Self { memory, result, blocks, pieces: [Vec::new(), Vec::new()], request })
    }

    /// What to look at after the operation, its blocks, and whether it is the operand: where there is no result, that must be as it was.
    fn told(&self) -> (&Bytes, &[usize], bool) {
        match &self.result {
            Some(result) if result.length() == 0 => (&self.memory, &self.blocks[0], true),
            Some(result) => (result, &self.blocks[1], false),
            None => (&self.memory, &self.blocks[0], false),
        }
    }

    /// Gets it from where it lies.
    fn fetch(&mut self) -> Result<(), RankError> {
        match &mut self.result {
            Some(result) if result.length() > 0 => result.fetch(),
            _ => self.memory.fetch(),
        }
    }

    fn fill(&mut self, shared: Shared, work: &Work, iteration: usize) -> Result<(), RankError> {
        let size = work.data_type.size_bytes();
        let (memory, blocks) = (self.memory.get_mut().into_iter(), (&self.blocks[0][..], size));
        for (at, within, bytes) in runs(memory, blocks, |run| run.len(), <[u8]>::split_at_mut) {
            let (values, start) = work.operand(shared.rank, at);
            work.patterns.fill(bytes, values, iteration, start + within / size);
        }
        if let Some(result) = &mut self.result {
            // What the last round left must not pass for this one's result.
            let mut pieces = result.get_mut();
            pieces.retain(|piece| !piece.is_empty());
            if let Some(first) = pieces.first_mut() {
                first.iter_mut().take(size).for_each(|byte| *byte ^= 0x55);
            }
            if let Some(last) = pieces.last_mut() {
                last.iter_mut().rev().take(size).for_each(|byte| *byte ^= 0x55);
            }
        }
        self.memory.put()?;
        self.result.as_mut().map_or(Ok(()), Bytes::put)?;
        self.request.input = self.memory.address().cast_const();
        self.request.output = match &mut self.result {
            Some(result) => result.address(),
            None => self.request.input.cast_mut(),
        };
        if work.tensors > 1 {
            let size = work.data_type.size_bytes();
            let result = self.result.as_mut().map(|result| result.pieces(size));
            self.pieces = [self.memory.pieces(size), result.unwrap_or_default()];
            let [input, output] = &self.pieces;
            let output = if self.result.is_some() { output } else { input };
            (self.request.input_pieces, self.request.output_pieces) =
                (&raw const **input, &raw const **output);
        }
        Ok(())
    }
}

impl Subject for Windlass {
    fn fill(&mut self, iteration: usize, index: usize) -> Result<(), RankError> {
        let lanes = [&mut self.lanes, &mut self.second_lanes];
        let mut lanes = lanes.into_iter().filter_map(|lanes| lanes.get_mut(index));
        lanes.try_for_each(|lane| lane.fill(self.shared, &self.work, iteration))
    }

    #[inline]
    fn run(&mut self, index: usize) -> Result<(), RankError> {
        let request = &self.lanes[index].request;
        match request.collective {
            Collective::Send if self.shared.rank < 2 => return self.ping_pong(request),
            Collective::Send => return Ok(()),
            Collective::Barrier => {
                let entered = self.shared.entered(self.shared.rank);
                entered.store(entered.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            _ => {}
        }
        if let Some(second) = &self.second {
            // SAFETY: as below; the operation has ended when this function returns, also with an error.
            let started = unsafe { second.post(&self.second_lanes[index].request, ()) };
            // SAFETY: as below.
            let first = unsafe { self.communicator.blocking().perform(request) };
            let second = started.wait();
            first?;
            return second.map_err(|failed| failed.error.into());
        }
        // SAFETY: `fill` has aimed the request at the lane's memory, which is as long as the collective needs, lives
        // in `self`, and is not touched until the call has ended.
        unsafe { self.communicator.blocking().perform(request)? };
        Ok(())
    }

    fn wrong(&mut self, iteration: usize, index: usize) -> Result<u64, RankError> {
        let lanes = [&mut self.lanes, &mut self.second_lanes];
        for lane in lanes.into_iter().filter_map(|lanes| lanes.get_mut(index)) {
            lane.fetch()?;
        }
        let lanes = [self.lanes.get(index), self.second_lanes.get(index)];
        Ok(lanes.into_iter().flatten().map(|lane| self.lane_wrong(lane, iteration)).sum())
    }

    fn operations(&self) -> f64 {
        if self.second.is_some() || self.work.collective == Collective::Send { 2.0 } else { 1.0 }
    }

    fn closes(&self) -> bool {
        // Where there is a root some wait for it alone or it alone waits; of a prefix rank 0 waits for nobody.
        let collective = self.work.collective;
        !collective.rooted() && !matches!(collective, Collective::Scan | Collective::ExScan)
    }
}
