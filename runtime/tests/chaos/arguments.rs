//! Calls that are wrong in themselves, and calls that are right although they look odd.

use windlass::{Algorithm, Collective, DataType, Error, Problem, RawRequest, ReduceOp};

use super::watchdog::watch;
use super::{TRANSPORTS, config, shm};

fn problem(result: Result<(), Error>) -> Problem {
    match result {
        Err(Error::InvalidArgument { problem, .. }) => problem,
        other => panic!("an invalid argument was taken: {other:?}"),
    }
}

#[test]
fn one_rank_alone_does_everything_but_talk_to_itself() {
    let _watchdog = watch(60);
    let algorithms = [None, Some(Algorithm::Direct), Some(Algorithm::Ring), Some(Algorithm::Publish)];
    for config in TRANSPORTS.iter().flat_map(|&t| algorithms.map(|a| config(t, a))) {
        windlass::threads_with(1, &config, |comm| {
            let blocking = comm.blocking();
            for count in [0, 1, 1000, 100_000] {
                let input = vec![3.0f32; count];
                let mut output = vec![0.0f32; count];
                blocking.all_reduce(&mut output, ReduceOp::Sum).unwrap();
                blocking.all_reduce_into(&input, &mut output, ReduceOp::Avg).unwrap();
                assert_eq!(input, output);
                output.fill(0.0);
                blocking.reduce_scatter_into(&input, &mut output, ReduceOp::Max).unwrap();
                assert_eq!(input, output);
                output.fill(0.0);
                blocking.all_gather_into(&input, &mut output).unwrap();
                assert_eq!(input, output);
                blocking.broadcast(&mut output, 0).unwrap();
                let output = comm.all_reduce(output, ReduceOp::Sum).wait().unwrap();
                assert_eq!(input, output);
            }
            blocking.barrier().unwrap();
            assert_eq!(problem(blocking.send(&[1u8], 0, 0)), Problem::OwnRank);
            assert_eq!(problem(blocking.recv(&mut [1u8], 0, 0)), Problem::OwnRank);
            let other = comm.split(Some(7), 0).unwrap().unwrap();
            other.blocking().all_reduce(&mut [1i32], ReduceOp::Sum).unwrap();
            assert!(comm.split(None, 0).unwrap().is_none());
            comm.finalize().unwrap();
        })
        .unwrap();
    }
}

#[test]
fn nothing_and_odd_counts_are_right_on_every_transport() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(3, &config, |comm| {
            let blocking = comm.blocking();
            for count in [0usize, 1, 2, 4, 31, 1025, 65_537] {
                let mut memory = comm.alloc::<i32>(count).unwrap();
                memory.fill(comm.rank() as i32 + 1);
                blocking.all_reduce(&mut memory, ReduceOp::Prod).unwrap();
                assert!(memory.iter().all(|&v| v == 6), "{count}");
                let mut whole = vec![0; 3 * count];
                blocking.all_gather_into(&memory, &mut whole).unwrap();
                blocking.reduce_scatter_into(&whole, &mut memory, ReduceOp::Sum).unwrap();
                assert!(memory.iter().all(|&v| v == 18), "{count}");
            }
            blocking.send(&[0u8; 0], (comm.rank() + 1) % 3, 0).unwrap();
            blocking.recv(&mut [0u8; 0], (comm.rank() + 2) % 3, 0).unwrap();
        })
        .unwrap();
    }
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_started() {
    let _watchdog = watch(60);
    windlass::threads_with(2, &shm(), |comm| {
        let blocking = comm.blocking();
        let own = comm.rank();
        assert_eq!(problem(blocking.broadcast(&mut [0u8; 4], 2)), Problem::OutOfRange { value: 2, limit: 2 });
        assert_eq!(problem(blocking.send(&[0u8; 4], 9, 0)), Problem::OutOfRange { value: 9, limit: 2 });
        assert_eq!(problem(blocking.send(&[0u8; 4], own, 0)), Problem::OwnRank);
        let tag = problem(blocking.send(&[0u8; 4], 1 - own, u32::MAX));
        assert!(matches!(tag, Problem::OutOfRange { .. }), "{tag:?}");
        let (a, mut b) = ([0f32; 4], [0f32; 5]);
        let length = Problem::WrongLength { expected: 4, actual: 5 };
        assert_eq!(problem(blocking.all_reduce_into(&a, &mut b, ReduceOp::Sum)), length);
        let length = Problem::WrongLength { expected: 10, actual: 4 };
        assert_eq!(problem(blocking.reduce_scatter_into(&a, &mut b, ReduceOp::Sum)), length);
        let length = Problem::WrongLength { expected: 8, actual: 5 };
        assert_eq!(problem(blocking.all_gather_into(&a, &mut b)), length);
        // An operation that is refused gives its memory back.
        let failed = comm.broadcast(vec![5u8; 3], 7).wait().unwrap_err();
        assert_eq!(failed.memory, [5; 3]);
        assert!(!failed.error.is_fatal());
        // And the communicator is as good as before, in the same place of the order on all ranks.
        let mut one = [1i32];
        blocking.all_reduce(&mut one, ReduceOp::Sum).unwrap();
        assert_eq!(one, [2]);
    })
    .unwrap();
}

#[test]
fn raw_memory_that_is_null_misaligned_overlapping_or_endless_is_refused() {
    let _watchdog = watch(60);
    windlass::threads_with(4, &shm(), |comm| {
        let mut memory = vec![0f64; 64];
        let base = memory.as_mut_ptr().cast::<u8>();
        let perform = |collective, count, input: *const u8, output: *mut u8| {
            let mut request = RawRequest::new(collective, DataType::F64, count);
            (request.input, request.output) = (input, output);
            // SAFETY: every request is refused before its memory is touched, or stays in `memory`.
            problem(unsafe { comm.blocking().perform(&request) })
        };
        let null = std::ptr::null_mut();
        let misaligned = |problem| matches!(problem, Problem::Misaligned { .. });
        assert!(misaligned(perform(Collective::AllReduce, 4, null, null)));
        assert!(misaligned(perform(Collective::AllReduce, 4, base, null)));
        assert!(misaligned(perform(Collective::AllReduce, 4, base.wrapping_add(4), base)));
        assert!(misaligned(perform(Collective::Broadcast, 4, base.wrapping_add(1), base.wrapping_add(1))));
        for (collective, apart) in
            [(Collective::AllReduce, 8), (Collective::ReduceScatter, 4), (Collective::AllGather, 4)]
        {
            assert_eq!(perform(collective, 8, base.wrapping_add(apart * 2), base), Problem::Overlap);
            assert_eq!(perform(collective, 8, base, base.wrapping_add(apart * 2)), Problem::Overlap);
        }
        let collectives = [Collective::AllReduce, Collective::AllGather, Collective::ReduceScatter];
        for collective in collectives {
            for count in [usize::MAX, usize::MAX / 8, isize::MAX as usize / 8 + 1] {
                let refused = perform(collective, count, base, base);
                assert!(matches!(refused, Problem::TooLarge { .. }), "{collective} {count}: {refused:?}");
            }
        }
        // The most that an address can span is refused for what it overlaps, without an overflow on the way.
        let most = isize::MAX as usize / 8;
        assert_eq!(perform(Collective::AllReduce, most, base, base.wrapping_add(8)), Problem::Overlap);
        // In place is no overlap: a rank's own block of the other side.
        let block = comm.rank() as usize * 8 * 8;
        let mut request = RawRequest::new(Collective::AllGather, DataType::F64, 8);
        (request.input, request.output) = (base.wrapping_add(block), base);
        // SAFETY: 4 blocks of 8 elements lie in `memory`, which nothing else uses meanwhile.
        unsafe { comm.blocking().perform(&request) }.unwrap();
    })
    .unwrap();
}

#[test]
fn one_rank_registered_and_the_others_heap_agree() {
    let _watchdog = watch(120);
    for registered in 0..3 {
        windlass::threads_with(3, &shm(), |comm| {
            for count in [1usize, 1000, 300_000] {
                let mut buffer = comm.alloc::<f32>(count).unwrap();
                let mut heap = vec![0f32; count];
                let memory: &mut [f32] = if comm.rank() == registered { &mut buffer } else { &mut heap };
                for round in 0..5 {
                    memory.fill((comm.rank() + round) as f32);
                    comm.blocking().all_reduce(memory, ReduceOp::Sum).unwrap();
                    let expected = (3 + 3 * round) as f32;
                    assert!(memory.iter().all(|&v| v == expected), "{count} {registered} {round}");
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn more_memory_than_there_is_is_an_error_that_says_what_to_do() {
    let _watchdog = watch(60);
    windlass::threads_with(2, &shm(), |comm| {
        for count in [1usize << 44, 1 << 60, usize::MAX] {
            let error = comm.alloc::<f32>(count).unwrap_err();
            assert!(error.to_string().contains("memory"), "{error}");
        }
        comm.blocking().barrier().unwrap();
    })
    .unwrap();
}

#[test]
fn sixty_four_ranks_on_few_cores_are_right() {
    let _watchdog = watch(120);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        let begin = std::time::Instant::now();
        let first = windlass::threads_with(64, &config, |comm| {
            let mut one = [1i32];
            comm.blocking().all_reduce(&mut one, ReduceOp::Sum).unwrap();
            assert_eq!(one, [64]);
            let first = begin.elapsed();
            let rank = comm.rank() as i32;
            for count in [1usize, 1000, 20_000] {
                let mut memory = comm.alloc::<i32>(count).unwrap();
                memory.fill(rank);
                comm.blocking().all_reduce(&mut memory, ReduceOp::Sum).unwrap();
                assert!(memory.iter().all(|&v| v == 2016));
                let mut all = vec![0i32; 64 * count];
                comm.blocking().all_gather_into(&vec![rank; count], &mut all).unwrap();
                assert!(all.chunks(count).enumerate().all(|(q, b)| b.iter().all(|&v| v == q as i32)));
                let mut block = vec![0; count];
                comm.blocking().reduce_scatter_into(&all, &mut block, ReduceOp::Max).unwrap();
                assert!(block.iter().all(|&v| v == rank));
                let mut heap = vec![rank; count];
                comm.blocking().broadcast(&mut heap, 63).unwrap();
                assert!(heap.iter().all(|&v| v == 63));
                comm.blocking().barrier().unwrap();
            }
            comm.finalize().unwrap();
            first
        })
        .unwrap();
        let first = first.into_iter().max().unwrap_or_default();
        println!("64 threads over {}: first all-reduce {first:.1?} after the start", config.transport);
        assert!(first < std::time::Duration::from_secs(10));
    }
}
