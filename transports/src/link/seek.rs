//! Messages that nobody waits for yet: in which order they came, and how to hear of one without a receive.

use std::sync::atomic::{AtomicU64, Ordering};

use super::depart::Departing;
use super::wire::Kind;
use super::{Garbled, Link, arrive::Incoming};
use crate::Event;
use crate::message::{COLLECTIVE_TAG, Message, MessageId};

/// Messages that came before their receives, over all peers: only the order of its values means anything, and only within a rank.
static ARRIVALS: AtomicU64 = AtomicU64::new(0);

impl Link {
    /// See [`Transport::seek`](crate::Transport::seek).
    pub fn seek(&mut self, id: &MessageId) -> Option<u64> {
        if let Some(Incoming::Announced { order, .. } | Incoming::Buffered { order, posted: None, .. }) =
            self.incoming.get(id)
        {
            return Some(*order);
        }
        self.sought.insert(*id);
        if self.stalled > 0 && self.classes.of(id, &self.limits).peer_stalled {
            self.ask(id);
        }
        None
    }

    /// Has a stalled peer announce a message that is sought.
    pub(super) fn ask(&mut self, id: &MessageId) {
        if self.asked.insert(*id) {
            self.notify(Kind::Seek, &Message { id: *id, fingerprint: [0; 2], bytes: 0 });
        }
    }

    /// A message came before its receive. Its place in the order of such arrivals; those of collectives need none.
    pub(super) fn unexpected(&mut self, id: &MessageId, events: &mut Vec<Event>) -> u64 {
        if id.tag == COLLECTIVE_TAG {
            return 0;
        }
        if !self.sought.is_empty() && self.sought.remove(id) {
            events.push(Event::Arrived { peer: self.peer, id: *id });
        }
        ARRIVALS.fetch_add(1, Ordering::Relaxed)
    }

    /// The peer seeks a message: announced beyond the limit if it waits, or as soon as it is posted. What is known to the peer, or has left,
    /// needs nothing; of what has left the peer says so.
    pub(super) fn seek_arrived(&mut self, id: &MessageId) -> Result<(), Garbled> {
        match self.departing.remove(id) {
            Some(Departing::Waiting(sending)) => {
                self.stop_waiting(&sending.message());
                self.found(sending);
            }
            Some(other) => {
                self.departing.insert(*id, other);
            }
            None => self.expect(*id, Departing::Sought)?,
        }
        Ok(())
    }

    pub(super) fn forget_arrived(&mut self, id: &MessageId) {
        if let Some(Departing::Sought) = self.departing.get(id) {
            self.departing.remove(id);
        }
    }
}
