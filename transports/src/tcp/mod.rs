//! Links over TCP streams.
//!
//! Every pair of ranks has one connection, made when [`Tcp::connect`] is told all addresses: the higher rank dials. The first bytes each
//! way are a [`Greeting`]; then come frames (see [`link`](crate::link)). Posting queues; [`poll`](Transport::poll)
//! writes, several frames by one system call, then reads.
//!
//! **What a poll costs.** While messages are expected from at most [`FEW`] peers, their sockets are read directly, without asking epoll, which
//! is asked now and then for the others. Otherwise one `epoll_wait` says whom to read. Payload goes from the socket
//! straight to its memory; headers, and what comes with them, through a small buffer.
//!
//! **The descriptor** is the epoll instance, level-triggered; a socket is asked for room to write only once a poll was about to
//! return with nothing done.
//!
//! Dropping a [`Tcp`] closes its connections. The kernel may then throw away what it has not delivered, so the ranks of a job part by a
//! barrier.

mod door;
pub mod greeting;
mod peer;

use std::fmt;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::link::{Limits, Link, Withdrawal};
use crate::{Capabilities, Event, LostCause, Message, Rank, Token, Transport};
use door::{Admission, Guest, Guests};
use greeting::Greeting;
use peer::{Peer, system};

/// Peers that are read without asking epoll first.
const FEW: usize = 2;
/// Bytes that one poll moves in each direction, about.
const BUDGET: usize = 256 << 10;
/// Where headers and small messages are read to.
const STAGING: usize = 16 << 10;
/// Direct polls between two looks at epoll: after so many that found nothing, or so many at all.
const QUIET: u32 = 16;
const TURNS: u32 = 256;
/// epoll's name of the listening socket; guests have this bit and their place, peers their rank.
const DOOR: u64 = u64::MAX;
const GUEST: u64 = 1 << 32;

/// Why a job's TCP transport cannot be set up.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{call}: {}", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: i32,
    },
    /// The process may not open enough descriptors.
    #[error("{needed} open files are needed, and the limit is {limit}: raise it with `ulimit -n {needed}`")]
    DescriptorLimit {
        /// How many this process would have open.
        needed: u64,
        /// RLIMIT_NOFILE.
        limit: u64,
    },
    /// The addresses do not include this rank.
    #[error("rank {rank} is not among the {ranks} ranks whose addresses were given")]
    NotAmongPeers {
        /// This rank.
        rank: Rank,
        /// How many addresses there are.
        ranks: usize,
    },
}

fn failed(call: &'static str, errno: Errno) -> Error {
    Error::System { call, errno: errno.raw_os_error() }
}

/// What a deployment may choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The local address to listen at.
    pub address: IpAddr,
    /// The links' limits; the same on all ranks.
    pub limits: Limits,
    /// SO_SNDBUF, if not what the kernel chooses and adapts.
    pub send_buffer: Option<usize>,
    /// SO_RCVBUF, likewise.
    pub receive_buffer: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        // Measured on loopback: with 256 KiB sent unasked such a message costs no round trip more than the raw exchange.
        let limits = Limits { eager_bytes: 256 << 10, credit_bytes: 1 << 20, ..Limits::default() };
        Self { address, limits, send_buffer: None, receive_buffer: None }
    }
}

/// The transport of one rank.
pub struct Tcp {
    rank: Rank,
    job: u128,
    options: Options,
    epoll: OwnedFd,
    /// Closed once all peers have come.
    listener: Option<TcpListener>,
    guests: Guests,
    /// By rank; this rank's own entry is never connected.
    peers: Vec<Peer>,
    /// Peers that have called, or are yet to be reached.
    awaited: usize,
    /// Peers that each poll looks at.
    active: Vec<Rank>,
    staging: Box<[u8]>,
    /// Happened outside a poll.
    ready: Vec<Event>,
    quiet: u32,
    turns: u32,
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tcp")
            .field("rank", &self.rank)
            .field("ranks", &self.peers.len())
            .field("awaited", &self.awaited)
            .field("active", &self.active)
            .finish_non_exhaustive()
    }
}

impl Tcp {
    /// Listens on the loopback interface. The address is for the peers' [`connect`](Self::connect).
    ///
    /// # Errors
    /// The system refuses a socket.
    pub fn bind(rank: Rank, job: u128) -> Result<(Self, SocketAddr), Error> {
        Self::bind_with(rank, job, Options::default())
    }

    /// Listens as `options` say.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub fn bind_with(rank: Rank, job: u128, options: Options) -> Result<(Self, SocketAddr), Error> {
        let io = |call| {
            move |error: std::io::Error| match error.raw_os_error() {
                Some(errno) => Error::System { call, errno },
                None => failed(call, Errno::IO),
            }
        };
        let listener = TcpListener::bind((options.address, 0)).map_err(io("bind"))?;
        listener.set_nonblocking(true).map_err(io("fcntl"))?;
        // All lower ranks' callers may come before this rank first polls.
        rustix::net::listen(&listener, 4096).map_err(|errno| failed("listen", errno))?;
        let address = listener.local_addr().map_err(io("getsockname"))?;
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| failed("epoll_create1", errno))?;
        let tcp = Self {
            rank,
            job,
            options,
            epoll,
            listener: Some(listener),
            guests: Guests::default(),
            peers: Vec::new(),
            awaited: 0,
            active: Vec::new(),
            staging: vec![0; STAGING].into_boxed_slice(),
            ready: Vec::new(),
            quiet: 0,
            turns: 0,
        };
        Ok((tcp, address))
    }

    /// Begins to connect to all peers; `addresses[rank]` is where that rank listens. Operations may be posted at once. A peer that cannot be
    /// reached is [`Event::Lost`].
    ///
    /// # Errors
    /// There are not enough descriptors, or this rank is not one of them.
    pub fn connect(&mut self, addresses: impl AsRef<[SocketAddr]>) -> Result<(), Error> {
        let addresses = addresses.as_ref();
        let ranks = addresses.len();
        if self.rank as usize >= ranks {
            return Err(Error::NotAmongPeers { rank: self.rank, ranks });
        }
        check_descriptors(ranks as u64)?;
        let limits = self.options.limits;
        self.peers = (0..ranks).map(|rank| Peer::new(Link::new(rank as Rank, limits))).collect();
        self.awaited = ranks - 1;
        if let Some(listener) = &self.listener {
            epoll::add(&self.epoll, listener, epoll::EventData::new_u64(DOOR), epoll::EventFlags::IN)
                .map_err(|errno| failed("epoll_ctl", errno))?;
        }
        for peer in 0..self.rank {
            match Guest::dial(peer, &addresses[peer as usize], &self.options) {
                Ok(guest) => self.seat(guest),
                Err(cause) => self.lose(peer, cause),
            }
        }
        self.close_door_if_complete();
        Ok(())
    }

    fn greeting(&self) -> Greeting {
        Greeting { job: self.job, rank: self.rank, limits: self.options.limits }
    }

    /// Waits for a connection's greeting.
    fn seat(&mut self, guest: Guest) {
        let unanswered = guest.is_unanswered();
        let dialled = guest.dialled;
        let place = self.guests.seat(guest);
        let Some(guest) = self.guests.get(place) else { return };
        let write = if unanswered { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
        let data = epoll::EventData::new_u64(GUEST | place as u64);
        if let Err(errno) = epoll::add(&self.epoll, &guest.socket, data, epoll::EventFlags::IN | write) {
            self.guests.leave(place);
            if let Some(peer) = dialled {
                self.lose(peer, system("epoll_ctl", errno));
            }
        }
    }

    /// A guest's socket is ready.
    fn attend(&mut self, place: usize) {
        let ours = self.greeting();
        let Some(guest) = self.guests.get(place) else { return };
        let unanswered = guest.is_unanswered();
        match guest.proceed(&ours) {
            Admission::Pending => {
                if unanswered && !guest.is_unanswered() {
                    let data = epoll::EventData::new_u64(GUEST | place as u64);
                    // Left as it is, the socket would only be reported too often.
                    let _ = epoll::modify(&self.epoll, &guest.socket, data, epoll::EventFlags::IN);
                }
            }
            Admission::Stranger(cause) => {
                if let Some(peer) = self.guests.leave(place).and_then(|guest| guest.dialled) {
                    self.lose(peer, cause);
                }
            }
            Admission::Peer(peer) => {
                if let Some(guest) = self.guests.leave(place) {
                    self.admit(guest, peer);
                }
            }
        }
    }

    /// A connection has said that it is `peer`.
    fn admit(&mut self, guest: Guest, peer: Rank) {
        let called = guest.dialled.is_none();
        let vacant = self.peers.get(peer as usize).is_some_and(|peer| peer.socket.is_none() && !peer.lost);
        // Only a higher rank calls; who is there already, or is nobody, is sent away.
        if !vacant || (called && peer <= self.rank) || (called && guest.greet(&self.greeting()).is_err()) {
            return;
        }
        let data = epoll::EventData::new_u64(u64::from(peer));
        if let Err(errno) = epoll::modify(&self.epoll, &guest.socket, data, epoll::EventFlags::IN) {
            self.lose(peer, system("epoll_ctl", errno));
            return;
        }
        self.peers[peer as usize].socket = Some(guest.socket);
        self.awaited -= 1;
        self.activate(peer);
        self.close_door_if_complete();
    }

    fn close_door_if_complete(&mut self) {
        let calls = self.peers.iter().skip(self.rank as usize + 1);
        if calls.clone().all(|peer| peer.socket.is_some() || peer.lost) {
            self.listener = None;
        }
    }

    /// Somebody calls.
    fn open_door(&mut self) {
        for _ in 0..64 {
            let Some(listener) = &self.listener else { return };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(listener, flags) {
                Ok(socket) => {
                    self.guests.make_room(self.awaited);
                    // A socket that cannot be configured is a stranger's, or its peer will see it closed.
                    if let Ok(guest) = Guest::answer(socket, &self.options) {
                        self.seat(guest);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    self.listener = None;
                    for peer in self.rank + 1..self.peers.len() as Rank {
                        if self.peers[peer as usize].socket.is_none() {
                            self.lose(peer, system("accept4", errno));
                        }
                    }
                    return;
                }
                // The caller went away before it was answered.
                Err(_) => {}
            }
        }
    }

    fn activate(&mut self, peer: Rank) {
        let entry = &mut self.peers[peer as usize];
        if !entry.active && entry.is_busy() {
            entry.active = true;
            self.active.push(peer);
        }
    }

    fn lose(&mut self, peer: Rank, cause: LostCause) {
        let entry = &mut self.peers[peer as usize];
        if entry.lost {
            return;
        }
        if entry.socket.take().is_none() {
            self.awaited -= 1;
        }
        match cause {
            LostCause::Garbled(_) => entry.link.clear(),
            _ => entry.link.close(),
        }
        entry.lost = true;
        self.ready.push(Event::Lost { peer, cause });
    }

    /// Writes to a peer. A peer that does not take it may have said something before it went.
    fn flush(&mut self, peer: Rank, budget: usize, events: &mut Vec<Event>) -> usize {
        match self.peers[peer as usize].flush(budget, events) {
            Ok(bytes) => bytes,
            Err(cause) => {
                loop {
                    match self.peers[peer as usize].read(&mut self.staging, BUDGET, events) {
                        Ok(0) => break self.lose(peer, cause),
                        Ok(_) => {}
                        Err(cause) => break self.lose(peer, cause),
                    }
                }
                1
            }
        }
    }

    fn read(&mut self, peer: Rank, budget: usize, events: &mut Vec<Event>) -> usize {
        match self.peers[peer as usize].read(&mut self.staging, budget, events) {
            Ok(bytes) => {
                self.activate(peer);
                bytes
            }
            Err(cause) => {
                self.lose(peer, cause);
                1
            }
        }
    }

    /// Asks epoll, and serves those it names. Says whether anything moved.
    fn harvest(&mut self, events: &mut Vec<Event>) -> bool {
        let mut named = [MaybeUninit::<epoll::Event>::uninit(); 64];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((named, _)) = epoll::wait(&self.epoll, &mut named, Some(&zero)) else { return false };
        let share = (BUDGET / named.len().max(1)).max(STAGING);
        let mut moved = false;
        for event in named.iter() {
            let (name, flags) = (event.data.u64(), event.flags);
            match name {
                DOOR => {
                    self.open_door();
                    moved = true;
                }
                name if name & GUEST != 0 => {
                    self.attend((name & !GUEST) as usize);
                    moved = true;
                }
                peer => {
                    let peer = peer as Rank;
                    if flags.contains(epoll::EventFlags::OUT) {
                        self.peers[peer as usize].blocked = false;
                        moved |= self.flush(peer, share, events) > 0;
                    }
                    if flags
                        .intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
                    {
                        moved |= self.read(peer, share, events) > 0;
                    }
                }
            }
        }
        moved
    }

    /// Tells epoll for which sockets room to write is awaited.
    fn arm(&mut self) {
        for &rank in &self.active {
            let peer = &mut self.peers[rank as usize];
            let wanted = peer.blocked && peer.link.has_output();
            let Some(socket) = &peer.socket else { continue };
            if wanted != peer.armed {
                let write = if wanted { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
                let data = epoll::EventData::new_u64(u64::from(rank));
                if epoll::modify(&self.epoll, socket, data, epoll::EventFlags::IN | write).is_ok() {
                    peer.armed = wanted;
                }
            }
        }
    }

    /// Writes to, and if they are few reads from, the peers of which something is expected. Says whether anything moved, and whether
    /// epoll must be asked.
    fn serve_active(&mut self, events: &mut Vec<Event>) -> (bool, bool) {
        let (mut moved, mut expecting, mut unconnected) = (false, 0, false);
        let few = self.active.len() <= FEW;
        let share = (BUDGET / self.active.len().max(1)).max(STAGING);
        for at in 0..self.active.len() {
            let rank = self.active[at];
            let peer = &self.peers[rank as usize];
            unconnected |= peer.socket.is_none() && !peer.lost;
            if peer.link.has_output() && (few || !peer.blocked || !peer.armed) {
                moved |= self.flush(rank, share, events) > 0;
            }
            expecting += usize::from(self.peers[rank as usize].link.expects());
        }
        let direct = few && expecting > 0;
        if direct {
            for at in 0..self.active.len() {
                let rank = self.active[at];
                if self.peers[rank as usize].link.expects() {
                    moved |= self.read(rank, share, events) > 0;
                }
            }
        }
        (moved, !direct || unconnected)
    }

    fn prune_active(&mut self) {
        let peers = &mut self.peers;
        self.active.retain(|&rank| {
            let peer = &mut peers[rank as usize];
            // An armed socket must be disarmed first, or it keeps the descriptor readable.
            peer.active = peer.is_busy() || (peer.armed && peer.socket.is_some());
            peer.active
        });
    }
}

fn check_descriptors(ranks: u64) -> Result<(), Error> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    let needed = open + ranks;
    if needed > limit { Err(Error::DescriptorLimit { needed, limit }) } else { Ok(()) }
}

impl Transport for Tcp {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            maps_peers: false,
            eager_bytes: self.options.limits.eager_bytes as usize,
            has_descriptor: true,
        }
    }

    unsafe fn post_send(&mut self, peer: Rank, message: &Message, memory: *const u8, token: Token) {
        let Some(entry) = self.peers.get_mut(peer as usize).filter(|entry| !entry.lost) else { return };
        // SAFETY: the caller's contract is the link's.
        unsafe { entry.link.post_send(message, memory, token, &mut self.ready) };
        self.activate(peer);
    }

    unsafe fn post_recv(&mut self, peer: Rank, message: &Message, memory: *mut u8, token: Token) {
        let receives = |entry: &&mut Peer| !entry.lost || entry.link.holds(message);
        let Some(entry) = self.peers.get_mut(peer as usize).filter(receives) else { return };
        // SAFETY: the caller's contract is the link's.
        unsafe { entry.link.post_recv(message, memory, token, &mut self.ready) };
        self.activate(peer);
    }

    fn withdraw(&mut self, token: Token) {
        self.ready.retain(|event| !event.ends(token));
        for peer in 0..self.peers.len() as Rank {
            match self.peers[peer as usize].link.withdraw(token) {
                Withdrawal::Unknown => continue,
                Withdrawal::Done => self.activate(peer),
                Withdrawal::Broken => self.lose(peer, system("withdraw", Errno::CANCELED)),
            }
            return;
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        events.append(&mut self.ready);
        let (mut moved, mut ask) = self.serve_active(events);
        self.quiet = if moved { 0 } else { self.quiet + 1 };
        self.turns += 1;
        ask |= !self.guests.is_empty() || self.quiet >= QUIET || self.turns >= TURNS;
        if ask {
            (self.quiet, self.turns) = (0, 0);
            moved |= self.harvest(events);
        }
        if !self.ready.is_empty() {
            events.append(&mut self.ready);
        }
        moved |= events.len() > before;
        if !moved {
            self.arm();
        }
        self.prune_active();
        moved
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}
