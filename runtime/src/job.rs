//! A process's part in its job: what its communicators share.

mod delivery;
mod early;
mod lines;
pub(crate) mod mending;
pub(crate) mod news;
pub(crate) mod segments;

pub use mending::Reconnects;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use windlass_memory::accelerator::Accelerator;
use windlass_memory::adopted::Adopted;
use windlass_memory::{Pool, Segment};
use windlass_transports::reach::SegmentKey;
use windlass_transports::shm::{Board, Doorbell, Shape};
use windlass_transports::{Message, Rank, Token, Transport};

use crate::bootstrap::control::Control;
use crate::bootstrap::protocol::{Failure, RegionMessage, ToServer};
use crate::bootstrap::{Identity, Server};
use crate::clock::Clock;
use crate::config::Config;
use crate::device::Attached;
use crate::device::reached::Reached;
use crate::error::{Error, JoinError, PeerCause};
use crate::fork;
use crate::group::{Group, lock};
use crate::metrics::NOTE_BYTES;
use crate::operator::Operators;
use crate::progress::{self, Kick, Progress};
use crate::registry::{self, Carriers};
use segments::Segments;

/// A peer's end, or its memory's, is an error only after this long: see [`Job::dead_among`].
pub(crate) const BELIEVED_AFTER: Duration = Duration::from_millis(40);

/// A message to the rendezvous, with what is attached to it.
pub(crate) type Told = (ToServer, Option<std::os::fd::OwnedFd>);

/// What all communicators of a rank share.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    pub(crate) config: Config,
    /// Cores that the ranks of this host share.
    pub(crate) cores: u32,
    /// The NUMA node of each rank.
    pub(crate) nodes: Vec<u32>,
    control: Option<Arc<Control>>,
    clock: Clock,
    /// In a simulation: what its rendezvous has not heard yet.
    untold: Option<Mutex<Vec<Told>>>,
    /// The job's board: doorbell, metrics, and the flags of the world communicator.
    pub(crate) board: Option<Arc<Board>>,
    pub(crate) mapped: bool,
    pub(crate) pool: Arc<Pool>,
    pub(crate) segments: Arc<Segments>,
    /// As the transport reaches them, and device memory.
    pub(crate) reached: Arc<Reached>,
    /// Messages up to this size do not wait for their receive.
    pub(crate) eager_bytes: usize,
    /// The transport's devices read and write registered memory where it lies.
    pub(crate) reaches_memory: bool,
    /// It reaches device memory.
    pub(crate) reaches_devices: bool,
    messages: Option<Mutex<Box<dyn Transport>>>,
    /// What carries messages works on this host's cores.
    needs_cores: bool,
    /// Peers wait for acknowledgements of what carries messages.
    acknowledges: bool,
    /// How often the transport is polled again at once when nothing moves.
    glances: u32,
    /// Wakes a thread of this rank that sleeps on the transport's descriptor.
    wake: Option<std::os::fd::OwnedFd>,
    sleepers: Mutex<u32>,
    /// How many messages that were sought have come.
    pub(crate) arrivals: AtomicU64,
    /// Who has ended, how, and since when it is known.
    dead: Mutex<BTreeMap<u32, (PeerCause, Instant)>>,
    dead_count: AtomicU32,
    pub(crate) mending: mending::Mending,
    groups: Mutex<Vec<Option<Weak<Group>>>>,
    boards: Mutex<BTreeMap<u32, Arc<Board>>>,
    /// Failures of communicators that this rank has no part in yet.
    pub(crate) early: Mutex<BTreeMap<u32, Failure>>,
    boards_changed: Condvar,
    pub(crate) progress: Arc<Progress>,
    /// Held when no launcher serves the job.
    server: Mutex<Option<Server>>,
    listener: OnceLock<std::thread::JoinHandle<()>>,
    /// The accelerator whose memory operations may use.
    pub(crate) attached: OnceLock<Arc<Attached>>,
    /// What peers said of their device memory before this rank had an accelerator.
    early_regions: Mutex<Vec<early::News>>,
    lines: lines::Lines,
    /// What the program has registered on this rank.
    pub(crate) operators: Operators,
    pub(crate) adopted: Arc<Adopted>,
}

impl Job {
    /// Joins the job that the environment describes.
    pub(crate) fn join(identity: &Identity, config: Config) -> Result<Arc<Self>, JoinError> {
        fork::mark();
        config.check()?;
        let told = config.nodes_of(identity.ranks)?;
        let server = match &identity.rendezvous {
            Some(address) if identity.serves => Some(Server::start_at(identity.ranks, address)?),
            _ => None,
        };
        if identity.rendezvous.is_none() {
            return Self::alone(config);
        }
        let control = Arc::new(Control::connect(identity, &config)?);
        let share = Arc::downgrade(&control);
        let pool = Pool::new(Box::new(move |segment: &Segment| {
            if let Some(control) = share.upgrade() {
                // A rendezvous that is gone has ended the job; peers then never learn of the segment, and waiting for it ends in time.
                let _ =
                    control.tell(&ToServer::Segment { number: segment.number() }, Some(segment.descriptor()));
            }
            Ok(())
        }));
        let segments = Arc::new(Segments::new(identity.ranks, Arc::new(pool)));
        let reached = Arc::new(Reached::new(Arc::clone(&segments)));
        let unconnected = registry::open(&config, identity.rank, job_number(identity), &reached)?;
        let board = if identity.rank == 0 {
            Some(Board::create(board_shape(&config, identity.ranks))?)
        } else {
            None
        };
        let welcome = control.join(identity, &config, board.as_ref(), unconnected.address())?;
        let board = Arc::new(Board::open(std::os::fd::AsFd::as_fd(&welcome.board))?);
        let carriers = unconnected.connect(identity.rank, &board, &segments, &welcome.tcp)?;
        // One that is not bound may be anywhere: then all count as near.
        let bound = || welcome.nodes.into_iter().collect::<Option<Vec<u32>>>();
        let nodes = told.or_else(bound).unwrap_or_else(|| vec![0; identity.ranks as usize]);
        let place = (welcome.cores, nodes);
        let job = Self::assemble(identity, config, place, Some(control), Some(board), reached, carriers)?;
        *lock(&job.server) = server;
        Self::listen(&job)?;
        Ok(job)
    }

    fn alone(config: Config) -> Result<Arc<Self>, JoinError> {
        let identity = Identity { rank: 0, ranks: 1, rendezvous: None, serves: false };
        let carriers = Carriers { messages: None, mapped: true, clock: Clock::Machine };
        Self::assemble(&identity, config, (1, vec![0]), None, None, Self::unshared(1), carriers)
    }

    /// Memory that nobody is told of.
    fn unshared(ranks: u32) -> Arc<Reached> {
        let segments = Segments::new(ranks, Arc::new(Pool::new(Box::new(|_| Ok(())))));
        Arc::new(Reached::new(Arc::new(segments)))
    }

    /// A rank of a simulated job: nobody listens, and nothing moves by itself.
    pub(crate) fn simulated(
        rank: u32,
        ranks: u32,
        config: Config,
        board: Option<Arc<Board>>,
        carriers: Carriers,
    ) -> Result<Arc<Self>, JoinError> {
        let identity = Identity { rank, ranks, rendezvous: None, serves: false };
        let nodes = config.nodes_of(ranks)?.unwrap_or_else(|| vec![0; ranks as usize]);
        let job =
            Self::assemble(&identity, config, (ranks, nodes), None, board, Self::unshared(ranks), carriers)?;
        job.progress.forbid();
        Ok(job)
    }

    fn assemble(
        identity: &Identity,
        config: Config,
        (cores, nodes): (u32, Vec<u32>),
        control: Option<Arc<Control>>,
        board: Option<Arc<Board>>,
        reached: Arc<Reached>,
        carriers: Carriers,
    ) -> Result<Arc<Self>, JoinError> {
        let segments = Arc::clone(reached.segments());
        let untold = matches!(carriers.clock, Clock::Simulated(..)).then(Mutex::default);
        let capabilities = carriers.messages.as_ref().map(|messages| messages.capabilities());
        let wake = match capabilities {
            Some(capabilities) if capabilities.has_descriptor => {
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                Some(eventfd(0, flags).map_err(|e| JoinError::system("eventfd", e))?)
            }
            _ => None,
        };
        Ok(Arc::new(Self {
            rank: identity.rank,
            ranks: identity.ranks,
            config,
            cores,
            nodes,
            control,
            clock: carriers.clock,
            untold,
            board,
            mapped: carriers.mapped,
            pool: Arc::clone(segments.pool()),
            segments,
            reached,
            eager_bytes: capabilities.map_or(0, |c| c.eager_bytes),
            reaches_memory: capabilities.is_some_and(|c| c.reaches_memory),
            reaches_devices: capabilities.is_some_and(|c| c.reaches_devices),
            needs_cores: capabilities.is_some_and(|c| c.needs_cores),
            acknowledges: capabilities.is_some_and(|c| c.streams_break),
            glances: if capabilities.is_some_and(|c| c.maps_peers) { delivery::GLANCES } else { 0 },
            messages: carriers.messages.map(Mutex::new),
            wake,
            sleepers: Mutex::new(0),
            arrivals: AtomicU64::new(0),
            dead: Mutex::default(),
            dead_count: AtomicU32::new(0),
            mending: mending::Mending::default(),
            groups: Mutex::default(),
            boards: Mutex::default(),
            early: Mutex::default(),
            boards_changed: Condvar::new(),
            progress: Arc::default(),
            server: Mutex::new(None),
            listener: OnceLock::new(),
            attached: OnceLock::new(),
            early_regions: Mutex::default(),
            lines: lines::Lines::default(),
            operators: Operators::default(),
            adopted: Arc::default(),
        }))
    }

    /// Whether the ranks of this host outnumber its cores, or what carries messages needs these: spinning would keep others from them.
    pub(crate) const fn is_crowded(&self) -> bool {
        self.ranks > self.cores || self.needs_cores
    }

    /// Doorbell of this host. A job of one has nobody to wake.
    pub(crate) fn doorbell(&self) -> &Doorbell {
        match &self.board {
            Some(board) => board.doorbell(),
            None => unreachable!("only communicators with a board ring, and a job without one makes none"),
        }
    }

    pub(crate) fn tell(&self, message: &ToServer) {
        if let Some(control) = &self.control {
            let _ = control.tell(message, None);
        }
        if let Some(untold) = &self.untold {
            lock(untold).push((message.clone(), None));
        }
    }

    /// What a simulation's rendezvous is to hear.
    pub(crate) fn take_untold(&self) -> Vec<Told> {
        self.untold.as_ref().map_or_else(Vec::new, |untold| std::mem::take(&mut *lock(untold)))
    }

    /// Whether nothing moves by itself: there are no threads, and time is the simulation's.
    pub(crate) const fn is_simulated(&self) -> bool {
        self.untold.is_some()
    }

    /// What deadlines are measured by.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Tells a peer something about device memory.
    pub(crate) fn tell_region(
        &self,
        to: u32,
        message: RegionMessage,
        descriptor: Option<std::os::fd::OwnedFd>,
    ) {
        if let Some(control) = &self.control {
            self.tell_by_line(control, to, message, descriptor);
        } else if let Some(untold) = &self.untold {
            lock(untold).push((ToServer::Region { to, message }, descriptor));
        }
    }

    /// Takes an accelerator into use, and what peers have said of theirs so far. False if another one is in use.
    pub(crate) fn attach(&self, attached: Arc<Attached>) -> bool {
        let mut early = lock(&self.early_regions);
        let now = self.attached.get_or_init(|| Arc::clone(&attached));
        self.reached.attach(now);
        for (from, message, descriptor) in early.drain(..) {
            now.hear(from, message, descriptor);
        }
        Arc::ptr_eq(now, &attached)
    }

    pub(crate) fn share_board(
        &self,
        communicator: u32,
        members: &[u32],
        segment: &Segment,
    ) -> Result<(), Error> {
        let Some(control) = &self.control else { return Ok(()) };
        let message = ToServer::Board { communicator, members: members.to_vec() };
        control.tell(&message, Some(segment.descriptor())).map_err(|e| Error::System {
            call: "sendmsg",
            errno: e.raw_os_error(),
            hint: "the rendezvous has ended; the launcher ends the job",
        })
    }

    /// Waits for a communicator's board, which its first member makes.
    pub(crate) fn await_board(
        &self,
        parent: &Group,
        communicator: u32,
        makers: &[u32],
    ) -> Result<Arc<Board>, Error> {
        let begin = Instant::now();
        let mut boards = lock(&self.boards);
        loop {
            if let Some(board) = boards.remove(&communicator) {
                return Ok(board);
            }
            parent.still_usable()?;
            let dead = self.dead_among(makers);
            let after = begin.elapsed();
            if let Some((rank, cause)) = dead {
                return Err(Error::PeerFailed { rank, cause, operation: "split", sequence: 0, communicator });
            }
            if after > self.config.timeout {
                return Err(Error::TimedOut {
                    operation: "split",
                    sequence: 0,
                    communicator,
                    waiting_on: makers.to_vec(),
                    after,
                });
            }
            boards = match self.boards_changed.wait_timeout(boards, Duration::from_millis(50)) {
                Ok((boards, _)) => boards,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Whether any rank is known to have ended.
    pub(crate) fn knows_dead(&self) -> bool {
        self.dead_count.load(Ordering::Acquire) > 0
    }

    /// The first of `ranks` that has been known to have ended for a while: what it sent before, and what it or others told of the
    /// reason, may come by another way and counts first.
    pub(crate) fn dead_among(&self, ranks: &[u32]) -> Option<(u32, PeerCause)> {
        if !self.knows_dead() {
            return None;
        }
        let dead = lock(&self.dead);
        let found = |r: &u32| {
            dead.get(r)
                .filter(|(_, since)| self.now().duration_since(*since) >= BELIEVED_AFTER)
                .map(|(cause, _)| (*r, cause.clone()))
        };
        ranks.iter().find_map(found)
    }

    /// Who is to blame when one of `waiting_on` has ended: among `members`, whoever crashed first, since who crashes takes others along;
    /// otherwise the one waited for.
    pub(crate) fn culprit(&self, waiting_on: &[u32], members: &[u32]) -> Option<(u32, PeerCause)> {
        // A member that cannot be reached any more lives, perhaps, and waits for this rank: nobody else ends its wait.
        let waited = self.dead_among(waiting_on).or_else(|| self.cut_off(members))?;
        let dead = lock(&self.dead);
        let crashed = members.iter().filter_map(|r| dead.get(r).map(|(cause, since)| (*r, cause, *since)));
        let first =
            crashed.filter(|(_, cause, _)| **cause != PeerCause::Left).min_by_key(|(.., since)| *since);
        Some(first.map_or(waited, |(rank, cause, _)| (rank, cause.clone())))
    }

    // ---- communicators -------------------------------------------------------------------------------------------------

    /// Gives a communicator its place: the slot in tokens, and how many came before it.
    pub(crate) fn enrol(&self, group: Weak<Group>) -> (u16, usize) {
        let mut groups = lock(&self.groups);
        let slot = groups.iter().position(Option::is_none).unwrap_or(groups.len());
        assert!(slot < 1 << 11, "a rank has at most 2048 communicators at a time");
        if slot == groups.len() {
            groups.push(Some(group));
        } else {
            groups[slot] = Some(group);
        }
        (slot as u16, slot)
    }

    pub(crate) fn retire(&self, slot: u16) {
        if let Some(place) = lock(&self.groups).get_mut(slot as usize) {
            *place = None;
        }
    }

    /// Whether a communicator with this number lives here.
    pub(crate) fn has_group(&self, id: u32) -> bool {
        lock(&self.early).contains_key(&id) || self.living_groups().iter().any(|g| g.id == id)
    }

    pub(crate) fn living_groups(&self) -> Vec<Arc<Group>> {
        lock(&self.groups).iter().flatten().filter_map(Weak::upgrade).collect()
    }

    fn group_at(&self, slot: u16) -> Option<Arc<Group>> {
        lock(&self.groups).get(slot as usize)?.as_ref()?.upgrade()
    }

    // ---- messages ------------------------------------------------------------------------------------------------------

    /// Posts a message.
    pub(crate) fn post(&self, sends: bool, peer: Rank, message: &Message, memory: *mut u8, token: Token) {
        let Some(messages) = &self.messages else { return };
        let mut messages = lock(messages);
        // SAFETY: the memory belongs to an operation that ends only after the message's completion or its withdrawal.
        unsafe {
            if sends {
                messages.post_send(peer, message, memory, token);
            } else {
                messages.post_recv(peer, message, memory, token);
            }
        }
    }

    /// Of these messages, the one that came first; if none has come, the transport tells of the first that does.
    pub(crate) fn earliest(
        &self,
        messages: impl Iterator<Item = (Rank, windlass_transports::MessageId)>,
    ) -> Option<Rank> {
        let mut transport = lock(self.messages.as_ref()?);
        let found = messages.filter_map(|(peer, id)| Some((transport.seek(peer, &id)?, peer)));
        found.min().map(|(_, peer)| peer)
    }

    /// Takes a segment back from the transport's devices: see [`Transport::release`].
    pub(crate) fn release(&self, segment: u64, within: &dyn Fn(*const u8) -> bool) {
        if let Some(messages) = &self.messages {
            lock(messages).release(segment, within);
        }
    }

    /// Finds out how the transport's devices take memory that moves without asking, and tells the user where it goes by way of the host.
    pub(crate) fn try_devices(&self, accelerator: &dyn Accelerator) {
        if let Some(messages) = &self.messages {
            let staged = lock(messages).attach(accelerator);
            for why in staged {
                crate::error::report(format_args!("rank {}: {why}", self.rank));
            }
        }
    }

    /// Device memory that the transport's devices do not reach any more: see [`Transport::probe`].
    pub(crate) fn probe(&self) -> Vec<SegmentKey> {
        self.messages.as_ref().map_or_else(Vec::new, |messages| lock(messages).probe())
    }

    pub(crate) fn withdraw(&self, token: Token) {
        if let Some(messages) = &self.messages {
            lock(messages).withdraw(token);
        }
    }

    // ---- sleeping ------------------------------------------------------------------------------------------------------

    /// Sleeps until a peer, the transport or another thread has something, unless `ready`.
    pub(crate) fn park(&self, timeout: Duration, ready: impl FnMut() -> bool) {
        let mut ready = ready;
        match (&self.messages, &self.wake, &self.board) {
            (Some(messages), Some(wake), _) => {
                if ready() {
                    return;
                }
                let descriptor = {
                    let messages = lock(messages);
                    let Some(descriptor) = messages.descriptor() else { return };
                    let Ok(own) = descriptor.try_clone_to_owned() else { return std::thread::yield_now() };
                    own
                };
                let mut polled = [PollFd::new(&descriptor, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
                let time = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
                let _ = poll(&mut polled, Some(&time));
                let _ = rustix::io::read(wake, &mut [0u8; 8]);
            }
            (_, _, Some(board)) => {
                board.doorbell().park(&self.sleepers, self.rank as usize, timeout, ready);
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }

    /// Wakes this rank's own sleeping threads.
    pub(crate) fn ring_self(&self) {
        if let Some(wake) = &self.wake {
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        } else if let Some(board) = &self.board {
            let doorbell = board.doorbell();
            if doorbell.somebody_sleeps() {
                doorbell.ring(std::iter::once(self.rank as usize));
            }
        }
        self.kick_progress(Kick::Now);
    }

    // ---- the progress thread -------------------------------------------------------------------------------------------

    /// Makes sure somebody looks after asynchronous operations.
    pub(crate) fn kick_progress(&self, kick: Kick) {
        self.progress.kick(kick);
    }

    /// Starts the progress thread, with the first asynchronous operation.
    pub(crate) fn start_progress(self: &Arc<Self>) -> Result<(), Error> {
        let mut result = Ok(());
        self.progress.started.get_or_init(|| {
            self.progress.prepare();
            let job = Arc::downgrade(self);
            let spawned = std::thread::Builder::new()
                .name("wl-progress".into())
                .stack_size(512 << 10)
                .spawn(move || progress::run(&job));
            if let Err(e) = &spawned {
                result = Err(Error::System {
                    call: "pthread_create",
                    errno: e.raw_os_error().unwrap_or(0),
                    hint: "raise the limit on processes and threads: ulimit -u",
                });
            }
            spawned.is_ok()
        });
        result
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if fork::is_forked() {
            return;
        }
        lock(&self.progress.state).closing = true;
        self.progress.changed.notify_all();
        // What a send that has ended well gave away is to arrive, though this rank does not wait for the others.
        if let Some(messages) = &self.messages {
            lock(messages).linger(self.config.reconnect);
        }
        self.leave();
        if let Some(control) = &self.control {
            control.close();
        }
        // The listening thread upgrades its reference for one message at a time; if this is that thread, it ends by itself.
        if let Some(thread) = self.listener.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

pub(crate) fn board_shape(config: &Config, ranks: u32) -> Shape {
    let model = &config.model;
    Shape {
        ranks: u64::from(ranks),
        slot_bytes: model.slot_bytes,
        stage_bytes: model.stage_bytes(ranks),
        lanes: u64::from(config.transport.maps()),
        note_bytes: NOTE_BYTES,
    }
}

/// The shape of a communicator's own board: as the job's, without notes.
pub(crate) fn group_shape(config: &Config, ranks: u32) -> Shape {
    Shape { lanes: 0, note_bytes: 0, ..board_shape(config, ranks) }
}

/// A job's number on the wire, from its rendezvous's name.
fn job_number(identity: &Identity) -> u128 {
    let name = identity.rendezvous.as_deref().unwrap_or_default();
    // FNV-1a: it tells jobs of one host apart; nobody is kept out by it.
    name.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}
