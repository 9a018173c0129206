//! What can be typed: the subcommands and their flags.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use windlass::TransportChoice;

use crate::bench::BenchArguments;
use crate::doctor::DoctorArguments;
use crate::explain::ExplainArguments;
use crate::simulate::SimulateArguments;
use crate::tune::TuneArguments;

/// windlass: collective communication for training jobs.
#[derive(Debug, Parser)]
#[command(name = "windlass", version, about, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start N ranks of a program on this host, watch over them, and end them together.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArguments),
    /// Measure an operation, check every result, and compare with the machine's limit and with other libraries.
    #[command(after_help = crate::bench::EXAMPLES)]
    Bench(BenchArguments),
    /// Measure this machine's constants of the cost model into a file.
    #[command(after_help = crate::tune::EXAMPLES)]
    Tune(TuneArguments),
    /// Show which algorithm a call gets, why, and at which sizes that changes.
    #[command(after_help = crate::explain::EXAMPLES)]
    Explain(ExplainArguments),
    /// Tell what this machine can do, what is wrong, and the exact fix.
    #[command(after_help = crate::doctor::EXAMPLES)]
    Doctor(DoctorArguments),
    /// Predict what a collective costs on thousands of ranks: every rank's schedule runs, in virtual time.
    #[command(after_help = crate::simulate::EXAMPLES)]
    Simulate(SimulateArguments),
    /// Internal: a rank of a bench.
    #[command(name = "__bench-rank", hide = true)]
    BenchRank {
        /// What to do, as the launcher wrote it.
        plan: String,
    },
    /// Internal: the process that outlives a launcher and a guard that die together.
    #[command(name = "__warden", hide = true)]
    Warden {
        /// The inherited control socket.
        control: i32,
    },
    /// Internal: the parent of the ranks.
    #[command(name = "__guard", hide = true)]
    Guard {
        /// The inherited control socket.
        control: i32,
    },
}

const RUN_EXAMPLES: &str = "\
Examples:
  windlass run -- ./train                        one rank per usable CPU
  windlass run -n 4 -- python train.py --lr 0.1
  windlass run -n 8 -x RUST_LOG=debug -x HF_TOKEN -- ./train
  windlass run -n 2 --transport tcp --metrics 127.0.0.1:9400 -- ./train
  windlass run -n 4 --output plain -- hostname   lines without the [rank] tag

Each rank finds RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment.
Rank 0 reads the terminal's or pipe's input; the others read nothing.

Exit status: 0 when every rank exits 0; otherwise that of the first rank to fail (128+N for signal N).
  124 --timeout passed · 126 the program cannot be executed · 127 it was not found · 2 wrong arguments";

/// The flags of `windlass run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArguments {
    /// How many ranks to start [default: the number of usable CPUs].
    #[arg(short = 'n', long = "ranks", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    ranks: Option<u32>,
    /// Set a variable for every rank (VAR=VALUE), or pass on the launcher's (VAR). May be repeated.
    #[arg(short = 'x', value_name = "VAR[=VALUE]")]
    pub(crate) variables: Vec<OsString>,
    /// The transport that the ranks use.
    #[arg(long, value_enum)]
    pub(crate) transport: Option<Transport>,
    /// Serve the job's Prometheus metrics at http://ADDR/metrics (port 0: any free port, which is printed).
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Give each rank its share of the usable CPUs. More ranks than CPUs are bound where every CPU has as many.
    #[arg(long, value_enum, default_value_t = BindTo::Core)]
    pub(crate) bind_to: BindTo,
    /// Write each rank's lines as `[rank] line`, or as they are.
    #[arg(long, value_enum, default_value_t = Output::Tag)]
    pub(crate) output: Output,
    /// End the job after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// After a failure: how long the other ranks have between SIGTERM and SIGKILL, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    pub(crate) grace: Duration,
    /// The program that every rank runs, and its arguments.
    #[arg(value_name = "PROGRAM", trailing_var_arg = true)]
    pub(crate) program: Vec<OsString>,
}

impl RunArguments {
    /// A job of this executable's own ranks. They pin themselves, after they have started who must not inherit that.
    pub(crate) fn of_bench(
        ranks: u32,
        transport: Option<Transport>,
        variables: Vec<OsString>,
        program: Vec<OsString>,
    ) -> Self {
        Self {
            ranks: Some(ranks),
            variables,
            transport,
            metrics: None,
            bind_to: BindTo::None,
            output: Output::Plain,
            timeout: None,
            grace: Duration::from_millis(500),
            program,
        }
    }

    /// The number of ranks: as asked, or one for each usable CPU.
    pub(crate) fn rank_count(&self) -> usize {
        match self.ranks {
            Some(count) => count as usize,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a number of seconds, such as 2 or 0.5");
    let value: f64 = text.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(value).map_err(|_| wrong())
}

/// `--transport`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Shared memory where ranks share a host, TCP elsewhere.
    Auto,
    /// Shared memory.
    Shm,
    /// TCP.
    Tcp,
    /// RDMA, and nothing else in its place.
    Rdma,
}

impl Transport {
    /// The value of WINDLASS_TRANSPORT.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }

    /// What it means to a job.
    pub(crate) const fn choice(self) -> TransportChoice {
        match self {
            Self::Auto => TransportChoice::Auto,
            Self::Shm => TransportChoice::Shm,
            Self::Tcp => TransportChoice::Tcp,
            Self::Rdma => TransportChoice::Rdma,
        }
    }
}

/// `--bind-to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BindTo {
    /// An even share of the usable CPUs for each rank, whole cores together.
    Core,
    /// Leave placement to the kernel.
    None,
}

/// `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// `[rank] line`.
    Tag,
    /// The lines alone.
    Plain,
}
