//! What can be typed after `windlass bench`, and what is refused before anything runs.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use windlass::{Collective, DataType, ReduceOp};
use windlass_benches::limits::MAX_RANKS;
use windlass_benches::peers::Peer;

use crate::cli::Transport;

pub(crate) const EXAMPLES: &str = "\
Examples:
  windlass bench all_reduce -n 2 -b 8 -e 64M -f 8
  windlass bench all_reduce -n 2 -e 16M --limit                    what the machine allows, interleaved
  windlass bench all_reduce -n 2 --compare openmpi,mpich --plot bench.svg
  windlass bench all_gather -n 4 --memory heap --transport tcp --json bench.json
  windlass bench all_reduce -n 2 --pattern training --limit        what a training job does
  windlass bench all_reduce -n 2 --memory device --moves-per-second 50
  windlass bench all_reduce -e 1M --tensors 100                    one buffer, and a list of 100
  windlass bench send -n 2                                         ping-pong, half of a round trip
  windlass bench all -n 4 --compare openmpi,mpich                  every collective, in one table
  windlass bench overlap -n 2 -e 16M --compute 5ms                 what runs behind a computation

Columns: those of nccl-tests (busbw by its factors; 1 for scan and exscan, of which it has none), and the fastest operation and
the 99th percentile. Times are per operation, the slowest rank's, the median: from a common start until the last rank has what
it gets, so that a root or a leaf that runs ahead hides nothing. Every element of every iteration is checked outside the timed region;
inputs change from iteration to iteration and 4 buffers rotate (fewer where they would exceed 256 MiB in all).
Where blocks differ (all_gather_v and its like), block r of p is r + 1 parts of 1 + 2 + ... + p, and all together are the size; of
all_to_all_v the block from rank r to rank q is number (r + q) mod p.

Windlass and what it is compared with take turns in blocks of at most 10 ms (at least one operation). A probe before
and after each block tells whether the ranks' cores are near or far; medians are of, and ratios within, the label that
most of windlass's samples have (~: the peer has no samples of that label). `limit` is hand-written code on the same flags and memory without any runtime: see
benches/README.md. A ratio against a limit should be small, one against a peer large.";

/// The flags of `windlass bench`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArguments {
    #[arg(value_name = "COLLECTIVE", value_parser = benched, help = what())]
    pub(crate) collective: Benched,
    /// How many ranks, all on this host [default: 2].
    #[arg(short = 'n', long = "ranks", value_name = "N", default_value_t = 2, hide_default_value = true,
          value_parser = clap::value_parser!(u32).range(1..=MAX_RANKS as i64))]
    pub(crate) ranks: u32,
    /// The smallest size; K, M and G are powers of 1024.
    #[arg(short = 'b', long = "begin", value_name = "MIN", default_value = "8", value_parser = bytes)]
    pub(crate) begin: u64,
    /// The largest size.
    #[arg(short = 'e', long = "end", value_name = "MAX", default_value = "16M", value_parser = bytes)]
    pub(crate) end: u64,
    /// The factor between sizes.
    #[arg(short = 'f', long = "factor", value_name = "FACTOR", default_value_t = 8,
          value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) factor: u64,
    /// Operations before the timed ones, at each size.
    #[arg(short = 'w', long = "warmup", value_name = "N", default_value_t = 20)]
    pub(crate) warmup: usize,
    /// Timed operations at each size [default: as many as half a second holds, at least 8].
    #[arg(short = 'i', long = "iterations", value_name = "N", value_parser = positive)]
    pub(crate) iterations: Option<usize>,
    /// i8 to i64, u8 to u64, e4m3, e5m2, f16, bf16, f32, f64, bool, complex64, complex128, or a value and its place: f32i32,
    /// f64i32, i32i32, f64i64, i64i64.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = name::<DataType>)]
    pub(crate) dtype: DataType,
    /// sum, prod, min, max, avg, scaled_sum, band, bor, bxor, land, lor, lxor, minloc or maxloc.
    #[arg(long, value_name = "OP", default_value = "sum", value_parser = name::<ReduceOp>)]
    pub(crate) op: ReduceOp,
    /// The root, of collectives that have one [default: 0].
    #[arg(long, value_name = "RANK", default_value_t = 0, hide_default_value = true)]
    pub(crate) root: u32,
    /// The transport [default: WINDLASS_TRANSPORT, else auto].
    #[arg(long, value_enum)]
    pub(crate) transport: Option<Transport>,
    /// Where the buffers lie: registered memory is reached by the peers directly, heap memory is staged, device memory is an
    /// accelerator's, whose engine does the work.
    #[arg(long, value_enum, default_value_t = MemoryKind::Registered)]
    pub(crate) memory: MemoryKind,
    /// With `--memory device`: whose.
    #[arg(long, value_name = "NAME", default_value = "simulated",
          value_parser = clap::builder::PossibleValuesParser::new(windlass::accelerator::NAMES))]
    pub(crate) accelerator: String,
    /// Take turns with the same operation over a list of N buffers, which together are as long.
    #[arg(long, value_name = "N", value_parser = tensors)]
    pub(crate) tensors: Option<usize>,
    /// With `--memory device`: how often each rank's accelerator moves a buffer, also while an operation uses it.
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = rate)]
    pub(crate) moves_per_second: f64,
    /// plain, or training: odd counts, 20 µs of jittered computing before each operation, two communicators at once,
    /// even ranks with registered and odd ranks with heap memory.
    #[arg(long, value_enum, default_value_t = Pattern::Plain)]
    pub(crate) pattern: Pattern,
    /// Write the results as a JSON array.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw time against size.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Take turns with other libraries: openmpi, mpich, gloo, torch. They are installed into the cache folder first.
    #[arg(long, value_name = "PEERS", value_delimiter = ',', value_parser = peer)]
    pub(crate) compare: Vec<Peer>,
    /// Take turns with the physical limit of this machine (all_reduce, f32, sum; over TCP with 2 ranks).
    #[arg(long)]
    pub(crate) limit: bool,
    /// Where peers are installed [default: windlass/peers in the user's cache folder].
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// With `overlap`: how long to compute while the operation runs.
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = duration)]
    pub(crate) compute: std::time::Duration,
}

/// What a bench can measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Benched {
    /// One collective, or ping-pong by send.
    Collective(Collective),
    /// Every collective.
    All,
    /// An all-reduce behind a computation.
    Overlap,
}

/// What is typed for every collective, and its sizes.
pub(crate) const ALL: &str = "all";
const ALL_SIZES: [u64; 4] = [8, 4 << 10, 256 << 10, 16 << 20];

impl Benched {
    /// Those of the table that are measured. A receive is the other half of a send.
    pub(crate) fn collectives(self) -> Vec<Collective> {
        match self {
            Self::Collective(collective) => vec![collective],
            Self::All => Collective::ALL.iter().copied().filter(|c| is_benchable(*c)).collect(),
            Self::Overlap => vec![Collective::AllReduce],
        }
    }
}

/// The names of some collectives of the table.
pub(crate) fn names(of: impl Fn(Collective) -> bool) -> String {
    let names = Collective::ALL.iter().copied().filter(|c| is_benchable(*c) && of(*c)).map(Collective::name);
    names.collect::<Vec<_>>().join(", ")
}

/// A receive is measured with its send.
fn is_benchable(collective: Collective) -> bool {
    collective != Collective::Recv
}

fn benchable() -> String {
    names(|_| true)
}

fn what() -> String {
    let sizes = "at 8 B, 4 KiB, 256 KiB and 16 MiB, those from -b to -e";
    format!("{}; all: every one of them, {sizes}; or overlap", benchable())
}

/// `--memory`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MemoryKind {
    /// Allocated by the communicator; peers map it.
    Registered,
    /// The process's own.
    Heap,
    /// An accelerator's.
    Device,
}

/// `--pattern`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pattern {
    /// One operation after another, all ranks alike.
    Plain,
    /// What a training job does.
    Training,
}

impl BenchArguments {
    /// The sizes to measure.
    pub(crate) fn sizes(&self) -> Result<Vec<u64>, String> {
        if self.begin > self.end {
            return Err(format!(
                "-b {} is more than -e {}: there is no size to measure",
                self.begin, self.end
            ));
        }
        if self.collective == Benched::Overlap {
            return Ok(vec![self.end]);
        }
        if self.collective == Benched::All {
            let within: Vec<u64> =
                ALL_SIZES.into_iter().filter(|size| (self.begin..=self.end).contains(size)).collect();
            let none = || {
                Err(format!("between -b {} and -e {} lies none of the sizes of `all`", self.begin, self.end))
            };
            return if within.is_empty() { none() } else { Ok(within) };
        }
        let next = |size: &u64| size.checked_mul(self.factor).filter(|next| *next <= self.end);
        let mut sizes: Vec<u64> = std::iter::successors(Some(self.begin), next).collect();
        // Who asks for a largest size wants to see it, wherever the factor lands.
        if sizes.last() != Some(&self.end) {
            sizes.push(self.end);
        }
        Ok(sizes)
    }

    /// What does not go together.
    pub(crate) fn check(&self) -> Result<(), String> {
        let collectives = self.collective.collectives();
        let has = |collective| collectives.contains(&collective);
        let alone = collectives.len() == 1;
        if collectives.iter().any(|c| c.reduces()) {
            self.op.on(self.dtype).map_err(|error| error.to_string())?;
            let scales = alone && has(Collective::AllReduce) && self.memory != MemoryKind::Device;
            if self.op == ReduceOp::ScaledSum && !scales {
                return Err("scaled_sum is for all_reduce of --memory registered or heap".to_owned());
            }
        }
        if has(Collective::Send) && self.ranks < 2 {
            return Err("send is between ranks 0 and 1: use -n 2 or more".to_owned());
        }
        let prefixes = has(Collective::Scan) || has(Collective::ExScan);
        if prefixes && self.op == ReduceOp::Avg {
            return Err("scan and exscan have no avg: prefixes are of different numbers of ranks".to_owned());
        }
        let rooted = |c: &Collective| c.rooted() && !c.is_point_to_point();
        if self.root > 0 && !collectives.iter().any(rooted) {
            let names = names(|c| rooted(&c));
            return Err(format!("--root is for collectives that have one: {names}"));
        }
        if self.root >= self.ranks {
            return Err(format!("--root {} is none of {} ranks", self.root, self.ranks));
        }
        if !alone && self.plot.is_some() {
            return Err("--plot draws one collective: name it".to_owned());
        }
        if self.collective == Benched::Overlap {
            self.check_overlap()?;
        }
        self.check_memory(has(Collective::Send), alone)?;
        if self.tensors.is_some() {
            let listed = |c: Collective| !c.is_point_to_point() && c != Collective::Barrier;
            if !alone || self.pattern == Pattern::Training || !collectives.iter().all(|c| listed(*c)) {
                return Err(format!("--tensors is for one of {}, by the plain pattern", names(listed)));
            }
        }
        if self.pattern == Pattern::Training
            && collectives.iter().any(|c| c.is_point_to_point() || *c == Collective::Barrier)
        {
            let names = names(|c| !c.is_point_to_point() && c != Collective::Barrier);
            return Err(format!("--pattern training is for one of {names}"));
        }
        Ok(())
    }

    fn check_overlap(&self) -> Result<(), String> {
        let f32_sum = self.dtype == DataType::F32 && self.op == ReduceOp::Sum;
        let other = self.tensors.is_some()
            || self.json.is_some()
            || self.plot.is_some()
            || self.limit
            || !self.compare.is_empty();
        if !f32_sum || other {
            return Err("overlap takes -n, -e, -i, --compute, --memory and --transport only".to_owned());
        }
        if self.memory == MemoryKind::Device {
            return Err("overlap takes --memory registered or heap".to_owned());
        }
        Ok(())
    }

    fn check_memory(&self, send: bool, alone: bool) -> Result<(), String> {
        let device = self.memory == MemoryKind::Device;
        if device && send {
            let instead = if alone { "" } else { "; name a collective" };
            return Err(format!(
                "send takes --memory registered or heap: device memory is for collectives{instead}"
            ));
        }
        if device && self.pattern == Pattern::Training {
            return Err(
                "--pattern training mixes registered and heap memory; leave out --memory device".to_owned()
            );
        }
        if !device && self.moves_per_second > 0.0 {
            return Err("--moves-per-second is for --memory device: other memory does not move".to_owned());
        }
        Ok(())
    }
}

fn benched(text: &str) -> Result<Benched, String> {
    match (text, text.parse()) {
        ("overlap", _) => Ok(Benched::Overlap),
        (ALL, _) => Ok(Benched::All),
        (_, Ok(collective)) if is_benchable(collective) => Ok(Benched::Collective(collective)),
        _ => Err(format!("it is none that can be benched; use {}, all or overlap", benchable())),
    }
}

/// A size in bytes, such as 8, 64K or 1G.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "it is not a size, such as 8, 64K, 16M or 1G".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        _ => return Err(wrong()),
    };
    let value: u64 = digits.parse().map_err(|_| wrong())?;
    let most = 16 << 30;
    match value.checked_mul(1 << shift) {
        Some(bytes @ 1..) if bytes <= most => Ok(bytes),
        Some(0) => Err("a size is at least 1 byte".to_owned()),
        _ => Err("a size is at most 16G".to_owned()),
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1_000_000_000) => Ok(number),
        _ => Err("it is not a number from 1 to 1000000000".to_owned()),
    }
}

/// A collective that a size describes.
pub(crate) fn sized(text: &str) -> Result<Collective, String> {
    let collective = name::<Collective>(text)?;
    if collective.is_uneven() {
        return Err(format!(
            "a size says nothing of the lengths of its blocks; ask for {}",
            collective.even()
        ));
    }
    Ok(collective)
}

/// A data type or an operator; the error lists what there is.
pub(crate) fn name<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn tensors(text: &str) -> Result<usize, String> {
    let value = text.parse().ok().filter(|value| (1..=100_000).contains(value));
    value.ok_or_else(|| "it is not a number from 1 to 100000".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=1000.0).contains(value));
    value.ok_or_else(|| "it is not a number from 0 to 1000".to_owned())
}

fn peer(text: &str) -> Result<Peer, String> {
    let names = || Peer::ALL.map(Peer::name).join(", ");
    Peer::from_name(text).ok_or_else(|| format!("it is none of {}", names()))
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == 'µ');
    let unit = match &text[digits.len()..] {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" => 1e-6,
        _ => return Err("it is not a time, such as 5ms, 800us or 1s".to_owned()),
    };
    let value = digits.parse::<f64>().ok().map(|value| value * unit).filter(|v| (0.0..=60.0).contains(v));
    value.map(std::time::Duration::from_secs_f64).ok_or_else(|| "it is not a time from 0 to 60s".to_owned())
}
