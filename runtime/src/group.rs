//! One communicator of one rank.

mod overdue;
mod staging;

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use windlass_collectives::Topology;
use windlass_transports::shm::Board;
use windlass_transports::{Event, Token};

use crate::bootstrap::protocol::{Failure, ToServer};
use crate::engine::wait::Waiter;
use crate::engine::{Due, Status, Stream};
use crate::error::{AbortReason, Error, Problem};
use crate::fork;
use crate::job::Job;
use crate::metrics::Recorder;
use crate::numa;
use crate::progress::Kick;
use crate::request::RawRequest;
use crate::transfer::Transfers;
pub(crate) use overdue::{LOOK_AGAIN, Limit, Overdue, STALL_AFTER};
use staging::Staging;

/// Passes over the stream between two looks at the clock, the lock and the processor's other users: about 2 µs, as each
/// looks at a line some twenty times.
const SPINS: u32 = 4;

/// An asynchronous operation up to this size is begun by its caller; a larger one by the progress thread.
const INLINE_ISSUE_BYTES: u64 = 32 << 10;

/// A communicator as its rank holds it.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) job: Arc<Job>,
    /// Its number, unique among the communicators its members share.
    pub(crate) id: u32,
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    /// The members' ranks in the job.
    pub(crate) members: Vec<u32>,
    pub(crate) topology: Topology,
    /// The members' flags, slots and stages, when they all share a host.
    pub(crate) board: Option<Arc<Board>>,
    /// Names the group in tokens.
    slot: u16,
    stream: Mutex<Stream>,
    pub(crate) transfers: Mutex<Transfers>,
    /// How many messages that were sought had come to the job when receives without a number were last matched. Stored under the transfers' lock.
    pub(crate) looked: AtomicU64,
    /// Taken after the stream's and the transfers' lock, and before the transport's.
    staging: Mutex<Staging>,
    /// It has messages. Stored under its lock.
    stages: AtomicBool,
    /// Events for this group that somebody else has polled.
    pub(crate) inbox: Mutex<Vec<Event>>,
    /// There are some. Changed under the inbox's lock.
    pub(crate) has_mail: AtomicBool,
    /// Operations below this have ended.
    pub(crate) ended: AtomicU64,
    failed: AtomicBool,
    failure: OnceLock<Error>,
    closed: AtomicBool,
    /// Every member has an accelerator, by which it can reach the others' device memory.
    devices: AtomicBool,
    /// Asynchronous operations that have not ended: the progress thread looks after them.
    pub(crate) detached: AtomicUsize,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn settle(due: Option<Due>) {
    if let Some(due) = due {
        due.settle();
    }
}

/// The result of a wait without a limit.
#[inline]
pub(crate) fn to_the_end(result: Option<Result<(), Error>>) -> Result<(), Error> {
    result.unwrap_or_else(|| unreachable!("a wait without a limit goes on to the end"))
}

const TRANSFER_BIT: u64 = 1 << 51;

impl Group {
    pub(crate) fn new(job: &Arc<Job>, id: u32, members: Vec<u32>, board: Option<Arc<Board>>) -> Arc<Self> {
        let rank = members.iter().position(|&m| m == job.rank).unwrap_or(0) as u32;
        let ranks = members.len() as u32;
        let mapped = board.is_some() || ranks == 1;
        let of_members: Vec<u32> = members.iter().map(|&member| job.nodes[member as usize]).collect();
        let nodes = numa::nodes(&of_members).filter(|_| mapped);
        let topology = Topology { ranks, mapped, cores: job.cores, nodes };
        let group = Arc::new_cyclic(|group| {
            let (slot, index) = job.enrol(group.clone());
            let recorder = Recorder::new(job.board.as_deref(), job.rank as usize, index);
            Self {
                job: Arc::clone(job),
                id,
                rank,
                ranks,
                members,
                topology,
                board,
                slot,
                stream: Mutex::new(Stream::new(ranks as usize, recorder)),
                transfers: Mutex::default(),
                looked: AtomicU64::new(0),
                staging: Mutex::default(),
                stages: AtomicBool::new(false),
                inbox: Mutex::default(),
                has_mail: AtomicBool::new(false),
                ended: AtomicU64::new(0),
                failed: AtomicBool::new(false),
                failure: OnceLock::new(),
                closed: AtomicBool::new(false),
                devices: AtomicBool::new(false),
                detached: AtomicUsize::new(0),
            }
        });
        // A faster peer's failure may be older than this rank's part of the communicator.
        let failure = lock(&job.early).remove(&id);
        if let Some(failure) = failure {
            group.told(failure);
        }
        group
    }

    /// Names a chunk's message in the transport's completions.
    pub(crate) fn token(&self, step: u32, chunk: u32) -> Token {
        debug_assert!(step < 1 << 24 && chunk < 1 << 27);
        Token(u64::from(self.slot) << 52 | u64::from(step) << 27 | u64::from(chunk))
    }

    /// Names a point-to-point message.
    pub(crate) fn transfer_token(&self, index: u32, chunk: u32) -> Token {
        Token(u64::from(self.slot) << 52 | TRANSFER_BIT | u64::from(index) << 27 | u64::from(chunk))
    }

    pub(crate) const fn slot_of(token: Token) -> u16 {
        (token.0 >> 52) as u16
    }

    pub(crate) const fn is_transfer(token: Token) -> bool {
        token.0 & TRANSFER_BIT != 0
    }

    pub(crate) const fn split_token(token: Token) -> (u32, u32) {
        ((token.0 >> 27 & 0xff_ffff) as u32, (token.0 & 0x7ff_ffff) as u32)
    }

    /// The transfer's place and chunk that a token names.
    pub(crate) const fn split_transfer(token: Token) -> (u32, u32) {
        ((token.0 >> 27 & 0xff_ffff) as u32, (token.0 & 0x7ff_ffff) as u32)
    }

    pub(crate) const fn slot(&self) -> u16 {
        self.slot
    }

    /// An error when nothing may be started.
    #[inline]
    pub(crate) fn usable(&self, operation: &'static str) -> Result<(), Error> {
        if fork::is_forked() {
            return Err(Error::Forked { rank: self.job.rank });
        }
        if self.failed.load(Ordering::Relaxed)
            && let Some(error) = self.failure()
        {
            return Err(error);
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::InvalidArgument {
                operation,
                argument: "the communicator",
                problem: Problem::Finalized,
            });
        }
        Ok(())
    }

    /// Asked under the stream's or the transfers' lock, under which a failure gives up what is under way: what is posted after
    /// that would lend memory that nobody takes back.
    #[inline]
    pub(crate) fn still_usable(&self) -> Result<(), Error> {
        if self.failed.load(Ordering::Relaxed) { self.failure().map_or(Ok(()), Err) } else { Ok(()) }
    }

    /// Whether members lend each other device memory.
    pub(crate) fn uses_devices(&self) -> bool {
        self.devices.load(Ordering::Relaxed)
    }

    /// Every member has an accelerator now.
    pub(crate) fn use_devices(&self) {
        self.devices.store(true, Ordering::Relaxed);
        lock(&self.stream).forget_plans();
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Why the communicator is unusable, if it is.
    pub(crate) fn failure(&self) -> Option<Error> {
        if self.failed.load(Ordering::Acquire) { self.failure.get().cloned() } else { None }
    }

    /// Runs a call to its end, driving it from this thread.
    #[inline]
    pub(crate) fn run(&self, request: &RawRequest) -> Result<(), Error> {
        let mut stream = lock(&self.stream);
        self.still_usable()?;
        // What is refused here is refused on every rank alike, or is this caller's mistake: nobody waits for it.
        let pending = stream.admit(self, request, false)?;
        let sequence = stream.enter(self, pending);
        to_the_end(self.drive_to(sequence, stream, Waiter::new(&self.job)))
    }

    /// As [`run`](Self::run), for `time` at most: what has not ended by then goes on as if it had been posted, under the number returned.
    pub(crate) fn run_for(&self, request: &RawRequest, time: Duration) -> Result<Option<u64>, Error> {
        let mut stream = lock(&self.stream);
        self.still_usable()?;
        let pending = stream.admit(self, request, false)?;
        let sequence = stream.enter(self, pending);
        if let Some(result) = self.drive_to(sequence, stream, Waiter::limited(&self.job, time)) {
            return result.map(|()| None);
        }
        self.let_go(|| {
            let mut stream = lock(&self.stream);
            if stream.let_go(sequence) {
                self.detached.fetch_add(1, Ordering::AcqRel);
            }
        })?;
        Ok(Some(sequence))
    }

    /// Leaves what a caller has driven so far to the progress thread. Without one nobody would end it: then everything fails.
    pub(crate) fn let_go(&self, count: impl FnOnce()) -> Result<(), Error> {
        self.job.start_progress().inspect_err(|error| self.fail(error.clone(), true))?;
        count();
        self.job.kick_progress(Kick::Soon);
        Ok(())
    }

    /// Waits for the end of an operation posted before.
    pub(crate) fn wait(&self, sequence: u64) -> Result<(), Error> {
        to_the_end(self.wait_with(sequence, Waiter::new(&self.job)))
    }

    /// The same as long as `waiter` does; `None` when it has given up.
    pub(crate) fn wait_with(&self, sequence: u64, waiter: Waiter) -> Option<Result<(), Error>> {
        if self.ended.load(Ordering::Acquire) > sequence {
            return Some(Ok(()));
        }
        self.drive_to(sequence, lock(&self.stream), waiter)
    }

    fn drive_to<'a>(
        &'a self,
        sequence: u64,
        mut stream: MutexGuard<'a, Stream>,
        mut waiter: Waiter,
    ) -> Option<Result<(), Error>> {
        // While somebody waits here the progress thread leaves the communicator alone: two drivers on one lock, perhaps on one
        // core, would only be in each other's way.
        stream.waiters += 1;
        let mut engine_works = false;
        loop {
            let mut folded = false;
            match self.spin(&mut stream, sequence, &mut waiter) {
                Ok(true) => {
                    stream.ring(self);
                    stream.waiters -= 1;
                    let left = stream.waiters == 0 && self.is_detached();
                    let due = stream.due(sequence + 1, false);
                    drop(stream);
                    settle(due);
                    waiter.over(&self.job);
                    if left {
                        self.job.kick_progress(Kick::Soon);
                    }
                    return Some(Ok(()));
                }
                Ok(false) => {
                    engine_works = stream.engine_works();
                    let folds = stream.has_piece();
                    drop(stream);
                    folded = folds && self.fold();
                }
                Err(error) => {
                    drop(stream);
                    self.fail(error, true);
                }
            }
            if let Some(error) = self.failure() {
                lock(&self.stream).waiters -= 1;
                waiter.over(&self.job);
                return Some(Err(error));
            }
            if folded {
                waiter.moved(&self.job);
                stream = lock(&self.stream);
                continue;
            }
            if !waiter.pause(self, engine_works) {
                lock(&self.stream).waiters -= 1;
                waiter.over(&self.job);
                self.job.kick_progress(Kick::Soon);
                return None;
            }
            stream = lock(&self.stream);
        }
    }

    /// Advances for about two microseconds. Whether operation `sequence` has ended.
    #[inline]
    fn spin(&self, stream: &mut Stream, sequence: u64, waiter: &mut Waiter) -> Result<bool, Error> {
        for _ in 0..waiter.spins(SPINS) {
            let status = stream.advance(self)?;
            if self.ended.load(Ordering::Relaxed) > sequence {
                return Ok(true);
            }
            if stream.has_piece() || self.failed.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if status == Status::Moved {
                waiter.moved(&self.job);
            }
        }
        Ok(false)
    }

    /// Takes the stream as far as it goes, unless somebody else does. Used by futures and by the progress thread.
    pub(crate) fn try_drive(&self) -> Status {
        let Ok(stream) = self.stream.try_lock() else { return Status::Moved };
        self.drive(stream)
    }

    /// Takes on what an engine does for the operation under way, and nothing else: for a thread that must not be away for long.
    pub(crate) fn try_fly(&self) {
        let Ok(mut stream) = self.stream.try_lock() else { return };
        if stream.engine_works()
            && let Err(error) = stream.keep_flying(self)
        {
            drop(stream);
            self.fail(error, true);
        }
    }

    /// Whether an engine does some of the operation under way, as far as can be seen without waiting.
    pub(crate) fn engine_works(&self) -> bool {
        self.stream.try_lock().is_ok_and(|stream| stream.engine_works())
    }

    fn drive<'a>(&'a self, mut stream: MutexGuard<'a, Stream>) -> Status {
        loop {
            match stream.advance(self) {
                Ok(status) => {
                    stream.ring(self);
                    let due = stream.due(self.ended.load(Ordering::Relaxed), false);
                    let folds = stream.has_piece();
                    drop(stream);
                    settle(due);
                    if !(folds && self.fold()) {
                        return status;
                    }
                }
                Err(error) => {
                    drop(stream);
                    self.fail(error, true);
                    return Status::Idle;
                }
            }
            stream = lock(&self.stream);
        }
    }

    /// Does the Combine that needs an operator of the program's own, calling that without the lock. Whether there was one, for this thread.
    fn fold(&self) -> bool {
        let mut stream = lock(&self.stream);
        let mut any = false;
        while let Some(mut piece) = stream.next_piece() {
            drop(stream);
            any = true;
            if piece.fold().is_err() {
                let reason = AbortReason::OperatorPanicked;
                self.fail(Error::Aborted { communicator: self.id, by: self.job.rank, reason }, true);
            }
            stream = lock(&self.stream);
            stream.folded(piece);
        }
        any
    }

    /// Gives a call its place in the order and begins it if nothing is before it. The progress thread sees to its end.
    pub(crate) fn post(&self, request: &RawRequest) -> Result<u64, Error> {
        self.job.start_progress()?;
        let mut stream = lock(&self.stream);
        self.still_usable()?;
        let pending = stream.admit(self, request, true)?;
        self.detached.fetch_add(1, Ordering::AcqRel);
        // A small operation may end at once. A large one would keep the caller from what it wants to do meanwhile, and so may an
        // operator of the program's own.
        if pending.plan.series.bytes() > INLINE_ISSUE_BYTES || pending.plan.operator.is_some() {
            let sequence = stream.post(pending);
            drop(stream);
            self.job.kick_progress(Kick::Now);
            return Ok(sequence);
        }
        let sequence = stream.enter(self, pending);
        self.drive(stream);
        if self.ended.load(Ordering::Acquire) <= sequence {
            self.job.kick_progress(Kick::Soon);
        }
        Ok(sequence)
    }

    /// Polls an operation posted before.
    pub(crate) fn poll(&self, sequence: u64, context: &Context<'_>) -> Poll<Result<(), Error>> {
        if self.ended.load(Ordering::Acquire) > sequence {
            return Poll::Ready(Ok(()));
        }
        self.try_drive();
        let mut stream = lock(&self.stream);
        // Under the lock nobody can end it between the look and the waker's place.
        if self.ended.load(Ordering::Acquire) > sequence {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = self.failure() {
            return Poll::Ready(Err(error));
        }
        stream.wake_at(sequence, context.waker());
        drop(stream);
        self.job.kick_progress(Kick::Soon);
        Poll::Pending
    }

    /// Keeps the memory of an operation whose future was dropped until nobody can touch it any more.
    pub(crate) fn keep(&self, sequence: u64, memory: Box<dyn Any + Send>) {
        let mut stream = lock(&self.stream);
        if self.ended.load(Ordering::Acquire) > sequence || self.failure().is_some() {
            drop(stream);
            drop(memory);
            return;
        }
        stream.keep(sequence, memory);
    }

    /// Makes the communicator unusable, gives up what is under way, wakes whoever waits, and tells the peers if `tell`.
    pub(crate) fn fail(&self, error: Error, tell: bool) {
        if self.failure.set(error.clone()).is_err() {
            // Somebody came first; wait until the memory is safe to give back.
            while !self.failed.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            return;
        }
        // Before anything that peers could take for another reason: memory that is taken back or freed.
        if tell {
            let failure = self.failure_for_peers(&error);
            let message = ToServer::Failed { communicator: self.id, members: self.members.clone(), failure };
            self.job.tell(&message);
        }
        let mut stream = lock(&self.stream);
        stream.abandon(self);
        self.failed.store(true, Ordering::Release);
        let due = stream.due(u64::MAX, true);
        drop(stream);
        let (wakers, memory) = lock(&self.transfers).abandon(self);
        settle(due);
        drop(memory);
        wakers.into_iter().for_each(std::task::Waker::wake);
        self.job.ring_self();
    }

    fn failure_for_peers(&self, error: &Error) -> Failure {
        let me = self.job.rank;
        match error {
            Error::Mismatch { sequence, ours, theirs, rank, .. } => Failure::Mismatch {
                sequence: *sequence,
                first: (me, [ours.what, ours.count]),
                second: (*rank, [theirs.what, theirs.count]),
            },
            Error::PeerFailed { rank, cause, .. } => {
                Failure::PeerFailed { rank: *rank, cause: cause.clone() }
            }
            Error::TimedOut { .. } => Failure::Aborted { by: me, reason: AbortReason::TimedOut },
            Error::Aborted { by, reason, .. } => Failure::Aborted { by: *by, reason: reason.clone() },
            Error::RegionRevoked { rank, segment, generation } => {
                Failure::RegionRevoked { region: (*rank, *segment), generation: *generation }
            }
            Error::System { errno, .. } => Failure::Aborted { by: me, reason: AbortReason::System(*errno) },
            _ => Failure::Aborted { by: me, reason: AbortReason::Requested },
        }
    }

    /// A peer has told that the communicator failed.
    pub(crate) fn told(&self, failure: Failure) {
        let error = match failure {
            Failure::PeerFailed { rank, cause } => lock(&self.stream).peer_failed(self, rank, cause),
            Failure::Aborted { by, reason: AbortReason::TimedOut } => self
                .as_late(by)
                .unwrap_or(Error::Aborted { communicator: self.id, by, reason: AbortReason::TimedOut }),
            Failure::Aborted { by, reason } => Error::Aborted { communicator: self.id, by, reason },
            Failure::RegionRevoked { region: (rank, segment), generation } => {
                Error::RegionRevoked { rank, segment, generation }
            }
            Failure::Mismatch { sequence, first, second } => {
                let print =
                    |words: [u64; 2]| windlass_collectives::Fingerprint { what: words[0], count: words[1] };
                // Messages are numbered apart: what this rank calls at the same number has nothing to do with them.
                let message = print(first.1).call().is_some_and(|c| c.collective.is_point_to_point());
                let own = lock(&self.stream)
                    .active()
                    .filter(|a| a.sequence == sequence && !message)
                    .map(|a| a.fingerprint);
                // The two differ, so this rank's call is at most one of them.
                let second_is_ours =
                    own == Some(print(second.1)) || own.is_none() && second.0 == self.job.rank;
                let (ours, (rank, theirs)) =
                    if second_is_ours { (second.1, first) } else { (first.1, second) };
                let ours = own.unwrap_or(print(ours));
                Error::Mismatch { communicator: self.id, sequence, ours, theirs: print(theirs), rank }
            }
        };
        self.fail(error, false);
    }

    /// Takes messages' completions, unless somebody else does.
    pub(crate) fn try_deliver(&self) -> Result<bool, Error> {
        let Ok(mut stream) = self.stream.try_lock() else { return Ok(false) };
        let moved = self.job.deliver(self, &mut stream);
        let due = stream.due(self.ended.load(Ordering::Relaxed), false);
        drop(stream);
        settle(due);
        moved
    }

    pub(crate) fn with_stream<R>(&self, f: impl FnOnce(&mut Stream) -> R) -> R {
        f(&mut lock(&self.stream))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if fork::is_forked() {
            // A child's drops are inert: what they would unmap, close and join is the parent's, or is not there.
            std::mem::forget((Arc::clone(&self.job), self.board.take()));
            return;
        }
        self.job.retire(self.slot);
        lock(&self.stream).close(self);
    }
}
