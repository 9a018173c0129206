//! How much of an all-reduce runs behind a computation.

use std::time::Duration;

use windlass::{Buffer, Communicator, ReduceOp};
use windlass_benches::clock::Clock;
use windlass_benches::stats::Summary;

use super::pattern::{Patterns, Values};
use super::shared::Shared;
use super::{MemoryKind, Plan, RankError};

const ROUNDS: usize = 40;

/// What is timed in a round; every rank keeps one sample of each.
#[derive(Clone, Copy)]
enum Figure {
    Blocking,
    BlockingTotal,
    Issue,
    Wait,
    Total,
}

const FIGURES: usize = Figure::Total as usize + 1;

/// Memory that an operation takes and gives back.
enum Owned {
    Registered(Buffer<f32>),
    Heap(Vec<f32>),
}

struct Overlap<'b> {
    shared: Shared,
    communicator: &'b Communicator,
    clock: Clock,
    compute: Duration,
}

/// Measures and prints; the wrong elements of all ranks.
pub(super) fn overlap(
    plan: &Plan,
    shared: Shared,
    communicator: &Communicator,
    compute: Duration,
) -> Result<u64, RankError> {
    let count = plan.sizes.last().map_or(1, |&bytes| (bytes as usize / size_of::<f32>()).max(1));
    let patterns = Patterns::new(plan.ranks, plan.ranks, windlass::DataType::F32, ReduceOp::Sum);
    let mut memory = match plan.memory {
        // Device memory is refused before.
        MemoryKind::Registered | MemoryKind::Device => Owned::Registered(communicator.alloc(count)?),
        MemoryKind::Heap => Owned::Heap(vec![0.0; count]),
    };
    let measured = Overlap { shared, communicator, clock: Clock::get(), compute };
    let (warmup, rounds) = (2, plan.iterations.unwrap_or(ROUNDS).min(400));
    let mut wrong = 0;
    for round in 0..warmup + rounds {
        let slot = round.checked_sub(warmup).map(|round| round * FIGURES);
        for asynchronous in [false, true] {
            patterns.fill(memory.bytes(), Values::Of(shared.rank), 2 * round + usize::from(asynchronous), 0);
            shared.barrier();
            memory =
                if asynchronous { measured.behind(memory, slot)? } else { measured.before(memory, slot)? };
            wrong +=
                patterns.wrong(memory.bytes(), Values::Reduced, 2 * round + usize::from(asynchronous), 0);
        }
    }
    shared.barrier();
    let wrong = shared.total(wrong);
    if shared.rank == 0 {
        print(plan, &shared, rounds, compute, wrong);
    }
    shared.barrier();
    Ok(wrong)
}

impl Owned {
    fn bytes(&mut self) -> &mut [u8] {
        let floats: &mut [f32] = match self {
            Self::Registered(buffer) => buffer,
            Self::Heap(values) => values,
        };
        // SAFETY: floats borrowed mutably are bytes, and every pattern of bits is a float.
        unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) }
    }
}

impl Overlap<'_> {
    fn keep(&self, slot: Option<usize>, figure: Figure, from: u64, to: u64) {
        if let Some(slot) = slot {
            self.shared.record(slot + figure as usize, self.clock.ns_between(from, to));
        }
    }

    /// The operation, then the computation.
    fn before(&self, mut memory: Owned, slot: Option<usize>) -> Result<Owned, RankError> {
        let start = self.clock.now();
        match &mut memory {
            Owned::Registered(buffer) => self.communicator.blocking().all_reduce(buffer, ReduceOp::Sum)?,
            Owned::Heap(values) => self.communicator.blocking().all_reduce(values, ReduceOp::Sum)?,
        }
        let reduced = self.clock.now();
        self.work();
        self.keep(slot, Figure::Blocking, start, reduced);
        self.keep(slot, Figure::BlockingTotal, start, self.clock.now());
        Ok(memory)
    }

    /// The computation while the operation runs.
    fn behind(&self, memory: Owned, slot: Option<usize>) -> Result<Owned, RankError> {
        let start = self.clock.now();
        let (issued, computed, memory) = match memory {
            Owned::Registered(buffer) => {
                let operation = self.communicator.all_reduce(buffer, ReduceOp::Sum);
                let issued = self.clock.now();
                self.work();
                let computed = self.clock.now();
                (issued, computed, Owned::Registered(operation.wait().map_err(|failed| failed.error)?))
            }
            Owned::Heap(values) => {
                let operation = self.communicator.all_reduce(values, ReduceOp::Sum);
                let issued = self.clock.now();
                self.work();
                let computed = self.clock.now();
                (issued, computed, Owned::Heap(operation.wait().map_err(|failed| failed.error)?))
            }
        };
        let end = self.clock.now();
        self.keep(slot, Figure::Issue, start, issued);
        self.keep(slot, Figure::Wait, computed, end);
        self.keep(slot, Figure::Total, start, end);
        Ok(memory)
    }

    fn work(&self) {
        let start = self.clock.now();
        while self.clock.ns_between(start, self.clock.now()) < self.compute.as_nanos() as f64 {
            std::hint::spin_loop();
        }
    }
}

fn print(plan: &Plan, shared: &Shared, rounds: usize, compute: Duration, wrong: u64) {
    let median_us = |figure: Figure| {
        let slowest = |round: usize| {
            let times = (0..plan.ranks).map(|rank| shared.recorded(rank, round * FIGURES + figure as usize));
            times.fold(0.0, f64::max)
        };
        Summary::of((0..rounds).map(slowest)).map_or(0.0, |summary| summary.median_ns / 1e3)
    };
    let (alone, total, behind) =
        (median_us(Figure::Blocking), median_us(Figure::BlockingTotal), median_us(Figure::Total));
    let hidden = if alone > 0.0 { (100.0 * (total - behind) / alone).clamp(0.0, 100.0) } else { 0.0 };
    println!(
        "# windlass bench overlap: {} ranks, all_reduce of {} bytes, {} memory; medians of {rounds}, slowest rank",
        plan.ranks,
        plan.sizes.last().copied().unwrap_or(0),
        plan.memory_name()
    );
    println!("all_reduce alone, blocking      {alone:>10.1} us");
    println!("computation                     {:>10.1} us", compute.as_secs_f64() * 1e6);
    println!("all_reduce, then computation    {total:>10.1} us");
    println!("computation behind all_reduce   {behind:>10.1} us   ({hidden:.0} % of the all_reduce hidden)");
    println!("  issue                         {:>10.1} us", median_us(Figure::Issue));
    println!("  wait after the computation    {:>10.1} us", median_us(Figure::Wait));
    println!("#wrong                          {wrong:>10}");
}
