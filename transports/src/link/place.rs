//! Memory that the peer may write without this rank's doing: a clearance can say where its message belongs, and a pipe of one-sided writes puts
//! it there.
//!
//! A place is told in one generation of the connection and is valid in no other: a break ends all that were told, at both ends, and what had not
//! arrived goes through the pipe, to wherever its receiver wants it by then. So what was withdrawn across a break is never written.

use std::fmt;
use std::sync::Arc;

use super::Link;
use super::replay::COPIED;
use super::wire::HEADER_BYTES;
use super::{Garbled, outbound::Frame};
use crate::ledger::Generation;
use crate::reach::Register;
use crate::{Event, Token};

/// Bytes of a place on the wire.
pub const PLACE_BYTES: usize = 32;
/// Rails of one connection at most.
pub const RAILS: usize = 4;
/// On the wire, the rail of a key that there is not.
const NONE: u8 = 0xff;

/// Some of the rails, by number: a rail is a device of each of two ranks, of the same number at both.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Rails(u32);

impl Rails {
    /// Those below it have a number in a set.
    pub const END: usize = 32;

    /// The rails 0 to `count`, without the latter.
    pub fn first(count: usize) -> Self {
        (0..count.min(Self::END)).collect()
    }

    /// Whether a rail is among them.
    pub const fn contains(self, rail: usize) -> bool {
        rail < Self::END && self.0 >> rail & 1 == 1
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// They and one more.
    #[must_use]
    pub const fn with(self, rail: usize) -> Self {
        Self(if rail < Self::END { self.0 | 1 << rail } else { self.0 })
    }

    /// Those that are not in the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    pub const fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Each, from the lowest number on.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..Self::END).filter(move |&rail| self.contains(rail))
    }
}

impl FromIterator<usize> for Rails {
    fn from_iter<I: IntoIterator<Item = usize>>(rails: I) -> Self {
        rails.into_iter().fold(Self::default(), Self::with)
    }
}

impl fmt::Debug for Rails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The keys to some memory: each rail's device has its own, if it has the memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Keys([Option<(u8, u32)>; RAILS]);

impl Keys {
    /// The key by which the device of this rail knows it.
    pub fn of(&self, rail: usize) -> Option<u32> {
        self.0.iter().flatten().find(|(of, _)| usize::from(*of) == rail).map(|(_, key)| *key)
    }

    /// The rails whose devices know it.
    pub fn rails(&self) -> Rails {
        self.0.iter().flatten().map(|(rail, _)| usize::from(*rail)).collect()
    }
}

impl FromIterator<(usize, u32)> for Keys {
    /// The first [`RAILS`] of them.
    fn from_iter<I: IntoIterator<Item = (usize, u32)>>(keys: I) -> Self {
        let mut all = Self::default();
        let keys = keys.into_iter().filter(|(rail, _)| *rail < Rails::END);
        for (place, (rail, key)) in all.0.iter_mut().zip(keys) {
            *place = Some((rail as u8, key));
        }
        all
    }
}

/// Where a message belongs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// As the receiver's devices know it.
    pub address: u64,
    /// The keys to it.
    pub keys: Keys,
    /// The connection's when it was told; zero before that.
    pub generation: Generation,
}

impl Place {
    /// As it follows a clearance.
    pub fn encode(&self) -> [u8; PLACE_BYTES] {
        let mut out = [0; PLACE_BYTES];
        out[0..8].copy_from_slice(&self.address.to_le_bytes());
        out[8..12].copy_from_slice(&self.generation.0.to_le_bytes());
        for (at, key) in self.keys.0.iter().enumerate() {
            let (rail, key) = key.unwrap_or((NONE, 0));
            out[12 + at] = rail;
            out[16 + 4 * at..][..4].copy_from_slice(&key.to_le_bytes());
        }
        out
    }

    /// Reads a place. All bytes are one.
    pub fn decode(bytes: &[u8; PLACE_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let address = u64::from(word(0)) | u64::from(word(4)) << 32;
        let keys = (0..RAILS).map(|at| (usize::from(bytes[12 + at]), word(16 + 4 * at))).collect();
        Self { address, keys, generation: Generation(word(8)) }
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

    /// The connection has this generation now, from 1, which both ends know it by, and goes by these rails. Called before [`resume`](Self::resume).
    pub fn enter(&mut self, generation: Generation, rails: Rails) {
        (self.generation, self.rails) = (generation, rails);
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

    /// Whether it was told over the connection that stands, and is reached by a rail of it: a place of a receive that was posted over another connection
    /// may have keys of other rails.
    pub(super) fn is_valid(&self, place: &Place) -> bool {
        place.generation == self.generation
            && place.generation > Generation::default()
            && !place.keys.rails().and(self.rails).is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_back_with_the_keys_of_their_rails() {
        let keys: Keys = [(0, 7), (31, 9), (5, 0)].into_iter().collect();
        let place = Place { address: 1 << 40 | 3, keys, generation: Generation(6) };
        assert_eq!(Place::decode(&place.encode()), place);
        assert_eq!([0, 1, 5, 31].map(|rail| keys.of(rail)), [Some(7), None, Some(0), Some(9)]);
        assert_eq!(keys.rails().iter().collect::<Vec<_>>(), [0, 5, 31]);
        assert_eq!(Place::decode(&Place::default().encode()), Place::default());
        // Nothing but zeros is no place either.
        assert_eq!(Place::decode(&[0; PLACE_BYTES]).generation, Generation::default());
    }

    #[test]
    fn places_are_valid_over_their_connection_and_its_rails() {
        let mut link = Link::placing(1, super::super::Limits::default());
        let place = |rail, generation| {
            let keys = [(rail, 1)].into_iter().collect();
            Place { address: 1, keys, generation: Generation(generation) }
        };
        assert!(!link.is_valid(&place(0, 0)));
        link.enter(Generation(2), Rails::first(2));
        let valid = [(0, 2), (1, 2), (2, 2), (0, 1)].map(|(rail, of)| link.is_valid(&place(rail, of)));
        assert_eq!(valid, [true, true, false, false]);
    }
}
