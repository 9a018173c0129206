//! Messages between two ranks: many, large, out of order, and to those who are gone.

use std::time::{Duration, Instant};

use windlass::{Error, PeerCause, ReduceOp};

use super::watchdog::watch;
use super::{TRANSPORTS, config};

#[test]
fn ten_thousand_small_messages_cross_in_both_directions() {
    let _watchdog = watch(100);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(2, &config, |comm| {
            let peer = 1 - comm.rank();
            for i in 0..10_000i64 {
                let sent = comm.send(vec![i, i64::from(comm.rank())], peer, 7);
                let mut got = [0i64; 2];
                comm.blocking().recv(&mut got, peer, 7).unwrap();
                assert_eq!(got, [i, i64::from(peer)]);
                sent.wait().unwrap();
            }
        })
        .unwrap();
    }
}

#[test]
fn messages_wait_for_receives_in_any_order_of_tags() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(2, &config, |comm| {
            let tags = 200u32;
            let size = |tag: u32| 1 + (tag as usize * 37) % 3000;
            if comm.rank() == 0 {
                let sent: Vec<_> =
                    (0..tags).map(|tag| comm.send(vec![tag as i32; size(tag)], 1, tag)).collect();
                // A collective goes past them all.
                comm.blocking().all_reduce(&mut [1i32], ReduceOp::Sum).unwrap();
                sent.into_iter().for_each(|s| drop(s.wait().unwrap()));
            } else {
                comm.blocking().all_reduce(&mut [1i32], ReduceOp::Sum).unwrap();
                for tag in (0..tags).rev() {
                    let mut got = vec![0; size(tag)];
                    comm.blocking().recv(&mut got, 0, tag).unwrap();
                    assert!(got.iter().all(|&v| v == tag as i32));
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn large_messages_cross_in_both_directions_at_once() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(2, &config, |comm| {
            let (rank, peer, count) = (comm.rank(), 1 - comm.rank(), 16 << 20);
            let ours = vec![rank as i32; count];
            let mut theirs = vec![9; count];
            comm.scope(|scope| {
                let _sent = scope.send(&ours, peer, 0);
                scope.recv(&mut theirs, peer, 0).wait().unwrap();
            });
            assert!(theirs.iter().all(|&v| v == peer as i32));
            let sent = comm.send(ours, peer, 1);
            let theirs = super::futures::block_on(comm.recv(theirs, peer, 1)).unwrap();
            let ours = super::futures::block_on(sent).unwrap();
            assert!(theirs.iter().all(|&v| v == peer as i32) && ours.iter().all(|&v| v == rank as i32));
        })
        .unwrap();
    }
}

#[test]
fn who_waits_for_a_rank_that_left_is_told() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for (way, asynchronous) in [("blocking", false), ("asynchronous", true)] {
            let results = windlass::threads_with(2, &config, |comm| {
                if comm.rank() == 1 {
                    return None;
                }
                let begin = Instant::now();
                let result = if asynchronous {
                    super::futures::block_on(comm.recv(vec![0u8; 8], 1, 0)).map(drop).map_err(Error::from)
                } else {
                    comm.blocking().recv(&mut [0u8; 8], 1, 0)
                };
                Some((result, begin.elapsed()))
            });
            let Some((result, after)) = results.unwrap().swap_remove(0) else {
                unreachable!("rank 0 returns it")
            };
            let Err(Error::PeerFailed { rank: 1, cause, .. }) = &result else { panic!("{way}: {result:?}") };
            assert!(matches!(cause, PeerCause::Left | PeerCause::Vanished), "{way}: {cause:?}");
            assert!(after < Duration::from_secs(1), "{way} over {}: {after:?}", config.transport);
        }
    }
}

#[test]
fn sending_to_a_rank_that_left_ends() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for count in [8usize, 4 << 20] {
            let results = windlass::threads_with(2, &config, |comm| {
                if comm.rank() == 1 {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(50));
                let begin = Instant::now();
                let result = comm.blocking().send(&vec![0u8; count], 1, 0);
                Some((result, begin.elapsed()))
            });
            let Some((result, after)) = results.unwrap().swap_remove(0) else {
                unreachable!("rank 0 returns it")
            };
            // A small one may have left before the news; a large one needs the receiver.
            let told = matches!(result, Err(Error::PeerFailed { rank: 1, .. }));
            assert!(told || count == 8 && result.is_ok(), "{count}: {result:?}");
            assert!(after < Duration::from_secs(1), "{after:?}");
        }
    }
}

#[test]
fn what_was_sent_before_leaving_arrives() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for _ in 0..10 {
            windlass::threads_with(2, &config, |comm| {
                if comm.rank() == 1 {
                    for i in 0..10i32 {
                        comm.blocking().send(&[i; 100], 0, 0).unwrap();
                    }
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
                for i in 0..10i32 {
                    let mut got = [0; 100];
                    comm.blocking().recv(&mut got, 1, 0).unwrap();
                    assert_eq!(got, [i; 100]);
                }
            })
            .unwrap();
        }
    }
}

#[test]
fn finalize_never_loses_a_race() {
    let _watchdog = watch(100);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for round in 0..50 {
            windlass::threads_with(4, &config, |comm| {
                comm.blocking().all_reduce(&mut vec![1f32; 1 + round * 100], ReduceOp::Sum).unwrap();
                comm.finalize().unwrap();
            })
            .unwrap();
        }
    }
}
