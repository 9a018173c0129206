//! The kernel's own exporters of RAM, whose memory never moves: the system's dma-heap and udmabuf.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;

use super::Exporter;
use crate::MemoryError;
use crate::accelerator::dma_buf::ioctl;
use crate::accelerator::registry::node;
use crate::accelerator::{AcceleratorError, OpenError};

/// `DMA_HEAP_IOCTL_ALLOC`: `_IOWR('H', 0, struct dma_heap_allocation_data)`.
const HEAP_ALLOC: u64 = 0xc018_4800;
/// `UDMABUF_CREATE`: `_IOW('u', 0x42, struct udmabuf_create)`, and `UDMABUF_FLAGS_CLOEXEC`.
const UDMABUF_CREATE: u64 = 0x4018_7542;
const UDMABUF_CLOEXEC: u32 = 1;

#[repr(C)]
struct HeapAlloc {
    bytes: u64,
    descriptor: u32,
    descriptor_flags: u32,
    heap_flags: u64,
}

#[repr(C)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    bytes: u64,
}

/// A driver's refusal of an allocation.
pub(super) fn shortage(error: MemoryError, bytes: u64) -> AcceleratorError {
    if error.errno == Errno::NOMEM.raw_os_error() {
        return AcceleratorError::OutOfMemory { wanted_bytes: bytes, free_bytes: 0, reclaiming: false };
    }
    error.into()
}

/// RAM of the machine's must be there before somebody is killed for it.
fn check(bytes: u64) -> Result<(), MemoryError> {
    crate::available::check(usize::try_from(bytes).unwrap_or(usize::MAX))
}

#[derive(Debug)]
pub(super) struct DmaHeap(File);

impl DmaHeap {
    pub(super) fn open() -> Result<Self, OpenError> {
        let fix =
            "the kernel needs CONFIG_DMABUF_HEAPS_SYSTEM, and this user the right to read and write the node";
        node("dma-heap", "/dev/dma_heap/system", fix).map(Self)
    }
}

impl Exporter for DmaHeap {
    fn allocate(&self, bytes: u64) -> Result<OwnedFd, AcceleratorError> {
        check(bytes)?;
        let descriptor_flags = (libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned();
        let mut alloc = HeapAlloc { bytes, descriptor: 0, descriptor_flags, heap_flags: 0 };
        // SAFETY: the request's argument is a `HeapAlloc`; on success the descriptor in it is new and nobody else's.
        unsafe {
            ioctl(self.0.as_fd(), HEAP_ALLOC, "ioctl(DMA_HEAP_IOCTL_ALLOC)", &mut alloc)
                .map_err(|error| shortage(error, bytes))?;
            Ok(OwnedFd::from_raw_fd(alloc.descriptor.cast_signed()))
        }
    }
}

#[derive(Debug)]
pub(super) struct Udmabuf(File);

impl Udmabuf {
    pub(super) fn open() -> Result<Self, OpenError> {
        let fix =
            "load its driver (modprobe udmabuf), and give this user the right to read and write the node";
        node("udmabuf", "/dev/udmabuf", fix).map(Self)
    }
}

impl Exporter for Udmabuf {
    fn allocate(&self, bytes: u64) -> Result<OwnedFd, AcceleratorError> {
        check(bytes)?;
        let fail = |call| move |errno| MemoryError::new(call, errno, bytes as usize);
        let memfd = memfd_create("windlass-udmabuf", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(fail("memfd_create"))?;
        ftruncate(&memfd, bytes).map_err(fail("ftruncate"))?;
        fcntl_add_seals(&memfd, SealFlags::SHRINK).map_err(fail("fcntl(F_ADD_SEALS)"))?;
        let memfd_number = memfd.as_raw_fd().cast_unsigned();
        let mut create = UdmabufCreate { memfd: memfd_number, flags: UDMABUF_CLOEXEC, offset: 0, bytes };
        // SAFETY: the request's argument is a `UdmabufCreate`; on success its result is a descriptor, new and nobody else's.
        unsafe {
            let descriptor = ioctl(self.0.as_fd(), UDMABUF_CREATE, "ioctl(UDMABUF_CREATE)", &mut create)
                .map_err(|error| limits(error, bytes))?;
            Ok(OwnedFd::from_raw_fd(descriptor))
        }
    }
}

/// The driver refuses what exceeds its limits as it does what is wrong.
fn limits(error: MemoryError, bytes: u64) -> AcceleratorError {
    if error.errno == Errno::INVAL.raw_os_error() {
        let hint = "a buffer exceeds the driver's limits: raise /sys/module/udmabuf/parameters/size_limit_mb and list_limit";
        return MemoryError { bytes: bytes as usize, hint, ..error }.into();
    }
    shortage(error, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_long_as_their_arguments() {
        let size = |request: u64| (request >> 16 & 0x3fff) as usize;
        assert_eq!(size(HEAP_ALLOC), size_of::<HeapAlloc>());
        assert_eq!(size(UDMABUF_CREATE), size_of::<UdmabufCreate>());
    }
}
