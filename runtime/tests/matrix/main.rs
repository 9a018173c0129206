//! Every collective × type × operator, one of the program's own included, × transport × kind of memory × 1…9 ranks, against a reference that shares nothing with what is tested.
//!
//! Counts, roots, and whether a call is in place, change from case to case. The tests print how many cases there were.

#![expect(clippy::unwrap_used, reason = "a test that fails should panic")]

mod elements;
mod reference;

use std::fmt;
use std::sync::Arc;

use elements::{kinds_of_elements, own_operators};
use reference::{Case, mix};
use windlass::accelerator::simulated::{Options, SimulatedAccelerator};
use windlass::{
    Algorithm, Buffer, Collective, Communicator, Config, DataType, Device, DeviceBuffer, Extent, JoinError,
    Memory, Piece, RawRequest, ReduceOp, TransportChoice,
};

const COUNTS: [usize; 8] = [0, 1, 3, 16, 65, 130, 257, 1500];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Registered,
    Heap,
    /// Even ranks registered, odd ones heap.
    Mixed,
    Device,
    /// Lists: of registered members; of members that are registered or heap by turns; of members on the device.
    List,
    MixedList,
    DeviceList,
}

impl Kind {
    /// What member `nth` of a list is.
    const fn member(self, nth: usize) -> Option<Self> {
        match self {
            Self::List => Some(Self::Registered),
            Self::MixedList if nth % 3 == 1 => Some(Self::Heap),
            Self::MixedList => Some(Self::Registered),
            Self::DeviceList => Some(Self::Device),
            _ => None,
        }
    }
}

/// Memory for one operand or result, aligned for every type.
enum Bytes {
    Registered(Buffer<u8>),
    Heap(Vec<u128>, usize),
    Device(DeviceBuffer<u8>),
    List(Vec<Self>),
}

/// Where lists are cut: within each run of so many elements alike, so that all ranks' blocks are.
#[derive(Clone, Copy)]
struct Cut {
    run: usize,
    /// The elements of a member are fewer.
    most: usize,
    salt: u64,
    size: usize,
}

impl Cut {
    /// The bytes of the members of a list of so many bytes; some are none.
    fn lengths(self, bytes: usize) -> Vec<usize> {
        let mut lengths = vec![0];
        let mut left = bytes / self.size;
        while left > 0 {
            let mut run = left.min(self.run.max(1));
            left -= run;
            let mut chance = self.salt;
            while run > 0 {
                chance = mix(chance);
                let length = run.min(chance as usize % self.most);
                lengths.push(length * self.size);
                run -= length;
            }
        }
        lengths
    }
}

impl Bytes {
    fn new(comm: &Communicator, device: Option<&Device>, kind: Kind, cut: Cut, content: &[u8]) -> Self {
        if kind.member(0).is_some() {
            let mut at = 0;
            let member = |(nth, length)| {
                at += length;
                Self::new(comm, device, kind.member(nth).unwrap(), cut, &content[at - length..at])
            };
            return Self::List(cut.lengths(content.len()).into_iter().enumerate().map(member).collect());
        }
        let registered = kind == Kind::Registered || kind == Kind::Mixed && comm.rank().is_multiple_of(2);
        if kind == Kind::Device {
            let mut buffer = device.unwrap().alloc(content.len()).unwrap();
            buffer.write(content).unwrap();
            return Self::Device(buffer);
        }
        if registered {
            let mut buffer = comm.alloc(content.len()).unwrap();
            buffer.copy_from_slice(content);
            return Self::Registered(buffer);
        }
        let mut words = vec![0u128; content.len().div_ceil(size_of::<u128>())];
        // SAFETY: the words hold at least as many bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(content.as_ptr(), words.as_mut_ptr().cast(), content.len());
        }
        Self::Heap(words, content.len())
    }

    fn address(&mut self) -> *mut u8 {
        match self {
            Self::Registered(buffer) => buffer.as_mut_ptr(),
            Self::Heap(words, _) => words.as_mut_ptr().cast(),
            Self::Device(buffer) => buffer.span().address(),
            Self::List(_) => std::ptr::null_mut(),
        }
    }

    /// The pieces of so many bytes behind the first `at`; nothing where the memory is in one piece.
    fn pieces(&mut self, mut at: usize, mut bytes: usize, size: usize) -> Option<Vec<Piece>> {
        let Self::List(members) = self else { return None };
        let mut pieces = Vec::new();
        for member in members {
            let (skipped, address) = (at.min(member.len()), member.address());
            let length = bytes.min(member.len() - skipped);
            at -= skipped;
            bytes -= length;
            pieces.push(Piece { address: address.wrapping_add(skipped), count: length / size });
        }
        Some(pieces)
    }

    fn len(&self) -> usize {
        match self {
            Self::Registered(buffer) => buffer.len(),
            Self::Heap(_, length) => *length,
            Self::Device(buffer) => buffer.len(),
            Self::List(members) => members.iter().map(Self::len).sum(),
        }
    }

    fn content(&mut self) -> Vec<u8> {
        match self {
            Self::Registered(buffer) => buffer.to_vec(),
            // SAFETY: the words hold at least so many bytes.
            Self::Heap(words, length) => unsafe {
                std::slice::from_raw_parts(words.as_ptr().cast(), *length).to_vec()
            },
            Self::Device(buffer) => {
                let mut bytes = vec![0; buffer.len()];
                buffer.read(&mut bytes).unwrap();
                bytes
            }
            Self::List(members) => members.iter_mut().flat_map(Self::content).collect(),
        }
    }
}

/// Runs a case on this rank.
fn run(comm: &Communicator, device: Option<&Device>, kind: Kind, case: &Case, in_place: bool) {
    let rank = comm.rank();
    let size = case.data_type.size_bytes();
    let (input_count, output_count) = case.sizes(rank);
    let mut operand = Vec::new();
    (0..input_count).for_each(|index| case.operand(rank, index, &mut operand));
    // What must be overwritten, or must not.
    let before: Vec<u8> = (0..output_count * size).map(|at| mix(at as u64) as u8 & 1).collect();
    let (input_lengths, output_lengths) = case.lengths(rank);
    let mut request = RawRequest::new(case.collective, case.data_type, case.own(rank));
    (request.op, request.root) = (case.op, case.root);
    if case.collective.is_uneven() {
        (request.input_lengths, request.output_lengths) =
            (&raw const *input_lengths, &raw const *output_lengths);
    }
    let expected = case.result(rank);
    // Each member on a device has a descriptor, of which a process has not many.
    let most = if kind == Kind::DeviceList { 1_000 } else { 90 };
    let cut = Cut { run: case.count, most, salt: case.salt, size };
    let offset = |lengths: &[usize]| lengths.iter().take(rank as usize).sum::<usize>() * size;
    let (result, initial) = if in_place {
        // The smaller of the two lies in the larger one, where its block is.
        let (length, at, result_at) = match (case.collective.input(), case.collective.output()) {
            (Extent::Block, Extent::Nothing) => (operand.len(), 0, 0),
            (Extent::Block, _) if output_count > 0 => (before.len(), offset(&output_lengths), 0),
            (_, Extent::Block) if input_count > 0 => (operand.len(), 0, offset(&input_lengths)),
            _ => (operand.len().max(before.len()), 0, 0),
        };
        let mut content = before.clone();
        content.resize(length.max(at + operand.len()), 0);
        content[at..at + operand.len()].copy_from_slice(&operand);
        let mut memory = Bytes::new(comm, device, kind, cut, &content);
        let base = memory.address();
        (request.input, request.output) = (base.wrapping_add(at), base.wrapping_add(result_at));
        let from = memory.pieces(at, operand.len(), size);
        let to = memory.pieces(result_at, before.len(), size);
        if let (Some(from), Some(to)) = (&from, &to) {
            (request.input_pieces, request.output_pieces) = (&raw const **from, &raw const **to);
        }
        // SAFETY: the memory is as long as the collective needs and is not touched during the call.
        unsafe {
            comm.blocking().perform(&request).unwrap_or_else(|error| panic!("{case:?} {kind:?}: {error}"))
        };
        let content_after = memory.content();
        let end = result_at + output_count * size;
        (content_after[result_at..end].to_vec(), content[result_at..end].to_vec())
    } else {
        // Of lists, the operand or the result is at times in one piece.
        let kinds = match (kind.member(0), case.salt % 5) {
            (Some(member), 1) => [member, kind],
            (Some(member), 2) => [kind, member],
            _ => [kind; 2],
        };
        let cut_alike = matches!(case.collective.input(), Extent::Whole | Extent::Blocks);
        let kinds =
            if cut_alike || case.collective == Collective::AllGather { [kind, kinds[1]] } else { kinds };
        let mut input = Bytes::new(comm, device, kinds[0], cut, &operand);
        let mut output = Bytes::new(comm, device, kinds[1], cut, &before);
        (request.input, request.output) = (input.address(), output.address());
        let (from, to) = (input.pieces(0, operand.len(), size), output.pieces(0, before.len(), size));
        if let Some(from) = &from {
            request.input_pieces = &raw const **from;
        }
        if let Some(to) = &to {
            request.output_pieces = &raw const **to;
        }
        // SAFETY: as above.
        unsafe {
            comm.blocking().perform(&request).unwrap_or_else(|error| panic!("{case:?} {kind:?}: {error}"))
        };
        assert_eq!(input.content(), operand, "{case:?} {kind:?}: the operand is left alone");
        (output.content(), before)
    };
    // Where a rank has no result, what was there stays.
    let expected = expected.unwrap_or(initial);
    assert!(
        result == expected,
        "{case:?} {kind:?}{} on rank {rank}: {:?} and not {:?}",
        if in_place { " in place" } else { "" },
        &result[..result.len().min(48)],
        &expected[..expected.len().min(48)]
    );
}

/// How many cases there were, and how many of them with an operator of the program's own.
#[derive(Clone, Copy, Default)]
struct Cases {
    all: u64,
    own: u64,
}

impl std::iter::Sum for Cases {
    fn sum<I: Iterator<Item = Self>>(cases: I) -> Self {
        cases.fold(Self::default(), |sum, more| Self { all: sum.all + more.all, own: sum.own + more.own })
    }
}

impl fmt::Display for Cases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cases, {} of them with an operator of the program's own,", self.all, self.own)
    }
}

/// All cases of a world of so many ranks; how many they were.
fn world(transport: TransportChoice, algorithm: Option<Algorithm>, ranks: u32, kinds: &[Kind]) -> Cases {
    world_on("auto", transport, algorithm, ranks, kinds)
}

/// The same with the ranks on these NUMA nodes.
fn world_on(
    nodes: &str,
    transport: TransportChoice,
    algorithm: Option<Algorithm>,
    ranks: u32,
    kinds: &[Kind],
) -> Cases {
    let mut config = Config::default();
    (config.transport, config.algorithm, config.nodes) = (transport, algorithm, nodes.parse().unwrap());
    // Small chunks, so that modest counts have several.
    (config.model.chunk_bytes, config.model.stage_chunk_bytes) = (2048, 4096);
    config.timeout = std::time::Duration::from_secs(60);
    // Over messages, too.
    config.adds_on_device = true;
    let counted = windlass::threads_with(ranks, &config, |comm| {
        let on_device = kinds.contains(&Kind::Device) || kinds.contains(&Kind::DeviceList);
        let device =
            on_device.then(|| comm.attach(Arc::new(SimulatedAccelerator::new(Options::default()))).unwrap());
        let own = own_operators(&comm);
        let mut cases = Cases::default();
        for &collective in
            Collective::ALL.iter().filter(|c| !c.is_point_to_point() && **c != Collective::Barrier)
        {
            for (data_type, op) in kinds_of_elements(collective, &own) {
                for &kind in kinds {
                    cases.all += 1;
                    cases.own += u64::from(matches!(op, ReduceOp::User(_)));
                    let chance = mix(cases.all);
                    let case = Case {
                        collective,
                        data_type,
                        op,
                        ranks,
                        root: (chance % u64::from(ranks)) as u32,
                        count: COUNTS[(chance >> 20) as usize % COUNTS.len()],
                        salt: cases.all,
                    };
                    let in_place = chance >> 40 & 1 == 1 && collective.may_be_in_place();
                    run(&comm, device.as_ref(), kind, &case, in_place);
                }
            }
        }
        cases
    });
    counted.unwrap()[0]
}

fn sweep(name: &str, transport: TransportChoice, kinds: &[Kind], ranks: std::ops::RangeInclusive<u32>) {
    let cases: Cases = ranks.clone().map(|ranks| world(transport, None, ranks, kinds)).sum();
    println!("matrix over {name}: {cases} on {ranks:?} ranks, all right");
    assert!(cases.all > 1000 && cases.own > 100);
}

const HOST: [Kind; 3] = [Kind::Registered, Kind::Heap, Kind::Mixed];

#[test]
fn over_shared_memory() {
    sweep("shared memory", TransportChoice::Shm, &HOST, 1..=9);
}

#[test]
fn over_tcp() {
    sweep("tcp", TransportChoice::Tcp, &HOST[..2], 1..=9);
}

#[test]
fn over_rdma() {
    let mut config = Config::default();
    config.transport = TransportChoice::Rdma;
    match windlass::threads_with(2, &config, |_| ()) {
        Ok(_) => {}
        Err(why @ JoinError::Configuration { .. }) => return println!("skipped: no RDMA ({why})"),
        Err(other) => panic!("{other}"),
    }
    sweep("rdma", TransportChoice::Rdma, &[Kind::Registered], 2..=3);
    sweep("rdma, of heap memory", TransportChoice::Rdma, &[Kind::Heap], 2..=2);
}

#[test]
fn on_device_memory() {
    sweep("shared memory, on the device", TransportChoice::Shm, &[Kind::Device], 1..=4);
}

#[test]
fn on_device_memory_by_messages() {
    sweep("tcp, on the device", TransportChoice::Tcp, &[Kind::Device], 1..=3);
    let by_messages = Algorithm::ALL.iter().filter(|algorithm| !algorithm.needs_mapped_peers());
    let each = by_messages.map(|&algorithm| world(TransportChoice::Tcp, Some(algorithm), 3, &[Kind::Device]));
    let cases: Cases = each.sum();
    println!("matrix by every algorithm of messages, on the device: {cases} on 3 ranks, all right");
}

#[test]
fn of_lists() {
    sweep("shared memory, of lists", TransportChoice::Shm, &[Kind::List, Kind::MixedList], 1..=5);
    sweep("tcp, of lists", TransportChoice::Tcp, &[Kind::MixedList], 1..=4);
    sweep("shared memory, of lists on the device", TransportChoice::Shm, &[Kind::DeviceList], 1..=3);
}

#[test]
fn on_several_numa_nodes() {
    let kinds = [Kind::Registered, Kind::Heap, Kind::Mixed, Kind::List, Kind::MixedList];
    let mut cases = Vec::new();
    for (nodes, ranks) in
        [("2", 4), ("0,1,0,1", 4), ("0,1,1,1", 4), ("3", 5), ("0,1", 2), ("0,0,1,2,1,2,0", 7)]
    {
        let forced = Some(Algorithm::Hierarchical);
        let some = &kinds[..if ranks == 4 { 5 } else { 2 }];
        cases.push(world_on(nodes, TransportChoice::Shm, forced, ranks, some));
    }
    cases.push(world_on("2", TransportChoice::Tcp, None, 3, &[Kind::Heap]));
    // An accelerator's engine reaches no relay's stage: there it is not chosen, whatever was asked for.
    for kind in [Kind::Device, Kind::DeviceList] {
        cases.push(world_on("2", TransportChoice::Shm, Some(Algorithm::Hierarchical), 3, &[kind]));
    }
    let cases: Cases = cases.into_iter().sum();
    println!("matrix on several NUMA nodes: {cases} cases on 2 to 7 ranks, all right");
}

/// What the sweep over nodes sweeps is what is chosen there.
#[test]
fn numa_nodes_and_accelerators_decide_what_is_hierarchical() {
    let chosen = |nodes: &str, algorithm, attaches: bool| {
        let mut config = Config::default();
        (config.nodes, config.algorithm) = (nodes.parse().unwrap(), algorithm);
        let chosen = windlass::threads_with(4, &config, |comm| {
            if attaches {
                comm.attach(Arc::new(SimulatedAccelerator::new(Options::default()))).unwrap();
            }
            let pair = comm.split(Some(comm.rank() / 2), 0).unwrap().unwrap();
            let of =
                |comm: &Communicator| comm.explain(Collective::AllReduce, DataType::F32, 1 << 20).unwrap();
            [of(&comm), of(&pair)].map(|choice| choice.algorithm)
        });
        chosen.unwrap()
    };
    let (forced, hierarchical, direct) =
        (Some(Algorithm::Hierarchical), Algorithm::Hierarchical, Algorithm::Direct);
    // A communicator of ranks of one node is on one node, whatever the job's ranks are on.
    assert_eq!(chosen("2", forced, false), [[hierarchical, direct]; 4]);
    assert_eq!(chosen("0,1,0,1", forced, false), [[hierarchical; 2]; 4]);
    assert_eq!(chosen("0,1,0,1", forced, true), [[direct; 2]; 4]);
    assert_eq!(chosen("auto", forced, false), [[direct; 2]; 4]);
    assert_eq!(chosen("1", None, false), [[direct; 2]; 4]);
    for nodes in ["0,1,1", "5"] {
        let mut config = Config::default();
        config.nodes = nodes.parse().unwrap();
        let error = windlass::threads_with(4, &config, |_| ()).unwrap_err().to_string();
        assert!(error.contains("WINDLASS_NODES") && error.contains(nodes), "{error}");
    }
}

#[test]
fn by_every_algorithm() {
    let each = Algorithm::ALL.iter().map(|&algorithm| {
        let transport =
            if algorithm.needs_mapped_peers() { TransportChoice::Shm } else { TransportChoice::Tcp };
        let kinds = [Kind::Registered, Kind::Heap, Kind::List];
        world(transport, Some(algorithm), 3, &kinds)
    });
    let cases: Cases = each.sum();
    println!("matrix by every algorithm: {cases} on 3 ranks, all right");
}

/// What the matrix relies on: of any two or three operands that differ, another order or other brackets show.
#[test]
fn the_own_operator_tells_order_and_brackets() {
    for &data_type in DataType::ALL {
        let fold = |acc, x| reference::own(data_type, acc, x);
        let (a, b, c) = if data_type == DataType::Bool { (1, 0, 1) } else { (1, 2, 3) };
        assert_ne!(fold(a, b), fold(b, a), "{data_type}");
        let brackets = (fold(fold(a, a), c), fold(a, fold(a, c)));
        assert_ne!(brackets.0, brackets.1, "{data_type}");
    }
}
