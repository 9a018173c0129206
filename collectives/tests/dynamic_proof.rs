//! The real `Execution` of all ranks, under random completion orders.

mod proof;

use windlass_collectives::{Algorithm, Collective, Schedule};

use proof::case::{Case, Operation, node_maps};
use proof::dynamic::World;
use proof::value::Random;

fn run(operations: &[Operation], seed: u64) {
    if let Err(error) = World::new(operations, seed).run() {
        let cases: Vec<_> = operations.iter().map(|o| o.case).collect();
        panic!("seed {seed}, {cases:?}:\n{error}");
    }
}

/// A random supported case of an algorithm on so many ranks.
fn random_case(collective: Collective, algorithm: Algorithm, ranks: u32, random: &mut Random) -> Case {
    let mut case = Case::new(collective, algorithm, ranks, 0);
    if algorithm == Algorithm::Hierarchical {
        let maps = node_maps(ranks);
        case.nodes = maps[random.below(maps.len())];
    }
    let p = u64::from(ranks);
    let block = [1, 1, 2, 3, 5, 9, 40][random.below(7)];
    let uniform = collective.has_blocks();
    let scale = if case.layout().blocks() > 1 && !uniform { p } else { 1 };
    case.count = match random.below(4) {
        0 => random.word() % (p + 2),
        _ => scale * block + random.word() % if uniform { 1 } else { p },
    };
    case.depth = [1, 2, 4][random.below(3)];
    case.root = random.below(ranks as usize) as u32;
    case.in_place = random.one_in(2);
    case.staged = [0, u64::MAX, random.word()][random.below(3)];
    if random.one_in(3) {
        (case.chunk_bytes, case.piece_bytes) = (128, 192);
    }
    case
}

#[test]
fn every_algorithm_ends_right_in_any_order() {
    let mut runs = 0;
    for &collective in Collective::ALL {
        for &algorithm in Algorithm::ALL {
            for ranks in (1..=9).chain([13, 16, 17]) {
                let least = if collective.is_point_to_point() { 2 } else { 1 };
                let supported = Schedule::supports(collective, algorithm, ranks);
                if collective == Collective::Recv || ranks < least || !supported {
                    continue;
                }
                let seeds = if ranks <= 9 { 40 } else { 6 };
                for seed in 0..seeds {
                    let mut random = Random(proof::value::mix(seed + u64::from(ranks) * 1000));
                    let first = random_case(collective, algorithm, ranks, &mut random);
                    let mut second = random_case(collective, algorithm, ranks, &mut random);
                    second.in_place = first.in_place;
                    run(&[first.operation(), second.operation()], seed);
                    runs += 1;
                }
            }
        }
    }
    println!("dynamic proof: {runs} runs of two operations, 0 failures");
}

/// One execution serves whatever a communicator is asked for, in the same memory.
#[test]
fn collectives_may_follow_each_other() {
    let all: Vec<_> = Collective::ALL
        .iter()
        .filter(|c| !c.is_point_to_point())
        .flat_map(|&c| Algorithm::ALL.iter().map(move |&a| (c, a)))
        .collect();
    for seed in 0..60 {
        let mut random = Random(seed + 77_000_000);
        let ranks = 1 + random.below(8) as u32;
        let in_place = random.one_in(2);
        let mut operations = Vec::new();
        while operations.len() < 5 {
            let (collective, algorithm) = all[random.below(all.len())];
            if Schedule::supports(collective, algorithm, ranks) {
                let case = random_case(collective, algorithm, ranks, &mut random);
                operations.push(Case { in_place, ..case }.operation());
            }
        }
        run(&operations, seed);
    }
}
