//! What the machine itself costs: nanoseconds an operation, from the start of an all-reduce to its end, with
//! every task completed as soon as it is handed out.
//!
//! `cargo run --release -p windlass-collectives --example execution_speed [part of a name]`

use std::hint::black_box;

use windlass_collectives::{Algorithm, Collective, Execution, Geometry, Layout, Schedule};

const OPERATIONS: u32 = 200_000;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn measure(name: &str, mut operation: impl FnMut()) {
    if std::env::args().nth(1).is_some_and(|wanted| !name.contains(&wanted)) {
        return;
    }
    let mut best = f64::MAX;
    for _ in 0..10 {
        let began = std::time::Instant::now();
        for _ in 0..OPERATIONS {
            operation();
        }
        best = best.min(began.elapsed().as_nanos() as f64 / f64::from(OPERATIONS));
    }
    println!("{name:52} {best:7.1} ns");
}

fn run(execution: &mut Execution) {
    while let Some(task) = execution.poll(u32::MAX) {
        black_box((task.step, task.first, task.end));
        execution.complete(task.step, task.first..task.end);
    }
    assert!(execution.is_done());
}

fn main() {
    for (algorithm, ranks, staged) in [
        (Algorithm::Publish, 2, false),
        (Algorithm::Publish, 8, false),
        (Algorithm::Direct, 2, false),
        (Algorithm::Direct, 2, true),
        (Algorithm::RecursiveDoubling, 2, false),
        (Algorithm::Ring, 8, false),
    ] {
        let schedule =
            Schedule::new(Collective::AllReduce, algorithm, 0, ranks, 0, staged).expect("supported");
        let layout = Layout::parts(2, 4, schedule.blocks());
        let geometry = Geometry::new(layout, 128 << 10, 64 << 10, 4);
        let name = format!(
            "{algorithm} of {ranks}{}, {} steps",
            if staged { ", staged" } else { "" },
            schedule.len()
        );
        let mut execution = Execution::new(schedule, geometry.clone());
        measure(&format!("{name}: restart and run"), || {
            execution.restart(black_box(schedule), black_box(geometry.clone()));
            run(&mut execution);
        });
        measure(&format!("{name}: new and run"), || {
            let mut execution = Execution::new(black_box(schedule), black_box(geometry.clone()));
            run(&mut execution);
        });
    }
    let schedule = |i: u32| Schedule::new(Collective::AllReduce, Algorithm::Direct, 0, 2, i % 2, false);
    let mut i = 0;
    measure("Schedule::new, direct", || {
        i += 1;
        black_box(schedule(i)).expect("supported");
    });
    measure("Geometry::new, two blocks", || {
        let layout = Layout::parts(black_box(2), 4, 2);
        black_box(Geometry::new(layout, 128 << 10, 64 << 10, 4));
    });
}
