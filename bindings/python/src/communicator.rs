//! A communicator as a Python object: what there is besides the collectives.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use windlass::{DataType, Error, Problem};

use crate::buffer::{Buffer, shape_of};
use crate::dtype;
use crate::error::{Wrong, invalid, not_joined, raise};
use crate::exit::{self, Open};

/// A group of ranks, as one of them holds it. All of them make the same calls in the same order.
#[pyclass(frozen, module = "windlass", weakref)]
pub(crate) struct Communicator {
    pub(crate) open: Arc<Open>,
    /// The same with a time limit, if this object has one.
    limited: Option<windlass::Communicator>,
}

impl Communicator {
    fn new(communicator: windlass::Communicator) -> Self {
        Self { open: Open::new(communicator), limited: None }
    }

    pub(crate) fn runtime(&self) -> &windlass::Communicator {
        self.limited.as_ref().unwrap_or(&self.open.communicator)
    }
}

/// Joins the job that the environment describes and returns the communicator of all its ranks.
///
/// A process started by `windlass run` or by torchrun finds its job there; any other is a job of one. A second call returns the same
/// communicator while it lives.
#[pyfunction]
pub(crate) fn init(py: Python<'_>) -> PyResult<Communicator> {
    if let Some(error) = exit::forked() {
        return Err(raise(py, &error));
    }
    let communicator = py.detach(windlass::init).map_err(|e| not_joined(py, &e))?;
    exit::joined(communicator.members()[communicator.rank() as usize]);
    Ok(Communicator::new(communicator))
}

#[pymethods]
impl Communicator {
    /// This process's rank, from 0.
    #[getter]
    fn rank(&self) -> u32 {
        self.runtime().rank()
    }

    /// The number of ranks.
    #[getter]
    fn size(&self) -> u32 {
        self.runtime().size()
    }

    /// The members' ranks in the job.
    #[getter]
    fn members<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.runtime().members())
    }

    /// The ranks of the job that are known to have ended, and how.
    fn failed_ranks(&self, py: Python<'_>) -> Vec<(u32, String)> {
        let failed = py.detach(|| self.runtime().failed_ranks());
        failed.into_iter().map(|(rank, cause)| (rank, cause.to_string())).collect()
    }

    /// Registered memory, zeroed: peers on this host reach it directly. `dtype` is windlass's or NumPy's name, or NumPy's or torch's dtype.
    #[pyo3(signature = (shape, dtype=None))]
    fn alloc(
        &self,
        py: Python<'_>,
        shape: &Bound<'_, PyAny>,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Buffer> {
        let data_type = dtype_of(py, "alloc", dtype)?;
        let runtime = self.runtime();
        Buffer::allocate(py, |bytes| runtime.alloc(bytes), data_type, &shape_of(shape)?)
    }

    /// Makes a communicator of all ranks that give the same `colour`, ranked by `key`, then by rank. With `None` a rank takes part in the call
    /// but in no new communicator. A collective call.
    #[pyo3(signature = (colour, key=0))]
    fn split(&self, py: Python<'_>, colour: Option<&Bound<'_, PyAny>>, key: i64) -> PyResult<Option<Self>> {
        let colour = match colour {
            None => None,
            Some(object) => Some(number(object, "split", "the colour", u64::from(u32::MAX))?),
        };
        let new = py.detach(|| self.runtime().split(colour, key)).map_err(|e| raise(py, &e))?;
        Ok(new.map(Self::new))
    }

    /// A communicator of the same ranks, independent of this one. A collective call.
    fn duplicate(&self, py: Python<'_>) -> PyResult<Self> {
        py.detach(|| self.runtime().duplicate()).map(Self::new).map_err(|e| raise(py, &e))
    }

    /// The same communicator, with a time limit of so many seconds for each call made by this object, from the call to its end. A call that does not end
    /// in time raises `TimedOutError`, and the communicator is unusable on all its ranks.
    fn with_timeout(&self, seconds: &Bound<'_, PyAny>) -> PyResult<Self> {
        let time = seconds.extract::<f64>().ok().filter(|seconds| *seconds > 0.0);
        let Some(time) = time.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) else {
            let given = seconds.repr()?.to_string();
            return Err(invalid(seconds.py(), "with_timeout", "the time", &Wrong::Timeout { given }));
        };
        let limited = Some(self.runtime().with_timeout(time));
        Ok(Self { open: Arc::clone(&self.open), limited })
    }

    /// Makes the communicator unusable on all its ranks: whatever is under way ends with `AbortedError`.
    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(error) = exit::forked() {
            return Err(raise(py, &error));
        }
        py.detach(|| self.runtime().abort());
        Ok(())
    }

    /// Waits for everything under way and then for all ranks; later calls are refused. A collective call.
    fn finalize(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.runtime().clone().finalize()).map_err(|e| raise(py, &e))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    /// Finalizes; after an exception aborts, so that peers do not wait for this rank.
    fn __exit__(
        &self,
        py: Python<'_>,
        kind: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if kind.is_none() {
            return self.finalize(py);
        }
        // In a forked child there is nothing to abort, and the exception on its way says more.
        py.detach(|| self.runtime().abort());
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("<windlass.Communicator rank {} of {}>", self.runtime().rank(), self.runtime().size())
    }
}

/// A `dtype` argument.
pub(crate) fn dtype_of(
    py: Python<'_>,
    operation: &'static str,
    dtype: Option<&Bound<'_, PyAny>>,
) -> PyResult<DataType> {
    let Some(object) = dtype else { return Ok(DataType::F32) };
    if let Some(data_type) = dtype::of(object) {
        return Ok(data_type);
    }
    let given = object.repr()?.to_string();
    Err(invalid(py, operation, "the dtype", &Wrong::TypeName { given }))
}

/// A rank, tag or colour: a number from 0, below `limit`.
pub(crate) fn number(
    object: &Bound<'_, PyAny>,
    operation: &'static str,
    argument: &'static str,
    limit: u64,
) -> PyResult<u32> {
    let py = object.py();
    match object.extract::<u64>() {
        Ok(value) if value < limit => Ok(value as u32),
        Ok(value) => {
            let problem = Problem::OutOfRange { value, limit };
            Err(raise(py, &Error::InvalidArgument { operation, argument, problem }))
        }
        Err(_) => {
            let given = object.repr()?.to_string();
            Err(invalid(py, operation, argument, &Wrong::Number { given }))
        }
    }
}
