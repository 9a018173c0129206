//! Registered memory as a Python object: what lends it to NumPy, torch and JAX without a copy.

use std::ffi::{CStr, c_int, c_void};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use windlass::DataType;

use crate::dlpack::{self, Plain, Tensor, Versioned};
use crate::dtype;
use crate::error::{Wrong, invalid};
use crate::exit;
use crate::keep::{self, Held};

/// Memory that peers on this host reach directly: collectives on it copy nothing. Zeroed and page-aligned.
#[pyclass(frozen, module = "windlass", weakref)]
pub(crate) struct Buffer {
    /// Bytes: what they are is known at run time only. Nobody makes a reference to them: Python's code and peers write them.
    memory: windlass::Buffer<u8>,
    address: *mut u8,
    count: usize,
    data_type: DataType,
    shape: Vec<isize>,
    strides: Vec<isize>,
}

// SAFETY: the address is that of the memory that the buffer owns, which stays while the buffer lives, wherever it is moved.
unsafe impl Send for Buffer {}
// SAFETY: a shared buffer only hands out its address.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn allocate(
        py: Python<'_>,
        allocate: impl FnOnce(usize) -> Result<windlass::Buffer<u8>, windlass::Error> + Send,
        data_type: DataType,
        shape: &[usize],
    ) -> PyResult<Self> {
        let size = data_type.size_bytes();
        let bytes = shape.iter().try_fold(size, |bytes, &length| bytes.checked_mul(length));
        // A product that overflows is more than there is.
        let mut memory =
            py.detach(|| allocate(bytes.unwrap_or(usize::MAX))).map_err(|e| crate::error::raise(py, &e))?;
        let address = windlass::Memory::span(&mut memory).address();
        let mut strides = vec![0; shape.len()];
        let mut stride = size;
        for (place, length) in strides.iter_mut().zip(shape).rev() {
            *place = stride as isize;
            stride = stride.saturating_mul(*length);
        }
        let shape: Vec<isize> = shape.iter().map(|&length| length as isize).collect();
        Ok(Self { count: memory.len() / size, memory, address, data_type, shape, strides })
    }

    pub(crate) const fn address(&self) -> *mut u8 {
        self.address
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) const fn data_type(&self) -> DataType {
        self.data_type
    }

    pub(crate) fn shape(&self) -> impl ExactSizeIterator<Item = usize> + use<'_> {
        self.shape.iter().map(|&length| length as usize)
    }

    /// A forked child has no mapping of registered memory: whoever were lent it there would fault.
    fn lendable(&self, py: Python<'_>) -> PyResult<()> {
        match exit::forked() {
            Some(error) => Err(crate::error::raise(py, &error)),
            None => Ok(()),
        }
    }

    fn tensor(&self, shape: &mut [i64]) -> PyResult<Tensor> {
        let Some((kind, bits)) = dtype::to_dlpack(self.data_type) else {
            return Err(PyBufferError::new_err(format!("DLPack has no type for {}", self.data_type)));
        };
        let (data, dimensions) = (self.address.cast(), shape.len() as i32);
        let shape = shape.as_mut_ptr();
        Ok(Tensor {
            data,
            device: dlpack::CPU,
            device_id: 0,
            dimensions,
            kind,
            bits,
            lanes: 1,
            shape,
            // Behind the lengths: their strides, see `__dlpack__`.
            strides: shape.wrapping_add(dimensions as usize),
            byte_offset: 0,
        })
    }
}

#[pymethods]
impl Buffer {
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
        self.memory.len()
    }

    fn __len__(&self) -> PyResult<usize> {
        self.shape()
            .next()
            .ok_or_else(|| pyo3::exceptions::PyTypeError::new_err("len() of a buffer without dimensions"))
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let shape = slf.get().shape_tuple(slf.py())?.repr()?;
        Ok(format!("windlass.Buffer(shape={shape}, dtype='{}')", slf.get().data_type))
    }

    /// For elements that the buffer protocol has no name for: `numpy.asarray(buffer).view(ml_dtypes.bfloat16)`.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.lendable(py)?;
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", self.shape_tuple(py)?)?;
        interface.set_item("typestr", format!("|V{}", self.data_type.size_bytes()))?;
        interface.set_item("data", (self.address as usize, false))?;
        Ok(interface)
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        (dlpack::CPU, 0)
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        slf: Bound<'py, Self>,
        stream: Option<Py<PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        this.lendable(py)?;
        if stream.is_some() || dl_device.is_some_and(|device| device != (dlpack::CPU, 0)) {
            return Err(PyBufferError::new_err(
                "a windlass.Buffer is lent on the processor, without a stream",
            ));
        }
        if copy == Some(true) {
            return Err(PyBufferError::new_err(
                "a windlass.Buffer is lent, not copied: copy what you get of it",
            ));
        }
        let size = this.data_type.size_bytes() as i64;
        let lengths = this.shape.iter().map(|&length| length as i64);
        let strides = this.strides.iter().map(|&stride| stride as i64 / size);
        let mut numbers: Box<[i64]> = lengths.chain(strides).collect();
        let tensor = this.tensor(&mut numbers[..this.shape.len()])?;
        let lent = Lent { _numbers: numbers, buffer: slf.clone().unbind() };
        let context = Box::into_raw(Box::new(lent)).cast();
        if max_version.is_some_and(|(major, _)| major >= 1) {
            let deleter = Some(delete_versioned as unsafe extern "C" fn(*mut Versioned));
            let managed = Versioned { major: 1, minor: 0, context, deleter, flags: 0, tensor };
            return capsule(
                py,
                Box::into_raw(Box::new(managed)).cast(),
                dlpack::VERSIONED,
                discard_versioned,
            );
        }
        let managed = Plain { tensor, context, deleter: Some(delete_plain) };
        capsule(py, Box::into_raw(Box::new(managed)).cast(), dlpack::PLAIN, discard_plain)
    }

    /// # Safety
    /// Called by the interpreter, with a structure to fill.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        this.lendable(slf.py())?;
        let wanted = |flag: c_int| flags & flag == flag;
        let format = dtype::format(this.data_type);
        if wanted(ffi::PyBUF_FORMAT) && format.is_none() {
            let message = "the buffer protocol has no name for elements of type";
            return Err(PyBufferError::new_err(format!(
                "{message} {}: use DLPack (torch.from_dlpack) or numpy.asarray(buffer).view(…)",
                this.data_type
            )));
        }
        // SAFETY: the interpreter's structure is ours to fill; it keeps the buffer, which keeps what the pointers name, until it is released.
        unsafe {
            (*view).buf = this.address.cast();
            (*view).len = this.memory.len() as isize;
            (*view).readonly = 0;
            (*view).itemsize = this.data_type.size_bytes() as isize;
            (*view).format = std::ptr::null_mut();
            if wanted(ffi::PyBUF_FORMAT) {
                (*view).format = format.map_or(std::ptr::null(), CStr::as_ptr).cast_mut();
            }
            (*view).ndim = if wanted(ffi::PyBUF_ND) { this.shape.len() as c_int } else { 1 };
            let shape = if wanted(ffi::PyBUF_ND) { this.shape.as_ptr() } else { std::ptr::null() };
            (*view).shape = shape.cast_mut();
            let strides = if wanted(ffi::PyBUF_STRIDES) { this.strides.as_ptr() } else { std::ptr::null() };
            (*view).strides = strides.cast_mut();
            (*view).suboffsets = std::ptr::null_mut();
            (*view).internal = std::ptr::null_mut();
            (*view).obj = slf.into_ptr();
        }
        Ok(())
    }
}

/// What a consumer of DLPack holds of the buffer.
struct Lent {
    /// The lengths and the strides, which the tensor points to.
    _numbers: Box<[i64]>,
    buffer: Py<Buffer>,
}

/// Consumers call deleters on any thread.
///
/// # Safety
/// `context` is that of a structure made by `__dlpack__`, and this is its end.
unsafe fn give_back(context: *mut c_void) {
    // SAFETY: the caller's; it came from a box.
    let lent = unsafe { Box::from_raw(context.cast::<Lent>()) };
    keep::bury(Held { objects: vec![lent.buffer.into_any()], ..Held::default() });
}

/// # Safety
/// Called once by whoever consumed the tensor.
unsafe extern "C" fn delete_plain(managed: *mut Plain) {
    // SAFETY: made by `__dlpack__`, and given up by its consumer.
    unsafe { give_back(Box::from_raw(managed).context) };
}

/// # Safety
/// As [`delete_plain`].
unsafe extern "C" fn delete_versioned(managed: *mut Versioned) {
    // SAFETY: as above.
    unsafe { give_back(Box::from_raw(managed).context) };
}

/// # Safety
/// Called by the interpreter when the capsule dies.
unsafe extern "C" fn discard_plain(capsule: *mut ffi::PyObject) {
    // SAFETY: a capsule whose name is still this has not been consumed: the structure is still ours.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, dlpack::PLAIN.as_ptr()) != 0 {
            delete_plain(ffi::PyCapsule_GetPointer(capsule, dlpack::PLAIN.as_ptr()).cast());
        }
    }
}

/// # Safety
/// As [`discard_plain`].
unsafe extern "C" fn discard_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as above.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, dlpack::VERSIONED.as_ptr()) != 0 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, dlpack::VERSIONED.as_ptr()).cast());
        }
    }
}

fn capsule<'py>(
    py: Python<'py>,
    managed: *mut c_void,
    name: &'static CStr,
    discard: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the pointer is not null, the name lives for ever, and the destructor knows what the capsule holds.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyCapsule_New(managed, name.as_ptr(), Some(discard))) }
}

/// A `shape` argument: a number, or a sequence of numbers.
pub(crate) fn shape_of(shape: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    if let Ok(length) = shape.extract::<usize>() {
        return Ok(vec![length]);
    }
    shape.extract().or_else(|_| {
        let given = shape.repr()?.to_string();
        Err(invalid(shape.py(), "alloc", "the shape", &Wrong::Shape { given }))
    })
}
