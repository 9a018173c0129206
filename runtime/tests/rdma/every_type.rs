//! All-reduces of every type with every operator there is, of accelerators' memory on all hosts, as the matrix has them: while the memory stays, and
//! while it moves.

use windlass::accelerator::{Accelerator, Movement};
use windlass::{Collective, Communicator, DeviceBuffer, Memory, RawRequest};

use super::accelerators::{Course, importer, is_imported};
use super::elements::{kinds_of_elements, own_operators};
use super::on_hosts;
use super::reference::Case;

/// An operand repeats after so many elements. Blocks and chunks are no multiples of it, so what is in the wrong place differs.
const PERIOD: usize = 509;
/// On both sides of where messages begin to go straight into the memory, whether they carry all of an operand or a rank's part.
const BYTES: [usize; 2] = [(64 << 10) - 16, 320 << 10];

/// Compares one with the reference. Its elements are what fits into the buffer.
fn all_reduce(comm: &Communicator, buffer: &mut DeviceBuffer<u8>, case: &Case) {
    let (size, rank) = (case.data_type.size_bytes(), comm.rank());
    let filled = |bytes: &[u8]| {
        let mut filled = bytes.repeat(buffer.len().div_ceil(bytes.len()));
        filled.truncate(buffer.len());
        filled
    };
    let (mut operand, elements) = (Vec::new(), case.sizes(rank).0);
    (0..elements).for_each(|index| case.operand(rank, index, &mut operand));
    let (operand, expected) = (filled(&operand), filled(&case.result(rank).unwrap()));
    buffer.write(&operand).unwrap();
    let mut request = RawRequest::new(case.collective, case.data_type, buffer.len() / size);
    let address = buffer.span().address();
    request.op = case.op;
    (request.input, request.output) = (address, address);
    // SAFETY: the memory is as long as the request says, and nobody touches it during the call.
    unsafe { comm.blocking().perform(&request) }.unwrap_or_else(|error| panic!("{case:?}: {error}"));
    let mut result = vec![0; buffer.len()];
    buffer.read(&mut result).unwrap();
    if let Some(at) = (0..result.len()).find(|&at| result[at] != expected[at]) {
        let (element, of) = (at / size, buffer.len() / size);
        let bytes = element * size..(element + 1) * size;
        panic!(
            "{case:?}, rank {rank}: element {element} of {of} is {:?}, not {:?}",
            &result[bytes.clone()],
            &expected[bytes]
        );
    }
}

/// All of them. How many cases there were, and how many of the largest ones a NIC has had the memory of.
fn all_reduces(
    comm: &Communicator,
    alloc: impl Fn(usize) -> DeviceBuffer<u8>,
    imported: impl Fn(&DeviceBuffer<u8>) -> bool,
) -> (u64, u64) {
    let (own, mut buffers) = (own_operators(comm), BYTES.map(alloc));
    let (mut cases, mut reached) = (0, 0);
    for (data_type, op) in kinds_of_elements(Collective::AllReduce, &own) {
        for buffer in &mut buffers {
            cases += 1;
            let (collective, ranks) = (Collective::AllReduce, comm.size());
            let case = Case { collective, data_type, op, ranks, root: 0, count: PERIOD, salt: cases };
            all_reduce(comm, buffer, &case);
        }
        reached += u64::from(imported(&buffers[BYTES.len() - 1]));
    }
    (cases, reached)
}

fn on_accelerators(job: &str, course: Course) {
    if importer().is_none() {
        return println!(
            "skipped: no accelerator whose memory NICs import and that moves (deploy/testbed/run)"
        );
    }
    on_hosts(job, |comm| {
        let (accelerator, device) = course.attach(comm);
        let alloc = |bytes| device.alloc(bytes).unwrap();
        let (cases, imported) = all_reduces(comm, alloc, |buffer| is_imported(&accelerator, buffer));
        let (counters, reconnects) = (accelerator.counters(), comm.reconnects());
        println!(
            "{course:?}, rank {} of {}: {cases} all-reduces of every type, all right; {} moves, {} revokes, {} refused; {reconnects:?}",
            comm.rank(),
            comm.size(),
            counters.moves,
            counters.revokes,
            counters.refused
        );
        assert_eq!(accelerator.stale_stores(), Some(0), "memory was written after it had moved");
        assert!(cases > 300, "{cases} cases are not every type with every operator");
        if course.is_still() {
            assert_eq!(imported, cases / BYTES.len() as u64, "messages went by the host");
        } else {
            let away = counters.moves + counters.revokes;
            assert!(away >= 20 && reconnects.streams > 0, "memory was away {away} times: {reconnects:?}");
        }
    });
}

#[test]
fn of_memory_that_stays() {
    on_accelerators("types-still", Course::still());
}

#[test]
fn of_memory_that_moves() {
    let movement = match importer().as_deref() {
        Some("revocable") => Movement::Revocable,
        Some("pinned") => Movement::Pinned,
        _ => Movement::Cooperative,
    };
    on_accelerators("types-moving", Course { movement, moves: 10.0, revokes: 0.0 });
}
