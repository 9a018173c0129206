//! Memory of an accelerator, as whoever owns it sees it.

use std::fmt;
use std::marker::PhantomData;

use windlass_kernels::Element;
use windlass_memory::accelerator;

use super::{Device, address};
use crate::error::{Error, Problem};
use crate::fork;
use crate::memory::{Memory, MemoryMut, Span};

/// Memory of an accelerator, which may move at any time, also while operations use it.
///
/// The processor cannot touch it: [`write`](Self::write) and [`read`](Self::read) copy.
pub struct DeviceBuffer<T: Element> {
    pub(super) device: Device,
    pub(super) segment: u32,
    pub(super) slot: u32,
    pub(super) count: usize,
    pub(super) element: PhantomData<fn() -> T>,
}

impl<T: Element> fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceBuffer").field("count", &self.count).finish_non_exhaustive()
    }
}

impl<T: Element> DeviceBuffer<T> {
    /// Its elements.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What the accelerator calls the memory: the argument of its own calls.
    ///
    /// # Panics
    /// Never: a buffer's memory is freed by its drop alone.
    pub fn region(&self) -> accelerator::Region {
        self.device.attached.regions().memory_of(self.segment).expect("it is freed by its drop alone")
    }

    /// The address that stands for it in a [`RawRequest`](crate::RawRequest). Nothing lies there.
    pub fn address(&mut self) -> *mut T {
        address::encode(self.slot, 0).cast()
    }

    /// Copies from the host. Waits while the memory is on its way. O(n).
    ///
    /// # Errors
    /// `InvalidArgument` for another length; `RegionRevoked` when the memory was lost; `TimedOut` when it does not come back.
    pub fn write(&mut self, from: &[T]) -> Result<(), Error> {
        self.check("write", from.len())?;
        self.write_at(0, from)
    }

    /// Copies to the host. Waits while the memory is on its way. O(n).
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&self, to: &mut [T]) -> Result<(), Error> {
        self.check("read", to.len())?;
        self.read_at(0, to)
    }

    /// As [`write`](Self::write), from element `first` on so many as the slice has.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_at(&mut self, first: usize, from: &[T]) -> Result<(), Error> {
        let to = self.part("write", first, from.len())?;
        let length = size_of_val(from);
        // SAFETY: elements are plain data, and every byte of them is initialised.
        let bytes = unsafe { std::slice::from_raw_parts(from.as_ptr().cast::<u8>(), length) };
        self.device.attached.write(to, bytes, self.device.job.config.timeout)
    }

    /// As [`read`](Self::read), from element `first` on so many as the slice has.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read_at(&self, first: usize, to: &mut [T]) -> Result<(), Error> {
        let from = self.part("read", first, to.len())?;
        let length = size_of_val(to);
        // SAFETY: elements are plain data, for which every pattern of bits is a value.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), length) };
        self.device.attached.read(from, bytes, self.device.job.config.timeout)
    }

    /// Where so many elements lie, if they do.
    fn part(&self, operation: &'static str, first: usize, count: usize) -> Result<*mut u8, Error> {
        if fork::is_forked() {
            return Err(Error::Forked { rank: self.device.job.rank });
        }
        if first.checked_add(count).is_none_or(|end| end > self.count) {
            let size = size_of::<T>() as u64;
            let (offset, bytes) = ((first as u64).saturating_mul(size), (count as u64).saturating_mul(size));
            let problem = Problem::BeyondEnd { offset, bytes, limit: self.count as u64 * size };
            return Err(Error::InvalidArgument { operation, argument: "the slice", problem });
        }
        Ok(address::encode(self.slot, (first * size_of::<T>()) as u64))
    }

    fn check(&self, operation: &'static str, actual: usize) -> Result<(), Error> {
        if actual == self.count {
            return Ok(());
        }
        let problem = Problem::WrongLength { expected: self.count as u64, actual: actual as u64 };
        Err(Error::InvalidArgument { operation, argument: "the slice", problem })
    }
}

impl<T: Element> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if !fork::is_forked() {
            let mut regions = self.device.attached.regions();
            regions.forget(self.slot);
            regions.free(self.segment);
        }
    }
}

// SAFETY: the span is a name, not an address: it stays what it is wherever the value is moved, and the engine reaches the memory by
// the accelerator alone.
unsafe impl<T: Element> Memory for DeviceBuffer<T> {
    type Element = T;
    fn span(&mut self) -> Span {
        Span::new(self.address(), self.count)
    }
}
// SAFETY: as above; a buffer owns its memory alone.
unsafe impl<T: Element> MemoryMut for DeviceBuffer<T> {}
