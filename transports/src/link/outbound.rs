//! Frames that wait for the pipe: small ones ahead of the pieces of large messages, within reason.
//!
//! A small frame never overtakes a piece that was queued before it more than [`OVERTAKE`] times in a row, and a piece never overtakes a
//! small frame. Pieces of several messages take turns.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::wire::{Detail, HEADER_BYTES, Header, Kind};
use crate::message::Message;
use crate::{Event, Token};

/// Small frames that may leave in a row while a piece waits.
const OVERTAKE: u32 = 16;
/// Large messages leave in pieces of this size, so that small frames need not wait for all of them.
pub(super) const PIECE: usize = 1 << 20;

/// A frame on its way out.
#[derive(Debug)]
pub(super) struct Frame {
    header: [u8; HEADER_BYTES],
    payload: *const u8,
    bytes: usize,
    /// Bytes of the message after this piece.
    rest: usize,
    /// Earlier pieces of the message have left.
    begun: bool,
    /// The send that ends with this frame.
    token: Option<Token>,
    order: u64,
}

impl Frame {
    /// A frame without payload.
    pub(super) fn notice(header: &Header) -> Self {
        Self::payload(header, std::ptr::null(), 0, None)
    }

    /// A whole message.
    pub(super) fn eager(header: &Header, memory: *const u8, token: Token) -> Self {
        Self::payload(header, memory, header.message.bytes, Some(token))
    }

    /// The first piece of a message.
    pub(super) fn first_piece(message: &Message, memory: *const u8, token: Token) -> Self {
        let piece = message.bytes.min(PIECE);
        let header = Header { kind: Kind::Data, message: *message, detail: Detail::Piece(piece) };
        Self { rest: message.bytes - piece, ..Self::payload(&header, memory, piece, Some(token)) }
    }

    fn payload(header: &Header, payload: *const u8, bytes: usize, token: Option<Token>) -> Self {
        Self { header: header.encode(), payload, bytes, rest: 0, begun: false, token, order: 0 }
    }

    /// The piece after this one.
    fn next_piece(mut self) -> Self {
        let piece = self.rest.min(PIECE);
        self.header[56..64].copy_from_slice(&(piece as u64).to_le_bytes());
        // The poster of the send keeps its memory valid for all of the message, of which `rest` bytes follow.
        self.payload = self.payload.wrapping_add(self.bytes);
        Self { bytes: piece, rest: self.rest - piece, begun: true, ..self }
    }

    /// What its header says.
    pub(super) fn header(&self) -> Option<Header> {
        Header::decode(&self.header).ok()
    }

    /// The send that ends with it.
    pub(super) fn token(&self) -> Option<Token> {
        self.token
    }

    /// Its memory.
    pub(super) fn memory(&self) -> *const u8 {
        self.payload
    }

    fn len(&self) -> usize {
        HEADER_BYTES + self.bytes
    }

    /// Its bytes from `skip` on: the rest of the header and the rest of the payload.
    fn parts(&self, skip: usize) -> [&[u8]; 2] {
        let header = &self.header[skip.min(HEADER_BYTES)..];
        let skip = skip.saturating_sub(HEADER_BYTES);
        let payload: &[u8] = if skip < self.bytes {
            // SAFETY: `payload` points at `bytes` bytes that the poster of the send keeps valid and unwritten until the frame
            // has left or its token is withdrawn, which removes the frame (`post_send`'s contract).
            unsafe { std::slice::from_raw_parts(self.payload.add(skip), self.bytes - skip) }
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
    /// A frame of which nothing had left; it is out of the queue.
    Whole(Box<Frame>),
    /// Part of the message has left.
    Partial,
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
    small: VecDeque<Frame>,
    pieces: VecDeque<Frame>,
    overtaken: u32,
    order: u64,
}

impl Outbound {
    pub(super) fn is_empty(&self) -> bool {
        self.current.is_none() && self.small.is_empty() && self.pieces.is_empty()
    }

    pub(super) fn push_small(&mut self, frame: Frame) {
        self.order += 1;
        self.small.push_back(Frame { order: self.order, ..frame });
    }

    pub(super) fn push_piece(&mut self, frame: Frame) {
        self.order += 1;
        self.pieces.push_back(Frame { order: self.order, ..frame });
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

    /// Fills `slices` with what leaves next, up to about `limit` bytes; says how many slices it filled.
    pub(super) fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>], limit: usize) -> usize {
        let (mut filled, mut bytes, mut smalls, mut pieces, mut overtaken) = (0, 0, 0, 0, self.overtaken);
        let mut current = self.current.as_ref().map(|(frame, done)| (frame, *done));
        while filled + 2 <= slices.len() && bytes < limit {
            let (frame, skip) = match current.take() {
                Some(partial) => partial,
                None => match Self::choose(self.small.get(smalls), self.pieces.get(pieces), overtaken) {
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
            for part in frame.parts(skip) {
                let take = part.len().min(limit - bytes);
                if take > 0 {
                    bytes += take;
                    slices[filled] = IoSlice::new(&part[..take]);
                    filled += 1;
                }
            }
        }
        filled
    }

    /// The pipe took `bytes` of what [`gather`](Self::gather) gave.
    pub(super) fn wrote(&mut self, mut bytes: usize, events: &mut Vec<Event>) {
        while bytes > 0 {
            let Some((frame, done)) = self.current.take().or_else(|| self.next().map(|frame| (frame, 0)))
            else {
                return;
            };
            let step = bytes.min(frame.len() - done);
            bytes -= step;
            if done + step < frame.len() {
                self.current = Some((frame, done + step));
            } else if frame.rest > 0 {
                self.push_piece(frame.next_piece());
            } else if let Some(token) = frame.token {
                events.push(Event::Sent(token));
            }
        }
    }

    fn next(&mut self) -> Option<Frame> {
        match Self::choose(self.small.front(), self.pieces.front(), self.overtaken)? {
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

    /// Takes out the frame of a send.
    pub(super) fn withdraw(&mut self, token: Token) -> Withdrawn {
        if self.current.as_ref().is_some_and(|(frame, _)| frame.token == Some(token)) {
            return Withdrawn::Partial;
        }
        for lane in [&mut self.small, &mut self.pieces] {
            let Some(at) = lane.iter().position(|frame| frame.token == Some(token)) else { continue };
            return match lane.remove(at) {
                Some(frame) if !frame.begun => Withdrawn::Whole(Box::new(frame)),
                _ => Withdrawn::Partial,
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
