//! Collectives on device memory whose ranks send messages: engines add what they bring, and memory moves meanwhile.

use std::time::Duration;

use windlass::accelerator::simulated::Options;
use windlass::accelerator::{Contents, Movement};
use windlass::{Algorithm, Communicator, Config, Error, ReduceOp, TransportChoice, threads_with};

use super::{accelerator, config, fill, rounds, value};

fn by_messages(algorithm: Option<Algorithm>) -> Config {
    let mut config = config(TransportChoice::Tcp);
    (config.algorithm, config.adds_on_device) = (algorithm, true);
    // Several chunks of a buffer.
    config.model.chunk_bytes = 32 << 10;
    config
}

/// Sums in place, and movement from one buffer into another.
fn work(comm: &Communicator, options: Options, count: usize, times: u32) -> (u64, u64) {
    let accelerator = accelerator(comm.rank(), options);
    let device = comm.attach(accelerator.clone()).unwrap();
    let (rank, ranks) = (comm.rank(), comm.size());
    rounds(comm, &device, count, times);
    let mut input = device.alloc::<f32>(count).unwrap();
    let mut output = device.alloc::<f32>(count * ranks as usize).unwrap();
    for round in 0..times {
        fill(&mut input, rank, round);
        (input, output) = comm.all_gather_into(input, output).wait().unwrap();
        let mut values = vec![0.0; output.len()];
        output.read(&mut values).unwrap();
        for (i, is) in values.into_iter().enumerate() {
            assert_eq!(is, value((i / count) as u32, round, i % count), "element {i} of round {round}");
        }
    }
    assert_eq!(accelerator.audit(), []);
    let movements = device.movements();
    (movements.moves + movements.revokes, movements.replays)
}

#[test]
fn engines_add_what_messages_bring() {
    let algorithms = [
        Algorithm::Ring,
        Algorithm::Rabenseifner,
        Algorithm::RecursiveDoubling,
        Algorithm::Circulant,
        Algorithm::DoubleTree,
    ];
    for algorithm in algorithms.into_iter().map(Some).chain([None]) {
        for ranks in [2, 3, 4] {
            let run = |comm: Communicator| work(&comm, Options::default(), 50_001, 2);
            threads_with(ranks, &by_messages(algorithm), run).unwrap();
        }
    }
}

#[test]
fn sums_are_right_whatever_moves() {
    for (movement, moves, revokes) in [
        (Movement::Cooperative, 200.0, 0.0),
        (Movement::Pinned, 200.0, 0.0),
        (Movement::Revocable, 0.0, 200.0),
    ] {
        let options = Options {
            movement,
            moves_per_second: moves,
            revokes_per_second: revokes,
            patience: Duration::from_millis(200),
            ..Options::default()
        };
        let run = |comm: Communicator| work(&comm, options.clone(), 200_000, 12);
        let totals = threads_with(3, &by_messages(None), run).unwrap();
        let moved: u64 = totals.iter().map(|(moved, _)| moved).sum();
        assert!(moved > 20, "{moved} moves, {movement:?}");
    }
}

#[test]
fn a_device_without_room_for_partial_sums_leaves_them_to_the_host() {
    threads_with(2, &by_messages(Some(Algorithm::Ring)), |comm| {
        let options = Options { capacity_bytes: 1_100_000, ..Options::default() };
        let device = comm.attach(accelerator(comm.rank(), options)).unwrap();
        rounds(&comm, &device, 250_000, 2);
    })
    .unwrap();
}

#[test]
fn lost_contents_fail_the_operation_on_every_rank() {
    threads_with(3, &by_messages(None), |comm| {
        let options = Options { movement: Movement::Revocable, ..Options::default() };
        let accelerator = accelerator(comm.rank(), options);
        let device = comm.attach(accelerator.clone()).unwrap();
        let mut buffer = device.alloc::<f32>(400_000).unwrap();
        fill(&mut buffer, comm.rank(), 0);
        if comm.rank() == 1 {
            accelerator.revoke_now(buffer.region(), Contents::Lost).unwrap();
        }
        let failed = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap_err();
        assert!(matches!(failed.error, Error::RegionRevoked { rank: 1, .. }), "{}", failed.error);
    })
    .unwrap();
}
