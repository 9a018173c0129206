//! Where the inbound stream is: in a header, or in a payload, and where its bytes go.

use super::place::Place;
use super::wire::HEADER_BYTES;
use super::{Posted, Wants};
use crate::message::{Message, MessageId};

/// A message on its way into posted memory, or to nowhere if its receive was withdrawn or refused.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) message: Message,
    pub(super) posted: Option<Posted>,
    pub(super) arrived: usize,
    /// It comes in pieces that begin anew where a connection broke; small ones go on.
    pub(super) in_pieces: bool,
}

/// What the inbound bytes are part of.
#[derive(Debug, Default)]
pub(super) enum Purpose {
    /// A header.
    #[default]
    Header,
    /// A message that goes straight to its memory.
    Transfer(Transfer),
    /// One that goes to a buffer.
    Buffer(MessageId),
    /// One that was refused.
    Refused,
    /// Where the message of a clearance belongs.
    Place(Message, Vec<u8>),
}

/// Where the inbound stream is.
#[derive(Debug)]
pub(super) struct Cursor {
    pub(super) purpose: Purpose,
    /// Null when the bytes go nowhere.
    pub(super) memory: *mut u8,
    pub(super) left: usize,
    /// The payload's size.
    pub(super) whole: usize,
    header: [u8; HEADER_BYTES],
    collected: usize,
}

impl Default for Cursor {
    fn default() -> Self {
        Self {
            purpose: Purpose::Header,
            memory: std::ptr::null_mut(),
            left: 0,
            whole: 0,
            header: [0; HEADER_BYTES],
            collected: 0,
        }
    }
}

impl Cursor {
    pub(super) fn is_amid_payload(&self) -> bool {
        !matches!(self.purpose, Purpose::Header)
    }

    pub(super) fn wants(&self) -> Wants {
        match self.purpose {
            Purpose::Header => Wants::Header(HEADER_BYTES - self.collected),
            _ if self.memory.is_null() => Wants::Discard(self.left),
            _ => Wants::Payload(self.memory, self.left),
        }
    }

    /// Adds to a header that comes in parts; gives it back when it is whole.
    pub(super) fn collect(&mut self, bytes: &[u8]) -> Option<[u8; HEADER_BYTES]> {
        self.header[self.collected..self.collected + bytes.len()].copy_from_slice(bytes);
        self.collected = (self.collected + bytes.len()) % HEADER_BYTES;
        (self.collected == 0).then_some(self.header)
    }

    pub(super) fn begin(&mut self, purpose: Purpose, memory: *mut u8, bytes: usize) {
        (self.purpose, self.memory, self.left, self.whole) = (purpose, memory, bytes, bytes);
    }

    /// What is left of the payload goes nowhere.
    pub(super) fn refuse(&mut self) {
        (self.purpose, self.memory) = (Purpose::Refused, std::ptr::null_mut());
    }

    /// A header that is not here whole comes anew.
    pub(super) fn forget_header(&mut self) {
        self.collected = 0;
    }

    /// Takes what the inbound bytes were part of, if it is such: a header comes next.
    pub(super) fn take_if(&mut self, is: impl Fn(&Purpose) -> bool) -> Purpose {
        if !is(&self.purpose) {
            return Purpose::Header;
        }
        (self.memory, self.left, self.whole) = (std::ptr::null_mut(), 0, 0);
        std::mem::take(&mut self.purpose)
    }

    /// Bytes of a frame whose payload is coming that are here.
    pub(super) fn taken(&self) -> u64 {
        if self.is_amid_payload() { (HEADER_BYTES + self.whole - self.left) as u64 } else { 0 }
    }

    pub(super) fn message_bytes(&self) -> usize {
        match &self.purpose {
            Purpose::Transfer(transfer) => transfer.message.bytes,
            _ => 0,
        }
    }

    /// Where the peer may write what comes next.
    pub(super) fn place(&self) -> Option<Place> {
        match &self.purpose {
            Purpose::Transfer(transfer) => transfer.posted.as_ref()?.place,
            _ => None,
        }
    }

    /// Whether so many bytes are awaited.
    pub(super) const fn has_room(&self, bytes: usize) -> bool {
        bytes <= self.left
    }

    pub(super) fn transfer(&mut self) -> Option<&mut Transfer> {
        match &mut self.purpose {
            Purpose::Transfer(transfer) => Some(transfer),
            _ => None,
        }
    }
}
