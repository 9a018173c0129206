//! Every schedule of every rank is right, in every order in which it may run.

mod proof;

use std::collections::BTreeMap;

use windlass_collectives::{Algorithm, Collective, Schedule};

use proof::case::{Case, every_node_map, node_maps};
use proof::check::Prover;

/// The numbers of ranks: all small ones, and some awkward ones.
const SMALL: std::ops::RangeInclusive<u32> = 1..=17;
const LARGE: [u32; 4] = [24, 31, 33, 64];

#[derive(Default)]
struct Tally {
    cases: BTreeMap<(Collective, Algorithm), u64>,
    seconds: BTreeMap<(Collective, Algorithm), f64>,
    /// The first fault of each algorithm.
    faults: BTreeMap<(Collective, Algorithm), String>,
    prover: Prover,
}

impl Tally {
    fn prove(&mut self, cases: &[Case]) {
        let key = (cases[0].collective, cases[0].algorithm);
        let operations: Vec<_> = cases.iter().map(Case::operation).collect();
        if let Err(error) = self.prover.prove_all(&operations) {
            self.faults.entry(key).or_insert_with(|| format!("{cases:?}:\n{error}"));
        }
        *self.cases.entry(key).or_default() += 1;
    }

    fn print(&self, what: &str, began: std::time::Instant) {
        for (key, cases) in &self.cases {
            let seconds = self.seconds.get(key).map(|s| format!("{s:8.2} s")).unwrap_or_default();
            println!("  {:15} {:20} {cases:7} {seconds}", key.0, key.1);
        }
        assert!(self.faults.is_empty(), "{:#?}", self.faults);
        let total: u64 = self.cases.values().sum();
        println!(
            "{what}, 0 failures, {:.1} s",
            began.elapsed().as_secs_f64(),
            what = what.replace('#', &total.to_string())
        );
    }
}

#[expect(clippy::disallowed_methods, reason = "a test may tell how long it took")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn pairs() -> impl Iterator<Item = (Collective, Algorithm)> {
    Collective::ALL.iter().flat_map(|&c| Algorithm::ALL.iter().map(move |&a| (c, a)))
}

/// Who has heap memory, of `ranks` ranks.
fn stagings(algorithm: Algorithm, ranks: u32, seed: u64) -> Vec<u64> {
    if !algorithm.lends_memory() || ranks == 1 {
        return vec![0];
    }
    let all = u64::MAX >> (64 - ranks);
    let random = proof::value::mix(seed ^ u64::from(ranks)) & all;
    let mut sets = vec![0, all, 1, 1 << (ranks - 1), 0x5555_5555_5555_5555 & all, random];
    sets.sort_unstable();
    sets.dedup();
    sets
}

/// Counts and chunk sizes: with elements of a cache line, the chunks of a block are its elements.
fn cuts(base: &Case) -> Vec<Case> {
    let p = u64::from(base.ranks);
    let blockwise = base.layout().blocks() > 1 || base.ranks == 1;
    let uniform = base.collective.has_blocks();
    // How many elements make blocks of so many chunks, the last block longer than the others.
    let scale = if blockwise && !uniform { p } else { 1 };
    let mut counts = vec![0, 1, 2, p - 1, p, p + 1, 2 * scale, 3 * scale + p / 2, 5 * scale];
    if base.ranks <= 9 {
        counts.extend([5 * scale + p / 2, 9 * scale + 1]);
    }
    counts.retain(|c| *c <= 9 * scale + p);
    counts.sort_unstable();
    counts.dedup();
    let mut cases = Vec::new();
    for count in counts {
        let chunks = if blockwise { count / scale } else { count };
        if chunks > 9 {
            continue;
        }
        for depth in [1, 2, 4] {
            if depth != 2 && chunks < 3 {
                continue;
            }
            cases.push(Case { count, depth, ..*base });
        }
    }
    // Small elements, whose blocks are rounded to cache lines: most are empty, or ragged.
    for (count, element_bytes) in [(p + 1, 8), (8 * p + 3, 8), (21 * scale + 5, 16)] {
        if uniform && count > 30 {
            continue;
        }
        cases.push(Case { count, element_bytes, chunk_bytes: 128, piece_bytes: 64, depth: 1, ..*base });
    }
    cases
}

/// The cases of an algorithm on so many ranks, but for who is staged and what is in place.
fn cases(collective: Collective, algorithm: Algorithm, ranks: u32) -> Vec<Case> {
    let least = if collective.is_point_to_point() { 2 } else { 1 };
    // A Recv is proved with its Send.
    if collective == Collective::Recv || ranks < least || !Schedule::supports(collective, algorithm, ranks) {
        return Vec::new();
    }
    let base = Case::new(collective, algorithm, ranks, 1);
    let roots = (0..if collective.rooted() { ranks } else { 1 })
        .filter(|root| ranks <= 17 || [0, 1, ranks / 2, ranks - 1].contains(root));
    let mut cases: Vec<_> = roots.flat_map(|root| cuts(&Case { root, ..base })).collect();
    if algorithm == Algorithm::Hierarchical {
        let maps = node_maps(ranks);
        cases.iter_mut().zip(maps.iter().cycle()).for_each(|(case, nodes)| case.nodes = nodes);
    }
    if ranks > 17 {
        cases.retain(|c| [1, u64::from(ranks) + 1, 21 + 5].contains(&c.count));
    }
    cases
}

#[test]
fn every_schedule_is_right() {
    let began = now();
    let mut tally = Tally::default();
    for (collective, algorithm) in pairs() {
        let at = now();
        for ranks in SMALL.chain(LARGE) {
            for case in cases(collective, algorithm, ranks) {
                for staged in stagings(algorithm, ranks, case.count) {
                    for in_place in [false, true] {
                        if in_place && !collective.may_be_in_place() {
                            continue;
                        }
                        tally.prove(&[Case { staged, in_place, ..case }]);
                    }
                }
            }
        }
        tally.seconds.insert((collective, algorithm), at.elapsed().as_secs_f64());
    }
    let what = "proof: # cases (collective x algorithm x ranks x root x count x chunks x staged x in place)";
    tally.print(what, began);
}

/// However ranks are put on NUMA nodes.
#[test]
fn every_map_of_nodes_is_right() {
    let began = now();
    let mut tally = Tally::default();
    let mut random = proof::value::Random(7);
    let algorithm = Algorithm::Hierarchical;
    for ranks in 2..=8 {
        for nodes in every_node_map(ranks) {
            for &collective in Collective::ALL.iter().filter(|c| Schedule::supports(**c, algorithm, ranks)) {
                // All of the fewest ranks, and of more some by chance.
                let more = if ranks <= 5 { 6 } else { 1 };
                for _ in 0..more {
                    let count = (random.below(4) as u64 + 1)
                        * if collective.has_blocks() { 1 } else { u64::from(ranks) };
                    let root = if collective.rooted() { random.below(ranks as usize) as u32 } else { 0 };
                    let staged = [0, u64::MAX, random.word()][random.below(3)];
                    let (depth, in_place) = ([1, 2][random.below(2)], random.one_in(2));
                    let base = Case::new(collective, algorithm, ranks, count);
                    tally.prove(&[Case { nodes, root, staged, depth, in_place, ..base }]);
                }
            }
        }
    }
    tally.print("proof of every map of up to 8 ranks to nodes: # cases", began);
}

/// What one operation leaves behind does not disturb the next one in the same memory. A single operation is
/// proved to touch a rank's memory only between that rank's entering and leaving, so this follows; here it is
/// seen, with other counts, roots and collectives following each other.
#[test]
fn operations_may_follow_each_other() {
    let began = now();
    let mut tally = Tally::default();
    let mut random = proof::value::Random(20);
    for (collective, algorithm) in pairs() {
        for ranks in 1..=8 {
            let first = cases(collective, algorithm, ranks);
            for case in &first {
                for in_place in [false, true] {
                    let staged = random.word();
                    let other = first[random.below(first.len())];
                    let in_memory =
                        |c: Case| Case { staged, in_place, element_bytes: case.element_bytes, ..c };
                    tally.prove(&[in_memory(*case), in_memory(*case)]);
                    tally.prove(&[in_memory(*case), in_memory(other)]);
                }
            }
        }
    }
    let mut all: Vec<_> = pairs().collect();
    all.retain(|(c, _)| !c.is_point_to_point());
    for ranks in 2..=7 {
        for (collective, algorithm) in &all {
            for (next, by) in &all {
                let (one, two) = (cases(*collective, *algorithm, ranks), cases(*next, *by, ranks));
                if one.is_empty() || two.is_empty() {
                    continue;
                }
                let (staged, in_place) = (random.word(), random.one_in(2));
                let pick = |c: Case| Case { staged, in_place, element_bytes: 64, ..c };
                let (a, b) = (one[random.below(one.len())], two[random.below(two.len())]);
                tally.prove(&[pick(a), pick(b), pick(a)]);
            }
        }
    }
    tally.print("proof of sequences: # sequences of two or three operations", began);
}
