//! One rank's end of the simulated network.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use super::{Network, Packet, State};
use crate::link::{Garbled, Link, Withdrawal};
use crate::{Capabilities, Event, LostCause, Message, Rank, Token, Transport};

/// `ECONNRESET`, `ETIMEDOUT` and `ECANCELED`: the simulation uses Linux's numbers wherever it runs.
const CONNECTION_RESET: i32 = 104;
const TIMED_OUT: i32 = 110;
const CANCELLED: i32 = 125;

/// A rank's transport over a [`Network`].
#[derive(Debug)]
pub struct Endpoint {
    rank: Rank,
    network: Network,
    /// None once the peer is lost.
    links: BTreeMap<Rank, Option<Link>>,
    /// Peers for whom something waits to leave.
    busy: BTreeSet<Rank>,
    ready: Vec<Event>,
}

impl Endpoint {
    pub(super) fn new(rank: Rank, network: Network) -> Self {
        Self { rank, network, links: BTreeMap::new(), busy: BTreeSet::new(), ready: Vec::new() }
    }

    fn link(&mut self, peer: Rank) -> Option<&mut Link> {
        let limits = self.network.limits;
        self.links.entry(peer).or_insert_with(|| Some(Link::new(peer, limits))).as_mut()
    }

    fn lose(&mut self, peer: Rank, cause: LostCause) {
        if self.links.insert(peer, None).is_none_or(|link| link.is_some()) {
            self.busy.remove(&peer);
            self.ready.push(Event::Lost { peer, cause });
        }
    }

    /// Moves bytes from a link into the network. Says whether anything moved or was let pass.
    fn transmit(&mut self, peer: Rank, state: &mut State, events: &mut Vec<Event>) -> bool {
        if state.random.percent(state.options.stutter) {
            return true;
        }
        let (window, packet) = (state.wire(self.rank, peer).window, state.wire(self.rank, peer).packet);
        let pipe = state.pipes.entry((self.rank, peer)).or_default();
        let room = window.saturating_sub(pipe.occupied);
        let Some(Some(link)) = self.links.get_mut(&peer) else { return false };
        if room == 0 {
            pipe.full = true;
            return false;
        }
        let size = state.random.up_to(room.min(packet.max(1)));
        let mut slices = [IoSlice::new(&[]); 16];
        let filled = link.gather(&mut slices, size);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
        if bytes.is_empty() {
            return false;
        }
        let pipe = state.pipes.entry((self.rank, peer)).or_default();
        let errs = std::mem::take(&mut pipe.errs);
        let errs = errs || state.options.errored > 0 && state.random.per_million(state.options.errored);
        if !errs {
            link.wrote(bytes.len(), events);
        }
        state.dispatch(self.rank, peer, Packet::Bytes(bytes));
        if errs {
            // The bytes are on their way all the same, and the connection ends behind them.
            self.lose(peer, LostCause::System { call: "write", errno: CONNECTION_RESET });
            state.dispatch(self.rank, peer, Packet::End);
        }
        true
    }

    /// Moves bytes from the network into a link. Says whether anything moved or was let pass.
    fn collect(&mut self, peer: Rank, state: &mut State, events: &mut Vec<Event>) -> bool {
        if state.random.percent(state.options.stutter) {
            return true;
        }
        let State { pipes, random, mail, stirred, .. } = state;
        let pipe = pipes.entry((peer, self.rank)).or_default();
        if pipe.given_up {
            mail[self.rank as usize].remove(&peer);
            self.lose(peer, LostCause::System { call: "read", errno: TIMED_OUT });
            return true;
        }
        let taken = if pipe.arrived.is_empty() { 0 } else { random.up_to(pipe.arrived.len()) };
        let bytes: Vec<u8> = pipe.arrived.drain(..taken).collect();
        pipe.occupied -= taken;
        if taken > 0 && std::mem::take(&mut pipe.full) {
            stirred.insert(peer);
        }
        let ended = pipe.ended && pipe.arrived.is_empty();
        if pipe.arrived.is_empty() {
            mail[self.rank as usize].remove(&peer);
        }
        if let Some(link) = self.link(peer) {
            let fed = link.feed(&bytes, events);
            if link.has_output() {
                self.busy.insert(peer);
            }
            if let Err(Garbled(what)) = fed {
                self.lose(peer, LostCause::Garbled(what));
            }
        }
        if ended {
            self.lose(peer, LostCause::Closed);
        }
        true
    }
}

impl Transport for Endpoint {
    fn capabilities(&self) -> Capabilities {
        let eager_bytes = self.network.limits.eager_bytes as usize;
        Capabilities { maps_peers: false, eager_bytes, has_descriptor: false }
    }

    unsafe fn post_send(&mut self, peer: Rank, message: &Message, memory: *const u8, token: Token) {
        let mut ready = std::mem::take(&mut self.ready);
        self.network.lock().pipes.entry((self.rank, peer)).or_default().traffic.messages += 1;
        if let Some(link) = self.link(peer) {
            // SAFETY: the caller's contract is the link's.
            unsafe { link.post_send(message, memory, token, &mut ready) };
            if link.has_output() {
                self.busy.insert(peer);
            }
        }
        self.ready = ready;
    }

    unsafe fn post_recv(&mut self, peer: Rank, message: &Message, memory: *mut u8, token: Token) {
        let mut ready = std::mem::take(&mut self.ready);
        if let Some(link) = self.link(peer) {
            // SAFETY: the caller's contract is the link's.
            unsafe { link.post_recv(message, memory, token, &mut ready) };
            if link.has_output() {
                self.busy.insert(peer);
            }
        }
        self.ready = ready;
    }

    fn withdraw(&mut self, token: Token) {
        self.ready.retain(|event| !event.ends(token));
        let mut broken = None;
        for (&peer, link) in self.links.iter_mut().filter_map(|(peer, link)| Some((peer, link.as_mut()?))) {
            match link.withdraw(token) {
                Withdrawal::Unknown => continue,
                Withdrawal::Done if link.has_output() => {
                    self.busy.insert(peer);
                }
                Withdrawal::Done => {}
                Withdrawal::Broken => broken = Some(peer),
            }
            break;
        }
        if let Some(peer) = broken {
            self.lose(peer, LostCause::System { call: "withdraw", errno: CANCELLED });
            let network = self.network.clone();
            network.lock().dispatch(self.rank, peer, Packet::End);
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        let network = self.network.clone();
        let mut state = network.lock();
        if !state.is_awake(self.rank) {
            return false;
        }
        events.append(&mut self.ready);
        let mut moved = false;
        let senders: Vec<Rank> = state.mail[self.rank as usize].iter().copied().collect();
        for peer in senders {
            moved |= self.collect(peer, &mut state, events);
        }
        let busy: Vec<Rank> = self.busy.iter().copied().collect();
        for peer in busy {
            moved |= self.transmit(peer, &mut state, events);
            if !matches!(self.links.get(&peer), Some(Some(link)) if link.has_output()) {
                self.busy.remove(&peer);
            }
        }
        events.append(&mut self.ready);
        moved |= events.len() > before;
        if moved {
            state.tire(self.rank);
        }
        moved
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.network.lock().kill(self.rank);
    }
}
