//! The owner's side: one [`Region`] for each segment this rank owns.
//!
//! ```text
//! Registering(g) → Active(g) → Quiescing(g) → Deregistering(g) → Withdrawn(g) → Registering(g+1) → Active(g+1) …
//! ```
//!
//! and the ends `Freed` and `Lost`. Withdrawn means that nobody can touch the memory: each peer has answered or is fenced, no
//! lease of this rank's own steps is out, and the registration is undone, which also fences what the NIC had still under way. Only
//! then a ticket is acknowledged, so a pinned owner and a cooperative one are served alike.
//!
//! A revoke is the exception: the memory is dead at once, and nobody need be waited for, because nobody can touch it. Tickets that
//! are open then are refused. Each peer is advertised to as it answers, so a stopped one holds up nobody else's return.
//!
//! Where a ticket cannot be served in time, it is refused with the ranks that are waited on, and the memory stays. The region then goes on
//! as generation g+1 in the same place with those who have answered, while the stopped rank still owes its answer for g.

use std::collections::VecDeque;

use super::notice::{Notice, Replacement};
use super::table::find;
use super::table::owner::{Effect, Event, State, TABLE};
use super::{Descriptor, Fault, Generation, Lease, Paused, Refusal, RegionError, RegionName, Stale, Ticket};

/// Open tickets a region holds; one more is refused.
const MOST_TICKETS: usize = 8;

/// How a peer reaches the region.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Access {
    /// By a mapping: nothing but its own answer or its death takes it away.
    Mapped,
    /// By a key through a queue pair, which this rank can break.
    Key,
}

/// How patient a region is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Limits {
    /// What is under way may take this long to drain, about two chunks' time; then queue pairs are broken.
    pub drain_ns: u64,
    /// The exporter may keep the memory this long.
    pub return_ns: u64,
}

/// What the engine is to do. In order, and at once.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum RegionAction {
    /// Register the memory, then call [`Region::handle_registered`].
    Register {
        /// For this generation.
        generation: Generation,
        /// Where it is.
        descriptor: Descriptor,
    },
    /// Undo the registration, then call [`Region::handle_deregistered`].
    Deregister,
    /// Tell a peer that it may use the region, with the watermark of what has arrived from it.
    Advertise {
        /// The peer.
        to: u32,
        /// From now on.
        generation: Generation,
        /// Where it is.
        descriptor: Descriptor,
    },
    /// Tell a peer where the region will be.
    Announce {
        /// The peer.
        to: u32,
        /// The next place.
        descriptor: Descriptor,
    },
    /// Tell a peer to stop, drain, unmap and answer.
    Withdraw {
        /// The peer.
        to: u32,
        /// What it holds.
        generation: Generation,
    },
    /// Tell a peer that no generation follows.
    End {
        /// The peer.
        to: u32,
        /// The last one.
        generation: Generation,
    },
    /// Move both ends of the queue pair to this peer out of use, then call [`Region::handle_broken`].
    Break {
        /// The peer.
        rank: u32,
    },
    /// This rank's own steps may take leases again.
    Resume {
        /// Of this generation.
        generation: Generation,
    },
    /// Tell the exporter that nobody touches the memory any more.
    Acknowledge {
        /// What it asked.
        ticket: Ticket,
    },
    /// Tell the exporter that it cannot have the memory.
    Refuse {
        /// What it asked.
        ticket: Ticket,
        /// Why.
        refusal: Refusal,
    },
    /// Fail the operations that use the region.
    Fail(RegionError),
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Standing {
    /// It can touch nothing, and may be told of the next generation.
    Idle,
    Holds(Generation),
    /// It has been told to stop. While `live`, it might still touch the memory.
    Owes {
        generation: Generation,
        live: bool,
    },
    /// Dead.
    Fenced,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Peer {
    rank: u32,
    access: Access,
    standing: Standing,
    /// The engine is breaking its queue pair.
    breaking: bool,
}

impl Peer {
    fn can_touch(&self) -> bool {
        matches!(self.standing, Standing::Holds(_) | Standing::Owes { live: true, .. })
    }
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Open {
    ticket: Ticket,
    deadline_ns: u64,
}

/// A segment of this rank, as it moves. The engine that owns it touches it, and nobody else.
///
/// - Inputs: [`handle_notice`](Self::handle_notice) (the exporter), [`handle_registered`](Self::handle_registered),
///   [`handle_unregistrable`](Self::handle_unregistrable), [`handle_deregistered`](Self::handle_deregistered),
///   [`handle_broken`](Self::handle_broken) (what was asked of the engine), [`handle_withdrawn`](Self::handle_withdrawn),
///   [`handle_death`](Self::handle_death) (the peers), [`handle_time`](Self::handle_time), [`lease`](Self::lease) and
///   [`give_back`](Self::give_back) (this rank's own steps).
/// - Outputs: [`poll_action`](Self::poll_action).
/// - Getters: the rest.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Region {
    name: RegionName,
    state: State,
    generation: Generation,
    descriptor: Descriptor,
    announced: Option<Descriptor>,
    leases: u32,
    peers: Vec<Peer>,
    open: Vec<Open>,
    /// Revoked, and not placed anew yet.
    dead: bool,
    freeing: bool,
    ended: bool,
    /// The last ticket acknowledged since the memory was placed: its move is the one to wait for.
    taken: Option<Ticket>,
    replacement: Option<Replacement>,
    force_ns: u64,
    return_ns: u64,
    limits: Limits,
    actions: VecDeque<RegionAction>,
    fault: Option<Fault>,
}

impl Region {
    /// A region of generation 0, for these peers. Its first action is to register it.
    pub fn new(name: RegionName, descriptor: Descriptor, peers: &[(u32, Access)], limits: Limits) -> Self {
        let peer = |&(rank, access)| Peer { rank, access, standing: Standing::Idle, breaking: false };
        let generation = Generation(0);
        Self {
            name,
            state: State::Registering,
            generation,
            descriptor,
            announced: None,
            leases: 0,
            peers: peers.iter().map(peer).collect(),
            open: Vec::with_capacity(MOST_TICKETS),
            dead: false,
            freeing: false,
            ended: false,
            taken: None,
            replacement: None,
            force_ns: 0,
            return_ns: 0,
            limits,
            actions: VecDeque::from([RegionAction::Register { generation, descriptor }]),
            fault: None,
        }
    }

    /// The same with a planted fault.
    #[doc(hidden)]
    pub fn plant(mut self, fault: Option<Fault>) -> Self {
        self.fault = fault;
        self
    }

    /// What the exporter says.
    pub fn handle_notice(&mut self, notice: Notice, now_ns: u64) {
        match notice {
            Notice::Move { ticket, deadline_ns } => self.open(ticket, deadline_ns, Event::Move, now_ns),
            Notice::Free { ticket, deadline_ns } => self.open(ticket, deadline_ns, Event::Free, now_ns),
            Notice::Announce(descriptor) => {
                self.announced = Some(descriptor);
                self.step(Event::Announce, now_ns);
            }
            Notice::Revoke => self.step(Event::Revoke, now_ns),
            Notice::Replaced { ticket, outcome } => self.replace(ticket, outcome, now_ns),
        }
        self.settle(now_ns);
    }

    /// The registration that was asked for is done.
    pub fn handle_registered(&mut self, now_ns: u64) {
        self.step(Event::Registered, now_ns);
        self.settle(now_ns);
    }

    /// The registration that was asked for failed. A revoke is a likely reason, so all notices that have come are handed on first;
    /// then the replacement is waited for, and nothing fails.
    pub fn handle_unregistrable(&mut self, errno: i32, now_ns: u64) {
        let error = RegionError::Unregistrable { region: self.name, generation: self.generation, errno };
        if self.state == State::Registering {
            self.actions.push_back(RegionAction::Fail(error));
        }
        self.step(Event::Unregistrable, now_ns);
        self.settle(now_ns);
    }

    /// The registration is undone; the NIC touches nothing by it any more.
    pub fn handle_deregistered(&mut self, now_ns: u64) {
        self.step(Event::Deregistered, now_ns);
        self.settle(now_ns);
    }

    /// The queue pair to a peer is out of use: it touches nothing until it is advertised to again. It still owes its answer.
    pub fn handle_broken(&mut self, rank: u32, now_ns: u64) {
        for peer in self.peers.iter_mut().filter(|p| p.rank == rank) {
            peer.breaking = false;
            if let Standing::Owes { live, .. } = &mut peer.standing {
                *live = false;
            }
        }
        self.catch_up();
        self.settle(now_ns);
    }

    /// A peer has drained and unmapped a generation. Its watermark goes to the ledgers, if this accepts the answer.
    pub fn handle_withdrawn(&mut self, rank: u32, generation: Generation, now_ns: u64) -> Result<(), Stale> {
        let peer = self.peers.iter_mut().find(|peer| {
            peer.rank == rank
                && matches!(peer.standing, Standing::Owes { generation: owed, .. } if owed == generation)
        });
        let Some(peer) = peer else {
            let (region, now) = (self.name, self.generation);
            return Err(Stale::Generation { rank, region, said: generation, now });
        };
        peer.standing = Standing::Idle;
        self.catch_up();
        self.settle(now_ns);
        Ok(())
    }

    /// A peer's process is known to be gone (its pidfd says so): it touches nothing.
    pub fn handle_death(&mut self, rank: u32, now_ns: u64) {
        self.peers.iter_mut().filter(|p| p.rank == rank).for_each(|p| p.standing = Standing::Fenced);
        self.settle(now_ns);
    }

    /// Time has passed.
    pub fn handle_time(&mut self, now_ns: u64) {
        if self.is_quiescing() && now_ns >= self.force_ns {
            for peer in self.peers.iter_mut().filter(|p| Self::forcible(p)) {
                peer.breaking = true;
                self.actions.push_back(RegionAction::Break { rank: peer.rank });
            }
        }
        if self.open.iter().any(|open| open.deadline_ns <= now_ns) {
            let refusal = Refusal::TimedOut { waiting_on: self.waiting_on() };
            for late in self.open.extract_if(.., |open| open.deadline_ns <= now_ns) {
                self.actions
                    .push_back(RegionAction::Refuse { ticket: late.ticket, refusal: refusal.clone() });
            }
        }
        self.settle(now_ns);
        if self.state == State::Withdrawn && now_ns >= self.return_ns {
            self.step(Event::Overdue, now_ns);
        }
    }

    /// The right to touch the region for one chunk.
    pub fn lease(&mut self) -> Result<Lease, Paused> {
        if self.state != State::Active {
            return Err(Paused { region: self.name });
        }
        self.leases += 1;
        Ok(Lease { region: self.name, generation: self.generation })
    }

    /// The chunk is over, well or not.
    ///
    /// # Panics
    ///
    /// If the lease is another region's.
    pub fn give_back(&mut self, lease: Lease, now_ns: u64) {
        assert_eq!(lease.region, self.name, "a lease goes back to where it came from");
        self.leases -= 1;
        self.settle(now_ns);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<RegionAction> {
        self.actions.pop_front()
    }

    /// When [`handle_time`](Self::handle_time) is wanted next.
    pub fn deadline_ns(&self) -> Option<u64> {
        let tickets = self.open.iter().map(|open| open.deadline_ns);
        let force = self.is_quiescing() && self.peers.iter().any(Self::forcible);
        let back = self.state == State::Withdrawn;
        tickets.chain(force.then_some(self.force_ns)).chain(back.then_some(self.return_ns)).min()
    }

    /// Whether what a rank (a peer, or this one) did under this generation counts: both ends refuse stale ones.
    pub fn admits(&self, rank: u32, generation: Generation) -> bool {
        let own = rank == self.name.owner && generation == self.generation;
        own || self.peers.iter().any(|peer| {
            peer.rank == rank
                && match peer.standing {
                    Standing::Holds(held) => held == generation,
                    Standing::Owes { generation: held, live } => live && held == generation,
                    Standing::Idle | Standing::Fenced => false,
                }
        })
    }

    /// Whether nobody can touch the memory: an operation that failed gives it back only then.
    pub fn is_silent(&self) -> bool {
        self.leases == 0 && (self.dead || !self.peers.iter().any(Peer::can_touch))
    }

    /// The ranks that might still touch the memory, or whose engine has something to end.
    pub fn waiting_on(&self) -> Vec<u32> {
        let unregistering = matches!(self.state, State::Cancelling | State::Deregistering);
        let own = (self.leases > 0 || unregistering).then_some(self.name.owner);
        own.into_iter().chain(self.peers.iter().filter(|p| p.can_touch()).map(|p| p.rank)).collect()
    }

    /// Which region.
    pub const fn name(&self) -> RegionName {
        self.name
    }

    /// Its generation.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Where it is in its life.
    pub const fn state(&self) -> State {
        self.state
    }

    /// The ticket that was acknowledged last, while its replacement is waited for.
    pub const fn taken(&self) -> Option<Ticket> {
        self.taken
    }

    /// Leases of this rank's own steps.
    pub const fn leases(&self) -> u32 {
        self.leases
    }

    fn open(&mut self, ticket: Ticket, deadline_ns: u64, event: Event, now_ns: u64) {
        if self.open.len() == MOST_TICKETS {
            let refusal = Refusal::TooMany { limit: MOST_TICKETS };
            return self.actions.push_back(RegionAction::Refuse { ticket, refusal });
        }
        self.open.push(Open { ticket, deadline_ns });
        self.freeing |= event == Event::Free;
        self.step(if event == Event::Move && self.dead { Event::MoveInVain } else { event }, now_ns);
    }

    fn replace(&mut self, ticket: Option<Ticket>, outcome: Replacement, now_ns: u64) {
        if matches!(self.state, State::Freed | State::Lost) {
            return;
        }
        // Notices come in order, so after a revoke the last word counts, whatever it answers.
        if !self.dead && (ticket.is_none() || ticket != self.taken) {
            if self.state == State::Withdrawn && ticket.is_some() && self.taken.is_some() {
                // A later ticket has been acknowledged since: that one's replacement is the one to wait for.
                return;
            }
            // It moved the memory without having been allowed to, which is a revoke by another name.
            self.step(Event::Revoke, now_ns);
        }
        self.replacement = Some(outcome);
    }

    /// What follows from the state as it is now.
    fn settle(&mut self, now_ns: u64) {
        while let Some(event) = self.due() {
            self.step(event, now_ns);
        }
    }

    fn due(&self) -> Option<Event> {
        match self.state {
            State::Quiescing if self.is_quiet() => Some(Event::Quiet),
            State::Quiescing if self.open.is_empty() && !self.dead && !self.freeing => Some(Event::Kept),
            State::Withdrawn if self.freeing => Some(Event::Released),
            State::Withdrawn => match self.replacement {
                Some(Replacement::Preserved(_)) => Some(Event::Preserved),
                Some(Replacement::Lost) => Some(Event::Gone),
                None => (!self.dead && self.taken.is_none()).then_some(Event::Kept),
            },
            _ => None,
        }
    }

    fn is_quiet(&self) -> bool {
        let early = self.fault == Some(Fault::AcknowledgeEarly);
        self.leases == 0 && (early || !self.peers.iter().any(Peer::can_touch))
    }

    fn is_quiescing(&self) -> bool {
        self.state == State::Quiescing
    }

    fn forcible(peer: &Peer) -> bool {
        let owes = matches!(peer.standing, Standing::Owes { live: true, .. });
        owes && peer.access == Access::Key && !peer.breaking
    }

    fn step(&mut self, event: Event, now_ns: u64) {
        let row = find(TABLE, self.state, event);
        if row.to == State::Quiescing && self.state != State::Quiescing {
            self.force_ns = now_ns.saturating_add(self.limits.drain_ns);
        }
        self.state = row.to;
        for effect in row.effects {
            self.perform(*effect, now_ns);
        }
    }

    fn perform(&mut self, effect: Effect, now_ns: u64) {
        let (region, generation) = (self.name, self.generation);
        match effect {
            Effect::NextGeneration if self.fault == Some(Fault::ReuseGeneration) => {}
            Effect::NextGeneration => self.generation = generation.next(),
            Effect::Register => self.register(),
            Effect::Advertise => {
                self.actions.push_back(RegionAction::Resume { generation });
                self.advertise();
            }
            Effect::AnnounceAhead => self.announce(),
            Effect::Withdraw => self.withdraw(),
            Effect::Bury => self.bury(),
            Effect::Deregister => self.actions.push_back(RegionAction::Deregister),
            Effect::Acknowledge => self.acknowledge(),
            Effect::RefuseRevoked => {
                for open in self.open.drain(..) {
                    let refusal = Refusal::Revoked { generation };
                    self.actions.push_back(RegionAction::Refuse { ticket: open.ticket, refusal });
                }
            }
            Effect::Await => self.return_ns = now_ns.saturating_add(self.limits.return_ns),
            Effect::FailRevoked => self.fail(RegionError::RegionRevoked { region, generation }),
            Effect::FailOverdue => {
                self.fail(RegionError::NotReturned { region, generation, after_ns: self.limits.return_ns });
            }
            // Said by the input, which knows the error's number.
            Effect::FailUnregistrable => {}
            Effect::End => self.end(),
        }
    }

    fn register(&mut self) {
        if let Some(Replacement::Preserved(descriptor)) = self.replacement.take() {
            self.descriptor = descriptor;
        }
        (self.dead, self.taken) = (false, None);
        let (generation, descriptor) = (self.generation, self.descriptor);
        self.actions.push_back(RegionAction::Register { generation, descriptor });
    }

    /// Peers that were not ready when the generation began hear of it when they are.
    fn catch_up(&mut self) {
        if self.state == State::Active {
            self.advertise();
        }
    }

    /// To each peer that has answered, and whose queue pair is not just being broken.
    fn advertise(&mut self) {
        let (generation, descriptor) = (self.generation, self.descriptor);
        let ready = |peer: &&mut Peer| peer.standing == Standing::Idle && !peer.breaking;
        for peer in self.peers.iter_mut().filter(ready) {
            peer.standing = Standing::Holds(generation);
            self.actions.push_back(RegionAction::Advertise { to: peer.rank, generation, descriptor });
        }
    }

    /// To each peer that would map it soon; one that does not answer is not sent more than it owes.
    fn announce(&mut self) {
        let Some(descriptor) = self.announced.filter(|descriptor| *descriptor != self.descriptor) else {
            return;
        };
        let near = |peer: &&Peer| matches!(peer.standing, Standing::Idle | Standing::Holds(_));
        for peer in self.peers.iter().filter(near) {
            self.actions.push_back(RegionAction::Announce { to: peer.rank, descriptor });
        }
    }

    fn withdraw(&mut self) {
        for peer in &mut self.peers {
            if let Standing::Holds(generation) = peer.standing {
                peer.standing = Standing::Owes { generation, live: true };
                self.actions.push_back(RegionAction::Withdraw { to: peer.rank, generation });
            }
        }
    }

    fn bury(&mut self) {
        // What the exporter had placed before is dead as well.
        (self.dead, self.taken, self.replacement) = (true, None, None);
        for peer in &mut self.peers {
            if let Standing::Owes { live, .. } = &mut peer.standing {
                *live = false;
            }
        }
    }

    fn acknowledge(&mut self) {
        for open in self.open.drain(..) {
            self.taken = Some(open.ticket);
            self.actions.push_back(RegionAction::Acknowledge { ticket: open.ticket });
        }
    }

    fn fail(&mut self, error: RegionError) {
        if !self.ended {
            self.actions.push_back(RegionAction::Fail(error));
        }
    }

    fn end(&mut self) {
        if self.ended {
            return;
        }
        self.ended = true;
        for peer in self.peers.iter().filter(|peer| peer.standing != Standing::Fenced) {
            self.actions.push_back(RegionAction::End { to: peer.rank, generation: self.generation });
        }
    }
}
