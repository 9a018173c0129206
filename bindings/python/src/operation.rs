//! An operation under way: to be waited for, or awaited.
//!
//! Awaiting needs no thread. Whoever ends the operation rings the *bell* of each event loop that waits for it: a descriptor that the loop
//! watches like a socket. It is rung without the interpreter, so a thread of the runtime never waits for one.

use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use windlass::{Error, Failed};

use crate::error::raise;
use crate::exit;
use crate::keep::{Keep, release_buried};
use crate::stack::Stack;

/// How long a thread waits without looking for signals.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

enum State {
    UnderWay(windlass::Operation<Keep>),
    /// What it kept has not been released yet: that takes the interpreter.
    Ended(Result<(), Error>, Keep),
    Settled(Result<Option<Py<PyAny>>, Error>),
    /// Between two of the others, under the lock.
    Moving,
}

/// What an `Operation` and whoever waits for it share.
///
/// While it is under way the lock may be held for as long as a slice, so it is taken without the interpreter; by whoever has it, it is tried.
pub(crate) struct Pending {
    name: &'static str,
    state: Mutex<State>,
    bells: Arc<Bells>,
}

/// The bells to ring when the operation ends, each with what the loop calls it.
struct Bells(Stack<(Arc<Ringer>, u64)>);

impl Wake for Bells {
    fn wake(self: Arc<Self>) {
        for (bell, token) in self.0.take() {
            bell.ring(token);
        }
    }
}

impl Pending {
    pub(crate) fn new(name: &'static str, operation: windlass::Operation<Keep>) -> Self {
        let state = Mutex::new(State::UnderWay(operation));
        Self { name, state, bells: Arc::new(Bells(Stack::new())) }
    }

    /// The state, when nobody else has it.
    fn look(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Drives it for `time` at most. To be called without the interpreter. Whether it has ended.
    pub(crate) fn advance(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(mut state) = self.look() {
                *state = match std::mem::replace(&mut *state, State::Moving) {
                    State::UnderWay(operation) => match operation.wait_for(left) {
                        Ok(result) => ended(result),
                        Err(operation) => State::UnderWay(operation),
                    },
                    other => other,
                };
                return !matches!(*state, State::UnderWay(_));
            }
            if left.is_zero() {
                return false;
            }
            // Another thread drives it, or did when this process was forked.
            std::thread::sleep(left.min(Duration::from_millis(1)));
        }
    }

    /// Rings `bell` at the end. To be called without the interpreter. Whether the end is still to come.
    fn expect(&self, bell: &Arc<Ringer>, token: u64) -> bool {
        self.bells.0.push((Arc::clone(bell), token));
        let Some(mut state) = self.look() else {
            // Who has the lock may have polled before the bell was there: let the loop look again.
            bell.ring(token);
            return true;
        };
        if let State::UnderWay(operation) = &mut *state {
            let waker = Waker::from(Arc::clone(&self.bells));
            match Pin::new(operation).poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => return true,
                Poll::Ready(result) => *state = ended(result),
            }
        }
        false
    }

    fn is_done(&self) -> bool {
        self.look().is_some_and(|state| match &*state {
            State::UnderWay(operation) => operation.is_done(),
            _ => true,
        })
    }

    /// Releases what an ended operation kept.
    pub(crate) fn settle(&self, py: Python<'_>) {
        let Some(mut state) = self.look() else { return };
        *state = match std::mem::replace(&mut *state, State::Moving) {
            State::Ended(result, keep) => {
                let value = keep.release(py);
                State::Settled(result.map(|()| value))
            }
            other => other,
        };
    }

    fn result(&self, py: Python<'_>) -> Option<PyResult<Py<PyAny>>> {
        self.settle(py);
        match &*self.look()? {
            State::Settled(Ok(value)) => {
                Some(Ok(value.as_ref().map_or_else(|| py.None(), |value| value.clone_ref(py))))
            }
            State::Settled(Err(error)) => Some(Err(raise(py, error))),
            _ => None,
        }
    }

    /// Waits to the end or to `until`, looking for signals. `None` when that came first.
    pub(crate) fn wait(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<Option<Py<PyAny>>> {
        loop {
            if let Some(error) = exit::forked() {
                return Err(raise(py, &error));
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let ended = py.detach(|| self.advance(left.map_or(SLICE, |left| left.min(SLICE))));
            if ended && let Some(result) = self.result(py) {
                return result.map(Some);
            }
            py.check_signals()?;
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
        }
    }
}

fn ended(result: Result<Keep, Failed<Keep>>) -> State {
    match result {
        Ok(keep) => State::Ended(Ok(()), keep),
        Err(Failed { error, memory }) => State::Ended(Err(error), memory),
    }
}

/// An operation that runs while the program does something else. Await it, or wait for it; dropped, it goes on.
#[pyclass(frozen, module = "windlass", weakref)]
pub(crate) struct Operation {
    pending: Arc<Pending>,
}

impl Operation {
    pub(crate) const fn new(pending: Arc<Pending>) -> Self {
        Self { pending }
    }
}

#[pymethods]
impl Operation {
    /// Waits for the end and returns the result. After `timeout` seconds without it, raises `TimeoutError`; the operation goes on.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        release_buried(py);
        let until = match timeout {
            None => None,
            Some(seconds) => {
                let time = Duration::try_from_secs_f64(seconds.max(0.0))
                    .map_err(|_| PyValueError::new_err(format!("a timeout of {seconds} seconds")))?;
                Instant::now().checked_add(time)
            }
        };
        self.pending.wait(py, until)?.ok_or_else(|| {
            let name = self.pending.name;
            PyTimeoutError::new_err(format!(
                "{name} has not ended within {} s; it goes on: wait again, or abort the communicator",
                timeout.unwrap_or_default()
            ))
        })
    }

    /// Whether it has ended, well or not. Never waits.
    fn done(&self) -> bool {
        self.pending.is_done()
    }

    fn __await__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("windlass._await")?.call_method1("awaiting", (slf,))
    }

    /// Rings `bell` at the end; false when it has ended already.
    fn _expect(&self, py: Python<'_>, bell: &Bell, token: u64) -> bool {
        let (pending, bell) = (&self.pending, &bell.ringer);
        py.detach(|| pending.expect(bell, token))
    }

    fn __repr__(&self) -> String {
        let state = if self.pending.is_done() { "ended" } else { "under way" };
        format!("<windlass.Operation {}, {state}>", self.pending.name)
    }
}

struct Ringer {
    descriptor: OwnedFd,
    rung: Stack<u64>,
}

impl Ringer {
    fn ring(&self, token: u64) {
        self.rung.push(token);
        // It can only fail when it has been rung 2^64 times unheard.
        let _ = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
    }
}

/// What an event loop watches to hear of operations that have ended.
#[pyclass(frozen, module = "windlass._native")]
pub(crate) struct Bell {
    ringer: Arc<Ringer>,
}

#[pymethods]
impl Bell {
    #[new]
    fn new() -> PyResult<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| std::io::Error::from_raw_os_error(errno.raw_os_error()))?;
        Ok(Self { ringer: Arc::new(Ringer { descriptor, rung: Stack::new() }) })
    }

    fn fileno(&self) -> i32 {
        self.ringer.descriptor.as_raw_fd()
    }

    /// What it has been rung for since the last time.
    fn take(&self) -> Vec<u64> {
        // Before the tokens: what is pushed later rings again.
        let _ = rustix::io::read(&self.ringer.descriptor, &mut [0u8; 8]);
        self.ringer.rung.take()
    }
}
