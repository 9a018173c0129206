//! What the launcher asks of the rendezvous server, which lives in a thread of the launcher's process.

use std::fmt;

use super::signals;

/// The job's meeting point, as far as supervision needs it.
///
/// No method may block: supervision calls them between two events of the job.
pub(crate) trait Rendezvous {
    /// Where ranks find it; they read it from `WINDLASS_RENDEZVOUS`.
    fn address(&self) -> String;
    /// How many ranks have joined so far. It never decreases.
    fn joined(&self) -> usize;
    /// A rank has ended. Called for each rank in order of death, so the first call with a failing cause names the
    /// culprit that surviving ranks are to be told about. A rank that exits with code 0 while nobody has joined is
    /// reported again, as [`ExitCause::NeverJoined`], when another one joins.
    fn rank_exited(&self, rank: usize, cause: &ExitCause);
    /// The job's metrics in Prometheus' text format.
    fn metrics_text(&self) -> Option<String>;
    /// What each rank was doing, one line per rank; empty where that is unknown.
    fn states(&self) -> Vec<String>;
}

/// How a rank ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExitCause {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it.
    Signal {
        /// The signal's number.
        number: i32,
        /// Whether the kernel wrote a core dump.
        core_dumped: bool,
    },
    /// It exited with code 0 before joining a job that others have joined.
    NeverJoined,
}

impl ExitCause {
    /// Reads a status as `waitpid` reports it.
    pub(crate) fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal { number: libc::WTERMSIG(status), core_dumped: libc::WCOREDUMP(status) }
        } else {
            Self::Code(libc::WEXITSTATUS(status))
        }
    }

    /// Whether the job can no longer succeed.
    pub(crate) fn is_failure(&self) -> bool {
        *self != Self::Code(0)
    }

    /// What the launcher exits with when this is the first failure.
    pub(crate) fn exit_code(&self) -> u8 {
        match *self {
            // Wait statuses carry eight bits, so the conversion never fails for real causes.
            Self::Code(code) => u8::try_from(code).unwrap_or(1),
            Self::Signal { number, .. } => u8::try_from(128 + number).unwrap_or(1),
            Self::NeverJoined => 1,
        }
    }
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal { number, core_dumped } => {
                write!(f, "was killed by signal {number} ({})", signals::name(number))?;
                if core_dumped { f.write_str(" and dumped core") } else { Ok(()) }
            }
            Self::NeverJoined => {
                f.write_str("exited with code 0 without joining the job that others had joined")
            }
        }
    }
}
