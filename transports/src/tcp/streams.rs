//! The streams' lives: dialled or called, opened, broken, opened anew or lost.

use rustix::event::epoll;

use super::Tcp;
use super::door::Guest;
use super::greeting::Greeting;
use super::peer::{Standing, system};
use crate::ledger::Generation;
use crate::link::Position;
use crate::{Event, LostCause, Rank};

impl Tcp {
    fn greeting(&self, generation: Generation, position: Position) -> Greeting {
        Greeting { job: self.job, rank: self.rank, limits: self.options.limits, generation, position }
    }

    /// Calls a lower rank.
    pub(super) fn dial(&mut self, peer: Rank) {
        let entry = &mut self.peers[peer as usize];
        entry.generation = entry.generation.next();
        let (generation, position) = (entry.generation, entry.link.position());
        let ours = self.greeting(generation, position);
        match Guest::dial(peer, &self.addresses[peer as usize], ours, &self.options) {
            Ok(guest) => self.seat(guest),
            Err(cause) => self.break_stream(peer, cause),
        }
    }

    /// A connection has said whose it is.
    pub(super) fn answered(&mut self, guest: Guest, theirs: Greeting) {
        let Some(entry) = self.peers.get_mut(theirs.rank as usize) else { return };
        if guest.dialled.is_some() {
            return self.admit(guest, theirs);
        }
        // Only a higher rank calls; a call from before, or one from somebody who is lost, is sent away.
        if theirs.rank <= self.rank || theirs.generation <= entry.generation || entry.is_lost() {
            return;
        }
        if entry.standing == Standing::Opening {
            return self.admit(guest, theirs);
        }
        // The caller has seen a break that this end has not.
        let was_open = entry.standing == Standing::Open;
        // Its events would be nobody's until it is taken; without, it is reported too often at worst.
        let _ = epoll::delete(&self.epoll, &guest.socket);
        entry.caller = Some((guest, theirs));
        if was_open {
            self.break_stream(theirs.rank, LostCause::Closed);
        }
    }

    /// A connection becomes a peer's stream.
    pub(super) fn admit(&mut self, guest: Guest, theirs: Greeting) {
        let peer = theirs.rank;
        let entry = &self.peers[peer as usize];
        let ours = self.greeting(theirs.generation, entry.link.position());
        if entry.standing != Standing::Opening || guest.dialled.is_none() && guest.greet(&ours).is_err() {
            // Who called sees it closed, and calls again.
            return;
        }
        let entry = &mut self.peers[peer as usize];
        let again = entry.generation > Generation(1) || theirs.generation > Generation(1);
        entry.generation = theirs.generation;
        let resumed = match entry.link.resume(theirs.position, &mut self.ready) {
            Ok(resumed) => resumed,
            Err(garbled) => return self.lose(peer, LostCause::Garbled(garbled.0)),
        };
        let data = epoll::EventData::new_u64(u64::from(peer));
        let watched = epoll::modify(&self.epoll, &guest.socket, data, epoll::EventFlags::IN)
            .or_else(|_| epoll::add(&self.epoll, &guest.socket, data, epoll::EventFlags::IN));
        if let Err(errno) = watched {
            return self.break_stream(peer, system("epoll_ctl", errno));
        }
        (entry.socket, entry.standing) = (Some(guest.socket), Standing::Open);
        if again {
            let (chunks, bytes, progressed) = (resumed.frames, resumed.bytes, resumed.progressed);
            self.ready.push(Event::Reopened { peer, chunks, bytes, progressed });
        }
        self.activate(peer);
    }

    /// A stream broke or could not be opened. Somebody else decides what follows.
    pub(super) fn break_stream(&mut self, peer: Rank, cause: LostCause) {
        if let LostCause::Garbled(_) = cause {
            // It would say the same again.
            return self.lose(peer, cause);
        }
        let entry = &mut self.peers[peer as usize];
        if matches!(entry.standing, Standing::Open | Standing::Opening) {
            self.forget_stream(peer);
            self.peers[peer as usize].standing = Standing::Broken(cause.clone());
            self.ready.push(Event::Broken { peer, cause });
        }
    }

    fn forget_stream(&mut self, peer: Rank) {
        let entry = &mut self.peers[peer as usize];
        (entry.socket, entry.blocked, entry.armed) = (None, false, false);
        entry.link.broke(&mut self.ready);
    }

    pub(super) fn lose(&mut self, peer: Rank, cause: LostCause) {
        if self.peers[peer as usize].is_lost() {
            return;
        }
        self.forget_stream(peer);
        let entry = &mut self.peers[peer as usize];
        match cause {
            LostCause::Garbled(_) => entry.link.clear(),
            _ => entry.link.close(),
        }
        (entry.standing, entry.caller) = (Standing::Lost, None);
        self.ready.push(Event::Lost { peer, cause });
    }
}
