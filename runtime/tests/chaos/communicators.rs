//! Communicators of some ranks, several at once, and their ends.

use std::time::{Duration, Instant};

use windlass::{Error, Problem, ReduceOp};

use super::watchdog::watch;
use super::{TRANSPORTS, config};

#[test]
fn splits_by_odd_colours_and_keys_nest() {
    let _watchdog = watch(100);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(6, &config, |comm| {
            let rank = comm.rank();
            // Colours 0, u32::MAX and none; keys that reverse the order.
            let colour = [Some(0), Some(u32::MAX), None][rank as usize % 3];
            let part = comm.split(colour, -i64::from(rank)).unwrap();
            assert_eq!(part.is_some(), rank % 3 != 2);
            if let Some(part) = &part {
                assert_eq!(part.size(), 2);
                assert_eq!(part.members(), [rank % 3 + 3, rank % 3]);
                assert_eq!(part.rank(), u32::from(rank < 3));
                let mut memory = vec![rank as i32; 20_000];
                part.blocking().all_reduce(&mut memory, ReduceOp::Sum).unwrap();
                assert!(memory.iter().all(|&v| v == 2 * (rank as i32 % 3) + 3));
                let single = part.split(Some(part.rank()), i64::MIN).unwrap().unwrap();
                assert_eq!((single.size(), single.rank()), (1, 0));
                single.blocking().all_reduce(&mut memory, ReduceOp::Max).unwrap();
                let copy = part.duplicate().unwrap().duplicate().unwrap();
                let mut got = vec![0i32; 2];
                copy.blocking().all_gather_into(&[rank as i32], &mut got).unwrap();
                assert_eq!(got, [rank as i32 % 3 + 3, rank as i32 % 3]);
                copy.blocking().broadcast(&mut got, 1).unwrap();
                copy.finalize().unwrap();
            }
            comm.blocking().barrier().unwrap();
            assert!(comm.split(None, 0).unwrap().is_none(), "no rank gives a colour");
            let everyone = comm.split(Some(5), i64::MAX).unwrap().unwrap();
            assert_eq!(everyone.members(), comm.members());
        })
        .unwrap();
    }
}

#[test]
fn communicators_are_made_and_dropped_without_end() {
    let _watchdog = watch(100);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(3, &config, |comm| {
            for round in 0..100i64 {
                let other = comm.split(Some(u32::from(comm.rank() == 1)), round).unwrap().unwrap();
                let mut one = [1i32];
                other.blocking().all_reduce(&mut one, ReduceOp::Sum).unwrap();
                assert_eq!(one[0], other.size() as i32);
            }
        })
        .unwrap();
    }
}

#[test]
fn two_communicators_used_in_opposite_order_by_two_threads() {
    let _watchdog = watch(100);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(2, &config, |comm| {
            let (a, b) = (comm.duplicate().unwrap(), comm.duplicate().unwrap());
            let rounds = 300i32;
            let work = |c: &windlass::Communicator, count: usize| {
                let mut memory = vec![0i32; count];
                for round in 0..rounds {
                    memory.fill(round);
                    c.blocking().all_reduce(&mut memory, ReduceOp::Sum).unwrap();
                    assert!(memory.iter().all(|&v| v == 2 * round));
                }
            };
            let begin = Instant::now();
            std::thread::scope(|scope| {
                // Rank 0 starts with a, rank 1 with b: whoever waited for the other communicator would wait for ever.
                let (first, second) = if comm.rank() == 0 { (&a, &b) } else { (&b, &a) };
                scope.spawn(|| work(first, if comm.rank() == 0 { 10 } else { 5000 }));
                std::thread::sleep(Duration::from_millis(20));
                scope.spawn(|| work(second, if comm.rank() == 0 { 5000 } else { 10 }));
            });
            let each = begin.elapsed() / rounds as u32;
            println!("over {}: {each:.1?} for two operations on two communicators", config.transport);
            assert!(each < Duration::from_millis(10), "the communicators wait for each other: {each:.1?}");
            // One thread, asynchronously, in opposite order.
            let (first, second) = if comm.rank() == 0 { (&a, &b) } else { (&b, &a) };
            for _ in 0..100 {
                let one = first.all_reduce(vec![1i32; 3000], ReduceOp::Sum);
                let two = second.all_reduce(vec![1i32; 3000], ReduceOp::Sum);
                assert_eq!((one.wait().unwrap()[0], two.wait().unwrap()[0]), (2, 2));
            }
        })
        .unwrap();
    }
}

#[test]
fn a_finalized_communicator_refuses_calls() {
    let _watchdog = watch(60);
    windlass::threads_with(2, &super::shm(), |comm| {
        let clone = comm.clone();
        comm.finalize().unwrap();
        for error in [
            clone.blocking().barrier().unwrap_err(),
            clone.all_reduce(vec![1f32], ReduceOp::Sum).wait().unwrap_err().error,
            clone.blocking().send(&[1u8], 1 - clone.rank(), 0).unwrap_err(),
            clone.split(Some(1), 0).unwrap_err(),
            clone.clone().finalize().unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::InvalidArgument { problem: Problem::Finalized, .. }),
                "a call on a finalized communicator: {error}"
            );
        }
    })
    .unwrap();
}

#[test]
fn a_failed_communicator_leaves_the_others_alone() {
    let _watchdog = watch(60);
    // Over TCP a large message that is cut off in the middle costs its link, so a small one differs here.
    for (config, count) in TRANSPORTS.map(|t| config(t, None)).into_iter().zip([100_000, 100]) {
        windlass::threads_with(3, &config, |comm| {
            let other = comm.duplicate().unwrap();
            let result = if comm.rank() == 1 {
                other.blocking().all_reduce(&mut vec![1f32; count], ReduceOp::Sum)
            } else {
                other.blocking().barrier()
            };
            assert!(matches!(result, Err(Error::Mismatch { .. })), "{result:?}");
            // The same error again, at once, also from what was never started.
            assert_eq!(other.blocking().barrier(), result);
            for _ in 0..100 {
                let mut one = vec![1i32; 5000];
                comm.blocking().all_reduce(&mut one, ReduceOp::Sum).unwrap();
                assert!(one.iter().all(|&v| v == 3));
            }
        })
        .unwrap();
    }
}

#[test]
fn two_jobs_at_once_do_not_meet() {
    let _watchdog = watch(100);
    std::thread::scope(|scope| {
        for (job, config) in TRANSPORTS.iter().chain(&TRANSPORTS).map(|&t| config(t, None)).enumerate() {
            scope.spawn(move || {
                windlass::threads_with(3, &config, |comm| {
                    for _ in 0..100 {
                        let mut memory = [job as i32; 100];
                        comm.blocking().all_reduce(&mut memory, ReduceOp::Max).unwrap();
                        assert_eq!(memory, [job as i32; 100]);
                    }
                })
                .unwrap();
            });
        }
    });
}
