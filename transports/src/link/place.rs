//! Memory that the peer may write without this rank's doing: a clearance can say where its message belongs, and a pipe of one-sided writes puts
//! it there.
//!
//! A place is told in one generation of the connection and is valid in no other: a break ends all that were told, at both ends, and what had not
//! arrived goes through the pipe, to wherever its receiver wants it by then. So what was withdrawn across a break is never written.

use std::sync::Arc;

use super::Link;
use super::replay::COPIED;
use super::wire::HEADER_BYTES;
use super::{Garbled, outbound::Frame};
use crate::ledger::Generation;
use crate::reach::Register;
use crate::{Event, Token};

/// Bytes of a place on the wire.
pub const PLACE_BYTES: usize = 16;

/// Where a message belongs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// As the receiver's device knows it.
    pub address: u64,
    /// The key to it.
    pub key: u32,
    /// The connection's when it was told; zero before that.
    pub generation: Generation,
}

impl Place {
    /// As it follows a clearance.
    pub fn encode(&self) -> [u8; PLACE_BYTES] {
        let mut out = [0; PLACE_BYTES];
        out[0..8].copy_from_slice(&self.address.to_le_bytes());
        out[8..12].copy_from_slice(&self.key.to_le_bytes());
        out[12..16].copy_from_slice(&self.generation.0.to_le_bytes());
        out
    }

    /// Reads a place. All bytes are one.
    pub fn decode(bytes: &[u8; PLACE_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let address = u64::from(word(0)) | u64::from(word(4)) << 32;
        Self { address, key: word(8), generation: Generation(word(12)) }
    }

    /// So many bytes further.
    pub(super) const fn after(self, bytes: usize) -> Self {
        Self { address: self.address.wrapping_add(bytes as u64), ..self }
    }
}

/// The rest of a payload that has a place.
#[derive(Clone, Copy, Debug)]
pub struct Destined {
    /// Where it lies now.
    pub memory: *const u8,
    /// How many bytes.
    pub bytes: usize,
    /// Where to.
    pub place: Place,
    /// It lies with its poster, who keeps it until the peer has acknowledged the message; otherwise it must be copied now.
    pub lasts: bool,
}

impl Frame {
    /// What is left of it when so many of its bytes have left, if it has a place.
    pub(super) fn destined(&self, done: usize) -> Option<Destined> {
        let place = self.place()?;
        let (memory, bytes) = self.payload_after(done);
        let ends_at_once = self.is_whole_message() && self.payload_bytes() <= COPIED;
        let lasts = self.copied_bytes() == 0 && self.token().is_some() && !ends_at_once;
        let place = place.after(self.payload_bytes() - bytes);
        (done >= HEADER_BYTES && bytes > 0).then_some(Destined { memory, bytes, place, lasts })
    }
}

impl Link {
    /// The same as [`replaying`](Self::replaying), over pipes that can write into memory which the peer has named. Both ends must be made so.
    pub fn placing(peer: crate::Rank, limits: super::Limits) -> Self {
        Self::placing_planted(peer, limits, None)
    }

    /// The same with a planted fault.
    #[doc(hidden)]
    pub fn placing_planted(
        peer: crate::Rank,
        limits: super::Limits,
        planted: Option<super::Planted>,
    ) -> Self {
        Self { places: true, ..Self::planted(peer, limits, planted) }
    }

    /// The same, with memory that the processor does not touch.
    #[must_use]
    pub fn with_register(mut self, register: Option<Arc<dyn Register>>) -> Self {
        self.buffers.register = register;
        self
    }

    /// The connection has this generation now, from 1, which both ends know it by. Called before [`resume`](Self::resume).
    pub fn enter(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// The payload that leaves next, if it has a place. [`gather`](Self::gather) does not lend it; [`wrote`](Self::wrote) says that it has left.
    pub fn destined(&self) -> Option<Destined> {
        if self.writes_again() { None } else { self.outbound.destined() }
    }

    /// The peer has written so many bytes where it was told that they belong.
    ///
    /// # Errors
    /// It was not told so; the link is unusable then.
    pub fn landed(&mut self, bytes: usize, events: &mut Vec<Event>) -> Result<(), Garbled> {
        let told = self.cursor.place().is_some_and(|place| self.is_valid(&place));
        if !told || bytes == 0 || !self.cursor.has_room(bytes) {
            return Err(Garbled("bytes for memory that was not lent to it"));
        }
        self.placed(bytes, events)
    }

    /// Whether the peer may write the memory of this operation, or a device may read it, although this rank does nothing: then the connection must
    /// be [broken](Self::broke), and be silent, before the operation is withdrawn.
    pub fn exposes(&self, token: Token) -> bool {
        self.exposes_recv(token)
            || self.outbound.exposes(token)
            || self.replay.as_ref().is_some_and(|replay| replay.exposes(token))
    }

    /// Whether it was told over the connection that stands.
    pub(super) fn is_valid(&self, place: &Place) -> bool {
        place.generation == self.generation && place.generation > Generation::default()
    }

    /// Copies the begin of what [`destined`](Self::destined) said to where it may leave from. False while it cannot be read.
    pub fn stage(&self, destined: &Destined, to: &mut [u8]) -> bool {
        assert!(to.len() <= destined.bytes, "no more than there is");
        // SAFETY: the poster of the send keeps its memory valid and unwritten until that ends.
        unsafe { self.buffers.read(destined.memory, to) }
    }

    /// Copies what leaves next to the host if it cannot leave as it is: foreign memory that has no place to go to. Called before
    /// [`gather`](Self::gather), where there is such memory.
    pub fn load(&mut self) {
        self.outbound.load(&mut self.buffers);
    }

    /// Whether a device, this rank's or the peer's, may touch memory of which this is so although this rank does nothing.
    pub fn exposes_any(&self, within: &dyn Fn(*const u8) -> bool) -> bool {
        self.exposes_recv_any(within)
            || self.outbound.exposes_any(within)
            || self.replay.as_ref().is_some_and(|replay| replay.exposes_any(within))
    }

    /// The device does not have memory of which this is so any more: the peer is not told of it again, as it otherwise would be when a receive is cleared
    /// anew. What it was told is ended by a break, before.
    pub fn unregister(&mut self, within: &dyn Fn(*const u8) -> bool) {
        self.posted_mut().filter(|posted| within(posted.memory)).for_each(|posted| posted.place = None);
    }

    /// A break ends all places.
    pub(super) fn forget_places(&mut self) {
        self.generation = Generation::default();
        self.outbound.forget_places();
        if let Some(replay) = &mut self.replay {
            replay.forget_places();
        }
        self.departing.values_mut().for_each(super::depart::Departing::forget_place);
    }
}
