//! Every order of events of a small world: two ranks, one chunk each, both regions mapped, and then a fault or two at any moment.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::rank::Setup;
use crate::run::{Random, Tally, finish};
use crate::world::{Step, World};

/// Where the search begins: both ranks have what they need, and have done nothing yet.
fn begin(keys: u64) -> World {
    let setup = Setup { ranks: 2, chunks: 1, slots: 1, keys, limits: (60, 2000), fault: None };
    let mut weights = Random(1);
    let mut world = World::new(setup, move || weights.next());
    let prepares = |step: &Step| matches!(step, Step::Finish { .. } | Step::Deliver { .. });
    while let Some(step) = world.enabled().into_iter().find(prepares) {
        world.apply(step);
    }
    world
}

fn digest(world: &World, faults: &[Step]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (world, faults).hash(&mut hasher);
    hasher.finish()
}

/// Visits every state that can be reached, at most this many; returns how many, and how many of them were ends.
fn search(world: World, faults: &[Step], most: usize) -> (usize, usize, bool) {
    let mut seen = HashSet::from([digest(&world, faults)]);
    let (mut open, mut ends) = (vec![(world, faults.to_vec(), Vec::new())], 0);
    while let Some((world, faults, path)) = open.pop() {
        let steps = world.enabled();
        if steps.is_empty() && faults.is_empty() {
            ends += 1;
            let found = finish(&mut world.clone(), false, &mut Tally::default());
            assert!(found.is_none(), "{found:?} after {path:#?}");
        }
        let left = |i: usize| [&faults[..i], &faults[i + 1..]].concat();
        let with_faults = faults.iter().enumerate().map(|(i, step)| (*step, left(i)));
        for (step, faults) in steps.iter().map(|step| (*step, faults.clone())).chain(with_faults) {
            let mut next = world.clone();
            if !next.apply(step) {
                continue;
            }
            next.observe_pauses();
            let path = [&path[..], &[step]].concat();
            assert!(next.violation.is_none(), "{:?} after {path:#?}", next.violation);
            if seen.len() < most && seen.insert(digest(&next, &faults)) {
                open.push((next, faults, path));
            }
        }
    }
    (seen.len(), ends, seen.len() < most)
}

const MOVE: Step = Step::Ask { owner: 0, again: false, patience_ns: 100 };

#[track_caller]
fn hold(name: &str, keys: u64, faults: &[Step]) {
    let (states, ends, is_complete) = search(begin(keys), faults, 150_000);
    let all = if is_complete { "all" } else { "the first" };
    println!("{name}: {all} {states} states, {ends} ends");
    assert!(ends > 0, "{name} comes to an end");
}

#[test]
fn one_move_of_mapped_memory() {
    hold("one move, mapped", 0, &[MOVE]);
}

#[test]
fn one_move_by_key() {
    hold("one move, by key", u64::MAX, &[MOVE]);
}

#[test]
fn one_revoke_of_mapped_memory() {
    hold("one revoke, mapped", 0, &[Step::Revoke { owner: 0 }]);
}

#[test]
fn one_revoke_by_key() {
    hold("one revoke, by key", u64::MAX, &[Step::Revoke { owner: 0 }]);
}

#[test]
fn a_refused_move() {
    hold("a move, and its deadline", 0, &[MOVE, Step::Tick]);
}
