//! The real engine over a simulated network: right results from any order of events, and the same run from the same seed.

#![expect(clippy::unwrap_used, reason = "a test that fails should panic")]

use windlass::{Algorithm, Config, Operation, ReduceOp, Simulation, SimulationOptions};

fn config(algorithm: Option<Algorithm>) -> Config {
    let mut config = Config::default();
    config.algorithm = algorithm;
    // Small chunks, so that small vectors have many.
    config.model.chunk_bytes = 256;
    config
}

fn value(rank: u32, index: usize) -> f64 {
    f64::from(rank + 1) * 3.0 + (index % 11) as f64
}

fn take<M: Send + 'static>(operation: Operation<M>) -> M {
    assert!(operation.is_done(), "it has ended when nothing moves any more");
    operation.wait().unwrap_or_else(|f| panic!("{}", f.error))
}

/// Every collective once, several in flight; returns the network's trace.
fn run(ranks: u32, seed: u64, count: usize, algorithm: Option<Algorithm>) -> u64 {
    let simulation = Simulation::new(ranks, seed, SimulationOptions::default(), &config(algorithm)).unwrap();
    let comms = simulation.communicators();
    let input = |rank: u32, count: usize| (0..count).map(|i| value(rank, i)).collect::<Vec<f64>>();
    let whole = count * ranks as usize;
    let reduced: Vec<_> = comms.iter().map(|c| c.all_reduce(input(c.rank(), count), ReduceOp::Sum)).collect();
    let scattered: Vec<_> = comms
        .iter()
        .map(|c| c.reduce_scatter_into(input(c.rank(), whole), vec![0.0; count], ReduceOp::Max))
        .collect();
    let gathered: Vec<_> =
        comms.iter().map(|c| c.all_gather_into(input(c.rank(), count), vec![0.0; whole])).collect();
    let root = seed as u32 % ranks;
    let spread: Vec<_> = comms.iter().map(|c| c.broadcast(input(c.rank(), count), root)).collect();
    let sent: Vec<_> = comms
        .iter()
        .map(|c| (ranks > 1).then(|| c.send(input(c.rank(), count), (c.rank() + 1) % ranks, 7)))
        .collect();
    let received: Vec<_> = comms
        .iter()
        .map(|c| (ranks > 1).then(|| c.recv(vec![0.0; count], (c.rank() + ranks - 1) % ranks, 7)))
        .collect();
    let barriers: Vec<_> = comms.iter().map(windlass::Communicator::barrier).collect();
    simulation.settle();

    let sum: Vec<f64> = (0..count).map(|i| (0..ranks).map(|r| value(r, i)).sum()).collect();
    reduced.into_iter().for_each(|o| assert_eq!(take(o), sum));
    for (rank, operation) in scattered.into_iter().enumerate() {
        let most: Vec<f64> = (rank * count..(rank + 1) * count).map(|i| value(ranks - 1, i)).collect();
        assert_eq!(take(operation).1, most);
    }
    let all: Vec<f64> = (0..ranks).flat_map(|r| input(r, count)).collect();
    gathered.into_iter().for_each(|o| assert_eq!(take(o).1, all));
    spread.into_iter().for_each(|o| assert_eq!(take(o), input(root, count)));
    sent.into_iter().flatten().for_each(|o| drop(take(o)));
    for (rank, operation) in received.into_iter().enumerate().filter_map(|(r, o)| Some((r as u32, o?))) {
        assert_eq!(take(operation), input((rank + ranks - 1) % ranks, count));
    }
    barriers.into_iter().for_each(take);
    simulation.trace()
}

#[test]
fn every_algorithm_is_right_under_many_orders() {
    let algorithms =
        [None, Some(Algorithm::Ring), Some(Algorithm::RecursiveDoubling), Some(Algorithm::Rabenseifner)];
    let mut runs = 0;
    for algorithm in algorithms {
        for ranks in [1, 2, 3, 4, 5, 8] {
            for seed in 0..8 {
                run(ranks, seed, [0, 1, 17, 300][seed as usize % 4], algorithm);
                runs += 1;
            }
        }
    }
    println!("{runs} simulated runs");
}

#[test]
fn a_seed_gives_one_run_and_another_seed_another() {
    let traces: Vec<u64> = (0..6).map(|seed| run(4, seed, 100, None)).collect();
    for (seed, trace) in traces.iter().enumerate() {
        assert_eq!(run(4, seed as u64, 100, None), *trace);
    }
    let distinct: std::collections::BTreeSet<_> = traces.iter().collect();
    assert_eq!(distinct.len(), traces.len());
}

#[test]
fn many_ranks_take_simulated_time_not_real_time() {
    let simulation =
        Simulation::new(200, 1, SimulationOptions::default(), &config(Some(Algorithm::RecursiveDoubling)))
            .unwrap();
    let operations: Vec<_> = simulation
        .communicators()
        .iter()
        .map(|c| c.all_reduce(vec![f64::from(c.rank()); 3], ReduceOp::Sum))
        .collect();
    let passed = simulation.settle();
    assert!(!passed.is_zero());
    operations.into_iter().for_each(|o| assert_eq!(take(o), [19900.0; 3]));
}

#[test]
fn a_call_that_no_other_rank_makes_does_not_end() {
    let simulation = Simulation::new(2, 1, SimulationOptions::default(), &Config::default()).unwrap();
    let lonely = simulation.communicators()[0].all_reduce(vec![1.0f64], ReduceOp::Sum);
    simulation.settle();
    assert!(!lonely.is_done());
}
