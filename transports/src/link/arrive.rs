//! The receiving half: matching, and where the bytes go.

use super::credit::{Amount, ClassKey};
use super::cursor::{Purpose, Transfer};
use super::place::{Keys, PLACE_BYTES, Place};
use super::replay::COPIED;
use super::wire::{Detail, HEADER_BYTES, Header, Kind};
use super::{Garbled, Link, Posted};
use crate::message::Message;
use crate::{Event, Token};

/// A receive or a message that waits for the other.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The receive waits. `cleared`: the sender was told.
    Posted { posted: Posted, cleared: bool },
    /// The sender has it. `counted` among the announcements of its class, unless it was sought.
    Announced { message: Message, order: u64, counted: bool },
    /// It is here, or `complete` will say so.
    Buffered { message: Message, order: u64, buffer: Vec<u8>, complete: bool, posted: Option<Posted> },
    /// Some of its pieces are here.
    Arriving(Transfer),
}

impl Incoming {
    fn message(&self) -> Message {
        match self {
            Self::Posted { posted, .. } => posted.message,
            Self::Announced { message, .. } | Self::Buffered { message, .. } => *message,
            Self::Arriving(transfer) => transfer.message,
        }
    }

    fn posted(&mut self) -> Option<&mut Option<Posted>> {
        match self {
            Self::Buffered { posted, .. } | Self::Arriving(Transfer { posted, .. }) => Some(posted),
            _ => None,
        }
    }
}

impl Link {
    /// Begins to receive.
    ///
    /// # Safety
    /// As [`Transport::post_recv`](crate::Transport::post_recv); [`clear`](Link::clear) ends all operations.
    pub unsafe fn post_recv(
        &mut self,
        message: &Message,
        memory: *mut u8,
        token: Token,
        events: &mut Vec<Event>,
    ) {
        // SAFETY: the caller's contract.
        unsafe { self.post_recv_at(message, memory, None, token, events) };
    }

    /// The same, into memory that the peer may reach by an address and keys of this rank's devices.
    ///
    /// # Safety
    /// As [`post_recv`](Self::post_recv).
    pub unsafe fn post_recv_at(
        &mut self,
        message: &Message,
        memory: *mut u8,
        reach: Option<(u64, Keys)>,
        token: Token,
        events: &mut Vec<Event>,
    ) {
        let place = reach.map(|(address, keys)| Place { address, keys, ..Place::default() });
        let posted = Posted { message: *message, memory, token, place };
        if let Some(transfer) = self.cursor.transfer()
            && transfer.message.id == message.id
        {
            let theirs = transfer.message;
            events.push(self.mismatch(token, theirs));
            return;
        }
        match self.incoming.get_mut(&message.id) {
            None => {
                let large = message.bytes > self.limits.eager_bytes as usize;
                let unasked =
                    large || self.stalled > 0 && self.classes.of(&message.id, &self.limits).peer_stalled;
                let cleared = unasked && !self.rescinding.contains(&message.id);
                if !self.sought.is_empty() {
                    self.sought.remove(&message.id);
                }
                self.wait(posted, cleared);
            }
            Some(&mut Incoming::Announced { message: theirs, counted, .. }) => {
                self.incoming.remove(&message.id);
                self.classes.of(&message.id, &self.limits).announcements -= u32::from(counted);
                self.meet_announcement(posted, theirs, events);
            }
            Some(Incoming::Buffered { message: theirs, posted: waiting @ None, complete: false, .. })
                if theirs == message =>
            {
                *waiting = Some(posted);
            }
            Some(Incoming::Buffered { posted: None, .. }) => self.meet_buffered(posted, events),
            Some(other) => {
                let theirs = other.message();
                events.push(self.mismatch(token, theirs));
            }
        }
    }

    /// A receive waits for its message; the peer is told, if it is `cleared`.
    fn wait(&mut self, mut posted: Posted, cleared: bool) {
        if cleared {
            self.clear_posted(&mut posted);
        }
        self.incoming.insert(posted.message.id, Incoming::Posted { posted, cleared });
    }

    fn clear_posted(&mut self, posted: &mut Posted) {
        if let Some(place) = &mut posted.place {
            place.generation = self.generation;
        }
        self.tell_clear(&posted.message, posted.place);
    }

    fn meet_announcement(&mut self, posted: Posted, theirs: Message, events: &mut Vec<Event>) {
        if posted.message == theirs {
            self.wait(posted, true);
        } else {
            self.notify(Kind::RefuseAnnounce, &posted.message);
            events.push(self.mismatch(posted.token, theirs));
        }
    }

    /// A receive meets a message that is in a buffer, whole or (if it does not fit) in part.
    fn meet_buffered(&mut self, posted: Posted, events: &mut Vec<Event>) {
        let Some(Incoming::Buffered { message: theirs, buffer, complete, .. }) =
            self.incoming.remove(&posted.message.id)
        else {
            return;
        };
        if theirs == posted.message {
            self.deliver(&buffer, posted, events);
        } else {
            if !complete {
                // The buffer goes away under the cursor.
                self.cursor.refuse();
            }
            self.notify(Kind::RefuseMessage, &posted.message);
            events.push(self.mismatch(posted.token, theirs));
        }
        self.buffers.put(buffer);
        self.release(&theirs);
    }

    /// A header is here whole.
    ///
    /// # Errors
    /// It breaks the protocol; the link is unusable then.
    pub fn header_arrived(
        &mut self,
        bytes: &[u8; HEADER_BYTES],
        events: &mut Vec<Event>,
    ) -> Result<(), Garbled> {
        let header = Header::decode(bytes).map_err(|malformed| Garbled(malformed.as_str()))?;
        let message = header.message;
        match &mut self.replay {
            Some(replay) => replay.acknowledged(header.ack, &mut self.buffers, events)?,
            None if header.ack == 0 && header.kind != Kind::Ack => {}
            None => return Err(Garbled("an acknowledgement where nothing is sent again")),
        }
        if let Detail::Credits { bytes, messages } = header.detail
            && (bytes, messages) != (0, 0)
            && !self.classes.of(&message.id, &self.limits).refill(Amount { bytes, messages }, &self.limits)
        {
            return Err(Garbled("more credits than it was sent messages"));
        }
        match header.kind {
            Kind::Eager => self.eager_arrived(message, events)?,
            Kind::Data => self.piece_arrived(message, header.payload(), events)?,
            Kind::Announce => self.announce_arrived(message, true, events)?,
            Kind::Found if self.asked.remove(&message.id) => {
                self.announce_arrived(message, false, events)?;
            }
            Kind::Found => return Err(Garbled("an announcement that was not sought")),
            Kind::Seek => self.seek_arrived(&message.id)?,
            Kind::Forget => self.forget_arrived(&message.id),
            Kind::Clear if self.places => {
                let mut place = self.buffers.take(PLACE_BYTES);
                let memory = place.as_mut_ptr();
                self.cursor.begin(Purpose::Place(message, place), memory, PLACE_BYTES);
            }
            Kind::Clear => self.clear_arrived(message, None, events)?,
            Kind::Credit => {}
            Kind::Retract => self.retract_arrived(&message),
            Kind::Rescind => self.rescind_arrived(&message),
            Kind::Rescinded => self.rescinded_arrived(&message)?,
            Kind::RefuseMessage => events.push(Event::Refused { peer: self.peer, theirs: message }),
            Kind::RefuseAnnounce => self.announce_refused(message, events),
            Kind::RefuseClear => self.clear_refused(message, events),
            Kind::Stalled => self.peer_stalled(&message)?,
            Kind::Resumed => self.peer_resumed(&message)?,
            Kind::Abandon => self.abandon_arrived(&message)?,
            Kind::Ack => return Ok(()),
        }
        if !self.cursor.is_amid_payload() {
            self.frame_arrived(0, false);
        } else if self.cursor.left == 0 {
            self.payload_ended(events)?;
        }
        Ok(())
    }

    fn eager_arrived(&mut self, message: Message, events: &mut Vec<Event>) -> Result<(), Garbled> {
        if message.bytes > self.limits.eager_bytes as usize {
            return Err(Garbled("a message too large to come unasked"));
        }
        if !self.classes.of(&message.id, &self.limits).hold(message.bytes, &self.limits) {
            return Err(Garbled("more messages than it had credits"));
        }
        if !self.asked.is_empty() && self.asked.remove(&message.id) {
            self.notify(Kind::Forget, &message);
        }
        match self.incoming.remove(&message.id) {
            Some(Incoming::Posted { posted, cleared }) => {
                if cleared {
                    self.rescind(&message);
                }
                self.release(&message);
                self.judge_and_place(message, posted, None, events);
                Ok(())
            }
            Some(_) => Err(Garbled("the same message twice")),
            None => {
                let order = self.unexpected(&message.id, events);
                let mut buffer = self.buffers.take(message.bytes);
                self.cursor.begin(Purpose::Buffer(message.id), buffer.as_mut_ptr(), message.bytes);
                let buffered = Incoming::Buffered { message, order, buffer, complete: false, posted: None };
                self.incoming.insert(message.id, buffered);
                Ok(())
            }
        }
    }

    /// Directs a message, or its first piece of so many bytes, at its receive, or nowhere if they do not fit each other.
    fn judge_and_place(
        &mut self,
        message: Message,
        posted: Posted,
        piece: Option<usize>,
        events: &mut Vec<Event>,
    ) {
        let (in_pieces, bytes) = (piece.is_some(), piece.unwrap_or(message.bytes));
        if posted.message == message {
            let memory = posted.memory;
            let transfer = Transfer { message, posted: Some(posted), arrived: 0, in_pieces };
            self.cursor.begin(Purpose::Transfer(transfer), memory, bytes);
        } else {
            self.notify(Kind::RefuseMessage, &posted.message);
            events.push(self.mismatch(posted.token, message));
            let transfer = Transfer { message, posted: None, arrived: 0, in_pieces };
            self.cursor.begin(Purpose::Transfer(transfer), std::ptr::null_mut(), bytes);
        }
    }

    fn piece_arrived(
        &mut self,
        message: Message,
        bytes: usize,
        events: &mut Vec<Event>,
    ) -> Result<(), Garbled> {
        if !self.asked.is_empty() {
            // The clearance came first.
            self.asked.remove(&message.id);
        }
        match self.incoming.remove(&message.id) {
            Some(Incoming::Posted { posted, cleared: true }) if posted.message == message => {
                self.judge_and_place(message, posted, Some(bytes), events);
            }
            Some(Incoming::Posted { posted, cleared: false }) if self.rescinding.contains(&message.id) => {
                self.judge_and_place(message, posted, Some(bytes), events);
            }
            Some(Incoming::Arriving(transfer))
                if transfer.message == message && bytes <= message.bytes - transfer.arrived =>
            {
                let memory = transfer
                    .posted
                    .as_ref()
                    .map_or(std::ptr::null_mut(), |posted| posted.memory.wrapping_add(transfer.arrived));
                self.cursor.begin(Purpose::Transfer(transfer), memory, bytes);
            }
            None if self.rescinding.contains(&message.id) => {
                let transfer = Transfer { message, posted: None, arrived: 0, in_pieces: true };
                self.cursor.begin(Purpose::Transfer(transfer), std::ptr::null_mut(), bytes);
            }
            _ => return Err(Garbled("a message that was not cleared")),
        }
        Ok(())
    }

    fn announce_arrived(
        &mut self,
        message: Message,
        counted: bool,
        events: &mut Vec<Event>,
    ) -> Result<(), Garbled> {
        // A clearance that is on its way, or was when it was rescinded, answers this announcement.
        let answered = self.rescinding.contains(&message.id);
        match self.incoming.get(&message.id) {
            Some(Incoming::Posted { cleared: true, .. }) => {}
            Some(Incoming::Posted { .. }) | None if answered => {}
            Some(Incoming::Posted { .. }) => {
                if let Some(Incoming::Posted { posted, .. }) = self.incoming.remove(&message.id) {
                    self.meet_announcement(posted, message, events);
                }
            }
            None => {
                if counted && !self.asked.is_empty() {
                    // It was on its way when it was asked for.
                    self.asked.remove(&message.id);
                }
                let class = self.classes.of(&message.id, &self.limits);
                if counted && class.announcements >= self.limits.announcements {
                    return Err(Garbled("more announcements than it may leave open"));
                }
                class.announcements += u32::from(counted);
                let order = self.unexpected(&message.id, events);
                self.incoming.insert(message.id, Incoming::Announced { message, order, counted });
            }
            Some(_) => return Err(Garbled("the same message twice")),
        }
        Ok(())
    }

    /// The sender has withdrawn a message of which pieces are here.
    fn abandon_arrived(&mut self, message: &Message) -> Result<(), Garbled> {
        match self.incoming.remove(&message.id) {
            Some(Incoming::Arriving(transfer)) => {
                if let Some(posted) = transfer.posted {
                    let cleared = !self.rescinding.contains(&message.id);
                    self.wait(posted, cleared);
                }
                Ok(())
            }
            _ => Err(Garbled("the end of a message that had not begun")),
        }
    }

    /// A frame is here, whole.
    fn frame_arrived(&mut self, payload: usize, promptly: bool) {
        if let Some(replay) = &mut self.replay {
            replay.arrived(HEADER_BYTES + payload, promptly);
        }
    }

    fn retract_arrived(&mut self, message: &Message) {
        if let Some(&Incoming::Announced { counted, .. }) = self.incoming.get(&message.id) {
            self.incoming.remove(&message.id);
            self.classes.of(&message.id, &self.limits).announcements -= u32::from(counted);
        }
    }

    pub(super) fn rescind(&mut self, message: &Message) {
        self.notify(Kind::Rescind, message);
        self.rescinding.insert(message.id);
    }

    fn rescinded_arrived(&mut self, message: &Message) -> Result<(), Garbled> {
        if !self.rescinding.remove(&message.id) {
            return Err(Garbled("an answer to nothing"));
        }
        let stalled = self.classes.of(&message.id, &self.limits).peer_stalled;
        if let Some(Incoming::Posted { posted, cleared: cleared @ false }) =
            self.incoming.get_mut(&message.id)
            && (stalled || posted.message.bytes > self.limits.eager_bytes as usize)
        {
            *cleared = true;
            if let Some(place) = &mut posted.place {
                place.generation = self.generation;
            }
            let (ours, place) = (posted.message, posted.place);
            self.tell_clear(&ours, place);
        }
        Ok(())
    }

    fn clear_refused(&mut self, theirs: Message, events: &mut Vec<Event>) {
        if let Some(Incoming::Posted { cleared: true, .. }) = self.incoming.get(&theirs.id)
            && let Some(Incoming::Posted { posted, .. }) = self.incoming.remove(&theirs.id)
        {
            events.push(self.mismatch(posted.token, theirs));
        }
    }

    fn peer_stalled(&mut self, message: &Message) -> Result<(), Garbled> {
        let key = ClassKey::of(&message.id);
        let class = self.classes.of(&message.id, &self.limits);
        if std::mem::replace(&mut class.peer_stalled, true) {
            return Err(Garbled("a stall within a stall"));
        }
        self.stalled += 1;
        let mut cleared_now = Vec::new();
        for (id, incoming) in &mut self.incoming {
            if let Incoming::Posted { posted, cleared: cleared @ false } = incoming
                && ClassKey::of(id) == key
                && !self.rescinding.contains(id)
            {
                *cleared = true;
                cleared_now.push(posted.message);
            }
        }
        // Such receives are small, and have no place.
        for message in &cleared_now {
            self.tell_clear(message, None);
        }
        // In the order of their numbers, so that a run is the same each time.
        let mut sought: Vec<_> = self.sought.iter().filter(|id| ClassKey::of(id) == key).copied().collect();
        sought.sort_unstable();
        sought.iter().for_each(|id| self.ask(id));
        Ok(())
    }

    fn peer_resumed(&mut self, message: &Message) -> Result<(), Garbled> {
        let class = self.classes.of(&message.id, &self.limits);
        if !std::mem::replace(&mut class.peer_stalled, false) {
            return Err(Garbled("the end of a stall that was none"));
        }
        self.stalled -= 1;
        Ok(())
    }

    /// `bytes` bytes lie where [`wants`](Link::wants) said, or were thrown away as it said.
    ///
    /// # Errors
    /// What is complete with them breaks the protocol; the link is unusable then.
    pub fn placed(&mut self, bytes: usize, events: &mut Vec<Event>) -> Result<(), Garbled> {
        let bytes = bytes.min(self.cursor.left);
        self.cursor.left -= bytes;
        if !self.cursor.memory.is_null() {
            self.cursor.memory = self.cursor.memory.wrapping_add(bytes);
        }
        if let Some(transfer) = self.cursor.transfer() {
            transfer.arrived += bytes;
        }
        if self.cursor.left == 0 && self.cursor.is_amid_payload() {
            self.payload_ended(events)?;
        }
        Ok(())
    }

    fn payload_ended(&mut self, events: &mut Vec<Event>) -> Result<(), Garbled> {
        self.cursor.memory = std::ptr::null_mut();
        let whole = self.cursor.whole;
        // The sender of a message that it has not copied waits to hear that it is here.
        let promptly = match &self.cursor.purpose {
            Purpose::Transfer(Transfer { message, arrived, .. }) => {
                *arrived >= message.bytes && message.bytes > COPIED
            }
            _ => whole > COPIED,
        };
        self.frame_arrived(whole, promptly);
        match std::mem::take(&mut self.cursor.purpose) {
            Purpose::Header | Purpose::Refused => {}
            Purpose::Place(message, bytes) => {
                let place = bytes.first_chunk().map(Place::decode);
                self.buffers.put(bytes);
                self.clear_arrived(message, place, events)?;
            }
            Purpose::Transfer(transfer) if transfer.arrived < transfer.message.bytes => {
                self.incoming.insert(transfer.message.id, Incoming::Arriving(transfer));
            }
            Purpose::Transfer(transfer) => {
                events.extend(transfer.posted.map(|posted| Event::Received(posted.token)));
            }
            Purpose::Buffer(id) => {
                let Some(Incoming::Buffered { message, buffer, complete, posted, .. }) =
                    self.incoming.get_mut(&id)
                else {
                    return Ok(());
                };
                *complete = true;
                if let Some(posted) = posted.take() {
                    let (message, buffer) = (*message, std::mem::take(buffer));
                    self.deliver(&buffer, posted, events);
                    self.incoming.remove(&id);
                    self.buffers.put(buffer);
                    self.release(&message);
                }
            }
        }
        Ok(())
    }

    /// Whether the peer was told where the memory of this receive is.
    pub(super) fn exposes_recv(&self, token: Token) -> bool {
        self.told_of(&|posted| posted.token == token)
    }

    /// Whether the peer was told of memory of which this is so.
    pub(super) fn exposes_recv_any(&self, within: &dyn Fn(*const u8) -> bool) -> bool {
        self.told_of(&|posted| within(posted.memory))
    }

    fn told_of(&self, is: &dyn Fn(&Posted) -> bool) -> bool {
        let told = |posted: &Posted| is(posted) && posted.place.is_some_and(|place| self.is_valid(&place));
        let under_way = match &self.cursor.purpose {
            Purpose::Transfer(transfer) => transfer.posted.as_ref(),
            _ => None,
        };
        under_way.is_some_and(told)
            || self.incoming.values().any(|incoming| match incoming {
                Incoming::Posted { posted, .. } => told(posted),
                Incoming::Arriving(transfer) => transfer.posted.as_ref().is_some_and(told),
                _ => false,
            })
    }

    /// All receives that have not ended.
    pub(super) fn posted_mut(&mut self) -> impl Iterator<Item = &mut Posted> {
        let under_way = self.cursor.transfer().and_then(|transfer| transfer.posted.as_mut());
        let waiting = self.incoming.values_mut().filter_map(|incoming| match incoming {
            Incoming::Posted { posted, .. } => Some(posted),
            other => other.posted()?.as_mut(),
        });
        under_way.into_iter().chain(waiting)
    }

    pub(super) fn withdraw_recv(&mut self, token: Token) -> bool {
        let of = |posted: &Option<Posted>| posted.as_ref().is_some_and(|posted| posted.token == token);
        if let Some(transfer) = self.cursor.transfer()
            && of(&transfer.posted)
        {
            transfer.posted = None;
            self.cursor.memory = std::ptr::null_mut();
            return true;
        }
        let found = self.incoming.iter_mut().find_map(|(id, incoming)| match incoming {
            Incoming::Posted { posted, .. } => (posted.token == token).then_some(*id),
            other => other.posted().is_some_and(|posted| of(posted)).then_some(*id),
        });
        let Some(id) = found else { return false };
        match self.incoming.get_mut(&id) {
            Some(Incoming::Posted { posted, cleared }) => {
                let (message, cleared) = (posted.message, *cleared);
                self.incoming.remove(&id);
                if cleared {
                    self.rescind(&message);
                }
            }
            Some(other) => {
                if let Some(posted) = other.posted() {
                    *posted = None;
                }
            }
            None => {}
        }
        true
    }

    /// Copies a message from its buffer into the memory of its receive, which fits it.
    fn deliver(&self, buffer: &[u8], posted: Posted, events: &mut Vec<Event>) {
        // SAFETY: the poster keeps `memory` valid for as many bytes (`post_recv`).
        unsafe { self.buffers.put_into(posted.memory, &buffer[..posted.message.bytes]) };
        events.push(Event::Received(posted.token));
    }
}
