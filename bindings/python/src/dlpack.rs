//! DLPack's tensors, as they lie in memory: how arrays of one library become another's without a copy.
//!
//! <https://dmlc.github.io/dlpack/latest/c_api.html>

use std::ffi::{CStr, c_void};

pub(crate) const PLAIN: &CStr = c"dltensor";
pub(crate) const VERSIONED: &CStr = c"dltensor_versioned";
/// The processor's memory.
pub(crate) const CPU: i32 = 1;
/// In [`Versioned::flags`].
pub(crate) const READ_ONLY: u64 = 1;

#[repr(C)]
pub(crate) struct Tensor {
    pub(crate) data: *mut c_void,
    pub(crate) device: i32,
    pub(crate) device_id: i32,
    pub(crate) dimensions: i32,
    pub(crate) kind: u8,
    pub(crate) bits: u8,
    pub(crate) lanes: u16,
    pub(crate) shape: *mut i64,
    /// In elements; null means contiguous.
    pub(crate) strides: *mut i64,
    pub(crate) byte_offset: u64,
}

#[repr(C)]
pub(crate) struct Plain {
    pub(crate) tensor: Tensor,
    pub(crate) context: *mut c_void,
    pub(crate) deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

#[repr(C)]
pub(crate) struct Versioned {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) context: *mut c_void,
    pub(crate) deleter: Option<unsafe extern "C" fn(*mut Self)>,
    pub(crate) flags: u64,
    pub(crate) tensor: Tensor,
}

impl Tensor {
    /// The lengths of the dimensions.
    ///
    /// # Safety
    /// The tensor is one that its exporter still keeps.
    pub(crate) unsafe fn shape(&self) -> &[i64] {
        let dimensions = self.dimensions.max(0) as usize;
        if dimensions == 0 || self.shape.is_null() {
            return &[];
        }
        // SAFETY: the exporter keeps as many lengths as there are dimensions.
        unsafe { std::slice::from_raw_parts(self.shape, dimensions) }
    }

    /// Whether the elements lie next to each other, the last dimension's closest.
    ///
    /// # Safety
    /// As [`shape`](Self::shape).
    pub(crate) unsafe fn is_contiguous(&self) -> bool {
        // SAFETY: the caller's.
        let shape = unsafe { self.shape() };
        if self.strides.is_null() || shape.contains(&0) {
            return true;
        }
        // SAFETY: as many strides as dimensions, as above.
        let strides = unsafe { std::slice::from_raw_parts(self.strides, shape.len()) };
        let mut expected = 1;
        shape.iter().zip(strides).rev().all(|(&length, &stride)| {
            let fits = length == 1 || stride == expected;
            expected *= length;
            fits
        })
    }
}
