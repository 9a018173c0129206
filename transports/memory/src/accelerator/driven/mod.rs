//! An accelerator that windlass drives itself: what one in user space and those on memory of the kernel's exporters have in common.
//!
//! An [`Owner`] decides how regions move; the [`engine`] works on memory, its own and its peers'; a thread, or a test's steps, makes
//! both go on. What is mapped is mapped here alone.
//!
//! | module | one idea |
//! |---|---|
//! | `pages` | one generation of a region: a header, the bytes behind it, and who may look at them |
//! | `fault` | memory that the kernel takes away while it is looked at |
//! | `engine` | work, and the only addresses |
//! | `leaving` | memory on its way back to the system |
//! | `common` | what every owner keeps besides memory: clock, chance, notices, numbers |
//! | here | the lock around them, and the thread |
//!
//! One lock guards a device. Calls hold it for what they do; the engine's chunks and the owner's errands (copies, calls of the kernel) run
//! without it, in turns. Fences and notices are read without the lock.

pub(super) mod common;
mod engine;
pub(super) mod fault;
mod leaving;
pub(super) mod pages;
pub(super) mod random;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::accelerator::kernel::Driver;
use crate::accelerator::{
    Accelerator, AcceleratorError, Contents, DeviceRange, Drive, Export, Exported, Fence, Import, Movement,
    Notices, Operand, Region, Status, Ticket, Work,
};
use crate::{Promptness, serve};
use common::Common;
use engine::{Engine, Host, Turn};
use pages::{Identity, Pages};

/// How often a device with a thread looks at what nobody tells it of: start fences of the host, engines of other processes.
const LOOK_AGAIN: Duration = Duration::from_micros(100);

type Result<T> = std::result::Result<T, AcceleratorError>;

/// What a step leaves to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Next {
    /// Whether the next step has something to do at once.
    pub at_once: bool,
    /// When something is due otherwise.
    pub due: Option<Duration>,
    /// Whether something waits for others: a start fence, engines at work elsewhere, room.
    pub waiting: bool,
}

/// Whose memory a device has: which regions there are, where they are, and how they move. Called with the device's lock, but for
/// [`Owner::run`].
pub(super) trait Owner: fmt::Debug + Send + 'static {
    /// Something that takes long, and touches nothing but what it holds.
    type Errand: fmt::Debug + Send;
    /// What has come of it.
    type Ran: fmt::Debug + Send;

    /// What every owner keeps.
    fn common(&self) -> &Common;
    /// The same, to be changed.
    fn common_mut(&mut self) -> &mut Common;

    /// See [`Accelerator::allocate`].
    fn allocate(&mut self, bytes: u64) -> Result<Region>;
    /// See [`Accelerator::adopt`].
    fn adopt(&mut self, pages: Arc<Pages>) -> Result<Region> {
        drop(pages);
        Err(AcceleratorError::AdoptsNothing)
    }
    /// See [`Accelerator::free`].
    fn free(&mut self, region: Region) -> Result<()>;
    /// See [`Accelerator::status`].
    fn status(&self, region: Region) -> Result<Status>;
    /// A generation's memory, whatever its state; `Stale` for one that is gone.
    fn pages(&self, region: Region, generation: u32) -> Result<&Arc<Pages>>;
    /// The same, where it may be given to others.
    fn exportable(&self, range: &DeviceRange) -> Result<&Arc<Pages>>;
    /// Memory of its own that somebody wants to import.
    fn find(&self, identity: Identity) -> Option<&Arc<Pages>>;
    /// See [`Accelerator::acknowledge`].
    fn acknowledge(&mut self, ticket: Ticket) -> Result<()>;
    /// See [`Accelerator::refuse`].
    fn refuse(&mut self, ticket: Ticket) -> Result<()>;
    /// Moves a region as the mode has it.
    fn move_now(&mut self, region: Region) -> Result<()>;
    /// Takes a region's memory away.
    fn revoke_now(&mut self, region: Region, contents: Contents) -> Result<()>;
    /// See [`Accelerator::stale_stores`].
    fn stale_stores(&mut self) -> Option<u64>;
    /// See [`Accelerator::driver`].
    fn driver(&self) -> Option<Driver> {
        None
    }

    /// Does what is due. Returns when something will be, and whether something must be asked for again and again.
    fn step(&mut self) -> (Option<Duration>, bool);
    /// The next errand.
    fn errand(&mut self) -> Option<Self::Errand>;
    /// Without the lock.
    fn run(errand: &mut Self::Errand) -> Self::Ran;
    /// It is back. What it was about may have changed meanwhile.
    fn ran(&mut self, errand: Self::Errand, ran: Self::Ran);
    /// The device goes away, and all its memory with it.
    fn close(&mut self);
}

#[derive(Debug)]
struct State<O: Owner> {
    owner: O,
    engine: Engine,
    closed: bool,
}

/// What a device does next, for which it needs no lock.
#[derive(Debug)]
struct Doing<O: Owner> {
    errand: Option<(O::Errand, Option<O::Ran>)>,
    turn: Option<Turn>,
    next: Next,
}

impl<O: Owner> Doing<O> {
    fn run(&mut self) {
        if let Some((errand, ran)) = &mut self.errand {
            *ran = Some(O::run(errand));
        }
        if let Some(turn) = &mut self.turn {
            turn.run();
        }
    }
}

impl<O: Owner> State<O> {
    fn set_clock(&mut self, now: Duration) {
        let common = self.owner.common_mut();
        common.now = common.now.max(now);
    }

    /// Does what is due at once, and says what is to be done next.
    fn begin(&mut self, now: Duration) -> Doing<O> {
        self.set_clock(now);
        let (moves_due, moving) = self.owner.step();
        let turn = self.engine.take(self.owner.common_mut());
        let errand = self.owner.errand();
        let (fences_due, working) = self.engine.signal(self.owner.common());
        let due = [moves_due, fences_due].into_iter().flatten().min();
        let at_once = turn.is_some() || errand.is_some();
        let next = Next { at_once, due, waiting: moving || working };
        Doing { errand: errand.map(|errand| (errand, None)), turn, next }
    }

    /// It is done.
    fn end(&mut self, now: Duration, doing: Doing<O>) -> Next {
        self.set_clock(now);
        if let Some((errand, Some(ran))) = doing.errand {
            self.owner.ran(errand, ran);
        }
        // Whoever closes ends all work, and what has its turn is dropped with its fence signalled.
        if let Some(turn) = doing.turn.filter(|_| !self.closed) {
            self.engine.put(self.owner.common_mut(), turn);
        }
        doing.next
    }

    /// The same in one, for a device without a thread.
    fn step(&mut self, now: Duration) -> Next {
        let mut doing = self.begin(now);
        doing.run();
        let next = self.end(now, doing);
        // What has just been done may be all that something waited for.
        let (moves_due, moving) = self.owner.step();
        let (fences_due, working) = self.engine.signal(self.owner.common());
        let due = [moves_due, fences_due].into_iter().flatten().min();
        Next { due, waiting: moving || working, ..next }
    }
}

#[derive(Debug)]
struct Shared<O: Owner> {
    state: Mutex<State<O>>,
    /// The thread sleeps here.
    kick: Condvar,
    begin: Instant,
    stepped: bool,
}

impl<O: Owner> Shared<O> {
    fn lock(&self) -> MutexGuard<'_, State<O>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stepped {
            state.set_clock(self.begin.elapsed());
        }
        state
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.closed {
            let mut doing = state.begin(self.begin.elapsed());
            let next = doing.next;
            if next.at_once {
                drop(state);
                doing.run();
                state = self.lock();
                state.end(self.begin.elapsed(), doing);
                continue;
            }
            let due = next.due.map(|due| due.saturating_sub(self.begin.elapsed()));
            let pause = [due, next.waiting.then_some(LOOK_AGAIN)].into_iter().flatten().min();
            state = match pause {
                Some(pause) => self.kick.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0,
                None => self.kick.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// A device with its owner. When it is dropped, its memory dies for all who imported it, and work that has not ended ends with
/// [`AcceleratorError::Gone`].
pub(super) struct Driven<O: Owner> {
    shared: Arc<Shared<O>>,
    movement: Movement,
    thread: Option<JoinHandle<()>>,
}

impl<O: Owner> fmt::Debug for Driven<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {:x}, {:?}", self.shared.lock().owner.common().options.device, self.movement)
    }
}

impl<O: Owner> Driven<O> {
    /// A device with no memory allocated.
    ///
    /// # Panics
    /// When the system cannot start a thread.
    pub(super) fn new(owner: O) -> Self {
        let options = &owner.common().options;
        let (movement, stepped) = (options.movement, options.drive == Drive::Stepped);
        let state = State { owner, engine: Engine::default(), closed: false };
        let (state, kick) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { state, kick, begin: Instant::now(), stepped });
        let thread = (!stepped).then(|| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name("windlass-device".to_owned());
            let run = move || {
                // An engine waits for no processor.
                serve(Promptness::Works);
                shared.run();
            };
            builder.spawn(run).expect("a thread for the engine")
        });
        Self { shared, movement, thread }
    }

    /// A call under the lock, after which the thread looks around.
    pub(super) fn with<R>(&self, call: impl FnOnce(&mut O) -> R) -> R {
        let result = call(&mut self.shared.lock().owner);
        self.shared.kick.notify_one();
        result
    }

    /// One under the lock that gives the thread nothing to do.
    pub(super) fn look<R>(&self, call: impl FnOnce(&O) -> R) -> R {
        call(&self.shared.lock().owner)
    }

    /// See [`SimulatedAccelerator::step`](super::simulated::SimulatedAccelerator::step).
    pub(super) fn step(&self, now: Duration) -> Next {
        assert!(self.shared.stepped, "a device that is driven by its thread is not stepped");
        self.shared.lock().step(now)
    }
}

impl<O: Owner> Drop for Driven<O> {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.closed = true;
            state.engine.close();
            state.owner.close();
        }
        self.shared.kick.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

/// A device of the public interface: what it is asked, its [`Driven`] does.
pub(super) trait Drives: fmt::Debug + Send + Sync {
    type Owner: Owner;
    fn driven(&self) -> &Driven<Self::Owner>;
}

impl<D: Drives> Accelerator for D {
    fn movement(&self) -> Movement {
        self.driven().movement
    }

    fn now(&self) -> Duration {
        // Who asks for the time does not wait until a chunk or a move's copy has ended.
        let driven = self.driven();
        let stepped = driven.shared.stepped;
        if stepped { driven.look(|owner| owner.common().now) } else { driven.shared.begin.elapsed() }
    }

    fn listen(&self, notices: Arc<Notices>) {
        self.driven().with(|owner| owner.common_mut().notices = Some(notices));
    }

    fn allocate(&self, bytes: u64) -> Result<Region> {
        self.driven().with(|owner| owner.allocate(bytes))
    }

    fn adopt(&self, descriptor: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<Region> {
        let device = self.driven().look(|owner| owner.common().options.device);
        let pages = Pages::adopt(descriptor, Region::new(device, u64::MAX), offset, bytes)?;
        self.driven().with(|owner| owner.adopt(pages))
    }

    fn free(&self, region: Region) -> Result<()> {
        self.driven().with(|owner| owner.free(region))
    }

    fn status(&self, region: Region) -> Result<Status> {
        self.driven().look(|owner| owner.status(region))
    }

    fn export(&self, range: DeviceRange) -> Result<Export> {
        self.driven().look(|owner| {
            let pages = owner.exportable(&range)?;
            let DeviceRange { region, generation, offset, bytes } = range;
            if offset.checked_add(bytes).is_none_or(|end| end > pages.bytes) {
                return Err(AcceleratorError::OutOfRange { region, offset, bytes, limit: pages.bytes });
            }
            let exported = Exported { region, generation, offset: pages.data + offset, bytes };
            Ok(Export { descriptor: pages.descriptor()?, exported })
        })
    }

    fn import(&self, descriptor: BorrowedFd<'_>, exported: &Exported) -> Result<Import> {
        let identity = Identity::of(descriptor, exported)?;
        let known = {
            let state = self.driven().shared.lock();
            state.engine.mapped(&state.owner, identity, exported.generation)
        };
        // To map memory may take the system long: nobody waits for it with the lock.
        let opened = known.map_or_else(|| Pages::open(descriptor, exported), Ok)?;
        let mut state = self.driven().shared.lock();
        let State { engine, owner, .. } = &mut *state;
        engine.import(owner, identity, opened, exported)
    }

    fn release(&self, import: Import) -> Result<()> {
        let released = self.driven().shared.lock().engine.release(import);
        released.map(drop)
    }

    fn acknowledge(&self, ticket: Ticket) -> Result<()> {
        self.driven().with(|owner| owner.acknowledge(ticket))
    }

    fn refuse(&self, ticket: Ticket) -> Result<()> {
        self.driven().with(|owner| owner.refuse(ticket))
    }

    fn submit(&self, work: &Work<'_>) -> Result<Fence> {
        let fence = {
            let mut state = self.driven().shared.lock();
            let State { engine, owner, .. } = &mut *state;
            engine.submit(owner, work)
        };
        self.driven().shared.kick.notify_one();
        fence
    }

    fn read(&self, from: Operand, to: &mut [u8]) -> Result<()> {
        let copy = {
            let state = self.driven().shared.lock();
            state.engine.copy(&state.owner, from, Host::Read(to))?
        };
        copy.run()
    }

    fn write(&self, to: Operand, from: &[u8]) -> Result<()> {
        let copy = {
            let state = self.driven().shared.lock();
            state.engine.copy(&state.owner, to, Host::Write(from))?
        };
        copy.run()
    }

    fn stale_stores(&self) -> Option<u64> {
        self.driven().with(Owner::stale_stores)
    }

    fn driver(&self) -> Option<Driver> {
        self.driven().look(Owner::driver)
    }
}
