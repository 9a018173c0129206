//! `windlass simulate`: what a collective costs on ranks that need not exist, which algorithm is the best there, and what
//! happens when some of them die.
//!
//! | module | one idea |
//! |---|---|
//! | here | what is asked, and running the experiments |
//! | `report` | the tables, and the JSON |
//! | `losses` | the whole runtime, with ranks that die and memory that moves |

mod losses;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use windlass::{
    Algorithm, Call, Collective, Config, DataType, Experiment, ExperimentError, JoinError, LowerBound, Model,
    ReduceOp,
};

use crate::bench::{bytes, name, names, plot, sized, writable};
use losses::Losses;
use report::{Report, Row};

pub(crate) const EXAMPLES: &str = "\
Examples:
  windlass simulate all_reduce --ranks 1024 --bytes 64M
  windlass simulate all_reduce --ranks 16384 --bytes 1M --algorithm rabenseifner
  windlass simulate broadcast --ranks 512 --bytes 8K --latency 2000 --bandwidth 25    a network of 2 µs and 25 GB/s
  windlass simulate all_reduce --ranks 64 --bytes 1M --losses 2                       two ranks die on the way
  windlass simulate all_reduce --ranks 64 --bytes 1M --moves 100                      device memory moves meanwhile
  windlass simulate all_gather --ranks 256 --bytes 16M --plot growth.svg --json growth.json

Every rank runs its real schedule, without payload. A rank sends to one and receives from one other at a time; a message of b bytes takes
α + b·β (--latency, --bandwidth), combining takes γ a byte (the model's reduce_byte_ns). Not simulated: credits, and links that
pairs share. The bounds: ⌈log2 p⌉·α, and β times 2(p-1)/p·N for all_reduce, N for broadcast, reduce, scan and exscan,
(p-1)/p·N for those with a block for each rank (Chan, Heimlich, Purkayastha and van de Geijn 2007). Random weights stand for the data: the result of every rank is
checked to hold each rank's part exactly once.

With --losses and --moves the whole runtime runs (communicators, engine, links, memory) on a simulated network: up to 1024 ranks, and 1 GiB in all.";

/// An algorithm that takes more messages than this runs only when it is named.
const MOST_MESSAGES: u64 = 20_000_000;
/// Chunks are made larger until an algorithm takes no more than so many, where that is possible.
const ENOUGH_MESSAGES: u64 = 4_000_000;

/// The flags of `windlass simulate`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SimulateArguments {
    #[arg(value_name = "COLLECTIVE", value_parser = sized, help = names(|c| !c.is_point_to_point() && !c.is_uneven()))]
    collective: Collective,
    /// How many ranks.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    ranks: u32,
    /// The operation's size, as in `windlass bench`; K, M and G are powers of 1024.
    #[arg(short = 'b', long, value_name = "BYTES", default_value = "1M", value_parser = bytes)]
    bytes: u64,
    /// Only this algorithm, however many messages it takes [default: all that serve, in larger chunks where it would be more than 4 million, unless
    /// it would still be more than 20 million].
    #[arg(long, value_name = "NAME", value_parser = name::<Algorithm>)]
    algorithm: Option<Algorithm>,
    /// Decides which elements are watched, when ranks enter a barrier, and who dies when.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Kill K ranks while the operation runs, and tell who heard of it and when.
    #[arg(long, value_name = "K", default_value_t = 0, hide_default_value = true)]
    losses: u32,
    /// Move a rank's device memory K times while the operation runs, and check every element of the result (all_reduce of f32 or i64).
    #[arg(long, value_name = "K", default_value_t = 0, hide_default_value = true)]
    moves: u32,
    /// α: what a message costs apart from its bytes, in nanoseconds [default: the model's message_ns].
    #[arg(long, value_name = "NS", value_parser = positive)]
    latency: Option<f64>,
    /// 1/β: gigabytes (1e9 bytes) a second in and out of a rank [default: from the model's message_byte_ns].
    #[arg(long, value_name = "GBPS", value_parser = positive)]
    bandwidth: Option<f64>,
    /// Bytes of a message's chunk [default: the model's chunk_bytes].
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    chunk: Option<u64>,
    /// All ranks map each other's memory: the algorithms of shared memory serve, too.
    #[arg(long)]
    mapped: bool,
    /// The elements' type, such as f32, bf16, e4m3 or i64.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = name::<DataType>)]
    dtype: DataType,
    /// Draw time against ranks.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write everything as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0);
    value.ok_or_else(|| format!("`{text}` is not a number above 0"))
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimulateError {
    /// What was asked for makes no sense together.
    #[error("{0}")]
    Arguments(String),
    /// An algorithm is wrong, or cannot serve.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// The configuration, or a rank of the simulated job.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The device memory of a simulated rank.
    #[error(transparent)]
    Device(#[from] windlass::Error),
    /// Moved memory came to a wrong result.
    #[error("{0} elements are wrong after moves: a fault of windlass; please report it with the command")]
    Wrong(u64),
    /// A file.
    #[error("{path} cannot be written: {problem}")]
    File { path: String, problem: String },
}

impl SimulateError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Arguments(_)
            | Self::Experiment(ExperimentError::Unsupported(_) | ExperimentError::PointToPoint(_))
            | Self::Join(_) => 2,
            _ => 1,
        }
    }
}

/// What is asked, completed.
#[derive(Debug)]
struct Question<'a> {
    arguments: &'a SimulateArguments,
    config: Config,
}

impl Question<'_> {
    fn model(&self) -> Model {
        let model = self.config.model;
        Model {
            message_ns: self.arguments.latency.unwrap_or(model.message_ns),
            message_byte_ns: self.arguments.bandwidth.map_or(model.message_byte_ns, |gbps| 1.0 / gbps),
            chunk_bytes: self.arguments.chunk.unwrap_or(model.chunk_bytes).max(64),
            ..model
        }
    }

    /// The call on so many ranks: of about the size that was asked for, where each rank has a block of its own.
    fn call(&self, ranks: u32) -> Call {
        let SimulateArguments { collective, dtype, bytes, .. } = *self.arguments;
        let blocks = if collective.has_blocks() { u64::from(ranks) } else { 1 };
        let count = match collective {
            Collective::Barrier => 0,
            _ => (bytes / (dtype.size_bytes() as u64 * blocks)).max(1),
        };
        Call { collective, data_type: dtype, op: ReduceOp::Sum, count, root: 0 }
    }

    fn experiment(&self, algorithm: Algorithm, ranks: u32) -> Experiment {
        Experiment {
            call: self.call(ranks),
            algorithm,
            ranks,
            model: self.model(),
            seed: self.arguments.seed,
        }
    }

    /// Those that are compared, on all numbers of ranks: the cheapest on the most ranks first.
    fn algorithms(&self) -> Result<Vec<Algorithm>, SimulateError> {
        let SimulateArguments { ranks, mapped, collective, algorithm, .. } = *self.arguments;
        if collective.is_point_to_point() {
            return Err(ExperimentError::PointToPoint(collective).into());
        }
        let mapped = mapped || algorithm.is_some_and(Algorithm::needs_mapped_peers);
        if mapped && ranks > MOST_MAPPED {
            return Err(SimulateError::Arguments(format!(
                "at most {MOST_MAPPED} ranks map each other's memory"
            )));
        }
        let serving = Experiment::algorithms(&self.call(ranks), ranks, mapped, &self.model());
        let Some(wanted) = algorithm else { return Ok(serving) };
        if !serving.contains(&wanted) {
            let names: Vec<_> = serving.iter().map(|algorithm| algorithm.name()).collect();
            return Err(SimulateError::Arguments(format!(
                "{wanted} does not serve {collective} of that size on {ranks} ranks; there are {}",
                names.join(", ")
            )));
        }
        Ok(vec![wanted])
    }

    /// 2, 4, 8… and the number that was asked for.
    fn growth(&self) -> Vec<u32> {
        let ranks = self.arguments.ranks;
        let mut all: Vec<u32> = (1..16).map(|power| 1 << power).filter(|few| *few < ranks).collect();
        all.push(ranks);
        all
    }
}

/// What a host's doorbell serves.
const MOST_MAPPED: u32 = 1024;

/// `windlass simulate`.
pub(crate) fn simulate(arguments: &SimulateArguments) -> ExitCode {
    match answer(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("windlass: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn answer(arguments: &SimulateArguments) -> Result<(), SimulateError> {
    for path in arguments.json.iter().chain(&arguments.plot) {
        writable(path).map_err(SimulateError::Arguments)?;
    }
    let question = Question { arguments, config: Config::from_environment()? };
    let algorithms = question.algorithms()?;
    losses::check(&question)?;
    let growth = question.growth();
    let bar = ProgressBar::new((growth.len() * algorithms.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}") {
        bar.set_style(style);
    }
    let begin = Instant::now();
    let mut rows = Vec::new();
    for &ranks in &growth {
        for &algorithm in &algorithms {
            rows.extend(run(&question, algorithm, ranks, &bar)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let took = begin.elapsed();
    let report = Report { question: &question, algorithms, growth, rows };
    print!("{}", report.text());
    let messages: u64 = report.rows.iter().map(|row| row.messages).sum();
    eprintln!(
        "windlass: simulated {messages} messages in {:.2} s ({:.2} million a second)",
        took.as_secs_f64(),
        messages as f64 / took.as_secs_f64() / 1e6
    );
    let lost = match arguments.losses + arguments.moves {
        0 => None,
        _ => Some(Losses::run(&question, &report)?),
    };
    if let Some(lost) = &lost {
        print!("{}", lost.text());
    }
    keep(&report, lost.as_ref())?;
    match lost.map_or(0, |lost| lost.wrong()) {
        0 => Ok(()),
        wrong => Err(SimulateError::Wrong(wrong)),
    }
}

/// One algorithm on so many ranks, unless it serves no such number or takes too many messages.
fn run(
    question: &Question<'_>,
    algorithm: Algorithm,
    ranks: u32,
    bar: &ProgressBar,
) -> Result<Option<Row>, SimulateError> {
    let mut experiment = question.experiment(algorithm, ranks);
    if question.arguments.algorithm.is_none() {
        if question.arguments.chunk.is_none() {
            coarsen(&mut experiment);
        }
        if experiment.messages() > MOST_MESSAGES {
            return Ok(None);
        }
    }
    let told = |messages: u64| {
        bar.set_message(format!(
            "{algorithm} on {ranks} ranks, {:.1} million messages",
            messages as f64 / 1e6
        ));
    };
    told(0);
    let estimate = match experiment.run(told) {
        Err(ExperimentError::Unsupported(_)) => return Ok(None),
        estimate => estimate?,
    };
    let bound = LowerBound::of(&experiment.call, ranks, &experiment.model);
    Ok(Some(Row::new(&experiment, &estimate, &bound)))
}

/// Makes chunks larger, as far as that saves messages that are not needed.
fn coarsen(experiment: &mut Experiment) {
    while experiment.messages() > ENOUGH_MESSAGES {
        let mut coarser = experiment.clone();
        coarser.model.chunk_bytes = experiment.model.chunk_bytes.saturating_mul(2);
        if coarser.messages() == experiment.messages() {
            return;
        }
        *experiment = coarser;
    }
}

fn keep(report: &Report<'_>, lost: Option<&Losses>) -> Result<(), SimulateError> {
    let arguments = report.question.arguments;
    let failed = |path: &PathBuf, problem: &dyn std::fmt::Display| SimulateError::File {
        path: path.display().to_string(),
        problem: problem.to_string(),
    };
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report.json(lost)).unwrap_or_default();
        std::fs::write(path, text + "\n").map_err(|error| failed(path, &error))?;
    }
    if let Some(path) = &arguments.plot {
        let axes = (
            ("ranks", (|ranks| format!("{ranks:.0}")) as fn(f64) -> String),
            ("microseconds", plot::us_label as fn(f64) -> String),
        );
        let drawn = plot::draw(report.title(), axes.0, axes.1, &report.lines());
        let svg = drawn.map_err(|error| failed(path, &error))?;
        std::fs::write(path, svg).map_err(|error| failed(path, &error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use windlass::{Call, Model};

    use super::*;

    #[test]
    fn chunks_grow_as_far_as_that_saves_messages() {
        let large = |algorithm| {
            let (collective, data_type, op) = (Collective::AllReduce, DataType::F32, ReduceOp::Sum);
            let call = Call { collective, data_type, op, count: 1 << 26, root: 0 };
            let mut experiment =
                Experiment { call, algorithm, ranks: 16_384, model: Model::default(), seed: 1 };
            let before = (experiment.messages(), experiment.model.chunk_bytes);
            coarsen(&mut experiment);
            (before, (experiment.messages(), experiment.model.chunk_bytes))
        };
        let (before, after) = large(Algorithm::Rabenseifner);
        assert!(before.0 > MOST_MESSAGES && after.0 <= ENOUGH_MESSAGES && after.1 > before.1, "{after:?}");
        // A ring's parts are smaller than a chunk already.
        let (before, after) = large(Algorithm::Ring);
        assert_eq!(before, after);
    }
}
