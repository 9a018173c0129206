//! Operations over device memory that moves: the result is right to the bit, whatever moves when.

use std::time::{Duration, Instant};

use windlass::accelerator::simulated::Options;
use windlass::accelerator::{Contents, Movement};
use windlass::{Error, ReduceOp, TransportChoice, threads_with};

use super::{accelerator, config, fill, rounds};

#[test]
fn sums_stay_on_the_device() {
    for ranks in [1, 2, 3, 4] {
        threads_with(ranks, &config(TransportChoice::Auto), |comm| {
            let accelerator = accelerator(comm.rank(), Options::default());
            let device = comm.attach(accelerator.clone()).unwrap();
            for count in [0, 1, 7, 1000, 5000, 100_000, 400_001] {
                rounds(&comm, &device, count, 2);
            }
            assert_eq!(accelerator.audit(), []);
        })
        .unwrap();
    }
}

#[test]
fn without_peers_in_reach_the_host_stands_in() {
    threads_with(3, &config(TransportChoice::Tcp), |comm| {
        let device = comm.attach(accelerator(comm.rank(), Options::default())).unwrap();
        for count in [1, 1000, 200_000] {
            rounds(&comm, &device, count, 2);
        }
    })
    .unwrap();
}

fn under_fire(ranks: u32, movement: Movement, moves: f64, revokes: f64) -> (u64, u64) {
    let totals = threads_with(ranks, &config(TransportChoice::Auto), |comm| {
        let options = Options {
            movement,
            moves_per_second: moves,
            revokes_per_second: revokes,
            patience: Duration::from_millis(200),
            ..Options::default()
        };
        let accelerator = accelerator(comm.rank(), options);
        let device = comm.attach(accelerator.clone()).unwrap();
        let begin = Instant::now();
        let mut round = 0;
        loop {
            rounds(&comm, &device, 200_000, 3);
            round += 1;
            let mut more = [u8::from(begin.elapsed() < Duration::from_secs(1) || round < 2)];
            comm.blocking().all_reduce(&mut more, ReduceOp::Min).unwrap();
            if more[0] == 0 {
                break;
            }
        }
        assert_eq!(accelerator.audit(), []);
        let movements = device.movements();
        (movements.moves + movements.revokes, movements.replays)
    })
    .unwrap();
    totals.into_iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d))
}

#[test]
fn cooperative_moves_change_nothing() {
    let (moves, _) = under_fire(3, Movement::Cooperative, 100.0, 0.0);
    assert!(moves > 20, "{moves} moves");
}

#[test]
fn pinned_moves_change_nothing() {
    let (moves, _) = under_fire(2, Movement::Pinned, 100.0, 0.0);
    assert!(moves > 20, "{moves} moves");
}

#[test]
fn revokes_that_preserve_change_nothing() {
    let (moves, replays) = under_fire(3, Movement::Revocable, 0.0, 100.0);
    assert!(moves > 20, "{moves} revokes");
    assert!(replays > 0, "no revoke met an operation");
}

#[test]
fn lost_contents_fail_the_operation_on_every_rank() {
    threads_with(3, &config(TransportChoice::Auto), |comm| {
        let accelerator =
            accelerator(comm.rank(), Options { movement: Movement::Revocable, ..Options::default() });
        let device = comm.attach(accelerator.clone()).unwrap();
        let mut buffer = device.alloc::<f32>(100_000).unwrap();
        fill(&mut buffer, comm.rank(), 0);
        let region = buffer.region();
        let operation = comm.all_reduce(buffer, ReduceOp::Sum);
        if comm.rank() == 1 {
            accelerator.revoke_now(region, Contents::Lost).unwrap();
        }
        // It may have ended before the revoke; the next one finds the memory gone.
        let mut result = operation.wait();
        let begin = Instant::now();
        while let Ok(buffer) = result {
            assert!(begin.elapsed() < Duration::from_secs(10), "nobody noticed");
            result = comm.all_reduce(buffer, ReduceOp::Sum).wait();
        }
        let failed = result.unwrap_err();
        assert!(matches!(failed.error, Error::RegionRevoked { rank: 1, .. }), "{}", failed.error);
    })
    .unwrap();
}
