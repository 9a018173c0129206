//! Every algorithm in the simulated network, against the lower bounds; and what the checks exist for.

use windlass_collectives::{Algorithm, Call, Model};
use windlass_kernels::{DataType, ReduceOp};

use super::super::LowerBound;
use super::*;

fn experiment(collective: Collective, algorithm: Algorithm, ranks: u32, count: u64) -> Experiment {
    let root = if collective.rooted() { ranks / 2 } else { 0 };
    let count = if collective == Collective::Barrier { 0 } else { count };
    let call = Call { collective, data_type: DataType::F32, op: ReduceOp::Sum, count, root };
    let model = Model { chunk_bytes: 4096, ..Model::default() };
    Experiment { call, algorithm, ranks, model, seed: u64::from(ranks) }
}

#[test]
fn every_algorithm_is_right_and_none_beats_the_bounds() {
    let mut runs = 0;
    for &collective in Collective::ALL.iter().filter(|c| !c.is_point_to_point()) {
        for &algorithm in Algorithm::ALL {
            for ranks in (1..=17).chain([31, 32, 64]) {
                for count in [0, 1, 100, 20_000] {
                    let experiment = experiment(collective, algorithm, ranks, count);
                    let estimate = match experiment.run(|_| ()) {
                        Ok(estimate) => estimate,
                        Err(ExperimentError::Unsupported(_)) => continue,
                        Err(error) => panic!("{collective} {algorithm} {ranks} {count}: {error}"),
                    };
                    runs += 1;
                    let bound = LowerBound::of(&experiment.call, ranks, &experiment.model);
                    // Mapped memory has no messages.
                    if !algorithm.needs_mapped_peers() {
                        assert!(
                            estimate.time_ns * 1.000_001 >= bound.time_ns(),
                            "{collective} {algorithm} {ranks} {count}: {estimate:?} {bound:?}"
                        );
                        assert!(ranks == 1 || estimate.messages > 0);
                    }
                    assert!(estimate.messages <= experiment.messages());
                    assert_eq!(experiment.run(|_| ()), Ok(estimate));
                }
            }
        }
    }
    assert!(runs > 500, "{runs}");
}

#[test]
fn a_ring_costs_what_the_textbook_says() {
    let ranks = 16;
    let mut experiment = experiment(Collective::AllReduce, Algorithm::Ring, ranks, 1 << 18);
    experiment.model.chunk_bytes = 1 << 20;
    let estimate = experiment.run(|_| ()).unwrap();
    let block = f64::from(1 << 20) / f64::from(ranks);
    let model = &experiment.model;
    let round = model.message_ns + block * model.message_byte_ns;
    let expected = 30.0 * round + 15.0 * block * model.reduce_byte_ns;
    assert!((estimate.time_ns / expected - 1.0).abs() < 1e-4, "{estimate:?} {expected}");
    assert_eq!((estimate.messages, estimate.links), (30 * 16, 16));
    assert_eq!(estimate.most_link_bytes, 30 * (1 << 20) / 16);
}

/// What the checks exist for, planted.
#[test]
fn a_wrong_result_a_lost_message_and_a_rank_that_leaves_early_are_found() {
    let all_reduce = experiment(Collective::AllReduce, Algorithm::Rabenseifner, 8, 1000);
    let mut world = World::new(&all_reduce).unwrap();
    world.run(|_| ());
    assert!(world.estimate().is_ok());
    world.watched.spoil(3, 5);
    assert!(matches!(world.estimate(), Err(ExperimentError::Wrong { rank: 3, .. })));

    let mut world = World::new(&all_reduce).unwrap();
    world.handle(Event::Enter { rank: 0 });
    world.agenda = Agenda::default();
    world.run(|_| ());
    assert!(matches!(world.estimate(), Err(ExperimentError::Deadlock { .. })));

    let barrier = experiment(Collective::Barrier, Algorithm::Dissemination, 8, 0);
    let mut world = World::new(&barrier).unwrap();
    world.run(|_| ());
    assert!(world.estimate().is_ok());
    world.ranks[2].ended = Some(world.last_entry - 1);
    assert_eq!(world.estimate(), Err(ExperimentError::LeftEarly { rank: 2 }));
}
