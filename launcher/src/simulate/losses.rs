//! The whole runtime on a simulated network, with ranks that die and device memory that moves: what the others are told and when, and
//! whether the result is right.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use windlass::accelerator::simulated::{Drive, Options, SimulatedAccelerator};
use windlass::accelerator::{Movement, Region};
use windlass::{
    Collective, Config, DataType, Device, DeviceBuffer, Error, Extent, Fault, Operation, RawRequest,
    ReduceOp, Simulation, SimulationOptions,
};

use super::report::{Report, time};
use super::{Question, SimulateError};

/// More than these would take real memory and time, not simulated.
const MOST_RANKS: u32 = 1024;
const MOST_BYTES: u64 = 1 << 30;

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Losses {
    algorithm: String,
    /// Who died, and at which microsecond.
    lost: Vec<(u32, f64)>,
    /// The others' operations.
    ended_well: usize,
    ended_with_error: usize,
    not_ended: usize,
    /// One of the errors.
    example: Option<String>,
    /// When the last of them had ended.
    all_knew_us: f64,
    /// Of device memory, if any was moved.
    moves: Option<Moves>,
}

/// What moving memory came to.
#[derive(Clone, Debug, Default, Serialize)]
struct Moves {
    /// Moves that were begun.
    begun: u32,
    /// Those that were made, and those that were refused.
    made: u64,
    refused: u64,
    longest_pause_us: f64,
    /// Elements of the ended operations' results, and those that were not what they should be.
    checked: u64,
    wrong: u64,
}

/// What does not go together.
pub(super) fn check(question: &Question<'_>) -> Result<(), SimulateError> {
    let arguments = question.arguments;
    if arguments.losses == 0 && arguments.moves == 0 {
        return Ok(());
    }
    let wrong = |problem: String| Err(SimulateError::Arguments(problem));
    let call = question.call(arguments.ranks);
    let bytes = call.size_bytes(arguments.ranks).saturating_mul(u64::from(arguments.ranks));
    if arguments.ranks > MOST_RANKS || bytes > MOST_BYTES {
        return wrong(format!(
            "--losses and --moves run the whole runtime, with its memory: at most {MOST_RANKS} ranks and 1 GiB in all"
        ));
    }
    if arguments.losses >= arguments.ranks {
        return wrong(format!("--losses {} leaves none of {} ranks", arguments.losses, arguments.ranks));
    }
    if arguments.mapped {
        return wrong("--losses and --moves run over messages: leave --mapped out".to_owned());
    }
    if arguments.moves > 0
        && (call.collective != Collective::AllReduce
            || !matches!(call.data_type, DataType::F32 | DataType::I64))
    {
        return wrong(
            "--moves checks every element, and knows how to for all_reduce of f32 and i64".to_owned(),
        );
    }
    Ok(())
}

impl Losses {
    pub(super) fn run(question: &Question<'_>, report: &Report<'_>) -> Result<Self, SimulateError> {
        let arguments = question.arguments;
        let (ranks, call, model) = (arguments.ranks, question.call(arguments.ranks), question.model());
        let served = report.rows.iter().filter(|row| row.ranks == ranks);
        let Some(fastest) = served.min_by(|a, b| a.time_us.total_cmp(&b.time_us)) else {
            return Err(SimulateError::Arguments(format!(
                "no algorithm of {} was simulated on {ranks} ranks",
                call.collective
            )));
        };
        let mut config = Config::default();
        config.model = model;
        config.algorithm = fastest.algorithm.parse().ok();
        config.report_after = Duration::ZERO;
        let mut options = SimulationOptions::default();
        let latency = model.message_ns as u64;
        options.wire.latency = latency..latency + latency / 4 + 1;
        options.wire.bandwidth = Some((1e9 / model.message_byte_ns) as u64);
        options.wire.window = 4 << 20;
        options.stutter = 0;
        let simulation = Simulation::new(ranks, arguments.seed, options, &config)?;

        let mut random = Random(arguments.seed);
        let mut lost: Vec<(u32, f64)> = Vec::new();
        while lost.len() < arguments.losses as usize {
            let rank = (random.next() % u64::from(ranks)) as u32;
            let at = random.next() as f64 / u64::MAX as f64 * fastest.time_us;
            if lost.iter().all(|(other, _)| *other != rank) {
                lost.push((rank, at));
            }
        }
        lost.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut deeds: Vec<(f64, Deed)> = lost.iter().map(|&(rank, at)| (at, Deed::Lose(rank))).collect();
        for _ in 0..arguments.moves {
            let rank = (random.next() % u64::from(ranks)) as u32;
            deeds.push((random.next() as f64 / u64::MAX as f64 * fastest.time_us, Deed::Move(rank)));
        }
        deeds.sort_by(|a, b| a.0.total_cmp(&b.0));
        if arguments.moves > 0 {
            return match call.data_type {
                DataType::I64 => {
                    Self::moving(&simulation, question, fastest.algorithm, lost, &deeds, |v: u32| {
                        i64::from(v)
                    })
                }
                _ => Self::moving(&simulation, question, fastest.algorithm, lost, &deeds, |v: u32| v as f32),
            };
        }

        let operations = begin(&simulation, question);
        perform(&simulation, &deeds, |_| {});
        simulation.finish(simulation.now() + 2 * config.timeout);

        let mut found = Self::of(fastest.algorithm, lost, simulation.now());
        for (rank, operation) in (0..).zip(operations) {
            if found.lost.iter().all(|(dead, _)| *dead != rank) {
                found.count(operation);
            }
        }
        Ok(found)
    }

    /// Nothing counted yet.
    fn of(algorithm: &str, lost: Vec<(u32, f64)>, all_knew: Duration) -> Self {
        Self {
            algorithm: algorithm.to_owned(),
            lost,
            ended_well: 0,
            ended_with_error: 0,
            not_ended: 0,
            example: None,
            all_knew_us: all_knew.as_nanos() as f64 / 1e3,
            moves: None,
        }
    }

    /// The same on device memory, which moves.
    fn moving<T: windlass::Element + PartialEq>(
        simulation: &Simulation,
        question: &Question<'_>,
        algorithm: &str,
        lost: Vec<(u32, f64)>,
        deeds: &[(f64, Deed)],
        of: impl Fn(u32) -> T,
    ) -> Result<Self, SimulateError> {
        let arguments = question.arguments;
        let call = question.call(arguments.ranks);
        let (count, op) = (call.count as usize, ReduceOp::Sum);
        let accelerators: Vec<_> =
            (0..arguments.ranks).map(|rank| accelerator(arguments.seed, rank, call.bytes())).collect();
        let devices: Vec<Device> = simulation.attach(accelerators.clone())?;
        let value = |rank: u32| rank % 7 + 1;
        let expected = of((0..arguments.ranks).map(value).sum());
        let mut regions: Vec<Region> = Vec::new();
        let mut operations: Vec<Operation<DeviceBuffer<T>>> = Vec::new();
        for (rank, communicator) in (0..).zip(simulation.communicators()) {
            let mut buffer = devices[rank as usize].alloc::<T>(count)?;
            buffer.write(&vec![of(value(rank)); count])?;
            regions.push(buffer.region());
            operations.push(communicator.all_reduce(buffer, op));
        }
        let mut moves = Moves::default();
        perform(simulation, deeds, |rank| {
            // It may be on its way already.
            let rank = rank as usize;
            moves.begun += u32::from(accelerators[rank].move_now(regions[rank]).is_ok());
        });
        simulation.finish(simulation.now() + 2 * simulation.communicators()[0].config().timeout);
        let mut found = Self::of(algorithm, lost, simulation.now());
        // What still moves arrives.
        simulation.run_until(simulation.now() + Duration::from_secs(2));
        let mut values = vec![of(0); count];
        for (rank, operation) in (0..).zip(operations) {
            let movements = devices[rank as usize].movements();
            moves.made += movements.moves;
            moves.refused += movements.refused;
            let longest = movements.pauses.iter().max().map_or(0.0, |pause| pause.as_nanos() as f64 / 1e3);
            moves.longest_pause_us = moves.longest_pause_us.max(longest);
            if found.lost.iter().any(|(dead, _)| *dead == rank) {
                continue;
            }
            if let Some(buffer) = found.count(operation) {
                buffer.read(&mut values)?;
                moves.checked += values.len() as u64;
                moves.wrong += values.iter().filter(|value| **value != expected).count() as u64;
            }
        }
        found.moves = Some(moves);
        Ok(found)
    }

    /// How many elements are not what they should be.
    pub(super) fn wrong(&self) -> u64 {
        self.moves.as_ref().map_or(0, |moves| moves.wrong)
    }

    /// Counts how an operation ended. Its memory, if it ended well.
    fn count<M: Send + 'static>(&mut self, operation: Operation<M>) -> Option<M> {
        if !operation.is_done() {
            self.not_ended += 1;
            return None;
        }
        match operation.wait() {
            Ok(memory) => {
                self.ended_well += 1;
                Some(memory)
            }
            Err(failed) => {
                self.ended_with_error += 1;
                // What a rank saw itself tells more than what it was told.
                let seen = matches!(failed.error, Error::PeerFailed { .. });
                if seen || self.example.is_none() {
                    self.example = Some(failed.error.to_string());
                }
                None
            }
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("\n  {} rank(s) lost during {}\n", self.lost.len(), self.algorithm);
        for (rank, at) in &self.lost {
            text.push_str(&format!("    rank {rank:<6} died at {}\n", time(*at)));
        }
        text.push_str(&format!(
            "  operations of the others: {} ended well, {} with an error, {} did not end\n  everybody knew after {}\n",
            self.ended_well,
            self.ended_with_error,
            self.not_ended,
            time(self.all_knew_us)
        ));
        if let Some(moves) = &self.moves {
            text.push_str(&format!(
                "  device memory: {} moves begun, {} made, {} refused; longest pause {}; {} of {} elements checked were wrong\n",
                moves.begun,
                moves.made,
                moves.refused,
                time(moves.longest_pause_us),
                moves.wrong,
                moves.checked
            ));
        }
        if let Some(example) = &self.example {
            text.push_str(&format!("  an error: {example}\n"));
        }
        text
    }
}

/// What is done to the job from outside.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Lose(u32),
    Move(u32),
}

/// Does each thing at its microsecond.
fn perform(simulation: &Simulation, deeds: &[(f64, Deed)], mut moves: impl FnMut(u32)) {
    for &(at, deed) in deeds {
        simulation.run_until(Duration::from_nanos((at * 1e3) as u64));
        match deed {
            Deed::Lose(rank) => simulation.inject(Fault::Lose(rank)),
            Deed::Move(rank) => moves(rank),
        }
    }
}

/// A rank's accelerator: room for its buffer to move, which takes as long as copying it twice over PCIe would.
fn accelerator(seed: u64, rank: u32, bytes: u64) -> Arc<SimulatedAccelerator> {
    Arc::new(SimulatedAccelerator::new(Options {
        device: seed.rotate_left(32) ^ u64::from(rank),
        seed: seed ^ u64::from(rank),
        capacity_bytes: 4 * bytes.max(1 << 20),
        movement: Movement::Cooperative,
        drive: Drive::Stepped,
        move_time: Duration::from_nanos(20_000 + bytes / 10),
        keep_bytes: 0,
        ..Options::default()
    }))
}

/// Every rank's operation. Its memory holds operand and result, aligned for any type.
fn begin(simulation: &Simulation, question: &Question<'_>) -> Vec<Operation<Vec<u64>>> {
    let call = question.call(question.arguments.ranks);
    let (operand, result) = (call.collective.input(), call.collective.output());
    let apart = operand != result || !call.collective.may_be_in_place();
    let started = simulation.communicators().iter().map(|communicator| {
        let root = communicator.rank() == call.root;
        // `check` has bounded the call's bytes on all ranks.
        let words = |extent: Extent| {
            let elements = extent.elements(call.count as usize, communicator.size() as usize, root);
            (elements.unwrap_or(usize::MAX).saturating_mul(call.data_type.size_bytes())).div_ceil(8)
        };
        let output = if apart { words(operand) } else { 0 };
        let mut memory = vec![0_u64; output + words(result)];
        let mut request = RawRequest::new(call.collective, call.data_type, call.count as usize);
        request.root = call.root;
        let begin = memory.as_mut_ptr();
        request.input = begin.cast();
        request.output = begin.wrapping_add(output).cast();
        request.op = call.op;
        // SAFETY: operand and result, each as long as the collective needs, lie in `memory`, whose heap allocation the operation keeps
        // and nobody else touches until it ends.
        unsafe { communicator.post(&request, memory) }
    });
    started.collect()
}

/// splitmix64.
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }
}
