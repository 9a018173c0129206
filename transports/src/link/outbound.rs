//! Frames that wait for the pipe: small ones ahead of the pieces of large messages, within reason.
//!
//! A small frame never overtakes a piece that was queued before it more than [`OVERTAKE`] times in a row, and a piece never overtakes a
//! small frame. Pieces of several messages take turns.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::buffers::Buffers;
use super::place::{Destined, PLACE_BYTES, Place};
use super::wire::{ACK_AT, Detail, HEADER_BYTES, Header, Kind};
use crate::Token;
use crate::message::{Message, MessageId};

/// Small frames that may leave in a row while a piece waits.
const OVERTAKE: u32 = 16;
/// Large messages leave in pieces of this size, so that small frames need not wait for all of them.
pub(super) const PIECE: usize = 1 << 20;

/// A frame on its way out.
#[derive(Debug)]
pub(super) struct Frame {
    header: [u8; HEADER_BYTES],
    /// The poster's memory.
    payload: *const u8,
    bytes: usize,
    /// Bytes of the message after this piece.
    rest: usize,
    /// Earlier pieces of the message have left.
    begun: bool,
    /// The send that this is a part of, unless it has ended or is withdrawn.
    token: Option<Token>,
    /// The payload, if it is no more the poster's.
    copy: Vec<u8>,
    /// Where the payload belongs, if the receiver has said it.
    place: Option<Place>,
    /// The poster's memory is such as the processor does not touch.
    foreign: bool,
    order: u64,
}

impl Frame {
    /// A frame without payload.
    pub(super) fn notice(header: &Header) -> Self {
        Self::payload(header, std::ptr::null(), 0, None)
    }

    /// A clearance that says where the message belongs.
    pub(super) fn clearance(header: &Header, place: &Place, buffers: &mut Buffers) -> Self {
        let mut copy = buffers.take(PLACE_BYTES);
        copy[..PLACE_BYTES].copy_from_slice(&place.encode());
        Self { bytes: PLACE_BYTES, copy, ..Self::notice(header) }
    }

    /// A whole message.
    pub(super) fn eager(header: &Header, memory: *const u8, token: Token) -> Self {
        Self::payload(header, memory, header.message.bytes, Some(token))
    }

    /// The first piece of a message.
    pub(super) fn first_piece(
        message: &Message,
        memory: *const u8,
        token: Token,
        place: Option<Place>,
        foreign: bool,
    ) -> Self {
        let piece = message.bytes.min(PIECE);
        let header = Header { kind: Kind::Data, ack: 0, message: *message, detail: Detail::Piece(piece) };
        Self {
            rest: message.bytes - piece,
            place,
            foreign,
            ..Self::payload(&header, memory, piece, Some(token))
        }
    }

    fn payload(header: &Header, payload: *const u8, bytes: usize, token: Option<Token>) -> Self {
        let header = header.encode();
        let (rest, begun, copy) = (0, false, Vec::new());
        Self { header, payload, bytes, rest, begun, token, copy, place: None, foreign: false, order: 0 }
    }

    /// The piece after this one, if there is one.
    pub(super) fn next_piece(&self) -> Option<Self> {
        let piece = self.rest.min(PIECE);
        let mut header = self.header;
        header[56..64].copy_from_slice(&(piece as u64).to_le_bytes());
        (piece > 0).then(|| Self {
            header,
            // The poster of the send keeps its memory valid for all of the message, of which `rest` bytes follow.
            payload: self.payload.wrapping_add(self.bytes),
            bytes: piece,
            rest: self.rest - piece,
            begun: true,
            token: self.token,
            copy: Vec::new(),
            place: self.place.map(|place| place.after(self.bytes)),
            foreign: self.foreign,
            order: 0,
        })
    }

    /// What its header says.
    pub(super) fn header(&self) -> Option<Header> {
        Header::decode(&self.header).ok()
    }

    /// The message that it is a piece of.
    pub(super) fn message(&self) -> Option<MessageId> {
        self.header().filter(|header| header.kind == Kind::Data).map(|header| header.message.id)
    }

    /// Whether earlier pieces of its message have left.
    pub(super) const fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether its send was withdrawn when its memory could not be read.
    pub(super) fn is_void(&self) -> bool {
        self.token.is_none() && self.is_absent()
    }

    /// The send that it is a part of, unless that has ended or is withdrawn.
    pub(super) fn token(&self) -> Option<Token> {
        self.token
    }

    /// Where its payload belongs, if the receiver has said it.
    pub(super) const fn place(&self) -> Option<Place> {
        self.place
    }

    /// It goes through the pipe.
    pub(super) const fn forget_place(&mut self) {
        self.place = None;
    }

    /// Whether a device may read its memory for this send.
    pub(super) fn exposes(&self, token: Token) -> bool {
        self.place.is_some() && self.token == Some(token)
    }

    /// Its memory.
    pub(super) fn memory(&self) -> *const u8 {
        self.payload
    }

    pub(super) fn len(&self) -> usize {
        HEADER_BYTES + self.bytes
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it is all of its message.
    pub(super) fn is_whole_message(&self) -> bool {
        self.rest == 0 && !self.begun
    }

    /// Whether a send ends when this frame, and all before it, have been delivered.
    pub(super) fn ends_send(&self) -> bool {
        self.rest == 0 && self.token.is_some()
    }

    pub(super) fn take_token(&mut self) -> Option<Token> {
        self.token.take()
    }

    /// The watermark that it tells.
    pub(super) fn acknowledges(&self) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&self.header[ACK_AT..ACK_AT + 4]);
        u32::from_le_bytes(word)
    }

    /// Whether it is no part of what is kept.
    pub(super) fn is_ack(&self) -> bool {
        self.header[3] == Kind::Ack as u8
    }

    /// Tells a newer one. Only before any of it has left.
    fn stamp(&mut self, watermark: u32) {
        self.header[ACK_AT..ACK_AT + 4].copy_from_slice(&watermark.to_le_bytes());
    }

    /// Copies the payload, so that the poster's memory is not needed any more. Says how many bytes that takes; nothing if the memory is foreign and
    /// cannot be read now.
    pub(super) fn own(&mut self, buffers: &mut Buffers) -> Option<usize> {
        if self.bytes == 0 || !self.copy.is_empty() {
            return Some(0);
        }
        // SAFETY: the poster keeps `bytes` bytes at `payload` valid until its send has ended or is withdrawn, and this comes before either.
        self.copy = unsafe { buffers.copy_of(self.payload, self.bytes) }?;
        Some(self.bytes)
    }

    /// Where its payload is read.
    fn lies(&self) -> *const u8 {
        if self.copy.is_empty() { self.payload } else { self.copy.as_ptr() }
    }

    /// Whether its payload cannot be lent, but for a device.
    pub(super) const fn is_absent(&self) -> bool {
        self.foreign && self.copy.is_empty() && self.bytes > 0
    }

    /// Whether it cannot leave as it is.
    pub(super) const fn is_stuck(&self) -> bool {
        self.is_absent() && self.place.is_none()
    }

    /// Whether a device may read memory for it of which this is so.
    pub(super) fn exposes_any(&self, within: &dyn Fn(*const u8) -> bool) -> bool {
        self.place.is_some() && self.copy.is_empty() && within(self.payload)
    }

    /// The rest of its payload when so many of its bytes have left, where it lies.
    pub(super) fn payload_after(&self, done: usize) -> (*const u8, usize) {
        let skip = done.saturating_sub(HEADER_BYTES).min(self.bytes);
        (self.lies().wrapping_add(skip), self.bytes - skip)
    }

    /// Bytes of the copy, if there is one.
    pub(super) fn copied_bytes(&self) -> usize {
        if self.copy.is_empty() { 0 } else { self.bytes }
    }

    /// Gives the copy back. Says how many bytes it took.
    pub(super) fn release(&mut self, buffers: &mut Buffers) -> usize {
        let bytes = self.copied_bytes();
        buffers.put(std::mem::take(&mut self.copy));
        bytes
    }

    /// Lends its bytes from `skip` on, up to `limit` in all.
    pub(super) fn lend<'a>(
        &'a self,
        skip: usize,
        slices: &mut [IoSlice<'a>],
        filled: &mut usize,
        bytes: &mut usize,
        limit: usize,
    ) {
        for part in self.parts(skip) {
            let take = part.len().min(limit - *bytes);
            if take > 0 {
                *bytes += take;
                slices[*filled] = IoSlice::new(&part[..take]);
                *filled += 1;
            }
        }
    }

    /// Its bytes from `skip` on: the rest of the header and the rest of the payload.
    pub(super) fn parts(&self, skip: usize) -> [&[u8]; 2] {
        let header = &self.header[skip.min(HEADER_BYTES)..];
        let skip = skip.saturating_sub(HEADER_BYTES);
        let payload: &[u8] = if skip < self.bytes && !self.is_absent() {
            // SAFETY: `payload` points at `bytes` bytes that the poster of the send keeps valid and unwritten until the frame
            // has left or its token is withdrawn, which removes the frame (`post_send`'s contract), or that `copy` holds.
            unsafe { std::slice::from_raw_parts(self.lies().add(skip), self.bytes - skip) }
        } else {
            &[]
        };
        [header, payload]
    }
}

/// What [`Outbound::withdraw`] found.
#[derive(Debug)]
pub(super) enum Withdrawn {
    /// Nothing of that token.
    Absent,
    /// A message of which nothing had left; it is out of the queue.
    Whole(Box<Frame>),
    /// Some of its pieces had left, and the rest will not: the header of a piece.
    Begun(Header),
    /// Its last frame is on its way out, from a copy.
    Leaving,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Lane {
    Small,
    Pieces,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    /// Partly written, and how much of it.
    current: Option<(Frame, usize)>,
    /// An acknowledgement that nothing else would carry.
    ack: Option<Frame>,
    small: VecDeque<Frame>,
    pieces: VecDeque<Frame>,
    overtaken: u32,
    order: u64,
    /// What frames acknowledge.
    watermark: u32,
}

impl Outbound {
    pub(super) fn is_empty(&self) -> bool {
        self.current.is_none() && self.ack.is_none() && self.small.is_empty() && self.pieces.is_empty()
    }

    pub(super) fn push_small(&mut self, mut frame: Frame) {
        self.order += 1;
        frame.stamp(self.watermark);
        self.small.push_back(Frame { order: self.order, ..frame });
    }

    pub(super) fn push_piece(&mut self, mut frame: Frame) {
        self.order += 1;
        frame.stamp(self.watermark);
        self.pieces.push_back(Frame { order: self.order, ..frame });
    }

    /// The rest of a piece whose header has left, unless it leaves from a copy.
    pub(super) fn lendable(&self) -> Option<&[u8]> {
        let (frame, done) = self.current.as_ref()?;
        let is_piece = frame.header[3] == Kind::Data as u8 && frame.token.is_some() && frame.copy.is_empty();
        let [header, payload] = frame.parts(*done);
        (is_piece && header.is_empty() && !payload.is_empty()).then_some(payload)
    }

    /// The rest of a frame whose header has left and whose payload has a place.
    pub(super) fn destined(&self) -> Option<Destined> {
        let (frame, done) = self.current.as_ref()?;
        frame.destined(*done)
    }

    /// Whether a device may read memory for this send.
    pub(super) fn exposes(&self, token: Token) -> bool {
        self.current.as_ref().is_some_and(|(frame, _)| frame.exposes(token))
    }

    /// Whether a device may read memory of which this is so.
    pub(super) fn exposes_any(&self, within: &dyn Fn(*const u8) -> bool) -> bool {
        self.current.as_ref().is_some_and(|(frame, _)| frame.exposes_any(within))
    }

    /// Copies the piece that leaves next, if it cannot leave as it is. One that is away lets those of other messages pass, and is tried again.
    pub(super) fn load(&mut self, buffers: &mut Buffers) {
        for _ in 0..self.pieces.len() {
            let Some(frame) = self.pieces.front_mut() else { return };
            if frame.is_absent() && !buffers.is_here(frame.payload) {
                frame.forget_place();
            }
            if !frame.is_stuck() || frame.own(buffers).is_some() {
                return;
            }
            self.pieces.rotate_left(1);
        }
    }

    /// A piece that is to leave once more.
    pub(super) fn return_piece(&mut self, frame: Frame) {
        self.pieces.push_front(frame);
    }

    /// Pieces of which this is so do not leave.
    pub(super) fn drop_pieces(&mut self, which: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let (dropped, left) = std::mem::take(&mut self.pieces).into_iter().partition(|frame| which(frame));
        self.pieces = left;
        Vec::from_iter::<VecDeque<_>>(dropped)
    }

    /// The rest of a withdrawn send waits for the connection, like what had left of it.
    pub(super) fn void(&mut self, token: Token) {
        for frame in self.pieces.iter_mut().filter(|frame| frame.token == Some(token)) {
            (frame.token, frame.copy) = (None, Vec::new());
        }
    }

    /// A piece, if it can leave as it is.
    fn piece(&self, at: usize) -> Option<&Frame> {
        self.pieces.get(at).filter(|frame| !frame.is_stuck())
    }

    pub(super) fn forget_places(&mut self) {
        self.pieces.iter_mut().for_each(Frame::forget_place);
    }

    /// Which lane's frame leaves next.
    fn choose(small: Option<&Frame>, piece: Option<&Frame>, overtaken: u32) -> Option<Lane> {
        match (small, piece) {
            (None, None) => None,
            (Some(_), None) => Some(Lane::Small),
            (None, Some(_)) => Some(Lane::Pieces),
            (Some(small), Some(piece)) if small.order < piece.order || overtaken < OVERTAKE => {
                Some(Lane::Small)
            }
            _ => Some(Lane::Pieces),
        }
    }

    /// Makes the frames that leave next tell `watermark`; if `owed` and none of them can leave, a frame of its own does.
    pub(super) fn acknowledge(&mut self, watermark: u32, owed: bool, room: usize) {
        self.watermark = watermark;
        for frame in [self.small.front_mut(), self.pieces.front_mut()].into_iter().flatten() {
            frame.stamp(watermark);
        }
        let carried = room > 0 && !(self.small.is_empty() && self.piece(0).is_none());
        if owed && !carried {
            self.ack = Some(Frame::notice(&Header::ack(watermark)));
        }
    }

    /// How many frames of the queues have begun to leave and not left.
    pub(super) fn leaving(&self) -> usize {
        usize::from(self.current.as_ref().is_some_and(|(frame, _)| !frame.is_ack()))
    }

    /// Fills `slices` with what leaves next, up to about `limit` bytes and at most `room` new frames; says how many slices it filled. It ends before a
    /// payload that has a place.
    pub(super) fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>], limit: usize, room: usize) -> usize {
        let (mut filled, mut bytes, mut smalls, mut pieces, mut overtaken) = (0, 0, 0, 0, self.overtaken);
        let mut current = self.current.as_ref().map(|(frame, done)| (frame, *done));
        let mut ack = self.ack.as_ref();
        while filled + 2 <= slices.len() && bytes < limit {
            let (frame, skip) = match current.take().or_else(|| ack.take().map(|frame| (frame, 0))) {
                Some(first) => first,
                None if smalls + pieces >= room => break,
                None => match Self::choose(self.small.get(smalls), self.piece(pieces), overtaken) {
                    Some(Lane::Small) => {
                        smalls += 1;
                        overtaken += 1;
                        (&self.small[smalls - 1], 0)
                    }
                    Some(Lane::Pieces) => {
                        pieces += 1;
                        overtaken = 0;
                        (&self.pieces[pieces - 1], 0)
                    }
                    None => break,
                },
            };
            if frame.place.is_some() {
                let limit = limit.min(bytes + HEADER_BYTES.saturating_sub(skip));
                frame.lend(skip, slices, &mut filled, &mut bytes, limit);
                break;
            }
            frame.lend(skip, slices, &mut filled, &mut bytes, limit);
        }
        filled
    }

    /// The pipe took `bytes` of what [`gather`](Self::gather) gave. Takes off what belongs to the next frame, and gives the frame if it
    /// has left.
    pub(super) fn wrote(&mut self, bytes: &mut usize) -> Option<Frame> {
        let taken = self.current.take();
        let (frame, done) = taken.or_else(|| self.next().map(|frame| (frame, 0)))?;
        let step = (*bytes).min(frame.len() - done);
        *bytes -= step;
        if done + step < frame.len() {
            self.current = Some((frame, done + step));
            return None;
        }
        Some(frame)
    }

    /// As [`wrote`](Self::wrote) for a small frame that has left at once, which is given as its token alone: mostly it is all that there was.
    #[inline]
    pub(super) fn wrote_whole(&mut self, bytes: &mut usize) -> Option<Option<Token>> {
        let front = self.small.front().filter(|front| front.len() <= *bytes && front.copy.is_empty())?;
        if self.current.is_some() || self.ack.is_some() || !self.pieces.is_empty() {
            return None;
        }
        let token = front.token;
        *bytes -= front.len();
        self.overtaken += 1;
        self.small.pop_front();
        Some(token)
    }

    fn next(&mut self) -> Option<Frame> {
        if let Some(ack) = self.ack.take() {
            return Some(ack);
        }
        match Self::choose(self.small.front(), self.piece(0), self.overtaken)? {
            Lane::Small => {
                self.overtaken += 1;
                self.small.pop_front()
            }
            Lane::Pieces => {
                self.overtaken = 0;
                self.pieces.pop_front()
            }
        }
    }

    /// The stream broke: gives the frame that had begun to leave.
    pub(super) fn broke(&mut self) -> Option<Frame> {
        self.ack = None;
        self.current.take().map(|(frame, _)| frame).filter(|frame| !frame.is_ack())
    }

    /// Takes out what is left of a send. What has begun to leave leaves all the same, from a copy.
    pub(super) fn withdraw(&mut self, token: Token, buffers: &mut Buffers) -> Withdrawn {
        if let Some((frame, _)) = self.current.as_mut().filter(|(frame, _)| frame.token == Some(token)) {
            let owned = frame.own(buffers);
            debug_assert!(
                owned.is_some(),
                "foreign memory leaves from a copy, or by a device whose connection is broken off before"
            );
            frame.token = None;
            return match (std::mem::take(&mut frame.rest), frame.header()) {
                (1.., Some(header)) => Withdrawn::Begun(header),
                _ => Withdrawn::Leaving,
            };
        }
        for lane in [&mut self.small, &mut self.pieces] {
            let Some(at) = lane.iter().position(|frame| frame.token == Some(token)) else { continue };
            return match lane.remove(at).map(|frame| (frame.begun, frame.header(), frame)) {
                Some((true, Some(header), _)) => Withdrawn::Begun(header),
                Some((false, _, frame)) => Withdrawn::Whole(Box::new(frame)),
                _ => Withdrawn::Absent,
            };
        }
        Withdrawn::Absent
    }

    /// Takes out the untouched message with this identity, whose clearance the receiver takes back.
    pub(super) fn take_unbegun(&mut self, message: &Message) -> Option<Frame> {
        let at = self.pieces.iter().position(|frame| {
            !frame.begun && frame.header().is_some_and(|header| header.message.id == message.id)
        })?;
        self.pieces.remove(at)
    }
}
