//! Planted faults: each must be found, and soon.

use std::panic::{AssertUnwindSafe, catch_unwind};

use windlass::scheduler::Fault;

use crate::run::{Tally, random};

#[track_caller]
fn is_caught(fault: Fault, invariants: &[&str]) {
    for seed in 0..1_000 {
        let run = || random(seed, Some(fault), &mut Tally::default()).1;
        let Some(found) = catch_unwind(AssertUnwindSafe(run)).unwrap_or(None) else { continue };
        if invariants.iter().any(|invariant| found.starts_with(invariant)) {
            println!("{fault:?}: caught after {} seed(s): {found}", seed + 1);
            return;
        }
    }
    panic!("{fault:?} went unnoticed");
}

#[test]
fn an_importer_that_answers_without_a_fence() {
    is_caught(Fault::SkipFence, &["silence after acknowledgement"]);
}

#[test]
fn a_generation_used_twice() {
    is_caught(Fault::ReuseGeneration, &["a generation is used once"]);
}

#[test]
fn a_sender_that_trusts_its_completion() {
    is_caught(Fault::TrustCompletion, &["exactly once"]);
}

#[test]
fn a_sum_in_memory_that_can_vanish() {
    is_caught(Fault::AccumulateInPlace, &["exactly once"]);
}

#[test]
fn an_owner_that_acknowledges_early() {
    is_caught(Fault::AcknowledgeEarly, &["silence after acknowledgement"]);
}

#[test]
fn a_sender_that_ignores_the_watermark() {
    is_caught(Fault::IgnoreWatermark, &["exactly once", "everything ends"]);
}
