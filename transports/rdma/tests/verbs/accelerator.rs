//! Dma-bufs to be registered: the testbed's accelerator's, and those of the kernel's own udmabuf.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use windlass_memory::accelerator::kernel::Driver;
use windlass_memory::accelerator::kernel::testbed::{Device, Stat};

#[derive(Debug)]
pub(crate) struct Accelerator(Device);

impl Accelerator {
    /// The testbed's; where it is not, says so.
    pub(crate) fn open() -> Option<Self> {
        Device::open().map_err(|error| println!("skipped: device memory, because {error}")).ok().map(Self)
    }

    pub(crate) fn allocate(&self, bytes: u64) -> DmaBuf {
        DmaBuf { descriptor: self.0.allocate(bytes).expect("allocated"), bytes: bytes as usize }
    }

    pub(crate) fn shift(&self, buffer: &DmaBuf) -> Result<(), i32> {
        self.0.shift(buffer.descriptor(), false).map_err(|error| error.errno)
    }

    pub(crate) fn revoke(&self, buffer: &DmaBuf) -> Result<(), i32> {
        self.0.revoke(buffer.descriptor()).map_err(|error| error.errno)
    }

    pub(crate) fn stat(&self, buffer: &DmaBuf) -> Stat {
        self.0.stat(Some(buffer.descriptor())).expect("counted")
    }
}

/// A dma-buf that the CPU can look into.
#[derive(Debug)]
pub(crate) struct DmaBuf {
    descriptor: OwnedFd,
    pub(crate) bytes: usize,
}

impl DmaBuf {
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Whether all of a range is `value`, as the CPU sees it now.
    pub(crate) fn holds(&self, offset: usize, bytes: usize, value: u8) -> bool {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: a new mapping, of the whole buffer.
        let at = unsafe {
            mmap(std::ptr::null_mut(), self.bytes, ProtFlags::READ, MapFlags::SHARED, &self.descriptor, 0)
        };
        let at = at.expect("mapped").cast::<u8>();
        // SAFETY: in the mapping; volatile, as the NIC has written it.
        let same = (offset..offset + bytes).all(|i| unsafe { at.add(i).read_volatile() } == value);
        // SAFETY: mapped above.
        unsafe { munmap(at.cast(), self.bytes) }.expect("unmapped");
        same
    }
}

/// A dma-buf of the kernel's udmabuf.
pub(crate) fn udmabuf(bytes: usize) -> Option<DmaBuf> {
    let driver =
        Driver::open("udmabuf").map_err(|error| println!("skipped: udmabuf, because {error}")).ok()?;
    Some(DmaBuf { descriptor: driver.allocate(bytes as u64).expect("allocated"), bytes })
}
