//! Operators written in Python.
//!
//! The thread that drives a reduction calls them, so it is the one kind of thread of the runtime's that waits for the interpreter. Whoever has that never
//! waits for an operation without letting it go first.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};
use windlass::{DataType, ReduceOp};

use crate::array::{Array, Purpose};
use crate::communicator::Communicator;
use crate::dtype;
use crate::error::{Wrong, invalid, raise};

/// An operator of the program's own: what `register_op` returns, and `op=` takes.
#[pyclass(frozen, module = "windlass")]
pub(crate) struct Operator {
    pub(crate) op: ReduceOp,
    name: String,
}

#[pymethods]
impl Operator {
    fn __repr__(&self) -> String {
        format!("<windlass.Operator {:?}>", self.name)
    }
}

const RESULT: Purpose = Purpose { operation: "register_op", argument: "the operator's result", write: false };

#[pymethods]
impl Communicator {
    /// Registers `fold` as an operator of elements of type `dtype`, for all communicators of this rank's job. `fold(a, b)` gets two memory views of as many
    /// elements (of bytes, where Python has no name for the type) and returns an array of the same type and length. Operands are folded from the left
    /// in rank order. All ranks that reduce with it register it under the same `name`. An exception in it aborts the communicator.
    fn register_op(
        &self,
        py: Python<'_>,
        name: &str,
        fold: Py<PyAny>,
        dtype: &Bound<'_, PyAny>,
    ) -> PyResult<Operator> {
        let Some(data_type) = dtype::of(dtype) else {
            let given = dtype.repr()?.to_string();
            return Err(invalid(py, "register_op", "the dtype", &Wrong::TypeName { given }));
        };
        if !fold.bind(py).is_callable() {
            let given = fold.bind(py).repr()?.to_string();
            return Err(invalid(py, "register_op", "the operator", &Wrong::NotCallable { given }));
        }
        let call = move |acc: *mut u8, x: *const u8, count: usize| {
            // SAFETY: the runtime gives two runs of so many elements, which nobody else touches meanwhile.
            let folded = Python::try_attach(|py| unsafe { folded(py, &fold, data_type, (acc, x), count) });
            match folded {
                Some(Ok(())) => return,
                Some(Err(error)) => {
                    Python::try_attach(|py| error.write_unraisable(py, Some(fold.bind(py))));
                }
                // The interpreter ends.
                None => {}
            }
            // What unwinds aborts the communicator on all its ranks. Nothing is to be said that has not been said.
            std::panic::resume_unwind(Box::new("an operator in Python failed"));
        };
        // SAFETY: it touches nothing but what it is given.
        let registered = py.detach(|| unsafe { self.runtime().register_raw_op(name, data_type, call) });
        Ok(Operator { op: registered.map_err(|e| raise(py, &e))?, name: name.to_owned() })
    }
}

/// Calls the operator with copies: what Python keeps of its arguments does not reach into the runtime's memory.
///
/// # Safety
/// Both addresses are those of `count` elements, and the first may be written.
unsafe fn folded(
    py: Python<'_>,
    fold: &Py<PyAny>,
    data_type: DataType,
    (acc, x): (*mut u8, *const u8),
    count: usize,
) -> PyResult<()> {
    let bytes = count * data_type.size_bytes();
    let view = |address: *const u8| -> PyResult<Bound<'_, PyAny>> {
        // SAFETY: the caller's.
        let copied = PyBytes::new(py, unsafe { std::slice::from_raw_parts(address, bytes) });
        let view = PyMemoryView::from(&copied)?.into_any();
        let cast = dtype::format(data_type).and_then(|format| format.to_str().ok());
        // Not every format that arrays have can be cast to.
        Ok(cast.and_then(|format| view.call_method1("cast", (format,)).ok()).unwrap_or(view))
    };
    let result = fold.bind(py).call1((view(acc)?, view(x)?))?;
    let array = Array::of(&result, RESULT)?;
    if (array.data_type, array.count) != (data_type, count) {
        let (given, expected) = (array.data_type.name(), data_type.name());
        let wrong = Wrong::OtherResult { given, length: array.count, expected, count };
        return Err(invalid(py, RESULT.operation, RESULT.argument, &wrong));
    }
    // SAFETY: the caller's; the array is lent while it is here, and is no part of the runtime's memory.
    unsafe { std::ptr::copy_nonoverlapping(array.address.cast_const(), acc, bytes) };
    Ok(())
}
