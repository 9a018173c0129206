//! Receives from any source.

use std::time::Duration;

use windlass::{
    Collective, Communicator, Config, DataType, Error, Fault, PeerCause, Problem, RawRequest, ReduceOp,
    Simulation, SimulationOptions,
};

use super::watchdog::watch;
use super::{configs, mix};

/// Message `number` of a rank.
fn content(source: u32, number: u64, count: usize) -> Vec<u64> {
    let salt = mix(u64::from(source) << 32 ^ number);
    (0..count as u64).map(|index| salt ^ index).collect()
}

/// Receives one message in one of the three ways.
fn receive(comm: &Communicator, count: usize, tag: u32, way: u64) -> (u32, Vec<u64>) {
    let mut memory = vec![0u64; count];
    match way % 3 {
        0 => {
            let source = comm.blocking().recv_any(&mut memory, tag).unwrap();
            (source, memory)
        }
        1 => {
            let received = comm.recv_any(memory, tag).wait().unwrap();
            (received.source(), received.into_memory())
        }
        _ => {
            let mut source = 99;
            comm.scope(|scope| scope.recv_any(&mut memory, tag, &mut source).wait().unwrap());
            (source, memory)
        }
    }
}

#[test]
fn every_message_comes_once_and_each_ranks_in_their_order() {
    let _watchdog = watch(150);
    for config in configs() {
        for (count, each) in [(0, 40u64), (1, 300), (500, 100), (9_000, 30), (1_200_000, 3)] {
            windlass::threads_with(4, &config, |comm| {
                if comm.rank() > 0 {
                    let sends = (0..each).map(|number| (content(comm.rank(), number, count), 0, 4)).collect();
                    let nothing = Vec::<(Vec<u64>, u32, u32)>::new();
                    drop(comm.exchange(sends, nothing).wait().unwrap());
                    return;
                }
                let mut next = [0u64; 4];
                for way in 0..3 * each {
                    let (source, memory) = receive(&comm, count, 4, way);
                    let number = &mut next[source as usize];
                    assert!(memory == content(source, *number, count), "message {number} of {source}");
                    *number += 1;
                }
                assert_eq!(next, [0, each, each, each]);
            })
            .unwrap();
        }
    }
}

#[test]
fn nobody_starves_behind_a_rank_that_sends_and_sends() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(3, &config, |comm| match comm.rank() {
            0 => {
                // Until rank 1 waits for credits, and rank 2 has sent.
                std::thread::sleep(Duration::from_millis(150));
                let (mut before, mut seen) = (0, false);
                for number in 0..4001 {
                    let (source, _) = receive(&comm, 1, 0, 0);
                    seen |= source == 2;
                    before += u32::from(!seen);
                    // Whoever takes what comes by rank would see it last of all.
                    assert!(seen || number < 2000, "{before} messages before");
                }
            }
            1 => (0..4000u64).for_each(|number| comm.blocking().send(&[number], 0, 0).unwrap()),
            _ => {
                std::thread::sleep(Duration::from_millis(20));
                comm.blocking().send(&[7u64], 0, 0).unwrap();
            }
        })
        .unwrap();
    }
}

#[test]
fn of_what_is_there_the_first_that_came_is_taken() {
    let _watchdog = watch(60);
    for config in configs() {
        for first in [1, 2] {
            for count in [3usize, 50_000] {
                windlass::threads_with(3, &config, |comm| {
                    let second = 3 - first;
                    if comm.rank() == 0 {
                        for source in [first, second] {
                            comm.blocking().send(&[1u8], source, 9).unwrap();
                            // Behind its message: that has come.
                            comm.blocking().recv(&mut [0u8], source, 9).unwrap();
                        }
                        for source in [first, second] {
                            let (from, memory) = receive(&comm, count, 5, u64::from(first));
                            assert_eq!(from, source, "over {}", config.transport);
                            assert!(memory == content(source, 0, count));
                        }
                    } else {
                        comm.blocking().recv(&mut [0u8], 0, 9).unwrap();
                        let sent = comm.send(content(comm.rank(), 0, count), 0, 5);
                        comm.blocking().send(&[1u8], 0, 9).unwrap();
                        sent.wait().unwrap();
                    }
                })
                .unwrap();
            }
        }
    }
}

#[test]
fn receives_are_matched_in_the_order_of_their_calls() {
    let _watchdog = watch(60);
    for config in configs() {
        for late in [false, true] {
            windlass::threads_with(2, &config, |comm| {
                if comm.rank() == 1 {
                    if late {
                        comm.blocking().barrier().unwrap();
                    }
                    for number in 0..6u64 {
                        comm.blocking().send(&[number], 0, 3).unwrap();
                        comm.blocking().send(&[100 + number], 0, 4).unwrap();
                    }
                    if !late {
                        comm.blocking().barrier().unwrap();
                    }
                    return;
                }
                if !late {
                    comm.blocking().barrier().unwrap();
                }
                let mut got = [[0u64; 1]; 6];
                let mut sources = [0; 3];
                let [a, b, c, d, e, f] = &mut got;
                let [x, y, z] = &mut sources;
                comm.scope(|scope| {
                    // One of a known source behind one from any takes the second message, not the first.
                    let started = [
                        scope.recv_any(a, 3, x),
                        scope.recv(b, 1, 3),
                        scope.recv_any(c, 3, y),
                        scope.recv(d, 1, 4),
                        scope.recv_any(e, 4, z),
                        scope.recv(f, 1, 3),
                    ];
                    if late {
                        comm.blocking().barrier().unwrap();
                    }
                    started.into_iter().rev().for_each(|operation| operation.wait().unwrap());
                });
                assert_eq!(got.map(|[value]| value), [0, 1, 2, 100, 101, 3]);
                assert_eq!(sources, [1; 3]);
                let left = [4, 5].map(|number| (1, vec![number]));
                assert_eq!([receive(&comm, 1, 3, 0), receive(&comm, 1, 3, 1)], left);
            })
            .unwrap();
        }
    }
}

#[test]
fn a_wanted_message_is_found_behind_any_number_of_unwanted_ones() {
    let _watchdog = watch(100);
    for config in configs() {
        for count in [2usize, 30_000] {
            windlass::threads_with(3, &config, |comm| {
                let unwanted = 1500u64;
                if comm.rank() == 1 {
                    let sends = (0..unwanted).map(|number| (content(1, number, 200), 0, 5));
                    let sent = comm.exchange(sends.collect(), Vec::<(Vec<u64>, u32, u32)>::new());
                    let wanted = comm.send(content(1, unwanted, count), 0, 6);
                    wanted.wait().unwrap();
                    sent.wait().unwrap();
                } else if comm.rank() == 0 {
                    // Before the first message comes, or when the sender can announce no more.
                    if count == 2 {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    let (source, memory) = receive(&comm, count, 6, count as u64);
                    assert!(source == 1 && memory == content(1, unwanted, count));
                    for number in 0..unwanted {
                        let (source, memory) = receive(&comm, 200, 5, 0);
                        assert!(source == 1 && memory == content(1, number, 200), "{number}");
                    }
                }
            })
            .unwrap();
        }
    }
}

#[test]
fn a_pending_one_holds_up_nothing_else_and_may_be_part_of_an_exchange() {
    let _watchdog = watch(60);
    for config in configs() {
        windlass::threads_with(2, &config, |comm| {
            let peer = 1 - comm.rank();
            let pending = comm.recv_any(vec![0u64; 2], 1);
            let mut value = [1u32];
            comm.blocking().all_reduce(&mut value, ReduceOp::Sum).unwrap();
            let mut other = [0u64];
            comm.blocking().sendrecv(&[5u64], peer, &mut other, peer, 2).unwrap();
            assert_eq!((value, other), ([2], [5]));
            assert!(!pending.is_done());
            comm.blocking().barrier().unwrap();
            comm.blocking().send(&[u64::from(comm.rank()), 9], peer, 1).unwrap();
            let received = pending.wait().unwrap();
            assert_eq!(received.source(), peer);
            assert_eq!(received.into_memory(), [u64::from(peer), 9]);

            // Two of them and a send, by the raw door.
            let (mut sources, mut got, sent) = ([7u32; 2], [[0u64; 1]; 2], [[3u64], [4]]);
            let any = |at: usize, got: &mut [u64; 1], source: &mut u32| {
                let mut request = RawRequest::new(Collective::Recv, DataType::U64, 1);
                (request.root, request.tag) = (RawRequest::ANY_SOURCE, at as u32 + 20);
                (request.output, request.source) = (got.as_mut_ptr().cast(), source);
                request.input = request.output;
                request
            };
            let send = |at: usize| {
                let mut request = RawRequest::new(Collective::Send, DataType::U64, 1);
                (request.root, request.tag, request.input) = (peer, at as u32 + 20, sent[at].as_ptr().cast());
                request.output = request.input.cast_mut();
                request
            };
            let ([a, b], [x, y]) = (&mut got, &mut sources);
            let requests = [any(0, a, x), any(1, b, y), send(1), send(0)];
            // SAFETY: all of it lives until the call is over.
            unsafe { comm.blocking().perform_exchange(&requests).unwrap() };
            assert_eq!((got, sources), ([[3], [4]], [peer; 2]));
            // A dropped one takes its message all the same.
            drop(comm.recv_any(vec![0u64], 8));
            comm.blocking().send(&[1u64], peer, 8).unwrap();
            comm.blocking().send(&[2u64], peer, 8).unwrap();
            assert_eq!(receive(&comm, 1, 8, 0), (peer, vec![2]));
            comm.finalize().unwrap();
        })
        .unwrap();
    }
}

#[test]
fn another_length_or_type_is_a_mismatch_with_its_sender() {
    let _watchdog = watch(60);
    for config in configs() {
        for (count, posted_first) in [(5, false), (5, true), (60_000, false), (60_000, true)] {
            let errors = windlass::threads_with(3, &config, |comm| match comm.rank() {
                2 => {
                    if posted_first {
                        std::thread::sleep(Duration::from_millis(30));
                    }
                    let sent = comm.blocking().send(&vec![1u64; count], 0, 0);
                    sent.and_then(|()| comm.blocking().barrier()).unwrap_err()
                }
                0 => {
                    if !posted_first {
                        std::thread::sleep(Duration::from_millis(30));
                    }
                    let failed = comm.recv_any(vec![0u64; 4], 0).wait().unwrap_err();
                    assert_eq!(failed.memory.into_memory().len(), 4);
                    failed.error
                }
                _ => comm.blocking().barrier().unwrap_err(),
            })
            .unwrap();
            let Error::Mismatch { ours, theirs, rank: 2, .. } = &errors[0] else { panic!("{errors:?}") };
            let count_of = |print: &windlass::Fingerprint| print.call().unwrap().count;
            assert_eq!((count_of(ours), count_of(theirs)), (4, count as u64), "{}", errors[0]);
            assert!(errors.iter().all(|error| matches!(error, Error::Mismatch { .. })), "{errors:?}");
        }
    }
}

#[test]
fn who_leaves_with_nothing_more_to_say_disturbs_nobody_until_nobody_is_left() {
    let _watchdog = watch(60);
    for config in configs() {
        let results = windlass::threads_with(3, &config, |comm| match comm.rank() {
            0 => {
                // Rank 1 has left for longer than it takes to believe it.
                let first = receive(&comm, 1, 0, 0);
                let second = receive(&comm, 1, 0, 1);
                assert_eq!([first, second], [(1, vec![11]), (2, vec![22])]);
                Some(comm.recv_any(vec![0u64], 0).wait().map(drop).unwrap_err().error)
            }
            1 => {
                comm.blocking().send(&[11u64], 0, 0).unwrap();
                None
            }
            _ => {
                std::thread::sleep(Duration::from_millis(700));
                comm.blocking().send(&[22u64], 0, 0).unwrap();
                None
            }
        });
        let error = results.unwrap().swap_remove(0).unwrap();
        assert!(matches!(&error, Error::PeerFailed { operation: "recv", .. }), "{error:?}");
    }
}

#[test]
fn the_death_of_any_rank_fails_it_and_is_named() {
    for seed in 0..8 {
        let mut config = Config::default();
        config.report_after = Duration::ZERO;
        let simulation = Simulation::new(4, seed, SimulationOptions::default(), &config).unwrap();
        let comms = simulation.communicators();
        let pending = comms[0].recv_any(vec![0u64; 3], 0);
        let dead = 1 + seed as u32 % 3;
        simulation.run_until(Duration::from_millis(1));
        simulation.inject(Fault::Lose(dead));
        assert!(simulation.finish(Duration::from_secs(5)), "seed {seed}");
        let failed = pending.wait().unwrap_err();
        assert_eq!(failed.memory.into_memory().len(), 3);
        assert!(
            matches!(&failed.error, Error::PeerFailed { rank, cause, .. }
                if *rank == dead && *cause != PeerCause::Left),
            "seed {seed}: {:?}",
            failed.error
        );
    }
}

#[test]
fn over_a_simulated_network_each_ranks_messages_keep_their_order() {
    for seed in 0..16 {
        let simulation = Simulation::new(4, seed, SimulationOptions::default(), &Config::default()).unwrap();
        let comms = simulation.communicators();
        let received: Vec<_> = (0..30).map(|_| comms[0].recv_any(vec![0u64; 5], 2)).collect();
        let sent: Vec<_> = (0..10)
            .flat_map(|number| (1..4).map(move |source| (source, number)))
            .map(|(source, number)| comms[source as usize].send(content(source, number, 5), 0, 2))
            .collect();
        simulation.settle();
        let mut next = [0; 4];
        for operation in received {
            assert!(operation.is_done(), "seed {seed}");
            let received = operation.wait().unwrap();
            let source = received.source();
            assert_eq!(received.into_memory(), content(source, next[source as usize], 5));
            next[source as usize] += 1;
        }
        assert_eq!(next, [0, 10, 10, 10]);
        sent.into_iter().for_each(|operation| drop(operation.wait().unwrap()));
    }
}

#[test]
fn a_rank_alone_has_nobody_to_receive_from() {
    windlass::threads_with(1, &configs()[0], |comm| {
        let result = comm.blocking().recv_any(&mut [0u64], 0);
        assert!(
            matches!(&result, Err(Error::InvalidArgument { problem: Problem::OwnRank, .. })),
            "{result:?}"
        );
    })
    .unwrap();
}

#[test]
fn out_of_time_all_ranks_are_named() {
    let _watchdog = watch(60);
    for mut config in configs() {
        config.timeout = Duration::from_millis(300);
        windlass::threads_with(3, &config, |comm| {
            if comm.rank() > 0 {
                return std::thread::sleep(Duration::from_millis(800));
            }
            let error = comm.blocking().recv_any(&mut [0u64], 0).unwrap_err();
            assert!(
                matches!(&error, Error::TimedOut { operation: "recv", waiting_on, .. } if waiting_on == &[1, 2]),
                "{error:?}"
            );
        })
        .unwrap();
    }
}
