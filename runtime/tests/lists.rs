//! Lists of buffers: each member for itself, whatever its memory; and what must come of wrong ones.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "chaos/watchdog.rs"]
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use windlass::accelerator::simulated::{Options, SimulatedAccelerator};
use windlass::{
    Algorithm, Buffer, Collective, Communicator, Config, DataType, Error, List, Memory, MemoryMut, Piece,
    Problem, RawRequest, ReduceOp, Simulation, SimulationOptions, TransportChoice,
};

use watchdog::watch;

fn configs() -> [Config; 2] {
    [TransportChoice::Shm, TransportChoice::Tcp].map(config)
}

fn config(transport: TransportChoice) -> Config {
    let mut config = Config::default();
    config.transport = transport;
    (config.timeout, config.join_timeout) = (Duration::from_secs(20), Duration::from_secs(20));
    config
}

const LENGTHS: [usize; 8] = [1, 0, 7, 1000, 64, 3, 20_000, 5];

fn value(rank: u32, member: usize, index: usize) -> i64 {
    i64::from(rank + 1) * 1000 + member as i64 * 100 + (index % 97) as i64
}

fn filled(comm: &Communicator, lengths: &[usize]) -> Vec<Buffer<i64>> {
    let member = |(member, length): (usize, &usize)| {
        let mut buffer = comm.alloc(*length).unwrap();
        buffer.iter_mut().enumerate().for_each(|(index, at)| *at = value(comm.rank(), member, index));
        buffer
    };
    lengths.iter().enumerate().map(member).collect()
}

/// What each element of the sum of a member over the ranks must be.
fn check_sums(members: &[impl std::ops::Deref<Target = [i64]>], ranks: u32) {
    for (member, memory) in members.iter().enumerate() {
        for (index, at) in memory.iter().enumerate() {
            assert_eq!(
                *at,
                (0..ranks).map(|rank| value(rank, member, index)).sum::<i64>(),
                "{member} {index}"
            );
        }
    }
}

#[test]
fn every_member_is_reduced_for_itself_by_every_face() {
    let _watchdog = watch(60);
    for config in configs() {
        for ranks in [1, 2, 3] {
            windlass::threads_with(ranks, &config, |comm| {
                let list = comm.all_reduce(List::new(filled(&comm, &LENGTHS)), ReduceOp::Sum).wait().unwrap();
                check_sums(list.members(), ranks);
                let mut list = List::new(filled(&comm, &LENGTHS));
                comm.blocking().lists().all_reduce(&mut list, ReduceOp::Sum).unwrap();
                check_sums(list.members(), ranks);
                assert_eq!(list[3].len(), 1000);
                // Several at a time, and one into another one.
                let mut list = List::new(filled(&comm, &LENGTHS));
                let mut heap = List::new(filled(&comm, &LENGTHS).into_iter().map(|b| b.to_vec()).collect());
                let mut result: List<Vec<i64>> = List::new(LENGTHS.map(|length| vec![7; length]).to_vec());
                comm.scope(|scope| {
                    let one = scope.lists().all_reduce(&mut list, ReduceOp::Sum);
                    let other = scope.lists().all_reduce_into(&mut heap, &mut result, ReduceOp::Sum);
                    one.wait().unwrap();
                    other.wait().unwrap();
                });
                check_sums(list.members(), ranks);
                check_sums(result.members(), ranks);
                assert!(heap.members().iter().zip(filled(&comm, &LENGTHS)).all(|(a, b)| a[..] == b[..]));
            })
            .unwrap();
        }
    }
}

#[test]
fn a_few_thousand_members_are_one_operation() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(3, &config, |comm| {
            // More and more of them: what a rank lends of a list grows.
            for count in [2usize, 100, 3000, 10] {
                for _ in 0..12 {
                    let lengths: Vec<_> = (0..count).map(|member| member * 31 % 50).collect();
                    let mut list = List::new(filled(&comm, &lengths[..count.min(300)]));
                    let mut rest = List::new(vec![vec![i64::from(comm.rank()); 3]; count]);
                    comm.blocking().lists().all_reduce(&mut list, ReduceOp::Sum).unwrap();
                    comm.blocking().lists().all_reduce(&mut rest, ReduceOp::Max).unwrap();
                    check_sums(list.members(), 3);
                    assert!(rest.members().iter().all(|member| *member == [2; 3]));
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn torchs_lists_and_coalesced_calls() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(3, &config, |comm| {
            let (rank, ranks) = (i64::from(comm.rank()), comm.size());
            let of = |length: usize| move |salt: i64| vec![salt; length];
            // all_gather(list, tensor), reduce_scatter(tensor, list), all_to_all(list, list).
            let outputs = List::new(vec![vec![0i64; 4]; 3]);
            let (_, outputs) = comm.all_gather_into(vec![rank; 4], outputs).wait().unwrap();
            assert_eq!(outputs.into_members(), [vec![0; 4], vec![1; 4], vec![2; 4]]);
            let inputs = List::new((0..3).map(|block| vec![10 * block + rank; 5]).collect());
            let (_, mine) = comm.reduce_scatter_into(inputs, vec![0; 5], ReduceOp::Sum).wait().unwrap();
            assert_eq!(mine, vec![30 * rank + 3; 5]);
            let inputs = List::new((0..3).map(|to| vec![10 * rank + to; 2]).collect());
            let (_, outputs) = comm.all_to_all_into(inputs, List::new(vec![vec![0; 2]; 3])).wait().unwrap();
            assert_eq!(outputs.into_members(), [0, 1, 2].map(|from| vec![10 * from + rank; 2]));
            // all_to_all of other lengths: rank r has r + 1 elements for everybody.
            let inputs = List::new((0..3).map(|to| vec![10 * rank + to; rank as usize + 1]).collect());
            let outputs = List::new((0..3).map(|from| vec![0; from + 1]).collect());
            let sent = [rank as usize + 1; 3];
            let exchanged = comm.all_to_all_v_into(inputs, outputs, &sent, &[1, 2, 3]).wait().unwrap().1;
            assert_eq!(
                exchanged.into_members(),
                [0, 1, 2].map(|from| vec![10 * from + rank; from as usize + 1])
            );
            // gather and scatter: the root's list.
            let collected = List::new(if rank == 1 { vec![vec![0; 2]; 3] } else { vec![] });
            let (_, collected) = comm.gather_into(vec![rank; 2], collected, 1).wait().unwrap();
            assert_eq!(
                collected.into_members(),
                if rank == 1 { vec![vec![0; 2], vec![1; 2], vec![2; 2]] } else { vec![] }
            );
            let given = List::new(if rank == 2 { vec![vec![5; 3], vec![6; 3], vec![7; 3]] } else { vec![] });
            let (_, mine) = comm.scatter_into(given, vec![0; 3], 2).wait().unwrap();
            assert_eq!(mine, vec![5 + rank; 3]);
            // all_gather and reduce_scatter, coalesced: each tensor for itself.
            let shards = List::new(vec![of(2)(rank), of(0)(0), of(3)(10 + rank)]);
            let whole = List::by_rank(vec![of(6)(0), of(0)(0), of(9)(0)], ranks).unwrap();
            let (_, whole) = comm.all_gather_into(shards, whole).wait().unwrap();
            assert_eq!(
                whole.into_members(),
                [vec![0, 0, 1, 1, 2, 2], vec![], vec![10, 10, 10, 11, 11, 11, 12, 12, 12]]
            );
            let whole = List::by_rank(vec![of(6)(1), of(3)(rank)], ranks).unwrap();
            let shards = List::new(vec![of(2)(0), of(1)(0)]);
            let (_, shards) = comm.reduce_scatter_into(whole, shards, ReduceOp::Sum).wait().unwrap();
            assert_eq!(shards.into_members(), [vec![3, 3], vec![3]]);
            // Rooted ones.
            let list = comm.broadcast(List::new(vec![of(3)(rank), of(70)(rank + 1)]), 2).wait().unwrap();
            assert_eq!(list.into_members(), [vec![2; 3], vec![3; 70]]);
            let list = comm.reduce(List::new(vec![of(3)(rank), of(7)(1)]), ReduceOp::Sum, 1).wait().unwrap();
            let expected = if rank == 1 { [vec![3; 3], vec![3; 7]] } else { [vec![rank; 3], vec![1; 7]] };
            assert_eq!(list.into_members(), expected);
            let list = comm.scan(List::new(vec![of(3)(rank), of(7)(1)]), ReduceOp::Sum).wait().unwrap();
            assert_eq!(list.into_members(), [vec![(0..=rank).sum(); 3], vec![rank + 1; 7]]);
        })
        .unwrap();
    }
}

#[test]
fn a_scaled_sum_of_a_list_is_scaled_whole() {
    for config in configs() {
        windlass::threads_with(2, &config, |comm| {
            let (mut a, mut b) = ([1.0f64; 5], [2.0f64; 70]);
            let pieces = [
                Piece { address: a.as_mut_ptr().cast(), count: 5 },
                Piece { address: b.as_mut_ptr().cast(), count: 70 },
            ];
            let mut request = RawRequest::new(Collective::AllReduce, DataType::F64, 75);
            (request.op, request.scalar) = (ReduceOp::ScaledSum, 0.5 + f64::from(comm.rank()));
            (request.input_pieces, request.output_pieces) = (&raw const pieces, &raw const pieces);
            // SAFETY: the arrays are there, and nobody else has them.
            unsafe { comm.blocking().perform(&request).unwrap() };
            assert_eq!((a, b), ([2.0; 5], [4.0; 70]));
        })
        .unwrap();
    }
}

#[test]
fn over_a_simulated_network_lists_are_right_under_any_order() {
    for seed in 0..8 {
        let ranks = 1 + seed as u32 % 4;
        let simulation =
            Simulation::new(ranks, seed, SimulationOptions::default(), &Config::default()).unwrap();
        let started: Vec<_> = simulation
            .communicators()
            .iter()
            .map(|comm| comm.all_reduce(List::new(filled(comm, &LENGTHS[..6])), ReduceOp::Sum))
            .collect();
        simulation.settle();
        for operation in started {
            check_sums(operation.wait().unwrap().members(), ranks);
        }
    }
}

#[test]
fn lists_that_are_cut_differently_are_a_mismatch() {
    let _watchdog = watch(100);
    let algorithms = [None, Some(Algorithm::Direct), Some(Algorithm::Ring)];
    for config in configs() {
        for (small, algorithm) in
            algorithms.into_iter().flat_map(|algorithm| [(true, algorithm), (false, algorithm)])
        {
            let mut config = config.clone();
            if algorithm.is_some_and(Algorithm::needs_mapped_peers)
                && config.transport == TransportChoice::Tcp
            {
                continue;
            }
            config.algorithm = algorithm;
            let scale = if small { 1 } else { 9_000 };
            let errors = windlass::threads_with(2, &config, |comm| {
                let lengths = if comm.rank() == 0 { [3 * scale, scale] } else { [2 * scale, 2 * scale] };
                let list = List::new(lengths.map(|length| vec![1u32; length]).to_vec());
                let (memory, error) = match comm.all_reduce(list, ReduceOp::Sum).wait() {
                    Err(failed) => (failed.memory, failed.error),
                    // Who was content hears of it in the next call.
                    Ok(list) => (list, comm.barrier().wait().unwrap_err().error),
                };
                assert_eq!(memory.members().iter().map(Vec::len).collect::<Vec<_>>(), lengths);
                error
            })
            .unwrap();
            for error in errors {
                assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
                assert!(error.to_string().contains("cut differently"), "{error}");
            }
        }
        // A list of one is its member.
        windlass::threads_with(2, &config, |comm| {
            let sum = if comm.rank() == 0 {
                comm.all_reduce(vec![1u32; 500], ReduceOp::Sum).wait().unwrap()
            } else {
                let list = List::new(vec![vec![], vec![2u32; 500]]);
                comm.all_reduce(list, ReduceOp::Sum).wait().unwrap().into_members().swap_remove(1)
            };
            assert_eq!(sum, [3; 500]);
            // Nothing at all, and lists of nothing.
            let empty = comm.all_reduce(List::<Vec<f32>>::new(vec![]), ReduceOp::Sum).wait().unwrap();
            assert!(empty.members().is_empty());
            let empty = comm.broadcast(List::new(vec![Vec::<u8>::new(); 3]), 0).wait().unwrap();
            assert_eq!(empty.members().len(), 3);
        })
        .unwrap();
    }
}

fn problem<T>(result: Result<T, impl Into<Error>>) -> Problem {
    match result.map(drop).map_err(Into::into) {
        Err(Error::InvalidArgument { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_lists_are_refused() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(2, &config, |comm| {
            let peer = 1 - comm.rank();
            let list = || List::new(vec![vec![0u32; 3], vec![0; 4]]);
            assert_eq!(problem(comm.send(list(), peer, 0).wait()), Problem::Listed);
            assert_eq!(problem(comm.recv(list(), peer, 0).wait()), Problem::Listed);
            let short = comm.all_gather_into(list(), List::new(vec![vec![0u32; 7]; 3])).wait();
            assert_eq!(problem(short), Problem::WrongLength { expected: 14, actual: 21 });
            let odd = comm.reduce_scatter_into(list(), vec![0; 3], ReduceOp::Sum).wait();
            assert_eq!(problem(odd), Problem::WrongLength { expected: 6, actual: 7 });
            let odd = comm.all_to_all_into(list(), list()).wait();
            assert_eq!(problem(odd), Problem::NotDivisible { length: 7, by: 2 });

            let mut memory = [0u32; 64];
            let base: *mut u8 = memory.as_mut_ptr().cast();
            let piece = |at: usize, count| Piece { address: base.wrapping_add(4 * at), count };
            let perform = |input: &[Piece], output: &[Piece], count| {
                let mut request = RawRequest::new(Collective::AllReduce, DataType::U32, count);
                (request.input_pieces, request.output_pieces) = (&raw const *input, &raw const *output);
                // SAFETY: the memory is there, and nobody else has it.
                problem(unsafe { comm.blocking().perform(&request) })
            };
            // Members that overlap; an operand that overlaps the result elsewhere than in place; a member that is nowhere.
            let overlapping = [piece(0, 5), piece(10, 5), piece(4, 1)];
            assert_eq!(perform(&overlapping, &overlapping, 11), Problem::Overlap);
            assert_eq!(
                perform(&[piece(0, 5), piece(10, 5)], &[piece(10, 5), piece(0, 5)], 10),
                Problem::Overlap
            );
            assert_eq!(perform(&[piece(20, 10)], &[piece(0, 5), piece(29, 5)], 10), Problem::Overlap);
            let nowhere = Piece { address: std::ptr::null_mut(), count: 5 };
            assert!(matches!(perform(&[nowhere], &[piece(0, 5)], 5), Problem::Misaligned { address: 0, .. }));
            let odd = Piece { address: base.wrapping_add(6), count: 5 };
            assert!(matches!(perform(&[piece(0, 5)], &[odd], 5), Problem::Misaligned { alignment: 4, .. }));
            let lengths = |expected, actual| Problem::WrongLength { expected, actual };
            assert_eq!(perform(&[piece(0, 5), piece(8, 2)], &[piece(0, 5), piece(8, 2)], 8), lengths(8, 7));
            assert_eq!(perform(&[piece(0, 8)], &[], 8), lengths(8, 0));
            let endless = Piece { address: base, count: usize::MAX };
            assert!(matches!(perform(&[endless, endless], &[piece(0, 8)], 8), Problem::TooLarge { .. }));
            // Nothing of all that was a call: this is the first.
            comm.blocking().lists().all_reduce(&mut list(), ReduceOp::Sum).unwrap();
        })
        .unwrap();
    }
}

#[test]
fn lists_of_device_memory_are_right() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(2, &config, |comm| {
            let device = comm.attach(Arc::new(SimulatedAccelerator::new(Options::default()))).unwrap();
            let on_device = |content: &[i64]| {
                let mut buffer = device.alloc::<i64>(content.len()).unwrap();
                buffer.write(content).unwrap();
                buffer
            };
            let members = filled(&comm, &LENGTHS).iter().map(|member| on_device(member)).collect();
            let list = comm.all_reduce(List::new(members), ReduceOp::Sum).wait().unwrap();
            let read = |buffer: windlass::DeviceBuffer<i64>| {
                let mut content = vec![0; buffer.len()];
                buffer.read(&mut content).unwrap();
                content
            };
            let sums: Vec<_> = list.into_members().into_iter().map(read).collect();
            check_sums(&sums, 2);
        })
        .unwrap();
    }
}

/// A rank leaves while the others wait for it with lists lent: they get their memory back, and can do with it as they like.
#[test]
fn a_list_comes_back_from_an_operation_whose_peer_left() {
    let _watchdog = watch(60);
    for config in configs() {
        let ended = windlass::threads_with(3, &config, |comm| {
            if comm.rank() == 2 {
                std::thread::sleep(Duration::from_millis(30));
                return None;
            }
            let failed =
                comm.all_reduce(List::new(filled(&comm, &LENGTHS)), ReduceOp::Sum).wait().unwrap_err();
            let mut members = failed.memory.into_members();
            members.iter_mut().for_each(|member| member.fill(5));
            assert!(members.iter().all(|member| member.iter().all(|at| *at == 5)));
            assert_eq!(members.iter().map(|member| member.len()).collect::<Vec<_>>(), LENGTHS);
            Some(failed.error)
        });
        for error in ended.unwrap().into_iter().flatten() {
            assert!(matches!(&error, Error::PeerFailed { rank: 2, .. }), "{error:?}");
        }
    }
}

#[test]
fn a_dropped_operation_over_a_list_ends_for_the_others() {
    fn start<M: MemoryMut>(comm: &Communicator, members: Vec<M>) {
        drop(comm.all_reduce(List::new(members), ReduceOp::Max));
    }
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(2, &config, |comm| {
            for round in 0..20 {
                if comm.rank() == round % 2 {
                    start(&comm, filled(&comm, &LENGTHS));
                } else {
                    let list =
                        comm.all_reduce(List::new(filled(&comm, &LENGTHS)), ReduceOp::Max).wait().unwrap();
                    for (member, memory) in list.members().iter().enumerate() {
                        assert!(memory.iter().enumerate().all(|(index, at)| *at == value(1, member, index)));
                    }
                }
            }
            comm.finalize().unwrap();
        })
        .unwrap();
    }
}

/// A list is memory that moves about as any other.
#[test]
fn a_list_may_be_moved_while_its_operation_runs() {
    windlass::threads_with(2, &config(TransportChoice::Shm), |comm| {
        let mut list = Box::new(List::new(filled(&comm, &LENGTHS)));
        assert_eq!(list.span().address(), std::ptr::null_mut());
        let operations: Vec<_> =
            (0..4).map(|_| comm.all_reduce(List::new(filled(&comm, &LENGTHS)), ReduceOp::Sum)).collect();
        let moved: Vec<_> = operations.into_iter().rev().collect();
        moved.into_iter().for_each(|operation| check_sums(operation.wait().unwrap().members(), 2));
        drop(list);
    })
    .unwrap();
}
