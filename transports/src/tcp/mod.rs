//! Links over TCP streams.
//!
//! Every pair of ranks has one connection, made when [`Tcp::connect`] is told all addresses: the higher rank dials. The first bytes each
//! way are a [`Greeting`](greeting::Greeting); then come frames (see [`link`](crate::link)). Posting queues; [`poll`](Transport::poll)
//! writes, several frames by one system call, then reads.
//!
//! **What a poll costs.** While messages are expected from at most [`FEW`] peers, their sockets are read directly, without asking epoll, which
//! is asked now and then for the others. Otherwise one `epoll_wait` says whom to read. Payload goes from the socket
//! straight to its memory; headers, and what comes with them, through a small buffer.
//!
//! **The descriptor** is the epoll instance, level-triggered; a socket is asked for room to write only once a poll was about to
//! return with nothing done.
//!
//! **A stream that breaks** is reported, and opened anew when told: again the higher rank dials. Each connection of two ranks has a
//! generation, one more than the last that was tried; a call under an older one is sent away. Both greetings say what has been received, and
//! the [link](crate::link) sends again what has not.
//!
//! Dropping a [`Tcp`] closes its connections. The kernel may then throw away what it has not delivered: who leaves before the others
//! [lingers](Transport::linger).

mod door;
pub mod greeting;
mod linger;
mod peer;
mod streams;

use std::fmt;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::link::{Limits, Link};
use crate::{Capabilities, Event, LostCause, Message, MessageId, Rank, Token, Transport};
use door::{Admission, Guest, Guests};
use peer::{Peer, Standing, system};

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
    /// An epoll instance that tells of calls only. It has no stream: each packet would be looked at twice.
    guard: OwnedFd,
    /// Open while peers may call.
    listener: Option<TcpListener>,
    guests: Guests,
    /// By rank; this rank's own entry is never connected.
    peers: Vec<Peer>,
    addresses: Vec<SocketAddr>,
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
        let guard =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| failed("epoll_create1", errno))?;
        let tcp = Self {
            rank,
            job,
            options,
            epoll,
            guard,
            listener: Some(listener),
            guests: Guests::default(),
            peers: Vec::new(),
            addresses: Vec::new(),
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
        self.peers = (0..ranks).map(|rank| Peer::new(Link::replaying(rank as Rank, limits))).collect();
        self.addresses = addresses.to_vec();
        if let Some(listener) = &self.listener {
            for epoll in [&self.epoll, &self.guard] {
                epoll::add(epoll, listener, epoll::EventData::new_u64(DOOR), epoll::EventFlags::IN)
                    .map_err(|errno| failed("epoll_ctl", errno))?;
            }
        }
        (0..self.rank).for_each(|peer| self.dial(peer));
        Ok(())
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
                self.break_stream(peer, system("epoll_ctl", errno));
            }
        }
    }

    /// A guest's socket is ready.
    fn attend(&mut self, place: usize) {
        let (job, limits) = (self.job, self.options.limits);
        let Some(guest) = self.guests.get(place) else { return };
        let unanswered = guest.is_unanswered();
        match guest.proceed(job, limits) {
            Admission::Pending => {
                if unanswered && !guest.is_unanswered() {
                    let data = epoll::EventData::new_u64(GUEST | place as u64);
                    // Left as it is, the socket would only be reported too often.
                    let _ = epoll::modify(&self.epoll, &guest.socket, data, epoll::EventFlags::IN);
                }
            }
            Admission::Stranger(cause) => {
                if let Some(peer) = self.guests.leave(place).and_then(|guest| guest.dialled) {
                    self.break_stream(peer, cause);
                }
            }
            Admission::Peer(theirs) => {
                if let Some(guest) = self.guests.leave(place) {
                    self.answered(guest, theirs);
                }
            }
        }
    }

    /// Somebody calls.
    fn open_door(&mut self) {
        for _ in 0..64 {
            let Some(listener) = &self.listener else { return };
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(listener, flags) {
                Ok(socket) => {
                    let opening = self.peers.iter().filter(|peer| peer.standing == Standing::Opening);
                    self.guests.make_room(opening.count());
                    // A socket that cannot be configured is a stranger's, or its peer will see it closed.
                    if let Ok(guest) = Guest::answer(socket, &self.options) {
                        self.seat(guest);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    self.listener = None;
                    for peer in self.rank + 1..self.peers.len() as Rank {
                        if self.peers[peer as usize].standing == Standing::Opening {
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

    /// Writes to a peer. A peer that does not take it may have said something before it went.
    fn flush(&mut self, peer: Rank, budget: usize, events: &mut Vec<Event>) -> usize {
        match self.peers[peer as usize].flush(budget, events) {
            Ok(bytes) => bytes,
            Err(cause) => {
                loop {
                    match self.peers[peer as usize].read(&mut self.staging, BUDGET, events) {
                        Ok(1..) => {}
                        Ok(0) => break self.break_stream(peer, cause),
                        Err(LostCause::Garbled(what)) => {
                            break self.break_stream(peer, LostCause::Garbled(what));
                        }
                        Err(_) => break self.break_stream(peer, cause),
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
                self.break_stream(peer, cause);
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
            unconnected |= peer.standing == Standing::Opening;
            if peer.socket.is_some() && peer.link.has_output() && (few || !peer.blocked || !peer.armed) {
                moved |= self.flush(rank, share, events) > 0;
            }
            let peer = &self.peers[rank as usize];
            expecting += usize::from(peer.socket.is_some() && peer.link.expects());
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
            streams_break: true,
            reaches_devices: false,
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
        let Some(entry) = self.peers.get_mut(peer as usize).filter(receives) else { return };
        // SAFETY: the caller's contract is the link's.
        unsafe { entry.link.post_recv(message, memory, token, &mut self.ready) };
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
        for peer in 0..self.peers.len() as Rank {
            if self.peers[peer as usize].link.withdraw(token) {
                return self.activate(peer);
            }
        }
    }

    fn reopen(&mut self, peer: Rank) {
        let Some(entry) = self.peers.get_mut(peer as usize) else { return };
        if !matches!(entry.standing, Standing::Broken(_)) {
            return;
        }
        entry.standing = Standing::Opening;
        match entry.caller.take() {
            _ if peer < self.rank => self.dial(peer),
            Some((guest, theirs)) => self.admit(guest, theirs),
            None => {}
        }
    }

    fn is_heard(&self, peer: Rank) -> bool {
        peer > self.rank || self.guests.dialled(peer).is_some_and(Guest::is_connected)
    }

    fn give_up(&mut self, peer: Rank) {
        if let Some(Standing::Broken(cause)) = self.peers.get(peer as usize).map(|peer| peer.standing.clone())
        {
            self.lose(peer, cause);
        } else if let Some(Standing::Opening) =
            self.peers.get(peer as usize).map(|peer| peer.standing.clone())
        {
            self.lose(peer, system("connect", Errno::TIMEDOUT));
        }
    }

    fn acknowledge(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.ready);
        for at in 0..self.active.len() {
            let rank = self.active[at];
            let peer = &self.peers[rank as usize];
            if peer.socket.is_some() && peer.link.owes() {
                self.flush(rank, STAGING, &mut events);
            }
        }
        events.append(&mut self.ready);
        self.ready = events;
        !self.active.iter().any(|&rank| self.peers[rank as usize].link.owes())
    }

    fn is_disturbed(&self) -> bool {
        let disturbed = |peer: &Peer| {
            peer.standing == Standing::Opening
                || peer.socket.is_some() && (peer.link.writes_again() || peer.link.owes())
        };
        self.peers.iter().enumerate().any(|(rank, peer)| rank != self.rank as usize && disturbed(peer))
    }

    fn linger(&mut self, time: Duration) {
        linger::linger(self.peers.iter().filter_map(|peer| peer.socket.as_ref()).map(AsFd::as_fd), time);
    }

    fn guard(&self) -> Option<BorrowedFd<'_>> {
        Some(self.guard.as_fd())
    }

    fn sever(&mut self, peer: Rank) {
        if let Some(socket) = self.peers.get(peer as usize).and_then(|peer| peer.socket.as_ref()) {
            // Without a connection nothing is left to break.
            let _ = rustix::net::connect_unspec(socket);
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
