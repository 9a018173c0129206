//! `windlass tune`: measures the constants of the cost model on this machine, by running what they describe.
//!
//! Every figure comes from `windlass bench`, with the algorithm overridden where the model compares
//! algorithms: so a constant holds what the runtime makes of the machine, not what the machine could do.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::MemfdFlags;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use windlass::numa;
use windlass::{Model, ModelFile};

use crate::bench::Row;

pub(crate) const EXAMPLES: &str = "\
Examples:
  windlass tune                              writes ~/.config/windlass/model.toml
  windlass tune -n 4 -o model.toml
  WINDLASS_MODEL=model.toml windlass run -n 4 -- ./train
  WINDLASS_MODEL=model.toml windlass explain all_reduce -n 4 -b 64K

It takes about half a minute, on a machine that should be idle. All ranks of a job must have the same model: copy the
file to every host, or keep it where all see it.";

/// Benches that are run, for the bar; and those between NUMA nodes.
const JOBS: u64 = 14;
const JOBS_ACROSS: u64 = 4;

/// Sizes among which the crossover between publishing and reaching directly is sought.
const CROSSOVER: [u64; 8] = [256, 512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10];

/// The flags of `windlass tune`.
#[derive(Debug, Clone, Args)]
pub(crate) struct TuneArguments {
    /// How many ranks to measure with.
    #[arg(short = 'n', long = "ranks", value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(2..=64))]
    ranks: u32,
    /// The file to write [default: windlass/model.toml in $XDG_CONFIG_HOME or ~/.config].
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `windlass tune`.
pub(crate) fn tune(arguments: &TuneArguments) -> ExitCode {
    let Some(path) = arguments.output.clone().or_else(default_path) else {
        return refuse("neither XDG_CONFIG_HOME nor HOME says where the model goes: use -o FILE");
    };
    // Tried now: half a minute is too long to learn of a wrong path.
    if let Err(error) = prepare(&path) {
        return refuse(&format!("{} cannot be written: {error}", path.display()));
    }
    let tuning = Tuning { ranks: arguments.ranks as usize, bar: bar() };
    let model = match tuning.on_nodes() {
        Ok(model) => model,
        Err(code) => return code,
    };
    tuning.bar.finish_and_clear();
    let text = ModelFile::from(model).to_text();
    if let Err(error) = std::fs::write(&path, &text) {
        return refuse(&format!("{} cannot be written: {error}", path.display()));
    }
    println!("{text}");
    println!("written to {0}; use it by WINDLASS_MODEL={0}", path.display());
    ExitCode::SUCCESS
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("windlass: {problem}");
    ExitCode::from(2)
}

fn default_path() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(folder.join("windlass/model.toml"))
}

fn prepare(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let existed = path.exists();
    File::options().append(true).create(true).open(path)?;
    if existed { Ok(()) } else { std::fs::remove_file(path) }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(JOBS);
    // The one template is known to be right; a bar without style still counts.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}") {
        bar.set_style(style);
    }
    bar
}

struct Tuning {
    ranks: usize,
    bar: ProgressBar,
}

/// One bench: what is measured, and what is overridden.
struct Job<'a> {
    what: &'static str,
    collective: &'static str,
    sizes: &'a [u64],
    transport: &'static str,
    memory: &'static str,
    algorithm: &'a str,
}

impl Job<'_> {
    const fn over_tcp() -> Self {
        Job {
            what: "",
            collective: "all_reduce",
            sizes: &[],
            transport: "tcp",
            memory: "registered",
            algorithm: "auto",
        }
    }
}

impl Tuning {
    /// Measures on one NUMA node; where there are more, then what two of them add.
    fn on_nodes(&self) -> Result<Model, ExitCode> {
        let far_ranks = self.ranks / 2;
        let nodes = wide_nodes(&usable_cpus(), numa::node_of_cpu);
        let (near, far) = match &nodes[..] {
            [near, far] if near.len() >= self.ranks && far.len() >= far_ranks => (near, far),
            _ => return self.model(),
        };
        self.bar.inc_length(JOBS_ACROSS);
        // The benches' ranks inherit what this thread may use, and each takes one CPU of that.
        let both = [&near[..self.ranks - far_ranks], &far[..far_ranks]].concat();
        keep_to(near);
        let mut model = self.model()?;
        let sizes = [256 << 10, 4 << 20];
        let times = |cpus: &[usize]| {
            keep_to(cpus);
            let flags = self.all_reduce("flags between nodes", &[8], "publish", &model)?;
            let bytes = self.all_reduce("bytes between nodes", &sizes, "direct", &model)?;
            Ok::<_, ExitCode>((flags[0], slope(&sizes, &bytes)))
        };
        (model.node_flag_ns, model.node_byte_ns) = apart(times(near)?, times(&both)?, self.ranks);
        Ok(model)
    }

    fn model(&self) -> Result<Model, ExitCode> {
        // Wide enough that both ways can serve every size that is compared.
        let mut model = Model { slot_bytes: CROSSOVER[CROSSOVER.len() - 1], ..Model::default() };
        let published = self.all_reduce("publishing", &CROSSOVER, "publish", &model)?;
        let direct = self.all_reduce("reaching directly", &CROSSOVER, "direct", &model)?;
        // The second exchange is what the smallest size pays for reaching directly.
        let exchange = (direct[0] - published[0]).max(10.0);
        let sharing = self.ranks.div_ceil(std::thread::available_parallelism().map_or(1, usize::from));
        if sharing > 1 {
            model.switch_ns = exchange / sharing as f64;
        } else {
            model.flag_ns = exchange;
        }
        let pairs = CROSSOVER.iter().zip(published.iter().zip(&direct));
        // Within the noise publishing is preferred: it serves heap memory as well as registered.
        let last = pairs.rev().find(|(_, (publish, direct))| **publish <= 1.03 * **direct);
        model.slot_bytes = last.map_or(CROSSOVER[0], |(bytes, _)| *bytes);
        let sizes = [16 << 10, 256 << 10];
        let large = self.all_reduce("a cached byte", &sizes, "direct", &model)?;
        model.cached_byte_ns = slope(&sizes, &large).max(1e-4) / 2.0;
        model.line_ns = self.line_ns(&model)?;
        let sizes = [8, 1 << 20];
        let messages = Job { what: "messages", collective: "send", sizes: &sizes, ..Job::over_tcp() };
        let messages = self.times(&model, &messages)?;
        model.message_ns = messages[0];
        model.message_byte_ns = slope(&sizes, &messages).max(1e-4);
        model.reduce_byte_ns = reduce_byte_ns();
        model.stage_chunk_bytes = self.best(&[16, 32, 64, 128, 256], |bytes| {
            let candidate = Model { stage_chunk_bytes: bytes, ..model };
            let sizes = [256 << 10, 2 << 20];
            let over = Job { transport: "shm", memory: "heap", ..Job::over_tcp() };
            self.times(&candidate, &Job { what: "the stage's chunk", sizes: &sizes, ..over })
        })?;
        model.chunk_bytes = self.best(&[32, 64, 128, 256, 512], |bytes| {
            let candidate = Model { chunk_bytes: bytes, ..model };
            let sizes = [256 << 10, 4 << 20];
            self.times(&candidate, &Job { what: "the message's chunk", sizes: &sizes, ..Job::over_tcp() })
        })?;
        Ok(model)
    }

    fn all_reduce(
        &self,
        what: &'static str,
        sizes: &[u64],
        algorithm: &str,
        model: &Model,
    ) -> Result<Vec<f64>, ExitCode> {
        self.times(model, &Job { what, sizes, transport: "shm", algorithm, ..Job::over_tcp() })
    }

    /// Medians in nanoseconds, one for each size. The bench is a process of its own: a launcher runs one job.
    fn times(&self, model: &Model, job: &Job<'_>) -> Result<Vec<f64>, ExitCode> {
        self.bar.set_message(job.what);
        self.bar.inc(1);
        let failed = |error: &dyn std::fmt::Display| refuse(&format!("measuring {}: {error}", job.what));
        let (_constants, constants) =
            in_memory(&ModelFile::from(*model).to_text()).map_err(|error| failed(&error))?;
        let (mut results, path) = in_memory("").map_err(|error| failed(&error))?;
        let executable = std::env::current_exe().map_err(|error| failed(&error))?;
        let (first, last) = (job.sizes[0], job.sizes[job.sizes.len() - 1]);
        let factor = job.sizes.get(1).map_or(2, |second| second / first);
        let mut command = Command::new(executable);
        command.args(["bench", job.collective, "-n", &self.ranks.to_string()]);
        command.args(["-b", &first.to_string(), "-e", &last.to_string(), "-f", &factor.to_string()]);
        command.args(["--transport", job.transport, "--memory", job.memory, "--json", &path]);
        command.env("WINDLASS_MODEL", constants).env("WINDLASS_ALGORITHM", job.algorithm);
        let output = command.stdin(Stdio::null()).output().map_err(|error| failed(&error))?;
        if !output.status.success() {
            return Err(failed(&String::from_utf8_lossy(&output.stderr).trim()));
        }
        let mut text = String::new();
        results.rewind().and_then(|()| results.read_to_string(&mut text)).map_err(|error| failed(&error))?;
        let rows: Vec<Row> = serde_json::from_str(&text).map_err(|error| failed(&error))?;
        Ok(rows.iter().map(|row| row.median_us * 1e3).collect())
    }

    /// One peer's line more: where there are cores for two more ranks. Elsewhere the shipped constant stays.
    fn line_ns(&self, model: &Model) -> Result<f64, ExitCode> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if cores < self.ranks + 2 {
            return Ok(Model::default().line_ns);
        }
        let few = self.all_reduce("a line", &[8], "publish", model)?;
        let more = Self { ranks: self.ranks + 2, bar: self.bar.clone() };
        let many = more.all_reduce("a line", &[8], "publish", model)?;
        Ok(((many[0] - few[0]) / 2.0).max(0.0))
    }

    /// The size whose times, relative to the best of each column, are the smallest together.
    fn best(&self, kib: &[u64], times: impl Fn(u64) -> Result<Vec<f64>, ExitCode>) -> Result<u64, ExitCode> {
        let all: Vec<Vec<f64>> = kib.iter().map(|kib| times(kib << 10)).collect::<Result<_, _>>()?;
        let columns = all.first().map_or(0, Vec::len);
        let least = |column: usize| all.iter().map(|row| row[column]).fold(f64::INFINITY, f64::min);
        let score = |row: &[f64]| (0..columns).map(|column| row[column] / least(column)).sum::<f64>();
        let best = kib.iter().zip(&all).min_by(|a, b| score(a.1).total_cmp(&score(b.1)));
        Ok(best.map_or(64, |(kib, _)| *kib) << 10)
    }
}

/// What an exchange of flags and a byte take more between nodes than on one, from a published all_reduce and the slope of a direct one: ranks on two
/// nodes read, and write, their parts of the others' vectors over one link.
fn apart(near: (f64, f64), across: (f64, f64), ranks: usize) -> (f64, f64) {
    let more = |near: f64, across: f64| (across - near).max(0.0);
    let pairs = (ranks / 2) * (ranks - ranks / 2);
    (more(near.0, across.0), more(near.1, across.1) * ranks as f64 / (2 * pairs) as f64)
}

/// The CPUs of the two NUMA nodes that have most of these; fewer where there are fewer.
fn wide_nodes(cpus: &[usize], node_of_cpu: impl Fn(u32) -> Option<u32>) -> Vec<Vec<usize>> {
    let mut nodes = std::collections::BTreeMap::<u32, Vec<usize>>::new();
    for &cpu in cpus {
        if let Some(node) = node_of_cpu(cpu as u32) {
            nodes.entry(node).or_default().push(cpu);
        }
    }
    let mut widest: Vec<_> = nodes.into_values().collect();
    widest.sort_by_key(|cpus| std::cmp::Reverse(cpus.len()));
    widest.truncate(2);
    widest
}

fn usable_cpus() -> Vec<usize> {
    // Fails on hosts with more CPUs than the set holds: then they count as one node.
    let Ok(usable) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&cpu| usable.is_set(cpu)).collect()
}

fn keep_to(cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    // They are some of those that it may use already.
    let _ = sched_setaffinity(None, &set);
}

/// Nanoseconds per byte from the first size to the last.
fn slope(sizes: &[u64], ns: &[f64]) -> f64 {
    let last = sizes.len() - 1;
    (ns[last] - ns[0]) / (sizes[last] - sizes[0]) as f64
}

/// A file without a name in any file system, and how the ranks open it.
fn in_memory(text: &str) -> std::io::Result<(File, String)> {
    let mut file = File::from(rustix::fs::memfd_create("windlass-model", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    Ok((file, path))
}

/// Adding what has arrived to what is there, both in the second cache.
fn reduce_byte_ns() -> f64 {
    const FLOATS: usize = 32 << 10;
    const ROUNDS: usize = 200;
    let arrived = vec![1.0_f32; FLOATS];
    let mut own = vec![0.0_f32; FLOATS];
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for (own, arrived) in own.iter_mut().zip(&arrived) {
            *own += arrived;
        }
        std::hint::black_box(&mut own);
        best = best.min(start.elapsed().as_nanos() as f64);
    }
    best / (FLOATS * size_of::<f32>()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_per_byte() {
        assert_eq!(slope(&[8, 1008], &[100.0, 600.0]), 0.5);
    }

    #[test]
    fn what_two_nodes_add_is_never_less_than_nothing() {
        assert_eq!(apart((200.0, 0.04), (320.0, 0.10), 4), (120.0, (0.10 - 0.04) / 2.0));
        assert_eq!(apart((200.0, 0.04), (190.0, 0.03), 2), (0.0, 0.0));
    }

    #[test]
    fn the_widest_nodes_are_measured() {
        let node = |cpu| (cpu < 9).then_some(u32::from(cpu > 1) + u32::from(cpu > 5));
        let all: Vec<usize> = (0..12).collect();
        assert_eq!(wide_nodes(&all, node), [vec![2, 3, 4, 5], vec![6, 7, 8]]);
        assert_eq!(wide_nodes(&[0, 1, 11], node), [[0, 1]]);
    }

    #[test]
    fn adding_takes_time() {
        assert!((0.001..100.0).contains(&reduce_byte_ns()));
    }
}
