//! The sending half: credits, announcements, clearances.

use super::credit::Amount;
use super::outbound::{Frame, Withdrawn};
use super::place::Place;
use super::replay::Kept;
use super::wire::{Detail, Header, Kind};
use super::{Garbled, Link};
use crate::message::{Message, MessageId};
use crate::{Event, Token};

/// Clearances that may wait for their message: far more than a live peer posts receives.
const MOST_CLEARANCES: usize = 1 << 20;

/// A send that waits for its clearance.
#[derive(Debug)]
pub(super) struct Sending {
    message: Message,
    memory: *const u8,
    token: Token,
}

/// A message or a clearance that waits for the other.
#[derive(Debug)]
pub(super) enum Departing {
    /// The receive is posted and fits this message; the send is not posted.
    Cleared(Message, Option<Place>),
    /// The peer seeks the message; the send is not posted.
    Sought,
    /// The peer knows of the message. Counted among the announcements of its class, unless it was sought.
    Announced { sending: Sending, counted: bool },
    /// It does not: too many are announced.
    Waiting(Sending),
}

impl Departing {
    pub(super) const fn forget_place(&mut self) {
        if let Self::Cleared(_, place) = self {
            *place = None;
        }
    }
}

impl Sending {
    pub(super) const fn message(&self) -> Message {
        self.message
    }
}

impl Link {
    /// Begins to send.
    ///
    /// # Safety
    /// As [`Transport::post_send`](crate::Transport::post_send); [`clear`](Link::clear) ends all operations.
    pub unsafe fn post_send(
        &mut self,
        message: &Message,
        memory: *const u8,
        token: Token,
        events: &mut Vec<Event>,
    ) {
        let mut sought = false;
        if !self.departing.is_empty() {
            match self.departing.get(&message.id) {
                Some(&Departing::Cleared(theirs, place)) => {
                    self.departing.remove(&message.id);
                    self.send_cleared(Sending { message: *message, memory, token }, theirs, place, events);
                    return;
                }
                Some(Departing::Announced { sending: other, .. } | Departing::Waiting(other)) => {
                    let theirs = other.message;
                    events.push(self.mismatch(token, theirs));
                    return;
                }
                Some(Departing::Sought) => {
                    self.departing.remove(&message.id);
                    sought = true;
                }
                None => {}
            }
        }
        let class = self.classes.of(&message.id, &self.limits);
        if message.bytes <= self.limits.eager_bytes as usize && class.take(message.bytes) {
            let header = self.header(Kind::Eager, message);
            self.outbound.push_small(Frame::eager(&header, memory, token));
            return;
        }
        let sending = Sending { message: *message, memory, token };
        if sought { self.found(sending) } else { self.announce_or_wait(sending) }
    }

    /// Announces what the peer seeks.
    pub(super) fn found(&mut self, sending: Sending) {
        self.notify(Kind::Found, &sending.message);
        self.departing.insert(sending.message.id, Departing::Announced { sending, counted: false });
    }

    fn announce_or_wait(&mut self, sending: Sending) {
        let message = sending.message;
        let class = self.classes.of(&message.id, &self.limits);
        if class.waiting.is_empty() && class.announced < self.limits.announcements {
            self.announce(sending);
            return;
        }
        class.waiting.push_back(message.id);
        let first = class.waiting.len() == 1;
        self.departing.insert(message.id, Departing::Waiting(sending));
        if first {
            self.notify(Kind::Stalled, &message);
        }
    }

    fn announce(&mut self, sending: Sending) {
        self.classes.of(&sending.message.id, &self.limits).announced += 1;
        self.notify(Kind::Announce, &sending.message);
        self.departing.insert(sending.message.id, Departing::Announced { sending, counted: true });
    }

    /// A message and its clearance have met.
    fn send_cleared(
        &mut self,
        sending: Sending,
        theirs: Message,
        place: Option<Place>,
        events: &mut Vec<Event>,
    ) {
        let Sending { message, memory, token } = sending;
        if message == theirs {
            let foreign = self.buffers.is_foreign(memory);
            self.outbound.push_piece(Frame::first_piece(&message, memory, token, place, foreign));
        } else {
            self.notify(Kind::RefuseClear, &message);
            events.push(self.mismatch(token, theirs));
        }
    }

    /// An announcement was answered or retracted: the next may go.
    fn announcement_ended(&mut self, id: &MessageId, counted: bool) {
        if counted {
            let class = self.classes.of(id, &self.limits);
            class.announced = class.announced.saturating_sub(1);
            self.announce_waiting(id);
        }
    }

    fn announce_waiting(&mut self, id: &MessageId) {
        loop {
            let class = self.classes.of(id, &self.limits);
            if class.waiting.is_empty() || class.announced >= self.limits.announcements {
                return;
            }
            let Some(next) = class.waiting.pop_front() else { return };
            let last = class.waiting.is_empty();
            match self.departing.remove(&next) {
                Some(Departing::Waiting(sending)) => {
                    let message = sending.message;
                    self.announce(sending);
                    if last {
                        self.notify(Kind::Resumed, &message);
                    }
                }
                Some(other) => {
                    self.departing.insert(next, other);
                }
                None => {}
            }
        }
    }

    /// A message leaves the queue of those that could not be announced.
    pub(super) fn stop_waiting(&mut self, message: &Message) {
        let class = self.classes.of(&message.id, &self.limits);
        // Mostly the first; another only when receives are posted out of order.
        if let Some(at) = class.waiting.iter().position(|id| *id == message.id) {
            class.waiting.remove(at);
            if class.waiting.is_empty() {
                self.notify(Kind::Resumed, message);
            }
        }
    }

    /// The receive is posted, and its message belongs at `place`.
    pub(super) fn clear_arrived(
        &mut self,
        theirs: Message,
        place: Option<Place>,
        events: &mut Vec<Event>,
    ) -> Result<(), Garbled> {
        // One that was told before a break goes for nothing.
        let place = place.filter(|place| self.is_valid(place));
        match self.departing.remove(&theirs.id) {
            Some(Departing::Announced { sending, counted }) => {
                self.send_cleared(sending, theirs, place, events);
                self.announcement_ended(&theirs.id, counted);
            }
            Some(Departing::Waiting(sending)) => {
                let message = sending.message;
                self.send_cleared(sending, theirs, place, events);
                self.stop_waiting(&message);
            }
            Some(Departing::Cleared(..)) => return Err(Garbled("two clearances for one message")),
            Some(Departing::Sought) | None => self.expect(theirs.id, Departing::Cleared(theirs, place))?,
        }
        Ok(())
    }

    /// Keeps what the peer said of a message that is not posted.
    pub(super) fn expect(&mut self, id: MessageId, departing: Departing) -> Result<(), Garbled> {
        if self.departing.len() >= MOST_CLEARANCES {
            return Err(Garbled("more clearances than anyone posts receives"));
        }
        self.departing.insert(id, departing);
        Ok(())
    }

    /// The receive was withdrawn. What has not begun to leave stays here.
    pub(super) fn rescind_arrived(&mut self, message: &Message) {
        if let Some(Departing::Cleared(..)) = self.departing.get(&message.id) {
            self.departing.remove(&message.id);
        }
        let unbegun = self.outbound.take_unbegun(message);
        self.notify(Kind::Rescinded, message);
        if let Some(frame) = unbegun
            && let (Some(header), Some(token)) = (frame.header(), frame.token())
        {
            self.announce_or_wait(Sending { message: header.message, memory: frame.memory(), token });
        }
    }

    /// The announced message does not fit the receive.
    pub(super) fn announce_refused(&mut self, theirs: Message, events: &mut Vec<Event>) {
        if let Some(&Departing::Announced { counted, .. }) = self.departing.get(&theirs.id) {
            if let Some(Departing::Announced { sending, .. }) = self.departing.remove(&theirs.id) {
                events.push(self.mismatch(sending.token, theirs));
            }
            self.announcement_ended(&theirs.id, counted);
        }
    }

    pub(super) fn withdraw_send(&mut self, token: Token) -> bool {
        let found = self.departing.iter().find_map(|(id, departing)| match departing {
            Departing::Announced { sending, .. } | Departing::Waiting(sending) if sending.token == token => {
                Some(*id)
            }
            _ => None,
        });
        if let Some(id) = found {
            match self.departing.remove(&id) {
                Some(Departing::Announced { sending, counted }) => {
                    self.notify(Kind::Retract, &sending.message);
                    self.announcement_ended(&id, counted);
                }
                Some(Departing::Waiting(sending)) => self.stop_waiting(&sending.message),
                _ => {}
            }
            return true;
        }
        let kept =
            self.replay.as_mut().map_or(Kept::Nothing, |replay| replay.withdraw(token, &mut self.buffers));
        if kept == Kept::Void {
            self.outbound.void(token);
            return true;
        }
        match self.outbound.withdraw(token, &mut self.buffers) {
            Withdrawn::Absent if kept == Kept::Nothing => return false,
            Withdrawn::Absent | Withdrawn::Leaving => {}
            Withdrawn::Begun(header) => self.notify(Kind::Abandon, &header.message),
            Withdrawn::Whole(frame) => {
                if let Some(header) = frame.header() {
                    self.take_back(&header, frame.place());
                }
            }
        }
        true
    }

    /// Undoes what queueing a frame has done.
    fn take_back(&mut self, header: &Header, place: Option<Place>) {
        let message = header.message;
        match header.detail {
            Detail::Piece(_) => {
                self.departing.insert(message.id, Departing::Cleared(message, place));
            }
            Detail::Credits { bytes, messages } => {
                let class = self.classes.of(&message.id, &self.limits);
                class.keep(Amount { bytes, messages });
                if header.kind == Kind::Eager {
                    class.refill(Amount { bytes: message.bytes as u32, messages: 1 }, &self.limits);
                }
            }
        }
    }
}
