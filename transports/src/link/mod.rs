//! The protocol between this rank and one peer, without I/O.
//!
//! A [`Link`] matches messages by identity, keeps the credits, and speaks through any pair of byte pipes that keep order. The owner of the
//! pipe moves the bytes:
//!
//! - outwards: [`gather`](Link::gather) lends what leaves next, header and payload where they lie; [`wrote`](Link::wrote) says how
//!   much of it the pipe took;
//! - inwards: [`wants`](Link::wants) says where the next bytes belong: a header, the posted memory, or nowhere; [`placed`](Link::placed)
//!   that they are there. [`feed`](Link::feed) does both for bytes that already lie in a buffer.
//!
//! **Small messages** (up to `eager_bytes`) leave at once while their class has credits. One that arrives before its receive waits in a
//! buffer of the link, which the credits bound. **All others** move only into posted memory: the receiver *clears* a
//! message, then its bytes come. A large receive is cleared when it is posted, without being asked, so that a receiver in
//! time costs no round trip; a small one when its announcement arrives. A rank may leave `announcements` announcements unanswered; with more
//! messages than that it says so (`Stalled`), and the peer clears every receive of that class unasked, so that any order of
//! receives makes progress and no table grows with what a peer has not asked for.
//!
//! **Seeking.** A receive from any source cannot be posted before it is known whose message it takes: it *seeks* the next message of each peer, and is told
//! when one is here or announced. A sender that is stalled announces what is sought beyond its limit: there is one such message for each that is sought.
//!
//! **Who judges.** A clearance is judged by the sender, everything else by the receiver, so each mismatch is found once; the finder
//! tells the other with a `Refuse…` frame.
//!
//! **Withdrawal.** A withdrawn receive that was cleared is *rescinded*; until the answer comes, what arrives for it is thrown away, or given to a new
//! receive of the same identity. A withdrawn send that was announced is retracted.
//!
//! Of a send that was half-sent the frame under way leaves from a copy, and the rest is *abandoned*: the receive waits as before. Where the copy cannot be made,
//! it begins anew without a message (`anew.rs`).
//!
//! A receive posted while its message is being thrown away ends with [`Event::Mismatch`], rather than never.
//!
//! **Breaks.** Where the pipe can break ([`Link::replaying`]), every frame is kept until the peer has acknowledged it, and what the peer has
//! not got is sent again over the next pipe (`replay.rs`).
//!
//! **Anew.** A piece whose memory is on its way to another place when the stream stands again lets others pass (`anew.rs`).
//!
//! **Places.** Where the pipe can write into the peer's memory ([`Link::placing`]), a clearance says where its message belongs ([`place`]).
//!
//! Identities are unique among the live operations of a direction. Posting a second receive with the identity of a live one ends it
//! with [`Event::Mismatch`]; a peer that sends the same message twice is [`Garbled`].
//!
//! Who touches what: `incoming` and `cursor` belong to the receiving half (`arrive.rs`, `cursor.rs`), `departing` to the sending half (`depart.rs`),
//! `classes` and `outbound` to both; `replay` follows what leaves and arrives.

mod anew;
mod arrive;
mod buffers;
mod credit;
mod cursor;
mod depart;
mod outbound;
pub mod place;
mod replay;
mod seek;
mod table;
pub mod wire;

pub use credit::Limits;
#[doc(hidden)]
pub use replay::Planted;
pub use replay::{COPIED as COPIED_BYTES, Position, Resumed};

use std::fmt;
use std::io::IoSlice;

use crate::ledger::Generation;
use crate::message::Message;
use crate::{Event, Rank, Token};
use arrive::Incoming;
use buffers::Buffers;
use credit::{Amount, Classes};
use cursor::Cursor;
use depart::Departing;
use outbound::{Frame, Outbound};
use place::{Place, Rails};
use replay::Replay;
use table::{ById, Ids};
use wire::{Detail, HEADER_BYTES, Header, Kind};

/// The peer broke the protocol. The link is unusable.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Garbled(pub &'static str);

/// A posted receive.
#[derive(Debug)]
struct Posted {
    message: Message,
    memory: *mut u8,
    token: Token,
    /// How the peer reaches the memory, if it can.
    place: Option<Place>,
}

/// Where the next inbound bytes belong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wants {
    /// Into a header: so many bytes of it are missing.
    Header(usize),
    /// Into this memory, so many bytes.
    Payload(*mut u8, usize),
    /// Nowhere: so many bytes are to be thrown away.
    Discard(usize),
}

/// One rank's end of the protocol with one peer.
pub struct Link {
    peer: Rank,
    limits: Limits,
    classes: Classes,
    /// Receives and messages of the peer that have not met.
    incoming: ById<Incoming>,
    /// Messages of which the owner wants to hear.
    sought: Ids,
    /// Those of which the stalled peer knows that.
    asked: Ids,
    /// Clearances taken back and not yet acknowledged.
    rescinding: Ids,
    /// Messages that wait for their clearance, and clearances that wait for their message.
    departing: ById<Departing>,
    /// Classes whose messages the peer cannot announce.
    stalled: usize,
    outbound: Outbound,
    cursor: Cursor,
    buffers: Buffers,
    /// None where the pipe cannot break.
    replay: Option<Replay>,
    /// Clearances say where their message belongs.
    places: bool,
    /// Of the connection, where there are places.
    generation: Generation,
    /// By which it goes.
    rails: Rails,
}

// SAFETY: the raw pointers are those of posted operations, whose posters keep the memory valid, for any thread, until the operation
// ends or is withdrawn (`post_send` and `post_recv`); the link has no other shared state.
unsafe impl Send for Link {}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer)
            .field("incoming", &self.incoming.len())
            .field("departing", &self.departing.len())
            .field("has_output", &self.has_output())
            .finish_non_exhaustive()
    }
}

impl Link {
    /// A link with `peer`. Both ends must use the same limits.
    pub fn new(peer: Rank, limits: Limits) -> Self {
        Self {
            peer,
            limits,
            classes: Classes::default(),
            incoming: ById::default(),
            sought: Ids::default(),
            asked: Ids::default(),
            rescinding: Ids::default(),
            departing: ById::default(),
            stalled: 0,
            outbound: Outbound::default(),
            cursor: Cursor::default(),
            buffers: Buffers::default(),
            replay: None,
            places: false,
            generation: Generation::default(),
            rails: Rails::default(),
        }
    }

    /// The same over pipes that can break and be opened anew.
    pub fn replaying(peer: Rank, limits: Limits) -> Self {
        Self::planted(peer, limits, None)
    }

    /// The same with a planted fault.
    #[doc(hidden)]
    pub fn planted(peer: Rank, limits: Limits, planted: Option<Planted>) -> Self {
        Self { replay: Some(Replay::new(planted)), ..Self::new(peer, limits) }
    }

    /// Whether something waits to leave.
    pub fn has_output(&self) -> bool {
        !self.outbound.is_empty() || self.replay.as_ref().is_some_and(|r| r.writes_again() || r.owes())
    }

    /// Whether the peer waits for an acknowledgement.
    pub fn owes(&self) -> bool {
        self.replay.as_ref().is_some_and(Replay::owes)
    }

    /// Whether something that had left leaves once more.
    pub fn writes_again(&self) -> bool {
        self.replay.as_ref().is_some_and(Replay::writes_again)
    }

    /// Whether something is awaited from the peer.
    pub fn expects(&self) -> bool {
        !self.incoming.is_empty()
            || !self.departing.is_empty()
            || self.cursor.is_amid_payload()
            || self.replay.as_ref().is_some_and(Replay::awaits)
    }

    /// Lends what leaves next, up to about `limit` bytes; says how many slices it filled. Two slices are needed at least.
    pub fn gather<'a>(&'a mut self, slices: &mut [IoSlice<'a>], limit: usize) -> usize {
        let Some(replay) = &self.replay else { return self.outbound.gather(slices, limit, usize::MAX) };
        if replay.writes_again() {
            return replay.gather(slices, limit);
        }
        let room = replay.room().saturating_sub(self.outbound.leaving());
        self.outbound.acknowledge(replay.watermark(), replay.owes(), room);
        self.outbound.gather(slices, limit, room)
    }

    /// What has not left of the piece that is leaving, where it lies with its poster: of a message whose send ends only once the peer
    /// has it. A pipe may let the peer read it there, as long as it says with [`wrote`](Self::wrote) what the peer has read.
    pub fn lendable(&self) -> Option<&[u8]> {
        if self.replay.is_some() { None } else { self.outbound.lendable() }
    }

    /// The pipe took `bytes` bytes of what [`gather`](Self::gather) lent.
    pub fn wrote(&mut self, mut bytes: usize, events: &mut Vec<Event>) {
        if let Some(replay) = self.replay.as_mut().filter(|replay| replay.writes_again()) {
            return replay.wrote(bytes);
        }
        while bytes > 0 {
            if self.replay.is_none()
                && let Some(token) = self.outbound.wrote_whole(&mut bytes)
            {
                events.extend(token.map(Event::Sent));
                continue;
            }
            let Some(mut frame) = self.outbound.wrote(&mut bytes) else { return };
            if let Some(next) = frame.next_piece() {
                self.outbound.push_piece(next);
            }
            match &mut self.replay {
                Some(replay) if frame.is_ack() => replay.tell(frame.acknowledges()),
                Some(replay) => replay.left(frame, &mut self.buffers, events),
                None => {
                    if frame.ends_send() {
                        events.extend(frame.take_token().map(Event::Sent));
                    }
                    frame.release(&mut self.buffers);
                }
            }
        }
    }

    /// The pipe broke. Nothing passes until [`resume`](Self::resume); operations may be posted and withdrawn.
    pub fn broke(&mut self, events: &mut Vec<Event>) {
        let Some(replay) = &mut self.replay else { return };
        let current = self.outbound.broke();
        if let Some(next) = current.as_ref().and_then(Frame::next_piece) {
            self.outbound.push_piece(next);
        }
        replay.broke(current, &mut self.buffers, events);
        self.cursor.forget_header();
        if self.places {
            self.forget_piece();
            self.forget_places();
        }
    }

    /// Where the peer is to go on, once the pipe is [broken](Self::broke).
    pub fn position(&self) -> Position {
        self.replay.as_ref().map_or_else(Position::default, |replay| replay.position(self.cursor.taken()))
    }

    /// There is a new pipe, and the peer has come so far with the old one.
    ///
    /// # Errors
    /// It cannot have; the link is unusable then.
    pub fn resume(&mut self, theirs: Position, events: &mut Vec<Event>) -> Result<Resumed, Garbled> {
        let ours = self.position();
        let Some(replay) = &mut self.replay else {
            return Err(Garbled("a position in a stream that cannot break"));
        };
        let resumed = replay.resume(ours, theirs, &mut self.buffers, events)?;
        self.begin_anew(events)?;
        Ok(resumed)
    }

    /// Where the next inbound bytes belong.
    pub fn wants(&self) -> Wants {
        self.cursor.wants()
    }

    /// The bytes of the message whose payload comes next, if it goes straight to its memory.
    pub fn arriving(&self) -> usize {
        self.cursor.message_bytes()
    }

    /// Takes inbound bytes, as many as there are.
    ///
    /// # Errors
    /// The bytes are not of this protocol; the link is unusable then.
    pub fn feed(&mut self, mut bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Garbled> {
        while !bytes.is_empty() {
            let taken = match self.wants() {
                Wants::Header(missing) if missing == HEADER_BYTES && bytes.len() >= HEADER_BYTES => {
                    // The length was just compared, so the conversion cannot fail.
                    if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
                        self.header_arrived(header, events)?;
                    }
                    HEADER_BYTES
                }
                Wants::Header(missing) => {
                    let taken = missing.min(bytes.len());
                    if let Some(header) = self.cursor.collect(&bytes[..taken]) {
                        self.header_arrived(&header, events)?;
                    }
                    taken
                }
                Wants::Payload(memory, wanted) => {
                    let taken = wanted.min(bytes.len());
                    // SAFETY: `memory` is what the poster of the receive, or the link's own buffer, keeps valid for `wanted` bytes.
                    unsafe { self.buffers.put_into(memory, &bytes[..taken]) };
                    self.placed(taken, events)?;
                    taken
                }
                Wants::Discard(wanted) => {
                    let taken = wanted.min(bytes.len());
                    self.placed(taken, events)?;
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Forgets an operation. Whether there was any of this token.
    pub fn withdraw(&mut self, token: Token) -> bool {
        self.withdraw_recv(token) || self.withdraw_send(token)
    }

    /// Forgets everything, because the peer is lost. No memory is touched after it.
    pub fn clear(&mut self) {
        // The peer is lost: there is nothing to replay to.
        *self = Self::new(self.peer, self.limits);
    }

    /// The peer is lost: forgets everything but the messages that are here, whole. They were sent before the end, and may still
    /// be received; no other memory is touched after it.
    pub fn close(&mut self) {
        let mut closed = Self::new(self.peer, self.limits);
        let whole =
            |incoming: &Incoming| matches!(incoming, Incoming::Buffered { complete: true, posted: None, .. });
        closed.incoming = std::mem::take(&mut self.incoming);
        closed.incoming.retain(|_, incoming| whole(incoming));
        closed.classes = std::mem::take(&mut self.classes);
        *self = closed;
    }

    /// Whether a closed link holds a message.
    pub fn holds(&self, message: &Message) -> bool {
        self.incoming.contains_key(&message.id)
    }

    /// Queues a frame without payload, with whatever credits its class owes.
    fn notify(&mut self, kind: Kind, message: &Message) {
        let header = self.header(kind, message);
        self.outbound.push_small(Frame::notice(&header));
    }

    /// Clears a receive.
    fn tell_clear(&mut self, message: &Message, place: Option<Place>) {
        if !self.places {
            return self.notify(Kind::Clear, message);
        }
        let header = self.header(Kind::Clear, message);
        let frame = Frame::clearance(&header, &place.unwrap_or_default(), &mut self.buffers);
        self.outbound.push_small(frame);
    }

    fn header(&mut self, kind: Kind, message: &Message) -> Header {
        let Amount { bytes, messages } = self.classes.of(&message.id, &self.limits).give_back();
        Header { kind, ack: 0, message: *message, detail: Detail::Credits { bytes, messages } }
    }

    /// A message's buffer is free again.
    fn release(&mut self, message: &Message) {
        if self.classes.of(&message.id, &self.limits).release(message.bytes, &self.limits) {
            self.notify(Kind::Credit, message);
        }
    }

    fn mismatch(&self, token: Token, theirs: Message) -> Event {
        Event::Mismatch { token, peer: self.peer, theirs }
    }
}

#[cfg(test)]
mod tests;
