//! The lanes of a connection, without I/O: by which NICs it goes, which lane each write takes, and what is under way on each.
//!
//! A **rail** is a NIC of each of two ranks, of the same number at both; a **lane** is a pair of queue pairs on a rail. A connection has up to [`RAILS`] rails
//! and up to [`PAIRS`] lanes on each. Its [pipe](crate::pipe) acts in the order of numbers, so a write may go by any lane.
//!
//! **Which rails** ([`Record::offered`]). Those that both ranks have, from one on that differs from pair to pair of ranks, so that hosts with more NICs than a connection has rails
//! use them all. Left out is a rail
//!
//! 1. whose port, at this end, is down: until it is active again;
//! 2. that has failed towards this peer: for [`REST`], until its port, at this end, is active again, or until the peer offers it after it has left it out.
//!
//! As long as another is left: where all would be left out by the second rule, it does not count, and then the first does not. A NIC that was removed does not come back.
//! Both ends offer what they have found so, and the connection goes by what both have offered. If that is nothing, both forget what has failed, and
//! try once more.
//!
//! **Which lane** ([`Lanes::choose`]). The one that was used last, as long as it is at most [`LEAD`] bytes ahead of the one with the fewest bytes under
//! way; then that one. So what is small stays on one lane, whose completions its reader finds together and in order, and what is large goes by all.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use windlass_transports::link::place::{Keys, RAILS, Rails};

use crate::pipe::Way;

/// Lanes of one rail at most.
pub const PAIRS: usize = 4;
/// How long a rail that has failed is left out.
pub const REST: Duration = Duration::from_secs(10);
/// By how many bytes a lane may be ahead of the others before they are used.
pub const LEAD: u64 = 16 << 10;
/// Writes of which only the last is signalled.
const SIGNALLED: u32 = 8;
/// Places of a queue pair that bytes leave to a credit and a farewell.
const KEPT: u32 = 2;

/// How the rails have served towards one peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// When each failed last, by rail.
    failed: Vec<Option<Instant>>,
    /// What the peer has offered last.
    theirs: Rails,
}

impl Record {
    /// Of a peer with which this rank shares so many rails.
    pub fn new(rails: usize) -> Self {
        Self { failed: vec![None; rails.min(Rails::END)], theirs: Rails::first(rails) }
    }

    /// The rails that both ranks have had.
    pub fn shared(&self) -> Rails {
        Rails::first(self.failed.len())
    }

    /// A rail has failed.
    pub fn fail(&mut self, rail: usize, now: Instant) {
        if let Some(failed) = self.failed.get_mut(rail) {
            *failed = Some(now);
        }
    }

    /// These rails may be used again at once.
    pub fn forgive(&mut self, rails: Rails) {
        rails.iter().filter_map(|rail| self.failed.get_mut(rail).map(Option::take)).for_each(drop);
    }

    /// The peer has offered these.
    pub fn hear(&mut self, theirs: Rails) {
        self.forgive(theirs.without(self.theirs));
        self.theirs = theirs;
    }

    /// The rails by which a connection is to be offered: of those that are `present` here, among which the ports of `up` are active. `theirs` is what
    /// the peer has offered already. See the module's documentation.
    pub fn offered(
        &self,
        first: usize,
        present: Rails,
        up: Rails,
        theirs: Option<Rails>,
        now: Instant,
    ) -> Rails {
        let present = self.shared().and(present);
        let agreed = theirs.map(|theirs| present.and(theirs)).filter(|agreed| !agreed.is_empty());
        let present = agreed.unwrap_or(present);
        let rests =
            |failed: &Option<Instant>| failed.is_some_and(|at| now.saturating_duration_since(at) < REST);
        let resting =
            self.failed.iter().enumerate().filter(|(_, failed)| rests(failed)).map(|(rail, _)| rail);
        let active = present.and(up);
        let candidates = [active.without(resting.collect()), active, present];
        let best = candidates.into_iter().find(|rails| !rails.is_empty()).unwrap_or_default();
        let all = self.failed.len();
        (0..all).map(|at| (first + at) % all).filter(|&rail| best.contains(rail)).take(RAILS).collect()
    }
}

/// What is written by a lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Work {
    /// Bytes.
    Bytes = 1,
    /// A credit.
    Credit = 2,
    /// The last that a rank says before it leaves.
    Farewell = 3,
}

/// One lane, with the queue pair `P`.
#[derive(Debug)]
pub struct Lane<P> {
    /// Which of the connection's, at both ends: see [`number`].
    pub number: u8,
    /// Its rail.
    pub rail: usize,
    /// Its queue pair.
    pub pair: P,
    /// Writes that its queue pair takes.
    capacity: u32,
    /// Writes and their bytes whose completion has not come.
    writes: u32,
    bytes: u64,
    /// Those of them since the last that is signalled.
    unsignalled: (u32, u64),
    /// How many each completion ends.
    batches: VecDeque<(u32, u64)>,
    /// Whether it is complete, once it has left.
    farewell: Option<bool>,
}

/// The number of a lane: this one of the pairs of this rail.
pub const fn number(rail: usize, pair: usize) -> u8 {
    (rail * PAIRS + pair) as u8
}

impl<P> Lane<P> {
    /// A lane by which nothing has gone, and which takes so many writes at a time.
    ///
    /// # Panics
    /// When these are so few that it could be full of writes whose completion is not told.
    pub fn new(number: u8, rail: usize, pair: P, capacity: u32) -> Self {
        assert!(capacity > SIGNALLED + KEPT, "a queue pair of {capacity} writes");
        let (batches, farewell) = (VecDeque::new(), None);
        Self { number, rail, pair, capacity, writes: 0, bytes: 0, unsignalled: (0, 0), batches, farewell }
    }

    fn has_room(&self) -> bool {
        self.writes + KEPT < self.capacity
    }
}

/// The lanes of one end.
#[derive(Debug)]
pub struct Lanes<P> {
    lanes: Vec<Lane<P>>,
    /// The number of the one that was used last.
    last: u8,
}

impl<P> Lanes<P> {
    /// These, each with a number of its own.
    pub fn new(lanes: Vec<Lane<P>>) -> Self {
        let last = lanes.first().map_or(0, |lane| lane.number);
        Self { lanes, last }
    }

    /// Adds more of them.
    pub fn add(&mut self, lanes: Vec<Lane<P>>) {
        self.lanes.extend(lanes);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Lane<P>> {
        self.lanes.iter()
    }

    /// All of them, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lane<P>> {
        self.lanes.iter_mut()
    }

    /// Gives up those of which `keep` is false.
    pub fn retain(&mut self, keep: impl FnMut(&Lane<P>) -> bool) {
        self.lanes.retain(keep);
    }

    /// Their rails.
    pub fn rails(&self) -> Rails {
        self.lanes.iter().map(|lane| lane.rail).collect()
    }

    /// The one of this number.
    pub fn get(&self, number: u8) -> Option<&Lane<P>> {
        self.lanes.iter().find(|lane| lane.number == number)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, number: u8) -> Option<&mut Lane<P>> {
        self.lanes.iter_mut().find(|lane| lane.number == number)
    }

    /// Whether any takes another write of bytes.
    pub fn has_room(&self) -> bool {
        self.lanes.iter().any(Lane::has_room)
    }

    /// The lane that bytes go by, of those whose rail `serves`; `None` while all of these are full. See the module's documentation.
    pub fn choose(&self, serves: impl Fn(usize) -> bool) -> Option<&Lane<P>> {
        self.least(|lane| lane.has_room() && serves(lane.rail))
    }

    /// How what is next goes through the rings; `None` while all lanes are full.
    pub fn way_by_ring(&self) -> Option<Way> {
        self.choose(|_| true).map(|lane| Way::by_ring(lane.number))
    }

    /// How bytes go to their place, by a lane whose NIC at the other end has one of `keys`: from where they lie, if its NIC at this end can be `known` to have
    /// that, too; otherwise from a copy. `None` while those lanes are full.
    pub fn way_to_place(
        &self,
        keys: &Keys,
        mut known: impl FnMut(usize) -> Option<(u64, u32)>,
    ) -> Option<Way> {
        let mut unknown = Rails::default();
        let mut copied = None;
        while let Some(lane) = self.choose(|rail| keys.of(rail).is_some() && !unknown.contains(rail)) {
            let local = known(lane.rail);
            let way = Way { lane: lane.number, remote_key: keys.of(lane.rail)?, local };
            if local.is_some() {
                return Some(way);
            }
            copied = copied.or(Some(way));
            unknown = unknown.with(lane.rail);
        }
        copied
    }

    /// The lane that a credit goes by.
    pub fn choose_for_credit(&self) -> Option<&Lane<P>> {
        self.least(|_| true)
    }

    fn least(&self, may: impl Fn(&Lane<P>) -> bool) -> Option<&Lane<P>> {
        let last = self.get(self.last).filter(|lane| may(lane));
        let least = self.lanes.iter().filter(|lane| may(lane)).min_by_key(|lane| lane.bytes)?;
        Some(last.filter(|last| last.bytes <= least.bytes + LEAD).unwrap_or(least))
    }

    /// Something is written by a lane. Whether its completion is to be told.
    pub fn begin(&mut self, number: u8, work: Work, bytes: usize) -> bool {
        // What is under way is to be known while there is a choice.
        let each = if self.lanes.len() > 1 { LEAD } else { u64::MAX };
        let Some(lane) = self.get_mut(number) else { return true };
        let bytes = bytes as u64;
        let (writes, unsignalled) = (lane.unsignalled.0 + 1, lane.unsignalled.1 + bytes);
        let signalled = work != Work::Bytes || writes >= SIGNALLED || unsignalled >= each;
        lane.writes += 1;
        lane.bytes += bytes;
        lane.unsignalled = if signalled { (0, 0) } else { (writes, unsignalled) };
        if signalled {
            lane.batches.push_back((writes, unsignalled));
        }
        if work == Work::Farewell {
            lane.farewell = Some(false);
        }
        self.last = if work == Work::Bytes { number } else { self.last };
        signalled
    }

    /// Something whose completion was to be told is complete, and with it what had left before it by the same lane.
    pub fn completed(&mut self, number: u8, work: Work) {
        let Some(lane) = self.get_mut(number) else { return };
        let (writes, bytes) = lane.batches.pop_front().unwrap_or_default();
        lane.writes -= writes;
        lane.bytes -= bytes;
        if work == Work::Farewell {
            lane.farewell = Some(true);
        }
    }

    /// A lane by which no farewell has left.
    pub fn lacks_farewell(&self) -> Option<u8> {
        self.lanes.iter().find(|lane| lane.farewell.is_none()).map(|lane| lane.number)
    }

    /// Whether all that has left is with the peer, since a farewell has followed it on each lane.
    pub fn have_left(&self) -> bool {
        self.lanes.iter().all(|lane| lane.farewell == Some(true))
    }
}

#[cfg(test)]
mod tests;
