//! Accelerators, and memory on them, which calls take as they take arrays.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PySlice, PyTuple};
use windlass::accelerator::{self, Accelerator, BadDescriptor, OpenError, Options};
use windlass::{DataType, Error, Problem};

use crate::array::{Array, Purpose};
use crate::buffer::{Buffer, shape_of};
use crate::communicator::{Communicator, dtype_of};
use crate::error::{Wrong, invalid, raise};
use crate::exit;

/// The accelerator that a rank uses.
#[pyclass(frozen, module = "windlass")]
pub(crate) struct Device {
    device: windlass::Device,
}

/// Memory of an accelerator, which may move at any time, also while operations use it. The processor cannot touch it: `write` and `read` copy. A slice of
/// it is the same memory.
#[pyclass(frozen, mapping, module = "windlass", weakref)]
pub(crate) struct DeviceBuffer {
    /// Bytes: what they are is known at run time only. Locked while they are copied to or from the host.
    memory: Arc<Mutex<windlass::DeviceBuffer<u8>>>,
    device: windlass::Device,
    /// Where in the memory it begins.
    first: usize,
    address: usize,
    data_type: DataType,
    shape: Vec<usize>,
}

impl DeviceBuffer {
    pub(crate) fn allocate(
        py: Python<'_>,
        device: &windlass::Device,
        data_type: DataType,
        shape: Vec<usize>,
    ) -> PyResult<Self> {
        // What overflows is more than there is.
        let memory = py.detach(|| device.alloc(bytes_of(data_type, &shape)));
        Self::new(device, memory.map_err(|e| raise(py, &e))?, data_type, shape)
    }

    fn new(
        device: &windlass::Device,
        mut memory: windlass::DeviceBuffer<u8>,
        data_type: DataType,
        shape: Vec<usize>,
    ) -> PyResult<Self> {
        let address = memory.address().addr();
        let (memory, device) = (Arc::new(Mutex::new(memory)), device.clone());
        Ok(Self { memory, device, first: 0, address, data_type, shape })
    }

    pub(crate) const fn device(&self) -> &windlass::Device {
        &self.device
    }

    /// The address that stands for it. Nothing lies there.
    pub(crate) const fn address(&self) -> *mut u8 {
        std::ptr::without_provenance_mut(self.address)
    }

    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) const fn data_type(&self) -> DataType {
        self.data_type
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements of a row: of what lies at one place of the first dimension.
    fn row(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Host memory as long as this, and of its type.
    fn host(&self, object: &Bound<'_, PyAny>, purpose: Purpose) -> PyResult<Array> {
        let py = object.py();
        if let Some(error) = exit::forked() {
            return Err(raise(py, &error));
        }
        let Purpose { operation, argument, .. } = purpose;
        let array = Array::of(object, purpose)?;
        let problem = if array.device().is_some() {
            Problem::OnDevice
        } else if array.data_type != self.data_type {
            Problem::WrongType { expected: self.data_type, actual: array.data_type }
        } else if array.count != self.count() {
            Problem::WrongLength { expected: self.count() as u64, actual: array.count as u64 }
        } else {
            return Ok(array);
        };
        Err(raise(py, &Error::InvalidArgument { operation, argument, problem }))
    }

    fn copy(
        &self,
        py: Python<'_>,
        copy: impl FnOnce(&mut windlass::DeviceBuffer<u8>) -> Result<(), Error> + Send,
    ) -> PyResult<()> {
        // Whoever waits for the memory holds no interpreter.
        py.detach(|| copy(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner)))
            .map_err(|e| raise(py, &e))
    }
}

fn bytes_of(data_type: DataType, shape: &[usize]) -> usize {
    shape.iter().fold(data_type.size_bytes(), |bytes, &length| bytes.saturating_mul(length))
}

#[pymethods]
impl DeviceBuffer {
    /// The lengths of the dimensions.
    #[getter(shape)]
    fn shape_tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.shape)
    }

    /// The elements' type, by windlass's name.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.data_type.name()
    }

    /// The size in bytes.
    #[getter]
    fn nbytes(&self) -> usize {
        bytes_of(self.data_type, &self.shape)
    }

    fn __len__(&self) -> PyResult<usize> {
        let first = self.shape.first().copied();
        first.ok_or_else(|| PyTypeError::new_err("len() of a buffer without dimensions"))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let shape = slf.get().shape_tuple(slf.py())?.repr()?;
        Ok(format!("windlass.DeviceBuffer(shape={shape}, dtype='{}')", slf.get().data_type))
    }

    /// Copies from an array of as many elements of the same type. Waits while the memory is on its way.
    fn write(&self, x: &Bound<'_, PyAny>) -> PyResult<()> {
        let purpose = Purpose { operation: "write", argument: "the array", write: false };
        let array = self.host(x, purpose)?;
        if self.count() == 0 {
            return Ok(());
        }
        // SAFETY: its lender keeps it as long as `array` lives. That nobody writes it meanwhile is asked of Python's code.
        let from = unsafe { std::slice::from_raw_parts(array.address, self.nbytes()) };
        self.copy(x.py(), |memory| memory.write_at(self.first, from))
    }

    /// Copies to `out`, or to new registered memory, and returns that. Waits while the memory is on its way.
    #[pyo3(signature = (out=None))]
    fn read<'py>(&self, py: Python<'py>, out: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let out = match out {
            Some(out) => out,
            None => {
                let allocate = |bytes| self.device.alloc_registered(bytes);
                Bound::new(py, Buffer::allocate(py, allocate, self.data_type, &self.shape)?)?.into_any()
            }
        };
        let array = self.host(&out, Purpose { operation: "read", argument: "the output", write: true })?;
        if self.count() > 0 {
            // SAFETY: as in `write`; nor does anybody read it.
            let to = unsafe { std::slice::from_raw_parts_mut(array.address, self.nbytes()) };
            self.copy(py, |memory| memory.read_at(self.first, to))?;
        }
        Ok(out)
    }

    /// Part of the memory, along the first dimension: `buffer[a:b]`.
    fn __getitem__(&self, part: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (Ok(slice), Some(length)) = (part.cast::<PySlice>(), self.shape.first()) else {
            return Err(PyTypeError::new_err(
                "device memory is not looked at by element: slice it, or read it",
            ));
        };
        let place = slice.indices(*length as isize)?;
        if place.step != 1 {
            return Err(PyValueError::new_err("a slice of device memory has no steps"));
        }
        let mut shape = self.shape.clone();
        shape[0] = place.slicelength;
        let skipped = place.start as usize * self.row() * self.data_type.size_bytes();
        let (memory, device) = (Arc::clone(&self.memory), self.device.clone());
        let (first, address) = (self.first + skipped, self.address + skipped);
        Ok(Self { memory, device, first, address, data_type: self.data_type, shape })
    }

    /// NumPy would make an array of one object.
    #[pyo3(signature = (*_arguments, **_keywords))]
    fn __array__(
        &self,
        _arguments: &Bound<'_, PyTuple>,
        _keywords: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "device memory is no array: numpy.asarray(buffer.read()) is one with its contents",
        ))
    }
}

#[pymethods]
impl Device {
    /// Device memory, of unspecified contents. `dtype` as for `Communicator.alloc`.
    #[pyo3(signature = (shape, dtype=None))]
    fn alloc(
        &self,
        py: Python<'_>,
        shape: &Bound<'_, PyAny>,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<DeviceBuffer> {
        DeviceBuffer::allocate(py, &self.device, dtype_of(py, "alloc", dtype)?, shape_of(shape)?)
    }

    /// Memory of another exporter, such as CUDA, ROCm and Level Zero, from byte `offset` of its dma-buf on. It stays where it is, or moves transparently.
    /// `descriptor` is a number, or an object with `fileno()`; it may be closed at once. The accelerator must be one of the kernel's.
    #[pyo3(signature = (descriptor, offset, shape, dtype=None))]
    fn adopt(
        &self,
        py: Python<'_>,
        descriptor: &Bound<'_, PyAny>,
        offset: u64,
        shape: &Bound<'_, PyAny>,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<DeviceBuffer> {
        let (operation, data_type, shape) = ("adopt", dtype_of(py, "adopt", dtype)?, shape_of(shape)?);
        let alignment = data_type.alignment();
        let number = match descriptor.call_method0("fileno") {
            Ok(number) => number.extract::<i32>()?,
            Err(_) => descriptor.extract::<i32>()?,
        };
        let wrong = |argument, problem| raise(py, &Error::InvalidArgument { operation, argument, problem });
        if number < 0 {
            return Err(wrong("the descriptor", Problem::BadDescriptor(BadDescriptor::Closed)));
        }
        if !offset.is_multiple_of(alignment as u64) {
            return Err(wrong("the offset", Problem::Misaligned { address: offset as usize, alignment }));
        }
        // SAFETY: not -1. One that is not open is found out by the first call that asks for its file system.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let memory = py.detach(|| self.device.adopt(descriptor, offset, bytes_of(data_type, &shape)));
        DeviceBuffer::new(&self.device, memory.map_err(|e| raise(py, &e))?, data_type, shape)
    }

    /// How often this rank's device memory has moved: `moves`, `revokes`, `refused` moves, and `replays`, which are pieces of operations done again.
    fn movements<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        if let Some(error) = exit::forked() {
            return Err(raise(py, &error));
        }
        let now = py.detach(|| self.device.movements());
        let counts = PyDict::new(py);
        for (name, count) in [
            ("moves", now.moves),
            ("revokes", now.revokes),
            ("refused", now.refused),
            ("replays", now.replays),
        ] {
            counts.set_item(name, count)?;
        }
        Ok(counts)
    }

    fn __repr__(&self) -> &'static str {
        "<windlass.Device>"
    }
}

#[pymethods]
impl Communicator {
    /// Takes an accelerator into use, so that operations use its memory where it lies: `comm.attach("simulated", moves_per_second=20)`. A collective call.
    /// A rank uses one, for all its communicators; without a name, the one that it uses already.
    #[pyo3(signature = (name=None, **options))]
    fn attach(
        &self,
        py: Python<'_>,
        name: Option<&str>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Device> {
        if let Some(error) = exit::forked() {
            return Err(raise(py, &error));
        }
        let runtime = self.runtime();
        let accelerator = match name {
            Some(name) => {
                let options = options.map(text).transpose()?.unwrap_or_default();
                let opened = py.detach(|| open(name, &options));
                opened.map_err(|reason| {
                    invalid(py, "attach", "the accelerator", &Wrong::NotOpened { reason: reason.to_string() })
                })?
            }
            None => runtime
                .accelerator()
                .ok_or_else(|| invalid(py, "attach", "the accelerator's name", &Wrong::NotAttached))?,
        };
        let device = py.detach(|| runtime.attach(accelerator)).map_err(|e| raise(py, &e))?;
        Ok(Device { device })
    }
}

fn open(name: &str, options: &str) -> Result<Arc<dyn Accelerator>, OpenError> {
    accelerator::open(name, options.parse::<Options>()?)
}

/// Keywords as the text that options are read from.
fn text(options: &Bound<'_, PyDict>) -> PyResult<String> {
    let option = |(name, value): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
        let text = value.str()?.to_string();
        let text = if value.is_instance_of::<PyBool>() { text.to_lowercase() } else { text };
        Ok(format!("{name}={text}"))
    };
    Ok(options.iter().map(option).collect::<PyResult<Vec<_>>>()?.join(","))
}
