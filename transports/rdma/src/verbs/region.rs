//! Registered memory: host memory, and dma-bufs of accelerators.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::BitOr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use rdma_sys as sys;
use rdma_sys::ibv_access_flags as flag;
use windlass_memory::accelerator::is_dma_buf;

use super::device::{Device, Opened};
use super::error::{RegisterError, Subject, VerbError, last_errno};

/// Who may do what with a region.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Access(u32);

impl Access {
    /// This end's NIC reads it, which it always may: the source of writes.
    pub const LOCAL_READ: Self = Self(0);
    /// This end's NIC writes it: the target of reads.
    pub const LOCAL_WRITE: Self = Self(flag::IBV_ACCESS_LOCAL_WRITE.0);
    /// Peers that have the key write it.
    pub const REMOTE_WRITE: Self = Self(flag::IBV_ACCESS_LOCAL_WRITE.0 | flag::IBV_ACCESS_REMOTE_WRITE.0);
    /// Peers that have the key read it.
    pub const REMOTE_READ: Self = Self(flag::IBV_ACCESS_REMOTE_READ.0);
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Whether a NIC registers dma-bufs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DmaBufSupport {
    /// It does.
    Yes,
    /// Its driver has no such call, and answers with this error.
    No {
        /// `EOPNOTSUPP` or `EPROTONOSUPPORT`.
        errno: i32,
    },
    /// The library has no `ibv_reg_dmabuf_mr`: it is older than rdma-core 34.
    LibraryTooOld,
    /// The question was answered with an error that says neither.
    Unclear {
        /// It.
        errno: i32,
    },
}

impl DmaBufSupport {
    /// From what is answered when descriptor -1 is to be registered.
    fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EBADF => Self::Yes,
            libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOSYS => Self::No { errno },
            _ => Self::Unclear { errno },
        }
    }
}

impl Device {
    /// Whether it registers dma-bufs, asked by the registration of no descriptor.
    pub fn dmabuf_support(&self) -> DmaBufSupport {
        let Some(register) = self.0.functions().ibv_reg_dmabuf_mr else {
            return DmaBufSupport::LibraryTooOld;
        };
        // SAFETY: the domain lives, and -1 is no descriptor, so nothing is registered.
        let raw = unsafe { register(self.0.domain, 0, 4096, 0, -1, Access::LOCAL_WRITE.0 as i32) };
        let errno = last_errno();
        if raw.is_null() {
            return DmaBufSupport::from_errno(errno);
        }
        // SAFETY: whatever it was that the driver registered, it is given back.
        unsafe { (self.0.functions().ibv_dereg_mr)(raw) };
        DmaBufSupport::Unclear { errno: 0 }
    }
}

/// Memory that the NIC reaches by its keys, until it is deregistered.
pub struct MemoryRegion {
    device: Arc<Opened>,
    raw: *mut sys::ibv_mr,
    address: u64,
    bytes: usize,
}

// SAFETY: the verbs may be called from any thread with the same region; its memory is not reached through it.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above.
unsafe impl Sync for MemoryRegion {}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRegion")
            .field("device", &self.device.name)
            .field("address", &format_args!("{:#x}", self.address))
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: it came from a registration, and has not been deregistered: that consumes it.
        unsafe { (self.device.functions().ibv_dereg_mr)(self.raw) };
    }
}

impl MemoryRegion {
    /// Registers `bytes` bytes of this process's memory. Pins it, and is slow.
    ///
    /// # Safety
    /// The memory stays mapped where it is until the region is deregistered. What peers with its key, or requests that name it, do to it is the program's affair: it
    /// is neither read nor written in Rust where the NIC may write it, unless completions order the two.
    ///
    /// # Errors
    /// Each says what to do.
    pub unsafe fn register(
        device: &Device,
        memory: *mut u8,
        bytes: usize,
        access: Access,
    ) -> Result<Self, RegisterError> {
        let opened = Arc::clone(&device.0);
        let address = memory.expose_provenance() as u64;
        // SAFETY: the domain lives as long as the region, which keeps it; the caller answers for the memory.
        let raw =
            unsafe { (opened.functions().ibv_reg_mr)(opened.domain, memory.cast(), bytes, access.0 as i32) };
        if raw.is_null() {
            return Err(RegisterError::new(&Subject::Host { bytes }, &opened.name, last_errno()));
        }
        Ok(Self { device: opened, raw, address, bytes })
    }

    /// Registers `bytes` bytes at `offset` of a dma-buf. Work requests and peers name its first byte by `address`, which may be any that has the same place in
    /// its page as `offset`. The descriptor may be closed afterwards.
    ///
    /// # Errors
    /// Each says what to do.
    pub fn register_dmabuf(
        device: &Device,
        dmabuf: BorrowedFd<'_>,
        offset: u64,
        bytes: usize,
        address: u64,
        access: Access,
    ) -> Result<Self, RegisterError> {
        let opened = Arc::clone(&device.0);
        let subject = Subject::DmaBuf { descriptor: dmabuf.as_raw_fd(), offset, bytes };
        let failed = |errno| RegisterError::new(&subject, &opened.name, errno);
        let register = opened.functions().ibv_reg_dmabuf_mr.ok_or_else(|| failed(libc::EOPNOTSUPP))?;
        // SAFETY: the domain lives as long as the region, which keeps it. The memory is the dma-buf's, which the kernel keeps.
        let raw =
            unsafe { register(opened.domain, offset, bytes, address, dmabuf.as_raw_fd(), access.0 as i32) };
        if raw.is_null() {
            return Err(failed(match last_errno() {
                // The kernel says the same of a wrong range and of a descriptor of something else.
                libc::EINVAL if !is_dma_buf(dmabuf).unwrap_or(false) => libc::EBADF,
                errno => errno,
            }));
        }
        Ok(Self { device: Arc::clone(&opened), raw, address, bytes })
    }

    /// The key that this end's work requests name it by.
    pub fn local_key(&self) -> u32 {
        // SAFETY: the region lives.
        unsafe { (*self.raw).lkey }
    }

    /// The key that peers name it by.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: the region lives.
        unsafe { (*self.raw).rkey }
    }

    /// Where it begins, as work requests and peers name it.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes it away from the NIC. After the return nothing reaches the memory by its keys.
    ///
    /// # Errors
    /// When the device has been removed, or the driver does not let go: then the memory must stay.
    pub fn deregister(self) -> Result<(), VerbError> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: it came from a registration, and is not dropped after this.
        let code = unsafe { (this.device.functions().ibv_dereg_mr)(this.raw) };
        let result = this.device.checked("ibv_dereg_mr", code);
        // SAFETY: the field is not used after this, and its owner is not dropped.
        drop(unsafe { std::ptr::read(&raw mut this.device) });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_s_answers_are_read_right() {
        assert_eq!(DmaBufSupport::from_errno(libc::EBADF), DmaBufSupport::Yes);
        let no = |errno| DmaBufSupport::No { errno };
        assert_eq!(DmaBufSupport::from_errno(libc::EOPNOTSUPP), no(libc::EOPNOTSUPP));
        assert_eq!(DmaBufSupport::from_errno(libc::EPROTONOSUPPORT), no(libc::EPROTONOSUPPORT));
        assert_eq!(DmaBufSupport::from_errno(libc::EIO), DmaBufSupport::Unclear { errno: libc::EIO });
    }

    #[test]
    fn peers_may_write_only_what_this_end_may() {
        let both = Access::REMOTE_WRITE | Access::REMOTE_READ;
        assert_eq!(both.0, 1 | 2 | 4);
        assert_eq!(Access::default(), Access::LOCAL_READ);
    }
}
