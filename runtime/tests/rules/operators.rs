//! Operators of the program's own.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use windlass::accelerator::simulated::{Options, SimulatedAccelerator};
use windlass::{
    AbortReason, Algorithm, Communicator, DataType, Error, Problem, RawRequest, ReduceOp, TransportChoice,
    UserOp,
};

use super::{Meeting, TRANSPORTS, config};

const RANKS: u32 = 4;

/// Neither commutative nor associative, so that every other order, and every other grouping, shows.
fn horner(acc: &mut [u64], x: &[u64]) {
    assert_eq!(acc.len(), x.len());
    acc.iter_mut().zip(x).for_each(|(acc, x)| *acc = acc.wrapping_mul(31).wrapping_add(*x));
}

fn operand(rank: u32, index: usize) -> u64 {
    (u64::from(rank + 1) << 32 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn operands(rank: u32, count: usize) -> Vec<u64> {
    (0..count).map(|index| operand(rank, index)).collect()
}

fn folded(ranks: u32, first: usize, count: usize) -> Vec<u64> {
    let fold = |index: usize| {
        (1..ranks).fold(operand(0, index), |acc, q| acc.wrapping_mul(31).wrapping_add(operand(q, index)))
    };
    (first..first + count).map(fold).collect()
}

fn every_reduction(comm: &Communicator, op: ReduceOp, count: usize) {
    let (rank, blocking) = (comm.rank(), comm.blocking());
    let mine = operands(rank, count);
    let mut memory = mine.clone();
    blocking.all_reduce(&mut memory, op).unwrap();
    assert_eq!(memory, folded(RANKS, 0, count));
    let mut memory = mine.clone();
    blocking.reduce(&mut memory, op, 2).unwrap();
    assert_eq!(memory, if rank == 2 { folded(RANKS, 0, count) } else { mine.clone() });
    let mut output = vec![0; count];
    comm.scope(|scope| scope.scan_into(&mine, &mut output, op).wait().unwrap());
    assert_eq!(output, folded(rank + 1, 0, count));
    let memory = comm.exscan(mine.clone(), op).wait().unwrap();
    assert_eq!(memory, if rank > 0 { folded(rank, 0, count) } else { mine });
    let mut block = vec![0; count];
    blocking.reduce_scatter_into(&operands(rank, count * RANKS as usize), &mut block, op).unwrap();
    assert_eq!(block, folded(RANKS, rank as usize * count, count));
    let mut buffer = comm.alloc::<u64>(count).unwrap();
    buffer.copy_from_slice(&operands(rank, count));
    let buffer = comm.all_reduce(buffer, op).wait().unwrap();
    assert_eq!(*buffer, folded(RANKS, 0, count));
    // Every other rank's memory registered.
    if rank.is_multiple_of(2) {
        let mut buffer = comm.alloc::<u64>(count).unwrap();
        buffer.copy_from_slice(&operands(rank, count));
        let (_, buffer) = comm.scan_into(operands(rank, count), buffer, op).wait().unwrap();
        assert_eq!(*buffer, folded(rank + 1, 0, count));
    } else {
        let memory = comm.scan(operands(rank, count), op).wait().unwrap();
        assert_eq!(memory, folded(rank + 1, 0, count));
    }
}

#[test]
fn are_folded_in_rank_order_everywhere() {
    for transport in TRANSPORTS {
        // One that cannot serve is left aside: only those that fold by rank can.
        let asked = [None, Some(Algorithm::Direct), Some(Algorithm::Ring), Some(Algorithm::Collect)];
        for algorithm in asked {
            if transport == TransportChoice::Tcp && algorithm.is_some_and(Algorithm::needs_mapped_peers) {
                continue;
            }
            let mut config = config(transport, algorithm);
            (config.model.chunk_bytes, config.model.stage_chunk_bytes) = (8 << 10, 16 << 10);
            windlass::threads_with(RANKS, &config, |comm| {
                let op = comm.register_op("horner", horner).unwrap();
                for count in [0, 1, 13, 700, 30_000] {
                    every_reduction(&comm, op, count);
                }
                let single = comm.split(Some(comm.rank()), 0).unwrap().unwrap();
                let mut alone = operands(comm.rank(), 9);
                single.blocking().all_reduce(&mut alone, op).unwrap();
                assert_eq!(alone, operands(comm.rank(), 9));
            })
            .unwrap();
        }
    }
}

#[test]
fn serve_every_type_and_the_raw_door() {
    fn xor(acc: &mut [i8], x: &[i8]) {
        acc.iter_mut().zip(x).for_each(|(acc, x)| *acc = acc.rotate_left(1) ^ x);
    }
    for transport in TRANSPORTS {
        windlass::threads_with(3, &config(transport, None), |comm| {
            let calls = Arc::new(AtomicU32::new(0));
            let counted = Arc::clone(&calls);
            // A function and its context, as C has them.
            let raw = move |acc: *mut u8, x: *const u8, count: usize| {
                counted.fetch_add(1, Ordering::Relaxed);
                assert!(acc.addr().is_multiple_of(16) && x.addr().is_multiple_of(16));
                // SAFETY: two runs of `count` bytes, this call's alone.
                let (acc, x) = unsafe {
                    (
                        std::slice::from_raw_parts_mut(acc.cast(), count),
                        std::slice::from_raw_parts(x.cast(), count),
                    )
                };
                xor(acc, x);
            };
            // SAFETY: it touches its two runs and nothing else.
            let op = unsafe { comm.register_raw_op("rotating xor", DataType::I8, raw) }.unwrap();
            let of = |rank: u32, i: usize| (i * 7 + rank as usize * 50) as i8;
            for count in [1, 3, 1_001] {
                let mut memory: Vec<i8> = (0..count).map(|i| of(comm.rank(), i)).collect();
                let mut request = RawRequest::new(windlass::Collective::AllReduce, DataType::I8, count);
                request.op = op;
                (request.input, request.output) = (memory.as_ptr().cast(), memory.as_mut_ptr().cast());
                // SAFETY: the memory is as long as it says and nobody else's during the call.
                unsafe { comm.blocking().perform(&request) }.unwrap();
                let expected = (0..count)
                    .map(|i| (1..3).fold(of(0, i), |acc: i8, rank| acc.rotate_left(1) ^ of(rank, i)));
                assert!(memory.iter().copied().eq(expected));
            }
            assert!(calls.load(Ordering::Relaxed) >= 6);
        })
        .unwrap();
    }
}

#[test]
fn device_memory_goes_through_the_host() {
    windlass::threads_with(3, &config(TransportChoice::Shm, None), |comm| {
        let device = comm.attach(Arc::new(SimulatedAccelerator::new(Options::default()))).unwrap();
        let op = comm.register_op("horner", horner).unwrap();
        let mut memory = device.alloc::<u64>(5_000).unwrap();
        memory.write(&operands(comm.rank(), 5_000)).unwrap();
        let memory = comm.all_reduce(memory, op).wait().unwrap();
        let mut result = vec![0; 5_000];
        memory.read(&mut result).unwrap();
        assert_eq!(result, folded(3, 0, 5_000));
    })
    .unwrap();
}

#[test]
fn another_name_is_a_mismatch_on_every_rank() {
    for transport in TRANSPORTS {
        let errors = windlass::threads_with(3, &config(transport, None), |comm| {
            let name = if comm.rank() == 1 { "clip to 2" } else { "clip to 1" };
            let op = comm.register_op(name, horner).unwrap();
            let mut memory = operands(comm.rank(), 100);
            // Who is slow to leave the barrier may be told in it.
            let entered = comm.blocking().barrier();
            entered.and_then(|()| comm.blocking().all_reduce(&mut memory, op)).unwrap_err()
        });
        for (rank, error) in errors.unwrap().into_iter().enumerate() {
            let Error::Mismatch { ours, theirs, .. } = &error else { panic!("rank {rank}: {error}") };
            let ops = [ours, theirs].map(|print| print.call().unwrap().op);
            let [one, two] = ["clip to 1", "clip to 2"].map(|name| ReduceOp::User(UserOp::named(name)));
            assert!(ops == [one, two] || ops == [two, one], "{transport}, rank {rank}: {error}");
            assert!(error.to_string().contains("`clip to 1`"), "{error}");
        }
    }
}

#[test]
fn a_panic_aborts_every_rank_and_gives_the_memory_back() {
    for transport in TRANSPORTS {
        for count in [3, 50_000] {
            let ended = windlass::threads_with(3, &config(transport, None), |comm| {
                let mine = comm.rank() == 2;
                let op = comm.register_op("fragile", move |acc: &mut [u64], x: &[u64]| {
                    assert!(!mine, "planted");
                    horner(acc, x);
                });
                let begin = Instant::now();
                let failed = comm.all_reduce(operands(comm.rank(), count), op.unwrap()).wait();
                // A rank that has its result may be told in the next call.
                let error = match failed {
                    Ok(_) => comm.blocking().barrier().unwrap_err(),
                    Err(failed) => {
                        assert_eq!(failed.memory.len(), count);
                        failed.error
                    }
                };
                (error, begin.elapsed())
            });
            for (rank, (error, after)) in ended.unwrap().into_iter().enumerate() {
                let Error::Aborted { by: 2, reason: AbortReason::OperatorPanicked, .. } = error else {
                    panic!("{transport}, {count}, rank {rank}: {error}")
                };
                assert!(after < Duration::from_secs(5), "{after:?}");
            }
        }
    }
}

/// An operator that says when it is called and goes on when it may.
struct Gate {
    called: Mutex<Sender<()>>,
    may: Mutex<Receiver<()>>,
    open: AtomicBool,
}

fn gate() -> (Arc<Gate>, Receiver<()>, Sender<()>) {
    let ((called, heard), (allow, may)) = (channel(), channel());
    let (called, may) = (Mutex::new(called), Mutex::new(may));
    (Arc::new(Gate { called, may, open: AtomicBool::new(false) }), heard, allow)
}

impl Gate {
    fn pass(&self) {
        if !self.open.swap(true, Ordering::SeqCst) {
            self.called.lock().unwrap().send(()).unwrap();
            // Nobody who is kept out by a lock could open it.
            self.may.lock().unwrap().recv_timeout(Duration::from_secs(20)).expect("a lock was held");
        }
    }
}

#[test]
fn no_lock_is_held_while_one_runs() {
    for transport in TRANSPORTS {
        windlass::threads_with(2, &config(transport, None), |comm| {
            let (gate, called, allow) = gate();
            let other = comm.duplicate().unwrap();
            let op = comm.register_op("slow", move |acc: &mut [u64], x: &[u64]| {
                gate.pass();
                horner(acc, x);
            });
            let operation = comm.all_reduce(operands(comm.rank(), 64 << 10), op.unwrap());
            called.recv_timeout(Duration::from_secs(20)).unwrap();
            // The operator waits. The communicator takes calls and messages, and others go on.
            let next = comm.all_reduce(vec![1.0f32; 8], ReduceOp::Sum);
            let message = [comm.rank(); 3];
            let mut received = [9; 3];
            let peer = 1 - comm.rank();
            comm.scope(|scope| {
                let sent = scope.send(&message, peer, 7);
                scope.recv(&mut received, peer, 7).wait().unwrap();
                sent.wait().unwrap();
            });
            assert_eq!(received, [peer; 3]);
            assert!(!operation.is_done() && !next.is_done());
            other.blocking().barrier().unwrap();
            allow.send(()).unwrap();
            assert_eq!(operation.wait().unwrap(), folded(2, 0, 64 << 10));
            assert_eq!(next.wait().unwrap(), [2.0; 8]);
        })
        .unwrap();
    }
}

#[test]
fn memory_given_back_is_not_written_any_more() {
    for transport in TRANSPORTS {
        let both = Meeting::default();
        windlass::threads_with(2, &config(transport, None), |comm| {
            let (gate, called, allow) = gate();
            let done = Arc::new(AtomicU32::new(0));
            let ends = Arc::clone(&done);
            let op = comm.register_op("slow", move |acc: &mut [u64], x: &[u64]| {
                gate.pass();
                horner(acc, x);
                ends.fetch_add(1, Ordering::SeqCst);
            });
            let operation = comm.all_reduce(operands(comm.rank(), 500), op.unwrap());
            called.recv_timeout(Duration::from_secs(20)).unwrap();
            both.of(2);
            comm.abort();
            let memory = operation.wait().unwrap_err().memory;
            let given_back = memory.clone();
            allow.send(()).unwrap();
            let begin = Instant::now();
            while done.load(Ordering::SeqCst) == 0 && begin.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(memory, given_back, "{transport}");
        })
        .unwrap();
    }
}

#[test]
fn wrong_ones_are_refused() {
    windlass::threads_with(1, &config(TransportChoice::Shm, None), |comm| {
        let problem = |result: Result<ReduceOp, Error>| match result {
            Err(Error::InvalidArgument { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        let op = comm.register_op("mine", horner).unwrap();
        assert_eq!(problem(comm.register_op("mine", horner)), Problem::NameTaken);
        assert_eq!(problem(comm.register_op("mine", |_: &mut [f32], _: &[f32]| ())), Problem::NameTaken);
        for name in ["".to_owned(), "n".repeat(256)] {
            let problem = problem(comm.register_op(&name, horner));
            assert!(matches!(problem, Problem::WrongLength { .. }), "{problem:?}");
        }
        let call = |op| comm.blocking().all_reduce(&mut [1.0f32; 4], op).map(|()| op);
        let Problem::WrongType { expected, actual } = problem(call(op)) else { panic!("another type") };
        assert_eq!((expected, actual), (DataType::F32, DataType::U64));
        let unknown = ReduceOp::User(UserOp::named("nobody's"));
        assert_eq!(problem(call(unknown)), Problem::NotRegistered);
        let text = call(unknown).unwrap_err().to_string();
        assert!(text.contains("all_reduce") && text.contains("register_op"), "{text}");
        for i in 1..256 {
            comm.register_op(&format!("op {i}"), horner).unwrap();
        }
        assert!(matches!(problem(comm.register_op("one more", horner)), Problem::OutOfRange { .. }));
        // Another job has its own.
        assert_eq!(comm.blocking().all_reduce(&mut [5u64; 2], op), Ok(()));
    })
    .unwrap();
    windlass::threads_with(1, &config(TransportChoice::Shm, None), |comm| {
        comm.register_op("mine", horner).unwrap();
    })
    .unwrap();
}
