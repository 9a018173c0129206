//! Memory that another exporter has made: CUDA, ROCm, Level Zero, whoever gives a dma-buf.

use std::os::fd::BorrowedFd;

use windlass_kernels::Element;
use windlass_memory::accelerator::AcceleratorError;

use super::{Device, DeviceBuffer, address, refused};
use crate::error::{Error, Problem};
use crate::fork;

impl Device {
    /// `count` elements from byte `offset` on of a dma-buf that another exporter has made: CUDA (`cuMemGetHandleForAddressRange`), ROCm
    /// (`hsa_amd_portable_export_dmabuf`, whose offset counts), Level Zero, V4L2. The memory stays where it is or moves transparently; it is kept
    /// alive until the buffer and the operations on it are dropped, and not returned to the device before. The descriptor may be closed at once.
    ///
    /// The accelerator that is attached must be one of the kernel's ([`accelerator::open`](crate::accelerator::open): `dma-heap`, `udmabuf`,
    /// `testbed`). Where the exporter lets the processor map its memory, all operations work, by windlass's engine; where it does not, those that need no look
    /// at it: what RDMA sends and receives from where it lies.
    ///
    /// # Errors
    /// `InvalidArgument` for a descriptor that is closed or no dma-buf, for a range beyond its end, and for an offset that elements cannot lie at.
    pub fn adopt<T: Element>(
        &self,
        descriptor: BorrowedFd<'_>,
        offset: u64,
        count: usize,
    ) -> Result<DeviceBuffer<T>, Error> {
        const OPERATION: &str = "adopt";
        if fork::is_forked() {
            return Err(Error::Forked { rank: self.job.rank });
        }
        let wrong = |argument, problem| Error::InvalidArgument { operation: OPERATION, argument, problem };
        if !offset.is_multiple_of(align_of::<T>() as u64) {
            let (address, alignment) = (offset as usize, align_of::<T>());
            return Err(wrong("the offset", Problem::Misaligned { address, alignment }));
        }
        let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
        if bytes > address::MOST_BYTES {
            return Err(wrong("the memory", Problem::TooLarge { count: count as u64 }));
        }
        let memory =
            self.attached.accelerator.adopt(descriptor, offset, bytes).map_err(|error| match error {
                AcceleratorError::BadDescriptor(bad) => wrong("the descriptor", Problem::BadDescriptor(bad)),
                AcceleratorError::AdoptsNothing => wrong("the accelerator", Problem::AdoptsNothing),
                error => refused(&error),
            })?;
        // Its exporter, which nobody can ask, keeps it where it is or lets NICs follow; what it takes away, the watch finds.
        let segment = self.attached.regions().insert(memory, bytes, self.purpose(), true);
        self.buffer(OPERATION, segment, offset, count)
    }
}
