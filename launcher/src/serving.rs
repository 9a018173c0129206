//! The job's rendezvous, as supervision sees it.

use windlass::{PeerCause, Server};

use crate::cli::RunArguments;
use crate::run::{ExitCause, JobId, Rendezvous};

/// A server in a thread of this process.
#[derive(Debug)]
pub(crate) struct Serving(Server);

impl Serving {
    /// Opens the rendezvous of a job before its ranks start.
    pub(crate) fn open(arguments: &RunArguments, job: &JobId) -> Result<Self, windlass::JoinError> {
        let ranks = u32::try_from(arguments.rank_count()).unwrap_or(u32::MAX);
        Server::start(ranks, &job.to_string()).map(Self)
    }
}

impl Rendezvous for Serving {
    fn address(&self) -> String {
        self.0.address().to_owned()
    }

    fn joined(&self) -> usize {
        self.0.joined()
    }

    fn rank_exited(&self, rank: usize, cause: &ExitCause) {
        let cause = match *cause {
            ExitCause::Code(code) => PeerCause::Exited(code),
            ExitCause::Signal { number, .. } => PeerCause::Killed(number),
            ExitCause::NeverJoined => PeerCause::Exited(0),
        };
        self.0.rank_exited(u32::try_from(rank).unwrap_or(u32::MAX), cause);
    }

    fn metrics_text(&self) -> Option<String> {
        self.0.metrics_text()
    }

    fn states(&self) -> Vec<String> {
        self.0.states()
    }
}
