//! The real runtime through seeded schedules of faults.
//!
//! A seed decides a job of 4 to 16 ranks, what they call, and what goes wrong when (`plan`). The runtime runs it in virtual
//! time (`run`). Then every operation must have ended, rightly or with an error that names a culprit (`check`). A seed that fails is run
//! again with less and less of its plan, and the least that still fails is printed.
//!
//! `WINDLASS_SEED=N` replays one seed and tells what every rank saw.

mod check;
mod plan;
mod run;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use check::check;
use plan::{KINDS, Kind, Plan};
use run::{Outcome, run};
use windlass::Planted;

/// Every one of these is run in every test run.
const FIXED: u64 = 10_000;
/// And so many that nobody has run before.
const FRESH: u64 = 500;
/// So many seeds of a job whose streams break.
const BREAKS: u64 = 1_000;
/// One seed in so many is run twice, to see the same again.
const TWICE: u64 = 50;

/// What the seeds came to.
#[derive(Debug, Default)]
struct Tally {
    runs: u64,
    /// Of them, those in which something went wrong and yet every operation had to end well.
    unexcused: u64,
    ended: u64,
    failed: BTreeMap<&'static str, u64>,
    faults: BTreeMap<Kind, u64>,
    reconnects: u64,
}

fn error_name(error: &windlass::Error) -> &'static str {
    match error {
        windlass::Error::PeerFailed { .. } => "peer failed",
        windlass::Error::TimedOut { .. } => "timed out",
        windlass::Error::Aborted { .. } => "aborted",
        _ => "other",
    }
}

impl Tally {
    fn print(&self, what: &str) {
        println!("{what}: {} runs, {} operations ended well", self.runs, self.ended);
        println!("  in {} runs with faults every operation had to", self.unexcused);
        println!("  with an error: {:?}", self.failed);
        println!("  faults: {:?}", self.faults);
        println!("  streams opened anew: {}", self.reconnects);
    }
}

fn examine(plan: &Plan, tally: Option<&Mutex<Tally>>) -> Result<(), String> {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let first = run(plan, None);
        if plan.seed.is_multiple_of(TWICE) && run(plan, None).trace != first.trace {
            return Err("the same seed gave another run".to_owned());
        }
        check(plan, &first)?;
        Ok(first)
    }));
    let run = done.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("it panicked: {}", text.unwrap_or("without a word")))
    })?;
    if let Some(Ok(mut tally)) = tally.map(Mutex::lock) {
        tally.runs += 1;
        tally.reconnects += run.reconnects;
        tally.unexcused += u64::from(!plan.injuries.is_empty() && plan.must_succeed());
        for record in &run.records {
            match &record.outcome {
                Outcome::Ended(_) => tally.ended += 1,
                Outcome::Failed(error) => *tally.failed.entry(error_name(error)).or_default() += 1,
                Outcome::Hangs => {}
            }
        }
        plan.injuries.iter().for_each(|injury| *tally.faults.entry(injury.kind).or_default() += 1);
    }
    Ok(())
}

/// The least of a failing plan that still fails `test`.
fn shrink(mut plan: Plan, test: impl Fn(&Plan) -> bool) -> Plan {
    loop {
        let mut smaller = Vec::new();
        for index in 0..plan.injuries.len() {
            let mut without = plan.clone();
            without.injuries.remove(index);
            smaller.push(without);
        }
        for index in (0..plan.calls.len()).rev() {
            let mut without = plan.clone();
            without.calls.remove(index);
            for times in &mut without.times {
                times.remove(index);
            }
            smaller.push(without);
        }
        match smaller.into_iter().find(&test) {
            Some(found) => plan = found,
            None => return plan,
        }
    }
}

fn story(plan: &Plan) -> String {
    let mut text = plan.to_string();
    match catch_unwind(AssertUnwindSafe(|| run(plan, None))) {
        Err(_) => text.push_str("  it panicked\n"),
        Ok(run) => {
            for record in &run.records {
                let came = match &record.outcome {
                    Outcome::Ended(output) => format!("ended with {} elements", output.len()),
                    Outcome::Failed(error) => error.to_string(),
                    Outcome::Hangs => "has not ended".to_owned(),
                };
                text.push_str(&format!("  rank {:>2} call {}: {came}\n", record.rank, record.call));
            }
            text.push_str(&format!("  nobody waited any more after {:?}\n", run.ended));
        }
    }
    text
}

#[track_caller]
fn must_pass(plan: &Plan, tally: Option<&Mutex<Tally>>) {
    let Err(problem) = examine(plan, tally) else { return };
    let least = shrink(plan.clone(), |plan| examine(plan, None).is_err());
    let still = examine(&least, None).err().unwrap_or_default();
    panic!(
        "seed {}: {problem}\nreplay: WINDLASS_SEED={} cargo test -p windlass --test faults replay -- --nocapture\nthe least that fails:\n{}  {still}",
        plan.seed,
        plan.seed,
        story(&least)
    );
}

/// Runs the seeds on all cores.
fn sweep(what: &str, first: u64, count: u64, plan: fn(u64) -> Plan) -> Tally {
    let (next, tally) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count {
                            return;
                        }
                        must_pass(&plan(first.wrapping_add(index)), Some(&tally));
                    }
                })
            })
            .collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let tally = tally.into_inner().expect("no worker panicked");
    tally.print(what);
    if what == "fixed seeds" {
        assert_eq!(tally.faults.len(), KINDS.len(), "every kind of fault was drawn");
        assert!(tally.unexcused > count / 20 && tally.failed.len() > 1, "the seeds prove something");
    }
    tally
}

#[test]
fn fixed_seeds() {
    sweep("fixed seeds", 0, FIXED, Plan::new);
}

/// Under breaks alone every operation ends well.
#[test]
fn breaks_alone() {
    let tally = sweep("breaks alone", 0, BREAKS, Plan::breaking);
    assert!(tally.failed.is_empty() && tally.reconnects > 4 * BREAKS, "{tally:?}");
}

#[test]
fn fresh_seeds() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let first = since.as_nanos() as u64;
    println!("fresh seeds from {first}");
    sweep("fresh seeds", first, FRESH, Plan::new);
}

#[test]
fn replay() {
    let Ok(seed) = std::env::var("WINDLASS_SEED") else { return };
    let plan = Plan::new(seed.parse().expect("WINDLASS_SEED is a number"));
    println!("{}", story(&plan));
    must_pass(&plan, None);
}

/// The checker is shown a planted fault of each kind that it exists for, and the same run without it.
mod canaries {
    use super::*;

    /// A seed without faults whose last call has a result.
    fn quiet() -> Plan {
        let quiet = |plan: &Plan| {
            plan.injuries.is_empty()
                && matches!(plan.calls.last(), Some(plan::Call::AllReduce { count: 1.., .. }))
        };
        (0..).map(Plan::new).find(quiet).expect("some seed is quiet")
    }

    #[test]
    fn a_wrong_result_is_found() {
        let plan = quiet();
        let mut run = run(&plan, None);
        assert_eq!(check(&plan, &run), Ok(()));
        let Some(Outcome::Ended(output)) = run.records.last_mut().map(|record| &mut record.outcome) else {
            panic!("the last operation ended well")
        };
        output[0] ^= 1;
        assert!(check(&plan, &run).is_err_and(|problem| problem.contains("is wrong from element Some(0)")));
    }

    #[test]
    fn a_rank_that_stays_away_is_found() {
        let plan = quiet();
        let run = run(&plan, Some((1, plan.calls.len() - 1)));
        assert!(check(&plan, &run).is_err_and(|problem| problem.contains("nothing that happened excuses")));
    }

    #[test]
    fn an_operation_that_hangs_and_an_innocent_culprit_are_found() {
        let mut plan = quiet();
        let mut run = run(&plan, None);
        run.records[0].outcome = Outcome::Hangs;
        assert!(check(&plan, &run).is_err_and(|problem| problem.contains("has not ended")));
        let faulty = (0..).map(Plan::new).find(|p| p.injuries.iter().any(|i| i.kind == Kind::Loss));
        plan.injuries = faulty.map(|p| p.injuries).unwrap_or_default();
        plan.injuries.retain(|injury| injury.kind == Kind::Loss);
        plan.injuries.truncate(1);
        let windlass::Fault::Lose(lost) = plan.injuries[0].faults[0].1 else { panic!("a loss") };
        run.records[0].outcome = Outcome::Failed(windlass::Error::PeerFailed {
            rank: lost + 1,
            cause: windlass::PeerCause::Vanished,
            operation: "all_reduce",
            sequence: 0,
            communicator: 0,
        });
        assert!(check(&plan, &run).is_err_and(|problem| problem.contains("to whom nothing was done")));
    }

    /// What could be wrong with replay is found within a thousand seeds.
    #[test]
    fn wrong_replays_are_found() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let first = |planted| {
            (0..1_000).find(|seed| {
                let plan = Plan { planted: Some(planted), ..Plan::breaking(*seed) };
                examine(&plan, None).is_err()
            })
        };
        let found = [Planted::TrustCompletion, Planted::ReuseGeneration, Planted::DeliverTwice]
            .map(|planted| (planted, first(planted)));
        std::panic::set_hook(hook);
        println!("found with seed: {found:?}");
        assert!(found.iter().all(|(_, seed)| seed.is_some()), "{found:?}");
    }

    #[test]
    fn a_failing_plan_shrinks_to_its_cause() {
        let busy = (0..).map(Plan::new).find(|p| {
            p.injuries.len() == 4 && p.injuries.iter().filter(|i| i.kind == Kind::Loss).count() == 1
        });
        let least = shrink(busy.expect("some seed is busy"), |plan| {
            plan.injuries.iter().any(|injury| injury.kind == Kind::Loss)
        });
        assert_eq!((least.injuries.len(), least.calls.len()), (1, 0));
    }
}
