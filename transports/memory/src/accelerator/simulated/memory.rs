//! The owner's half: regions, and how they move.
//!
//! A region moves in two halves: it *leaves* (its generation dies, its place is free), and it *arrives* (finds a place, comes alive, is
//! told). Between the two its bytes are carried to its next memory, by [`errands`]. What differs between the modes is what comes before
//! leaving: nothing, a question, or waiting for engines. An eviction is a move whose arrival waits until there is room.

mod errands;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::errand::{Errand, Ran, begin};
use super::extents::{Claim, Extents};
use super::vacated::{Breach, Vacated};
use crate::accelerator::driven::Owner;
use crate::accelerator::driven::common::Common;
use crate::accelerator::driven::pages::{Identity, Pages, SKEW_BYTES, pages_of};
use crate::accelerator::life::State;
use crate::accelerator::{
    AcceleratorError, Condition, Contents, Counters, DeviceRange, Movement, Notice, Options, Region, Status,
    Ticket,
};
use crate::page_bytes;

/// How often a region that finds no room looks for it.
const ROOM_AGAIN: Duration = Duration::from_millis(10);

type Result<T> = std::result::Result<T, AcceleratorError>;

/// How a region arrives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Arrival {
    /// At a new generation.
    Moved,
    /// The same, after a revoke.
    Replaced(Contents),
    /// At its old generation, in its old descriptor: a transparent move.
    Followed,
}

#[derive(Debug)]
enum Phase {
    Active,
    /// It is to be asked for once its next memory is there, up to `at` of which it is.
    Readying {
        next: Arc<Pages>,
        at: u64,
    },
    Asked {
        ticket: Ticket,
        deadline: Duration,
        next: Arc<Pages>,
        /// The next memory can be exported.
        announced: bool,
    },
    /// A transparent move waits until the engines at work have left.
    Draining,
    /// The bytes up to `at` are in `next`, which for a transparent move is only their refuge.
    Away {
        next: Arc<Pages>,
        at: u64,
        due: Duration,
        arrival: Arrival,
        /// It was exported before, and poisoned.
        announced: bool,
        /// When the last byte came.
        copied: Duration,
        /// Not before this is another piece tried: there was no memory.
        again: Duration,
    },
}

#[derive(Debug)]
struct Owned {
    bytes: u64,
    /// Of the present generation, or the last.
    pages: Arc<Pages>,
    /// Where in the device; meaningless while away.
    place: u64,
    contents: Contents,
    next_generation: u32,
    phase: Phase,
}

#[derive(Debug)]
pub(in crate::accelerator) struct Memory {
    common: Common,
    vacated: Vacated,
    extents: Extents,
    regions: BTreeMap<u64, Owned>,
}

impl Memory {
    pub(super) fn new(options: Options) -> Self {
        Self {
            extents: Extents::new(options.capacity_bytes / page_bytes() as u64),
            common: Common::new(options),
            vacated: Vacated::default(),
            regions: BTreeMap::new(),
        }
    }

    fn number(&self, region: Region) -> Result<u64> {
        let number = self.common.number(region)?;
        let known = self.regions.contains_key(&number);
        if known { Ok(number) } else { Err(AcceleratorError::UnknownRegion(region)) }
    }

    fn owned(&self, region: Region) -> Result<&Owned> {
        Ok(&self.regions[&self.number(region)?])
    }

    fn create(&mut self, number: u64, generation: u32, bytes: u64, state: State) -> Result<Arc<Pages>> {
        let skew = SKEW_BYTES * (1 + self.common.random.below(page_bytes() as u64 / SKEW_BYTES - 1));
        Pages::create(self.common.region(number), generation, bytes, skew, state)
    }

    /// What those on their way will need when they arrive.
    fn owed_pages(&self) -> u64 {
        let away = self.regions.values().filter(|owned| matches!(owned.phase, Phase::Away { .. }));
        away.map(|owned| pages_of(owned.bytes)).sum()
    }

    /// Whether so many pages more leave room for those on their way.
    fn has_spare(&self, pages: u64) -> bool {
        self.extents.free_pages() >= self.owed_pages().saturating_add(pages)
    }

    /// Moves others out of the way: together if that is enough, else out of the device.
    ///
    /// A new allocation clears the window that costs least. A region that returns moves all that can be moved: from an empty
    /// device, first fit packs without holes, so that whatever fits at all does return.
    fn make_room(&mut self, pages: u64, claim: Claim) -> bool {
        if self.extents.is_reserved() || self.extents.free_pages() < pages && claim != Claim::New {
            return false;
        }
        let compaction = claim != Claim::New || self.has_spare(pages);
        // Long enough for a question, its answer and the arrival of what was asked.
        let until = self.common.now
            + 2 * (self.common.options.patience + self.common.options.move_time)
            + Duration::from_secs(1);
        let active: Vec<u64> = self.active().collect();
        let cleared = match claim {
            Claim::New => self.extents.clear(pages, claim, until, |owner| active.contains(&owner)),
            Claim::Returning(_) => {
                // Keeps no window, but others from making room at the same time.
                self.extents.clear(0, claim, until, |_| false).map(|_| active)
            }
        };
        let Some(owners) = cleared else { return false };
        match compaction {
            true => self.common.counters.compactions += 1,
            false => self.common.counters.evictions += owners.len() as u64,
        }
        for owner in owners {
            // One that cannot move now keeps its place, and the claim finds no room.
            let _ = self.begin(owner);
        }
        true
    }

    fn active(&self) -> impl Iterator<Item = u64> {
        let active = self.regions.iter().filter(|(_, owned)| matches!(owned.phase, Phase::Active));
        active.map(|(&number, _)| number)
    }

    /// What was announced ahead and does not come.
    fn void(&mut self, ahead: Arc<Pages>) {
        ahead.life().set(ahead.generation, State::Dead);
        self.vacated.add_void(ahead, self.common.now + self.common.options.keep);
    }

    /// Begins the move of an active region, as its mode has it.
    fn begin(&mut self, number: u64) -> Result<()> {
        match self.common.options.movement {
            Movement::Revocable => self.revoke(number, Contents::Preserved),
            Movement::Pinned | Movement::Cooperative => self.ask(number),
            Movement::Transparent => {
                let owned = self.regions.get_mut(&number).expect("the caller has looked it up");
                owned.phase = Phase::Draining;
                owned.pages.life().set(owned.pages.generation, State::Moving);
                self.follow(number)
            }
        }
    }

    /// Whether peers may import a region's next memory before it moves.
    fn announces(&self) -> bool {
        self.common.options.announce_ahead && self.common.options.movement == Movement::Cooperative
    }

    fn ask(&mut self, number: u64) -> Result<()> {
        let owned = &self.regions[&number];
        let next = self.create(number, owned.next_generation, owned.bytes, State::Unborn)?;
        let errand =
            Errand::Ready { region: number, next: Arc::clone(&next), at: begin(), poison: self.announces() };
        // A piece at once: what is small is asked for in the call.
        let ran = errand.run();
        let owned = self.regions.get_mut(&number).expect("looked up above");
        owned.phase = Phase::Readying { next, at: begin() };
        self.came_back(&errand, &ran);
        ran.map(drop)
    }

    fn asked(&self, ticket: Ticket) -> Result<u64> {
        let is =
            |owned: &Owned| matches!(owned.phase, Phase::Asked { ticket: waiting, .. } if waiting == ticket);
        let found = self.regions.iter().find(|(_, owned)| is(owned));
        found.map(|(&number, _)| number).ok_or(AcceleratorError::UnknownTicket(ticket))
    }

    fn abandon(&mut self, number: u64) {
        let region = self.common.region(number);
        let Some(owned) = self.regions.get_mut(&number) else { return };
        let generation = owned.pages.generation;
        if let Phase::Asked { ticket, next, announced, .. } =
            std::mem::replace(&mut owned.phase, Phase::Active)
        {
            if announced {
                self.void(next);
            }
            self.common.counters.refused += 1;
            self.common.tell(Notice::Abandoned { region, generation, ticket });
        }
    }

    fn revoke(&mut self, number: u64, contents: Contents) -> Result<()> {
        let (region, generation) = (self.common.region(number), self.regions[&number].pages.generation);
        self.leave(number, Arrival::Replaced(contents), self.common.options.replacement_time)?;
        self.common.counters.revokes += 1;
        self.common.tell(Notice::Revoked { region, generation });
        Ok(())
    }

    /// Ends the generation; its bytes are carried from now on. On an error nothing has happened.
    fn leave(&mut self, number: u64, arrival: Arrival, time: Duration) -> Result<()> {
        let owned = &self.regions[&number];
        let (old, bytes, place) = (Arc::clone(&owned.pages), owned.bytes, owned.place);
        let (next, announced) = match &owned.phase {
            Phase::Asked { next, announced, .. } => (Arc::clone(next), *announced),
            Phase::Readying { next, .. } => (Arc::clone(next), false),
            _ => (self.create(number, owned.next_generation, bytes, State::Unborn)?, false),
        };
        // From here on nobody enters; who is inside finds out when it leaves (see `life`), which is why the bytes may be read from now on.
        old.life().set(old.generation, State::Dead);
        self.extents.give_back(place);
        let (due, again) = (self.common.now + time, self.common.now);
        let owned = self.regions.get_mut(&number).expect("looked up above");
        owned.next_generation = owned.next_generation.max(next.generation + 1);
        owned.phase = Phase::Away { next, at: begin(), due, arrival, announced, copied: again, again };
        Ok(())
    }

    /// Lets a transparent move go on once the engines have left.
    fn follow(&mut self, number: u64) -> Result<()> {
        let owned = &self.regions[&number];
        let (pages, bytes, place) = (Arc::clone(&owned.pages), owned.bytes, owned.place);
        if !pages.life().is_quiet() {
            return Ok(());
        }
        let saved = self.create(number, pages.generation, bytes, State::Unborn).and_then(|refuge| {
            pages.copy_to(&refuge, 0, refuge.length())?;
            pages.poison(begin(), pages.length())?;
            Ok(refuge)
        });
        let owned = self.regions.get_mut(&number).expect("looked up above");
        match saved {
            Ok(next) => {
                let (at, due) = (next.length(), self.common.now + self.common.options.move_time);
                let (arrival, copied) = (Arrival::Followed, self.common.now);
                owned.phase = Phase::Away { next, at, due, arrival, announced: false, copied, again: copied };
                self.extents.give_back(place);
                self.common.counters.bytes_copied += bytes;
                Ok(())
            }
            Err(error) => {
                owned.phase = Phase::Active;
                pages.life().set(pages.generation, State::Alive);
                self.common.counters.refused += 1;
                Err(error)
            }
        }
    }

    /// Gives a region that is due a place, and life.
    fn arrive(&mut self, number: u64) -> bool {
        let (region, owned) = (self.common.region(number), &self.regions[&number]);
        let Phase::Away { next, arrival, copied, .. } = &owned.phase else { return false };
        let (next, arrival, copied) = (Arc::clone(next), *arrival, *copied);
        let pages = pages_of(owned.bytes);
        let claim = Claim::Returning(number);
        let mut place = self.extents.take(pages, number, claim);
        if place.is_none() && self.make_room(pages, claim) {
            place = self.extents.take(pages, number, claim);
        }
        let Some(place) = place else { return false };
        let owned = self.regions.get_mut(&number).expect("looked up above");
        (owned.place, owned.phase) = (place, Phase::Active);
        let generation = next.generation;
        if arrival == Arrival::Followed {
            let here = Arc::clone(&owned.pages);
            if let Some(offset) = here.first_touched(begin(), here.length()) {
                self.vacated.found(&here, false, offset);
            }
            // Both are memory that exists: reading and writing it does not fail.
            let _ = next.copy_to(&here, 0, here.length());
            here.life().set(generation, State::Alive);
            self.common.counters.moves += 1;
            return true;
        }
        owned.pages = next;
        owned.pages.life().set(generation, State::Alive);
        match arrival {
            Arrival::Replaced(contents) => {
                owned.contents = contents;
                self.common.tell(Notice::Replaced { region, generation, contents });
            }
            _ => {
                owned.contents = Contents::Preserved;
                self.common.counters.moves += 1;
                self.common.tell(Notice::Moved { region, generation, copied });
            }
        }
        true
    }

    /// A random active region.
    fn victim(&mut self) -> Option<u64> {
        let numbers: Vec<u64> = self.active().collect();
        self.common.victim(&numbers)
    }

    pub(super) fn audit(&mut self) -> Vec<Breach> {
        for owned in self.regions.values() {
            if let Phase::Asked { next, announced: true, .. } = &owned.phase
                && let Some(offset) = next.first_touched(begin(), next.length())
            {
                self.vacated.found(next, true, offset);
                let _ = next.poison(begin(), next.length());
            }
        }
        self.vacated.audit()
    }

    pub(super) fn counters(&self) -> Counters {
        Counters { breaches: self.vacated.stores, unchecked: self.vacated.unchecked, ..self.common.counters }
    }
}

impl Owner for Memory {
    type Errand = Errand;
    type Ran = Ran;

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn allocate(&mut self, bytes: u64) -> Result<Region> {
        let (number, pages) = (self.common.next_region(), pages_of(bytes));
        // Whom nobody can tell that its memory is away is not evicted: its users would wait without knowing for what.
        let evicts = self.common.options.movement != Movement::Transparent;
        let mut place = None;
        if evicts || self.has_spare(pages) {
            place = self.extents.take(pages, number, Claim::New);
            if place.is_none() && self.make_room(pages, Claim::New) {
                // Where nobody is asked, the room is there at once.
                place = self.extents.take(pages, number, Claim::New);
            }
        }
        let page = page_bytes() as u64;
        let place = place.ok_or_else(|| AcceleratorError::OutOfMemory {
            wanted_bytes: pages.saturating_mul(page),
            free_bytes: self.extents.free_pages() * page,
            reclaiming: self.extents.is_reserved(),
        })?;
        let made = self.create(number, 0, bytes, State::Alive).and_then(|memory| {
            memory.populate(0, memory.length())?;
            // Memory comes as its last user left it: whoever reads before writing should see that.
            memory.poison(begin(), memory.length())?;
            Ok(memory)
        });
        let memory = made.inspect_err(|_| self.extents.give_back(place))?;
        self.common.take_region();
        let owned = Owned {
            bytes,
            pages: memory,
            place,
            contents: Contents::Preserved,
            next_generation: 1,
            phase: Phase::Active,
        };
        self.regions.insert(number, owned);
        Ok(self.common.region(number))
    }

    fn free(&mut self, region: Region) -> Result<()> {
        let number = self.number(region)?;
        let Some(owned) = self.regions.remove(&number) else { return Ok(()) };
        let generation = owned.pages.generation;
        let until = self.common.now + self.common.options.keep;
        // What has been carried whole is watched already.
        let mut watched = false;
        match owned.phase {
            Phase::Away { next, at, arrival, .. } => {
                next.life().set(next.generation, State::Dead);
                watched = arrival != Arrival::Followed && at >= next.length();
            }
            Phase::Asked { next, announced: true, .. } => {
                self.extents.give_back(owned.place);
                self.void(next);
            }
            _ => self.extents.give_back(owned.place),
        }
        if !watched {
            owned.pages.life().set(generation, State::Dead);
            self.vacated.add(owned.pages, until);
        }
        self.common.tell(Notice::Freed { region, generation });
        Ok(())
    }

    fn status(&self, region: Region) -> Result<Status> {
        let owned = self.owned(region)?;
        let (announced, condition) = match &owned.phase {
            Phase::Asked { ticket, deadline, next, announced } => (
                announced.then_some(next.generation),
                Condition::MoveAsked { ticket: *ticket, deadline: *deadline },
            ),
            Phase::Away { arrival: Arrival::Moved | Arrival::Replaced(_), .. } => (None, Condition::Away),
            // Nobody is told of a transparent move.
            Phase::Active | Phase::Readying { .. } | Phase::Draining | Phase::Away { .. } => {
                (None, Condition::Active)
            }
        };
        let generation = owned.pages.generation;
        Ok(Status { bytes: owned.bytes, generation, announced, contents: owned.contents, condition })
    }

    fn pages(&self, region: Region, generation: u32) -> Result<&Arc<Pages>> {
        let owned = self.owned(region)?;
        let next = match &owned.phase {
            Phase::Asked { next, announced: true, .. } => Some(next),
            Phase::Away { next, arrival, .. } if *arrival != Arrival::Followed => Some(next),
            _ => None,
        };
        let known = [Some(&owned.pages), next].into_iter().flatten().find(|p| p.generation == generation);
        // What a liar needs to lie with.
        let old = || self.vacated.find(region, generation).filter(|_| !self.common.options.guarded);
        known.or_else(old).ok_or(AcceleratorError::Stale { region, generation })
    }

    fn exportable(&self, range: &DeviceRange) -> Result<&Arc<Pages>> {
        let pages = self.pages(range.region, range.generation)?;
        let owned = self.owned(range.region)?;
        let away = matches!(&owned.phase, Phase::Away { arrival, .. } if *arrival != Arrival::Followed);
        if away && self.common.options.guarded {
            return Err(AcceleratorError::Away { region: range.region });
        }
        Ok(pages)
    }

    fn find(&self, identity: Identity) -> Option<&Arc<Pages>> {
        let own = self.regions.values().flat_map(|owned| {
            let ahead = match &owned.phase {
                Phase::Asked { next, announced: true, .. } => Some(next),
                _ => None,
            };
            [Some(&owned.pages), ahead]
        });
        own.flatten().find(|pages| pages.is(identity))
    }

    fn move_now(&mut self, region: Region) -> Result<()> {
        let number = self.number(region)?;
        match self.regions[&number].phase {
            Phase::Active => self.begin(number),
            Phase::Readying { .. } | Phase::Asked { .. } | Phase::Draining => Ok(()),
            Phase::Away { .. } => Err(AcceleratorError::Away { region }),
        }
    }

    fn acknowledge(&mut self, ticket: Ticket) -> Result<()> {
        let number = self.asked(ticket)?;
        let pages = Arc::clone(&self.regions[&number].pages);
        let (region, generation, life) = (pages.region, pages.generation, pages.life());
        if self.common.options.movement == Movement::Pinned {
            // Closed first, so that who imports from now on is either counted here or finds the door shut.
            life.set(generation, State::Moving);
            let pins = life.pins();
            if pins > 0 {
                life.set(generation, State::Alive);
                return Err(AcceleratorError::StillPinned { region, pins });
            }
        }
        let at_work = !life.is_quiet();
        self.leave(number, Arrival::Moved, self.common.options.move_time)?;
        if at_work {
            self.vacated.report(Breach::AtWork { region, generation });
        }
        Ok(())
    }

    fn refuse(&mut self, ticket: Ticket) -> Result<()> {
        let number = self.asked(ticket)?;
        self.abandon(number);
        Ok(())
    }

    fn revoke_now(&mut self, region: Region, contents: Contents) -> Result<()> {
        let number = self.number(region)?;
        match self.regions[&number].phase {
            Phase::Away { .. } => Err(AcceleratorError::Away { region }),
            _ => self.revoke(number, contents),
        }
    }

    fn step(&mut self) -> (Option<Duration>, bool) {
        self.extents.expire(self.common.now);
        if self.common.take_move() {
            // A move that fails for want of descriptors or memory is a move that did not happen.
            let _ = self.victim().map(|number| self.begin(number));
        }
        if let Some(contents) = self.common.take_revoke() {
            let _ = self.victim().map(|number| self.revoke(number, contents));
        }
        let numbers: Vec<u64> = self.regions.keys().copied().collect();
        let (mut next, mut again) = (None, false);
        let mut wake_at = |at: Duration| next = Some(next.map_or(at, |next: Duration| next.min(at)));
        for number in numbers {
            if matches!(self.regions[&number].phase, Phase::Draining) {
                // A move that fails is a move that did not happen.
                let _ = self.follow(number);
            }
            match self.regions[&number].phase {
                Phase::Asked { deadline, .. } if deadline <= self.common.now => self.abandon(number),
                Phase::Asked { deadline, .. } => wake_at(deadline),
                Phase::Draining => again = true,
                Phase::Readying { .. } => {}
                Phase::Away { ref next, at, again, .. } if at < next.length() => {
                    if again > self.common.now {
                        wake_at(again);
                    }
                }
                // Whoever frees memory wakes the device; that compactions may begin again, nobody tells.
                Phase::Away { due, .. } if due <= self.common.now => {
                    if !self.arrive(number) {
                        wake_at(self.common.now + ROOM_AGAIN);
                    }
                }
                Phase::Away { due, .. } => wake_at(due),
                Phase::Active => {}
            }
        }
        [self.common.next_event(), self.vacated.next()].into_iter().flatten().for_each(&mut wake_at);
        (next, again || self.vacated.is_waiting())
    }

    fn close(&mut self) {
        for (_, owned) in std::mem::take(&mut self.regions) {
            owned.pages.life().set(owned.pages.generation, State::Dead);
            if let Phase::Away { next, .. } | Phase::Asked { next, .. } = owned.phase {
                next.life().set(next.generation, State::Dead);
            }
        }
    }

    fn errand(&mut self) -> Option<Errand> {
        self.next_errand()
    }

    fn run(errand: &mut Errand) -> Ran {
        errand.run()
    }

    fn ran(&mut self, errand: Errand, ran: Ran) {
        self.came_back(&errand, &ran);
    }

    fn stale_stores(&mut self) -> Option<u64> {
        let found = self.audit();
        self.vacated.keep(found);
        Some(self.vacated.stores)
    }
}
