//! Credits: how much a rank may send before its peer asked for it.
//!
//! Each class (a communicator's collectives, or its users' messages) has a window of its own in each direction, so a
//! stuck communicator starves no other, and users' messages starve no collective.

use std::collections::VecDeque;

use super::table::ByClass;
use crate::message::{COLLECTIVE_TAG, MessageId};

/// What both ends of a link must agree on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Larger messages wait for their receive.
    pub eager_bytes: u32,
    /// Payload bytes per class that may be on their way or unclaimed at the receiver.
    pub credit_bytes: u32,
    /// Messages per class, likewise.
    pub credit_messages: u32,
    /// Announcements per class, likewise.
    pub announcements: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { eager_bytes: 64 << 10, credit_bytes: 512 << 10, credit_messages: 256, announcements: 256 }
    }
}

impl Limits {
    /// Messages up to this size are copied when they leave, where the pipe can break; larger ones are acknowledged at once.
    pub const fn copied_bytes(&self) -> usize {
        const MOST: u32 = 64 << 10;
        if self.eager_bytes < MOST { self.eager_bytes as usize } else { MOST as usize }
    }
}

/// Names a class.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub(super) struct ClassKey {
    pub(super) communicator: u32,
    pub(super) collective: u8,
}

impl ClassKey {
    pub(super) fn of(id: &MessageId) -> Self {
        Self { communicator: id.communicator, collective: u8::from(id.tag == COLLECTIVE_TAG) }
    }
}

/// Bytes and messages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Amount {
    pub(super) bytes: u32,
    pub(super) messages: u32,
}

/// One class's accounts with this peer.
#[derive(Debug)]
pub(super) struct Class {
    /// As a sender: what may still be sent.
    pub(super) available: Amount,
    /// As a sender: announcements that the peer has not answered.
    pub(super) announced: u32,
    /// As a sender: messages that may not even be announced yet, in order.
    pub(super) waiting: VecDeque<MessageId>,
    /// As a receiver: what arrived and was not given back.
    pub(super) held: Amount,
    /// As a receiver: the part of `held` whose memory is free again, to be given back with the next frame.
    pub(super) owed: Amount,
    /// As a receiver: announcements not answered.
    pub(super) announcements: u32,
    /// As a receiver: the peer has messages it may not announce.
    pub(super) peer_stalled: bool,
}

impl Class {
    fn new(limits: &Limits) -> Self {
        Self {
            available: Amount { bytes: limits.credit_bytes, messages: limits.credit_messages },
            announced: 0,
            waiting: VecDeque::new(),
            held: Amount::default(),
            owed: Amount::default(),
            announcements: 0,
            peer_stalled: false,
        }
    }

    /// Takes credits for a message, if there are enough.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        if bytes > self.available.bytes as usize || self.available.messages == 0 {
            return false;
        }
        self.available.bytes -= bytes as u32;
        self.available.messages -= 1;
        true
    }

    /// Credits return from the peer. False if there are more than were taken.
    pub(super) fn refill(&mut self, amount: Amount, limits: &Limits) -> bool {
        let bytes = u64::from(self.available.bytes) + u64::from(amount.bytes);
        let messages = u64::from(self.available.messages) + u64::from(amount.messages);
        if bytes > u64::from(limits.credit_bytes) || messages > u64::from(limits.credit_messages) {
            return false;
        }
        self.available = Amount { bytes: bytes as u32, messages: messages as u32 };
        true
    }

    /// A message arrived. False if the peer had no credits for it.
    pub(super) fn hold(&mut self, bytes: usize, limits: &Limits) -> bool {
        // More than the limit is held when the peer spent what a frame was to give back that then did not leave.
        if bytes > limits.credit_bytes.saturating_sub(self.held.bytes) as usize
            || self.held.messages >= limits.credit_messages
        {
            return false;
        }
        self.held.bytes += bytes as u32;
        self.held.messages += 1;
        true
    }

    /// A message's memory is free again. True if it is time to tell the peer by a frame of its own.
    pub(super) fn release(&mut self, bytes: usize, limits: &Limits) -> bool {
        self.owed.bytes += bytes as u32;
        self.owed.messages += 1;
        self.owed.bytes >= (limits.credit_bytes / 2).max(1)
            || self.owed.messages >= (limits.credit_messages / 2).max(1)
    }

    /// What a frame that leaves now gives back.
    pub(super) fn give_back(&mut self) -> Amount {
        self.held.bytes -= self.owed.bytes;
        self.held.messages -= self.owed.messages;
        std::mem::take(&mut self.owed)
    }

    /// The frame that would have given `amount` back does not leave.
    pub(super) fn keep(&mut self, amount: Amount) {
        self.held.bytes += amount.bytes;
        self.held.messages += amount.messages;
        self.owed.bytes += amount.bytes;
        self.owed.messages += amount.messages;
    }
}

/// All classes of a link.
#[derive(Debug, Default)]
pub(super) struct Classes {
    index: ByClass<usize>,
    all: Vec<Class>,
    recent: Option<(ClassKey, usize)>,
}

impl Classes {
    /// The class of a message.
    pub(super) fn of(&mut self, id: &MessageId, limits: &Limits) -> &mut Class {
        let key = ClassKey::of(id);
        let at = match self.recent {
            Some((recent, at)) if recent == key => at,
            _ => {
                let all = &mut self.all;
                let at = *self.index.entry(key).or_insert_with(|| {
                    all.push(Class::new(limits));
                    all.len() - 1
                });
                self.recent = Some((key, at));
                at
            }
        };
        &mut self.all[at]
    }
}
