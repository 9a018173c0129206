//! One rank of a bench.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::accelerator::{Accelerator, OpenError, Options, open};
use windlass::{Call, Collective, Communicator, DataType, Device, ReduceOp, TransportChoice};
use windlass_benches::limits::{cpus, pin};
use windlass_benches::stats::{Label, Sample, Summary, by_label};
use windlass_benches::uneven::even;

use super::block::{Arrival, Block, Stopwatch};
use super::limit::Limits;
use super::moves;
use super::overlap;
use super::pattern::Patterns;
use super::peers::{self, Rival};
use super::progress::Progress;
use super::report::{self, Comparison, Row};
use super::shared::{MOST_ITERATIONS, Shared};
use super::subject::{Place, Windlass, Work};
use super::{MemoryKind, Pattern, Plan, RankError};

/// How long a block may take. The cores seldom move within it.
const BLOCK_NS: f64 = 8e6;

/// Whatever the budget, so many operations of windlass are timed.
const FEWEST: usize = 8;

/// `windlass __bench-rank`.
pub(crate) fn rank(plan: &str) -> ExitCode {
    match serde_json::from_str(plan)
        .map_err(|error| RankError::Plan(error.to_string()))
        .and_then(|plan| run(&plan))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("windlass: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One rank's state over all sizes.
#[derive(Debug)]
struct Bench<'p> {
    plan: &'p Plan,
    shared: Shared,
    communicator: Communicator,
    second: Option<Communicator>,
    stopwatch: Stopwatch,
    limits: Limits,
    /// Where memory is a device's.
    device: Option<Device>,
    rivals: Vec<Rival>,
    patterns: Rc<Patterns>,
    collective: Collective,
    data_type: DataType,
    op: ReduceOp,
}

/// What was sampled at one size; the samples on rank 0 only.
#[derive(Debug, Default)]
struct Measured {
    count: usize,
    samples: Vec<Sample>,
    /// Of a list.
    tensors: Vec<Sample>,
    /// Of each limit.
    limits: Vec<Vec<Sample>>,
    wrong: u64,
}

fn run(plan: &Plan) -> Result<(), RankError> {
    let bad = |error: &dyn std::fmt::Display| RankError::Plan(error.to_string());
    let own = std::env::var("RANK").ok().and_then(|rank| rank.parse().ok());
    let own: usize = own.filter(|&rank| rank < plan.ranks).ok_or_else(|| bad(&"RANK is missing"))?;
    // Before this rank pins itself: how many processors there are, and where peers' ranks may go.
    let _ = cpus();
    let rivals = if own == 0 { peers::start(&plan.peers, &plan.cache, plan.ranks) } else { Vec::new() };
    pin(own, plan.ranks);
    let communicator = windlass::init()?;
    let shared = Shared::open(&plan.files[0], own, plan.shape())?;
    if let Some(compute) = plan.overlap {
        return match overlap::overlap(plan, shared, &communicator, compute)? {
            0 => Ok(()),
            wrong => Err(RankError::Wrong(wrong)),
        };
    }
    let data_type: DataType = plan.dtype.parse().map_err(|error| bad(&error))?;
    let op: ReduceOp = plan.op.parse().map_err(|error| bad(&error))?;
    let training = plan.pattern == Pattern::Training;
    let device = match plan.memory {
        MemoryKind::Device => Some(communicator.attach(accelerator(plan, own)?)?),
        _ => None,
    };
    let mut bench = Bench {
        plan,
        shared,
        second: if training { Some(communicator.duplicate()?) } else { None },
        communicator,
        stopwatch: Stopwatch::new(shared, 1, if training { Arrival::Jittered } else { Arrival::Together }),
        limits: Limits::new(shared, &plan.limits)?,
        device,
        rivals,
        patterns: Rc::new(Patterns::new(plan.ranks, plan.ranks, data_type, op)),
        collective: Collective::AllReduce,
        data_type,
        op,
    };
    let rows = bench.all()?;
    if own == 0 {
        let text = serde_json::to_vec(&rows).map_err(|error| bad(&error))?;
        File::options().write(true).open(&plan.files[1])?.write_all(&text)?;
    }
    Ok(())
}

/// One that moves nothing unless it is asked to, and has room for all buffers that rotate.
fn accelerator(plan: &Plan, rank: usize) -> Result<Arc<dyn Accelerator>, OpenError> {
    let options = Options {
        seed: rank as u64,
        moves_per_second: plan.moves_per_second,
        capacity_bytes: 64 << 30,
        keep_bytes: 64 << 20,
        ..Options::default()
    };
    open(&plan.accelerator, options)
}

impl Bench<'_> {
    fn all(&mut self) -> Result<Vec<Row>, RankError> {
        let first = self.shared.rank == 0;
        let terminal = self.plan.terminal.as_deref().filter(|_| first);
        let progress = Progress::new(terminal, self.plan.one_terminal, self.plan.rows());
        if first && self.plan.table {
            progress.line(&report::header(self.plan, self.transport()));
        }
        let mut rows = Vec::new();
        for (collective, sizes) in self.plan.runs()? {
            self.collective = collective;
            self.patterns = Rc::new(self.patterns());
            for bytes in sizes {
                let done = rows.len();
                let measured = self.size(bytes, &|spent, budget| progress.at(done, bytes, spent, budget))?;
                let (row, comparison) = self.row(&measured);
                if first && self.plan.table {
                    progress.line(&report::line(self.plan, &row, &comparison));
                }
                rows.push(row);
            }
        }
        progress.end();
        if let Some(device) = self.device.as_ref().filter(|_| self.plan.moves_per_second > 0.0) {
            let lines = moves::lines(&self.communicator, device)?;
            if first && self.plan.table {
                lines.iter().for_each(|line| progress.line(line));
            }
        }
        Ok(rows)
    }

    fn transport(&self) -> &'static str {
        match self.communicator.config().transport {
            TransportChoice::Tcp => "tcp",
            TransportChoice::Rdma => "rdma",
            // One host: what auto chooses is shared memory.
            _ => "shm",
        }
    }

    /// What this rank is given and must get of the collective.
    fn patterns(&self) -> Patterns {
        let op = if self.collective.reduces() { self.op } else { ReduceOp::Sum };
        let reduced = Work::reduced(self.collective, self.shared.rank, self.plan.ranks);
        Patterns::new(self.plan.ranks, reduced, self.data_type, op)
    }

    /// What is compared.
    fn call(&self, bytes: u64) -> Call {
        self.plan.call(self.collective, bytes, self.data_type, self.op)
    }

    fn work(&self, count: usize, buffers: usize, tensors: usize) -> Work {
        let place = match (self.plan.pattern, &self.device, self.plan.memory) {
            (_, Some(device), _) => Place::Device(device.clone()),
            (Pattern::Training, ..) if self.shared.rank % 2 == 1 => Place::Heap,
            (Pattern::Plain, _, MemoryKind::Heap) => Place::Heap,
            _ => Place::Registered,
        };
        // What a model's layers have: nothing round.
        let odd = [0isize, -1, 3, -7];
        let count_of = |index: usize| match self.plan.pattern {
            Pattern::Plain => count,
            Pattern::Training => count.saturating_add_signed(odd[index % odd.len()]).max(1),
        };
        Work {
            collective: self.collective,
            data_type: self.data_type,
            op: self.op,
            root: self.plan.root,
            counts: (0..buffers).map(count_of).collect(),
            tensors,
            place,
            patterns: Rc::clone(&self.patterns),
        }
    }

    /// Everything about one size; `progress` is told how much of the budget is spent.
    fn size(&mut self, bytes: u64, progress: &dyn Fn(Duration, Duration)) -> Result<Measured, RankError> {
        let call = self.call(bytes);
        let count = call.count as usize;
        let buffers = self.plan.buffers(bytes);
        self.stopwatch.buffers = buffers;
        let work = self.work(count, buffers, 1);
        let counts = work.counts.clone();
        let mut subject = Windlass::new(self.shared, &self.communicator, self.second.as_ref(), work)?;
        let list = |tensors| {
            let work = self.work(count, buffers, tensors);
            Windlass::new(self.shared, &self.communicator, None, work)
        };
        let mut list = self.plan.tensors.map(list).transpose()?;
        let mut measured =
            Measured { count, limits: vec![Vec::new(); self.plan.limits.len()], ..Measured::default() };
        if self.collective == Collective::Barrier {
            measured.wrong += subject.prove_barrier()?;
        }
        let mut turn = Turn::default();
        let mut list_turn = Turn::default();
        let mut limit_turns = vec![Turn::default(); self.plan.limits.len()];
        self.rivals.iter_mut().for_each(Rival::begin);
        let budget = self.plan.budget * if self.plan.peers.is_empty() { 1 } else { 2 };
        let begin = Instant::now();
        loop {
            for (which, limit_turn) in limit_turns.iter_mut().enumerate() {
                measured.limits[which].extend(self.limit_block(which, &counts, limit_turn)?);
            }
            if let Some(list) = &mut list {
                let (iterations, warmup) = list_turn.next(&self.shared, self.plan.warmup, usize::MAX);
                let block = self.stopwatch.block(list, iterations, warmup)?;
                list_turn.done(&block, iterations);
                measured.wrong += block.wrong;
                measured.tensors.extend(block.samples);
            }
            let left = self.plan.iterations.map_or(usize::MAX, |most| most - turn.timed);
            let (iterations, warmup) = turn.next(&self.shared, self.plan.warmup, left);
            let block = self.stopwatch.block(&mut subject, iterations, warmup)?;
            turn.done(&block, iterations);
            measured.wrong += block.wrong;
            measured.samples.extend(block.samples);
            if !self.plan.peers.is_empty() {
                let rivals = &mut self.rivals;
                self.shared.alone(|| rivals.iter_mut().for_each(|rival| rival.block(&call)));
            }
            progress(begin.elapsed(), budget);
            let more = match self.plan.iterations {
                Some(most) => turn.timed < most,
                None => turn.timed < FEWEST || begin.elapsed() < budget,
            };
            if self.shared.agree(|| u64::from(more)) == 0 {
                break;
            }
        }
        measured.wrong = self.shared.total(measured.wrong);
        Ok(measured)
    }

    fn limit_block(
        &mut self,
        which: usize,
        counts: &[usize],
        turn: &mut Turn,
    ) -> Result<Vec<Sample>, RankError> {
        let kind = self.plan.limits[which];
        let mut limit = self.limits.of(kind, counts, &self.patterns, self.second.is_some());
        let (iterations, warmup) = turn.next(&self.shared, self.plan.warmup, usize::MAX);
        let block = self.stopwatch.block(&mut limit, iterations, warmup)?;
        turn.done(&block, iterations);
        if block.wrong > 0 {
            return Err(RankError::Limit(kind.name()));
        }
        Ok(block.samples)
    }

    /// What is told of a size: of the label that most samples have.
    fn row(&self, measured: &Measured) -> (Row, Comparison) {
        let Measured { count, samples, tensors, limits, wrong } = measured;
        let (count, wrong) = (*count, *wrong);
        let labels = by_label(samples);
        let most = labels.iter().max_by_key(|(_, summary)| summary.count);
        let none = Summary { count: 0, min_ns: 0.0, median_ns: 0.0, mean_ns: 0.0, p99_ns: 0.0 };
        let (label, summary) = most.copied().unwrap_or((Label::Unsettled, none));
        let within = |samples: &Vec<Sample>| Summary::of_label(samples, label).map(|s| s.median_ns / 1e3);
        let tensors_us = within(tensors);
        let limits: Vec<_> = limits.iter().map(within).collect();
        let times: Vec<_> = self.rivals.iter().map(|rival| (rival.name(), rival.median_us(label))).collect();
        let peers: BTreeMap<_, _> =
            times.iter().map(|(name, time)| ((*name).to_owned(), time.map(|time| time.us))).collect();
        let call = Call { count: count as u64, ..self.call(0) };
        let bytes = even(&call).size_bytes(self.plan.ranks as u32);
        let algbw_gbps = if summary.median_ns > 0.0 { bytes as f64 / summary.median_ns } else { 0.0 };
        let row = Row {
            collective: self.collective.to_string(),
            ranks: self.plan.ranks,
            bytes,
            count,
            dtype: self.data_type.to_string(),
            op: if self.collective.reduces() { self.op.to_string() } else { "none".to_owned() },
            transport: self.transport().to_owned(),
            memory: self.plan.memory_name().to_owned(),
            iterations: summary.count,
            min_us: summary.min_ns / 1e3,
            median_us: summary.median_ns / 1e3,
            p99_us: summary.p99_ns / 1e3,
            algbw_gbps,
            busbw_gbps: algbw_gbps * report::bus_factor(self.collective, self.plan.ranks),
            wrong,
            label: label.as_str().to_owned(),
            pattern: self.plan.pattern_name().to_owned(),
            tensors: self.plan.tensors,
            tensors_us,
            limit_us: limits.last().and_then(|us| *us),
            peers,
        };
        (row, Comparison { limits, peers: times.into_iter().map(|(_, time)| time).collect() })
    }
}

/// How long the next block of one subject is.
#[derive(Clone, Debug, Default)]
struct Turn {
    /// On rank 0: the last block's time of an iteration.
    iteration_ns: f64,
    blocks: usize,
    timed: usize,
}

impl Turn {
    /// How many iterations are timed, and how many go before.
    fn next(&self, shared: &Shared, warmup: usize, most: usize) -> (usize, usize) {
        if self.blocks == 0 {
            // Nothing is known of this size yet.
            return (1.min(most), warmup);
        }
        // The first operations of a block find the other subject's data in the caches.
        let settle = 2;
        let fits = (BLOCK_NS / self.iteration_ns.max(1.0)) as usize;
        let iterations = shared.agree(|| fits.saturating_sub(settle).max(1) as u64) as usize;
        (iterations.min(most).min(MOST_ITERATIONS), settle)
    }

    fn done(&mut self, block: &Block, timed: usize) {
        self.iteration_ns = block.iteration_ns;
        self.blocks += 1;
        self.timed += timed;
    }
}
