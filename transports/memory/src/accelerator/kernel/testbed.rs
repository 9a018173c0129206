//! The testbed's accelerator: `deploy/testbed/kernel/accelerator/windlass_accelerator.h` says what is asked of it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Exporter, Mover};
use crate::MemoryError;
use crate::accelerator::dma_buf::ioctl;
use crate::accelerator::{AcceleratorError, OpenError};

const NODE: &str = "/dev/windlass_accelerator";

/// `WINDLASS_ACCELERATOR_ALLOC` and the others: direction, size of the argument, 'W', number.
const ALLOC: u64 = 0xc010_5740;
const MOVE: u64 = 0x4010_5741;
const REVOKE: u64 = 0x4008_5742;
const STAT: u64 = 0xc038_5743;
const FORCE: u32 = 1;
/// `WINDLASS_ACCELERATOR_ALL`: the sums over every buffer since the module was loaded.
const ALL: i32 = -1;

#[repr(C)]
struct Alloc {
    bytes: u64,
    dmabuf: i32,
    flags: u32,
}

#[repr(C)]
struct Move {
    dmabuf: i32,
    flags: u32,
    fence_ms: u32,
    reserved: u32,
}

#[repr(C)]
struct Revoke {
    dmabuf: i32,
    flags: u32,
}

/// What the device counts, of a buffer or of all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stat {
    dmabuf: i32,
    /// Revoked buffers.
    pub revoked: u32,
    /// The memory's length.
    pub bytes: u64,
    /// Moves.
    pub moves: u64,
    /// Importers' mappings.
    pub maps: u64,
    /// Importers' pins.
    pub pins: u64,
    /// Bytes of pages given up that are watched.
    pub kept_bytes: u64,
    /// Bytes written into such pages.
    pub stale_bytes: u64,
}

/// The device, and what can be asked of it.
#[derive(Debug)]
pub struct Device(File);

impl Device {
    /// # Errors
    /// [`OpenError::NoDevice`] outside the testbed.
    pub fn open() -> Result<Self, OpenError> {
        let fix = "it is the testbed's: run the command by deploy/testbed/run";
        super::super::registry::node("testbed", NODE, fix).map(Self)
    }

    /// A new buffer of whole pages, as a dma-buf.
    ///
    /// # Errors
    /// ENOMEM; EINVAL for a length that is none of whole pages.
    pub fn allocate(&self, bytes: u64) -> Result<OwnedFd, MemoryError> {
        let mut alloc = Alloc { bytes, dmabuf: -1, flags: 0 };
        // SAFETY: the request's argument is an `Alloc`; on success the descriptor in it is new and nobody else's.
        unsafe {
            ioctl(self.0.as_fd(), ALLOC, "ioctl(WINDLASS_ACCELERATOR_ALLOC)", &mut alloc)?;
            Ok(OwnedFd::from_raw_fd(alloc.dmabuf))
        }
    }

    /// Moves a buffer.
    ///
    /// # Errors
    /// EBUSY: an importer has pinned it, and the move is not forced. ENODEV: it is revoked.
    pub fn shift(&self, buffer: BorrowedFd<'_>, force: bool) -> Result<(), MemoryError> {
        let flags = if force { FORCE } else { 0 };
        let mut request = Move { dmabuf: buffer.as_raw_fd(), flags, fence_ms: 0, reserved: 0 };
        // SAFETY: the request's argument is a `Move`.
        unsafe { ioctl(self.0.as_fd(), MOVE, "ioctl(WINDLASS_ACCELERATOR_MOVE)", &mut request) }.map(drop)
    }

    /// Takes a buffer's memory away for good.
    ///
    /// # Errors
    /// EBUSY: done, but an importer still reaches the old pages. ENODEV: it was revoked before.
    pub fn revoke(&self, buffer: BorrowedFd<'_>) -> Result<(), MemoryError> {
        let mut request = Revoke { dmabuf: buffer.as_raw_fd(), flags: 0 };
        // SAFETY: the request's argument is a `Revoke`.
        unsafe { ioctl(self.0.as_fd(), REVOKE, "ioctl(WINDLASS_ACCELERATOR_REVOKE)", &mut request) }.map(drop)
    }

    /// What is counted of a buffer, or of all since the device is there.
    ///
    /// # Errors
    /// EINVAL: it is none of the device's.
    pub fn stat(&self, buffer: Option<BorrowedFd<'_>>) -> Result<Stat, MemoryError> {
        let dmabuf = buffer.map_or(ALL, |buffer| buffer.as_raw_fd());
        let mut stat = Stat { dmabuf, ..Stat::default() };
        // SAFETY: the request's argument is a `Stat`.
        unsafe { ioctl(self.0.as_fd(), STAT, "ioctl(WINDLASS_ACCELERATOR_STAT)", &mut stat) }?;
        Ok(stat)
    }
}

#[derive(Debug)]
pub(super) struct Testbed {
    device: Device,
    /// What had been found before.
    stale_bytes: u64,
}

impl Testbed {
    pub(super) fn open() -> Result<Self, OpenError> {
        let device = Device::open()?;
        let stale_bytes = device.stat(None).map_or(0, |stat| stat.stale_bytes);
        Ok(Self { device, stale_bytes })
    }
}

impl Exporter for Testbed {
    fn allocate(&self, bytes: u64) -> Result<OwnedFd, AcceleratorError> {
        self.device.allocate(bytes).map_err(|error| super::heaps::shortage(error, bytes))
    }

    fn mover(&self) -> Option<&dyn Mover> {
        Some(self)
    }
}

impl Mover for Testbed {
    fn shift(&self, buffer: BorrowedFd<'_>, force: bool) -> Result<(), MemoryError> {
        self.device.shift(buffer, force)
    }

    fn revoke(&self, buffer: BorrowedFd<'_>) -> Result<(), MemoryError> {
        self.device.revoke(buffer)
    }

    fn importers(&self, buffer: BorrowedFd<'_>) -> Result<u64, MemoryError> {
        Ok(self.device.stat(Some(buffer))?.maps)
    }

    fn stale_bytes(&self) -> Option<u64> {
        let stat = self.device.stat(None).ok()?;
        Some(stat.stale_bytes.saturating_sub(self.stale_bytes))
    }

    fn stale_bytes_in(&self, buffer: BorrowedFd<'_>) -> Option<u64> {
        self.device.stat(Some(buffer)).ok().map(|stat| stat.stale_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The requests carry their arguments' sizes, which the kernel's header computes.
    #[test]
    fn requests_are_as_long_as_their_arguments() {
        let size = |request: u64| (request >> 16 & 0x3fff) as usize;
        let sizes = [size(ALLOC), size(MOVE), size(REVOKE), size(STAT)];
        assert_eq!(sizes, [size_of::<Alloc>(), size_of::<Move>(), size_of::<Revoke>(), size_of::<Stat>()]);
    }
}
