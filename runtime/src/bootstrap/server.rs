//! The rendezvous: collects the ranks, passes descriptors on, tells of ends.
//!
//! One thread polls all connections. What a rank sends is relayed or compared; nothing waits for one rank while others have
//! something to say, except that a rank that does not read for a long time is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use windlass_transports::shm::Board;

use super::protocol::{Failure, RegionMessage, RegionNews, ToRank, ToServer, VERSION};
use super::socket;
use crate::error::{JoinError, PeerCause, Refusal};
use crate::metrics;

/// While not all have joined, those waiting hear of it this often.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// A rendezvous for one job. Dropping it ends it; ranks that have joined go on, but hear of nothing any more.
pub struct Server {
    shared: Arc<Shared>,
    address: String,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

struct Shared {
    wake: OwnedFd,
    joined: AtomicUsize,
    inbox: Mutex<Inbox>,
    states: Mutex<Vec<String>>,
    board: Mutex<Option<Arc<Board>>>,
}

#[derive(Default)]
struct Inbox {
    ends: Vec<(u32, PeerCause)>,
    closing: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Opens a rendezvous for `ranks` ranks under a name that contains `job`, which must be unique on the machine.
    pub fn start(ranks: u32, job: &str) -> Result<Self, JoinError> {
        Self::start_at(ranks, &socket::format_address(&format!("windlass-{job}")))
    }

    /// Serves at an address of this user's.
    pub(crate) fn start_at(ranks: u32, address: &str) -> Result<Self, JoinError> {
        let address = address.to_owned();
        let listener = socket::serve(&address).map_err(|e| JoinError::NoRendezvous {
            address: address.clone(),
            errno: e.raw_os_error(),
            hint: "another job of this user holds the name: choose another MASTER_PORT",
        })?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| JoinError::system("eventfd", e))?;
        let shared = Arc::new(Shared {
            wake,
            joined: AtomicUsize::new(0),
            inbox: Mutex::default(),
            states: Mutex::new(vec![String::from("not joined"); ranks as usize]),
            board: Mutex::default(),
        });
        let state = State::new(ranks, listener, Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("wl-rendezvous".into())
            .stack_size(256 << 10)
            .spawn(move || {
                windlass_memory::serve(windlass_memory::Promptness::Answers);
                state.run();
            })
            .map_err(|e| {
                JoinError::system("pthread_create", Errno::from_io_error(&e).unwrap_or(Errno::AGAIN))
            })?;
        Ok(Self { shared, address, thread: Some(thread) })
    }

    /// What `WINDLASS_RENDEZVOUS` must hold.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many ranks have joined so far.
    pub fn joined(&self) -> usize {
        self.shared.joined.load(Ordering::Acquire)
    }

    /// Tells the ranks that one of them has ended, and how.
    pub fn rank_exited(&self, rank: u32, cause: PeerCause) {
        lock(&self.shared.inbox).ends.push((rank, cause));
        self.shared.wake();
    }

    /// One line a rank: what it was last known to do.
    pub fn states(&self) -> Vec<String> {
        lock(&self.shared.states).clone()
    }

    /// The ranks' metrics in Prometheus's text format; `None` until all have joined.
    pub fn metrics_text(&self) -> Option<String> {
        let board = lock(&self.shared.board).clone()?;
        Some(metrics::render(&board))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        lock(&self.shared.inbox).closing = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(path) = socket::path_of(&self.address) {
            // Who comes later finds nobody either way.
            let _ = rustix::fs::unlink(path);
        }
    }
}

impl Shared {
    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// One connection: a rank once it has said so.
struct Connection {
    socket: OwnedFd,
    /// Its process: a child that it forked may hold the socket open for longer than it lives.
    process: Option<OwnedFd>,
    pid: i32,
    rank: Option<u32>,
    left: bool,
    /// What it has no room for now: a rank that does not read must not stop the others.
    outbox: VecDeque<(ToRank, Option<OwnedFd>)>,
}

impl Connection {
    /// Tells it now, or when it reads.
    fn tell(&mut self, message: &ToRank, descriptor: Option<&OwnedFd>) {
        // A rank that cannot be told is gone; its connection says so by itself.
        if self.outbox.is_empty()
            && socket::offer(self.socket.as_fd(), message, descriptor.map(AsFd::as_fd)) != Err(Errno::AGAIN)
        {
            return;
        }
        // Descriptors do not pile up: what is withdrawn before it is heard of will not be mapped.
        if let ToRank::Region {
            from,
            message: RegionMessage { segment, news: RegionNews::Withdraw { .. }, .. },
        } = message
        {
            for (earlier, kept) in &mut self.outbox {
                if matches!(earlier, ToRank::Region { from: f, message: m } if f == from && m.segment == *segment)
                {
                    *kept = None;
                }
            }
        }
        let descriptor = descriptor.and_then(|descriptor| descriptor.try_clone().ok());
        self.outbox.push_back((message.clone(), descriptor));
    }

    /// Tells what there is room for by now.
    fn flush(&mut self) {
        while let Some((message, descriptor)) = self.outbox.front() {
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            if socket::offer(self.socket.as_fd(), message, descriptor) == Err(Errno::AGAIN) {
                return;
            }
            self.outbox.pop_front();
        }
    }
}

struct State {
    ranks: u32,
    listener: OwnedFd,
    /// Held for the time when there are no others.
    spare: Option<OwnedFd>,
    shared: Arc<Shared>,
    connections: Vec<Connection>,
    agreement: Option<(u32, Vec<(String, String)>)>,
    tcp: Vec<Option<String>>,
    cpus: std::collections::BTreeSet<u32>,
    nodes: Vec<Option<u32>>,
    board: Option<OwnedFd>,
    welcomed: bool,
    opened: Instant,
    reported: Instant,
    lost: BTreeMap<u32, PeerCause>,
    /// By (communicator, sequence): what each stalled rank waits in.
    stalled: BTreeMap<(u32, u64), BTreeMap<u32, [u64; 2]>>,
}

impl State {
    fn new(ranks: u32, listener: OwnedFd, shared: Arc<Shared>) -> Self {
        Self {
            ranks,
            listener,
            spare: rustix::io::fcntl_dupfd_cloexec(&shared.wake, 0).ok(),
            shared,
            connections: Vec::new(),
            agreement: None,
            tcp: vec![None; ranks as usize],
            cpus: std::collections::BTreeSet::new(),
            nodes: vec![None; ranks as usize],
            board: None,
            welcomed: false,
            opened: Instant::now(),
            reported: Instant::now(),
            lost: BTreeMap::new(),
            stalled: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        let mut buffer = Vec::new();
        loop {
            self.connections.iter_mut().for_each(Connection::flush);
            let (mut ready, mut ended): (Vec<usize>, Vec<i32>) = (Vec::new(), Vec::new());
            {
                let mut polled = vec![
                    PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
                ];
                let wanted = |c: &Connection| match c.outbox.is_empty() {
                    true => PollFlags::IN,
                    false => PollFlags::IN | PollFlags::OUT,
                };
                let sockets =
                    self.connections.iter().map(|c| PollFd::from_borrowed_fd(c.socket.as_fd(), wanted(c)));
                polled.extend(sockets);
                let heard = polled.len();
                let processes: Vec<_> = self.connections.iter().filter(|c| c.process.is_some()).collect();
                let descriptors = processes.iter().filter_map(|c| c.process.as_ref());
                polled.extend(descriptors.map(|p| PollFd::from_borrowed_fd(p.as_fd(), PollFlags::IN)));
                let wait = rustix::time::Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
                let wait = if self.welcomed || self.connections.is_empty() { None } else { Some(&wait) };
                if let Err(e) = poll(&mut polled, wait)
                    && e != Errno::INTR
                {
                    return;
                }
                let stirs = |p: &PollFd<'_>| !p.revents().is_empty();
                // That there is room again is seen to at the begin of the next round.
                let says = |p: &PollFd<'_>| p.revents().intersects(!PollFlags::OUT);
                ready.extend(polled[..heard].iter().enumerate().filter(|(_, p)| says(p)).map(|(i, _)| i));
                let dead = processes.iter().zip(&polled[heard..]).filter(|(_, p)| stirs(p));
                ended.extend(dead.map(|(c, _)| c.pid));
            }
            for &index in ready.iter().rev() {
                match index {
                    0 => {
                        let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
                    }
                    1 => self.accept(),
                    _ => self.hear(index - 2, &mut buffer),
                }
            }
            // What a process said before its end is heard first.
            while ready.is_empty()
                && let Some(index) =
                    self.connections.iter().position(|c| c.process.is_some() && ended.contains(&c.pid))
            {
                self.hang_up(index);
            }
            self.connections.retain(|c| !(c.left && c.rank.is_none()));
            let (ends, closing) = {
                let mut inbox = lock(&self.shared.inbox);
                (std::mem::take(&mut inbox.ends), inbox.closing)
            };
            if closing {
                return;
            }
            for (rank, cause) in ends {
                self.lose(rank, cause);
            }
            self.report_waiting();
        }
    }

    fn accept(&mut self) {
        let Ok(socket) = socket::take(self.listener.as_fd()) else {
            // Out of descriptors. The spare one serves to say so; without it the listener stays readable, and looking at it
            // without a pause would cost a core.
            drop(self.spare.take());
            match socket::take(self.listener.as_fd()) {
                Ok(socket) => refuse(&socket, Refusal::Descriptors),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
            self.spare = rustix::io::fcntl_dupfd_cloexec(&self.shared.wake, 0).ok();
            return;
        };
        let Ok((uid, pid)) = socket::peer_credentials(socket.as_fd()) else { return };
        let own = rustix::process::getuid().as_raw();
        if uid != own && own != 0 && uid != 0 {
            return refuse(&socket, Refusal::User { uid });
        }
        // A rank that never reads must not stop the others.
        let _ = rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Send,
            Some(Duration::from_secs(10)),
        );
        let process = rustix::process::Pid::from_raw(pid).filter(|p| *p != rustix::process::getpid());
        let process =
            process.and_then(|p| rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()).ok());
        self.connections.push(Connection {
            socket,
            process,
            pid,
            rank: None,
            left: false,
            outbox: VecDeque::new(),
        });
    }

    fn hear(&mut self, index: usize, buffer: &mut Vec<u8>) {
        match socket::receive::<ToServer>(self.connections[index].socket.as_fd(), buffer) {
            Ok(Some((message, descriptor))) => self.handle(index, message, descriptor),
            Err(Errno::MFILE) => {
                let refused = ToRank::Refused(Refusal::Descriptors);
                let _ = socket::send(self.connections[index].socket.as_fd(), &refused, None);
                self.hang_up(index);
            }
            Ok(None) | Err(_) => self.hang_up(index),
        }
    }

    fn hang_up(&mut self, index: usize) {
        let connection = self.connections.swap_remove(index);
        let Some(rank) = connection.rank else { return };
        lock(&self.shared.states)[rank as usize] =
            if connection.left { "left".into() } else { "gone".into() };
        if !connection.left {
            self.lose(rank, PeerCause::Vanished);
        }
    }

    fn handle(&mut self, index: usize, message: ToServer, descriptor: Option<OwnedFd>) {
        match (self.connections[index].rank, message) {
            (None, ToServer::Join { version, rank, ranks, agreement, tcp, cpus, node }) => {
                if let Err(refusal) = self.admit(index, version, rank, ranks, agreement) {
                    let _ =
                        socket::send(self.connections[index].socket.as_fd(), &ToRank::Refused(refusal), None);
                    self.connections[index].left = true;
                    return;
                }
                self.tcp[rank as usize] = tcp;
                self.cpus.extend(cpus);
                self.nodes[rank as usize] = node;
                if rank == 0 {
                    self.board = descriptor;
                }
                self.welcome();
                self.tell_missing(|r| r == rank);
            }
            (Some(rank), ToServer::Segment { number }) => {
                let Some(descriptor) = descriptor else { return };
                self.tell(|r| r != rank, &ToRank::Segment { rank, number }, Some(&descriptor));
            }
            (Some(_), ToServer::Board { communicator, members }) => {
                let Some(descriptor) = descriptor else { return };
                self.tell(|r| members.contains(&r), &ToRank::Board { communicator }, Some(&descriptor));
            }
            (Some(rank), ToServer::Stalled { communicator, calls, members, doing }) => {
                lock(&self.shared.states)[rank as usize] = doing;
                for (sequence, fingerprint) in calls {
                    if self.compare(rank, communicator, sequence, fingerprint, &members) {
                        break;
                    }
                }
            }
            (Some(rank), ToServer::Moving) => {
                lock(&self.shared.states)[rank as usize] = "running".into();
                for waiting in self.stalled.values_mut() {
                    waiting.remove(&rank);
                }
                self.stalled.retain(|_, s| !s.is_empty());
            }
            (Some(rank), ToServer::Failed { communicator, members, failure }) => {
                self.tell(
                    |r| r != rank && members.contains(&r),
                    &ToRank::Failed { communicator, failure },
                    None,
                );
            }
            (Some(rank), ToServer::Region { to, message }) => {
                self.tell(|r| r == to, &ToRank::Region { from: rank, message }, descriptor.as_ref());
            }
            (Some(rank), ToServer::Broken { to }) => {
                self.tell(|r| r == to, &ToRank::Broken { from: rank }, None);
            }
            (Some(rank), ToServer::Line { to }) => {
                let Some(descriptor) = descriptor else { return };
                self.tell(|r| r == to, &ToRank::Line { from: rank }, Some(&descriptor));
            }
            (Some(rank), ToServer::Leave) => {
                self.connections[index].left = true;
                self.lose(rank, PeerCause::Left);
            }
            // A second Join, or anything before the first: not one of ours.
            (_, _) => self.connections[index].left = true,
        }
    }

    fn admit(
        &mut self,
        index: usize,
        version: u32,
        rank: u32,
        ranks: u32,
        agreement: Vec<(String, String)>,
    ) -> Result<(), Refusal> {
        if version != VERSION {
            return Err(Refusal::Version { server: VERSION, rank: version });
        }
        if ranks != self.ranks || rank >= ranks {
            return Err(Refusal::Ranks { server: self.ranks, rank: ranks });
        }
        if let Some(other) = self.connections.iter().find(|c| c.rank == Some(rank)) {
            return Err(Refusal::Taken { pid: other.pid });
        }
        match &self.agreement {
            None => self.agreement = Some((rank, agreement)),
            Some((first, known)) => {
                if let Some((ours, theirs)) = known.iter().zip(&agreement).find(|(a, b)| a != b) {
                    let difference = format!(
                        "{} is `{}` on rank {first} and `{}` on rank {rank}",
                        ours.0, ours.1, theirs.1
                    );
                    return Err(Refusal::Configuration { difference });
                }
            }
        }
        self.connections[index].rank = Some(rank);
        lock(&self.shared.states)[rank as usize] = "joined".into();
        self.shared.joined.fetch_add(1, Ordering::AcqRel);
        // Who comes again is back.
        self.lost.remove(&rank);
        // Who ended before this one came must be known to it.
        for (&rank, cause) in &self.lost {
            let lost = ToRank::Lost { rank, cause: cause.clone() };
            let _ = socket::send(self.connections[index].socket.as_fd(), &lost, None);
        }
        Ok(())
    }

    fn welcome(&mut self) {
        let present = self.connections.iter().filter(|c| c.rank.is_some()).count();
        if self.welcomed || present < self.ranks as usize {
            return;
        }
        self.welcomed = true;
        let Some(board) = self.board.take() else { return };
        *lock(&self.shared.board) = Board::open(board.as_fd()).ok().map(Arc::new);
        let cores = u32::try_from(self.cpus.len()).unwrap_or(u32::MAX).max(1);
        let welcome = ToRank::Welcome { tcp: self.tcp.clone(), cores, nodes: self.nodes.clone() };
        self.tell(|_| true, &welcome, Some(&board));
        lock(&self.shared.states).iter_mut().for_each(|s| *s = "running".into());
    }

    fn report_waiting(&mut self) {
        if self.welcomed
            || self.connections.is_empty()
            || self.reported.elapsed() < REPORT_EVERY
            || self.opened.elapsed() < REPORT_EVERY
        {
            return;
        }
        self.reported = Instant::now();
        self.tell_missing(|_| true);
    }

    /// Tells those who wait who has not joined.
    fn tell_missing(&mut self, to: impl Fn(u32) -> bool) {
        if self.welcomed {
            return;
        }
        let present: Vec<u32> = self.connections.iter().filter_map(|c| c.rank).collect();
        let missing: Vec<u32> = (0..self.ranks).filter(|r| !present.contains(r)).collect();
        self.tell(to, &ToRank::Waiting { missing }, None);
    }

    fn lose(&mut self, rank: u32, cause: PeerCause) {
        // The first news is the cause; what the launcher knows is better than a broken connection.
        let known = self.lost.get(&rank);
        if known.is_some_and(|k| *k != PeerCause::Vanished) || known == Some(&cause) {
            return;
        }
        self.lost.insert(rank, cause.clone());
        self.tell(|r| r != rank, &ToRank::Lost { rank, cause }, None);
    }

    /// Two ranks that wait in the same place of a communicator's order must wait in the same call.
    fn compare(
        &mut self,
        rank: u32,
        communicator: u32,
        sequence: u64,
        fingerprint: [u64; 2],
        members: &[u32],
    ) -> bool {
        let waiting = self.stalled.entry((communicator, sequence)).or_default();
        waiting.insert(rank, fingerprint);
        let mut waiting = waiting.iter().filter(|(r, _)| members.contains(r));
        let Some((&first, &print)) = waiting.next() else { return false };
        let Some((&other, &differs)) = waiting.find(|(_, p)| **p != print) else { return false };
        let failure = Failure::Mismatch { sequence, first: (first, print), second: (other, differs) };
        self.tell(|r| members.contains(&r), &ToRank::Failed { communicator, failure }, None);
        true
    }

    fn tell(&mut self, to: impl Fn(u32) -> bool, message: &ToRank, descriptor: Option<&OwnedFd>) {
        for connection in &mut self.connections {
            if connection.rank.is_some_and(&to) && !connection.left {
                connection.tell(message, descriptor);
            }
        }
    }
}

/// Refuses a caller before it has been heard. Closing with its words unread would take the refusal back, so they are awaited.
fn refuse(socket: &OwnedFd, refusal: Refusal) {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    let _ = socket::send(socket.as_fd(), &ToRank::Refused(refusal), None);
    let _ = set_socket_timeout(socket, Timeout::Recv, Some(Duration::from_millis(200)));
    let _ = socket::receive::<ToServer>(socket.as_fd(), &mut Vec::new());
}
