//! What an operation keeps of Python until it ends: exported buffers and objects.
//!
//! An operation whose future was dropped gives its memory back on a thread of the runtime, which never waits for the interpreter: a thread that
//! holds it may wait for the runtime, and it may be about to end. What comes back there is *buried*, and released by the next thread that has the
//! interpreter: at the next call, or when the interpreter next looks for pending calls.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;

use crate::registration::Registered;
use crate::stack::Stack;

/// An exported buffer. Its exporter may have taken the address of the structure.
pub(crate) struct View(Box<ffi::Py_buffer>);

impl View {
    /// Asks `object` for its memory.
    pub(crate) fn of(object: &Bound<'_, PyAny>, flags: c_int) -> PyResult<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // SAFETY: the interpreter is held, the object is alive, and the structure is empty.
        let status = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &raw mut *view, flags) };
        if status == 0 { Ok(Self(view)) } else { Err(PyErr::fetch(object.py())) }
    }

    pub(crate) fn raw(&self) -> &ffi::Py_buffer {
        &self.0
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: a view is filled, and is released once, here, by a thread that holds the interpreter: it cannot be sent to another one but as
        // part of `Held`.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.0) };
    }
}

/// What is kept, and what the operation gives as its result.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) views: Vec<View>,
    pub(crate) objects: Vec<Py<PyAny>>,
    pub(crate) value: Option<Py<PyAny>>,
    pub(crate) registered: Vec<Arc<Registered>>,
    /// Who has sent what was received from anybody, once that is known.
    pub(crate) source: Option<Box<u32>>,
}

// SAFETY: in `Keep` and in `BURIED` it is only moved, and it is dropped by a thread that holds the interpreter.
unsafe impl Send for Held {}

/// `Held`, wherever it is dropped.
pub(crate) struct Keep {
    held: Option<Box<Held>>,
    under_way: Arc<AtomicUsize>,
}

static BURIED: Stack<Box<Held>> = Stack::new();
/// The interpreter has been asked to call.
static CALL_PENDING: AtomicBool = AtomicBool::new(false);

impl Keep {
    /// Counts in `under_way` as long as it is there.
    pub(crate) fn new(held: Held, under_way: &Arc<AtomicUsize>) -> Self {
        under_way.fetch_add(1, Ordering::AcqRel);
        Self { held: Some(Box::new(held)), under_way: Arc::clone(under_way) }
    }

    /// Releases what was kept. Returns the result.
    pub(crate) fn release(mut self, py: Python<'_>) -> Option<Py<PyAny>> {
        let held = self.held.take()?;
        let (value, Some(source)) = (held.value.as_ref()?, &held.source) else { return held.value };
        // Without memory the tuple is missed, not the message.
        (value, **source).into_pyobject(py).ok().map(|pair| pair.into_any().unbind())
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
        if let Some(held) = self.held.take() {
            bury_boxed(held);
        }
    }
}

/// Leaves what is held to the next thread that has the interpreter.
pub(crate) fn bury(held: Held) {
    bury_boxed(Box::new(held));
}

fn bury_boxed(held: Box<Held>) {
    BURIED.push(held);
    if !CALL_PENDING.swap(true, Ordering::AcqRel) {
        // SAFETY: may be called by any thread, with or without the interpreter.
        let status = unsafe { ffi::Py_AddPendingCall(Some(called), std::ptr::null_mut()) };
        if status != 0 {
            CALL_PENDING.store(false, Ordering::Release);
        }
    }
}

extern "C" fn called(_: *mut c_void) -> c_int {
    // The interpreter calls with itself held, which `try_attach` lets pyo3 know. While it ends it calls, too: then nothing is released any more.
    let _ = Python::try_attach(release_buried);
    0
}

/// Releases what has come back on other threads.
#[inline]
pub(crate) fn release_buried(_py: Python<'_>) {
    if !BURIED.is_empty() {
        CALL_PENDING.store(false, Ordering::Release);
        drop(BURIED.take());
    }
}
