//! The machines of a rank's device memory, and of its peers', with what they ask for carried out.
//!
//! The scheduler's machines are pure; here notices of the accelerator and messages of the peers become their inputs, and their
//! actions become exports, imports, acknowledgements and messages. Everything is behind one lock, which the accelerator's callback never
//! takes: it only puts a notice into a ring.
//!
//! | module | one idea |
//! |---|---|
//! | [`hold`] | memory that somebody touches |
//! | [`memory`] | memory that comes, and goes |
//! | [`moves`] | what the accelerator says, and what it is answered |
//! | [`nics`] | what NICs are given, and how it is taken back |
//! | here | who may touch what, and what ranks tell each other of it |

mod hold;
mod memory;
mod moves;
mod nics;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use windlass_memory::accelerator::{
    self, Accelerator, AcceleratorError, DeviceRange, Exported, Fence, Import as Imported, Notices, Place,
};

use super::Wake;
use super::history::{History, Return};
use crate::bootstrap::protocol::{RegionMessage, RegionNews};
use crate::error::Error;
use crate::job::{BELIEVED_AFTER, Job};
use crate::scheduler::{
    Descriptor, Generation, Import, ImportAction, Notice, Region, RegionAction, RegionError, RegionName,
    Ticket, table,
};

pub(crate) use hold::Hold;
use memory::Named;
pub(crate) use nics::key;

/// After this long without an answer a mapping peer is waited for no more when a buffer is freed; the memory then stays until it answers.
const FREE_PATIENCE: Duration = Duration::from_secs(1);

/// A number beyond these would be taken for a mark in the arrival line.
const MOST_SEGMENTS: u32 = 1 << 31;

/// Tickets of this rank's own, by which it asks for its memory to be freed or to fall silent. The accelerator's are below.
const OWN_TICKETS: u64 = 1 << 63;

/// A message to a rank, perhaps with a descriptor.
pub(super) type Told = (u32, RegionMessage, Option<OwnedFd>);

/// Memory of this rank.
#[derive(Debug)]
struct Own {
    machine: Region,
    memory: accelerator::Region,
    bytes: u64,
    /// The accelerator's generation that the machine's current one lies in.
    place: u32,
    /// The newest one that the accelerator has told of: what it says of older ones is old.
    heard: u32,
    /// An operation that was lent it at an earlier generation of the machine's is over: its peers may touch it no more.
    lent_from: u32,
    /// It moves only after a question.
    asks: bool,
    /// Why nobody will touch it again.
    failure: Option<RegionError>,
    /// Since when nobody may begin to touch it, on the accelerator's clock.
    paused: Option<Duration>,
    /// When the accelerator asked for it.
    asked: Option<Duration>,
    /// Its descriptor at the present place, and where it begins there, once a NIC has been given it.
    given: Option<(Arc<OwnedFd>, Exported)>,
    /// Since it moved. Not of scratch, whose moves nobody outside waits for: they cost less, and would make the others look cheap.
    way: Option<Return>,
}

/// What memory is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// A buffer that the peers of this host may touch.
    Lent,
    /// A buffer of which nobody else needs to know.
    Kept,
    /// The engine's own.
    Scratch,
}

/// Memory of a peer.
#[derive(Debug)]
struct Theirs {
    machine: Import,
    /// Descriptors that have come, still here unless imported, or why the owner has none; by its generation.
    descriptors: BTreeMap<u64, Result<(Option<OwnedFd>, Exported), i32>>,
    imports: BTreeMap<u64, Option<Imported>>,
    /// The one that is advertised.
    place: u64,
    /// See [`Own::lent_from`].
    lent_from: u32,
    /// Why it cannot be touched as it is advertised at present, and since when that is known.
    failure: Option<(RegionError, Duration)>,
}

impl Theirs {
    /// What is wrong with it here is so at once. That its owner has ended it is believed after a while: if an operation has failed before, the news
    /// of that has gone another way, and counts first.
    fn lost(&self, clock: Duration) -> Option<RegionError> {
        let (error, since) = self.failure?;
        let own = matches!(error, RegionError::Unregistrable { .. });
        (own || clock.saturating_sub(since) >= BELIEVED_AFTER).then_some(error)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Regions {
    rank: u32,
    ranks: u32,
    job: Weak<Job>,
    accelerator: Arc<dyn Accelerator>,
    notices: Arc<Notices>,
    wake: Arc<Wake>,
    /// What peers are to be told, by the movement thread: who sends may have to wait, and nobody waits with the lock in his hand.
    outbox: Vec<Told>,
    /// Segments that are to be taken back from NICs.
    wanted: Vec<u32>,
    own: BTreeMap<u32, Own>,
    /// What addresses stand for, by slot.
    named: BTreeMap<u32, Named>,
    next_segment: u32,
    theirs: BTreeMap<RegionName, Theirs>,
    next_ticket: u64,
    /// Work of failed operations, with what it touches: nobody looks at it but the machines.
    abandoned: Vec<(Fence, Vec<Hold>)>,
    /// Acknowledgements that the accelerator took back because a pin was still held.
    unpinned: Vec<(u32, Ticket)>,
    pub(crate) history: History,
}

impl Regions {
    pub(super) fn new(
        job: &Arc<Job>,
        accelerator: Arc<dyn Accelerator>,
        notices: Arc<Notices>,
        wake: Arc<Wake>,
    ) -> Self {
        Self {
            rank: job.rank,
            ranks: job.ranks,
            job: Arc::downgrade(job),
            accelerator,
            notices,
            wake,
            outbox: Vec::new(),
            wanted: Vec::new(),
            own: BTreeMap::new(),
            named: BTreeMap::new(),
            next_segment: 0,
            theirs: BTreeMap::new(),
            next_ticket: OWN_TICKETS,
            abandoned: Vec::new(),
            unpinned: Vec::new(),
            history: History::default(),
        }
    }

    fn now(&self) -> u64 {
        nanoseconds(self.accelerator.now())
    }

    fn patience(&self) -> u64 {
        self.job.upgrade().map_or(0, |job| nanoseconds(job.config.timeout))
    }

    fn own_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// An operation that one's own segment was lent to has failed. Nobody touches it again before every peer has stopped, and no
    /// peer touches it for that operation after that.
    pub(crate) fn silence(&mut self, segment: u32) {
        let (now, ticket) = (self.now(), self.own_ticket());
        if let Some(own) = self.own.get_mut(&segment) {
            own.lent_from = own.machine.generation().0.saturating_add(1);
            // A peer that cannot be made to stop is waited for, however long it takes.
            own.machine.handle_notice(Notice::Move { ticket, deadline_ns: u64::MAX }, now);
        }
        self.act(segment);
    }

    /// The job is over here: nothing is held of anybody's memory.
    pub(crate) fn close(&mut self) {
        for own in std::mem::take(&mut self.own).into_values() {
            let _ = self.accelerator.free(own.memory);
        }
        for theirs in std::mem::take(&mut self.theirs).into_values() {
            for import in theirs.imports.into_values().flatten() {
                let _ = self.accelerator.release(import);
            }
        }
    }

    /// The generation at which one's own segment is lent now.
    pub(crate) fn generation(&self, segment: u32) -> Option<u32> {
        self.own.get(&segment).map(|own| own.machine.generation().0.max(own.lent_from))
    }

    /// Whether a peer's segment has been advertised here, ever, or will never be. From then on its moves are known.
    pub(crate) fn knows(&self, name: RegionName) -> bool {
        let over = |machine: &Import| machine.state() == table::importer::State::Ended;
        self.theirs.get(&name).is_some_and(|t| t.machine.generation().is_some() || over(&t.machine))
    }

    /// The right to touch all of these, each lent at a generation, or none: false while one of them cannot be touched.
    ///
    /// # Errors
    /// When one of them will never be touched again: only who still needs memory fails by its loss.
    pub(crate) fn hold(
        &mut self,
        names: impl Iterator<Item = (RegionName, u32)>,
        holds: &mut Vec<Hold>,
    ) -> Result<bool, Error> {
        for (name, lent) in names {
            if holds.iter().any(|hold| hold.name == name) {
                continue;
            }
            let held = if name.owner == self.rank {
                let clock = self.accelerator.now();
                self.own.get_mut(&name.segment).and_then(|own| own.lend(clock))
            } else {
                // What has been taken back is waited for in vain: the news that its operation has failed is under way.
                self.theirs.get_mut(&name).filter(|theirs| lent >= theirs.lent_from).and_then(|theirs| {
                    let import = theirs.imports.get(&theirs.place).copied().flatten();
                    theirs.machine.lease().ok().map(|lease| (lease, import.map(Place::Imported)))
                })
            };
            let Some((lease, place)) = held else {
                self.give_back(holds, None);
                return self.lost(name).map_or(Ok(false), Err);
            };
            holds.push(Hold { name, lease, place });
        }
        Ok(true)
    }

    /// The work is over; it found the memory `gone`, if any.
    pub(crate) fn give_back(&mut self, holds: &mut Vec<Hold>, gone: Option<accelerator::Region>) {
        if gone.is_some() {
            // The notice may have come already: who asks again at once would find the memory gone once more.
            self.turn();
        }
        let now = self.now();
        for Hold { name, lease, place } in holds.drain(..) {
            if name.owner == self.rank {
                if let Some(own) = self.own.get_mut(&name.segment) {
                    if let Some(way) = &mut own.way {
                        self.history.worked(way, gone.is_none(), Duration::from_nanos(now));
                    }
                    own.machine.give_back(lease, now);
                }
                self.act(name.segment);
                continue;
            }
            if let Some(theirs) = self.theirs.get_mut(&name) {
                let described = theirs.descriptors.get(&theirs.place);
                let named = described.and_then(|d| d.as_ref().ok()).map(|(_, exported)| exported.region);
                if place.is_none() || gone.is_some() && gone == named {
                    theirs.machine.handle_break(&lease);
                }
                theirs.machine.give_back(lease);
            }
            self.act_on(name);
        }
    }

    /// The operation that wanted this work has failed. What it touches is held until it has ended.
    pub(crate) fn abandon(&mut self, work: Fence, holds: Vec<Hold>) {
        self.abandoned.push((work, holds));
        self.reap();
    }

    fn reap(&mut self) {
        let over: Vec<_> = self.abandoned.extract_if(.., |(work, _)| work.is_done()).collect();
        for (_, mut holds) in over {
            self.give_back(&mut holds, None);
        }
    }

    /// Why a segment will never be usable again, if so.
    fn lost(&self, name: RegionName) -> Option<Error> {
        use table::owner;
        if name.owner != self.rank {
            return self.theirs.get(&name)?.lost(self.accelerator.now()).map(super::error_of);
        }
        match self.own.get(&name.segment) {
            Some(own) if matches!(own.machine.state(), owner::State::Lost | owner::State::Freed) => {
                own.failure.map(super::error_of)
            }
            Some(_) => None,
            None => {
                let generation = Generation(0);
                Some(super::error_of(RegionError::RegionRevoked { region: name, generation }))
            }
        }
    }

    /// Who keeps a segment from being touched here; nobody, if it can be.
    pub(crate) fn waiting_on(&self, name: RegionName) -> Vec<u32> {
        if name.owner == self.rank {
            let own = self.own.get(&name.segment).map(|own| &own.machine);
            let paused = own.filter(|machine| machine.state() != table::owner::State::Active);
            return paused.map(Region::waiting_on).unwrap_or_default();
        }
        let machine = self.theirs.get(&name).map(|theirs| &theirs.machine);
        let usable = machine.is_some_and(|machine| machine.state() == table::importer::State::Mapped);
        if usable { Vec::new() } else { vec![name.owner] }
    }

    /// Does what one's own segment's machine asks for.
    fn act(&mut self, segment: u32) {
        loop {
            let now = self.now();
            let Some(own) = self.own.get_mut(&segment) else { return };
            let Some(action) = own.machine.poll_action() else {
                // Nobody can touch it any more, perhaps long after it was to be freed.
                if own.machine.state() == table::owner::State::Freed {
                    let _ = self.accelerator.free(own.memory);
                    self.own.remove(&segment);
                }
                return;
            };
            match action {
                RegionAction::Register { descriptor, .. } => {
                    own.place = descriptor.0 as u32;
                    own.machine.handle_registered(now);
                }
                RegionAction::Deregister if own.given.is_some() => {
                    self.wanted.push(segment);
                    self.wake.unsaid.store(true, Ordering::Release);
                }
                RegionAction::Deregister => own.machine.handle_deregistered(now),
                RegionAction::Advertise { to, generation, descriptor } => {
                    let (generation, place, lent_from) = (generation.0, descriptor.0, own.lent_from);
                    let news = RegionNews::Advertise { generation, place, lent_from };
                    self.show(to, segment, descriptor, news);
                }
                RegionAction::Announce { to, descriptor } => {
                    self.show(to, segment, descriptor, RegionNews::Announce { place: descriptor.0 });
                }
                RegionAction::Withdraw { to, generation } => {
                    self.tell(to, self.rank, segment, RegionNews::Withdraw { generation: generation.0 });
                }
                RegionAction::End { to, generation } => {
                    self.tell(to, self.rank, segment, RegionNews::End { generation: generation.0 });
                }
                // Peers of one host map; there is no key to break.
                RegionAction::Break { .. } => {}
                RegionAction::Resume { .. } => {
                    if let Some(since) = own.paused.take().filter(|_| own.way.is_some()) {
                        self.history.paused(self.accelerator.now().saturating_sub(since));
                    }
                }
                RegionAction::Acknowledge { ticket } => self.acknowledge(segment, ticket),
                RegionAction::Refuse { ticket, .. } => {
                    if ticket.0 < OWN_TICKETS {
                        self.history.refused();
                        let _ = self.accelerator.refuse(accelerator::Ticket::new(ticket.0));
                    }
                }
                // Whoever still needs the memory finds that out when he asks for it.
                RegionAction::Fail(error) => own.failure = Some(error),
            }
        }
    }

    /// Tells a peer of a place, with its descriptor. Without, if it has gone meanwhile: the notice of that is under way, and the peer
    /// will be told then. One that cannot be exported is said to be so.
    fn show(&mut self, to: u32, segment: u32, descriptor: Descriptor, news: RegionNews) {
        let Some(own) = self.own.get(&segment) else { return };
        let range =
            DeviceRange { region: own.memory, generation: descriptor.0 as u32, offset: 0, bytes: own.bytes };
        let (exported, descriptor) = match self.accelerator.export(range) {
            Ok(export) => (Ok(export.exported.to_wire().to_vec()), Some(export.descriptor)),
            Err(AcceleratorError::Stale { .. } | AcceleratorError::Away { .. }) => (Err(None), None),
            Err(error) => (Err(Some(super::errno(&error))), None),
        };
        self.outbox.push((to, RegionMessage { owner: self.rank, segment, news, exported }, descriptor));
        self.wake.unsaid.store(true, Ordering::Release);
    }

    fn tell(&mut self, to: u32, owner: u32, segment: u32, news: RegionNews) {
        self.outbox.push((to, RegionMessage { owner, segment, news, exported: Err(None) }, None));
        self.wake.unsaid.store(true, Ordering::Release);
    }

    /// What peers are to be told.
    pub(super) fn take_outbox(&mut self) -> Vec<Told> {
        self.wake.unsaid.store(false, Ordering::Release);
        std::mem::take(&mut self.outbox)
    }

    // ---- the peers ------------------------------------------------------------------------------------------------------

    /// A peer's message about one of its segments, or about one of ours.
    pub(crate) fn hear(&mut self, from: u32, message: RegionMessage, descriptor: Option<OwnedFd>) {
        let RegionMessage { owner, segment, news, exported } = message;
        let name = RegionName { owner, segment };
        if let RegionNews::Withdrawn { generation } = news {
            let now = self.now();
            if let Some(own) = self.own.get_mut(&segment).filter(|_| owner == self.rank) {
                // A late echo changes nothing.
                let _ = own.machine.handle_withdrawn(from, Generation(generation), now);
            }
            return self.act(segment);
        }
        // A peer speaks of its own memory only.
        if owner != from {
            return;
        }
        let theirs = self.theirs.entry(name).or_insert_with(|| Theirs {
            machine: Import::new(name),
            descriptors: BTreeMap::new(),
            imports: BTreeMap::new(),
            place: 0,
            lent_from: 0,
            failure: None,
        });
        let described = |theirs: &mut Theirs, place| {
            let described = match &exported {
                Ok(wire) => {
                    let exported = wire.as_slice().try_into().ok().and_then(Exported::from_wire);
                    exported.map(|exported| Ok((descriptor, exported)))
                }
                &Err(errno) => errno.map(Err),
            };
            if let Some(described) = described {
                theirs.descriptors.insert(place, described);
            }
        };
        // What is stale changes nothing, here as there.
        match news {
            RegionNews::Advertise { generation, place, lent_from } => {
                described(theirs, place);
                if theirs.machine.handle_advertise(Generation(generation), Descriptor(place)).is_ok() {
                    (theirs.place, theirs.lent_from, theirs.failure) = (place, lent_from, None);
                }
            }
            // What came too late to be shown is mapped when it is advertised.
            RegionNews::Announce { place } if exported.is_ok() => {
                described(theirs, place);
                theirs.machine.handle_announce(Descriptor(place));
            }
            RegionNews::Announce { .. } => {}
            RegionNews::Withdraw { generation } => {
                let _ = theirs.machine.handle_withdraw(Generation(generation));
            }
            RegionNews::End { .. } => theirs.machine.handle_end(),
            RegionNews::Withdrawn { .. } => {}
        }
        self.act_on(name);
    }

    /// Does what the machine of a peer's segment asks for.
    fn act_on(&mut self, name: RegionName) {
        loop {
            let Some(theirs) = self.theirs.get_mut(&name) else { return };
            let Some(action) = theirs.machine.poll_action() else { return };
            match action {
                ImportAction::Map(place) => {
                    let away = AcceleratorError::Away { region: accelerator::Region::new(0, 0) };
                    let import = match theirs.descriptors.get_mut(&place.0) {
                        Some(Ok((descriptor, exported))) => {
                            descriptor.take().map_or(Err(away), |descriptor| {
                                self.accelerator.import(descriptor.as_fd(), exported)
                            })
                        }
                        Some(&mut Err(errno)) => {
                            theirs.machine.handle_unmappable(place, errno);
                            continue;
                        }
                        None => Err(away),
                    };
                    match import {
                        Ok(import) => {
                            theirs.imports.insert(place.0, Some(import));
                            theirs.machine.handle_mapped(place);
                        }
                        // It went away on the way here. Who takes a lease finds nothing, as if it had gone right after. What was only
                        // announced may yet come.
                        Err(AcceleratorError::Stale { .. } | AcceleratorError::Away { .. })
                            if theirs.place == place.0 =>
                        {
                            theirs.imports.insert(place.0, None);
                            theirs.machine.handle_mapped(place);
                        }
                        Err(error) => theirs.machine.handle_unmappable(place, super::errno(&error)),
                    }
                }
                ImportAction::Unmap(place) => {
                    if let Some(Some(import)) = theirs.imports.remove(&place.0) {
                        let _ = self.accelerator.release(import);
                    }
                    theirs.descriptors.remove(&place.0);
                    theirs.machine.handle_unmapped(place);
                }
                ImportAction::Answer(generation) => {
                    let news = RegionNews::Withdrawn { generation: generation.0 };
                    self.tell(name.owner, name.owner, name.segment, news);
                }
                // Whoever still needs the memory finds that out when he asks for it.
                ImportAction::Fail(error) => theirs.failure = Some((error, self.accelerator.now())),
                ImportAction::Resume(_) => {}
            }
        }
    }

    /// A peer's process has ended: it touches nothing any more.
    pub(crate) fn lose(&mut self, rank: u32) {
        let now = self.now();
        for segment in self.own.keys().copied().collect::<Vec<_>>() {
            if let Some(own) = self.own.get_mut(&segment) {
                own.machine.handle_death(rank, now);
            }
            self.act(segment);
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
