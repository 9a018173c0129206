//! The scheduler's region life, run by a model of ranks, exporters and networks, and watched by a checker that shares nothing with it.
//!
//! `WINDLASS_SEED=N` runs one seed and prints what it found; `WINDLASS_SEEDS=N` runs so many fresh ones besides the fixed ones.

#![expect(clippy::unwrap_used, reason = "a test that fails should panic")]

mod canaries;
mod checker;
mod exhaustive;
mod exporter;
mod rank;
mod run;
mod stories;
mod tables;
mod work;
mod world;

use run::{FAULTS, Tally, random, shrink, trace};

#[track_caller]
fn hold(seed: u64, tally: &mut Tally) -> usize {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| random(seed, None, tally)));
    let Ok((plan, found)) = result else {
        panic!(
            "seed {seed} panicked; run it alone: WINDLASS_SEED={seed} cargo test -p windlass --test scheduler seeds"
        );
    };
    if let Some(found) = found {
        let small = shrink(&plan);
        panic!(
            "{found}\n{}\nrun it again: WINDLASS_SEED={seed} cargo test -p windlass --test scheduler seeds",
            trace(&small)
        );
    }
    plan.steps.len()
}

/// Fresh seeds that found something when they were fresh.
const ONCE_FOUND: [u64; 2] = [1795473193237938882, 1795473651319103459];

#[test]
fn seeds() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let mut tally = Tally::default();
    if let Some(seed) = number("WINDLASS_SEED") {
        println!("seed {seed}: {} events", hold(seed, &mut tally));
        return;
    }
    let fresh = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("fresh seeds from {fresh}");
    let count = number("WINDLASS_SEEDS").unwrap_or(2_000);
    let seeds = (0..10_000).chain(ONCE_FOUND).chain((0..count).map(|i| fresh.wrapping_add(i)));
    let events: usize = seeds.map(|seed| hold(seed, &mut tally)).sum();
    println!("{} seeds, {events} events before the end game", 10_000 + ONCE_FOUND.len() as u64 + count);
    for (kind, times) in FAULTS.iter().zip(tally) {
        println!("{times:8} {kind}");
        assert!(times > 0, "{kind} never happened");
    }
}
