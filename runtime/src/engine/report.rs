//! What an operation waits for, in words and ranks: for errors and for reports of stalls.

use windlass_collectives::{Action, Execution, Peers};

use crate::error::{Error, PeerCause};
use crate::group::Group;

use super::Stream;

impl Stream {
    /// Ranks of the job that the operation under way waits for.
    pub(crate) fn waiting_on(&self, group: &Group) -> Vec<u32> {
        let mut ranks = Vec::new();
        let Some(active) = &self.active else {
            // The head waits for peers that are too far behind.
            let behind =
                |q: &u32| group.board.as_ref().is_some_and(|b| b.ended(*q as usize).load() <= self.released);
            return (0..group.ranks)
                .filter(|q| *q != group.rank)
                .filter(behind)
                .map(|q| group.members[q as usize])
                .collect();
        };
        for (slot, wait) in self.waits.iter().enumerate() {
            let (Some(wait), Some(board)) = (wait, &group.board) else { continue };
            let late = |q: u32| match slot {
                0 => board.arrival(q as usize, active.sequence).ready(active.sequence) <= wait.done,
                _ => board.done(q as usize).reached(active.sequence, wait.total) <= wait.done,
            };
            let waited = (0..group.ranks).filter(|&q| {
                q != group.rank && matches!(wait.from, Peers::All) || wait.from == Peers::One(q)
            });
            ranks.extend(waited.filter(|&q| late(q)).map(|q| group.members[q as usize]));
        }
        if let Some(execution) = &self.execution {
            for (step, _) in execution.in_flight() {
                if let Action::Send { to: q, .. } | Action::Recv { from: q, .. } =
                    execution.schedule().step(step).action
                {
                    ranks.push(group.members[q as usize]);
                }
            }
        }
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    /// What the stream is doing, for errors and reports: operation and number.
    pub(crate) fn doing(&self) -> (&'static str, u64) {
        match (&self.active, self.queue.front()) {
            (Some(active), _) => (active.plan.call.collective.name(), active.sequence),
            (None, Some(pending)) => (pending.call.collective.name(), self.next - self.queue.len() as u64),
            (None, None) => ("no operation", self.next),
        }
    }

    /// How far the operation under way is, in words.
    pub(crate) fn position(&self) -> String {
        let Some((action, done, total)) = self.execution.as_ref().and_then(Execution::position) else {
            return "not begun".to_owned();
        };
        format!("at `{action}`, {done} of {total} chunks")
    }

    /// The error that peer `rank`'s end means for the operation under way.
    pub(crate) fn peer_failed(&self, group: &Group, rank: u32, cause: PeerCause) -> Error {
        let (operation, sequence) = self.doing();
        Error::PeerFailed { rank, cause, operation, sequence, communicator: group.id }
    }
}
