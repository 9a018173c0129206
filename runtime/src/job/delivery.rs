//! Completions of messages, from the transport to whom they are for.

use std::sync::atomic::Ordering;

use windlass_transports::{Event, LostCause};

use super::Job;
use crate::engine::Stream;
use crate::error::{Error, PeerCause};
use crate::group::{Group, lock};

impl Job {
    /// Polls the transport and hands events to the groups they are for; those of `group` go to `stream`. Whether `group` got any.
    pub(crate) fn deliver(&self, group: &Group, stream: &mut Stream) -> Result<bool, Error> {
        if self.messages.is_none() {
            return Ok(false);
        }
        let mut mine = std::mem::take(&mut stream.events);
        if group.has_mail.load(Ordering::Acquire) {
            let mut inbox = lock(&group.inbox);
            group.has_mail.store(false, Ordering::Relaxed);
            mine.append(&mut inbox);
        }
        let moved = self.poll_messages(Some(group), &mut mine);
        let unstaged = group.unstage(&mut mine);
        let mut delivered: Result<bool, Error> = Ok(false);
        for event in mine.drain(..) {
            delivered = delivered.and_then(|before| Ok(hand_over(group, stream, event)? || before));
        }
        stream.events = mine;
        Ok(unstaged? | delivered? | moved)
    }

    /// Polls the transport; events of `mine`'s group are appended, the others put into their groups' inboxes.
    pub(crate) fn poll_messages(&self, group: Option<&Group>, mine: &mut Vec<Event>) -> bool {
        let Some(messages) = &self.messages else { return false };
        // Somebody else polls: what is ours comes by the inbox.
        let Ok(mut messages) = messages.try_lock() else { return false };
        let before = mine.len();
        let mut moved = messages.poll(mine);
        // The answer is often under way: leaving and coming back would take longer than it does.
        for _ in 0..self.glances {
            if moved {
                break;
            }
            std::hint::spin_loop();
            moved = messages.poll(mine);
        }
        // Under the transport's lock, so that breaks are heard of in their order.
        let heard = self.tend(&mut **messages, &mine[before..]);
        moved |= self.mend(&mut **messages);
        drop(messages);
        self.pass_on(&heard);
        if mine.len() == before {
            return moved;
        }
        let own = |event: &Event| match event {
            Event::Sent(t) | Event::Received(t) | Event::Mismatch { token: t, .. } => {
                group.is_some_and(|g| Group::slot_of(*t) == g.slot())
            }
            _ => false,
        };
        let (mut index, mut others) = (before, false);
        while index < mine.len() {
            if own(&mine[index]) {
                index += 1;
                continue;
            }
            match mine.swap_remove(index) {
                Event::Lost { peer, cause } => self.lost(peer, peer_cause(&cause)),
                // The receiver has found the mismatch and tells all members by the rendezvous; streams have been tended.
                Event::Refused { .. } | Event::Broken { .. } | Event::Reopened { .. } => {}
                // Whoever receives from any source looks again.
                Event::Arrived { .. } => {
                    self.arrivals.fetch_add(1, Ordering::Release);
                    others = true;
                }
                event => {
                    let (Event::Sent(t) | Event::Received(t) | Event::Mismatch { token: t, .. }) = &event
                    else {
                        continue;
                    };
                    // A communicator that is gone had withdrawn its messages.
                    if let Some(other) = self.group_at(Group::slot_of(*t)) {
                        let mut inbox = lock(&other.inbox);
                        inbox.push(event);
                        other.has_mail.store(true, Ordering::Release);
                        others = true;
                    }
                }
            }
        }
        if others {
            // Whoever waits for it may sleep, and no peer will wake him.
            self.ring_self();
        }
        moved
    }

    pub(super) fn lost(&self, peer: u32, cause: PeerCause) {
        let mut dead = lock(&self.dead);
        dead.entry(peer).or_insert((cause, self.now()));
        self.dead_count.store(dead.len() as u32, Ordering::Release);
    }
}

/// How often a transport that asks the system for nothing is polled before anything else is done.
pub(super) const GLANCES: u32 = 16;

/// Why a peer failed whose stream ended so.
pub(super) fn peer_cause(cause: &LostCause) -> PeerCause {
    match cause {
        LostCause::Closed => PeerCause::Vanished,
        LostCause::System { errno, .. } | LostCause::Device { errno, .. } => PeerCause::Unreachable(*errno),
        LostCause::Renewed => PeerCause::Unreachable(rustix::io::Errno::CANCELED.raw_os_error()),
        LostCause::Garbled(_) => PeerCause::Unreachable(rustix::io::Errno::BADMSG.raw_os_error()),
    }
}

/// Gives an event to its stream or transfer. Whether it moved something.
fn hand_over(group: &Group, stream: &mut Stream, event: Event) -> Result<bool, Error> {
    match event {
        Event::Sent(token) | Event::Received(token) if Group::is_transfer(token) => {
            let ended = lock(&group.transfers).delivered(group, token);
            if let Some(ended) = ended {
                group.job.acknowledge();
                stream.recorder.record(&ended.series, ended.started);
                stream.settle_later(ended.waker, ended.memory);
            }
            Ok(true)
        }
        Event::Sent(token) | Event::Received(token) => {
            stream.delivered(token);
            Ok(true)
        }
        Event::Mismatch { token, peer, theirs } if Group::is_transfer(token) => {
            Err(lock(&group.transfers).mismatched(group, token, peer, &theirs))
        }
        Event::Mismatch { peer, theirs, .. } => Err(stream.mismatched(group, peer, theirs.fingerprint)),
        _ => Ok(false),
    }
}
