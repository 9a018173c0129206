//! Sends and receives posted together.

use std::time::{Duration, Instant};

use windlass::{
    Collective, Communicator, Config, DataType, Error, PeerCause, Problem, RawRequest, ReduceOp, Simulation,
    SimulationOptions,
};

use super::watchdog::watch;
use super::{configs, mix, shuffled};

/// Elements of the message of one rank to another in a round: none, few, many, and more than one chunk.
fn length(from: u32, to: u32, round: u64) -> usize {
    const LENGTHS: [usize; 6] = [0, 1, 100, 9_000, 70_000, 1_200_000];
    LENGTHS[mix(round << 16 ^ u64::from(from * 16 + to)) as usize % LENGTHS.len()]
}

fn content(from: u32, to: u32, round: u64) -> Vec<u64> {
    let salt = mix(u64::from(from) << 40 ^ u64::from(to) << 20 ^ round);
    (0..length(from, to, round) as u64).map(|i| salt ^ i).collect()
}

#[test]
fn neighbours_on_a_ring_exchange_whatever_their_number() {
    let _watchdog = watch(120);
    for config in configs() {
        for ranks in 1..=5 {
            windlass::threads_with(ranks, &config, |comm| {
                let rank = comm.rank();
                let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
                for round in 0..12 {
                    let sent = content(rank, next, round);
                    let expected = content(previous, rank, round);
                    let mut got = vec![0; expected.len()];
                    match round % 3 {
                        0 => comm.blocking().sendrecv(&sent, next, &mut got, previous, 5).unwrap(),
                        1 => {
                            let operation = comm.sendrecv(sent, next, got, previous, 5);
                            (_, got) = operation.wait().unwrap();
                        }
                        _ => comm.scope(|scope| {
                            scope.sendrecv(&sent, next, &mut got, previous, 5).wait().unwrap()
                        }),
                    }
                    assert!(got == expected, "round {round} on {ranks} ranks over {}", config.transport);
                }
            })
            .unwrap();
        }
    }
}

/// Everybody to everybody, each rank in an order of its own, with two messages of one tag between each two.
fn all_with_all(comm: &Communicator, round: u64) {
    let (rank, ranks) = (comm.rank(), comm.size());
    let order = |salt| shuffled(ranks, round << 8 ^ u64::from(rank) << 1 ^ salt);
    let twice =
        |peers: Vec<u32>| peers.into_iter().flat_map(|peer| [(peer, 0), (peer, 1)]).collect::<Vec<_>>();
    let (to, from) = (twice(order(0)), twice(order(1)));
    let number = |nth: u64| round * 2 + nth;
    let sends: Vec<_> = to.iter().map(|&(to, nth)| (content(rank, to, number(nth)), to, 3)).collect();
    let empty = |&(from, nth): &(u32, u64)| (vec![0u64; length(from, rank, number(nth))], from, 3);
    let mut receives: Vec<_> = from.iter().map(empty).collect();
    let check = |got: &[u64], (from, nth): (u32, u64)| {
        assert!(got == content(from, rank, number(nth)), "from {from} to {rank} in round {round}");
    };
    match round % 3 {
        0 => {
            let sends: Vec<_> = sends.iter().map(|(memory, to, tag)| (&memory[..], *to, *tag)).collect();
            let mut into: Vec<_> =
                receives.iter_mut().map(|(memory, from, tag)| (&mut memory[..], *from, *tag)).collect();
            comm.blocking().exchange(&sends, &mut into).unwrap();
        }
        1 => {
            let sent: Vec<_> = sends.iter().map(|(memory, ..)| memory.clone()).collect();
            let (given, got) = comm.exchange(sends, receives).wait().unwrap();
            assert_eq!(given, sent);
            return got.iter().zip(from).for_each(|(memory, place)| check(memory, place));
        }
        _ => comm.scope(|scope| {
            let sends: Vec<_> = sends.iter().map(|(memory, to, tag)| (&memory[..], *to, *tag)).collect();
            let into = receives.iter_mut().map(|(memory, from, tag)| (&mut memory[..], *from, *tag));
            let exchange = scope.exchange(&sends, into.collect());
            exchange.wait().unwrap();
        }),
    }
    receives.iter().zip(from).for_each(|((memory, ..), place)| check(memory, place));
}

#[test]
fn everybody_exchanges_with_everybody_in_any_order() {
    let _watchdog = watch(200);
    for config in configs() {
        for ranks in [1, 2, 3, 5] {
            windlass::threads_with(ranks, &config, |comm| {
                (0..9).for_each(|round| all_with_all(&comm, round))
            })
            .unwrap();
        }
    }
}

#[test]
fn an_exchange_holds_up_no_collective() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(2, &config, |comm| {
            let peer = 1 - comm.rank();
            let receives = (0..8).map(|tag| (vec![0u32; 50_000], peer, tag)).collect();
            let received = comm.exchange(Vec::<(Vec<u32>, u32, u32)>::new(), receives);
            assert!(!received.is_done());
            let mut value = [1u32];
            comm.blocking().all_reduce(&mut value, ReduceOp::Sum).unwrap();
            assert_eq!(value, [2]);
            let sends = (0..8).rev().map(|tag| (vec![tag; 50_000], peer, tag)).collect();
            let sent = comm.exchange(sends, Vec::<(Vec<u32>, u32, u32)>::new());
            let (_, got) = received.wait().unwrap();
            assert!(got.iter().zip(0u32..).all(|(memory, tag)| memory.iter().all(|value| *value == tag)));
            sent.wait().unwrap();
            // Nothing at all is an exchange, too.
            let nothing = || Vec::<(Vec<u32>, u32, u32)>::new();
            let empty = comm.exchange(nothing(), nothing());
            assert!(empty.is_done());
            empty.wait().unwrap();
            comm.blocking().exchange::<u32>(&[], &mut []).unwrap();
        })
        .unwrap();
    }
}

#[test]
fn over_a_simulated_network_any_order_of_events_is_right() {
    // Every byte is simulated.
    let small = |mut memory: Vec<u64>| {
        memory.truncate(3000);
        memory
    };
    for round in 0..24 {
        let seed = round;
        let ranks = 1 + seed as u32 % 4;
        let simulation =
            Simulation::new(ranks, seed, SimulationOptions::default(), &Config::default()).unwrap();
        let started: Vec<_> = simulation
            .communicators()
            .iter()
            .map(|comm| {
                let rank = comm.rank();
                let content = |to| small(content(rank, to, round));
                let to = shuffled(ranks, seed ^ u64::from(rank));
                let from = shuffled(ranks, seed ^ u64::from(rank) ^ 77);
                let sends = to.into_iter().map(|to| (content(to), to, 1)).collect();
                let empty = |&from: &u32| (small(vec![0; length(from, rank, round)]), from, 1);
                let receives = from.iter().map(empty).collect();
                (rank, from, comm.exchange(sends, receives))
            })
            .collect();
        simulation.settle();
        for (rank, from, operation) in started {
            assert!(operation.is_done(), "seed {seed}");
            let (_, got) = operation.wait().unwrap();
            for (memory, from) in got.iter().zip(from) {
                assert!(*memory == small(content(from, rank, seed)), "seed {seed}");
            }
        }
    }
}

#[test]
fn a_dropped_exchange_goes_on_and_its_peer_gets_everything() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(2, &config, |comm| {
            let peer = 1 - comm.rank();
            for round in 0..20u64 {
                let count = [3, 40_000][round as usize % 2];
                if comm.rank() == 0 {
                    let sends = (0..4).map(|tag| (vec![round; count], peer, tag)).collect();
                    drop(comm.exchange(sends, vec![(vec![0u64; count], peer, 9)]));
                } else {
                    for tag in (0..4).rev() {
                        let mut got = vec![0u64; count];
                        comm.blocking().recv(&mut got, peer, tag).unwrap();
                        assert!(got.iter().all(|value| *value == round));
                    }
                    comm.blocking().send(&vec![round; count], peer, 9).unwrap();
                }
            }
            comm.finalize().unwrap();
        })
        .unwrap();
    }
}

fn problem(result: Result<(), Error>) -> Problem {
    match result {
        Err(Error::InvalidArgument { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_messages_are_refused_before_any_is_posted() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(2, &config, |comm| {
            let (own, peer) = (comm.rank(), 1 - comm.rank());
            let try_it = |sends: &[(&[u8], u32, u32)], receives: &mut [(&mut [u8], u32, u32)]| {
                comm.blocking().exchange(sends, receives)
            };
            let (a, b) = ([1u8; 4], [2u8; 3]);
            let limit = |value: u32, limit: u32| Problem::OutOfRange {
                value: u64::from(value),
                limit: u64::from(limit),
            };
            // The first message is right, and must not leave for the sake of the second.
            assert_eq!(problem(try_it(&[(&a, peer, 0), (&b, 2, 0)], &mut [])), limit(2, 2));
            assert_eq!(
                problem(try_it(&[(&a, peer, 0), (&b, peer, u32::MAX)], &mut [])),
                limit(u32::MAX, u32::MAX)
            );
            assert_eq!(problem(try_it(&[(&a, peer, 0), (&b, own, 0)], &mut [])), Problem::OwnRank);
            assert_eq!(problem(try_it(&[(&a, peer, 0)], &mut [(&mut [0; 4], own, 0)])), Problem::OwnRank);
            // To oneself by one tag, from oneself by another.
            assert_eq!(problem(try_it(&[(&a, own, 1)], &mut [(&mut [0; 4], own, 0)])), Problem::OwnRank);
            let lengths = Problem::WrongLength { expected: 5, actual: 4 };
            assert_eq!(
                problem(try_it(&[(&a, peer, 0), (&a, own, 0)], &mut [(&mut [0; 5], own, 0)])),
                lengths
            );
            let types = Problem::WrongType { expected: DataType::F32, actual: DataType::U8 };
            assert_eq!(problem(comm.blocking().sendrecv(&a, own, &mut [0f32; 4], own, 0)), types);
            assert!(types.to_string().contains("f32") && types.to_string().contains("u8"));

            // By the raw door: memory that two receives write, or that is read meanwhile, and a collective.
            let mut memory = [0u8; 16];
            let base = memory.as_mut_ptr();
            let message = |collective, at, count, tag| {
                let address = base.wrapping_add(at);
                let request = RawRequest::new(collective, DataType::U8, count);
                RawRequest { root: peer, tag, input: address, output: address, ..request }
            };
            let (recv, send) = (Collective::Recv, Collective::Send);
            for requests in [
                [message(recv, 0, 9, 0), message(recv, 8, 8, 1)],
                [message(send, 4, 2, 0), message(recv, 0, 16, 1)],
                [message(recv, 0, 4, 0), message(send, 0, 4, 1)],
            ] {
                // SAFETY: the memory is valid; that the requests overlap is what must be found.
                let result = unsafe { comm.blocking().perform_exchange(&requests) };
                assert_eq!(problem(result), Problem::Overlap);
            }
            let collective = [message(send, 0, 4, 0), message(Collective::Broadcast, 8, 4, 0)];
            // SAFETY: as above.
            let result = unsafe { comm.post_exchange(&collective, ()).wait().map_err(Error::from) };
            assert_eq!(problem(result), Problem::NoMessage);

            // Nothing of all that has left: what comes next is the first message of its tag. What is only read may overlap.
            let mut got = [0u8; 4];
            comm.blocking()
                .exchange(&[(&a, peer, 0), (&a[1..], peer, 1)], &mut [(&mut got, peer, 0)])
                .unwrap();
            comm.blocking().recv(&mut got[1..], peer, 1).unwrap();
            assert_eq!(got, [1; 4]);
        })
        .unwrap();
    }
}

#[test]
fn a_message_of_another_length_or_type_fails_the_exchange_and_gives_the_memory_back() {
    let _watchdog = watch(60);
    for config in configs() {
        for (count, typed) in [(5, false), (100_000, false), (4, true)] {
            let errors = windlass::threads_with(2, &config, |comm| {
                let peer = 1 - comm.rank();
                // The last never comes: whoever had everything else would not hear of the other's trouble.
                let receives = vec![(vec![0u32; 4], peer, 0), (vec![0; 7], peer, 1), (vec![0; 2], peer, 2)];
                let (error, given_back) = if comm.rank() == 1 && typed {
                    let failed = comm.exchange(vec![(vec![1f32; 4], peer, 0)], receives).wait().unwrap_err();
                    (failed.error, failed.memory.1)
                } else {
                    let wrong = if comm.rank() == 0 { 4 } else { count };
                    let sends = vec![(vec![1u32; wrong], peer, 0), (vec![2; 7], peer, 1)];
                    let failed = comm.exchange(sends, receives).wait().unwrap_err();
                    assert_eq!(failed.memory.0[0], vec![1; wrong]);
                    (failed.error, failed.memory.1)
                };
                assert_eq!(given_back.iter().map(Vec::len).collect::<Vec<_>>(), [4, 7, 2]);
                error
            })
            .unwrap();
            for (rank, error) in errors.iter().enumerate() {
                let Error::Mismatch { ours, theirs, rank: other, .. } = error else { panic!("{error:?}") };
                assert_eq!(*other as usize, 1 - rank, "{error}");
                assert_ne!(
                    ours.call().map(|c| (c.count, c.data_type)),
                    theirs.call().map(|c| (c.count, c.data_type))
                );
            }
        }
    }
}

#[test]
fn an_exchange_with_a_rank_that_left_names_it() {
    let _watchdog = watch(60);
    for config in configs() {
        for asynchronous in [false, true] {
            let results = windlass::threads_with(3, &config, |comm| {
                if comm.rank() == 2 {
                    return None;
                }
                let (begin, peer) = (Instant::now(), 1 - comm.rank());
                let sends = vec![(vec![1u8; 8], peer, 0)];
                let result = if asynchronous {
                    comm.exchange(sends, vec![(vec![0u8; 8], peer, 0), (vec![0; 3], 2, 0)])
                        .wait()
                        .map(drop)
                        .map_err(Error::from)
                } else {
                    let sends = [(&sends[0].0[..], peer, 0)];
                    let (mut a, mut b) = ([0; 8], [0; 3]);
                    comm.blocking().exchange(&sends, &mut [(&mut a, peer, 0), (&mut b, 2, 0)])
                };
                Some((result, begin.elapsed()))
            });
            for (result, after) in results.unwrap().into_iter().flatten() {
                let Err(Error::PeerFailed { rank: 2, cause, operation: "recv", .. }) = &result else {
                    panic!("{result:?}")
                };
                assert!(matches!(cause, PeerCause::Left | PeerCause::Vanished), "{cause:?}");
                assert!(after < Duration::from_secs(1), "over {}: {after:?}", config.transport);
            }
        }
    }
}

#[test]
fn an_exchange_out_of_time_names_who_is_late() {
    let _watchdog = watch(60);
    for mut config in configs() {
        config.timeout = Duration::from_millis(400);
        let results = windlass::threads_with(3, &config, |comm| {
            let peer = 1u32.wrapping_sub(comm.rank());
            if comm.rank() == 2 {
                std::thread::sleep(Duration::from_secs(1));
                return None;
            }
            let receives = vec![(vec![0u8; 8], 2, 0), (vec![0u8; 8], peer, 0)];
            let failed = comm.exchange(vec![(vec![7u8; 8], peer, 0)], receives).wait().unwrap_err();
            assert_eq!(failed.memory.0, [[7; 8]]);
            Some(failed.error)
        });
        let errors: Vec<_> = results.unwrap().into_iter().flatten().collect();
        let named = |error: &Error| matches!(error, Error::TimedOut { operation: "recv", waiting_on, .. } if waiting_on == &[2]);
        // Who looks at its clock first says so to the other.
        let told = |error: &Error| named(error) || matches!(error, Error::Aborted { .. });
        assert!(errors.iter().any(named) && errors.iter().all(told), "{errors:?}");
    }
}

/// Nobody finalizes: the sender is gone long before its messages are read.
#[test]
fn what_a_rank_has_sent_arrives_although_it_leaves() {
    let _watchdog = watch(60);
    for config in configs() {
        for (count, each) in [(10usize, 500u32), (16 << 10, 55), (400_000, 2)] {
            windlass::threads_with(2, &config, |comm| {
                let content =
                    |number: u32| (0..count).map(move |at| mix((at as u64) << 32 | u64::from(number)) as u8);
                if comm.rank() == 0 {
                    let send = |number| {
                        let message: Vec<u8> = content(number).collect();
                        comm.blocking().send(&message, 1, 0).unwrap();
                    };
                    return (0..each).for_each(send);
                }
                std::thread::sleep(Duration::from_millis(400));
                let mut message = vec![0u8; count];
                for number in 0..each {
                    comm.blocking().recv(&mut message, 0, 0).unwrap();
                    assert!(message.iter().copied().eq(content(number)), "message {number} of {count} bytes");
                }
            })
            .unwrap();
        }
    }
}
