//! Receives from any source: whose message is taken.
//!
//! Messages of one peer and tag are numbered, so a receive from any source gets its number when it is known whose message it takes: the next one of the peer
//! whose next one came first. That is fair: a message is passed over only by those that came before it. Until then every later receive of its tag
//! waits behind it, as receives are matched in the order of their calls.

use std::sync::atomic::{AtomicU32, Ordering};

use windlass_transports::MessageId;

use super::{ANY_SOURCE, Request, Transfers};
use crate::group::Group;

impl Transfers {
    /// Gives numbers to the receives that can have one. Whether any could.
    pub(super) fn match_receives(&mut self, group: &Group) -> bool {
        // What arrives from here on is looked for again.
        group.looked.store(group.job.arrivals.load(Ordering::Acquire), Ordering::Relaxed);
        let (mut matched, mut at) = (false, 0);
        while let Some(&index) = self.unmatched.get(at) {
            let Some(Some(transfer)) = self.table.get(index as usize) else { return matched };
            let Request { peer, tag, .. } = transfer.request;
            // One before it found nothing of the tag, so nobody has sent anything for this one either.
            let of_tag =
                |index: &u32| self.table[*index as usize].as_ref().is_some_and(|t| t.request.tag == tag);
            let peer = match peer {
                _ if self.unmatched.iter().take(at).any(of_tag) => None,
                ANY_SOURCE => self.first_to_send(group, tag),
                peer => Some(peer),
            };
            let Some(peer) = peer else {
                at += 1;
                continue;
            };
            self.unmatched.remove(at);
            self.take_from(group, index, peer);
            matched = true;
        }
        matched
    }

    /// Who sent the earliest message of a tag that nobody has received.
    fn first_to_send(&self, group: &Group, tag: u32) -> Option<u32> {
        let next = |peer: u32| {
            let sequence = self.numbers.get(&(peer, tag, false)).copied().unwrap_or_default();
            let id = MessageId { communicator: group.id, tag, sequence, label: 0, chunk: 0 };
            (group.members[peer as usize], id)
        };
        let peers = (0..group.ranks).filter(|peer| *peer != group.rank);
        let sender = group.job.earliest(peers.map(next))?;
        group.members.iter().position(|member| *member == sender).map(|peer| peer as u32)
    }

    fn take_from(&mut self, group: &Group, index: u32, peer: u32) {
        let Some(Some(transfer)) = self.table.get_mut(index as usize) else { return };
        (transfer.request.peer, transfer.request.call.root) = (peer, peer);
        if !transfer.request.source.is_null() {
            // SAFETY: who asks for the source keeps its place valid until the operation ends, and reads it only then; the place is that of a `u32`,
            // which an atomic is as well.
            unsafe { (*transfer.request.source.cast::<AtomicU32>()).store(peer, Ordering::Relaxed) };
        }
        self.number(group, index);
    }
}
