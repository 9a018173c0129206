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

#[repr(C)]
#[derive(Default)]
struct Stat {
    dmabuf: i32,
    revoked: u32,
    bytes: u64,
    moves: u64,
    maps: u64,
    pins: u64,
    kept_bytes: u64,
    stale_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Testbed {
    node: File,
    /// What had been found before.
    stale_bytes: u64,
}

impl Testbed {
    pub(super) fn open() -> Result<Self, OpenError> {
        let fix = "it is the testbed's: run the command by deploy/testbed/run";
        let node = super::super::registry::node("testbed", NODE, fix)?;
        let testbed = Self { node, stale_bytes: 0 };
        let stale_bytes = testbed.all_stale_bytes().unwrap_or(0);
        Ok(Self { stale_bytes, ..testbed })
    }

    fn all_stale_bytes(&self) -> Option<u64> {
        let mut stat = Stat { dmabuf: ALL, ..Stat::default() };
        // SAFETY: the request's argument is a `Stat`.
        unsafe { ioctl(self.node.as_fd(), STAT, "ioctl(WINDLASS_ACCELERATOR_STAT)", &mut stat) }.ok()?;
        Some(stat.stale_bytes)
    }
}

impl Exporter for Testbed {
    fn allocate(&self, bytes: u64) -> Result<OwnedFd, AcceleratorError> {
        let mut alloc = Alloc { bytes, dmabuf: -1, flags: 0 };
        // SAFETY: the request's argument is an `Alloc`; on success the descriptor in it is new and nobody else's.
        unsafe {
            ioctl(self.node.as_fd(), ALLOC, "ioctl(WINDLASS_ACCELERATOR_ALLOC)", &mut alloc)
                .map_err(|error| super::heaps::shortage(error, bytes))?;
            Ok(OwnedFd::from_raw_fd(alloc.dmabuf))
        }
    }

    fn mover(&self) -> Option<&dyn Mover> {
        Some(self)
    }
}

impl Mover for Testbed {
    fn shift(&self, buffer: BorrowedFd<'_>, force: bool) -> Result<(), MemoryError> {
        let flags = if force { FORCE } else { 0 };
        let mut request = Move { dmabuf: buffer.as_raw_fd(), flags, fence_ms: 0, reserved: 0 };
        // SAFETY: the request's argument is a `Move`.
        unsafe { ioctl(self.node.as_fd(), MOVE, "ioctl(WINDLASS_ACCELERATOR_MOVE)", &mut request) }.map(drop)
    }

    fn revoke(&self, buffer: BorrowedFd<'_>) -> Result<(), MemoryError> {
        let mut request = Revoke { dmabuf: buffer.as_raw_fd(), flags: 0 };
        // SAFETY: the request's argument is a `Revoke`.
        unsafe { ioctl(self.node.as_fd(), REVOKE, "ioctl(WINDLASS_ACCELERATOR_REVOKE)", &mut request) }
            .map(drop)
    }

    fn importers(&self, buffer: BorrowedFd<'_>) -> Result<u64, MemoryError> {
        let mut request = Stat { dmabuf: buffer.as_raw_fd(), ..Stat::default() };
        // SAFETY: the request's argument is a `Stat`.
        unsafe { ioctl(self.node.as_fd(), STAT, "ioctl(WINDLASS_ACCELERATOR_STAT)", &mut request) }?;
        Ok(request.maps)
    }

    fn stale_bytes(&self) -> Option<u64> {
        self.all_stale_bytes().map(|all| all.saturating_sub(self.stale_bytes))
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
