//! `Execution` alone: every chunk once, never too early, and misuse is refused.

use std::collections::BTreeSet;

use windlass_collectives::execution::WINDOW;
use windlass_collectives::{Action, Algorithm, Collective, Execution, Geometry, Layout, Schedule, Task};

fn execution(collective: Collective, algorithm: Algorithm, ranks: u32, chunks: u64) -> Execution {
    let schedule = Schedule::new(collective, algorithm, 0, ranks, ranks - 1, false).expect("supported");
    let layout = Layout::parts(chunks * u64::from(schedule.blocks()), 64, schedule.blocks());
    Execution::new(schedule, Geometry::new(layout, 64, 64, 4))
}

fn message(chunks: u64) -> Execution {
    execution(Collective::Send, Algorithm::Pair, 2, chunks)
}

fn copy(chunks: u64) -> Execution {
    execution(Collective::Broadcast, Algorithm::Direct, 1, chunks)
}

/// A sequence of words that looks random.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as usize
}

#[test]
fn a_message_ends_in_any_order_within_the_window() {
    for seed in 1..200 {
        let chunks = 1 + seed % 130;
        let (mut execution, mut state) = (message(chunks), seed);
        let (mut flying, mut seen) = (Vec::new(), BTreeSet::new());
        while !execution.is_done() {
            if let Some(Task { step: 0, first, end, .. }) = execution.poll(1 + next(&mut state) as u32 % 9) {
                for chunk in first..end {
                    assert!(seen.insert(chunk), "chunk {chunk} is handed out twice");
                    flying.push(chunk);
                }
                assert!(flying.len() as u32 <= WINDOW, "{} chunks are under way", flying.len());
                continue;
            }
            let first = *flying.iter().min().unwrap();
            assert_eq!(execution.position().map(|p| (p.1, p.2)), Some((first, chunks as u32)));
            let chunk = flying.swap_remove(next(&mut state) % flying.len());
            // Neighbours may be reported in one go, when none of them has been reported yet.
            let mut end = chunk + 1;
            while next(&mut state).is_multiple_of(2) && flying.contains(&end) {
                flying.retain(|c| *c != end);
                end += 1;
            }
            execution.complete(0, chunk..end);
        }
        assert!(flying.is_empty() && seen.len() as u64 == chunks);
        assert_eq!((execution.poll(1), execution.position()), (None, None));
    }
}

#[test]
fn a_window_of_chunks_is_under_way() {
    let mut execution = copy(100);
    assert_eq!(execution.poll(u32::MAX).map(|t| t.end), Some(WINDOW));
    assert_eq!(execution.poll(u32::MAX), None);
    execution.complete(0, 1..WINDOW);
    assert_eq!(execution.poll(u32::MAX), None);
    execution.complete(0, 0..1);
    assert_eq!(execution.poll(u32::MAX).map(|t| (t.first, t.end)), Some((WINDOW, 2 * WINDOW)));
}

#[test]
fn a_restart_forgets_everything() {
    for (collective, algorithm) in [
        (Collective::AllReduce, Algorithm::Ring),
        (Collective::AllReduce, Algorithm::Rabenseifner),
        (Collective::ReduceScatter, Algorithm::Ring),
        (Collective::AllReduce, Algorithm::Direct),
    ] {
        for stop in 0..60 {
            let run = |execution: &mut Execution, most: u32| {
                let mut tasks = Vec::new();
                while tasks.len() < most as usize {
                    let Some(task) = execution.poll(2) else { break };
                    // The last one before the stop stays under way.
                    if tasks.len() + 1 < most as usize {
                        execution.complete(task.step, task.first..task.end);
                    }
                    tasks.push(task);
                }
                tasks
            };
            let mut used = execution(collective, algorithm, 8, 6);
            run(&mut used, stop);
            let mut fresh = execution(collective, algorithm, 11, 3);
            used.restart(*fresh.schedule(), fresh.geometry().clone());
            assert_eq!(run(&mut used, u32::MAX), run(&mut fresh, u32::MAX));
            assert!(used.is_done());
        }
    }
}

#[test]
fn the_furthest_step_comes_first() {
    let mut execution = execution(Collective::AllReduce, Algorithm::Direct, 2, 8);
    let arrival = execution.poll(8).unwrap();
    assert!(matches!(arrival.action, Action::Wait { .. }), "{arrival:?}");
    let signal = [execution.poll(8).unwrap(), execution.poll(8).unwrap()][1];
    assert!(matches!(signal.action, Action::Signal { .. }), "{signal:?}");
    assert_eq!(execution.poll(8), None);
    execution.complete(arrival.step.min(1), 0..1);
}

#[test]
fn nothing_to_do_is_done() {
    let schedule = Schedule::new(Collective::Barrier, Algorithm::Dissemination, 0, 1, 0, false).unwrap();
    let mut execution = Execution::new(schedule, Geometry::new(Layout::parts(0, 1, 1), 1, 1, 1));
    assert!(execution.is_done() && execution.poll(1).is_none());
}

#[test]
#[should_panic(expected = "completed again")]
fn a_chunk_completed_twice_is_refused() {
    let mut execution = message(10);
    execution.poll(10);
    execution.complete(0, 0..2);
    execution.complete(0, 1..2);
}

#[test]
#[should_panic(expected = "completed twice")]
fn a_chunk_completed_twice_ahead_is_refused() {
    let mut execution = message(10);
    execution.poll(10);
    execution.complete(0, 5..6);
    execution.complete(0, 4..6);
}

#[test]
#[should_panic(expected = "completed twice")]
fn a_range_over_a_completed_chunk_is_refused() {
    let mut execution = message(10);
    execution.poll(10);
    execution.complete(0, 2..3);
    execution.complete(0, 0..4);
}

#[test]
#[should_panic(expected = "not handed out")]
fn a_chunk_that_was_not_handed_out_is_refused() {
    let mut execution = message(10);
    execution.poll(3);
    execution.complete(0, 2..4);
}

#[test]
#[should_panic(expected = "too early")]
fn a_chunk_beyond_the_window_is_refused() {
    // A Wait is handed out whole; its chunks complete in order.
    let mut execution = execution(Collective::Barrier, Algorithm::Publish, 2, 100);
    assert_eq!(execution.poll(1).map(|t| (t.step, t.end)), Some((1, 100)));
    execution.complete(1, 40..41);
}

#[test]
#[should_panic(expected = "not under way")]
fn a_step_that_has_ended_is_refused() {
    let mut execution = message(1);
    execution.poll(1);
    execution.complete(0, 0..1);
    execution.complete(0, 0..1);
}

#[test]
#[should_panic(expected = "no chunks")]
fn completing_nothing_is_refused() {
    let mut execution = message(10);
    execution.poll(10);
    execution.complete(0, 1..1);
}
