//! The importer's side: one [`Import`] for each region of a peer that this rank maps or holds a key of.
//!
//! ```text
//! Unknown → Mapping(g) → Mapped(g) → Draining(g) → Unmapping(g) → Gone(g) → Mapping(g+1) …
//! ```
//!
//! It answers each withdrawal exactly once, and only when its leases are back and its mapping is undone: what it says with the answer
//! is that it *cannot* touch the old place any more. Memory announced ahead is mapped beside the current generation and used by
//! nobody until the owner advertises it.

use std::collections::VecDeque;

use super::table::find;
use super::table::importer::{Effect, Event, State, TABLE};
use super::{Descriptor, Fault, Generation, Lease, Paused, RegionError, RegionName, Stale};

/// What the engine is to do. In order, and at once.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ImportAction {
    /// Map this memory, then call [`Import::handle_mapped`] or [`Import::handle_unmappable`].
    Map(Descriptor),
    /// Undo one mapping of it, then call [`Import::handle_unmapped`].
    Unmap(Descriptor),
    /// Answer the owner's withdrawal, with the watermark of what has arrived from it.
    Answer(Generation),
    /// Steps may take leases. The ledgers towards the owner continue from the watermark that came with the advertisement.
    Resume(Generation),
    /// Fail the operations that use the region.
    Fail(RegionError),
}

/// Memory mapped before it is advertised.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Ahead {
    descriptor: Descriptor,
    is_mapped: bool,
}

/// A peer's segment, as it moves. The engine that owns it touches it, and nobody else.
///
/// - Inputs: [`handle_advertise`](Self::handle_advertise), [`handle_announce`](Self::handle_announce),
///   [`handle_withdraw`](Self::handle_withdraw), [`handle_end`](Self::handle_end) (the owner), [`handle_mapped`](Self::handle_mapped),
///   [`handle_unmappable`](Self::handle_unmappable), [`handle_unmapped`](Self::handle_unmapped) (what was asked of the engine),
///   [`handle_break`](Self::handle_break) (an access failed), [`lease`](Self::lease) and [`give_back`](Self::give_back) (steps).
/// - Outputs: [`poll_action`](Self::poll_action).
/// - Getters: the rest.
///
/// An owner's death needs no input: its operations fail by the membership, and the machine is dropped, with what it has mapped, once
/// [`leases`](Self::leases) is 0.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Import {
    name: RegionName,
    state: State,
    /// The newest generation advertised; none before the first.
    generation: Option<Generation>,
    descriptor: Option<Descriptor>,
    ahead: Option<Ahead>,
    leases: u32,
    /// A withdrawal waits for its answer.
    owes_answer: bool,
    ended: bool,
    actions: VecDeque<ImportAction>,
    fault: Option<Fault>,
}

impl Import {
    /// A region that has not been advertised yet.
    pub fn new(name: RegionName) -> Self {
        Self {
            name,
            state: State::Unknown,
            generation: None,
            descriptor: None,
            ahead: None,
            leases: 0,
            owes_answer: false,
            ended: false,
            actions: VecDeque::new(),
            fault: None,
        }
    }

    /// The same with a planted fault.
    #[doc(hidden)]
    pub fn plant(mut self, fault: Option<Fault>) -> Self {
        self.fault = fault;
        self
    }

    /// The owner advertises a generation.
    pub fn handle_advertise(&mut self, generation: Generation, descriptor: Descriptor) -> Result<(), Stale> {
        let is_next = self.generation.is_none_or(|newest| generation > newest);
        let careless = self.fault == Some(Fault::ReuseGeneration);
        if !matches!(self.state, State::Unknown | State::Gone) || !(is_next || careless) {
            return Err(self.stale(generation));
        }
        (self.generation, self.descriptor) = (Some(generation), Some(descriptor));
        let ready = self.ahead.is_some_and(|ahead| ahead.descriptor == descriptor && ahead.is_mapped);
        if ready {
            self.ahead = None;
        }
        self.step(if ready { Event::AdvertiseMapped } else { Event::Advertise });
        Ok(())
    }

    /// The owner says where the region will be: it is mapped ahead, and used by nobody yet.
    pub fn handle_announce(&mut self, descriptor: Descriptor) {
        let known = self.descriptor == Some(descriptor)
            || self.ahead.is_some_and(|ahead| ahead.descriptor == descriptor);
        if known || self.ended {
            return;
        }
        self.discard();
        self.ahead = Some(Ahead { descriptor, is_mapped: false });
        self.actions.push_back(ImportAction::Map(descriptor));
    }

    /// The owner withdraws a generation.
    pub fn handle_withdraw(&mut self, generation: Generation) -> Result<(), Stale> {
        if self.generation != Some(generation) || self.owes_answer {
            return Err(self.stale(generation));
        }
        self.owes_answer = true;
        if self.fault == Some(Fault::SkipFence) {
            self.answer();
        }
        self.step(Event::Withdraw);
        self.settle();
        Ok(())
    }

    /// The owner says that no generation follows.
    pub fn handle_end(&mut self) {
        self.ended = true;
        self.step(Event::End);
        self.settle();
    }

    /// What was to be mapped is mapped.
    pub fn handle_mapped(&mut self, descriptor: Descriptor) {
        let awaited = matches!(self.state, State::Mapping | State::Cancelling);
        match &mut self.ahead {
            _ if awaited && self.descriptor == Some(descriptor) => self.step(Event::Mapped),
            Some(ahead) if ahead.descriptor == descriptor && !ahead.is_mapped => ahead.is_mapped = true,
            // It was announced, and then something else was.
            _ => self.actions.push_back(ImportAction::Unmap(descriptor)),
        }
        self.settle();
    }

    /// What was to be mapped cannot be.
    pub fn handle_unmappable(&mut self, descriptor: Descriptor, errno: i32) {
        let awaited = matches!(self.state, State::Mapping | State::Cancelling);
        if awaited && self.descriptor == Some(descriptor) {
            if let (State::Mapping, Some(generation)) = (self.state, self.generation) {
                let error = RegionError::Unregistrable { region: self.name, generation, errno };
                self.actions.push_back(ImportAction::Fail(error));
            }
            self.step(Event::Unmappable);
        } else if self.ahead.is_some_and(|ahead| ahead.descriptor == descriptor) {
            // It is tried again when it is advertised.
            self.ahead = None;
        }
        self.settle();
    }

    /// What was to be unmapped is unmapped.
    pub fn handle_unmapped(&mut self, descriptor: Descriptor) {
        if self.state == State::Unmapping && self.descriptor == Some(descriptor) {
            self.step(Event::Unmapped);
        }
        self.settle();
    }

    /// An access failed because of the region: the generation was revoked, or will be withdrawn. Not for a broken connection, which is
    /// the ledgers' affair: the region would wait for a withdrawal that nobody sends.
    pub fn handle_break(&mut self, lease: &Lease) {
        if self.generation == Some(lease.generation) {
            self.step(Event::Break);
        }
    }

    /// The right to touch the region for one chunk.
    pub fn lease(&mut self) -> Result<Lease, Paused> {
        match self.generation {
            Some(generation) if self.state == State::Mapped => {
                self.leases += 1;
                Ok(Lease { region: self.name, generation })
            }
            _ => Err(Paused { region: self.name }),
        }
    }

    /// The chunk is over, well or not.
    ///
    /// # Panics
    ///
    /// If the lease is another region's.
    pub fn give_back(&mut self, lease: Lease) {
        assert_eq!(lease.region, self.name, "a lease goes back to where it came from");
        self.leases -= 1;
        self.settle();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<ImportAction> {
        self.actions.pop_front()
    }

    /// Which region.
    pub const fn name(&self) -> RegionName {
        self.name
    }

    /// The newest generation that was advertised.
    pub const fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// Where it is in its life, as seen from here.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Leases that are out.
    pub const fn leases(&self) -> u32 {
        self.leases
    }

    fn stale(&self, said: Generation) -> Stale {
        let now = self.generation.unwrap_or(Generation(0));
        Stale::Generation { rank: self.name.owner, region: self.name, said, now }
    }

    fn settle(&mut self) {
        if self.state == State::Draining && self.leases == 0 {
            self.step(Event::Drained);
        }
        if self.state == State::Gone && self.ended {
            self.step(Event::Over);
        }
    }

    fn step(&mut self, event: Event) {
        let row = find(TABLE, self.state, event);
        self.state = row.to;
        for effect in row.effects {
            self.perform(*effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        let Some((generation, descriptor)) = self.generation.zip(self.descriptor) else {
            // Ended before the first advertisement.
            return self.discard();
        };
        match effect {
            Effect::Map if self.ahead.is_some_and(|ahead| ahead.descriptor == descriptor) => {
                self.ahead = None
            }
            Effect::Map => self.actions.push_back(ImportAction::Map(descriptor)),
            Effect::Resume => self.actions.push_back(ImportAction::Resume(generation)),
            Effect::Unmap => self.actions.push_back(ImportAction::Unmap(descriptor)),
            Effect::Answer => self.answer(),
            Effect::FailRevoked => {
                let error = RegionError::RegionRevoked { region: self.name, generation };
                self.actions.push_back(ImportAction::Fail(error));
            }
            // Said by the input, which knows the error's number.
            Effect::FailUnmappable => {}
            Effect::Discard => self.discard(),
        }
    }

    fn answer(&mut self) {
        if let (true, Some(generation)) = (self.owes_answer, self.generation) {
            self.owes_answer = false;
            self.actions.push_back(ImportAction::Answer(generation));
        }
    }

    /// What is still being mapped is unmapped when it is.
    fn discard(&mut self) {
        if let Some(ahead) = self.ahead.take().filter(|ahead| ahead.is_mapped) {
            self.actions.push_back(ImportAction::Unmap(ahead.descriptor));
        }
    }
}
