//! What has left and may have to leave again, and what has arrived: a stream that breaks loses nothing and repeats nothing.
//!
//! Every frame but [`Kind::Ack`](super::wire::Kind::Ack) is a chunk of a [`Ledger`] without end at its sender, and of a [`Receipt`] at its
//! receiver. A frame is *kept* from when it begins to leave until the receiver's watermark has passed it, which any header may tell. After a
//! break both ends exchange their [`Position`]s, and the sender writes again, from the very byte, what the other has not got. The bytes are
//! the same, so it does not matter that the receiver has acted on the first part of a frame already.
//!
//! Small messages are copied when they leave, and their send ends at once. All others are kept where they lie, and their
//! send ends with the acknowledgement, which their receiver does not hold back.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::Garbled;
use super::buffers::Buffers;
use super::outbound::Frame;
use super::wire::HEADER_BYTES;
use crate::Event;
use crate::Token;
use crate::ledger::{Fault, Generation, Ledger, Receipt};

/// Frames that may be unacknowledged. A receiver acknowledges far earlier.
const FRAMES: usize = 1024;
/// Messages up to this size are copied when they leave. Larger ones are acknowledged at once.
pub const COPIED: usize = 64 << 10;
/// When so many bytes are copied, nothing more leaves until some are acknowledged, as a receiver does far earlier.
const MOST_COPIED: usize = 1 << 20;
/// A receiver acknowledges after so many frames or bytes, if nothing that it sends has told it before.
const ACK_FRAMES: u32 = 64;
const ACK_BYTES: usize = 128 << 10;

/// How far a stream has come at its receiver.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Position {
    /// Frames that have arrived, modulo 2³².
    pub frames: u32,
    /// Bytes of the next one: none, or its header and a part of its payload.
    pub bytes: u64,
}

/// What a stream that stands again has to carry once more.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Resumed {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
    /// Anything had passed, in either direction, since it was last resumed, or nothing waited to.
    pub progressed: bool,
}

/// A planted fault, by which tests show that they would notice.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Planted {
    /// The sender takes what it has written for delivered.
    TrustCompletion,
    /// The receiver forgets that it has the last frame.
    DeliverTwice,
    /// The transport opens a stream anew under the old one's number.
    ReuseGeneration,
}

/// What [`Replay::withdraw`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kept {
    /// Nothing of that token.
    Nothing,
    /// All of it is here.
    Copied,
    /// Some of it is nowhere else than in memory that cannot be read, and the connection is broken.
    Void,
}

/// Both directions' accounts.
#[derive(Debug)]
pub(super) struct Replay {
    ledger: Ledger,
    generation: Generation,
    /// The ledger's chunks from the watermark on, as far as they have begun to leave.
    pub(super) kept: VecDeque<Frame>,
    pub(super) copied: usize,
    /// Sends among `kept` that end with their acknowledgement.
    pub(super) unended: usize,
    /// What is written again: the chunk, and how many of its bytes need not be or have been.
    again: Option<(u32, usize)>,
    receipt: Receipt,
    /// The newest watermark that a frame has carried to the peer.
    told: u32,
    /// The watermark that the peer waits to be told.
    owed: Option<u32>,
    unacknowledged: usize,
    resumed_at: Option<(Position, Position)>,
    planted: Option<Planted>,
}

impl Replay {
    pub(super) fn new(planted: Option<Planted>) -> Self {
        let fault = (planted == Some(Planted::TrustCompletion)).then_some(Fault::IgnoreWatermark);
        Self {
            ledger: Ledger::endless(FRAMES).plant(fault),
            generation: Generation::default(),
            kept: VecDeque::new(),
            copied: 0,
            unended: 0,
            again: None,
            receipt: Receipt::endless(),
            told: 0,
            owed: None,
            unacknowledged: 0,
            resumed_at: None,
            planted,
        }
    }

    // ---- the sender's half ---------------------------------------------------------------------------------------------

    /// How many frames may begin to leave.
    pub(super) fn room(&self) -> usize {
        if self.copied < MOST_COPIED { FRAMES - self.ledger.under_way() as usize } else { 0 }
    }

    /// Whether a send waits for its acknowledgement.
    pub(super) const fn awaits(&self) -> bool {
        self.unended > 0
    }

    /// A frame has left, whole.
    pub(super) fn left(&mut self, frame: Frame, buffers: &mut Buffers, events: &mut Vec<Event>) {
        self.tell(frame.acknowledges());
        let chunk = self.ledger.begun();
        self.ledger.handle_started(chunk, self.generation);
        let written = self.ledger.handle_written(chunk);
        debug_assert!(written.is_ok(), "it was just begun");
        self.keep(frame, buffers, events);
    }

    fn keep(&mut self, mut frame: Frame, buffers: &mut Buffers, events: &mut Vec<Event>) {
        self.copied += frame.copied_bytes();
        if frame.is_whole_message() && frame.payload_bytes() <= COPIED {
            // Foreign memory is sent in larger messages only.
            self.copied += frame.own(buffers).unwrap_or_default();
            events.extend(frame.take_token().map(Event::Sent));
        }
        self.unended += usize::from(frame.ends_send());
        self.kept.push_back(frame);
    }

    /// The peer has every frame before this.
    pub(super) fn acknowledged(
        &mut self,
        watermark: u32,
        buffers: &mut Buffers,
        events: &mut Vec<Event>,
    ) -> Result<(), Garbled> {
        let before = self.ledger.delivered();
        if watermark == before {
            return Ok(());
        }
        let unsent = Garbled("an acknowledgement of what it was not sent");
        self.ledger.handle_delivered(watermark).map_err(|_| unsent)?;
        self.forget(before, buffers, events);
        match self.again {
            Some((chunk, _)) if self.ledger.chunk(chunk).is_none() => Err(unsent),
            _ => Ok(()),
        }
    }

    /// Lets go of what the watermark has passed.
    fn forget(&mut self, before: u32, buffers: &mut Buffers, events: &mut Vec<Event>) {
        for _ in 0..self.ledger.delivered().wrapping_sub(before) {
            let Some(mut frame) = self.kept.pop_front() else { return };
            if frame.ends_send() {
                self.unended -= 1;
                events.extend(frame.take_token().map(Event::Sent));
            }
            self.copied -= frame.release(buffers);
        }
    }

    /// Copies what is kept of a send, so that its memory is not touched again. What cannot be read begins [anew](super::anew) without a message.
    pub(super) fn withdraw(&mut self, token: Token, buffers: &mut Buffers) -> Kept {
        let mut kept = Kept::Nothing;
        for frame in self.kept.iter_mut().filter(|frame| frame.token() == Some(token)) {
            self.unended -= usize::from(frame.ends_send());
            frame.take_token();
            match frame.own(buffers) {
                Some(bytes) if kept != Kept::Void => {
                    (kept, self.copied) = (Kept::Copied, self.copied + bytes)
                }
                Some(bytes) => self.copied += bytes,
                None => kept = Kept::Void,
            }
        }
        kept
    }

    /// Whether a device may read memory for this send.
    pub(super) fn exposes(&self, token: Token) -> bool {
        self.kept.iter().any(|frame| frame.exposes(token))
    }

    /// Whether a device may read memory of which this is so.
    pub(super) fn exposes_any(&self, within: &dyn Fn(*const u8) -> bool) -> bool {
        self.kept.iter().any(|frame| frame.exposes_any(within))
    }

    pub(super) fn forget_places(&mut self) {
        self.kept.iter_mut().for_each(Frame::forget_place);
    }

    // ---- the receiver's half -------------------------------------------------------------------------------------------

    /// A frame of so many bytes is here, whole. `promptly`: its sender waits for the acknowledgement.
    pub(super) fn arrived(&mut self, bytes: usize, promptly: bool) {
        let counted = self.receipt.handle_arrived(self.receipt.watermark());
        debug_assert!(counted.is_ok(), "the next one is always under way");
        self.unacknowledged += bytes;
        let watermark = self.receipt.watermark();
        let frames = watermark.wrapping_sub(self.told);
        if promptly || self.unacknowledged >= ACK_BYTES || frames >= ACK_FRAMES {
            self.owed = Some(watermark);
        }
    }

    /// What every frame that is about to leave tells.
    pub(super) const fn watermark(&self) -> u32 {
        self.receipt.watermark()
    }

    /// Whether the peer waits for an acknowledgement.
    pub(super) const fn owes(&self) -> bool {
        self.owed.is_some()
    }

    /// A frame with this acknowledgement has left.
    pub(super) fn tell(&mut self, watermark: u32) {
        if watermark.wrapping_sub(self.told) as i32 > 0 {
            self.told = watermark;
            self.unacknowledged = 0;
        }
        if self.owed.is_some_and(|owed| self.told.wrapping_sub(owed) as i32 >= 0) {
            self.owed = None;
        }
    }

    // ---- breaks --------------------------------------------------------------------------------------------------------

    /// The stream broke, with this frame on its way out.
    pub(super) fn broke(&mut self, current: Option<Frame>, buffers: &mut Buffers, events: &mut Vec<Event>) {
        let unfinished = match (self.again.take(), current) {
            (Some((chunk, _)), _) => Some(chunk),
            (None, Some(frame)) => {
                let chunk = self.ledger.begun();
                self.ledger.handle_started(chunk, self.generation);
                self.keep(frame, buffers, events);
                Some(chunk)
            }
            (None, None) => None,
        };
        if let Some(chunk) = unfinished {
            // One that had not been begun again is idle as it is.
            let _ = self.ledger.handle_failed(chunk);
        }
    }

    /// Where the peer is to go on.
    pub(super) fn position(&self, bytes: u64) -> Position {
        let mut receipt = self.receipt.clone();
        let frames = receipt.handle_break();
        if self.planted == Some(Planted::DeliverTwice) && frames != self.told {
            return Position { frames: frames.wrapping_sub(1), bytes: 0 };
        }
        Position { frames, bytes }
    }

    /// The stream stands again, and the peer is there.
    pub(super) fn resume(
        &mut self,
        ours: Position,
        theirs: Position,
        buffers: &mut Buffers,
        events: &mut Vec<Event>,
    ) -> Result<Resumed, Garbled> {
        let before = self.ledger.delivered();
        let nonsense = Garbled("a position in what it was not sent");
        self.ledger.handle_break(theirs.frames).map_err(|_| nonsense)?;
        self.forget(before, buffers, events);
        self.generation = self.generation.next();
        let chunk = self.ledger.poll_idle(self.ledger.begun());
        let skip = if chunk == Some(theirs.frames) { theirs.bytes as usize } else { 0 };
        let fits = self.kept.front().is_some_and(|frame| (HEADER_BYTES..frame.len()).contains(&skip));
        let there = self.ledger.delivered() == theirs.frames && theirs.bytes == skip as u64;
        if skip > 0 && !fits || !there && self.planted.is_none() {
            return Err(nonsense);
        }
        self.again = chunk.map(|chunk| (chunk, skip));
        // What had been told may not have arrived; the positions have told it.
        self.told = ours.frames;
        (self.owed, self.unacknowledged) = (None, 0);
        let passed = self.resumed_at.replace((ours, theirs)) != Some((ours, theirs));
        let progressed = passed || self.kept.is_empty();
        let bytes = self.kept.iter().map(|frame| frame.len() as u64).sum::<u64>() - skip as u64;
        Ok(Resumed { frames: self.kept.len() as u64, bytes, progressed })
    }

    /// Whether something is to be written again.
    pub(super) const fn writes_again(&self) -> bool {
        self.again.is_some()
    }

    /// As [`Link::gather`](super::Link::gather), of what is written again.
    pub(super) fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>], limit: usize) -> usize {
        let Some((chunk, done)) = self.again else { return 0 };
        let (mut skip, mut filled, mut bytes) = (done, 0, 0);
        for frame in self.kept.iter().skip(chunk.wrapping_sub(self.ledger.delivered()) as usize) {
            if filled + 2 > slices.len() || bytes >= limit {
                break;
            }
            frame.lend(std::mem::take(&mut skip), slices, &mut filled, &mut bytes, limit);
        }
        filled
    }

    /// The pipe took so many bytes of that.
    pub(super) fn wrote(&mut self, mut bytes: usize) {
        while bytes > 0
            && let Some((chunk, done)) = self.again
        {
            let Some(frame) = self.kept.get(chunk.wrapping_sub(self.ledger.delivered()) as usize) else {
                return;
            };
            if self.ledger.chunk(chunk) == Some(crate::ledger::Chunk::Idle) {
                self.ledger.handle_started(chunk, self.generation);
            }
            let step = bytes.min(frame.len() - done);
            bytes -= step;
            if done + step < frame.len() {
                self.again = Some((chunk, done + step));
                continue;
            }
            let written = self.ledger.handle_written(chunk);
            debug_assert!(written.is_ok(), "it is under way");
            self.again = self.ledger.poll_idle(self.ledger.begun()).map(|chunk| (chunk, 0));
        }
    }
}
