//! A driver that exports memory, without an accelerator on it: for whoever wants dma-bufs to register, or to try how a NIC takes their moves.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Exporter, NAMES, habanalabs, heaps, testbed};
use crate::accelerator::dma_buf::{self, Look};
use crate::accelerator::{AcceleratorError, OpenError};
use crate::{Mapping, MemoryError};

/// What can be asked of memory that moves.
pub trait Mover {
    /// New pages with the same bytes.
    ///
    /// # Errors
    /// EBUSY: an importer has pinned them, and `force` is not set. ENODEV: revoked.
    fn shift(&self, buffer: BorrowedFd<'_>, force: bool) -> Result<(), MemoryError>;

    /// Takes the memory away for good.
    ///
    /// # Errors
    /// EBUSY: done, but an importer still reaches the old pages. ENODEV: it was revoked before.
    fn revoke(&self, buffer: BorrowedFd<'_>) -> Result<(), MemoryError>;

    /// How many importers map it.
    ///
    /// # Errors
    /// EINVAL: it is none of the driver's.
    fn importers(&self, buffer: BorrowedFd<'_>) -> Result<u64, MemoryError>;

    /// Bytes written too late, into any memory, since the driver was opened here.
    fn stale_bytes(&self) -> Option<u64>;

    /// Bytes written too late into this one's.
    fn stale_bytes_in(&self, buffer: BorrowedFd<'_>) -> Option<u64>;
}

/// One of the drivers of [`NAMES`]. A clone is the same one.
#[derive(Clone, Debug)]
pub struct Driver {
    pub(super) name: &'static str,
    pub(super) exporter: Arc<dyn Exporter>,
}

impl Driver {
    /// Opens the one of a name.
    ///
    /// # Errors
    /// [`OpenError::Unknown`]; `NoDevice` when it is not there.
    pub fn open(name: &str) -> Result<Self, OpenError> {
        let Some(name) = NAMES.into_iter().find(|known| *known == name) else {
            return Err(OpenError::Unknown { name: name.to_owned() });
        };
        let exporter: Arc<dyn Exporter> = match name {
            "testbed" => Arc::new(testbed::Testbed::open()?),
            "dma-heap" => Arc::new(heaps::DmaHeap::open()?),
            "udmabuf" => Arc::new(heaps::Udmabuf::open()?),
            _ => Arc::new(habanalabs::Habanalabs::open()?),
        };
        Ok(Self { name, exporter })
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// A new dma-buf of whole pages, of unspecified contents.
    ///
    /// # Errors
    /// `OutOfMemory`; `System`.
    pub fn allocate(&self, bytes: u64) -> Result<OwnedFd, AcceleratorError> {
        self.exporter.allocate(bytes)
    }

    /// How its memory is moved; none where it never is.
    pub fn mover(&self) -> Option<&dyn Mover> {
        self.exporter.mover()
    }

    /// What lies in a dma-buf now, as the processor sees it. False where it may not look. The memory must not have been revoked: a look at it ends the process.
    ///
    /// # Errors
    /// What the kernel says against the mapping.
    ///
    /// # Panics
    /// When the bytes lie beyond its end.
    pub fn load(
        &self,
        buffer: BorrowedFd<'_>,
        offset: usize,
        to: &mut [u8],
    ) -> Result<bool, AcceleratorError> {
        self.look(buffer, offset, to.len(), |from| {
            for (at, byte) in to.iter_mut().enumerate() {
                // SAFETY: `look` promises so many bytes. Volatile, as devices write them.
                *byte = unsafe { from.add(at).read_volatile() };
            }
        })
    }

    /// Puts bytes into a dma-buf by the processor, as [`load`](Self::load) takes them out.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn store(
        &self,
        buffer: BorrowedFd<'_>,
        offset: usize,
        from: &[u8],
    ) -> Result<bool, AcceleratorError> {
        self.look(buffer, offset, from.len(), |to| {
            for (at, &byte) in from.iter().enumerate() {
                // SAFETY: as above.
                unsafe { to.add(at).write_volatile(byte) };
            }
        })
    }

    /// Calls `f` with `bytes` bytes of a dma-buf, mapped.
    fn look(
        &self,
        buffer: BorrowedFd<'_>,
        offset: usize,
        bytes: usize,
        f: impl FnOnce(*mut u8),
    ) -> Result<bool, AcceleratorError> {
        if !self.exporter.is_mappable() {
            return Ok(false);
        }
        let length = usize::try_from(dma_buf::length(buffer)?).unwrap_or(usize::MAX);
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= length), "a look beyond the memory");
        let mapping = Mapping::dma_buf(buffer, length)?;
        dma_buf::sync(buffer, Look::Begins)?;
        f(mapping.base().as_ptr().wrapping_add(offset));
        dma_buf::sync(buffer, Look::Ends)?;
        Ok(true)
    }
}
