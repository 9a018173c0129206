//! The owner's half: regions on dma-bufs, and how they move.
//!
//! A region *leaves* (its generation dies) and *arrives* (the next comes alive, and is told of). Between the two an errand does what takes
//! long: the exporter moves the memory, or it is copied to a new dma-buf and the old one revoked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::{Driver, Exporter, Mover};
use crate::accelerator::driven::Owner;
use crate::accelerator::driven::common::Common;
use crate::accelerator::driven::pages::{ADOPTED, Identity, Pages, SKEW_BYTES, pages_of};
use crate::accelerator::life::State;
use crate::accelerator::{
    AcceleratorError, Condition, Contents, DeviceRange, Movement, Notice, Options, Region, Status, Ticket,
};
use crate::{MemoryError, page_bytes};

/// How often a call is made again for which there was no memory, or which a NIC held up.
const AGAIN: Duration = Duration::from_millis(10);
/// How often memory that anybody may revoke is looked at.
const WATCH: Duration = Duration::from_millis(50);

type Result<T> = std::result::Result<T, AcceleratorError>;

/// How a region gets to its next generation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// The exporter moves it.
    Shift { force: bool },
    /// In a new dma-buf; the old one is revoked.
    Swap(Contents),
}

/// What the arrival is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Arrival {
    Moved,
    Replaced,
}

#[derive(Debug)]
enum Phase {
    Active,
    Asked {
        ticket: Ticket,
        deadline: Duration,
    },
    /// A transparent move is to be made, or is being made: nobody is told.
    Following,
    Away {
        way: Way,
        arrival: Arrival,
        /// Not before this does it arrive.
        due: Duration,
        /// Not before this is the errand sent out again.
        again: Duration,
        /// What the errand has brought, and when.
        next: Option<(Arc<Pages>, Contents, Duration)>,
    },
}

#[derive(Debug)]
struct Owned {
    /// Of the present generation, or the last.
    pages: Arc<Pages>,
    contents: Contents,
    phase: Phase,
    /// An errand is out for it.
    out: bool,
}

/// One call of the exporter, or two and a copy.
pub(in crate::accelerator) struct Errand {
    exporter: Arc<dyn Exporter>,
    number: u64,
    pages: Arc<Pages>,
    /// None: the region is gone, and its memory goes, too.
    way: Option<Way>,
    generation: u32,
    skew: u64,
}

impl fmt::Debug for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errand({:?}, {:?})", self.pages, self.way)
    }
}

/// Memory of the next generation, and whether the bytes are in it.
type Ran = Result<(Arc<Pages>, Contents)>;

#[derive(Debug)]
pub(in crate::accelerator) struct Buffers {
    name: &'static str,
    exporter: Arc<dyn Exporter>,
    common: Common,
    regions: BTreeMap<u64, Owned>,
    /// Of regions that were freed, to be revoked.
    freed: Vec<Arc<Pages>>,
    watched: Duration,
}

impl Buffers {
    pub(super) fn new(driver: Driver, options: Options) -> Self {
        let (common, regions, freed) = (Common::new(options), BTreeMap::new(), Vec::new());
        let Driver { name, exporter } = driver;
        Self { name, exporter, common, regions, freed, watched: Duration::ZERO }
    }

    fn owned(&self, region: Region) -> Result<(u64, &Owned)> {
        let number = self.common.number(region)?;
        let owned = self.regions.get(&number).ok_or(AcceleratorError::UnknownRegion(region))?;
        Ok((number, owned))
    }

    fn insert(&mut self, number: u64, pages: Arc<Pages>) {
        let (contents, phase) = (Contents::Preserved, Phase::Active);
        self.regions.insert(number, Owned { pages, contents, phase, out: false });
    }

    fn skew(&mut self) -> u64 {
        SKEW_BYTES * (1 + self.common.random.below(page_bytes() as u64 / SKEW_BYTES - 1))
    }

    /// Begins the move of an active region, as its mode has it.
    fn begin(&mut self, number: u64) {
        let Some(owned) = self.regions.get_mut(&number) else { return };
        match self.common.options.movement {
            Movement::Transparent => owned.phase = Phase::Following,
            Movement::Revocable => self.revoke(number, Way::Shift { force: true }),
            Movement::Pinned | Movement::Cooperative => {
                let (region, generation) = (owned.pages.region, owned.pages.generation);
                let ticket = self.common.take_ticket();
                let (asked, deadline) = (self.common.now, self.common.now + self.common.options.patience);
                owned.phase = Phase::Asked { ticket, deadline };
                self.common.tell(Notice::MoveAsked { region, generation, ticket, asked, deadline });
            }
        }
    }

    fn asked(&self, ticket: Ticket) -> Result<u64> {
        let is =
            |owned: &Owned| matches!(owned.phase, Phase::Asked { ticket: waiting, .. } if waiting == ticket);
        let found = self.regions.iter().find(|(_, owned)| is(owned));
        found.map(|(&number, _)| number).ok_or(AcceleratorError::UnknownTicket(ticket))
    }

    fn abandon(&mut self, number: u64) {
        let Some(owned) = self.regions.get_mut(&number) else { return };
        let (region, generation) = (owned.pages.region, owned.pages.generation);
        if let Phase::Asked { ticket, .. } = std::mem::replace(&mut owned.phase, Phase::Active) {
            self.common.counters.refused += 1;
            self.common.tell(Notice::Abandoned { region, generation, ticket });
        }
    }

    /// Ends the generation. From here on nobody enters; who is inside finds out when it leaves (see `life`).
    fn leave(&mut self, number: u64, way: Way, arrival: Arrival) {
        let Some(owned) = self.regions.get_mut(&number) else { return };
        let life = owned.pages.life();
        life.set(owned.pages.generation, State::Dead);
        // Whoever is still at work would store into memory that its exporter has only moved.
        let way = match way {
            Way::Shift { .. } if !life.is_quiet() => Way::Swap(Contents::Preserved),
            way => way,
        };
        let time = match arrival {
            Arrival::Moved => self.common.options.move_time,
            Arrival::Replaced => self.common.options.replacement_time,
        };
        let (due, again) = (self.common.now + time, self.common.now);
        owned.phase = Phase::Away { way, arrival, due, again, next: None };
    }

    fn revoke(&mut self, number: u64, way: Way) {
        let Some(owned) = self.regions.get(&number) else { return };
        let (region, generation) = (owned.pages.region, owned.pages.generation);
        self.leave(number, way, Arrival::Replaced);
        self.common.counters.revokes += 1;
        self.common.tell(Notice::Revoked { region, generation });
    }

    /// The move of pinned memory, in the call that allows it: whether anything still holds the memory, only the move itself says.
    fn move_pinned(&mut self, number: u64) -> Result<()> {
        let pages = Arc::clone(&self.regions[&number].pages);
        let (region, generation, life) = (pages.region, pages.generation, pages.life());
        // Closed first, so that who imports from now on is either counted here or finds the door shut.
        life.set(generation, State::Moving);
        let pins = life.pins();
        if pins > 0 {
            life.set(generation, State::Alive);
            return Err(AcceleratorError::StillPinned { region, pins });
        }
        if !life.is_quiet() {
            self.common.counters.breaches += 1;
            self.leave(number, Way::Swap(Contents::Preserved), Arrival::Moved);
            return Ok(());
        }
        let mover = self.exporter.mover().ok_or(AcceleratorError::NeverMoves)?;
        match mover.shift(pages.as_fd(), false) {
            Ok(()) => {
                let (next, now) = (pages.at(generation + 1), self.common.now);
                self.arrive(number, next, Arrival::Moved, Contents::Preserved, now);
                Ok(())
            }
            Err(error) => {
                life.set(generation, State::Alive);
                if error.errno == Errno::BUSY.raw_os_error() {
                    return Err(AcceleratorError::StillPinned { region, pins: 1 });
                }
                self.abandon(number);
                Err(error.into())
            }
        }
    }

    fn arrive(
        &mut self,
        number: u64,
        next: Arc<Pages>,
        arrival: Arrival,
        contents: Contents,
        copied: Duration,
    ) {
        let Some(owned) = self.regions.get_mut(&number) else { return };
        let (region, generation) = (next.region, next.generation);
        next.life().set(generation, State::Alive);
        if contents == Contents::Preserved {
            self.common.counters.bytes_copied += next.bytes;
        }
        (owned.pages, owned.contents, owned.phase) = (next, contents, Phase::Active);
        match arrival {
            Arrival::Moved if contents == Contents::Preserved => {
                self.common.counters.moves += 1;
                self.common.tell(Notice::Moved { region, generation, copied });
            }
            // A move under which somebody revoked the memory ends as a revoke does.
            Arrival::Moved => {
                self.common.counters.revokes += 1;
                self.common.tell(Notice::Revoked { region, generation: generation - 1 });
                self.common.tell(Notice::Replaced { region, generation, contents });
            }
            Arrival::Replaced => self.common.tell(Notice::Replaced { region, generation, contents }),
        }
    }

    /// See [`KernelAccelerator::importers`](super::KernelAccelerator::importers).
    pub(super) fn importers(&self, region: Region) -> Result<Option<u64>> {
        let owned = self.owned(region)?.1;
        if matches!(owned.phase, Phase::Away { .. }) {
            return Err(AcceleratorError::Away { region });
        }
        let importers = self.exporter.mover().map(|mover| mover.importers(owned.pages.as_fd()));
        Ok(importers.transpose()?)
    }

    /// Regions that are neither moving nor asked for.
    fn active(&self) -> Vec<u64> {
        let active = |owned: &Owned| matches!(owned.phase, Phase::Active) && !is_adopted(owned);
        self.regions.iter().filter(|(_, owned)| active(owned)).map(|(&number, _)| number).collect()
    }

    /// Finds what was revoked by somebody else.
    fn watch(&mut self) {
        self.watched = self.common.now + WATCH;
        let gone = |owned: &Owned| !matches!(owned.phase, Phase::Away { .. }) && owned.pages.is_lost();
        let gone: Vec<u64> =
            self.regions.iter().filter(|(_, owned)| gone(owned)).map(|(&number, _)| number).collect();
        for number in gone {
            self.revoke(number, Way::Swap(Contents::Lost));
        }
    }
}

/// Whether it is somebody else's, who alone could move it.
fn is_adopted(owned: &Owned) -> bool {
    owned.pages.region.number() >= ADOPTED
}

impl Errand {
    fn run(&self) -> Ran {
        let mover = self.exporter.mover().ok_or(AcceleratorError::NeverMoves)?;
        let Some(way) = self.way else {
            // What is gone already is gone.
            let _ = mover.revoke(self.pages.as_fd());
            return Ok((Arc::clone(&self.pages), Contents::Lost));
        };
        match way {
            Way::Shift { force } => {
                mover.shift(self.pages.as_fd(), force)?;
                Ok((self.pages.at(self.generation), Contents::Preserved))
            }
            Way::Swap(contents) => self.swap(mover, contents),
        }
    }

    fn swap(&self, mover: &dyn Mover, contents: Contents) -> Ran {
        let Self { pages, generation, skew, .. } = self;
        if contents == Contents::Preserved {
            // What a NIC has stored well is to be in what is carried on. Its owner has been told that the memory goes; the copy is made once he has let go.
            let pins = mover.importers(pages.as_fd())?;
            if pins > 0 {
                return Err(AcceleratorError::StillPinned { region: pages.region, pins });
            }
        }
        let memory = self.exporter.allocate(buffer_bytes(pages.bytes))?;
        let next = Pages::on(memory, pages.region, *generation, pages.bytes, *skew, State::Unborn)?;
        if contents == Contents::Preserved {
            pages.copy_to(&next, 0, next.length())?;
        }
        // If somebody has revoked it under the copy, what was copied is nobody's.
        let lost = contents == Contents::Lost || pages.is_lost();
        match mover.revoke(pages.as_fd()) {
            // Busy: an importer does not let go, whose stores the device counts from now on.
            Err(error) if !is(&error, Errno::BUSY) && !is(&error, Errno::NODEV) => Err(error.into()),
            _ => Ok((next, if lost { Contents::Lost } else { Contents::Preserved })),
        }
    }
}

fn is(error: &MemoryError, errno: Errno) -> bool {
    error.errno == errno.raw_os_error()
}

/// A dma-buf for so many bytes.
fn buffer_bytes(bytes: u64) -> u64 {
    pages_of(bytes).saturating_mul(page_bytes() as u64)
}

impl Owner for Buffers {
    type Errand = Errand;
    type Ran = Ran;

    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn allocate(&mut self, bytes: u64) -> Result<Region> {
        let number = self.common.next_region();
        if self.exporter.is_mappable() {
            let (region, skew) = (self.common.region(number), self.skew());
            let memory = self.exporter.allocate(buffer_bytes(bytes))?;
            let pages = Pages::on(memory, region, 0, bytes, skew, State::Alive)?;
            self.insert(self.common.next_region(), pages);
            self.common.take_region();
            return Ok(region);
        }
        use std::os::fd::AsFd;
        let whole = bytes.max(1).next_multiple_of(page_bytes() as u64);
        let memory = self.exporter.allocate(whole)?;
        let region = self.common.region(number | ADOPTED);
        self.adopt(Pages::adopt(memory.as_fd(), region, 0, bytes)?)
    }

    fn adopt(&mut self, pages: Arc<Pages>) -> Result<Region> {
        let number = self.common.take_region() | ADOPTED;
        let region = self.common.region(number);
        self.insert(number, pages.named(region));
        Ok(region)
    }

    fn free(&mut self, region: Region) -> Result<()> {
        let (number, _) = self.owned(region)?;
        let Some(owned) = self.regions.remove(&number) else { return Ok(()) };
        let generation = owned.pages.generation;
        owned.pages.life().set(generation, State::Dead);
        if !is_adopted(&owned) && self.exporter.mover().is_some() {
            self.freed.push(Arc::clone(&owned.pages));
        }
        let file = owned.pages.file();
        drop(owned);
        self.exporter.closed(file);
        self.common.tell(Notice::Freed { region, generation });
        Ok(())
    }

    fn status(&self, region: Region) -> Result<Status> {
        let (_, owned) = self.owned(region)?;
        let condition = match owned.phase {
            Phase::Active | Phase::Following => Condition::Active,
            Phase::Asked { ticket, deadline } => Condition::MoveAsked { ticket, deadline },
            Phase::Away { .. } => Condition::Away,
        };
        let Pages { bytes, generation, .. } = *owned.pages;
        Ok(Status { bytes, generation, announced: None, contents: owned.contents, condition })
    }

    fn pages(&self, region: Region, generation: u32) -> Result<&Arc<Pages>> {
        let (_, owned) = self.owned(region)?;
        let here = owned.pages.generation == generation;
        if here { Ok(&owned.pages) } else { Err(AcceleratorError::Stale { region, generation }) }
    }

    fn exportable(&self, range: &DeviceRange) -> Result<&Arc<Pages>> {
        let (region, pages) = (range.region, self.pages(range.region, range.generation)?);
        let away = matches!(self.owned(region)?.1.phase, Phase::Away { .. });
        if away { Err(AcceleratorError::Away { region }) } else { Ok(pages) }
    }

    fn find(&self, identity: Identity) -> Option<&Arc<Pages>> {
        self.regions.values().map(|owned| &owned.pages).find(|pages| pages.is(identity))
    }

    fn acknowledge(&mut self, ticket: Ticket) -> Result<()> {
        let number = self.asked(ticket)?;
        if self.common.options.movement == Movement::Pinned {
            return self.move_pinned(number);
        }
        self.leave(number, Way::Shift { force: true }, Arrival::Moved);
        if matches!(self.regions[&number].phase, Phase::Away { way: Way::Swap(_), .. }) {
            self.common.counters.breaches += 1;
        }
        Ok(())
    }

    fn refuse(&mut self, ticket: Ticket) -> Result<()> {
        let number = self.asked(ticket)?;
        self.abandon(number);
        Ok(())
    }

    fn move_now(&mut self, region: Region) -> Result<()> {
        let (number, owned) = self.owned(region)?;
        if self.exporter.mover().is_none() || is_adopted(owned) {
            return Err(AcceleratorError::NeverMoves);
        }
        match owned.phase {
            Phase::Active => self.begin(number),
            Phase::Asked { .. } | Phase::Following => {}
            Phase::Away { .. } => return Err(AcceleratorError::Away { region }),
        }
        Ok(())
    }

    fn revoke_now(&mut self, region: Region, contents: Contents) -> Result<()> {
        let (number, owned) = self.owned(region)?;
        if self.exporter.mover().is_none() || is_adopted(owned) {
            return Err(AcceleratorError::NeverMoves);
        }
        if matches!(owned.phase, Phase::Away { .. }) {
            return Err(AcceleratorError::Away { region });
        }
        self.revoke(number, Way::Swap(contents));
        Ok(())
    }

    fn driver(&self) -> Option<Driver> {
        Some(Driver { name: self.name, exporter: Arc::clone(&self.exporter) })
    }

    fn stale_stores(&mut self) -> Option<u64> {
        self.exporter.mover().and_then(Mover::stale_bytes)
    }

    fn step(&mut self) -> (Option<Duration>, bool) {
        if self.exporter.mover().is_none() {
            return (None, false);
        }
        if self.common.take_move() {
            let active = self.active();
            let _ = self.common.victim(&active).map(|number| self.begin(number));
        }
        if let Some(contents) = self.common.take_revoke() {
            let active = self.active();
            let _ = self.common.victim(&active).map(|number| self.revoke(number, Way::Swap(contents)));
        }
        if self.watched <= self.common.now {
            self.watch();
        }
        let now = self.common.now;
        let mut due = if self.regions.is_empty() { None } else { Some(self.watched) };
        due = [due, self.common.next_event()].into_iter().flatten().min();
        for number in self.regions.keys().copied().collect::<Vec<_>>() {
            let at = match &mut self.regions.get_mut(&number).expect("its key is there").phase {
                Phase::Asked { deadline, .. } if *deadline <= now => {
                    self.abandon(number);
                    continue;
                }
                Phase::Asked { deadline, .. } => *deadline,
                Phase::Away { due, next: Some(_), .. } if *due > now => *due,
                Phase::Away { arrival, next, .. } if next.is_some() => {
                    let (arrival, next) = (*arrival, next.take());
                    if let Some((pages, contents, copied)) = next {
                        self.arrive(number, pages, arrival, contents, copied);
                    }
                    continue;
                }
                Phase::Away { again, .. } if *again > now => *again,
                Phase::Active | Phase::Following | Phase::Away { .. } => continue,
            };
            due = Some(due.map_or(at, |due| due.min(at)));
        }
        (due, false)
    }

    fn errand(&mut self) -> Option<Errand> {
        let exporter = Arc::clone(&self.exporter);
        if let Some(pages) = self.freed.pop() {
            return Some(Errand { exporter, number: u64::MAX, pages, way: None, generation: 0, skew: 0 });
        }
        let skew = self.skew();
        let now = self.common.now;
        self.regions.iter_mut().find_map(|(&number, owned)| {
            let (way, generation) = match owned.phase {
                Phase::Following => (Way::Shift { force: false }, owned.pages.generation),
                Phase::Away { way, again, next: None, .. } if again <= now => {
                    (way, owned.pages.generation + 1)
                }
                _ => return None,
            };
            if std::mem::replace(&mut owned.out, true) {
                return None;
            }
            let (exporter, pages, way) = (Arc::clone(&exporter), Arc::clone(&owned.pages), Some(way));
            Some(Errand { exporter, number, pages, way, generation, skew })
        })
    }

    fn run(errand: &mut Errand) -> Ran {
        errand.run()
    }

    fn ran(&mut self, errand: Errand, ran: Ran) {
        let now = self.common.now;
        let Some(owned) = self.regions.get_mut(&errand.number) else { return };
        owned.out = false;
        if errand.generation == owned.pages.generation {
            // What cannot move does not, and nobody has been told.
            let counter = match ran {
                Ok(_) => &mut self.common.counters.moves,
                Err(_) => &mut self.common.counters.refused,
            };
            *counter += 1;
            // Unless it was revoked meanwhile.
            if matches!(owned.phase, Phase::Following) {
                owned.phase = Phase::Active;
            }
            return;
        }
        match (&mut owned.phase, ran) {
            (Phase::Away { next, .. }, Ok((pages, contents))) => *next = Some((pages, contents, now)),
            (Phase::Away { way, again, .. }, Err(error)) => {
                // There is nothing left to move; else there is no memory, or a NIC holds the old, which is waited for: the old generation has been given up.
                if matches!(&error, AcceleratorError::System(error) if is(error, Errno::NODEV)) {
                    *way = Way::Swap(Contents::Lost);
                }
                *again = now + AGAIN;
            }
            // Nothing else sends an errand out.
            (Phase::Active | Phase::Asked { .. } | Phase::Following, _) => {}
        }
    }

    fn close(&mut self) {
        for (_, owned) in std::mem::take(&mut self.regions) {
            owned.pages.life().set(owned.pages.generation, State::Dead);
            if let Some(mover) = self.exporter.mover().filter(|_| !is_adopted(&owned)) {
                let _ = mover.revoke(owned.pages.as_fd());
            }
        }
    }
}
