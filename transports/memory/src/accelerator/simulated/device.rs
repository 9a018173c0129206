//! The device as its users see it: one lock around its memory and its engine, and the thread that drives it.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine::{Engine, Host, Turn};
use super::errand::{Errand, Ran};
use super::memory::Memory;
use super::pages::Pages;
use super::vacated::Breach;
use super::{Counters, Drive, Options};
use crate::accelerator::{
    Accelerator, AcceleratorError, Contents, DeviceRange, Export, Exported, Fence, Import, Movement, Notices,
    Operand, Region, Status, Ticket, Work,
};
use crate::{Promptness, serve};

/// How often a device with a thread looks at what nobody tells it of: start fences of the host, engines of other processes.
const LOOK_AGAIN: Duration = Duration::from_micros(100);

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

#[derive(Debug)]
struct State {
    memory: Memory,
    engine: Engine,
    closed: bool,
}

/// What a device does next, for which it needs no lock.
#[derive(Debug)]
struct Doing {
    errand: Option<(Errand, Option<Ran>)>,
    turn: Option<Turn>,
    next: Next,
}

impl Doing {
    fn run(&mut self) {
        if let Some((errand, ran)) = &mut self.errand {
            *ran = Some(errand.run());
        }
        if let Some(turn) = &mut self.turn {
            turn.run();
        }
    }
}

impl State {
    /// Does what is due at once, and says what is to be done next.
    fn begin(&mut self, now: Duration) -> Doing {
        self.memory.now = self.memory.now.max(now);
        let (moves_due, moving) = self.memory.step();
        let turn = self.engine.take(&mut self.memory);
        let errand = self.memory.errand();
        let (fences_due, working) = self.engine.signal(&self.memory);
        let due = [moves_due, fences_due].into_iter().flatten().min();
        let at_once = turn.is_some() || errand.is_some();
        let next = Next { at_once, due, waiting: moving || working };
        Doing { errand: errand.map(|errand| (errand, None)), turn, next }
    }

    /// It is done.
    fn end(&mut self, now: Duration, doing: Doing) -> Next {
        self.memory.now = self.memory.now.max(now);
        if let Some((errand, Some(ran))) = &doing.errand {
            self.memory.ran(errand, ran);
        }
        // Whoever closes ends all work, and what has its turn is dropped with its fence signalled.
        if let Some(turn) = doing.turn.filter(|_| !self.closed) {
            self.engine.put(&mut self.memory, turn);
        }
        doing.next
    }

    /// The same in one, for a device without a thread.
    fn step(&mut self, now: Duration) -> Next {
        let mut doing = self.begin(now);
        doing.run();
        let next = self.end(now, doing);
        // What has just been done may be all that something waited for.
        let (moves_due, moving) = self.memory.step();
        let (fences_due, working) = self.engine.signal(&self.memory);
        let due = [moves_due, fences_due].into_iter().flatten().min();
        Next { due, waiting: moving || working, ..next }
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The thread sleeps here.
    kick: Condvar,
    begin: Instant,
    stepped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stepped {
            state.memory.now = state.memory.now.max(self.begin.elapsed());
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

/// An accelerator in user space; see the [module](super).
///
/// When it is dropped, its memory dies for all who imported it, and work that has not ended ends with
/// [`AcceleratorError::Gone`].
pub struct SimulatedAccelerator {
    shared: Arc<Shared>,
    movement: Movement,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for SimulatedAccelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimulatedAccelerator({:x}, {:?})", self.shared.lock().memory.options.device, self.movement)
    }
}

impl SimulatedAccelerator {
    /// A device with no memory allocated.
    ///
    /// # Panics
    /// When the system cannot start a thread.
    pub fn new(options: Options) -> Self {
        let (movement, stepped) = (options.movement, options.drive == Drive::Stepped);
        let state = State { memory: Memory::new(options), engine: Engine::default(), closed: false };
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

    /// Calls under the lock, and lets the thread know.
    fn with<R>(&self, call: impl FnOnce(&mut State) -> R) -> R {
        let result = call(&mut self.shared.lock());
        self.shared.kick.notify_one();
        result
    }

    /// Sets the clock, which never goes back, and does what is due: moves, fences, and one chunk of one piece of work.
    ///
    /// # Panics
    /// When the device has a thread of its own.
    pub fn step(&self, now: Duration) -> Next {
        assert!(self.shared.stepped, "a device that is driven by its thread is not stepped");
        self.shared.lock().step(now)
    }

    /// Moves a region as the device's mode does: asks, revokes with contents preserved, or just moves. Nothing, if a move has
    /// begun already.
    ///
    /// # Errors
    /// `UnknownRegion`, `Away`; `System` when there is nothing to move to.
    pub fn move_now(&self, region: Region) -> Result<(), AcceleratorError> {
        self.with(|state| state.memory.move_now(region))
    }

    /// Takes a region's memory away without warning, in any mode. A replacement follows.
    ///
    /// # Errors
    /// `UnknownRegion`, `Away`; `System` when there is nothing to replace it by.
    pub fn revoke_now(&self, region: Region, contents: Contents) -> Result<(), AcceleratorError> {
        self.with(|state| state.memory.revoke_now(region, contents))
    }

    /// Looks for broken rules: those found since the last call, at most 1024. O(bytes watched).
    pub fn audit(&self) -> Vec<Breach> {
        self.with(|state| state.memory.audit())
    }

    /// What it has done.
    pub fn counters(&self) -> Counters {
        self.shared.lock().memory.counters()
    }
}

impl Drop for SimulatedAccelerator {
    fn drop(&mut self) {
        self.with(|state| {
            state.closed = true;
            state.engine.close();
            state.memory.close();
        });
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

impl Accelerator for SimulatedAccelerator {
    fn movement(&self) -> Movement {
        self.movement
    }

    fn now(&self) -> Duration {
        // Who asks for the time does not wait until a chunk or a move's copy has ended.
        if self.shared.stepped { self.shared.lock().memory.now } else { self.shared.begin.elapsed() }
    }

    fn listen(&self, notices: Arc<Notices>) {
        self.with(|state| state.memory.notices = Some(notices));
    }

    fn allocate(&self, bytes: u64) -> Result<Region, AcceleratorError> {
        self.with(|state| state.memory.allocate(bytes))
    }

    fn free(&self, region: Region) -> Result<(), AcceleratorError> {
        self.with(|state| state.memory.free(region))
    }

    fn status(&self, region: Region) -> Result<Status, AcceleratorError> {
        self.shared.lock().memory.status(region)
    }

    fn export(&self, range: DeviceRange) -> Result<Export, AcceleratorError> {
        let state = self.shared.lock();
        let pages = state.memory.exportable(&range)?;
        let DeviceRange { region, generation, offset, bytes } = range;
        if offset.checked_add(bytes).is_none_or(|end| end > pages.bytes) {
            return Err(AcceleratorError::OutOfRange { region, offset, bytes, limit: pages.bytes });
        }
        let exported = Exported { region, generation, offset: pages.data + offset, bytes };
        Ok(Export { descriptor: pages.descriptor()?, exported })
    }

    fn import(&self, descriptor: BorrowedFd<'_>, exported: &Exported) -> Result<Import, AcceleratorError> {
        let inode = Pages::inode_of(descriptor)?;
        let known = {
            let state = self.shared.lock();
            state.engine.mapped(&state.memory, inode)
        };
        // To map memory may take the system long: nobody waits for it with the lock.
        let opened = known.map_or_else(|| Pages::open(descriptor), Ok)?;
        let mut state = self.shared.lock();
        let State { engine, memory, .. } = &mut *state;
        engine.import(memory, inode, opened, exported)
    }

    fn release(&self, import: Import) -> Result<(), AcceleratorError> {
        let released = self.shared.lock().engine.release(import);
        released.map(drop)
    }

    fn acknowledge(&self, ticket: Ticket) -> Result<(), AcceleratorError> {
        self.with(|state| state.memory.acknowledge(ticket))
    }

    fn refuse(&self, ticket: Ticket) -> Result<(), AcceleratorError> {
        self.with(|state| state.memory.refuse(ticket))
    }

    fn submit(&self, work: &Work<'_>) -> Result<Fence, AcceleratorError> {
        self.with(|state| state.engine.submit(&state.memory, work))
    }

    fn read(&self, from: Operand, to: &mut [u8]) -> Result<(), AcceleratorError> {
        let copy = {
            let state = self.shared.lock();
            state.engine.copy(&state.memory, from, Host::Read(to))?
        };
        copy.run()
    }

    fn write(&self, to: Operand, from: &[u8]) -> Result<(), AcceleratorError> {
        let copy = {
            let state = self.shared.lock();
            state.engine.copy(&state.memory, to, Host::Write(from))?
        };
        copy.run()
    }
}
