//! Ranks that abort, panic, never call or leave: the others hear of it in time.

use std::time::{Duration, Instant};

use windlass::{AbortReason, Error, ReduceOp};

use super::watchdog::watch;
use super::{TRANSPORTS, config};

#[test]
fn an_abort_from_another_thread_frees_every_rank_at_once() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for (count, asynchronous) in [(2usize, false), (200_000, false), (200_000, true)] {
            let aborted = std::sync::Mutex::new(None);
            let ends = windlass::threads_with(3, &config, |comm| {
                std::thread::scope(|scope| {
                    if comm.rank() == 1 {
                        scope.spawn(|| {
                            std::thread::sleep(Duration::from_millis(300));
                            *aborted.lock().unwrap() = Some(Instant::now());
                            comm.abort();
                        });
                    }
                    // Rank 2 never calls.
                    let result = match comm.rank() {
                        2 => {
                            std::thread::sleep(Duration::from_millis(600));
                            comm.blocking().barrier()
                        }
                        _ if asynchronous => {
                            let operation = comm.all_reduce(vec![1f32; count], ReduceOp::Sum);
                            super::futures::block_on(operation).map(drop).map_err(Error::from)
                        }
                        _ => comm.blocking().all_reduce(&mut vec![1f32; count], ReduceOp::Sum),
                    };
                    let expected = AbortReason::Requested;
                    assert!(
                        matches!(&result, Err(Error::Aborted { by: 1, reason, .. }) if *reason == expected),
                        "{result:?}"
                    );
                    Instant::now()
                })
            })
            .unwrap();
            let aborted = aborted.lock().unwrap().unwrap();
            for end in &ends[..2] {
                let after = end.duration_since(aborted);
                assert!(after < Duration::from_millis(100), "over {}: {after:?}", config.transport);
            }
        }
    }
}

#[test]
fn a_panic_ends_the_world_and_goes_on() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        let begin = Instant::now();
        let panic = std::panic::catch_unwind(|| {
            windlass::threads_with(3, &config, |comm| {
                if comm.rank() == 1 {
                    std::panic::resume_unwind(Box::new("rank 1 gives up"));
                }
                let result = comm.blocking().all_reduce(&mut vec![1f32; 100_000], ReduceOp::Sum);
                let expected = AbortReason::Panicked;
                assert!(
                    matches!(&result, Err(Error::Aborted { by: 1, reason, .. }) if *reason == expected),
                    "{result:?}"
                );
            })
        });
        let panic = panic.map(|_| ()).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"rank 1 gives up"));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_rank_that_never_calls_is_named_in_time() {
    let _watchdog = watch(60);
    for mut config in TRANSPORTS.map(|t| config(t, None)) {
        config.timeout = Duration::from_millis(500);
        for (count, asynchronous) in [(2usize, false), (200_000, false), (2, true), (200_000, true)] {
            let results = windlass::threads_with(3, &config, |comm| {
                let begin = Instant::now();
                let result = match comm.rank() {
                    2 => {
                        std::thread::sleep(Duration::from_millis(1200));
                        return None;
                    }
                    _ if asynchronous => {
                        let operation = comm.all_reduce(vec![1f32; count], ReduceOp::Sum);
                        super::futures::block_on(operation).map(drop).map_err(Error::from)
                    }
                    _ => comm.blocking().all_reduce(&mut vec![1f32; count], ReduceOp::Sum),
                };
                Some((result, begin.elapsed()))
            });
            let results: Vec<_> = results.unwrap().into_iter().flatten().collect();
            let mut named = 0;
            for (rank, (result, after)) in results.into_iter().enumerate() {
                match &result {
                    Err(Error::TimedOut { waiting_on, .. }) if waiting_on.contains(&2) => named += 1,
                    // Over messages a rank may wait for one that waits for the culprit, and be the first whose time is over.
                    Err(Error::TimedOut { waiting_on, .. })
                        if config.transport != windlass::TransportChoice::Shm =>
                    {
                        assert_eq!(waiting_on[..], [1 - rank as u32], "{result:?}");
                    }
                    Err(Error::Aborted { reason, .. }) if *reason == AbortReason::TimedOut => {}
                    _ => panic!("{result:?}"),
                }
                let (least, most) = (Duration::from_millis(400), Duration::from_millis(1000));
                assert!(least < after && after < most, "over {}: {after:?}", config.transport);
            }
            assert!(named > 0, "somebody names the rank");
        }
    }
}

#[test]
fn messages_that_never_come_time_out() {
    let _watchdog = watch(60);
    for mut config in TRANSPORTS.map(|t| config(t, None)) {
        config.timeout = Duration::from_millis(500);
        for asynchronous in [false, true] {
            windlass::threads_with(2, &config, |comm| {
                if comm.rank() == 1 {
                    return std::thread::sleep(Duration::from_millis(1200));
                }
                let begin = Instant::now();
                let result = if asynchronous {
                    super::futures::block_on(comm.recv(vec![0u8; 4], 1, 1)).map(drop).map_err(Error::from)
                } else {
                    comm.blocking().recv(&mut [0u8; 4], 1, 1)
                };
                assert!(
                    matches!(&result, Err(Error::TimedOut { waiting_on, .. }) if waiting_on[..] == [1]),
                    "{result:?}"
                );
                assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
            })
            .unwrap();
        }
    }
}

#[test]
fn a_rank_that_leaves_in_the_middle_is_named() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for asynchronous in [false, true] {
            let results = windlass::threads_with(3, &config, |comm| {
                if comm.rank() == 0 {
                    return None;
                }
                let begin = Instant::now();
                let result = if asynchronous {
                    let operation = comm.all_reduce(vec![1f32; 90_000], ReduceOp::Sum);
                    super::futures::block_on(operation).map(drop).map_err(Error::from)
                } else {
                    comm.blocking().all_reduce(&mut vec![1f32; 90_000], ReduceOp::Sum)
                };
                Some((result, begin.elapsed()))
            });
            for (result, after) in results.unwrap().into_iter().flatten() {
                assert!(matches!(result, Err(Error::PeerFailed { rank: 0, .. })), "{result:?}");
                assert!(after < Duration::from_secs(1), "over {}: {after:?}", config.transport);
            }
        }
    }
}

#[test]
fn a_message_received_into_memory_that_was_given_back_does_not_exist() {
    let _watchdog = watch(100);
    // A failure strikes while a receive is blocked; its memory is the caller's again, and the message comes afterwards.
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for round in 0..40 {
            windlass::threads_with(2, &config, |comm| {
                let healthy = comm.duplicate().unwrap();
                let broken = comm.duplicate().unwrap();
                if comm.rank() == 0 {
                    let mut memory = vec![0i64; 4000];
                    let failed = std::thread::scope(|scope| {
                        scope.spawn(|| {
                            std::thread::sleep(Duration::from_micros(400 + round * 37));
                            broken.abort();
                        });
                        broken.blocking().recv(&mut memory, 1, 0)
                    });
                    memory.fill(7);
                    healthy.blocking().barrier().unwrap();
                    healthy.blocking().barrier().unwrap();
                    if failed.is_err() {
                        assert!(
                            memory.iter().all(|&v| v == 7),
                            "a message reached memory that was given back"
                        );
                    }
                } else {
                    healthy.blocking().barrier().unwrap();
                    // It may have been told already; if not, the message leaves.
                    let _ = broken.blocking().send(&[1i64; 4000], 0, 0);
                    healthy.blocking().barrier().unwrap();
                }
            })
            .unwrap();
        }
    }
}

#[test]
fn a_message_sent_from_memory_that_was_given_back_arrives_right_or_not_at_all() {
    let _watchdog = watch(100);
    // A failure strikes while the receiver copies the message from where it lies; its sender then writes that memory anew.
    const COUNT: usize = 1 << 20;
    let (mut arrived, mut failed) = (0, 0);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for round in 0..40 {
            let ends = windlass::threads_with(2, &config, |comm| {
                let healthy = comm.duplicate().unwrap();
                let broken = comm.duplicate().unwrap();
                let mut memory = comm.alloc::<i64>(COUNT).unwrap();
                memory.fill(1 + i64::from(comm.rank()));
                healthy.blocking().barrier().unwrap();
                let mut result = None;
                if comm.rank() == 0 {
                    std::thread::scope(|scope| {
                        scope.spawn(|| {
                            std::thread::sleep(Duration::from_micros(100 + round * 53));
                            broken.abort();
                        });
                        let _ = broken.blocking().send(&memory, 1, 0);
                        memory.fill(7);
                    });
                } else {
                    let received = broken.blocking().recv(&mut memory, 0, 0);
                    let right = memory.iter().all(|&v| v == 1);
                    assert!(received.is_err() || right, "round {round} over {}", config.transport);
                    result = Some(received.is_ok());
                }
                healthy.blocking().barrier().unwrap();
                result
            });
            for arrival in ends.unwrap().into_iter().flatten() {
                *if arrival { &mut arrived } else { &mut failed } += 1;
            }
        }
    }
    println!("{arrived} messages arrived, {failed} did not");
    assert!(failed > 0, "no failure struck in time");
}
