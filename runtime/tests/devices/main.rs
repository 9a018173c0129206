//! Operations over device memory that moves: the result is right to the bit, or an error names what is wrong, and nothing hangs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod addresses;
mod by_messages;
mod fire;
mod kernel;
mod kinds;
mod liars;
mod messages;
mod moves;
mod refusals;
mod silence;
mod wayward;

use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::accelerator::simulated::{Options, SimulatedAccelerator};
use windlass::accelerator::{Accelerator, Region};
use windlass::{Communicator, Config, Device, DeviceBuffer, ReduceOp, TransportChoice};

fn accelerator(rank: u32, options: Options) -> Arc<SimulatedAccelerator> {
    let device = options.device ^ u64::from(rank);
    Arc::new(SimulatedAccelerator::new(Options { device, seed: u64::from(rank), ..options }))
}

/// What rank `rank` contributes to element `i` of round `round`. Sums of a few of them are exact in f32.
fn value(rank: u32, round: u32, i: usize) -> f32 {
    ((i as u32).wrapping_mul(31).wrapping_add(round * 7 + rank * 131) % 1021) as f32
}

fn sum(ranks: u32, round: u32, i: usize) -> f32 {
    (0..ranks).map(|rank| value(rank, round, i)).sum()
}

fn fill(buffer: &mut DeviceBuffer<f32>, rank: u32, round: u32) {
    let values: Vec<f32> = (0..buffer.len()).map(|i| value(rank, round, i)).collect();
    buffer.write(&values).unwrap();
}

fn check(buffer: &DeviceBuffer<f32>, ranks: u32, round: u32) {
    let mut values = vec![0.0; buffer.len()];
    buffer.read(&mut values).unwrap();
    for (i, &is) in values.iter().enumerate() {
        assert_eq!(is, sum(ranks, round, i), "element {i} of round {round}");
    }
}

fn rounds(comm: &Communicator, device: &Device, count: usize, rounds: u32) {
    let mut buffer = device.alloc::<f32>(count).unwrap();
    for round in 0..rounds {
        fill(&mut buffer, comm.rank(), round);
        buffer = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap();
        check(&buffer, comm.size(), round);
    }
}

/// Gives up before whoever waits for the test does.
fn config(transport: TransportChoice) -> Config {
    let mut config = Config::default();
    (config.transport, config.timeout) = (transport, Duration::from_secs(30));
    config
}

fn shm() -> Config {
    config(TransportChoice::Shm)
}

/// Waits until something is so.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a device has so many regions, scratch included. (Not by their size: a full device evicts.)
fn until_left(accelerator: &SimulatedAccelerator, left: usize) {
    until("freed memory is given back", || {
        // Regions are numbered in the order of their allocation.
        let Ok(last) = accelerator.allocate(1) else { return false };
        let is_left = |number: &u64| accelerator.status(Region::new(last.device(), *number)).is_ok();
        let found = (0..last.number()).filter(is_left).count();
        accelerator.free(last).is_ok() && found == left
    });
}
