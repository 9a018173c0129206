//! Links over queue pairs.
//!
//! Every pair of ranks has a **control stream** (a [`Tcp`] transport, with its door, greeting and reconnection) and **queue pairs**: one, or several, on
//! each of the NICs that it uses. The stream carries what sets queue pairs up ([`offer`]) and nothing else; all messages go by the queue pairs, cut into
//! writes by a [pipe](crate::pipe), over which the [lanes](crate::lanes) are chosen. Control never goes by a queue pair that writes into a program's memory.
//!
//! **A connection** has a generation. Each end makes queue pairs, posts their receives and *offers* them, with what it has received over the connections
//! before. Who has an offer of its own generation joins those that both have offered and says that it is *ready*; who hears that may write. The higher generation
//! wins: an end that hears a higher one breaks its connection off, if it has one, and offers under that.
//!
//! **A connection that breaks** (a completion with an error on any lane, a port that goes down while another is left, a NIC that is removed, or a control
//! stream that breaks) is reported. The end's queue pairs are destroyed before anything else is done: from then on the NICs neither write nor read for it,
//! so what this end has received is settled, and may be told. What the other has not got leaves again once both are ready, by the
//! rails that [are left](crate::lanes). A dead peer's NIC is noticed when something is written to it, within about a second.
//!
//! **Large messages** are written straight into the memory of their receive, where both sides' memory can be registered ([`Register`]): the clearance
//! tells the place. All other bytes go by the rings. What cannot be registered (a limit was reached, say) goes by the rings too, and
//! [`Rdma::refusals`] says why.
//!
//! **Withdrawal.** Memory that the peer was told of, or that the NIC may be reading, is taken back by breaking the connection off. That is rare, costs one
//! reconnection, and nothing is lost.
//!
//! **NICs that are removed** say so ([`notices`]), and are let go of. A connection without a NIC is lost.
//!
//! **Device memory** that moves without asking is given only to NICs that have been [seen](crate::selftest) to cope; what was taken away without a word is
//! found by a look now and then ([`Transport::probe`]).
//!
//! **Waiting.** The descriptor is an epoll instance over the control streams, the NICs' completion channels and what they tell unasked. A poll that found
//! nothing asks the NICs to tell of the next completion, then looks again, so that none is slept through.

mod connections;
mod end;
mod notices;
pub mod offer;
mod rail;
mod traffic;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use windlass_memory::accelerator::Accelerator;
use windlass_transports::link::place::Keys;
use windlass_transports::link::{self, Limits, Link};
use windlass_transports::reach::{Register, SegmentKey};
use windlass_transports::tcp::{self, Tcp};
use windlass_transports::{Capabilities, Event, Message, MessageId, Rank, Token, Transport};

use crate::choice::{Choice, Facts, NoChoice, Wishes, choose};
use crate::lanes::{PAIRS, Rails};
use crate::pipe::Shape;
use crate::verbs::{Absent, Completion, LinkLayer, RegisterError, Timing, VerbError, Verbs};
use connections::{Peer, Standing};
use end::End;
use rail::{Rail, Rings};

/// Polls that found something between two looks at the control streams.
const TURNS: u32 = 8;

/// Why RDMA cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no library.
    #[error(transparent)]
    Absent(#[from] Absent),
    /// There is no NIC.
    #[error(transparent)]
    NoChoice(#[from] NoChoice),
    /// A NIC refuses.
    #[error(transparent)]
    Verb(#[from] VerbError),
    /// Memory could not be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The control streams cannot be set up.
    #[error("the control streams: {0}")]
    Control(#[from] tcp::Error),
    /// A system call failed.
    #[error("{call}: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: i32,
    },
    /// A NIC has no completion queue for so many connections.
    #[error(
        "{device} has completion queues of {most} entries at most, and {needed} are needed for this many ranks"
    )]
    TooManyPeers {
        /// The NIC.
        device: String,
        /// Entries.
        needed: u64,
        /// What it has.
        most: u64,
    },
}

/// A planted fault, by which tests show that they would notice.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Planted {
    /// One of the links'.
    Link(link::Planted),
    /// Peers are told keys that nothing has.
    WrongKeys,
}

/// What a deployment may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which NICs, ports and GIDs.
    pub wishes: Wishes,
    /// The links' limits; the same on all ranks.
    pub limits: Limits,
    /// The rings; the same on all ranks.
    pub shape: Shape,
    /// How long a NIC waits for a peer's.
    pub timing: Timing,
    /// Queue pairs of a connection on each NIC, from 1 to [`PAIRS`].
    pub pairs: usize,
    /// Where the control streams listen; otherwise at the first NIC's own address.
    pub address: Option<IpAddr>,
    /// A planted fault, by which tests show that they would notice.
    #[doc(hidden)]
    pub planted: Option<Planted>,
}

impl Default for Options {
    fn default() -> Self {
        let limits = Limits { eager_bytes: 16 << 10, credit_bytes: 256 << 10, ..Limits::default() };
        let (wishes, shape, timing) = (Wishes::default(), Shape::default(), Timing::default());
        Self { wishes, limits, shape, timing, pairs: 1, address: None, planted: None }
    }
}

/// Where a rank is reached: its control stream's door, and how many NICs it has. Written as `10.0.0.1:4000/2`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerAddress {
    /// The door.
    pub control: SocketAddr,
    /// NICs, at least one.
    pub rails: u8,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.control, self.rails)
    }
}

/// What is no [`PeerAddress`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a rank's address for RDMA is written as 10.0.0.1:4000/2: address, port, and its number of NICs")]
pub struct NoPeerAddress;

impl FromStr for PeerAddress {
    type Err = NoPeerAddress;

    fn from_str(text: &str) -> Result<Self, NoPeerAddress> {
        let (control, rails) = text.split_once('/').ok_or(NoPeerAddress)?;
        let control = control.parse().map_err(|_| NoPeerAddress)?;
        let rails = rails.parse().ok().filter(|&rails| rails > 0).ok_or(NoPeerAddress)?;
        Ok(Self { control, rails })
    }
}

/// The transport of one rank. See the module's documentation.
pub struct Rdma {
    rank: Rank,
    options: Options,
    choice: Choice,
    control: Tcp,
    /// By rank; this rank's own entry is never connected.
    peers: Vec<Peer>,
    /// What is being said over control streams.
    outbox: BTreeMap<Token, Box<[u8; offer::SAID_BYTES]>>,
    /// By number; none where a NIC was removed.
    rails: Vec<Option<Rail>>,
    /// When what they tell unasked was heard last.
    noticed: Option<Instant>,
    /// After all that the NICs use it by.
    rings: Rings,
    register: Option<Arc<dyn Register>>,
    verbs: Verbs,
    epoll: OwnedFd,
    /// As `epoll`, of what comes unasked: calls for connections, and the NICs' notices.
    alarm: OwnedFd,
    /// Peers that each poll looks at.
    active: Vec<Rank>,
    completions: Vec<Completion>,
    heard: Vec<Event>,
    /// Happened, and not told yet.
    ready: Vec<Event>,
    turns: u32,
    serials: u32,
}

impl fmt::Debug for Rdma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rdma")
            .field("rank", &self.rank)
            .field("ranks", &self.peers.len())
            .field("rails", &self.choice.rails)
            .finish_non_exhaustive()
    }
}

/// An epoll instance that tells of `descriptor`, whose name there is zero: whoever is told polls everything.
fn watch(epoll: &OwnedFd, descriptor: BorrowedFd<'_>) -> Result<(), Error> {
    epoll::add(epoll, descriptor, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
        .map_err(|errno| Error::System { call: "epoll_ctl", errno: errno.raw_os_error() })
}

impl Rdma {
    /// Looks for NICs, and opens a door for the peers' control streams. The address is for the peers' [`connect`](Self::connect). `register` knows which
    /// memory NICs may be given; without it all goes by the rings.
    ///
    /// # Errors
    /// There is no library, no NIC that can be used, or the system refuses.
    pub fn bind(
        rank: Rank,
        job: u128,
        options: Options,
        register: Option<Arc<dyn Register>>,
    ) -> Result<(Self, PeerAddress), Error> {
        let verbs = Verbs::load()?;
        let facts = Facts::gather(&verbs)?;
        let choice = choose(&facts, &options.wishes)?;
        let address = options.address.unwrap_or_else(|| door(&verbs, &choice, &facts));
        let control = tcp::Options { address, ..tcp::Options::default() };
        let (control, door) = Tcp::bind_with(rank, job, control)?;
        let rails = u8::try_from(choice.rails.len()).unwrap_or(u8::MAX);
        let rings = Rings::allocate(1, options.shape)?;
        let epoll = || {
            epoll::create(epoll::CreateFlags::CLOEXEC)
                .map_err(|errno| Error::System { call: "epoll_create1", errno: errno.raw_os_error() })
        };
        let (epoll, alarm) = (epoll()?, epoll()?);
        let rdma = Self {
            rank,
            options,
            choice,
            control,
            peers: Vec::new(),
            outbox: BTreeMap::new(),
            rails: Vec::new(),
            noticed: None,
            rings,
            register,
            verbs,
            epoll,
            alarm,
            active: Vec::new(),
            completions: Vec::new(),
            heard: Vec::new(),
            ready: Vec::new(),
            turns: 0,
            serials: 0,
        };
        Ok((rdma, PeerAddress { control: door, rails }))
    }

    /// Opens the NICs and begins to connect to all peers; `addresses[rank]` is where that rank is. Operations may be posted at once.
    ///
    /// # Errors
    /// A NIC has no room for so many, memory cannot be registered, or there are not enough descriptors.
    pub fn connect(&mut self, addresses: &[PeerAddress]) -> Result<(), Error> {
        let shape = self.options.shape;
        self.rings = Rings::allocate(addresses.len().max(1), shape)?;
        // Of an end that was dropped, completions may still be there when its successor has as many.
        let pairs = self.options.pairs.clamp(1, PAIRS);
        let completions = 2 * pairs as u32 * (shape.receives() + End::sends(shape));
        for chosen in self.choice.rails.iter().take(Rails::END) {
            self.rails.push(Some(Rail::open(&self.verbs, chosen, &self.rings, completions)?));
        }
        let doors: Vec<SocketAddr> = addresses.iter().map(|address| address.control).collect();
        self.control.connect(doors)?;
        for rail in self.rails.iter().flatten() {
            watch(&self.epoll, rail.channel.descriptor())?;
            watch(&self.alarm, rail.device.event_descriptor())?;
        }
        if let Some(descriptor) = self.control.descriptor() {
            watch(&self.alarm, descriptor)?;
        }
        watch(&self.epoll, self.alarm.as_fd())?;
        let Options { limits, planted, .. } = self.options;
        let register = &self.register;
        let peer = |(rank, address): (usize, &PeerAddress)| {
            let planted = match planted {
                Some(Planted::Link(planted)) => Some(planted),
                _ => None,
            };
            let link = Link::placing_planted(rank as Rank, limits, planted).with_register(register.clone());
            Peer::new(link, usize::from(address.rails).min(self.rails.len()))
        };
        self.peers = addresses.iter().enumerate().map(peer).collect();
        let own = self.rank;
        for peer in (0..addresses.len() as Rank).filter(|&peer| peer != own) {
            self.listen_to(peer);
            self.begin(peer);
        }
        Ok(())
    }

    /// Which NICs are used, and why the others are not.
    pub const fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Memory that NICs have refused to register, so that it goes by the rings.
    pub fn refusals(&self) -> impl Iterator<Item = &RegisterError> {
        self.rails.iter().flatten().flat_map(Rail::refused)
    }

    fn activate(&mut self, peer: Rank) {
        let entry = &mut self.peers[peer as usize];
        if !entry.active && entry.link.has_output() {
            entry.active = true;
            self.active.push(peer);
        }
    }

    /// Writes to the peers for which something waits. Whether anything left.
    fn flush_active(&mut self) -> bool {
        let mut moved = false;
        for at in 0..self.active.len() {
            moved |= self.flush(self.active[at]);
        }
        let peers = &mut self.peers;
        self.active.retain(|&rank| {
            let peer = &mut peers[rank as usize];
            peer.active = peer.link.has_output() && peer.standing != Standing::Lost;
            peer.active
        });
        moved
    }

    /// Asks the NICs to tell of the next completion; then looks again, since those that came before are not told. Whether there were any.
    fn arm(&mut self) -> bool {
        let mut asked = false;
        for rail in self.rails.iter_mut().flatten().filter(|rail| !rail.armed) {
            // A NIC that cannot be asked says why when it is polled.
            asked |= rail.arm().is_ok();
        }
        asked && self.harvest()
    }

    /// How the peer would reach this memory: by each rail of the connection whose NIC can have it.
    fn reach(&mut self, peer: Rank, memory: *const u8, bytes: usize) -> Option<(u64, Keys)> {
        if bytes <= self.options.limits.eager_bytes as usize {
            return None;
        }
        let rails = self.peers[peer as usize].end.as_ref()?.rails();
        let found = self.register.as_ref()?.find(memory, bytes)?;
        let wrong = self.options.planted == Some(Planted::WrongKeys);
        let mut address = None;
        let mut known = |at: usize| {
            let known = self.rails[at].as_mut()?.know(&found, bytes)?;
            // All NICs know memory by the address that it has in this process, or by where it lies in its dma-buf.
            address = Some(known.address);
            Some((at, if wrong { !known.remote } else { known.remote }))
        };
        let keys = rails.iter().filter_map(&mut known).collect();
        Some((address?, keys))
    }
}

/// Where the control streams listen: at the first NIC's own address, if it has one that can be dialled without a scope.
fn door(verbs: &Verbs, choice: &Choice, facts: &Facts) -> IpAddr {
    let dialled = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    };
    let ethernet = |rail: &&crate::choice::Rail| {
        let device = crate::verbs::Device::open(verbs, &rail.device);
        device.and_then(|device| device.port(rail.port)).is_ok_and(|port| port.link == LinkLayer::Ethernet)
    };
    let own = choice.rails.iter().filter(ethernet).map(|rail| rail.gid.ip());
    let own = own.filter(|address| facts.addresses.contains(address)).find(dialled);
    own.or_else(|| facts.addresses.iter().copied().find(dialled)).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

impl Transport for Rdma {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            maps_peers: false,
            eager_bytes: self.options.limits.eager_bytes as usize,
            reaches_memory: self.register.is_some(),
            reaches_devices: self.rails.iter().flatten().any(|rail| rail.imports),
            streams_break: true,
            needs_cores: self.rails.iter().flatten().any(|rail| rail.device.is_software()),
            has_descriptor: true,
        }
    }

    unsafe fn post_send(&mut self, peer: Rank, message: &Message, memory: *const u8, token: Token) {
        let Some(entry) = self.peers.get_mut(peer as usize).filter(|entry| !entry.is_lost()) else { return };
        // SAFETY: the caller's contract is the link's.
        unsafe { entry.link.post_send(message, memory, token, &mut self.ready) };
        self.activate(peer);
    }

    unsafe fn post_recv(&mut self, peer: Rank, message: &Message, memory: *mut u8, token: Token) {
        let receives = |entry: &&mut Peer| !entry.is_lost() || entry.link.holds(message);
        if self.peers.get_mut(peer as usize).filter(receives).is_none() {
            return;
        }
        let reach = self.reach(peer, memory, message.bytes);
        let link = &mut self.peers[peer as usize].link;
        // SAFETY: the caller's contract is the link's.
        unsafe { link.post_recv_at(message, memory, reach, token, &mut self.ready) };
        self.activate(peer);
    }

    fn seek(&mut self, peer: Rank, id: &MessageId) -> Option<u64> {
        let entry = self.peers.get_mut(peer as usize)?;
        let order = entry.link.seek(id);
        if !entry.is_lost() {
            self.activate(peer);
        }
        order
    }

    fn withdraw(&mut self, token: Token) {
        self.ready.retain(|event| !event.ends(token));
        if let Some(peer) = self.peers.iter().position(|peer| peer.link.exposes(token)) {
            self.fence(peer as Rank);
            let before = self.ready.len();
            self.ready.retain(|event| !event.ends(token));
            if self.ready.len() < before {
                // What was leaving has ended instead.
                return;
            }
        }
        for peer in 0..self.peers.len() as Rank {
            if self.peers[peer as usize].link.withdraw(token) {
                return self.activate(peer);
            }
        }
    }

    fn release(&mut self, segment: u64, within: &dyn Fn(*const u8) -> bool) {
        for peer in 0..self.peers.len() as Rank {
            if self.peers[peer as usize].link.exposes_any(within) {
                self.fence(peer);
            }
            self.peers[peer as usize].link.unregister(within);
        }
        for rail in self.rails.iter_mut().flatten() {
            rail.forget(segment);
        }
    }

    fn attach(&mut self, accelerator: &dyn Accelerator) -> Vec<Box<dyn std::error::Error>> {
        let staged = self.rails.iter_mut().flatten().filter_map(|rail| rail.attach(accelerator).err());
        staged.map(|staged| Box::new(staged) as Box<dyn std::error::Error>).collect()
    }

    fn probe(&mut self) -> Vec<SegmentKey> {
        self.harvest();
        self.rails.iter_mut().flatten().flat_map(Rail::probe).collect()
    }

    fn reopen(&mut self, peer: Rank) {
        let Some(entry) = self.peers.get_mut(peer as usize) else { return };
        if matches!(entry.standing, Standing::Broken(_)) {
            entry.standing = Standing::Opening;
            if entry.is_heard {
                self.begin(peer);
            } else {
                self.control.reopen(peer);
            }
        }
    }

    fn is_heard(&self, peer: Rank) -> bool {
        self.peers.get(peer as usize).is_some_and(|entry| entry.is_heard) || self.control.is_heard(peer)
    }

    fn give_up(&mut self, peer: Rank) {
        self.abandon(peer);
    }

    fn acknowledge(&mut self) -> bool {
        for at in 0..self.active.len() {
            let peer = self.active[at];
            if self.peers[peer as usize].owes() {
                self.flush(peer);
            }
        }
        !self.active.iter().any(|&peer| self.peers[peer as usize].owes())
    }

    fn is_disturbed(&self) -> bool {
        let disturbed = |peer: &Peer| {
            peer.standing == Standing::Opening
                || peer.standing == Standing::Open && (peer.link.writes_again() || peer.link.owes())
        };
        self.peers.iter().enumerate().any(|(rank, peer)| rank != self.rank as usize && disturbed(peer))
            || self.control.is_disturbed()
    }

    fn linger(&mut self, time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time && !self.bid_farewell() {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.control.linger(time.saturating_sub(begin.elapsed()));
    }

    fn guard(&self) -> Option<BorrowedFd<'_>> {
        // An offer is a call, too, and so is what a NIC tells.
        Some(self.alarm.as_fd())
    }

    fn sever(&mut self, peer: Rank) {
        if let Some(end) = self.peers.get(peer as usize).and_then(|entry| entry.end.as_ref()) {
            end.sever();
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        let mut moved = self.harvest();
        moved |= self.flush_active();
        self.turns += 1;
        if !moved || self.turns >= TURNS {
            self.turns = 0;
            moved |= self.attend();
            moved |= self.notice();
        }
        if !moved {
            moved |= self.arm();
        }
        events.append(&mut self.ready);
        moved || events.len() > before
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_back() {
        for text in ["10.77.0.1:4000/2", "[fd00::1]:9/1"] {
            assert_eq!(text.parse::<PeerAddress>().expect("an address").to_string(), text);
        }
        for text in ["", "10.77.0.1:4000", "10.77.0.1/2", "10.77.0.1:4000/0", "10.77.0.1:4000/300", "x:1/1"] {
            assert_eq!(text.parse::<PeerAddress>(), Err(NoPeerAddress), "{text}");
        }
    }
}
