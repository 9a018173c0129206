//! Messages that do not come: what is under way, for whom it waits, and when that is an error.

use std::time::Duration;

use super::{ANY_SOURCE, Transfer, Transfers};
use crate::error::{Error, PeerCause};
use crate::group::{Group, LOOK_AGAIN, STALL_AFTER};

impl Transfers {
    /// A message that is under way, for errors: send or recv, and its number.
    pub(crate) fn doing(&self) -> Option<(&'static str, u64)> {
        let transfer = self.table.iter().flatten().find(|transfer| !transfer.done)?;
        Some((transfer.request.call.collective.name(), transfer.sequence))
    }

    /// The message that is late, in words and numbers, if one is; else after how long at most this is to be asked again.
    pub(super) fn late(&mut self, group: &Group) -> Result<Duration, Error> {
        let config = &group.job.config;
        let now = group.job.now();
        let mut again = LOOK_AGAIN;
        for transfer in self.table.iter().flatten().filter(|t| !t.done) {
            let Some(Some(exchange)) = self.exchanges.get_mut(transfer.exchange as usize) else { continue };
            let after = now.duration_since(*exchange.since.get_or_insert(now));
            let report_after = Some(config.report_after).filter(|time| !time.is_zero());
            let timeout = transfer.request.timeout.unwrap_or(config.timeout);
            again = again.min(timeout.saturating_sub(after));
            if after < STALL_AFTER.min(timeout).min(report_after.unwrap_or(STALL_AFTER)) {
                continue;
            }
            let waiting_on = transfer.awaited(group);
            let (operation, sequence) = (transfer.request.call.collective.name(), transfer.sequence);
            if after >= STALL_AFTER
                && let Some((rank, cause)) = group.job.culprit(&waiting_on, &group.members)
                && !transfer.may_yet_come(group, &waiting_on, &cause)
            {
                return Err(Error::PeerFailed { rank, cause, operation, sequence, communicator: group.id });
            }
            if after >= timeout {
                return Err(Error::TimedOut {
                    operation,
                    sequence,
                    communicator: group.id,
                    waiting_on,
                    after,
                });
            }
            if report_after.is_some_and(|time| after >= time) && !exchange.reported {
                exchange.reported = true;
                crate::error::report(format_args!(
                    "rank {} has waited {after:.1?} in {operation} #{sequence} (tag {}) of communicator {} for rank(s) {waiting_on:?}",
                    group.job.rank, transfer.request.tag, group.id
                ));
            }
        }
        Ok(again)
    }
}

impl Transfer {
    /// The ranks of the job that it waits for.
    pub(super) fn awaited(&self, group: &Group) -> Vec<u32> {
        match self.request.peer {
            ANY_SOURCE => group.members.iter().copied().filter(|member| *member != group.job.rank).collect(),
            peer => vec![group.members[peer as usize]],
        }
    }

    /// Whether somebody is left who may send what it waits for. A peer that crashed may have been the one; one that left had nothing more to say.
    pub(super) fn may_yet_come(&self, group: &Group, awaited: &[u32], cause: &PeerCause) -> bool {
        self.request.peer == ANY_SOURCE
            && *cause == PeerCause::Left
            && awaited.iter().any(|peer| group.job.dead_among(&[*peer]).is_none())
    }
}
