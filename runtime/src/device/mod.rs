//! Accelerators, and memory on them that operations use where it lies, while it moves.
//!
//! | module | one idea |
//! |---|---|
//! | [`address`] | how a call names memory that has no address |
//! | `adopt` | memory of another exporter |
//! | `buffer` | memory, as whoever owns it sees it |
//! | [`regions`] | the scheduler's machines for this rank's memory and its peers', joined to the accelerator and to the wire |
//! | [`reached`] | the same memory as NICs reach it |
//! | [`history`] | what moves have cost |
//!
//! # Threads
//! The accelerator's callback puts notices into a ring and wakes the *movement thread*, which hands them to the machines, watches their
//! deadlines, tells the peers, takes operations' flights on, and wakes whoever waits in an operation. Messages of peers are handed over by the
//! thread that listens to them. Whoever drives an operation does the same for both at each of its steps ([`Attached::attend`]), so that a
//! move goes on while those threads wait for a core. All of them, and the engine when it takes and gives back leases, hold the regions'
//! lock for a moment and never while they wait.

pub(crate) mod address;
mod adopt;
mod buffer;
mod history;
pub(crate) mod reached;
pub(crate) mod regions;

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use windlass_kernels::Element;
use windlass_memory::Promptness;
use windlass_memory::accelerator::{self, Accelerator, AcceleratorError, Notices, Operand};

use crate::bootstrap::protocol::RegionMessage;
use crate::engine::bind;
use crate::error::{Error, Problem};
use crate::fork;
use crate::group::lock;
use crate::job::Job;
use crate::job::news::RETRY;
use crate::memory::Buffer;
use crate::scheduler::{RegionError, RegionName};

pub use buffer::DeviceBuffer;
pub use history::Movements;
use regions::{Hold, Purpose, Regions};

/// Notices that may wait. When more come, the regions' status is asked for instead.
const NOTICES: usize = 4096;
/// The movement thread looks around this often even if nothing wakes it.
const LOOK_AROUND: Duration = Duration::from_millis(100);
/// What is done with device memory at a time. More delays a move, less costs more fences.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// The engine has this much to do at a time: one half of a task that runs, and one that follows at once. What waits in its queue holds
/// leases, for which a move would have to wait as well.
const ENGINE_DEPTH: usize = 2;

/// An accelerator that a rank's job uses.
#[derive(Debug)]
pub(crate) struct Attached {
    rank: u32,
    pub(crate) accelerator: Arc<dyn Accelerator>,
    regions: Mutex<Regions>,
    notices: Arc<Notices>,
    /// Whoever takes from the regions what peers are to be told holds it until they are told: what one says comes after what another
    /// has taken before.
    telling: Mutex<()>,
    wake: Arc<Wake>,
    /// What all streams together have given the engine, and not seen ended.
    engine_tasks: AtomicUsize,
}

/// Wakes the movement thread.
#[derive(Debug)]
struct Wake {
    event: OwnedFd,
    /// It sleeps, or is about to: nobody else needs a system call.
    asleep: AtomicBool,
    closing: AtomicBool,
    /// Peers are to be told something: changed under the regions' lock, and looked at without.
    unsaid: AtomicBool,
}

/// The regions, locked. If there is something to say afterwards, the movement thread is woken, once it could have the lock.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    regions: MutexGuard<'a, Regions>,
    _bell: Bell<'a>,
}

#[derive(Debug)]
struct Bell<'a>(&'a Wake);

impl Drop for Bell<'_> {
    fn drop(&mut self) {
        if self.0.unsaid.load(Ordering::Acquire) {
            self.0.ring();
        }
    }
}

impl Deref for Held<'_> {
    type Target = Regions;
    fn deref(&self) -> &Regions {
        &self.regions
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Regions {
        &mut self.regions
    }
}

impl Wake {
    /// Takes no lock, allocates nothing, does not wait: the counter is far from full.
    fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    fn sleep(&self, time: Duration) {
        let time =
            rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(time.min(LOOK_AROUND).subsec_nanos()) };
        let _ = poll(&mut [PollFd::new(&self.event, PollFlags::IN)], Some(&time));
        let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
    }
}

impl Attached {
    fn new(job: &Arc<Job>, accelerator: Arc<dyn Accelerator>) -> Result<Arc<Self>, Error> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::system("eventfd", errno))?;
        let no = || AtomicBool::new(false);
        let wake = Arc::new(Wake { event, asleep: no(), closing: no(), unsaid: no() });
        let bell = Arc::clone(&wake);
        let notices = Arc::new(Notices::new(NOTICES, Box::new(move || bell.ring())));
        accelerator.listen(Arc::clone(&notices));
        let regions = Regions::new(job, Arc::clone(&accelerator), Arc::clone(&notices), Arc::clone(&wake));
        let (regions, telling) = (Mutex::new(regions), Mutex::default());
        let engine_tasks = AtomicUsize::new(0);
        Ok(Arc::new(Self { rank: job.rank, accelerator, regions, notices, telling, wake, engine_tasks }))
    }

    fn start(self: &Arc<Self>, job: &Arc<Job>) -> Result<(), Error> {
        let (attached, job) = (Arc::downgrade(self), Arc::downgrade(job));
        let spawned = std::thread::Builder::new()
            .name("wl-movement".into())
            .stack_size(256 << 10)
            .spawn(move || watch(&attached, &job));
        spawned.map(drop).map_err(|error| Error::System {
            call: "pthread_create",
            errno: error.raw_os_error().unwrap_or(0),
            hint: "raise the limit on processes and threads: ulimit -u",
        })
    }

    /// This rank, in the job.
    pub(crate) const fn rank(&self) -> u32 {
        self.rank
    }

    pub(crate) fn regions(&self) -> Held<'_> {
        Held { regions: lock(&self.regions), _bell: Bell(&self.wake) }
    }

    /// Hands on what the accelerator has said, and sends what follows, without the lock: who is told may be slow. When to come again.
    pub(crate) fn turn(&self, job: &Job) -> Option<Duration> {
        self.turn_alone(job, &lock(&self.telling))
    }

    fn turn_alone(&self, job: &Job, _telling: &MutexGuard<'_, ()>) -> Option<Duration> {
        let (deadline, outbox) = {
            let mut regions = self.regions();
            regions.turn();
            (regions.deadline(), regions.take_outbox())
        };
        for (to, message, descriptor) in outbox {
            job.tell_region(to, message, descriptor);
        }
        self.take_from_nics(job);
        deadline
    }

    /// Takes memory that is wanted back from NICs. What follows is told at the next turn.
    fn take_from_nics(&self, job: &Job) {
        let wanted = self.regions().take_wanted();
        for (segment, slots) in wanted {
            let within =
                |memory: *const u8| address::decode(memory).is_some_and(|(slot, _)| slots.contains(&slot));
            job.release(regions::key(segment), &within);
            self.regions().released(segment);
        }
    }

    /// Whether a stream that has given the engine something may give it more. One that has not may always: it waits for nobody else's work
    /// but in the engine's own order.
    pub(crate) fn engine_has_room(&self) -> bool {
        self.engine_tasks.load(Ordering::Relaxed) < ENGINE_DEPTH
    }

    pub(crate) fn engine_begun(&self) {
        self.engine_tasks.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn engine_ended(&self) {
        self.engine_tasks.fetch_sub(1, Ordering::Relaxed);
    }

    /// For whoever drives an operation, at each step: takes in what the accelerator and the peers have said, and answers, if there is anything
    /// and nobody else does.
    #[inline]
    pub(crate) fn attend(&self, job: &Job) {
        let mail = job.has_mail();
        if mail || !self.notices.is_empty() || self.wake.unsaid.load(Ordering::Acquire) {
            self.answer(job, mail);
        }
    }

    #[cold]
    fn answer(&self, job: &Job, mail: bool) {
        if mail {
            job.take_mail();
        }
        match self.telling.try_lock() {
            Ok(telling) => drop(self.turn_alone(job, &telling)),
            // He may have taken everything already.
            Err(_) => self.wake.ring(),
        }
        if mail {
            job.ring_self();
        }
    }

    /// Whoever hands on what a peer has said takes a [`turn`](Self::turn), which answers.
    pub(crate) fn hear(&self, from: u32, message: RegionMessage, descriptor: Option<OwnedFd>) {
        lock(&self.regions).hear(from, message, descriptor);
    }

    pub(crate) fn lose(&self, rank: u32) {
        self.regions().lose(rank);
        self.wake.ring();
    }

    /// Copies to the host what an address of this rank stands for, host memory or device memory. Waits while that is on its way.
    pub(crate) fn read(&self, from: *const u8, to: &mut [u8], timeout: Duration) -> Result<(), Error> {
        let Some((slot, offset)) = address::decode(from) else {
            bind::copy(from, to.as_mut_ptr(), to.len());
            return Ok(());
        };
        let name = RegionName { owner: self.rank, segment: self.regions().segment(slot) };
        self.access(name, "read", timeout, offset, to.len(), |from, piece| {
            self.accelerator.read(from, &mut to[piece])
        })
    }

    /// As [`read`](Self::read), the other way.
    pub(crate) fn write(&self, to: *mut u8, from: &[u8], timeout: Duration) -> Result<(), Error> {
        let Some((slot, offset)) = address::decode(to) else {
            bind::copy(from.as_ptr(), to, from.len());
            return Ok(());
        };
        let name = RegionName { owner: self.rank, segment: self.regions().segment(slot) };
        self.access(name, "write", timeout, offset, from.len(), |to, piece| {
            self.accelerator.write(to, &from[piece])
        })
    }

    /// Does something with each piece of one's own memory while it stays in its place, as often as it takes. A move waits for one piece.
    fn access(
        &self,
        name: RegionName,
        operation: &'static str,
        timeout: Duration,
        offset: u64,
        bytes: usize,
        mut f: impl FnMut(Operand, Range<usize>) -> Result<(), AcceleratorError>,
    ) -> Result<(), Error> {
        let begin = Instant::now();
        let mut holds: Vec<Hold> = Vec::new();
        let mut done = 0;
        while done < bytes {
            let piece = done..bytes.min(done + PIECE_BYTES);
            if self.regions().hold(std::iter::once((name, u32::MAX)), &mut holds)? {
                let result = match holds[0].operand(offset + piece.start as u64) {
                    Some(operand) => f(operand, piece.clone()),
                    None => Err(AcceleratorError::Gone),
                };
                let gone = result.as_ref().err().and_then(gone);
                self.regions().give_back(&mut holds, gone);
                match result {
                    Ok(()) => {
                        done = piece.end;
                        continue;
                    }
                    Err(_) if gone.is_some() => {}
                    Err(error) => return Err(refused(&error)),
                }
            }
            let after = begin.elapsed();
            if after > timeout {
                let waiting_on = self.regions().waiting_on(name);
                return Err(Error::TimedOut { operation, sequence: 0, communicator: 0, waiting_on, after });
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if fork::is_forked() {
            return;
        }
        self.regions().close();
        self.wake.closing.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake.event, &1u64.to_ne_bytes());
    }
}

/// The movement thread's life.
fn watch(attached: &Weak<Attached>, job: &Weak<Job>) {
    windlass_memory::serve(Promptness::Answers);
    let mut looked = Instant::now();
    loop {
        let Some((attached, job)) = attached.upgrade().zip(job.upgrade()) else { return };
        // What one look asks the next one hears: both within the time.
        let time = job.config.rdma_watch;
        if !time.is_zero() && looked.elapsed() >= time / 2 {
            looked = Instant::now();
            for key in job.probe() {
                attached.regions().vanished(key);
            }
        }
        attached.wake.asleep.store(true, Ordering::SeqCst);
        let mut deadline = attached.turn(&job).unwrap_or(LOOK_AROUND);
        if job.see_to_mail() {
            deadline = deadline.min(RETRY);
        }
        // Fences end without a word to the machines. Whoever waits for one may wait for a core as well; the leases that the work has held
        // go back now, and so may the memory.
        for group in job.living_groups() {
            group.try_fly();
        }
        if attached.wake.unsaid.load(Ordering::Acquire) {
            attached.turn(&job);
        }
        job.ring_self();
        let wake = Arc::clone(&attached.wake);
        drop((attached, job));
        wake.sleep(deadline);
        if wake.closing.load(Ordering::Acquire) {
            return;
        }
    }
}

/// What an operation's error is called that memory caused.
pub(crate) fn error_of(error: RegionError) -> Error {
    match error {
        RegionError::RegionRevoked { region, generation }
        | RegionError::NotReturned { region, generation, .. } => {
            Error::RegionRevoked { rank: region.owner, segment: region.segment, generation: generation.0 }
        }
        RegionError::Unregistrable { errno, .. } => Error::System {
            call: "the accelerator",
            errno,
            hint: "a buffer could not be exported or imported; if descriptors have run out, raise their limit: ulimit -n",
        },
    }
}

/// What an accelerator's own error is called.
pub(crate) fn refused(error: &AcceleratorError) -> Error {
    let hint = match error {
        AcceleratorError::OutOfMemory { .. } => {
            "the device is full: free buffers, or use a device with more memory"
        }
        AcceleratorError::Unreachable { .. } => {
            "the processor does not reach this memory, and windlass has no engine for it: use an operation that RDMA does from where it lies, or copy it to host memory"
        }
        _ => "the accelerator refused; look at its own messages",
    };
    Error::System { call: "the accelerator", errno: errno(error), hint }
}

/// The memory that went away, if that is what the error says.
pub(crate) fn gone(error: &AcceleratorError) -> Option<accelerator::Region> {
    match error {
        AcceleratorError::Stale { region, .. }
        | AcceleratorError::Early { region, .. }
        | AcceleratorError::Away { region } => Some(*region),
        _ => None,
    }
}

pub(crate) fn errno(error: &AcceleratorError) -> i32 {
    use rustix::io::Errno;
    match error {
        AcceleratorError::OutOfMemory { .. } => Errno::NOMEM.raw_os_error(),
        AcceleratorError::System(error) => error.errno,
        AcceleratorError::Unreachable { .. } => Errno::OPNOTSUPP.raw_os_error(),
        AcceleratorError::Gone => Errno::NODEV.raw_os_error(),
        _ => Errno::INVAL.raw_os_error(),
    }
}

/// An accelerator in use by this rank: see [`Communicator::attach`](crate::Communicator::attach). Clones are the same.
#[derive(Clone, Debug)]
pub struct Device {
    job: Arc<Job>,
    attached: Arc<Attached>,
}

impl Device {
    /// Takes an accelerator into use.
    pub(crate) fn attach(job: &Arc<Job>, accelerator: Arc<dyn Accelerator>) -> Result<Self, Error> {
        if let Some(attached) = job.attached.get()
            && Arc::ptr_eq(&attached.accelerator, &accelerator)
        {
            return Ok(Self { job: Arc::clone(job), attached: Arc::clone(attached) });
        }
        let other = Error::InvalidArgument {
            operation: "attach",
            argument: "the accelerator",
            problem: Problem::OtherAccelerator,
        };
        if job.attached.get().is_some() {
            return Err(other);
        }
        let attached = Attached::new(job, accelerator)?;
        if !job.attach(Arc::clone(&attached)) {
            return Err(other);
        }
        if !job.is_simulated() {
            if !attached.accelerator.movement().asks() {
                job.try_devices(&*attached.accelerator);
            }
            attached.start(job)?;
        }
        Ok(Self { job: Arc::clone(job), attached })
    }

    /// Device memory for `count` elements, of unspecified contents. Peers of this host reach it by their own accelerators.
    ///
    /// # Errors
    /// When the device is full.
    pub fn alloc<T: Element>(&self, count: usize) -> Result<DeviceBuffer<T>, Error> {
        if fork::is_forked() {
            return Err(Error::Forked { rank: self.job.rank });
        }
        let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
        let segment = self.attached.regions().allocate(bytes, self.purpose())?;
        self.buffer("alloc", segment, 0, count)
    }

    /// Where peers cannot map it, nobody needs to know of it.
    fn purpose(&self) -> Purpose {
        if self.job.mapped { Purpose::Lent } else { Purpose::Kept }
    }

    fn buffer<T: Element>(
        &self,
        call: &'static str,
        segment: u32,
        begin: u64,
        count: usize,
    ) -> Result<DeviceBuffer<T>, Error> {
        let mut regions = self.attached.regions();
        let Some(slot) = regions.address(segment, begin) else {
            regions.free(segment);
            let hint = "a process has at most 65534 device buffers at a time: put several tensors into one";
            return Err(Error::System { call, errno: rustix::io::Errno::NOSPC.raw_os_error(), hint });
        };
        drop(regions);
        Ok(DeviceBuffer { device: self.clone(), segment, slot, count, element: PhantomData })
    }

    /// Registered host memory of the same rank, as [`Communicator::alloc`](crate::Communicator::alloc) gives: to copy to and from.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn alloc_registered<T: Element>(&self, count: usize) -> Result<Buffer<T>, Error> {
        if fork::is_forked() {
            return Err(Error::Forked { rank: self.job.rank });
        }
        Buffer::allocate(&self.job.pool, count)
    }

    /// How often this rank's memory has moved, and what that has cost.
    pub fn movements(&self) -> Movements {
        self.attached.regions().history.movements()
    }
}
