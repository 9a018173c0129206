//! The connections' lives: offered, joined, open, broken, made anew or lost.

use std::time::Instant;

use windlass_transports::ledger::Generation;
use windlass_transports::link::{Garbled, Link, Resumed};
use windlass_transports::{Event, LostCause, Message, MessageId, Rank, Token, Transport};

use super::Rdma;
use super::end::{End, Name, Refused};
use super::offer::{Offer, SAID_BYTES, Said};
use crate::lanes::{Rails, Record};
use crate::verbs::{Failure, Status, VerbError};

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
    /// While there are queue pairs.
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
    /// How the NICs that both have, have served.
    pub(super) record: Record,
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
            record: Record::new(rails),
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
pub(super) fn cause(failure: &Failure) -> LostCause {
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

pub(super) fn failed(error: &VerbError) -> LostCause {
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
        entry.record.hear(offer.rails());
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

    /// The rails by which a connection to a peer would be offered now.
    pub(super) fn rails_to(&self, peer: Rank, theirs: Option<Rails>) -> Rails {
        let present = |up: bool| {
            let rails = self.rails.iter().enumerate();
            let of = move |rail: &super::Rail| rail.up || !up;
            rails.filter(|(_, rail)| rail.as_ref().is_some_and(of)).map(|(at, _)| at).collect()
        };
        let first = self.rank as usize + peer as usize;
        self.peers[peer as usize].record.offered(first, present(false), present(true), theirs, Instant::now())
    }

    /// Makes queue pairs and offers them, under the peer's generation if it has offered one.
    pub(super) fn begin(&mut self, peer: Rank) {
        let entry = &mut self.peers[peer as usize];
        let offer = entry.offer.take();
        let next = entry.generation.next();
        entry.generation = offer.map_or(next, |offer| offer.generation.max(next));
        let generation = entry.generation;
        self.serials = (self.serials + 1) % Name::SERIALS;
        let mut end = End::new(Name::new(self.serials, peer), self.options.shape);
        let mut refused = None;
        for at in self.rails_to(peer, offer.map(|offer| offer.rails())).iter() {
            let Some(rail) = &self.rails[at] else { continue };
            if let Err(Refused { rail, error }) = end.add(rail, at, self.options.pairs) {
                self.peers[peer as usize].record.fail(rail, Instant::now());
                refused = Some(failed(&error));
            }
        }
        if end.rails().is_empty() {
            let errno = rustix::io::Errno::NODEV.raw_os_error();
            let gone = LostCause::Device { what: "this rank's NICs are gone, all of them", errno };
            return match refused {
                Some(refused) => self.break_off(peer, refused),
                None => self.lose(peer, gone),
            };
        }
        let entry = &mut self.peers[peer as usize];
        let said = Offer {
            generation,
            rails: end.offered(&self.rails),
            ring: self.rings.ring(peer).expose_provenance() as u64,
            shape: self.options.shape,
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
        if let Err(refused) = end.join(offer, self.options.timing) {
            return self.refused(peer, &refused);
        }
        let rails = end.rails();
        if rails.is_empty() {
            entry.record.forgive(entry.record.shared());
            let errno = rustix::io::Errno::NETUNREACH.raw_os_error();
            let apart = LostCause::Device {
                what: "there is no NIC of the same number that both ranks can use",
                errno,
            };
            return self.break_off(peer, apart);
        }
        entry.link.enter(offer.generation, rails);
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

    /// Destroys the queue pairs: the NICs do nothing for this connection any more.
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

    /// A NIC does not take what it should: its rail has failed.
    pub(super) fn refused(&mut self, peer: Rank, refused: &Refused) {
        self.peers[peer as usize].record.fail(refused.rail, Instant::now());
        self.break_off(peer, failed(&refused.error));
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
}
