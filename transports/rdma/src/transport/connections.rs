//! The connections' lives: offered, joined, open, broken, made anew or lost; and what goes through them.

use windlass_transports::ledger::Generation;
use windlass_transports::link::{Garbled, Link, Resumed};
use windlass_transports::{Event, LostCause, Message, MessageId, Rank, Token, Transport};

use super::Rdma;
use super::end::{End, Name};
use super::offer::{Offer, SAID_BYTES, Said};
use super::watch::Watch;
use crate::pipe::{Immediate, Landed};
use crate::verbs::{Completion, Failure, Kind, Status, VerbError};

/// Batches of completions that one poll takes from a NIC.
const BATCHES: usize = 4;
/// Polls by which all that a peer had written before it left is taken.
const FAREWELLS: usize = 64;
/// Tokens of what this rank says over control streams; those below are receives, by peer.
const SAYS: u64 = 1 << 32;

/// How a peer's connection stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// It is offered, or waits for its control stream.
    Opening,
    /// Both ends may write.
    Open,
    /// It broke; nobody has decided yet.
    Broken(LostCause),
    /// It is not made any more.
    Lost,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Link,
    pub(super) standing: Standing,
    /// Of the connection that is open, or was tried last.
    generation: Generation,
    /// While there is a queue pair.
    pub(super) end: Option<End>,
    /// The peer's newest offer, if it is for a connection that this end has not made yet.
    offer: Option<Offer>,
    /// What leaves once more over the new connection, once that is open.
    resumed: Resumed,
    /// Its control stream stands.
    pub(super) is_heard: bool,
    /// How often something was said, and heard.
    said: u64,
    heard: u64,
    inbox: Box<[u8; SAID_BYTES]>,
    /// NICs that both have.
    rails: usize,
    /// In the list of peers that each poll looks at.
    pub(super) active: bool,
}

impl Peer {
    pub(super) fn new(link: Link, rails: usize) -> Self {
        Self {
            link,
            standing: Standing::Opening,
            generation: Generation::default(),
            end: None,
            offer: None,
            resumed: Resumed::default(),
            is_heard: true,
            said: 0,
            heard: 0,
            inbox: Box::new([0; SAID_BYTES]),
            rails,
            active: false,
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.standing == Standing::Lost
    }

    /// Whether the peer waits for an acknowledgement, and could be told.
    pub(super) fn owes(&self) -> bool {
        self.standing == Standing::Open && self.link.owes()
    }
}

/// Why a queue pair is not what it should be, for those who have never heard of any.
fn cause(failure: &Failure) -> LostCause {
    use rustix::io::Errno;
    let (what, errno) = match failure.status {
        Status::RetryExceeded => ("its NIC does not answer", Errno::TIMEDOUT),
        Status::RemoteAccess => ("its memory is not reached by the key that it told", Errno::ACCESS),
        Status::RemoteInvalidRequest | Status::RemoteOperation | Status::RemoteAborted => {
            ("its NIC refused a write", Errno::IO)
        }
        Status::LocalProtection | Status::LocalAccess => {
            ("this rank's NIC does not reach memory that it should", Errno::ACCESS)
        }
        Status::ReceiverNotReady => ("it had no receive posted", Errno::NOBUFS),
        Status::Flushed => ("the queue pair was taken to the error state", Errno::CONNRESET),
        _ => ("this rank's NIC reports an error", Errno::IO),
    };
    LostCause::Device { what, errno: errno.raw_os_error() }
}

fn failed(error: &VerbError) -> LostCause {
    LostCause::System { call: error.verb, errno: error.errno }
}

impl Rdma {
    // ---- control -----------------------------------------------------------------------------------------------------------

    fn message(sequence: u64) -> Message {
        let id = MessageId { communicator: 0, tag: 0, sequence, label: 0, chunk: 0 };
        Message { id, fingerprint: [0; 2], bytes: SAID_BYTES }
    }

    fn say(&mut self, peer: Rank, said: &Said) {
        let entry = &mut self.peers[peer as usize];
        entry.said += 1;
        let (message, token) = (Self::message(entry.said), Token(u64::from(peer) | entry.said << 33 | SAYS));
        let bytes = self.outbox.entry(token).or_insert_with(|| Box::new(said.encode()));
        // SAFETY: the bytes stay in the outbox until they are sent, and the outbox is declared after the streams.
        unsafe { self.control.post_send(peer, &message, bytes.as_ptr(), token) };
    }

    /// Awaits what a peer says next.
    pub(super) fn listen_to(&mut self, peer: Rank) {
        let entry = &mut self.peers[peer as usize];
        entry.heard += 1;
        let message = Self::message(entry.heard);
        // SAFETY: the inbox is read when the receive has ended, and is declared after the streams.
        unsafe { self.control.post_recv(peer, &message, entry.inbox.as_mut_ptr(), Token(peer.into())) };
    }

    /// Hears what comes over control streams. Whether anything did.
    pub(super) fn attend(&mut self) -> bool {
        let mut heard = std::mem::take(&mut self.heard);
        let mut moved = self.control.poll(&mut heard);
        for event in heard.drain(..) {
            moved = true;
            match event {
                Event::Sent(token) => {
                    self.outbox.remove(&token);
                }
                Event::Received(Token(peer)) => self.heard(peer as Rank),
                Event::Broken { peer, cause } => {
                    self.peers[peer as usize].is_heard = false;
                    // A peer that left has written before what it had to say.
                    for _ in 0..FAREWELLS {
                        if !self.harvest() {
                            break;
                        }
                    }
                    self.break_off(peer, cause);
                }
                Event::Reopened { peer, .. } => {
                    self.peers[peer as usize].is_heard = true;
                    if self.peers[peer as usize].standing == Standing::Opening {
                        self.begin(peer);
                    }
                }
                Event::Lost { peer, cause } => self.lose(peer, cause),
                Event::Mismatch { peer, .. } | Event::Refused { peer, .. } | Event::Arrived { peer, .. } => {
                    self.lose(peer, LostCause::Garbled("something else than an offer of a queue pair"));
                }
            }
        }
        self.heard = heard;
        moved
    }

    fn heard(&mut self, peer: Rank) {
        let said = Said::decode(&self.peers[peer as usize].inbox);
        self.listen_to(peer);
        match said {
            Ok(Said::Offer(offer)) => self.offered(peer, offer),
            Ok(Said::Ready(generation)) => self.is_ready(peer, generation),
            Err(malformed) => self.lose(peer, LostCause::Garbled(malformed.0)),
        }
    }

    fn offered(&mut self, peer: Rank, offer: Offer) {
        let entry = &mut self.peers[peer as usize];
        let newer = offer.generation > entry.generation;
        match entry.standing {
            Standing::Opening if entry.end.is_some() && offer.generation == entry.generation => {
                self.join(peer, &offer);
            }
            // One of a connection that this end has given up: the peer hears of the next.
            _ if !newer => {}
            Standing::Opening => {
                entry.offer = Some(offer);
                if entry.end.is_some() {
                    self.silence(peer);
                    self.begin(peer);
                }
            }
            Standing::Open => {
                entry.offer = Some(offer);
                // The peer has seen a break that this end has not.
                self.break_off(peer, LostCause::Closed);
            }
            Standing::Broken(_) => entry.offer = Some(offer),
            Standing::Lost => {}
        }
    }

    // ---- connections -------------------------------------------------------------------------------------------------------

    /// Makes a queue pair and offers it, under the peer's generation if it has offered one.
    pub(super) fn begin(&mut self, peer: Rank) {
        let entry = &mut self.peers[peer as usize];
        let offer = entry.offer.take();
        let next = entry.generation.next();
        entry.generation = offer.map_or(next, |offer| offer.generation.max(next));
        let generation = entry.generation;
        let rail = (self.rank as usize + peer as usize + generation.0 as usize) % entry.rails.max(1);
        self.serials = (self.serials + 1) % (1 << 24);
        let name = Name::new(self.serials, peer);
        let shape = self.options.shape;
        let end = match End::create(&self.rails[rail], rail, name, shape) {
            Ok(end) => end,
            Err(error) => return self.break_off(peer, failed(&error)),
        };
        let ring = self.rings.ring(peer).expose_provenance() as u64;
        let said = Offer {
            generation,
            address: end.address(),
            rail: rail as u8,
            ring: crate::verbs::Place { address: ring, key: self.rails[rail].ring.remote_key() },
            shape,
            position: entry.link.position(),
        };
        entry.end = Some(end);
        self.say(peer, &Said::Offer(said));
        if let Some(offer) = offer.filter(|offer| offer.generation == generation) {
            self.join(peer, &offer);
        }
    }

    /// Both ends have offered.
    fn join(&mut self, peer: Rank, offer: &Offer) {
        let entry = &mut self.peers[peer as usize];
        let Some(end) = entry.end.as_mut().filter(|end| !end.is_joined()) else { return };
        if offer.shape != self.options.shape {
            return self.lose(peer, LostCause::Garbled("an offer of a ring of another shape"));
        }
        if usize::from(offer.rail) != end.rail {
            return self.lose(peer, LostCause::Garbled("an offer by another of its NICs"));
        }
        if let Err(error) = end.join(&offer.address, offer.ring, self.options.timing) {
            return self.break_off(peer, failed(&error));
        }
        entry.link.enter(offer.generation);
        match entry.link.resume(offer.position, &mut self.ready) {
            Ok(resumed) => entry.resumed = resumed,
            Err(Garbled(what)) => return self.lose(peer, LostCause::Garbled(what)),
        }
        self.say(peer, &Said::Ready(offer.generation));
    }

    /// The peer takes what is written.
    fn is_ready(&mut self, peer: Rank, generation: Generation) {
        let entry = &mut self.peers[peer as usize];
        let joined = entry.end.as_ref().is_some_and(End::is_joined);
        if entry.standing != Standing::Opening || !joined || generation != entry.generation {
            return;
        }
        entry.standing = Standing::Open;
        if generation > Generation(1) {
            let Resumed { frames: chunks, bytes, progressed } = entry.resumed;
            self.ready.push(Event::Reopened { peer, chunks, bytes, progressed });
        }
        self.activate(peer);
    }

    /// Destroys the queue pair: the NIC does nothing for this connection any more.
    fn silence(&mut self, peer: Rank) {
        let entry = &mut self.peers[peer as usize];
        entry.end = None;
        entry.link.broke(&mut self.ready);
    }

    /// A connection broke or could not be made. Somebody else decides what follows.
    pub(super) fn break_off(&mut self, peer: Rank, cause: LostCause) {
        if matches!(self.peers[peer as usize].standing, Standing::Open | Standing::Opening) {
            self.silence(peer);
            self.peers[peer as usize].standing = Standing::Broken(cause.clone());
            self.ready.push(Event::Broken { peer, cause });
        }
    }

    /// Takes memory back from the NICs of both ends.
    pub(super) fn fence(&mut self, peer: Rank) {
        let errno = rustix::io::Errno::CANCELED.raw_os_error();
        self.break_off(peer, LostCause::Device { what: "memory was taken back from the NIC", errno });
    }

    pub(super) fn lose(&mut self, peer: Rank, cause: LostCause) {
        if self.peers[peer as usize].is_lost() {
            return;
        }
        self.silence(peer);
        let entry = &mut self.peers[peer as usize];
        match cause {
            LostCause::Garbled(_) => entry.link.clear(),
            _ => entry.link.close(),
        }
        (entry.standing, entry.offer) = (Standing::Lost, None);
        self.ready.push(Event::Lost { peer, cause });
    }

    /// The connection is not made any more.
    pub(super) fn abandon(&mut self, peer: Rank) {
        let errno = rustix::io::Errno::TIMEDOUT.raw_os_error();
        match self.peers.get(peer as usize).map(|entry| entry.standing.clone()) {
            Some(Standing::Broken(cause)) => self.lose(peer, cause),
            Some(Standing::Opening) => self.lose(peer, LostCause::System { call: "connect", errno }),
            _ => return,
        }
        self.control.give_up(peer);
    }

    // ---- traffic -----------------------------------------------------------------------------------------------------------

    /// Takes what the NICs have completed. Whether there was anything.
    pub(super) fn harvest(&mut self) -> bool {
        let mut moved = false;
        for at in 0..self.rails.len() {
            for _ in 0..BATCHES {
                let mut completions = std::mem::take(&mut self.completions);
                let polled = self.rails[at].queue.poll(&mut completions);
                for completion in &completions {
                    match Watch::is_its(completion.id) {
                        true => self.rails[at].watch.completed(completion),
                        false => self.completed(completion),
                    }
                }
                // Those of one peer come in a row, mostly.
                let names = completions.iter().map(|completion| Name::of(completion.id));
                let mut last = None;
                for name in names {
                    if last.replace(name) != Some(name) {
                        self.settle(name);
                    }
                }
                let taken = completions.len();
                completions.clear();
                self.completions = completions;
                if let Err(error) = polled {
                    self.lose_rail(at, &failed(&error));
                    return true;
                }
                if taken == 0 {
                    break;
                }
                moved = true;
                // What it was asked to tell of was this, and it tells it once.
                self.rails[at].armed = false;
            }
        }
        moved
    }

    /// A NIC is no more.
    fn lose_rail(&mut self, at: usize, cause: &LostCause) {
        for peer in 0..self.peers.len() as Rank {
            if self.peers[peer as usize].end.as_ref().is_some_and(|end| end.rail == at) {
                self.break_off(peer, cause.clone());
            }
        }
    }

    /// The end of this name, unless it is one that is no more.
    fn end_of(&mut self, name: Name) -> Option<&mut End> {
        self.peers.get_mut(name.peer() as usize)?.end.as_mut().filter(|end| end.name == name)
    }

    fn completed(&mut self, completion: &Completion) {
        let name = Name::of(completion.id);
        let peer = name.peer();
        let Some(end) = self.end_of(name) else { return };
        match completion.outcome {
            Ok(Kind::Write) => end.completed(completion.id),
            Ok(Kind::Receive { immediate, bytes }) => {
                end.used += 1;
                let arrived = match immediate.and_then(Immediate::decode) {
                    Some(immediate) => end.pipe.arrived(immediate, bytes).map_err(|garbled| garbled.0),
                    None => Err("a write that says nothing"),
                };
                if let Err(what) = arrived {
                    self.lose(peer, LostCause::Garbled(what));
                }
            }
            Ok(_) => self.lose(peer, LostCause::Garbled("what this rank's NIC was not asked for")),
            Err(failure) => {
                // What came before it counts.
                self.settle(name);
                self.break_off(peer, cause(&failure));
            }
        }
    }

    /// Acts on what has come from a peer, and gives credit for it.
    fn settle(&mut self, name: Name) {
        let peer = name.peer();
        let Some(entry) = self.peers.get_mut(peer as usize) else { return };
        let Some(end) = entry.end.as_mut().filter(|end| end.name == name) else { return };
        if let Err(error) = end.replenish() {
            return self.break_off(peer, failed(&error.cause));
        }
        while let Some(landed) = end.pipe.poll() {
            let fed = match landed {
                Landed::Ring { slot, bytes } => {
                    let slot = self.rings.ring(peer).wrapping_add(self.options.shape.offset(slot));
                    // SAFETY: the slot was written, and is not written again before credit is given for it, which is below.
                    let bytes = unsafe { std::slice::from_raw_parts(slot, bytes) };
                    entry.link.feed(bytes, &mut self.ready)
                }
                Landed::Placed { bytes } => entry.link.landed(bytes, &mut self.ready),
            };
            if let Err(Garbled(what)) = fed {
                return self.lose(peer, LostCause::Garbled(what));
            }
        }
        if let Some(credit) = end.pipe.credit()
            && let Err(error) = end.give_credit(credit)
        {
            return self.break_off(peer, failed(&error.cause));
        }
        self.activate(peer);
    }

    /// Writes what waits for a peer, as far as it has room. Whether anything left.
    pub(super) fn flush(&mut self, peer: Rank) -> bool {
        let Self { peers, rails, rings, register, ready, options, .. } = self;
        let entry = &mut peers[peer as usize];
        let Some(end) = entry.end.as_mut().filter(|_| entry.standing == Standing::Open) else { return false };
        let rail = &mut rails[end.rail];
        let mut moved = false;
        while end.has_room() {
            // SAFETY: the NIC reads slots that have left and are not free again; the pipe writes into one that is free.
            let staging =
                unsafe { std::slice::from_raw_parts_mut(rings.staging(peer), options.shape.ring_bytes()) };
            let registered = |memory: *const u8, bytes: usize| {
                let found = register.as_ref()?.find(memory, bytes)?;
                rail.know(&found, bytes).map(|known| (known.address, known.local))
            };
            entry.link.load();
            let Some(write) = end.pipe.depart(&mut entry.link, staging, registered, ready) else {
                if end.pipe.has_room() && entry.link.destined().is_some() {
                    // Half a piece has left, and the rest is away: it begins anew, and lets others pass.
                    self.fence(peer);
                }
                break;
            };
            moved = true;
            if let Err(error) = end.post(&write, rail, rings) {
                let cause = failed(&error.cause);
                self.break_off(peer, cause);
                break;
            }
        }
        moved
    }

    /// Goes on with all that has to leave before this rank does. Whether it has.
    pub(super) fn bid_farewell(&mut self) -> bool {
        self.attend();
        self.harvest();
        self.flush_active();
        let mut gone = true;
        for peer in 0..self.peers.len() as Rank {
            let entry = &mut self.peers[peer as usize];
            if entry.standing != Standing::Open {
                continue;
            }
            let Some(end) = entry.end.as_mut() else { continue };
            if entry.link.has_output() {
                gone = false;
            } else if let Err(error) = end.bid_farewell() {
                let cause = failed(&error.cause);
                self.break_off(peer, cause);
            } else {
                gone &= end.has_left();
            }
        }
        gone
    }
}
