//! The loop that times: the same for windlass and for the limits.

use windlass_benches::clock::Clock;
use windlass_benches::limits::probe_near_far;
use windlass_benches::stats::{Label, Sample};

use super::RankError;
use super::shared::{MOST_ITERATIONS, Shared};

/// What is timed. All ranks go through the same iterations.
pub(super) trait Subject {
    /// Puts an iteration's inputs into buffer `index`. Not timed.
    fn fill(&mut self, iteration: usize, index: usize) -> Result<(), RankError>;
    /// The one operation. Timed, and nothing else is.
    fn run(&mut self, index: usize) -> Result<(), RankError>;
    /// How many elements of buffer `index` are wrong. Not timed.
    fn wrong(&mut self, iteration: usize, index: usize) -> Result<u64, RankError>;
    /// How many operations `run` does; its time is divided by them.
    fn operations(&self) -> f64 {
        1.0
    }
    /// Whether no rank's operation ends before all have begun theirs.
    fn closes(&self) -> bool {
        true
    }
}

/// When ranks compute between the barrier and the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// They do not; the slowest rank's time counts.
    Together,
    /// About 20 µs, each rank another time: the last to arrive waits for nobody, so its time counts, the shortest.
    /// Where it may leave before the others have what they wait for, as a root does, all meet at a second
    /// barrier, which is timed too: nobody's time ends before everybody's operation has.
    Jittered,
}

/// One rank's stopwatch.
#[derive(Debug)]
pub(super) struct Stopwatch {
    pub(super) shared: Shared,
    pub(super) buffers: usize,
    pub(super) arrival: Arrival,
    clock: Clock,
    /// Iterations so far, of everything: no two have the same inputs.
    iteration: usize,
}

/// What came of a block.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// On rank 0, one for each operation.
    pub(super) samples: Vec<Sample>,
    /// Wrong elements on this rank.
    pub(super) wrong: u64,
    /// The time of one iteration, with filling and checking.
    pub(super) iteration_ns: f64,
}

impl Stopwatch {
    /// For blocks that rotate so many buffers.
    pub(super) fn new(shared: Shared, buffers: usize, arrival: Arrival) -> Self {
        Self { shared, buffers, arrival, clock: Clock::get(), iteration: 0 }
    }

    /// Times `iterations` operations after `warmup` others. Two probes of the cores' distance surround them.
    pub(super) fn block<S: Subject>(
        &mut self,
        subject: &mut S,
        iterations: usize,
        warmup: usize,
    ) -> Result<Block, RankError> {
        let iterations = iterations.min(MOST_ITERATIONS);
        let shared = self.shared;
        let (_, before) = probe_near_far(&shared.arena, shared.rank, shared.wait());
        let begin = self.clock.now();
        let closing = self.arrival == Arrival::Jittered && !subject.closes();
        let mut wrong = 0;
        for turn in 0..warmup + iterations {
            let (iteration, index) = (self.iteration, self.iteration % self.buffers);
            self.iteration += 1;
            subject.fill(iteration, index)?;
            shared.barrier();
            if self.arrival == Arrival::Jittered {
                self.compute(iteration);
            }
            let start = self.clock.now();
            let done = subject.run(index);
            if closing {
                shared.barrier();
            }
            let ns = self.clock.ns_between(start, self.clock.now());
            done?;
            if turn >= warmup {
                shared.record(turn - warmup, ns / subject.operations());
            }
            wrong += subject.wrong(iteration, index)?;
        }
        let iteration_ns =
            self.clock.ns_between(begin, self.clock.now()) / (warmup + iterations).max(1) as f64;
        let (_, after) = probe_near_far(&shared.arena, shared.rank, shared.wait());
        shared.barrier();
        let samples = if shared.rank == 0 {
            self.samples(iterations, Label::of_batch(before, after))
        } else {
            Vec::new()
        };
        shared.barrier();
        Ok(Block { samples, wrong, iteration_ns })
    }

    fn samples(&self, iterations: usize, label: Label) -> Vec<Sample> {
        let shared = &self.shared;
        let of = |iteration| {
            let times = (0..shared.ranks).map(|rank| shared.recorded(rank, iteration));
            match self.arrival {
                Arrival::Together => times.fold(0.0, f64::max),
                Arrival::Jittered => times.fold(f64::INFINITY, f64::min),
            }
        };
        (0..iterations).map(|iteration| Sample { ns: of(iteration), label }).collect()
    }

    /// A busy loop of 10 to 30 µs.
    fn compute(&self, iteration: usize) {
        let mixed =
            (iteration as u64 * 131 + self.shared.rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let ns = 10_000.0 + (mixed >> 44) as f64 * (20_000.0 / f64::from(1 << 20));
        let start = self.clock.now();
        while self.clock.ns_between(start, self.clock.now()) < ns {
            std::hint::spin_loop();
        }
    }
}
