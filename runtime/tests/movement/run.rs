//! Drives the real runtime through a plan.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use windlass::accelerator::Region;
use windlass::accelerator::simulated::{Drive, Options, SimulatedAccelerator};
use windlass::{Config, DeviceBuffer, Fault, Operation, ReduceOp, Simulation};

use super::plan::{Event, PATIENCE, Plan, TIMEOUT};

/// A result, an error, or neither if the operation never ended.
pub(crate) type Outcome = Option<Result<Vec<i64>, String>>;

/// What came of a plan.
#[derive(Debug)]
pub(crate) struct Run {
    /// By rank and call, of ranks that lived.
    pub(crate) outcomes: Vec<(u32, usize, Outcome)>,
    /// Stale and early accesses that the accelerators found.
    pub(crate) breaches: Vec<String>,
    pub(crate) moves: u64,
    pub(crate) revokes: u64,
    pub(crate) refused: u64,
    pub(crate) replays: u64,
    /// When no living rank waited any more.
    pub(crate) ended: Duration,
}

enum Memory {
    Host(Vec<i64>),
    Device(DeviceBuffer<i64>),
}

enum Started {
    Host(Operation<Vec<i64>>),
    Device(Operation<DeviceBuffer<i64>>),
}

/// What is done from outside at a time.
#[derive(Clone, Copy)]
enum Deed {
    Call(u32, usize),
    Event(Event),
}

fn accelerator(plan: &Plan, rank: u32) -> Arc<SimulatedAccelerator> {
    Arc::new(SimulatedAccelerator::new(Options {
        device: plan.seed << 8 | u64::from(rank),
        // Memory is never short: who is evicted comes back when there is room, which may be never.
        capacity_bytes: 64 << 20,
        movement: plan.movement,
        drive: Drive::Stepped,
        seed: plan.seed ^ u64::from(rank),
        patience: Duration::from_micros(PATIENCE),
        announce_ahead: plan.announce,
        move_time: Duration::from_micros(30),
        replacement_time: Duration::from_micros(50),
        fence_delay: Duration::ZERO..=Duration::from_micros(plan.fence_delay),
        reorder: plan.reorder,
        chunk_bytes: 16 << 10,
        keep_bytes: 64 << 20,
        guarded: !plan.lies,
        ..Options::default()
    }))
}

pub(crate) fn run(plan: &Plan) -> Run {
    let mut config = Config::default();
    config.timeout = Duration::from_micros(TIMEOUT);
    config.report_after = Duration::ZERO;
    // Everything is direct, and small vectors have several chunks.
    config.model.slot_bytes = 0;
    config.model.stage_chunk_bytes = 4096;
    let simulation = Simulation::on_one_host(plan.ranks, plan.seed, &config).unwrap();
    let accelerators: Vec<_> = (0..plan.ranks).map(|rank| accelerator(plan, rank)).collect();
    let devices = simulation.attach(accelerators.clone()).unwrap();
    // The memory of each rank for each call, and its name.
    let mut memory: Vec<Vec<Option<Memory>>> = Vec::new();
    let mut regions: Vec<Vec<Option<Region>>> = Vec::new();
    for rank in 0..plan.ranks {
        let (mut own, mut names) = (Vec::new(), Vec::new());
        for (index, call) in plan.calls.iter().enumerate() {
            let values = plan.operand(index, rank);
            if call.on_host >> rank & 1 == 1 {
                own.push(Some(Memory::Host(values)));
                names.push(None);
                continue;
            }
            let mut buffer = devices[rank as usize].alloc::<i64>(call.count).unwrap();
            buffer.write(&values).unwrap();
            names.push(Some(buffer.region()));
            own.push(Some(Memory::Device(buffer)));
        }
        memory.push(own);
        regions.push(names);
    }
    let mut deeds: Vec<(u64, Deed)> = Vec::new();
    for (rank, times) in plan.times.iter().enumerate() {
        let calls = times.iter().enumerate();
        deeds.extend(calls.map(|(call, time)| (*time, Deed::Call(rank as u32, call))));
    }
    deeds.extend(plan.events.iter().map(|(time, event)| (*time, Deed::Event(*event))));
    deeds.sort_by_key(|(time, _)| *time);

    let mut started: Vec<(u32, usize, Started)> = Vec::new();
    let (mut stopped, mut dead) = (BTreeSet::new(), BTreeSet::new());
    let mut late: Vec<(u32, usize)> = Vec::new();
    for (time, deed) in deeds {
        simulation.run_until(Duration::from_micros(time));
        match deed {
            Deed::Call(rank, call) => late.push((rank, call)),
            Deed::Event(Event::Move { rank, call }) => {
                if let Some(region) = regions[rank as usize][call].filter(|_| !dead.contains(&rank)) {
                    // It may be on its way already, or freed.
                    let _ = accelerators[rank as usize].move_now(region);
                }
            }
            Deed::Event(Event::Revoke { rank, call, lost }) => {
                if let Some(region) = regions[rank as usize][call].filter(|_| !dead.contains(&rank)) {
                    let _ = accelerators[rank as usize].revoke_now(region, Plan::contents(lost));
                }
            }
            Deed::Event(Event::Stop { rank }) => {
                stopped.insert(rank);
                simulation.inject(Fault::Stop(rank));
            }
            Deed::Event(Event::Continue { rank }) => {
                stopped.remove(&rank);
                simulation.inject(Fault::Continue(rank));
            }
            Deed::Event(Event::Kill { rank }) => {
                dead.insert(rank);
                simulation.inject(Fault::Lose(rank));
            }
        }
        late.retain(|&(rank, call)| {
            if stopped.contains(&rank) || dead.contains(&rank) {
                return !dead.contains(&rank);
            }
            let comm = &simulation.communicators()[rank as usize];
            let begun = match memory[rank as usize][call].take().unwrap() {
                Memory::Host(values) => Started::Host(comm.all_reduce(values, ReduceOp::Sum)),
                Memory::Device(buffer) => Started::Device(comm.all_reduce(buffer, ReduceOp::Sum)),
            };
            started.push((rank, call, begun));
            false
        });
    }
    simulation.finish(Duration::from_micros(plan.last() + 2 * TIMEOUT));
    let ended = simulation.now();
    // Moves that nobody could answer are over by then.
    simulation.run_until(ended + Duration::from_micros(4 * PATIENCE));
    let mut outcomes = Vec::new();
    for (rank, call, begun) in started {
        if !dead.contains(&rank) {
            outcomes.push((rank, call, outcome(begun)));
        }
    }
    let mut run = Run { outcomes, breaches: Vec::new(), moves: 0, revokes: 0, refused: 0, replays: 0, ended };
    for (rank, accelerator) in accelerators.iter().enumerate() {
        let movements = devices[rank].movements();
        run.moves += movements.moves;
        run.revokes += movements.revokes;
        run.refused += movements.refused;
        run.replays += movements.replays;
        run.breaches.extend(accelerator.audit().iter().map(|breach| format!("rank {rank}: {breach:?}")));
    }
    run
}

fn outcome(started: Started) -> Outcome {
    match started {
        Started::Host(operation) if operation.is_done() => {
            Some(operation.wait().map_err(|failed| failed.error.to_string()))
        }
        Started::Device(operation) if operation.is_done() => {
            Some(operation.wait().map_err(|failed| failed.error.to_string()).and_then(|buffer| {
                let mut values = vec![0; buffer.len()];
                buffer.read(&mut values).map_err(|error| error.to_string())?;
                Ok(values)
            }))
        }
        _ => None,
    }
}
