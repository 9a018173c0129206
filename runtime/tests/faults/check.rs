//! What must be true of a run. Nothing here is computed by what is tested.

use std::collections::BTreeSet;

use windlass::{AbortReason, Error, Fault, ReduceOp};

use super::plan::{Call, Kind, Plan};
use super::run::{Outcome, Record, Run};

/// Element `i` of what `rank` brings to call `call`.
fn element(rank: u32, call: usize, i: usize) -> i64 {
    let mixed = (u64::from(rank) << 40 ^ (call as u64) << 32 ^ i as u64).wrapping_mul(0xd134_2543_de82_ef95);
    (mixed ^ mixed >> 29) as i64
}

pub(crate) fn operand(rank: u32, call: usize, count: usize) -> Vec<i64> {
    (0..count).map(|i| element(rank, call, i)).collect()
}

fn reduced(ranks: u32, call: usize, op: ReduceOp, i: usize) -> i64 {
    let all = (0..ranks).map(|rank| element(rank, call, i));
    match op {
        ReduceOp::Min => all.min(),
        ReduceOp::Max => all.max(),
        _ => all.reduce(i64::wrapping_add),
    }
    .unwrap_or_default()
}

fn expected(plan: &Plan, record: &Record) -> Vec<i64> {
    let (rank, call, ranks) = (record.rank, record.call, plan.ranks);
    match plan.calls[call] {
        Call::AllReduce { count, op } => (0..count).map(|i| reduced(ranks, call, op, i)).collect(),
        Call::ReduceScatter { count, op } => {
            let first = rank as usize * count;
            (first..first + count).map(|i| reduced(ranks, call, op, i)).collect()
        }
        Call::AllGather { count } => (0..ranks).flat_map(|r| operand(r, call, count)).collect(),
        Call::Broadcast { count, root } => operand(root, call, count),
        Call::Barrier => Vec::new(),
        Call::Shift { count, by } if record.receives => operand((rank + ranks - by) % ranks, call, count),
        Call::Shift { count, .. } => operand(rank, call, count),
    }
}

/// Ranks that an error may name: those that something was done to, at either end.
fn suspects(plan: &Plan) -> BTreeSet<u32> {
    let mut suspects = BTreeSet::new();
    for (_, fault) in plan.injuries.iter().flat_map(|injury| &injury.faults) {
        match fault {
            Fault::Lose(rank) | Fault::Stop(rank) | Fault::Slow(rank, _) => drop(suspects.insert(*rank)),
            Fault::ErrorWrite(from, to) | Fault::Rewire(from, to, _) | Fault::Break(from, to) => {
                suspects.extend([*from, *to])
            }
            Fault::Partition(_) => suspects.extend(0..plan.ranks),
            _ => {}
        }
    }
    suspects
}

/// What is wrong with an error, if anything is.
fn wrong_error(plan: &Plan, error: &Error) -> Option<String> {
    let suspects = suspects(plan);
    match error {
        Error::PeerFailed { rank, .. } if suspects.contains(rank) => None,
        Error::PeerFailed { rank, .. } => Some(format!("blames rank {rank}, to whom nothing was done")),
        // Who waits for someone who waits for the culprit names the former.
        Error::TimedOut { waiting_on, .. } if !waiting_on.is_empty() => None,
        Error::TimedOut { .. } => Some("names nobody".to_owned()),
        Error::Aborted { reason: AbortReason::TimedOut, .. } => None,
        _ => Some("is no error that these faults cause".to_owned()),
    }
}

/// The first thing that is wrong with a run.
pub(crate) fn check(plan: &Plan, run: &Run) -> Result<(), String> {
    for record in &run.records {
        let what = format!("rank {}, call {} ({:?})", record.rank, record.call, plan.calls[record.call]);
        match &record.outcome {
            Outcome::Hangs => return Err(format!("{what}: has not ended after {:?}", run.ended)),
            Outcome::Ended(output) => {
                let expected = expected(plan, record);
                if *output != expected {
                    let at = output.iter().zip(&expected).position(|(a, b)| a != b);
                    return Err(format!("{what}: ended well, but is wrong from element {at:?}"));
                }
            }
            Outcome::Failed(error) if plan.must_succeed() => {
                return Err(format!("{what}: nothing that happened excuses `{error}`"));
            }
            Outcome::Failed(error) => {
                if let Some(wrong) = wrong_error(plan, error) {
                    return Err(format!("{what}: `{error}` {wrong}"));
                }
            }
        }
    }
    // A death alone is known to all at once, not after the operation's time.
    let only_losses = plan.injuries.iter().all(|injury| injury.kind == Kind::Loss);
    let slack = run.ended.as_micros() as u64;
    if only_losses && slack > plan.last() + 500_000 {
        return Err(format!("after a loss it took until {:?} for all to know", run.ended));
    }
    Ok(())
}
