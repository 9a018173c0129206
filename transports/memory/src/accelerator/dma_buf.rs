//! What the kernel offers of every dma-buf: what it is, how long it is, and when the CPU may look.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{SeekFrom, fstat, fstatfs, seek};
use rustix::io::Errno;

use crate::MemoryError;
use crate::accelerator::{AcceleratorError, BadDescriptor};

/// The dma-bufs' own file system: `DMA_BUF_MAGIC`.
const FILE_SYSTEM: u64 = 0x444d_4142;
/// `DMA_BUF_IOCTL_SYNC`: `_IOW('b', 0, u64)`.
const SYNC: u64 = 0x4008_6200;
/// `DMA_BUF_SYNC_RW`, and `DMA_BUF_SYNC_END`.
const READ_AND_WRITE: u64 = 3;
const END: u64 = 4;

/// The CPU is about to look, or has looked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Look {
    Begins,
    Ends,
}

/// Whether a descriptor is of a dma-buf.
///
/// # Errors
/// [`BadDescriptor::Closed`].
pub fn is(descriptor: BorrowedFd<'_>) -> Result<bool, BadDescriptor> {
    let stat = fstatfs(descriptor).map_err(|_| BadDescriptor::Closed)?;
    Ok(u64::try_from(stat.f_type) == Ok(FILE_SYSTEM))
}

/// Its length.
pub(super) fn length(descriptor: BorrowedFd<'_>) -> Result<u64, AcceleratorError> {
    Ok(seek(descriptor, SeekFrom::End(0)).map_err(|errno| MemoryError::new("lseek(SEEK_END)", errno, 0))?)
}

/// What all descriptors of the same memory have in common.
pub(super) fn file(descriptor: BorrowedFd<'_>) -> Result<(u64, u64), BadDescriptor> {
    let stat = fstat(descriptor).map_err(|_| BadDescriptor::Closed)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Brackets looks by the CPU: waits for a move's fence, and keeps caches right where devices do not.
pub(super) fn sync(descriptor: BorrowedFd<'_>, look: Look) -> Result<(), MemoryError> {
    let mut flags = READ_AND_WRITE | if look == Look::Ends { END } else { 0 };
    // SAFETY: the kernel reads the eight bytes of `flags`, which is what this request is encoded to take.
    unsafe { ioctl(descriptor, SYNC, "ioctl(DMA_BUF_IOCTL_SYNC)", &mut flags) }.map(drop)
}

/// A request of a driver, done again when a signal has interrupted it.
///
/// # Safety
/// `argument` is what the driver reads and writes for `request`.
pub(super) unsafe fn ioctl<T>(
    descriptor: BorrowedFd<'_>,
    request: u64,
    call: &'static str,
    argument: &mut T,
) -> Result<i32, MemoryError> {
    loop {
        // SAFETY: the caller's promise; the argument lives for the call.
        let result =
            unsafe { libc::ioctl(descriptor.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
        if result >= 0 {
            return Ok(result);
        }
        let errno =
            std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        if errno != Errno::INTR && errno != Errno::AGAIN {
            return Err(MemoryError::new(call, errno, 0));
        }
    }
}
