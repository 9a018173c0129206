//! Memory of Python's that is registered where it lies, for as long as its `Registration` and the operations that use it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;

use crate::array::{Array, Purpose};
use crate::communicator::Communicator;
use crate::error::raise;
use crate::keep::Held;

/// The registration goes before the memory. Dropped by a thread that holds the interpreter.
pub(crate) struct Registered {
    _registration: windlass::Registration,
    _held: Held,
}

// SAFETY: it is only passed on, and dropped by a thread that holds the interpreter: by `Registration` or as part of `Held`.
unsafe impl Sync for Registered {}

/// What is registered, by address. Locked with the interpreter held, and for a moment.
static REGISTERED: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    begin: usize,
    bytes: usize,
    memory: Arc<Registered>,
}

fn registered() -> MutexGuard<'static, Vec<Entry>> {
    REGISTERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the registration of an operation's memory, if it has one, until the operation ends.
pub(crate) fn keep(address: *const u8, held: &mut Held) {
    let around = |entry: &&Entry| address.addr().wrapping_sub(entry.begin) < entry.bytes;
    if let Some(entry) = registered().iter().find(around) {
        held.registered.push(Arc::clone(&entry.memory));
    }
}

/// Memory that is registered: until `release`, the end of a `with` block, or the end of this object, and of the operations that use it.
#[pyclass(frozen, module = "windlass")]
pub(crate) struct Registration {
    memory: Mutex<Option<Arc<Registered>>>,
    region: u32,
}

#[pymethods]
impl Registration {
    /// The number of the region.
    #[getter]
    const fn region(&self) -> u32 {
        self.region
    }

    /// Ends the registration. A second time does nothing.
    fn release(&self) {
        let Some(memory) = self.memory.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        registered().retain(|entry| !Arc::ptr_eq(&entry.memory, &memory));
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.release();
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.release();
    }
}

#[pymethods]
impl Communicator {
    /// Registers the memory of `x` where it lies, for all communicators of this rank's job, and keeps it exported meanwhile. On one host it is no faster
    /// for that, and `alloc` is: it is for network cards. Memory may be registered once at a time.
    fn register(&self, x: &Bound<'_, PyAny>) -> PyResult<Registration> {
        let purpose = Purpose { operation: "register", argument: "the memory", write: false };
        let array = Array::of(x, purpose)?;
        let (begin, bytes) = (array.address, array.count * array.data_type.size_bytes());
        // SAFETY: the exporter keeps the memory as it is until `_held` is dropped, after the registration; operations keep both.
        let registration = unsafe { self.runtime().register(begin, bytes) };
        let registration = registration.map_err(|e| raise(x.py(), &e))?;
        let region = registration.region();
        let mut held = Held::default();
        array.hand_to(&mut held);
        let memory = Arc::new(Registered { _registration: registration, _held: held });
        registered().push(Entry { begin: begin.addr(), bytes, memory: Arc::clone(&memory) });
        Ok(Registration { memory: Mutex::new(Some(memory)), region })
    }
}
