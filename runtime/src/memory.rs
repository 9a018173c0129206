//! The memory that operations own, borrow and return.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use windlass_kernels::{DataType, Element};
use windlass_memory::{Allocation, Pool};

use crate::error::Error;
use crate::fork;

/// Memory as an operation sees it: an address, a number of elements, their type.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub(crate) address: *mut u8,
    pub(crate) count: usize,
    pub(crate) data_type: DataType,
}

impl Span {
    /// `count` elements at `address`.
    pub fn new<T: Element>(address: *mut T, count: usize) -> Self {
        Self { address: address.cast(), count, data_type: T::DATA_TYPE }
    }

    /// Where it begins, for a raw request. Of device memory this is a name and no address: whoever loads from it faults.
    pub const fn address(&self) -> *mut u8 {
        self.address
    }
}

/// Memory that an asynchronous operation may own while it reads it.
///
/// # Safety
/// The span stays valid and at its address when the value is moved, as long as the value lives; nothing else writes
/// it meanwhile.
pub unsafe trait Memory: Send + 'static {
    /// What it holds.
    type Element: Element;
    /// Its address and length.
    fn span(&mut self) -> Span;
}

/// Memory that an asynchronous operation may own while it writes it.
///
/// # Safety
/// As [`Memory`]; and nothing else reads it while the operation owns it.
pub unsafe trait MemoryMut: Memory {}

// SAFETY: a vector's elements stay in place while the vector is moved, and it owns them alone.
unsafe impl<T: Element> Memory for Vec<T> {
    type Element = T;
    fn span(&mut self) -> Span {
        Span::new(self.as_mut_ptr(), self.len())
    }
}
// SAFETY: as above.
unsafe impl<T: Element> MemoryMut for Vec<T> {}

// SAFETY: a box's elements stay in place while the box is moved, and it owns them alone. The pointer is taken before the
// operation is posted and the box is not dereferenced until it has ended.
unsafe impl<T: Element> Memory for Box<[T]> {
    type Element = T;
    fn span(&mut self) -> Span {
        Span::new(self.as_mut_ptr(), self.len())
    }
}
// SAFETY: as above.
unsafe impl<T: Element> MemoryMut for Box<[T]> {}

// SAFETY: an Arc's elements stay in place; shared, they are only read, and this is no MemoryMut.
unsafe impl<T: Element> Memory for Arc<[T]> {
    type Element = T;
    fn span(&mut self) -> Span {
        Span::new(self.as_ptr().cast_mut(), self.len())
    }
}

/// Registered memory: peers on this host reach it directly, so collectives over it copy nothing.
///
/// A slice to its owner. Made by [`Communicator::alloc`](crate::Communicator::alloc), zeroed, page-aligned.
pub struct Buffer<T: Element> {
    allocation: ManuallyDrop<Allocation>,
    base: NonNull<T>,
    count: usize,
    element: PhantomData<T>,
}

// SAFETY: a buffer owns its elements alone, and elements are plain data.
unsafe impl<T: Element> Send for Buffer<T> {}
// SAFETY: as above; shared references only read.
unsafe impl<T: Element> Sync for Buffer<T> {}

impl<T: Element> Buffer<T> {
    pub(crate) fn allocate(pool: &Arc<Pool>, count: usize) -> Result<Self, Error> {
        let bytes = count.checked_mul(size_of::<T>()).filter(|b| isize::try_from(*b).is_ok());
        let bytes = bytes.ok_or(Error::InvalidArgument {
            operation: "alloc",
            argument: "the buffer",
            problem: crate::error::Problem::TooLarge { count: count as u64 },
        })?;
        let allocation = pool.allocate(bytes)?;
        let base = allocation.base().cast();
        Ok(Self { allocation: ManuallyDrop::new(allocation), base, count, element: PhantomData })
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if !fork::is_forked() {
            // SAFETY: dropped once, here; not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.allocation) };
        }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the allocation holds `count` elements, initialised to zero, for which every bit pattern is a value. Peers
        // write it only while an operation owns or mutably borrows the buffer.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.count) }
    }
}

impl<T: Element + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("count", &self.count).finish_non_exhaustive()
    }
}

// SAFETY: the elements lie in shared memory that stays mapped while the buffer lives, wherever it is moved; it owns them alone.
unsafe impl<T: Element> Memory for Buffer<T> {
    type Element = T;
    fn span(&mut self) -> Span {
        Span::new(self.base.as_ptr(), self.count)
    }
}
// SAFETY: as above.
unsafe impl<T: Element> MemoryMut for Buffer<T> {}

/// Whether any of these ranges of addresses, each with whether it is written, lies in part where a written one lies.
pub(crate) fn collide(ranges: impl Iterator<Item = (usize, usize, bool)>) -> bool {
    let mut ranges: Vec<_> = ranges.filter(|(begin, end, _)| begin < end).collect();
    ranges.sort_unstable();
    // How far the ranges seen so far reach: all, and those that are written.
    let (mut all, mut written) = (0, 0);
    for (begin, end, writes) in ranges {
        if begin < written || writes && begin < all {
            return true;
        }
        all = all.max(end);
        if writes {
            written = written.max(end);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::collide;

    #[test]
    fn ranges_collide_where_one_of_two_is_written() {
        let apart = [(0, 4, true), (8, 12, true), (4, 8, false), (5, 7, false), (4, 4, true)];
        assert!(!collide(apart.into_iter()));
        for one in [(7, 9, false), (6, 7, true), (0, 1, true), (3, 100, false)] {
            assert!(collide(apart.into_iter().chain([one])), "{one:?}");
        }
        // One that reaches over several.
        assert!(collide([(0, 100, true), (10, 20, false), (30, 40, false)].into_iter()));
        assert!(!collide(std::iter::empty()));
    }
}
