//! One rank's end of the simulated network.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use super::{Fault, Network, Packet, State};
use crate::link::{Garbled, Link, Planted, Position};
use crate::{Capabilities, Event, LostCause, Message, MessageId, Rank, Token, Transport};

/// `ENETUNREACH`, `ECONNRESET`, `ETIMEDOUT` and `ECONNREFUSED`: the simulation uses Linux's numbers wherever it runs.
const NETWORK_UNREACHABLE: i32 = 101;
const CONNECTION_RESET: i32 = 104;
const TIMED_OUT: i32 = 110;
const CONNECTION_REFUSED: i32 = 111;

/// How the stream to a peer stands.
#[derive(Debug, Eq, PartialEq)]
enum Standing {
    Open,
    /// Called, or waiting to be called.
    Opening,
    Broken(LostCause),
}

/// A peer.
#[derive(Debug)]
struct Far {
    link: Link,
    standing: Standing,
    /// The last one that was tried or taken.
    connection: u32,
    /// It has called, and nobody has decided yet.
    caller: Option<(u32, Position)>,
}

/// A rank's transport over a [`Network`].
#[derive(Debug)]
pub struct Endpoint {
    rank: Rank,
    network: Network,
    /// None once the peer is lost.
    peers: BTreeMap<Rank, Option<Far>>,
    /// Peers for whom something waits to leave.
    busy: BTreeSet<Rank>,
    ready: Vec<Event>,
}

impl Endpoint {
    pub(super) fn new(rank: Rank, network: Network) -> Self {
        Self { rank, network, peers: BTreeMap::new(), busy: BTreeSet::new(), ready: Vec::new() }
    }

    fn far(&mut self, peer: Rank) -> Option<&mut Far> {
        let Network { limits, planted, .. } = self.network;
        let new = || {
            let link = Link::planted(peer, limits, planted);
            Some(Far { link, standing: Standing::Open, connection: 0, caller: None })
        };
        self.peers.entry(peer).or_insert_with(new).as_mut()
    }

    fn link(&mut self, peer: Rank) -> Option<&mut Link> {
        self.far(peer).map(|far| &mut far.link)
    }

    fn lose(&mut self, peer: Rank, cause: LostCause) {
        if self.peers.insert(peer, None).is_none_or(|far| far.is_some()) {
            self.busy.remove(&peer);
            self.ready.push(Event::Lost { peer, cause });
        }
    }

    /// The stream broke, or could not be opened.
    fn break_stream(&mut self, peer: Rank, cause: LostCause, state: &mut State) {
        let mut ready = std::mem::take(&mut self.ready);
        if let Some(far) = self.far(peer)
            && !matches!(far.standing, Standing::Broken(_))
        {
            far.link.broke(&mut ready);
            far.standing = Standing::Broken(cause.clone());
            let connection = far.connection;
            ready.push(Event::Broken { peer, cause });
            self.busy.remove(&peer);
            state.pipes.entry((peer, self.rank)).or_default().forget();
            state.dispatch(self.rank, peer, Packet::Reset(connection));
        }
        self.ready = ready;
    }

    /// The stream stands again, as `connection`, and the peer has come so far.
    fn admit(&mut self, peer: Rank, connection: u32, theirs: Position, state: &mut State) {
        let (rank, mut ready) = (self.rank, std::mem::take(&mut self.ready));
        let Some(far) = self.far(peer) else { return };
        let ours = far.link.position();
        let resumed = far.link.resume(theirs, &mut ready);
        (far.standing, far.connection) = (Standing::Open, connection);
        self.ready = ready;
        match resumed {
            Err(Garbled(what)) => self.lose(peer, LostCause::Garbled(what)),
            Ok(resumed) => {
                let (chunks, bytes, progressed) = (resumed.frames, resumed.bytes, resumed.progressed);
                self.ready.push(Event::Reopened { peer, chunks, bytes, progressed });
                self.busy.insert(peer);
                state.pipes.entry((peer, rank)).or_default().takes = Some(connection);
                if rank < peer {
                    state.pipes.entry((rank, peer)).or_default().sends = connection;
                    state.dispatch(rank, peer, Packet::Answer(connection, ours));
                }
            }
        }
    }

    fn signalled(&mut self, peer: Rank, signal: &Packet, state: &mut State) {
        let planted = self.network.planted == Some(Planted::ReuseGeneration);
        let waits_to_call = peer < self.rank;
        let Some(far) = self.far(peer) else { return };
        let opening = far.standing == Standing::Opening;
        match *signal {
            Packet::Reset(of) if of >= far.connection && (!opening || waits_to_call) => {
                let reset = LostCause::System { call: "read", errno: CONNECTION_RESET };
                self.break_stream(peer, reset, state);
            }
            Packet::Call(connection, theirs) if connection > far.connection || planted => {
                if opening {
                    return self.admit(peer, connection, theirs, state);
                }
                far.caller = Some((connection, theirs));
                self.break_stream(peer, LostCause::Closed, state);
            }
            Packet::Answer(connection, theirs) if opening && connection == far.connection => {
                self.admit(peer, connection, theirs, state);
            }
            _ => {}
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
        let Some(Some(Far { link, standing: Standing::Open, connection, .. })) = self.peers.get_mut(&peer)
        else {
            return false;
        };
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
        // Also where an error is told: whether they arrived, the peer will say.
        link.wrote(bytes.len(), events);
        let connection = *connection;
        state.dispatch(self.rank, peer, Packet::Bytes(connection, bytes));
        if errs {
            // The bytes are on their way all the same, and the connection ends behind them.
            let reset = LostCause::System { call: "write", errno: CONNECTION_RESET };
            self.break_stream(peer, reset, state);
        }
        true
    }

    /// Moves bytes from the network into a link. Says whether anything moved or was let pass.
    fn collect(&mut self, peer: Rank, state: &mut State, events: &mut Vec<Event>) -> bool {
        if state.random.percent(state.options.stutter) {
            return true;
        }
        let mut signals = std::mem::take(&mut state.pipes.entry((peer, self.rank)).or_default().signals);
        while let Some(signal) = signals.pop_front() {
            self.signalled(peer, &signal, state);
        }
        let State { pipes, random, mail, stirred, .. } = state;
        let pipe = pipes.entry((peer, self.rank)).or_default();
        let given_up = std::mem::take(&mut pipe.given_up);
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
        if given_up {
            self.break_stream(peer, LostCause::System { call: "read", errno: TIMED_OUT }, state);
        }
        if ended {
            self.break_stream(peer, LostCause::Closed, state);
        }
        true
    }
}

impl Transport for Endpoint {
    fn capabilities(&self) -> Capabilities {
        let eager_bytes = self.network.limits.eager_bytes as usize;
        Capabilities {
            maps_peers: false,
            eager_bytes,
            streams_break: true,
            reaches_memory: false,
            reaches_devices: false,
            needs_cores: false,
            has_descriptor: false,
        }
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

    fn seek(&mut self, peer: Rank, id: &MessageId) -> Option<u64> {
        let link = self.link(peer)?;
        let order = link.seek(id);
        if link.has_output() {
            self.busy.insert(peer);
        }
        order
    }

    fn withdraw(&mut self, token: Token) {
        self.ready.retain(|event| !event.ends(token));
        for (&peer, far) in self.peers.iter_mut().filter_map(|(peer, far)| Some((peer, far.as_mut()?))) {
            if far.link.withdraw(token) {
                self.busy.insert(peer);
                return;
            }
        }
    }

    fn reopen(&mut self, peer: Rank) {
        let network = self.network.clone();
        let (state, rank) = (&mut *network.lock(), self.rank);
        let Some(far) = self.far(peer).filter(|far| matches!(far.standing, Standing::Broken(_))) else {
            return;
        };
        far.standing = Standing::Opening;
        let caller = far.caller.take();
        if rank < peer {
            if let Some((connection, theirs)) = caller {
                self.admit(peer, connection, theirs, state);
            }
        } else if state.ranks[peer as usize].dead {
            let refused = LostCause::System { call: "connect", errno: CONNECTION_REFUSED };
            self.break_stream(peer, refused, state);
        } else if state.pipes.entry((rank, peer)).or_default().cut {
            let unreachable = LostCause::System { call: "connect", errno: NETWORK_UNREACHABLE };
            self.break_stream(peer, unreachable, state);
        } else {
            far.connection += u32::from(network.planted != Some(Planted::ReuseGeneration));
            let (connection, ours) = (far.connection, far.link.position());
            state.pipes.entry((rank, peer)).or_default().sends = connection;
            state.pipes.entry((peer, rank)).or_default().takes = Some(connection);
            state.dispatch(rank, peer, Packet::Call(connection, ours));
        }
        state.stirred.insert(rank);
    }

    fn give_up(&mut self, peer: Rank) {
        if let Some(Some(far)) = self.peers.get(&peer) {
            let cause = match &far.standing {
                Standing::Broken(cause) => cause.clone(),
                Standing::Opening => LostCause::System { call: "connect", errno: TIMED_OUT },
                Standing::Open => return,
            };
            self.lose(peer, cause);
        }
    }

    fn is_disturbed(&self) -> bool {
        let state = self.network.lock();
        let signalled = |peer: &Rank| {
            let pipe = state.pipes.get(&(*peer, self.rank));
            pipe.is_some_and(|pipe| !pipe.signals.is_empty() || pipe.given_up)
        };
        let live = self.peers.values().flatten();
        state.is_awake(self.rank)
            && (state.mail[self.rank as usize].iter().any(signalled)
                || live.into_iter().any(|far| {
                    far.standing == Standing::Open && (far.link.writes_again() || far.link.owes())
                }))
    }

    fn acknowledge(&mut self) -> bool {
        let network = self.network.clone();
        let state = &mut *network.lock();
        let mut events = std::mem::take(&mut self.ready);
        let owing = |far: &Far| far.standing == Standing::Open && far.link.owes();
        let owes: Vec<Rank> = self
            .peers
            .iter()
            .filter_map(|(peer, far)| far.as_ref().is_some_and(owing).then_some(*peer))
            .collect();
        let mut told = true;
        for peer in owes {
            // A few turns, since chance may let one pass or cut the frame.
            for _ in 0..200 {
                let Some(Some(far)) = self.peers.get(&peer) else { break };
                if !owing(far) {
                    break;
                }
                self.transmit(peer, state, &mut events);
            }
            told &= !matches!(self.peers.get(&peer), Some(Some(far)) if owing(far));
        }
        events.append(&mut self.ready);
        self.ready = events;
        told
    }

    fn sever(&mut self, peer: Rank) {
        self.network.inject(Fault::Break(self.rank, peer));
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
            let has_output = |far: &Far| far.standing == Standing::Open && far.link.has_output();
            if !matches!(self.peers.get(&peer), Some(Some(far)) if has_output(far)) {
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
