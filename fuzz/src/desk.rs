//! A link and the memory of what is posted to it.

use std::collections::BTreeMap;
use std::io::IoSlice;

use windlass_transports::ledger::Generation;
use windlass_transports::link::place::Rails;
use windlass_transports::link::{Garbled, Limits, Link};
use windlass_transports::message::{COLLECTIVE_TAG, Message, MessageId};
use windlass_transports::{Event, Token};

/// Small, so that a few steps reach each of them.
pub const LIMITS: Limits = Limits { eager_bytes: 16, credit_bytes: 48, credit_messages: 4, announcements: 2 };

/// Below, at and above the limits.
pub const SIZES: [usize; 8] = [0, 1, 8, 16, 17, 40, 64, 100];

/// One of a few messages: eight sequences, two communicators, both kinds of traffic, two fingerprints.
pub fn message(id: u8, size: u8) -> Message {
    let tag = if id & 16 == 0 { 0 } else { COLLECTIVE_TAG };
    let communicator = u32::from(id >> 3 & 1);
    let id_of = MessageId { communicator, tag, sequence: u64::from(id & 7), label: 0, chunk: 0 };
    Message {
        id: id_of,
        fingerprint: [u64::from(id >> 5 & 1), 0],
        bytes: SIZES[usize::from(size) % SIZES.len()],
    }
}

/// A live operation. Its memory is exactly as large as its message, and goes with its end, so that the address sanitizer sees
/// every access beyond either.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) is_send: bool,
    pub(crate) name: u8,
    pub(crate) id: MessageId,
    pub(crate) memory: Box<[u8]>,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    Done,
    Mismatch,
}

/// A link, and its operations by token.
pub(crate) struct Desk {
    pub(crate) link: Link,
    pub(crate) live: BTreeMap<u64, Live>,
    tokens: u64,
    events: Vec<Event>,
}

impl Desk {
    pub(crate) fn new(peer: u32) -> Self {
        Self { link: Link::new(peer, LIMITS), live: BTreeMap::new(), tokens: 0, events: Vec::new() }
    }

    /// The same over a pipe that can write into memory which a clearance names.
    pub(crate) fn placing(peer: u32) -> Self {
        let mut link = Link::placing(peer, LIMITS);
        link.enter(Generation(1), Rails::first(2));
        Self { link, ..Self::new(peer) }
    }

    /// Posts, unless an operation of that identity is live: the poster keeps them apart, whatever the peer says.
    pub(crate) fn post(&mut self, is_send: bool, name: u8, message: &Message, fill: u8) {
        if self.live.values().any(|live| (live.is_send, live.id) == (is_send, message.id)) {
            return;
        }
        self.tokens += 1;
        let token = Token(self.tokens);
        let memory = vec![fill; message.bytes].into_boxed_slice();
        let live = self.live.entry(self.tokens).or_insert(Live { is_send, name, id: message.id, memory });
        // SAFETY: the memory lies in `live` until the operation has ended, or is withdrawn, or the link is cleared.
        unsafe {
            match is_send {
                true => self.link.post_send(message, live.memory.as_ptr(), token, &mut self.events),
                false => {
                    let memory = live.memory.as_mut_ptr();
                    let keys = [(0, 7), (1, 8)].into_iter().collect();
                    let reach = Some((memory.expose_provenance() as u64, keys));
                    self.link.post_recv_at(message, memory, reach, token, &mut self.events);
                }
            }
        }
    }

    /// Asks for a message that is not received yet, as a receive from any source does.
    pub(crate) fn seek(&mut self, message: &Message) {
        if !self.live.values().any(|live| !live.is_send && live.id == message.id) {
            self.link.seek(&message.id);
        }
    }

    /// What has ended since.
    pub(crate) fn ended(&mut self) -> Vec<(Live, End)> {
        let events = std::mem::take(&mut self.events);
        let end = |event| {
            let (token, end, is_send) = match event {
                Event::Sent(token) => (token, End::Done, Some(true)),
                Event::Received(token) => (token, End::Done, Some(false)),
                Event::Mismatch { token, .. } => (token, End::Mismatch, None),
                Event::Refused { .. } | Event::Arrived { .. } => return None,
                Event::Lost { .. } | Event::Broken { .. } | Event::Reopened { .. } => {
                    panic!("a link does not decide what becomes of its peer")
                }
            };
            let live = self.live.remove(&token.0).expect("events name live operations, once");
            assert!(
                is_send.is_none_or(|is_send| is_send == live.is_send),
                "{token:?} ended as what it was not"
            );
            Some((live, end))
        };
        events.into_iter().filter_map(end).collect()
    }

    /// Bytes come in. False if they are garbled: then nothing is posted any more.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> bool {
        // In memory of its own, which ends where the bytes end.
        let bytes = bytes.to_vec().into_boxed_slice();
        let fed = self.link.feed(&bytes, &mut self.events);
        self.survives(fed)
    }

    /// The peer says that it has written so many bytes where they belong. False if it cannot have.
    pub(crate) fn land(&mut self, bytes: usize) -> bool {
        let landed = self.link.landed(bytes, &mut self.events);
        self.survives(landed)
    }

    fn survives(&mut self, heard: Result<(), Garbled>) -> bool {
        if heard.is_err() {
            self.link.clear();
            self.events.clear();
            self.live.clear();
        }
        heard.is_ok()
    }

    /// Up to `limit` bytes go where the peer has said that they belong. How many.
    pub(crate) fn place(&mut self, limit: usize) -> usize {
        let Some(destined) = self.link.destined() else { return 0 };
        let mut bytes = vec![0; destined.bytes.min(limit)];
        assert!(self.link.stage(&destined, &mut bytes), "the host's memory can be read");
        self.link.wrote(bytes.len(), &mut self.events);
        bytes.len()
    }

    /// Up to about `limit` bytes go out.
    pub(crate) fn say(&mut self, limit: usize) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 6];
        let filled = self.link.gather(&mut slices, limit);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
        assert!(bytes.len() <= limit, "more than was asked for");
        self.link.wrote(bytes.len(), &mut self.events);
        bytes
    }

    /// Withdraws the nth live operation.
    pub(crate) fn withdraw(&mut self, nth: u8) -> Option<Live> {
        let token = *self.live.keys().nth(usize::from(nth) % self.live.len().max(1))?;
        assert!(self.link.withdraw(Token(token)), "a live operation is known");
        self.live.remove(&token)
    }
}
