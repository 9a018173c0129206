//! Ranks that call different things: each is told within a second what both called, and who.

use std::time::{Duration, Instant};

use windlass::numa::NodesChoice;
use windlass::{Algorithm, Communicator, Config, Error, ReduceOp, TransportChoice};

use super::watchdog::watch;
use super::{TRANSPORTS, config};

type Call = fn(&Communicator) -> Result<(), Error>;

/// Runs `odd` on rank `who` of three and `even` on the others. Every rank must be told of the mismatch, also in what it calls next.
fn differ(config: &Config, who: u32, name: &str, even: Call, odd: Call) {
    let results = windlass::threads_with(3, config, |comm| {
        let begin = Instant::now();
        let call = if comm.rank() == who { odd } else { even };
        // Who is slow to leave the barrier may be told in it of what the others did next.
        let result =
            comm.blocking().barrier().and_then(|()| call(&comm)).and_then(|()| comm.blocking().barrier());
        (result, begin.elapsed())
    })
    .unwrap();
    // What each blamed rank is said to have called, and when: two ranks may find it in different calls.
    let mut called = [None; 3];
    let context = format!("{name} over {} by {:?}", config.transport, config.algorithm);
    for (rank, (result, after)) in results.into_iter().enumerate() {
        let Err(Error::Mismatch { ours, theirs, rank: other, sequence, .. }) = &result else {
            panic!("{context}: rank {rank} got {result:?} after {after:?}")
        };
        assert_ne!(ours, theirs, "{context}");
        assert!(ours.call().is_some() && theirs.call().is_some(), "{context}: {result:?}");
        assert!(*other != rank as u32, "{context}: rank {rank} blames itself");
        let said = called[*other as usize].get_or_insert((*sequence, *theirs));
        assert!(said.0 != *sequence || said.1 == *theirs, "{context}: of rank {other}");
        assert!(*sequence <= 2, "{context}");
        assert!(after < Duration::from_secs(1), "{context}: rank {rank} was told after {after:?}");
    }
    let [odd_call, others] = [who, (who + 1) % 3].map(|rank| called[rank as usize]);
    assert!(
        odd_call.is_some() && odd_call != others,
        "{context}: the odd rank is blamed for its own call: {called:?}"
    );
}

/// Every transport with every algorithm that it can be told to use.
fn each(mut f: impl FnMut(&Config)) {
    let _watchdog = watch(120);
    for transport in TRANSPORTS {
        f(&config(transport, None));
        for &algorithm in Algorithm::ALL {
            if transport == TransportChoice::Shm || !algorithm.needs_mapped_peers() {
                let mut config = config(transport, Some(algorithm));
                if algorithm == Algorithm::Hierarchical {
                    config.nodes = NodesChoice::Blocks(2);
                }
                f(&config);
            }
        }
    }
}

fn reduce<T: windlass::Element + Default>(
    comm: &Communicator,
    count: usize,
    op: ReduceOp,
) -> Result<(), Error> {
    comm.blocking().all_reduce(&mut vec![T::default(); count], op)
}

#[test]
fn counts() {
    each(|config| {
        let small: Call = |c| reduce::<f32>(c, 10, ReduceOp::Sum);
        let large: Call = |c| reduce::<f32>(c, 100_000, ReduceOp::Sum);
        differ(config, 0, "10 or 100000", large, small);
        differ(config, 2, "100000 or 10", small, large);
        differ(config, 1, "10 or 11", small, |c| reduce::<f32>(c, 11, ReduceOp::Sum));
        differ(config, 1, "10 or none", small, |c| reduce::<f32>(c, 0, ReduceOp::Sum));
    });
}

#[test]
fn types_and_operators() {
    each(|config| {
        let sum: Call = |c| reduce::<f32>(c, 5000, ReduceOp::Sum);
        differ(config, 1, "f32 or i32", sum, |c| reduce::<i32>(c, 5000, ReduceOp::Sum));
        differ(config, 0, "f32 or f64", sum, |c| reduce::<f64>(c, 2500, ReduceOp::Sum));
        differ(config, 2, "sum or max", sum, |c| reduce::<f32>(c, 5000, ReduceOp::Max));
    });
}

#[test]
fn collectives() {
    each(|config| {
        let sum: Call = |c| reduce::<f32>(c, 4, ReduceOp::Sum);
        let barrier: Call = |c| c.blocking().barrier();
        let gather: Call = |c| c.blocking().all_gather_into(&[0f32; 1000], &mut [0f32; 3000]);
        let scatter: Call =
            |c| c.blocking().reduce_scatter_into(&[0f32; 3000], &mut [0f32; 1000], ReduceOp::Sum);
        let broadcast: Call = |c| c.blocking().broadcast(&mut [0f32; 1000], 1);
        differ(config, 1, "barrier or all_reduce", barrier, sum);
        differ(config, 0, "all_reduce or barrier", sum, barrier);
        differ(config, 2, "all_gather or reduce_scatter", gather, scatter);
        differ(config, 0, "broadcast or all_gather", gather, broadcast);
        differ(config, 1, "all_reduce or broadcast", broadcast, sum);
    });
}

#[test]
fn asynchronous_calls_are_told_too() {
    each(|config| {
        let small: Call =
            |c| c.all_reduce(vec![0f32; 10], ReduceOp::Sum).wait().map(drop).map_err(Error::from);
        let large: Call = |c| {
            let operation = c.all_reduce(vec![0f32; 70_000], ReduceOp::Sum);
            super::futures::block_on(operation).map(drop).map_err(Error::from)
        };
        differ(config, 1, "asynchronous 10 or 70000", small, large);
    });
}

/// Small broadcasts end at their roots before anybody can object; the difference shows in the next call at the latest.
#[test]
fn roots_of_small_broadcasts() {
    each(|config| {
        let one: Call = |c| c.blocking().broadcast(&mut [0f32; 2], 0);
        differ(config, 1, "small, root 0 or 1", one, |c| c.blocking().broadcast(&mut [0f32; 2], 1));
        differ(config, 2, "small, root 0 or 1 at a leaf", one, |c| c.blocking().broadcast(&mut [0f32; 2], 1));
        differ(config, 0, "small, root 0 or 2 at the root", one, |c| {
            c.blocking().broadcast(&mut [0f32; 2], 2)
        });
    });
}

#[test]
fn roots_of_broadcasts_from_mapped_memory() {
    let _watchdog = watch(120);
    for algorithm in [None, Some(Algorithm::Direct)] {
        let config = &config(TransportChoice::Shm, algorithm);
        let one: Call = |c| c.blocking().broadcast(&mut vec![0f32; 200_000], 0);
        differ(config, 1, "root 0 or 1", one, |c| c.blocking().broadcast(&mut vec![0f32; 200_000], 1));
        differ(config, 2, "root 0 or 1 at a leaf", one, |c| {
            c.blocking().broadcast(&mut vec![0f32; 200_000], 1)
        });
    }
}

/// Two ranks that differ on the length of a block that only they know.
#[test]
fn lengths_of_blocks_that_ranks_do_not_share() {
    let _watchdog = watch(60);
    type Call = fn(&Communicator, usize) -> Result<(), Error>;
    // Rank 1 has `sent` elements for rank 0, which expects 5.
    let all_to_all: Call = |comm, sent| {
        let (input, output) = match comm.rank() {
            0 => ([0, 1, 1], [0, 5, 1]),
            1 => ([sent, 0, 1], [1, 0, 1]),
            _ => ([1, 1, 0], [1, 1, 0]),
        };
        let (from, mut to) = (vec![1f32; input.iter().sum()], vec![0f32; output.iter().sum()]);
        comm.blocking().all_to_all_v_into(&from, &mut to, &input, &output)
    };
    let gather: Call = |comm, sent| match comm.rank() {
        0 => comm.blocking().gather_v_into(&[1f32], &mut [0f32; 7], &[1, 5, 1], 0),
        1 => comm.blocking().gather_v_into(&vec![1f32; sent], &mut [], &[], 0),
        _ => comm.blocking().gather_v_into(&[1f32], &mut [], &[], 0),
    };
    let scatter: Call = |comm, sent| match comm.rank() {
        1 => comm.blocking().scatter_v_into(&vec![1f32; sent + 2], &mut [0f32], &[sent, 1, 1], 1),
        rank => comm.blocking().scatter_v_into(&[], &mut vec![0f32; [5, 0, 1][rank as usize]], &[], 1),
    };
    for config in TRANSPORTS.map(|transport| config(transport, None)) {
        for (name, call) in [("all_to_all_v", all_to_all), ("gather_v", gather), ("scatter_v", scatter)] {
            for sent in [5, 0, 4, 6, 100_000] {
                let results = windlass::threads_with(3, &config, |comm| {
                    call(&comm, sent).and_then(|()| comm.blocking().barrier())
                });
                let results = results.unwrap();
                let context = format!("{name} of {sent} over {}: {results:?}", config.transport);
                if sent == 5 {
                    assert!(results.iter().all(Result::is_ok), "{context}");
                    continue;
                }
                assert!(results.iter().all(|r| matches!(r, Err(Error::Mismatch { .. }))), "{context}");
                if config.transport == TransportChoice::Shm {
                    let Err(Error::Mismatch { ours, theirs, rank, .. }) = &results[0] else {
                        panic!("{context}")
                    };
                    assert_eq!((ours.count, theirs.count, *rank), (5, sent as u64, 1), "{context}");
                }
            }
        }
    }
}

#[test]
fn messages_of_different_lengths_and_types() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for (sent, expected) in
            [(10usize, 11usize), (11, 10), (100_000, 10), (10, 100_000), (3_000_000, 2_999_999)]
        {
            let results = windlass::threads_with(2, &config, |comm| {
                let begin = Instant::now();
                let result = if comm.rank() == 0 {
                    comm.blocking().send(&vec![0f32; sent], 1, 5).and_then(|()| comm.blocking().barrier())
                } else {
                    comm.blocking().recv(&mut vec![0f32; expected], 0, 5)
                };
                (result, begin.elapsed())
            });
            for (rank, (result, after)) in results.unwrap().into_iter().enumerate() {
                let Err(Error::Mismatch { rank: other, .. }) = result else {
                    panic!("{sent} {expected}: {result:?}")
                };
                assert_eq!(other, 1 - rank as u32);
                assert!(after < Duration::from_secs(1), "{after:?}");
            }
        }
        let results = windlass::threads_with(2, &config, |comm| {
            if comm.rank() == 0 {
                comm.blocking().send(&[0f32; 4], 1, 5).and_then(|()| comm.blocking().barrier())
            } else {
                comm.blocking().recv(&mut [0i32; 4], 0, 5)
            }
        });
        assert!(results.unwrap().iter().all(|r| matches!(r, Err(Error::Mismatch { .. }))));
    }
}
