//! The ranks that do something together, and what they can do.

use std::any::Any;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use windlass_collectives::{Choice, Collective};
use windlass_kernels::{DataType, Element, ReduceOp};
use windlass_memory::accelerator::Accelerator;
use windlass_transports::shm::Board;

use crate::bootstrap::Identity;
use crate::config::Config;
use crate::device::Device;
use crate::error::{AbortReason, Error, Failed, JoinError, PeerCause};
use crate::fork;
use crate::group::{Group, lock};
use crate::job::{Job, group_shape};
use crate::memory::{Buffer, Memory, MemoryMut, Span};
use crate::operation::Operation;
use crate::registry::Carriers;
use crate::request::RawRequest;
use crate::scope::Scope;

/// A tag tells point-to-point messages between the same two ranks apart. Below `u32::MAX`.
pub type Tag = u32;

/// A group of ranks, as one of them holds it.
///
/// Clones are the same communicator. The order of the calls on it, over all clones, is the order in which the collectives run; all ranks must
/// make the same calls in the same order, and are told by [`Error::Mismatch`] when they do not. Different communicators are
/// independent of each other.
#[derive(Clone, Debug)]
pub struct Communicator {
    group: Arc<Group>,
    /// How long a call by this handle may take, if not as long as the configuration says.
    timeout: Option<Duration>,
}

static WORLD: Mutex<Weak<Group>> = Mutex::new(Weak::new());

/// Joins the job that the environment describes and returns the communicator of all its ranks.
///
/// A process started by `windlass run` or by torchrun finds its job there; any other is a job of one. A second call returns the same
/// communicator while it lives.
///
/// # Errors
/// See [`JoinError`].
pub fn init() -> Result<Communicator, JoinError> {
    let mut world = lock(&WORLD);
    if let Some(group) = world.upgrade() {
        return Ok(Communicator::of(group));
    }
    let communicator = Communicator::join(&Identity::from_environment()?, Config::from_environment()?)?;
    *world = Arc::downgrade(&communicator.group);
    Ok(communicator)
}

impl Communicator {
    /// Joins a job as `identity`, with `config`.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub fn join(identity: &Identity, config: Config) -> Result<Self, JoinError> {
        let job = Job::join(identity, config)?;
        let board = if job.mapped { job.board.clone() } else { None };
        let members = (0..job.ranks).collect();
        Ok(Self::of(Group::new(&job, 0, members, board)))
    }

    /// A rank of a simulated job.
    pub(crate) fn simulated(
        rank: u32,
        ranks: u32,
        config: Config,
        board: Option<Arc<Board>>,
        carriers: Carriers,
    ) -> Result<Self, JoinError> {
        let job = Job::simulated(rank, ranks, config, board.clone(), carriers)?;
        Ok(Self::of(Group::new(&job, 0, (0..ranks).collect(), board)))
    }

    const fn of(group: Arc<Group>) -> Self {
        Self { group, timeout: None }
    }

    pub(crate) const fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The same communicator, with a time limit for each call made by this handle, from the call to its end: collectives and messages, waited for or
    /// not, in scopes and blocking. It takes the place of [`Config::timeout`], and may be longer. A call that does not end in time ends with
    /// [`Error::TimedOut`], which names whom it waited for, and leaves the communicator unusable on all its ranks, as the general limit does: a
    /// collective is never given up by one rank alone.
    ///
    /// Cheap, and meant to be used in passing. A call behind others on the communicator waits for these, and its time runs meanwhile.
    ///
    /// ```
    /// use std::time::Duration;
    /// let sums = windlass::threads(2, |comm| {
    ///     let operation = comm.with_timeout(Duration::from_secs(5)).all_reduce(vec![1.0f32], windlass::ReduceOp::Sum);
    ///     operation.wait().unwrap()[0]
    /// });
    /// assert_eq!(sums.unwrap(), [2.0; 2]);
    /// ```
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { group: Arc::clone(&self.group), timeout: Some(timeout) }
    }

    pub(crate) const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Gives `f` the request with this handle's time limit, unless it has one of its own.
    #[inline]
    pub(crate) fn limited<R>(&self, request: &RawRequest, f: impl FnOnce(&RawRequest) -> R) -> R {
        match self.timeout {
            Some(timeout) if request.timeout.is_none() => {
                f(&RawRequest { timeout: Some(timeout), ..*request })
            }
            _ => f(request),
        }
    }

    /// This process's rank, from 0.
    pub fn rank(&self) -> u32 {
        self.group.rank
    }

    /// How often streams of this rank broke and were opened anew, and what was sent once more.
    pub fn reconnects(&self) -> crate::Reconnects {
        self.group.job.reconnects()
    }

    /// The number of ranks.
    pub fn size(&self) -> u32 {
        self.group.ranks
    }

    /// The members' ranks in the job.
    pub fn members(&self) -> &[u32] {
        &self.group.members
    }

    /// The configuration of the job.
    pub fn config(&self) -> &Config {
        &self.group.job.config
    }

    /// What the ranks would do for a call of `count` elements, and what the model predicts.
    ///
    /// # Errors
    /// When the configuration asks for an algorithm that cannot serve it.
    pub fn explain(
        &self,
        collective: Collective,
        data_type: DataType,
        count: usize,
    ) -> Result<Choice, Error> {
        let request = RawRequest::new(collective, data_type, count);
        let call = windlass_collectives::Call {
            collective,
            data_type,
            op: request.op,
            count: count as u64,
            root: 0,
        };
        crate::engine::plan::choose(&self.group, &call)
    }

    /// Registered memory for `count` elements, zeroed: peers on this host reach it directly.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn alloc<T: Element>(&self, count: usize) -> Result<Buffer<T>, Error> {
        if fork::is_forked() {
            return Err(Error::Forked { rank: self.group.job.rank });
        }
        Buffer::allocate(&self.group.job.pool, count)
    }

    /// Takes an accelerator into use, so that operations of this communicator may use its memory where it lies. A collective call: each
    /// rank gives the accelerator that it uses, the [simulated](crate::accelerator::simulated) one if it has no other.
    ///
    /// # Errors
    /// `InvalidArgument` when this rank uses another one already; otherwise as any collective.
    pub fn attach(&self, accelerator: Arc<dyn Accelerator>) -> Result<Device, Error> {
        self.group.usable("attach")?;
        let device = Device::attach(&self.group.job, accelerator);
        // All or none: a rank that cannot, must not leave the others believing it could.
        let mut can = [u8::from(device.is_ok())];
        self.blocking().all_reduce(&mut can, ReduceOp::Min)?;
        if can[0] == 1 {
            self.group.use_devices();
        }
        device
    }

    /// The accelerator that this rank uses, by whichever communicator it was attached: to be attached to another one.
    pub fn accelerator(&self) -> Option<Arc<dyn Accelerator>> {
        self.group.job.attached.get().map(|attached| Arc::clone(&attached.accelerator))
    }

    /// The calls that block and borrow.
    pub const fn blocking(&self) -> Blocking<'_> {
        Blocking { communicator: self }
    }

    // ---- asynchronous operations ------------------------------------------------------------------------------------------

    pub(crate) fn start<M: Send + 'static>(&self, request: &RawRequest, memory: M) -> Operation<M> {
        let submitted = self.limited(request, |request| self.group.submit(request));
        Operation::new(Arc::clone(&self.group), submitted, memory)
    }

    /// Ends when all ranks have called it.
    pub fn barrier(&self) -> Operation<()> {
        self.start(&RawRequest::new(Collective::Barrier, DataType::U8, 0), ())
    }

    /// Sends to rank `to`. Ends when the memory may be used again.
    pub fn send<M: Memory>(&self, mut memory: M, to: u32, tag: Tag) -> Operation<M> {
        let span = memory.span();
        self.start(&in_place(Collective::Send, span).root(to).tag(tag), memory)
    }

    /// Receives from rank `from` a message of exactly the memory's length and type.
    pub fn recv<M: MemoryMut>(&self, mut memory: M, from: u32, tag: Tag) -> Operation<M> {
        let span = memory.span();
        self.start(&in_place(Collective::Recv, span).root(from).tag(tag), memory)
    }

    pub(crate) fn start_checked<M: Send + 'static>(
        &self,
        request: Result<RawRequest, Error>,
        memory: M,
    ) -> Operation<M> {
        match request {
            Ok(request) => self.start(&request, memory),
            Err(error) => Operation::new(Arc::clone(&self.group), Err(error), memory),
        }
    }

    /// Starts a call whose types are known at run time only.
    ///
    /// # Safety
    /// The request's memory is valid as the collective needs it, and is not accessed otherwise, until the operation ends. `keep` is given
    /// back at the end; it may own the memory.
    pub unsafe fn post<K: Send + Any>(&self, request: &RawRequest, keep: K) -> Operation<K> {
        self.start(request, keep)
    }

    /// Runs a call whose types are known at run time only, driving it from this thread for `time` at most: as quick as [`Blocking::perform`] where
    /// that suffices. One that has not ended by then goes on, and comes back. For callers that must look after something else now and then,
    /// such as signals.
    ///
    /// # Errors
    /// The operation, when it has not ended.
    ///
    /// # Safety
    /// As [`post`](Self::post).
    pub unsafe fn perform_for<K: Send + Any>(
        &self,
        request: &RawRequest,
        keep: K,
        time: Duration,
    ) -> Result<Result<K, Failed<K>>, Operation<K>> {
        match self.limited(request, |request| self.group.perform_for(request, time)) {
            Ok(None) => Ok(Ok(keep)),
            Ok(Some(kind)) => Err(Operation::new(Arc::clone(&self.group), Ok(kind), keep)),
            Err(error) => Ok(Err(Failed { error, memory: keep })),
        }
    }

    /// Runs `f`, in which operations may borrow memory, and waits for all of them before it returns, also when `f` panics.
    pub fn scope<'env, R>(&self, f: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> R) -> R {
        let scope = Scope::new(self);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&scope)));
        scope.wait_all();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    // ---- communicators -------------------------------------------------------------------------------------------------------

    /// Makes a communicator of all ranks that give the same `colour`, ranked by `key`, then by rank. With `None` a rank takes part in the call but in no
    /// new communicator. A collective call: all ranks make it.
    ///
    /// # Errors
    /// As any collective.
    pub fn split(&self, colour: Option<u32>, key: i64) -> Result<Option<Self>, Error> {
        let group = &self.group;
        let mine = [colour.map_or(-1, i64::from), key];
        let mut all = vec![0i64; 2 * self.size() as usize];
        self.blocking().all_gather_into(&mine, &mut all)?;
        let entries: Vec<(i64, i64)> = all.chunks_exact(2).map(|c| (c[0], c[1])).collect();
        let id = self.agree_on_id(colour)?;
        let Some(colour) = colour.map(i64::from) else { return Ok(None) };
        let mut members: Vec<(i64, u32)> = (0..self.size())
            .filter(|&r| entries[r as usize].0 == colour)
            .map(|r| (entries[r as usize].1, r))
            .collect();
        members.sort_unstable();
        let members: Vec<u32> = members.into_iter().map(|(_, r)| group.members[r as usize]).collect();
        let board =
            if group.job.mapped && members.len() > 1 { Some(self.board_for(id, &members)?) } else { None };
        let new = Group::new(&group.job, id, members, board);
        if group.uses_devices() {
            // All of the old one's members have an accelerator, so all of the new one's have.
            new.use_devices();
        }
        Ok(Some(Self::of(new)))
    }

    /// A communicator of the same ranks, independent of this one. A collective call.
    ///
    /// # Errors
    /// As any collective.
    pub fn duplicate(&self) -> Result<Self, Error> {
        // Every rank gives a colour, so every rank gets a communicator.
        self.split(Some(0), i64::from(self.rank())).map(|split| split.unwrap_or_else(|| self.clone()))
    }

    /// A number that none of this communicator's ranks uses for a communicator, different for every colour.
    fn agree_on_id(&self, colour: Option<u32>) -> Result<u32, Error> {
        let group = &self.group;
        let sequence = group.with_stream(|s| s.next_sequence());
        for salt in 0u64.. {
            let mixed = [u64::from(group.id), sequence, u64::from(colour.unwrap_or(u32::MAX)), salt];
            let id = mixed.into_iter().fold(0x243f_6a88_85a3_08d3u64, |h, w| {
                let h = (h ^ w).wrapping_mul(0xff51_afd7_ed55_8ccd);
                h ^ h >> 33
            }) as u32;
            let mut free = [i32::from(id != 0 && !group.job.has_group(id))];
            self.blocking().all_reduce(&mut free, ReduceOp::Min)?;
            if free[0] == 1 {
                return Ok(id);
            }
        }
        unreachable!("some number below 2^64 is free")
    }

    fn board_for(&self, id: u32, members: &[u32]) -> Result<Arc<Board>, Error> {
        let job = &self.group.job;
        if members[0] != job.rank {
            return job.await_board(&self.group, id, &members[..1]);
        }
        let make = || {
            let segment = Board::create(group_shape(&job.config, members.len() as u32))?;
            job.share_board(id, &members[1..], &segment)?;
            Ok(Arc::new(Board::open(segment.descriptor())?))
        };
        // The others wait for the board: they must hear that none will come.
        make().inspect_err(|error: &Error| self.group.fail(error.clone(), true))
    }

    /// Makes the communicator unusable on all its ranks: whatever is under way ends with [`Error::Aborted`], here before this returns.
    pub fn abort(&self) {
        if fork::is_forked() {
            return;
        }
        let error = Error::Aborted {
            communicator: self.group.id,
            by: self.group.job.rank,
            reason: AbortReason::Requested,
        };
        self.group.fail(error, true);
    }

    /// Waits for everything under way and then for all ranks; later calls are refused. A collective call.
    ///
    /// # Errors
    /// As any collective.
    pub fn finalize(self) -> Result<(), Error> {
        self.blocking().barrier()?;
        self.group.close();
        Ok(())
    }

    pub(crate) fn abort_because(&self, reason: AbortReason) {
        let error = Error::Aborted { communicator: self.group.id, by: self.group.job.rank, reason };
        self.group.fail(error, true);
    }

    /// Which ranks of the job are known to have ended, and how.
    pub fn failed_ranks(&self) -> Vec<(u32, PeerCause)> {
        self.group.members.iter().filter_map(|&m| self.group.job.dead_among(&[m])).collect()
    }
}

impl RawRequest {
    pub(crate) const fn op(mut self, op: ReduceOp) -> Self {
        self.op = op;
        self
    }

    pub(crate) const fn root(mut self, root: u32) -> Self {
        self.root = root;
        self
    }

    pub(crate) const fn input_lengths(mut self, lengths: &[usize]) -> Self {
        self.input_lengths = lengths;
        self
    }

    pub(crate) const fn output_lengths(mut self, lengths: &[usize]) -> Self {
        self.output_lengths = lengths;
        self
    }

    pub(crate) const fn tag(mut self, tag: Tag) -> Self {
        self.tag = tag;
        self
    }
}

pub(crate) fn in_place(collective: Collective, span: Span) -> RawRequest {
    let request = RawRequest::new(collective, span.data_type, span.count);
    RawRequest {
        input: span.address,
        output: span.address,
        input_pieces: span.pieces,
        output_pieces: span.pieces,
        ..request
    }
}

pub(crate) fn shared<T: Element>(slice: &[T]) -> Span {
    Span::new(slice.as_ptr().cast_mut(), slice.len())
}

pub(crate) fn exclusive<T: Element>(slice: &mut [T]) -> Span {
    Span::new(slice.as_mut_ptr(), slice.len())
}

/// The calls that block and borrow. No thread is woken for them: the calling thread does the work.
#[derive(Clone, Copy, Debug)]
pub struct Blocking<'c> {
    pub(crate) communicator: &'c Communicator,
}

impl Blocking<'_> {
    #[inline]
    pub(crate) fn run(self, request: &RawRequest) -> Result<(), Error> {
        let communicator = self.communicator;
        communicator.limited(request, |request| communicator.group.perform(request))
    }

    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn barrier(self) -> Result<(), Error> {
        self.run(&RawRequest::new(Collective::Barrier, DataType::U8, 0))
    }

    /// Sends `memory` to rank `to`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn send<T: Element>(self, memory: &[T], to: u32, tag: Tag) -> Result<(), Error> {
        self.run(&in_place(Collective::Send, shared(memory)).root(to).tag(tag))
    }

    /// Receives from rank `from` a message of exactly `memory`'s length and type.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn recv<T: Element>(self, memory: &mut [T], from: u32, tag: Tag) -> Result<(), Error> {
        self.run(&in_place(Collective::Recv, exclusive(memory)).root(from).tag(tag))
    }

    /// Runs a call whose types are known at run time only.
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Safety
    /// The request's memory is valid as the collective needs it, and is not accessed otherwise, during the call.
    pub unsafe fn perform(self, request: &RawRequest) -> Result<(), Error> {
        self.run(request)
    }
}
