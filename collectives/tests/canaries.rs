//! The proof catches planted faults: a proof that cannot fail proves nothing.

mod proof;

use std::collections::{BTreeMap, BTreeSet};

use windlass_collectives::{
    Action, Algorithm, Association, Blocks, Collective, Operands, Role, Rule, Schedule, Span,
};

use proof::case::{Case, Operation, node_maps};
use proof::check::Prover;
use proof::resolve::{Resolver, Work};

const RANKS: [u32; 5] = [2, 3, 4, 5, 8];

/// Cases that exercise every chunk rule: several chunks a block, more than the rings hold, staged
/// and not, in place and not, and two roots.
fn cases(collective: Collective, algorithm: Algorithm, ranks: u32) -> Vec<Case> {
    let base = Case::new(collective, algorithm, ranks, 1);
    let uniform = collective.has_blocks();
    let scale = if base.layout().blocks() > 1 && !uniform { u64::from(ranks) } else { 1 };
    let mut cases = Vec::new();
    for in_place in [false, true] {
        for staged in [0, u64::MAX, 1, 2] {
            if staged != 0 && !algorithm.lends_memory() {
                continue;
            }
            for root in if collective.rooted() { 0..2 } else { 0..1 } {
                // Blocks of different lengths may be empty: in another case they are not.
                let more = if collective.is_uneven() { 6..12 } else { 0..0 };
                let counts = [(5 * scale, 2), (scale, 1)].into_iter().chain(more.map(|count| (count, 1)));
                for (count, depth) in counts {
                    cases.push(Case { count, depth, staged, root, in_place, ..base });
                }
            }
        }
    }
    if algorithm == Algorithm::Hierarchical {
        // On one node it is not chosen, and waits for more than it needs.
        let maps = node_maps(ranks).into_iter().filter(|map| !map.is_empty()).take(3);
        cases = maps.flat_map(|nodes| cases.iter().map(move |case| Case { nodes, ..*case })).collect();
    }
    cases
}

/// Whether a Combine moves something. What moves nothing can be skipped, and needs no order.
fn moves(operation: &Operation, rank: u32, index: u32) -> bool {
    let action = action(operation, rank, index);
    if matches!(
        action,
        Action::Signal { .. } | Action::Wait { .. } | Action::Send { .. } | Action::Recv { .. }
    ) {
        return true;
    }
    let mut work = Work::default();
    (0..operation.geometry(rank).chunks(&action)).any(|chunk| {
        let resolver = Resolver { operation, turn: 0, rank, chunk };
        resolver.resolve(&action, &mut work).is_err() || !work.moves.is_empty()
    })
}

fn supported() -> impl Iterator<Item = (Collective, Algorithm, u32)> {
    let pairs = Collective::ALL.iter().flat_map(|&c| Algorithm::ALL.iter().map(move |&a| (c, a)));
    pairs
        .flat_map(|(c, a)| RANKS.map(|p| (c, a, p)))
        .filter(|&(c, a, p)| c != Collective::Recv && Schedule::supports(c, a, p))
}

/// Plants a fault in all cases of all algorithms, one place at a time; a place is a step of a rank,
/// as it reads. Returns how many were planted, and the places where no case noticed.
fn plant(by_map: bool, mut fault: impl FnMut(&mut Operation, u32, u32) -> bool) -> (u64, BTreeSet<String>) {
    let mut prover = Prover::default();
    let mut places: BTreeMap<String, bool> = BTreeMap::new();
    for (collective, algorithm, ranks) in supported() {
        for case in cases(collective, algorithm, ranks) {
            let operation = case.operation();
            for rank in 0..ranks {
                for (index, step) in operation.steps[rank as usize].iter().enumerate() {
                    // A rank on a node does the same steps, whatever the map: of each there is one where it matters.
                    let who = match case.nodes {
                        [] => format!("rank {rank} of {ranks}"),
                        nodes if by_map => format!("rank {rank} on {nodes:?}"),
                        _ => "some rank".to_owned(),
                    };
                    let place = format!("{collective} {algorithm}, {who}, {index}: {step}");
                    if places.get(&place) == Some(&true) {
                        continue;
                    }
                    let mut faulty = operation.clone();
                    if fault(&mut faulty, rank, index as u32) {
                        let caught = prover.prove_all(&[faulty]).is_err();
                        *places.entry(place).or_default() |= caught;
                    }
                }
            }
        }
    }
    let planted = places.len() as u64;
    (planted, places.into_iter().filter(|(_, caught)| !caught).map(|(place, _)| place).collect())
}

fn must_catch(name: &str, fault: impl FnMut(&mut Operation, u32, u32) -> bool) {
    let (planted, unnoticed) = plant(true, fault);
    println!("canary: {name}: {planted} planted, {} unnoticed", unnoticed.len());
    assert!(planted > 0);
    assert!(unnoticed.is_empty(), "{name}: {} unnoticed:\n{unnoticed:#?}", unnoticed.len());
}

fn action(operation: &Operation, rank: u32, index: u32) -> Action {
    operation.steps[rank as usize][index as usize].action
}

#[test]
fn a_skipped_combine_is_caught() {
    must_catch("skipped combine", |operation, rank, index| {
        let combine = matches!(
            action(operation, rank, index),
            Action::Copy { .. }
                | Action::Reduce { .. }
                | Action::Gather { .. }
                | Action::Fetch { .. }
                | Action::Scan { .. }
        );
        let combine = combine && moves(operation, rank, index);
        operation.muted = Some((rank, index));
        combine
    });
}

#[test]
fn a_message_sent_twice_is_caught() {
    must_catch("message twice", |operation, rank, index| {
        operation.doubled = Some((rank, index, 0));
        matches!(action(operation, rank, index), Action::Send { .. })
    });
}

#[test]
fn a_wrong_label_is_caught() {
    must_catch("wrong label", |operation, rank, index| {
        let wrong = match action(operation, rank, index) {
            Action::Send { to, from, label } => Action::Send { to, from, label: label + 1 },
            Action::Recv { from, into, label } => Action::Recv { from, into, label: label + 1 },
            _ => return false,
        };
        operation.replace_action(rank, index, wrong);
        true
    });
}

#[test]
fn a_wrong_peer_is_caught() {
    must_catch("wrong peer", |operation, rank, index| {
        let ranks = operation.ranks();
        let wrong = match action(operation, rank, index) {
            Action::Send { to, from, label } => Action::Send { to: (to + 1) % ranks, from, label },
            Action::Recv { from, into, label } => Action::Recv { from: (from + 1) % ranks, into, label },
            _ => return false,
        };
        operation.replace_action(rank, index, wrong);
        true
    });
}

#[test]
fn a_flipped_last_is_caught() {
    must_catch("flipped last", |operation, rank, index| {
        let Action::Reduce { inputs, outputs, last } = action(operation, rank, index) else { return false };
        operation.replace_action(rank, index, Action::Reduce { inputs, outputs, last: !last });
        true
    });
}

#[test]
fn swapped_operands_are_caught() {
    must_catch("swapped operands", |operation, rank, index| {
        let Action::Reduce { inputs: Operands::Pair(a, b), outputs, last } = action(operation, rank, index)
        else {
            return false;
        };
        operation.replace_action(rank, index, Action::Reduce { inputs: Operands::Pair(b, a), outputs, last });
        // In a ring or by halving an element is added up by one rank alone, in whatever order, as is
        // the operand of a partner outside the core; doubling does it on all ranks alike.
        let folds = b == Span::range(Role::Scratch(1), 0, 1) && a.role == Role::Input && index == 1;
        let alike = operation.case.collective == Collective::AllReduce;
        alike && operation.case.algorithm == Algorithm::RecursiveDoubling && !folds
    });
}

/// Whoever folds along a tree of its own is found out when it says that it folds by rank.
#[test]
fn another_association_is_caught() {
    let mut prover = Prover::default();
    let mut planted = 0;
    for (collective, algorithm, ranks) in supported().filter(|(c, ..)| c.reduces()) {
        // Two operands have one order only, if they are taken in it.
        let by_rank = algorithm.association() == Association::ByRank;
        for case in cases(collective, algorithm, ranks).into_iter().filter(|c| by_rank || c.ranks > 2) {
            // Where a vector is in parts, one of them may be folded by rank by chance; with too few elements that is all there is.
            if case.count < u64::from(ranks) {
                continue;
            }
            let mut operation = case.operation();
            operation.by_rank = true;
            let proved = prover.prove_all(&[operation]);
            assert_eq!(proved.is_ok(), by_rank, "{collective} {algorithm} on {ranks} ranks: {proved:?}");
            planted += u32::from(!by_rank);
        }
    }
    println!("canary: another association: {planted} planted, 0 unnoticed");
    assert!(planted > 100);
}

#[test]
fn operands_out_of_rank_order_are_caught() {
    must_catch("operands out of rank order", |operation, rank, index| {
        let received = |action| matches!(action, Action::Reduce { inputs: Operands::Received(ranks, _), .. } if ranks > 1);
        if rank < 2 || !received(action(operation, rank, index)) {
            return false;
        }
        // The first two ranks' operands, each in the other's place.
        for step in 0..index {
            if let Action::Recv { from, into, label } = action(operation, rank, step)
                && let Role::Partial(place @ (0 | 1)) = into.role
            {
                let into = Span { role: Role::Partial(1 - place), ..into };
                operation.replace_action(rank, step, Action::Recv { from, into, label });
            }
        }
        true
    });
}

fn next_block(span: Span, blocks: u32) -> Span {
    let blocks = match span.blocks {
        // These lie where the chunk's number says, whatever the block.
        _ if matches!(span.role, Role::Scratch(_) | Role::Partial(_)) => span.blocks,
        Blocks::Range { first, end } if first == end => span.blocks,
        Blocks::Range { first, end } if end < blocks => Blocks::Range { first: first + 1, end: end + 1 },
        Blocks::Range { first, end } if first > 0 => Blocks::Range { first: first - 1, end: end - 1 },
        Blocks::One(block) => Blocks::One((block + 1) % blocks),
        Blocks::Others(block) => Blocks::Others((block + 1) % blocks),
        other => other,
    };
    Span { blocks, ..span }
}

#[test]
fn a_block_off_by_one_is_caught() {
    must_catch("block off by one", |operation, rank, index| {
        let before = action(operation, rank, index);
        let blocks = operation.geometry(rank).layout.blocks();
        let next = |span| next_block(span, blocks);
        let wrong = match before {
            Action::Copy { whose, from, to } => Action::Copy { whose, from: next(from), to },
            Action::Send { to, from, label } => Action::Send { to, from: next(from), label },
            Action::Recv { from, into, label } => Action::Recv { from, into: next(into), label },
            Action::Reduce { inputs: Operands::All(span), outputs, last } => {
                Action::Reduce { inputs: Operands::All(next(span)), outputs, last }
            }
            Action::Reduce { inputs, outputs: Operands::Mine(span), last } => {
                Action::Reduce { inputs, outputs: Operands::Mine(next(span)), last }
            }
            other => other,
        };
        operation.replace_action(rank, index, wrong);
        before != wrong
    });
}

#[test]
fn a_wrong_root_is_caught() {
    let mut prover = Prover::default();
    for algorithm in [Algorithm::Publish, Algorithm::Direct, Algorithm::BinomialTree] {
        for ranks in RANKS {
            for rank in 0..ranks {
                let case = Case::new(Collective::Broadcast, algorithm, ranks, 5);
                let mut operation = case.operation();
                let wrong = Case { root: 1, ..case }.schedule(rank).unwrap();
                let steps: Vec<_> = (0..wrong.len()).map(|i| wrong.step(i)).collect();
                if operation.steps[rank as usize] == steps {
                    continue;
                }
                operation.steps[rank as usize] = steps;
                assert!(prover.prove_all(&[operation]).is_err(), "{algorithm}, rank {rank} of {ranks}");
            }
        }
    }
}

/// Dependencies that the proof can do without, each for its reason.
fn is_allowed(place: &str) -> bool {
    // A root publishes before it serves itself: for its peers' sake, not for correctness.
    let root_first = (place.starts_with("broadcast") || place.starts_with("scatter"))
        && place.contains(": copy input[")
        && place.contains("-> output[");
    // On ranks that are no power of two, the notices reach some ranks by two ways; each may be spared, not both.
    let twice =
        place.starts_with("barrier dissemination") && (place.contains("of 3,") || place.contains("of 5,"));
    // A round waits for all of the one before, of which a run of blocks may need one part only.
    let round = place.contains(" circulant, ") && place.contains("whole without");
    // Who has relayed says so, and whoever waits for it to be done waits for others that have heard that.
    let relayed = place.starts_with("reduce hierarchical")
        && (place.contains(", 4: signal Done") || place.contains(", 5: signal Done"));
    root_first || twice || round || relayed
}

#[test]
fn every_dependency_is_needed() {
    let mut unneeded = BTreeSet::new();
    let mut planted = 0;
    // A step that waits for the messages of all others has the most: two for each.
    let most = 2 * (RANKS[RANKS.len() - 1] - 1) as usize;
    for position in 0..most.max(windlass_collectives::step::MAX_DEPENDENCIES) {
        for rule in [Rule::Same, Rule::All, Rule::Reuse] {
            let (number, unnoticed) = plant(false, |operation, rank, index| {
                let step = operation.steps[rank as usize][index as usize];
                let dependency = step.dependencies().nth(position).filter(|d| d.rule == rule);
                let moves = |index| moves(operation, rank, index);
                if dependency.is_none_or(|d| !moves(index) || !moves(d.step)) {
                    return false;
                }
                operation.dropped = Some((rank, index, position));
                true
            });
            planted += number;
            unneeded.extend(unnoticed.into_iter().map(|u| format!("{u} without its dependency {position}")));
        }
    }
    println!("canary: dropped dependency: {planted} planted, {} unneeded", unneeded.len());
    unneeded.retain(|u| !is_allowed(u));
    assert!(unneeded.is_empty(), "{} dependencies are not needed:\n{unneeded:#?}", unneeded.len());
}
