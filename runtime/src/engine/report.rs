//! What an operation waits for, in words and ranks: for errors and for reports of stalls.

use windlass_collectives::{Action, Peers};

use crate::error::{Error, PeerCause};
use crate::group::{Group, Limit, lock};
use crate::scheduler::RegionName;

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
                // Who has come, but whose memory is not known yet, is waited for, too.
                0 => {
                    board.arrival(q as usize, active.sequence).ready(active.sequence) <= wait.done
                        || self.lent[q as usize].known != active.sequence + 1
                }
                2 => board.relayed(q as usize).reached(active.sequence, wait.total) <= wait.done,
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
        if let Some(attached) = group.job.attached.get() {
            let regions = attached.regions();
            let shadowed = self.shadow.iter().flat_map(|shadow| shadow.slots());
            let shadowed =
                shadowed.map(|slot| RegionName { owner: attached.rank(), segment: regions.segment(slot) });
            for name in self.flights.awaited().chain(shadowed) {
                ranks.extend(regions.waiting_on(name));
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
            (None, Some(pending)) => {
                (pending.plan.call.collective.name(), self.next - self.queue.len() as u64)
            }
            (None, None) => ("no operation", self.next),
        }
    }

    /// Of the operations with a time limit of their own, whose is over first: the limit, the operation and its number.
    pub(crate) fn first_limit(&self) -> Option<(Limit, &'static str, u64)> {
        let first = self.next - self.queue.len() as u64;
        let active = self.active.iter().map(|active| (active.limit, &active.plan, active.sequence));
        let queued = self.queue.iter().zip(first..).map(|(pending, n)| (pending.limit, &pending.plan, n));
        let limited =
            active.chain(queued).filter_map(|(limit, plan, sequence)| Some((limit?, plan, sequence)));
        let soonest = limited.min_by_key(|(limit, ..)| limit.until())?;
        Some((soonest.0, soonest.1.call.collective.name(), soonest.2))
    }

    /// How far the operation under way is, in words.
    pub(crate) fn position(&self) -> String {
        let Some((action, done, total)) = self.execution.as_ref().and_then(|e| e.position()) else {
            return "not begun".to_owned();
        };
        format!("at `{action}`, {done} of {total} chunks")
    }

    /// The error that peer `rank`'s end means for the operation under way, or for a message if there is none.
    pub(crate) fn peer_failed(&self, group: &Group, rank: u32, cause: PeerCause) -> Error {
        let message = if self.has_work() { None } else { lock(&group.transfers).doing() };
        let (operation, sequence) = message.unwrap_or_else(|| self.doing());
        Error::PeerFailed { rank, cause, operation, sequence, communicator: group.id }
    }
}
