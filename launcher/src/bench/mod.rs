//! `windlass bench`: what an operation takes, whether it is right, and what the machine and others make of it.
//!
//! The launcher starts this executable again as the ranks of an ordinary job (`rank`), so that what is measured is what
//! `windlass run` runs. The ranks share one file with the limits' memory and the samples (`shared`). All that is timed is
//! timed by one loop (`block`): fill a buffer, meet at a barrier of flags, time one operation, check every element.
//! Rank 0 prints the table and leaves the results in a file of the launcher's.

mod arguments;
mod block;
mod limit;
mod moves;
mod overlap;
mod pattern;
mod peers;
pub(crate) mod plot;
mod progress;
mod rank;
mod report;
mod shared;
mod subject;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use windlass::{Call, Collective, DataType, ReduceOp};
use windlass_benches::limits::Shape;
use windlass_benches::peers::default_cache;

pub(crate) use arguments::{
    ALL, BenchArguments, Benched, EXAMPLES, MemoryKind, Pattern, bytes, name, names, sized,
};
pub(crate) use rank::rank;
pub(crate) use report::Row;

use crate::cli::{RunArguments, Transport};

/// Buffers that rotate, of each rank.
const BUFFERS: usize = 4;

/// What all ranks' rotating buffers take at most.
const ROTATING_BYTES: u64 = 256 << 20;

/// What windlass is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LimitKind {
    /// Buffers that all ranks map.
    Direct,
    /// Private buffers, staged.
    Heap,
    /// The same bytes over one loopback connection.
    Tcp,
}

impl LimitKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Heap => "heap",
            Self::Tcp => "tcp",
        }
    }
}

/// What the ranks are to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) collectives: Vec<String>,
    pub(crate) ranks: usize,
    /// Of the rooted ones.
    pub(crate) root: usize,
    pub(crate) sizes: Vec<u64>,
    pub(crate) warmup: usize,
    pub(crate) iterations: Option<usize>,
    pub(crate) dtype: String,
    pub(crate) op: String,
    pub(crate) memory: MemoryKind,
    /// Of each rank, where memory is a device's, and how often it moves.
    pub(crate) accelerator: String,
    pub(crate) moves_per_second: f64,
    pub(crate) pattern: Pattern,
    /// Into how many buffers a list has the same operand and result cut.
    pub(crate) tensors: Option<usize>,
    pub(crate) limits: Vec<LimitKind>,
    pub(crate) peers: Vec<String>,
    pub(crate) cache: PathBuf,
    /// About how long the blocks of windlass and of the limits may take at each size.
    pub(crate) budget: Duration,
    /// Whether rank 0 prints the table.
    pub(crate) table: bool,
    /// The launcher's terminal, for the progress bar.
    pub(crate) terminal: Option<String>,
    /// Whether the launcher's standard output is that terminal.
    pub(crate) one_terminal: bool,
    /// Measure how an all-reduce runs behind a computation of this length instead.
    pub(crate) overlap: Option<Duration>,
    /// The file that all ranks map, and the one for the results.
    files: [String; 2],
}

/// Why a rank cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RankError {
    #[error(transparent)]
    Windlass(#[from] windlass::Error),
    #[error(transparent)]
    Join(#[from] windlass::JoinError),
    #[error(transparent)]
    Accelerator(#[from] windlass::accelerator::OpenError),
    #[error(transparent)]
    System(#[from] std::io::Error),
    #[error("the plan cannot be read ({0}): __bench-rank is started by `windlass bench` only")]
    Plan(String),
    #[error("the limit `{0}` gave wrong sums: the machine or the bench is broken")]
    Limit(&'static str),
    #[error("{0} elements are wrong")]
    Wrong(u64),
}

impl Plan {
    pub(crate) fn new(collectives: &[Collective], ranks: usize, sizes: Vec<u64>) -> Self {
        Self {
            collectives: collectives.iter().map(ToString::to_string).collect(),
            ranks,
            root: 0,
            sizes,
            warmup: 20,
            iterations: None,
            dtype: DataType::F32.name().to_owned(),
            op: ReduceOp::Sum.name().to_owned(),
            memory: MemoryKind::Registered,
            accelerator: windlass::accelerator::NAMES[0].to_owned(),
            moves_per_second: 0.0,
            pattern: Pattern::Plain,
            tensors: None,
            limits: Vec::new(),
            peers: Vec::new(),
            cache: default_cache(),
            budget: Duration::from_millis(700),
            table: false,
            terminal: None,
            one_terminal: false,
            overlap: None,
            files: [String::new(), String::new()],
        }
    }

    /// The collectives, each with its sizes: a barrier has one, without bytes.
    fn runs(&self) -> Result<Vec<(Collective, Vec<u64>)>, RankError> {
        let run = |name: &String| {
            let collective = name.parse().map_err(|error| RankError::Plan(format!("{error}")))?;
            let sizes = if collective == Collective::Barrier { vec![0] } else { self.sizes.clone() };
            Ok((collective, sizes))
        };
        self.collectives.iter().map(run).collect()
    }

    /// How many rows the table has.
    fn rows(&self) -> usize {
        self.runs().map_or(0, |runs| runs.iter().map(|(_, sizes)| sizes.len()).sum())
    }

    /// A call whose size is about `bytes`, of one element at least.
    fn call(&self, collective: Collective, bytes: u64, data_type: DataType, op: ReduceOp) -> Call {
        let blocks = if collective.has_blocks() { self.ranks as u64 } else { 1 };
        let some = collective != Collective::Barrier;
        let count = if some { (bytes / data_type.size_bytes() as u64 / blocks).max(1) } else { 0 };
        Call { collective, data_type, op, count, root: self.root as u32 }
    }

    fn name(&self) -> &str {
        match &self.collectives[..] {
            [one] => one,
            _ => ALL,
        }
    }

    /// A column that a table of several collectives has before the others.
    fn several<'t>(&self, text: impl FnOnce() -> &'t str) -> String {
        if self.collectives.len() > 1 { format!("{:<14} ", text()) } else { String::new() }
    }

    fn memory_name(&self) -> &'static str {
        match (self.pattern, self.memory) {
            (Pattern::Training, _) => "mixed",
            (_, MemoryKind::Registered) => "registered",
            (_, MemoryKind::Heap) => "heap",
            (_, MemoryKind::Device) => "device",
        }
    }

    const fn pattern_name(&self) -> &'static str {
        match self.pattern {
            Pattern::Plain => "plain",
            Pattern::Training => "training",
        }
    }

    /// Room for the largest size, the odd counts of training included.
    fn shape(&self) -> Shape {
        let largest = self.sizes.iter().copied().max().unwrap_or(0);
        let bytes = if self.limits.is_empty() { 4096 } else { largest as usize + 64 * size_of::<f32>() };
        Shape { ranks: self.ranks, buffers: BUFFERS, bytes }
    }

    /// How many buffers rotate at this size.
    fn buffers(&self, bytes: u64) -> usize {
        let all = bytes.max(1).saturating_mul(self.ranks as u64);
        usize::try_from(ROTATING_BYTES / all).unwrap_or(BUFFERS).clamp(2, BUFFERS)
    }
}

/// Runs a job of ranks that follow the plan; the results, or the job's exit code.
fn measure(mut plan: Plan, transport: Option<Transport>) -> Result<Vec<Row>, ExitCode> {
    let failed = |error: &dyn std::fmt::Display| {
        eprintln!("windlass: {error}");
        ExitCode::FAILURE
    };
    let shared = shared::create(plan.shape()).map_err(|error| failed(&error))?;
    let results = rustix::fs::memfd_create("windlass-bench-results", MemfdFlags::CLOEXEC);
    let results = results.map_err(|error| failed(&error))?;
    plan.files = [shared::path_of(&shared), shared::path_of(&results)];
    let executable = std::env::current_exe().map_err(|error| failed(&error))?;
    let text = serde_json::to_string(&plan).map_err(|error| failed(&error))?;
    let program = vec![executable.into(), "__bench-rank".into(), text.into()];
    let backing = peers::Backing::create(&plan.peers).map_err(|error| failed(&error))?;
    let variables = backing.iter().map(peers::Backing::variable).collect();
    let arguments = RunArguments::of_bench(plan.ranks as u32, transport, variables, program);
    let code = crate::run_job(&arguments);
    if code != 0 {
        return Err(ExitCode::from(code));
    }
    if plan.overlap.is_some() {
        return Ok(Vec::new());
    }
    let mut text = String::new();
    let mut results = File::from(results);
    results.rewind().and_then(|()| results.read_to_string(&mut text)).map_err(|error| failed(&error))?;
    serde_json::from_str(&text).map_err(|error| failed(&error))
}

/// `windlass bench`.
pub(crate) fn bench(arguments: &BenchArguments) -> ExitCode {
    let plan = match plan(arguments) {
        Ok(plan) => plan,
        Err(problem) => {
            eprintln!("windlass: {problem}");
            return ExitCode::from(2);
        }
    };
    match measure(plan, arguments.transport) {
        Ok(rows) => keep(arguments, &rows),
        Err(code) => code,
    }
}

fn plan(arguments: &BenchArguments) -> Result<Plan, String> {
    arguments.check()?;
    let sizes = arguments.sizes()?;
    for path in arguments.json.iter().chain(&arguments.plot) {
        writable(path)?;
    }
    let collectives = arguments.collective.collectives();
    let mut plan = Plan::new(&collectives, arguments.ranks as usize, sizes);
    plan.root = arguments.root as usize;
    plan.warmup = arguments.warmup;
    plan.iterations = arguments.iterations;
    plan.dtype = arguments.dtype.to_string();
    plan.op = arguments.op.to_string();
    plan.memory = arguments.memory;
    plan.accelerator.clone_from(&arguments.accelerator);
    plan.moves_per_second = arguments.moves_per_second;
    plan.pattern = arguments.pattern;
    plan.tensors = arguments.tensors;
    plan.table = true;
    plan.overlap = (arguments.collective == Benched::Overlap).then_some(arguments.compute);
    plan.cache = arguments.cache.clone().unwrap_or_else(default_cache);
    let calls: Vec<Call> =
        collectives.iter().map(|&c| plan.call(c, 0, arguments.dtype, arguments.op)).collect();
    let limited = collectives == [Collective::AllReduce]
        && arguments.dtype == DataType::F32
        && arguments.op == ReduceOp::Sum;
    if arguments.limit && !limited {
        eprintln!("windlass: limits do all_reduce of f32 by sum only; this bench has none to compare with");
    } else if arguments.limit {
        plan.limits = limits(arguments);
    }
    plan.peers = peers::prepare(&arguments.compare, &plan.cache, &calls);
    if rustix::termios::isatty(rustix::stdio::stderr()) {
        plan.terminal = Some(shared::path_of(&rustix::stdio::stderr()));
        plan.one_terminal = rustix::termios::isatty(rustix::stdio::stdout());
    }
    Ok(plan)
}

fn limits(arguments: &BenchArguments) -> Vec<LimitKind> {
    let from_environment = || std::env::var("WINDLASS_TRANSPORT").unwrap_or_default();
    let transport = arguments.transport.map_or_else(from_environment, |given| given.name().to_owned());
    match (&*transport, arguments.pattern, arguments.memory) {
        ("rdma", ..) => {
            eprintln!(
                "windlass: the limit of RDMA is a program of bare verbs, which is not part of this one"
            );
            Vec::new()
        }
        ("tcp", ..) if arguments.ranks == 2 => vec![LimitKind::Tcp],
        ("tcp", ..) => {
            eprintln!(
                "windlass: the limit of TCP is an exchange between 2 ranks; with {} there is none",
                arguments.ranks
            );
            Vec::new()
        }
        (_, Pattern::Training, _) => vec![LimitKind::Direct, LimitKind::Heap],
        // What the same exchange takes in host memory; nobody's engine is faster.
        (_, _, MemoryKind::Registered | MemoryKind::Device) => vec![LimitKind::Direct],
        (_, _, MemoryKind::Heap) => vec![LimitKind::Heap],
    }
}

/// Whether a file can be written, tried before minutes are spent on what goes there.
pub(crate) fn writable(path: &Path) -> Result<(), String> {
    let existed = path.exists();
    let opened = File::options().append(true).create(true).open(path);
    opened.map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    if !existed {
        // Only what this call has made; if it cannot go, it is empty.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn keep(arguments: &BenchArguments, rows: &[Row]) -> ExitCode {
    let mut problems = Vec::new();
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(rows).unwrap_or_default();
        if let Err(error) = std::fs::write(path, text + "\n") {
            problems.push(format!("{} cannot be written: {error}", path.display()));
        }
    }
    if let Some(path) = &arguments.plot
        && let Err(error) = plot::plot(rows).and_then(|svg| Ok(std::fs::write(path, svg)?))
    {
        problems.push(format!("{} cannot be drawn: {error}", path.display()));
    }
    let wrong: u64 = rows.iter().map(|row| row.wrong).sum();
    if wrong > 0 {
        problems.push(format!("{wrong} elements are wrong"));
    }
    problems.iter().for_each(|problem| eprintln!("windlass: {problem}"));
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
