//! A Python object as memory: registered buffers, device memory, the buffer protocol, DLPack. Nothing is copied.

use std::ffi::CStr;

use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};
use windlass::DataType;

use crate::buffer::Buffer;
use crate::device::DeviceBuffer;
use crate::dlpack::{self, Plain, Tensor, Versioned};
use crate::dtype;
use crate::error::{Wrong, invalid};
use crate::keep::{Held, View};
use crate::registration;

/// Contiguous elements of one type.
pub(crate) struct Array {
    pub(crate) address: *mut u8,
    pub(crate) count: usize,
    pub(crate) data_type: DataType,
    lender: Lender,
}

/// Whose memory it is.
enum Lender {
    Buffer(Py<Buffer>),
    Device(Py<DeviceBuffer>),
    View(View),
    /// The capsule and what it holds. As long as the capsule lives, unused, the exporter keeps the tensor.
    Capsule(Py<PyAny>, *const Tensor),
}

/// What the memory is for, for errors and for the exporter.
#[derive(Clone, Copy)]
pub(crate) struct Purpose {
    pub(crate) operation: &'static str,
    pub(crate) argument: &'static str,
    pub(crate) write: bool,
}

impl Purpose {
    fn wrong(self, py: Python<'_>, wrong: &Wrong) -> PyErr {
        invalid(py, self.operation, self.argument, wrong)
    }
}

const STRICT: i32 = ffi::PyBUF_FORMAT | ffi::PyBUF_C_CONTIGUOUS;

impl Array {
    pub(crate) fn of(object: &Bound<'_, PyAny>, purpose: Purpose) -> PyResult<Self> {
        if let Ok(buffer) = object.cast_exact::<Buffer>() {
            return Ok(Self::of_buffer(buffer));
        }
        if let Ok(buffer) = object.cast_exact::<DeviceBuffer>() {
            return Ok(Self::of_device(buffer));
        }
        Self::exported(object, purpose, None)
    }

    /// By the buffer protocol, or else otherwise; `known` is the elements' type where the exporter does not say it.
    #[inline]
    fn exported(object: &Bound<'_, PyAny>, purpose: Purpose, known: Option<DataType>) -> PyResult<Self> {
        let flags = if purpose.write { STRICT | ffi::PyBUF_WRITABLE } else { STRICT };
        match View::of(object, flags) {
            Ok(view) => {
                let Some(data_type) = known.or_else(|| type_of(&view)) else {
                    let given = format_of(&view).to_string_lossy().into_owned();
                    return Err(purpose.wrong(object.py(), &Wrong::ElementType { given }));
                };
                Ok(Self::of_view(view, data_type))
            }
            Err(refusal) => Self::otherwise(object, purpose, refusal),
        }
    }

    pub(crate) fn of_buffer(buffer: &Bound<'_, Buffer>) -> Self {
        let this = buffer.get();
        Self {
            address: this.address(),
            count: this.count(),
            data_type: this.data_type(),
            lender: Lender::Buffer(buffer.clone().unbind()),
        }
    }

    pub(crate) fn of_device(buffer: &Bound<'_, DeviceBuffer>) -> Self {
        let this = buffer.get();
        Self {
            address: this.address(),
            count: this.count(),
            data_type: this.data_type(),
            lender: Lender::Device(buffer.clone().unbind()),
        }
    }

    /// The device memory that it is, if it is.
    pub(crate) fn device(&self) -> Option<&DeviceBuffer> {
        match &self.lender {
            Lender::Device(buffer) => Some(buffer.get()),
            _ => None,
        }
    }

    fn of_view(view: View, data_type: DataType) -> Self {
        let raw = view.raw();
        let count = raw.len as usize / data_type.size_bytes();
        Self { address: raw.buf.cast(), count, data_type, lender: Lender::View(view) }
    }

    /// The object does not lend its memory as it is needed: finds another way, or why there is none.
    #[cold]
    fn otherwise(object: &Bound<'_, PyAny>, purpose: Purpose, refusal: PyErr) -> PyResult<Self> {
        let py = object.py();
        if let Ok(view) = View::of(object, ffi::PyBUF_FULL_RO) {
            let raw = view.raw();
            // SAFETY: the view is filled.
            let contiguous = unsafe { ffi::PyBuffer_IsContiguous(raw, b'C' as _) } != 0;
            let wrong = if !contiguous { Wrong::NotContiguous } else { Wrong::ReadOnly };
            return Err(caused(py, purpose.wrong(py, &wrong), refusal));
        }
        if let Some(array) = Self::of_extended(object, purpose)? {
            return Ok(array);
        }
        if object.hasattr("__dlpack__")? {
            return Self::of_dlpack(object, purpose);
        }
        let class = object.get_type().fully_qualified_name()?.to_string();
        Err(caused(py, purpose.wrong(py, &Wrong::NoMemory { class }), refusal))
    }

    /// An array of NumPy's whose elements (`ml_dtypes`) the buffer protocol has no name for: the same memory as integers of the same size.
    fn of_extended(object: &Bound<'_, PyAny>, purpose: Purpose) -> PyResult<Option<Self>> {
        let py = object.py();
        let (Ok(type_object), true) = (object.getattr("dtype"), object.hasattr("__array_interface__")?)
        else {
            return Ok(None);
        };
        let Some(data_type) = dtype::of(&type_object) else {
            let given = type_object.str()?.to_string();
            return Err(purpose.wrong(py, &Wrong::ElementType { given }));
        };
        let integers = format!("uint{}", 8 * data_type.size_bytes());
        let bare = object.call_method1("view", (integers,))?;
        Self::exported(&bare, purpose, Some(data_type)).map(Some)
    }

    fn of_dlpack(object: &Bound<'_, PyAny>, purpose: Purpose) -> PyResult<Self> {
        let py = object.py();
        let (kind, _): (i32, i32) = object.call_method0("__dlpack_device__")?.extract()?;
        if kind != dlpack::CPU {
            return Err(purpose.wrong(py, &Wrong::Device { kind }));
        }
        let arguments = PyDict::new(py);
        arguments.set_item("max_version", (1, 0))?;
        let capsule = match object.call_method("__dlpack__", (), Some(&arguments)) {
            // An exporter that is older than versions.
            Err(e) if e.is_instance_of::<PyTypeError>(py) => object.call_method0("__dlpack__"),
            other => other,
        };
        // As torch, of a tensor that needs a gradient.
        let capsule = capsule.map_err(|refusal| {
            if !refusal.is_instance_of::<PyException>(py) {
                return refusal;
            }
            let reason = refusal.value(py).to_string();
            caused(py, purpose.wrong(py, &Wrong::NotLent { reason }), refusal)
        })?;
        let capsule = capsule.cast_into::<PyCapsule>()?;
        let (tensor, read_only) = tensor_of(&capsule)?;
        // SAFETY: the capsule is alive and its tensor with it.
        let (at, contiguous) = unsafe { (&*tensor, (*tensor).is_contiguous()) };
        if !contiguous {
            return Err(purpose.wrong(py, &Wrong::NotContiguous));
        }
        if read_only && purpose.write {
            return Err(purpose.wrong(py, &Wrong::ReadOnly));
        }
        let Some(data_type) = dtype::from_dlpack(at.kind, at.bits, at.lanes) else {
            let given = format!("DLPack kind {}, {} bits × {}", at.kind, at.bits, at.lanes);
            return Err(purpose.wrong(py, &Wrong::ElementType { given }));
        };
        // SAFETY: as above.
        let count = unsafe { at.shape() }.iter().product::<i64>() as usize;
        let address = at.data.cast::<u8>().wrapping_add(at.byte_offset as usize);
        Ok(Self { address, count, data_type, lender: Lender::Capsule(capsule.into_any().unbind(), tensor) })
    }

    /// The lengths of its dimensions.
    pub(crate) fn shape(&self) -> Vec<usize> {
        match &self.lender {
            Lender::Buffer(buffer) => buffer.get().shape().collect(),
            Lender::Device(buffer) => buffer.get().shape().to_vec(),
            Lender::View(view) => {
                let raw = view.raw();
                if raw.shape.is_null() {
                    return vec![self.count];
                }
                // SAFETY: the exporter keeps a length for each dimension while the view is not released.
                let shape = unsafe { std::slice::from_raw_parts(raw.shape, raw.ndim as usize) };
                shape.iter().map(|&length| length as usize).collect()
            }
            Lender::Capsule(_, tensor) => {
                // SAFETY: the capsule is alive and its tensor with it.
                let shape = unsafe { (**tensor).shape() };
                shape.iter().map(|&length| length as usize).collect()
            }
        }
    }

    /// Hands the memory's lender over to whoever keeps it during the operation.
    pub(crate) fn hand_to(self, held: &mut Held) {
        registration::keep(self.address, held);
        match self.lender {
            Lender::Buffer(buffer) => held.objects.push(buffer.into_any()),
            Lender::Device(buffer) => held.objects.push(buffer.into_any()),
            Lender::View(view) => held.views.push(view),
            Lender::Capsule(capsule, _) => held.objects.push(capsule),
        }
    }
}

fn caused(py: Python<'_>, error: PyErr, cause: PyErr) -> PyErr {
    error.set_cause(py, Some(cause));
    error
}

fn format_of(view: &View) -> &CStr {
    let format = view.raw().format;
    // SAFETY: an exporter that gives a format keeps it, with its end, while the view is not released. None means bytes.
    if format.is_null() { c"B" } else { unsafe { CStr::from_ptr(format) } }
}

fn type_of(view: &View) -> Option<DataType> {
    let raw = view.raw();
    dtype::from_format(format_of(view).to_bytes(), raw.itemsize as usize)
        .filter(|data_type| data_type.size_bytes() == raw.itemsize as usize)
}

/// The tensor in a capsule, and whether it may not be written.
fn tensor_of(capsule: &Bound<'_, PyCapsule>) -> PyResult<(*const Tensor, bool)> {
    if capsule.is_valid_checked(Some(dlpack::VERSIONED)) {
        let versioned = capsule.pointer_checked(Some(dlpack::VERSIONED))?.as_ptr().cast::<Versioned>();
        // SAFETY: a capsule of this name holds this structure.
        let flags = unsafe { (*versioned).flags };
        // SAFETY: as above.
        return Ok((unsafe { &raw const (*versioned).tensor }, flags & dlpack::READ_ONLY != 0));
    }
    let plain = capsule.pointer_checked(Some(dlpack::PLAIN))?.as_ptr().cast::<Plain>();
    // SAFETY: as above.
    Ok((unsafe { &raw const (*plain).tensor }, false))
}
