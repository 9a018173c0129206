//! The shape of the schedules: volume and rounds by the textbook, bounded windows, honest lengths.

use windlass_collectives::execution::WINDOW;
use windlass_collectives::{
    Action, Algorithm, Blocks, Collective, Execution, Geometry, Layout, Rank, Rule, Schedule,
};

const COUNT: u64 = 840;

fn schedule(collective: Collective, algorithm: Algorithm, rank: Rank, ranks: u32) -> Schedule {
    Schedule::new(collective, algorithm, rank, ranks, 0, false).expect("supported")
}

fn geometry(schedule: &Schedule, ranks: u32) -> Geometry {
    let uniform = schedule.collective().has_blocks();
    let layout = if uniform {
        Layout::uniform(COUNT, 64, ranks)
    } else {
        Layout::parts(COUNT * u64::from(ranks), 64, schedule.blocks())
    };
    Geometry::new(layout, 4096, 1024, 4)
}

/// The messages a rank sends and their bytes.
fn sent(schedule: &Schedule, ranks: u32) -> (u32, u64) {
    let layout = geometry(schedule, ranks).layout;
    let (mut messages, mut bytes) = (0, 0);
    for i in 0..schedule.len() {
        if let Action::Send { from, .. } = schedule.step(i).action {
            let Blocks::Range { first, end } = from.blocks else { panic!("a message is a range") };
            messages += 1;
            bytes += layout.start(end) - layout.start(first);
        }
    }
    (messages, bytes)
}

fn every_schedule(most: u32) -> impl Iterator<Item = (Schedule, u32)> {
    let pairs = Collective::ALL.iter().flat_map(|&c| Algorithm::ALL.iter().map(move |&a| (c, a)));
    pairs.flat_map(move |(c, a)| {
        (1..=most).filter(move |p| Schedule::supports(c, a, *p)).flat_map(move |p| {
            (0..p).flat_map(move |r| {
                [false, true].map(|s| (Schedule::new(c, a, r, p, (r * 7 + 1) % p, s).expect("supported"), p))
            })
        })
    })
}

#[test]
fn volumes_and_rounds_are_the_textbook_ones() {
    for p in 2..=64_u32 {
        let (block, rounds) = (COUNT * 64, p.next_power_of_two().ilog2());
        for rank in 0..p {
            let of = |c, a| sent(&schedule(c, a, rank, p), p);
            let steps = u64::from(p - 1);
            assert_eq!(of(Collective::AllReduce, Algorithm::Ring), (2 * (p - 1), 2 * steps * block));
            assert_eq!(of(Collective::ReduceScatter, Algorithm::Ring), (p - 1, steps * block));
            assert_eq!(of(Collective::AllGather, Algorithm::Ring), (p - 1, steps * block));
            assert_eq!(of(Collective::Barrier, Algorithm::Dissemination), (rounds, 0));
            assert!(of(Collective::Broadcast, Algorithm::BinomialTree).0 <= rounds);
            assert!(of(Collective::Reduce, Algorithm::BinomialTree).0 <= 1);
            assert_eq!(of(Collective::AllToAll, Algorithm::Pairwise), (p - 1, steps * block));
            let linear = if rank == 0 { (0, 0) } else { (1, block) };
            assert_eq!(of(Collective::Gather, Algorithm::Linear), linear);
            let linear = if rank == 0 { (p - 1, steps * block) } else { (0, 0) };
            assert_eq!(of(Collective::Scatter, Algorithm::Linear), linear);
            let whole = block * u64::from(p);
            for collective in [Collective::Broadcast, Collective::Scan, Collective::ExScan] {
                let last = rank == p - 1;
                let once = if last { (0, 0) } else { (1, whole) };
                assert_eq!(of(collective, Algorithm::Chain), once, "{collective} {rank} of {p}");
            }
            let (messages, bytes) = of(Collective::AllReduce, Algorithm::Circulant);
            // A round is one message or two, where its blocks pass the end of the vector.
            assert!((2 * rounds..=4 * rounds).contains(&messages));
            assert_eq!(bytes, 2 * steps * block);
            let (messages, bytes) = of(Collective::AllGather, Algorithm::Circulant);
            assert!((rounds..=2 * rounds).contains(&messages));
            assert_eq!(bytes, steps * block);
            // In each tree up to the parent and down to two children, with half of the vector.
            let (messages, bytes) = of(Collective::AllReduce, Algorithm::DoubleTree);
            assert!(messages <= 6 && bytes <= 2 * whole + 64 * 6, "{messages} {bytes}");
            if p.is_power_of_two() {
                let whole = block * u64::from(p);
                let doubling = of(Collective::AllReduce, Algorithm::RecursiveDoubling);
                assert_eq!(doubling, (rounds, u64::from(rounds) * whole));
                let halving = of(Collective::AllReduce, Algorithm::Rabenseifner);
                assert_eq!(halving, (2 * rounds, 2 * steps * block));
                let gather = of(Collective::AllGather, Algorithm::RecursiveDoubling);
                assert_eq!(gather, (rounds, steps * block));
            } else {
                // One message more for the partner, who is given the result.
                let core = p.ilog2();
                assert!(of(Collective::AllReduce, Algorithm::RecursiveDoubling).0 <= core + 1);
                assert!(of(Collective::AllReduce, Algorithm::Rabenseifner).0 <= 2 * core + 1);
            }
        }
    }
}

#[test]
fn a_binomial_tree_is_shallow_and_reaches_everybody() {
    for p in 1..=130_u32 {
        let mut parents = vec![None; p as usize];
        for rank in 0..p {
            let schedule = schedule(Collective::Broadcast, Algorithm::BinomialTree, rank, p);
            for i in 0..schedule.len() {
                if let Action::Send { to, .. } = schedule.step(i).action {
                    assert_eq!(parents[to as usize].replace(rank), None, "rank {to} of {p} has two parents");
                }
            }
        }
        for rank in 1..p {
            let (mut at, mut depth) = (rank, 0);
            while let Some(parent) = parents[at as usize] {
                (at, depth) = (parent, depth + 1);
            }
            assert_eq!(at, 0, "rank {rank} of {p} hangs on nothing");
            assert!(depth <= p.next_power_of_two().ilog2());
        }
    }
}

#[test]
fn both_trees_are_shallow_and_a_rank_is_a_leaf_in_one() {
    for p in 2..=130_u32 {
        let mut inner = vec![0; p as usize];
        for tree in 0..2 {
            let mut parents = vec![None; p as usize];
            for rank in 0..p {
                let schedule = schedule(Collective::AllReduce, Algorithm::DoubleTree, rank, p);
                for i in 0..schedule.len() {
                    if let Action::Send { to, label, .. } = schedule.step(i).action
                        && label == tree
                    {
                        assert_eq!(parents[rank as usize].replace(to), None, "rank {rank} of {p}");
                    }
                }
            }
            for rank in 0..p {
                let (mut at, mut depth) = (rank, 0);
                while let Some(parent) = parents[at as usize] {
                    (at, depth) = (parent, depth + 1);
                }
                assert!(depth <= p.next_power_of_two().ilog2(), "rank {rank} of {p} is {depth} deep");
                assert_eq!(parents[at as usize], None);
            }
            assert_eq!(parents.iter().filter(|parent| parent.is_none()).count(), 1, "one root of {p}");
            let two = |rank: &u32| parents.iter().flatten().filter(|parent| *parent == rank).count() == 2;
            (0..p).filter(two).for_each(|rank| inner[rank as usize] += 1);
        }
        assert!(inner.iter().all(|trees| *trees < 2), "of {p} ranks one has two children in both trees");
    }
}

#[test]
fn dependencies_are_well_formed() {
    for (schedule, ranks) in every_schedule(40) {
        let geometry = geometry(&schedule, ranks);
        let mut labels = std::collections::BTreeSet::new();
        for i in 0..schedule.len() {
            let step = schedule.step(i);
            assert!(geometry.chunks(&step.action) > 0);
            let mut met = std::collections::BTreeSet::new();
            for dependency in step.dependencies() {
                assert!(dependency.step < schedule.len() && dependency.step != i, "{schedule}");
                assert!(met.insert(dependency.step), "step {i} waits twice for the same\n{schedule}");
                if dependency.step > i {
                    assert_eq!(
                        dependency.rule,
                        Rule::Reuse,
                        "step {i} waits for what comes later\n{schedule}"
                    );
                    assert!(dependency.step - i < WINDOW, "step {i} looks too far ahead\n{schedule}");
                }
            }
            match step.action {
                Action::Send { to, label, .. } => assert!(labels.insert((true, to, label)), "{schedule}"),
                Action::Recv { from, label, .. } => {
                    assert!(labels.insert((false, from, label)), "{schedule}")
                }
                _ => {}
            }
        }
        assert_eq!(schedule.is_empty(), (0..schedule.len()).next().is_none());
        // A line for each step, and the title.
        assert_eq!(schedule.to_string().lines().count() as u32, schedule.len() + 1);
    }
}

/// Does everything at once as soon as it is ready; returns the number of tasks.
fn walk(schedule: Schedule, geometry: Geometry) -> u32 {
    let mut execution = Execution::new(schedule, geometry);
    let (mut tasks, mut furthest) = (0, 0);
    while let Some(task) = execution.poll(u32::MAX) {
        assert!(task.step + WINDOW > furthest, "step {} is far behind {furthest}", task.step);
        furthest = furthest.max(task.step);
        execution.complete(task.step, task.first..task.end);
        tasks += 1;
    }
    assert!(execution.is_done());
    tasks
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the bound under test is one of time")]
fn a_ring_of_thousands_is_walked_quickly_in_bounded_memory() {
    assert!(size_of::<Execution>() <= 6 << 10, "{} bytes", size_of::<Execution>());
    let began = std::time::Instant::now();
    for ranks in [4096, 1 << 16] {
        for rank in [0, 1, ranks / 2, ranks - 1] {
            let schedule = schedule(Collective::AllReduce, Algorithm::Ring, rank, ranks);
            assert_eq!(schedule.len(), 5 * (ranks - 1));
            let geometry = Geometry::new(Layout::parts(u64::from(ranks) * 2, 64, ranks), 64, 64, 4);
            assert!(walk(schedule, geometry) >= schedule.len());
        }
    }
    println!("8 rings, {} steps: {:?}", 20 * (4096 + (1 << 16)), began.elapsed());
    assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
}

#[test]
fn steps_cost_the_same_for_a_million_ranks() {
    // An index far into the largest schedules is computed, not reached.
    for algorithm in [
        Algorithm::Ring,
        Algorithm::RecursiveDoubling,
        Algorithm::Rabenseifner,
        Algorithm::Circulant,
        Algorithm::DoubleTree,
    ] {
        for ranks in [(1 << 20) - 1, 1 << 20] {
            let schedule = schedule(Collective::AllReduce, algorithm, ranks / 3, ranks);
            for i in 0..100_000 {
                std::hint::black_box(schedule.step((i * 7919) % schedule.len()));
            }
        }
    }
}

#[test]
fn no_block_is_larger_than_the_last_in_whole_grains() {
    for blocks in 1..=70 {
        for bytes in (0..3000).step_by(4).chain([1 << 20, (1 << 20) + 4, 1_000_004]) {
            for layout in [Layout::parts(bytes / 4, 4, blocks), Layout::uniform(bytes / 4, 4, blocks)] {
                let sizes = (0..blocks).map(|b| layout.start(b + 1) - layout.start(b));
                let largest = sizes.max().unwrap_or(0);
                assert!(largest <= layout.largest().next_multiple_of(64), "{layout:?}");
                assert!(layout.largest() <= largest, "{layout:?}");
                assert_eq!(layout.start(blocks), layout.bytes());
            }
        }
    }
    // Products beyond 64 bits.
    let huge = Layout::parts(1 << 60, 8, 1 << 20);
    assert_eq!(huge.start((1 << 20) - 1), (1 << 63) - (1 << 43));
}

#[test]
fn a_geometry_cuts_every_block_whole() {
    for blocks in [1, 2, 3, 7, 65] {
        for count in [0, 1, 63, 64, 65, 1000, 12_345] {
            let layout = Layout::parts(count, 4, blocks);
            let geometry = Geometry::new(layout.clone(), 192, 320, 2);
            let pieces = geometry.chunks(&Action::Gather {
                from: windlass_collectives::Role::Input,
                take: windlass_collectives::Take::Theirs,
            });
            for block in 0..blocks {
                let role = windlass_collectives::Role::Output;
                let all = geometry.block_piece(role, block, 0, pieces);
                assert_eq!(
                    (all.offset, all.offset + all.bytes),
                    (layout.start(block), layout.start(block + 1))
                );
                let sum: u64 = (0..pieces).map(|c| geometry.block_piece(role, block, c, c + 1).bytes).sum();
                assert_eq!(sum, all.bytes);
            }
            assert!(pieces == 1 || layout.largest() > u64::from(pieces - 1) * 320, "an empty last chunk");
        }
    }
}
