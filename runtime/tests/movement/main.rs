//! The real runtime on a simulated host, whose accelerators move and take back memory in the middle of operations.
//!
//! A seed decides the job, its operations and what happens when; the order in which ranks and devices take their turns is drawn from it,
//! too. Afterwards every result must be right, every operation over, and nobody may have touched memory that was gone. What checks that
//! knows nothing of the runtime. `WINDLASS_SEED=N cargo test -p windlass --test movement replay -- --nocapture` replays one.

#![expect(clippy::unwrap_used, reason = "a test that fails should panic")]

mod plan;
mod run;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use plan::{Event, Plan};
use run::{Run, run};

const FIXED: u64 = 4_000;
const FRESH: u64 = 400;

/// Operations that nothing keeps from succeeding are over so many microseconds after the last event.
const BOUND: u64 = 200_000;

/// What is wrong with a run, if anything.
fn fault(plan: &Plan, run: &Run) -> Option<String> {
    if let Some(breach) = run.breaches.first() {
        return Some(format!("memory was touched that was gone: {breach}"));
    }
    // What stops a rank, or keeps memory away, lasts tens of milliseconds at most; nobody waits longer.
    if plan.must_succeed() && run.ended.as_micros() > u128::from(plan.last() + BOUND) {
        return Some(format!("it took until {:?}", run.ended));
    }
    for (rank, call, outcome) in &run.outcomes {
        let at = format!("call {call} of rank {rank}");
        match outcome {
            None => return Some(format!("{at} hangs")),
            Some(Ok(values)) => {
                let expected = plan.expected(*call, *rank);
                if *values != expected {
                    let first = values.iter().zip(&expected).position(|(a, b)| a != b);
                    return Some(format!("{at} is wrong from element {first:?}"));
                }
            }
            Some(Err(error)) if plan.must_succeed() => return Some(format!("{at} failed: {error}")),
            Some(Err(_)) => {}
        }
    }
    None
}

/// The same plan with as few events as still show the fault.
fn shrink(mut plan: Plan) -> Plan {
    'again: loop {
        for index in 0..plan.events.len() {
            let mut smaller = plan.clone();
            smaller.events.remove(index);
            if fault(&smaller, &run(&smaller)).is_some() {
                plan = smaller;
                continue 'again;
            }
        }
        return plan;
    }
}

#[derive(Debug, Default)]
struct Tally {
    runs: u64,
    ended: u64,
    failed: u64,
    moves: u64,
    revokes: u64,
    refused: u64,
    replays: u64,
    events: BTreeMap<&'static str, u64>,
}

fn sweep(seeds: impl Iterator<Item = u64>) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let plan = Plan::new(seed);
        let run = run(&plan);
        if let Some(what) = fault(&plan, &run) {
            let small = shrink(plan);
            panic!(
                "seed {seed}: {what}\nreplay: WINDLASS_SEED={seed} cargo test -p windlass --test movement replay -- --nocapture\n\
                 shrunken: {small}\nwith it: {:?}",
                fault_of(&small)
            );
        }
        tally.runs += 1;
        for (.., outcome) in &run.outcomes {
            match outcome {
                Some(Ok(_)) => tally.ended += 1,
                _ => tally.failed += 1,
            }
        }
        tally.moves += run.moves;
        tally.revokes += run.revokes;
        tally.refused += run.refused;
        tally.replays += run.replays;
        for event in &plan.events {
            *tally.events.entry(event.1.name()).or_default() += 1;
        }
    }
    tally
}

fn fault_of(plan: &Plan) -> Option<String> {
    fault(plan, &run(plan))
}

fn seeds_of_share(share: u64, shares: u64) -> impl Iterator<Item = u64> {
    (0..FIXED).filter(move |seed| seed % shares == share)
}

#[test]
fn fixed_seeds_first_half() {
    let tally = sweep(seeds_of_share(0, 2));
    println!("{tally:?}");
    assert!(tally.replays > 100 && tally.moves > 100 && tally.revokes > 100, "{tally:?}");
}

#[test]
fn fixed_seeds_second_half() {
    println!("{:?}", sweep(seeds_of_share(1, 2)));
}

#[test]
fn fresh_seeds() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = now.as_nanos() as u64;
    println!("from seed {first}");
    println!("{:?}", sweep((0..FRESH).map(|i| first.wrapping_add(i))));
}

#[test]
fn replay() {
    let Some(seed) = std::env::var("WINDLASS_SEED").ok().and_then(|seed| seed.parse().ok()) else { return };
    let plan = Plan::new(seed);
    println!("{plan}");
    let run = run(&plan);
    println!("{run:?}");
    assert_eq!(fault(&plan, &run), None);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let plan = Plan::new(seed);
        assert_eq!(format!("{:?}", run(&plan)), format!("{:?}", run(&plan)), "seed {seed}");
    }
}

/// The checker sees what it is there for.
#[test]
fn canaries() {
    let plan = Plan::new(3);
    let mut wrong = run(&plan);
    assert_eq!(fault(&plan, &wrong), None);
    let (.., outcome) = &mut wrong.outcomes[0];
    *outcome = None;
    assert!(fault(&plan, &wrong).is_some_and(|what| what.contains("hangs")));
    let quiet =
        (0..).map(Plan::new).find(|plan| plan.must_succeed() && plan.calls.iter().any(|c| c.count > 0));
    let plan = quiet.unwrap();
    let mut spoiled = run(&plan);
    let outcome = spoiled.outcomes.iter_mut().find_map(|(.., outcome)| match outcome {
        Some(Ok(values)) if !values.is_empty() => Some(values),
        _ => None,
    });
    outcome.unwrap()[0] += 1;
    assert!(fault(&plan, &spoiled).is_some_and(|what| what.contains("wrong")));
}

/// An engine that works on memory it was told to leave is found out: the audit is no decoration.
#[test]
fn a_lying_engine_is_found() {
    let caught = (0..1000).find(|&seed| {
        let plan = Plan { lies: true, ..Plan::new(seed) };
        plan.events.iter().any(|(_, event)| matches!(event, Event::Revoke { .. }))
            && fault(&plan, &run(&plan)).is_some()
    });
    println!("caught with seed {caught:?}");
    assert!(caught.is_some());
}
