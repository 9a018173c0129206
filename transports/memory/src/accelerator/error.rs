//! What can go wrong with an accelerator's memory.

use crate::MemoryError;
use crate::accelerator::{Import, Region, Ticket};

/// Why an accelerator did not do what it was asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AcceleratorError {
    /// The memory was revoked, moved or freed before the work's last store was surely in its contents. What the work
    /// stored, here and to its other outputs, is unspecified. Wait for the next generation and do the work again.
    #[error(
        "{region} of generation {generation} went away under the work: do it again on the next generation"
    )]
    Stale {
        /// Whose memory.
        region: Region,
        /// The generation that the work named.
        generation: u32,
    },
    /// The work named memory that was announced ahead, before the move to it had ended. It stored nothing.
    #[error("{region} has not arrived at generation {generation} yet: wait until it has moved")]
    Early {
        /// Whose memory.
        region: Region,
        /// The generation announced.
        generation: u32,
    },
    /// The region has no memory at present: it is on its way.
    #[error("{region} has no memory at present: wait until it has moved or is replaced")]
    Away {
        /// Which.
        region: Region,
    },
    /// Freed, or another accelerator's.
    #[error("{0} is no region of this accelerator, or was freed")]
    UnknownRegion(Region),
    /// Released, or another accelerator's.
    #[error("import {} is not this accelerator's, or was released", .0.number())]
    UnknownImport(Import),
    /// Answered already, past its deadline, withdrawn because the region was freed or revoked, or never given out.
    #[error("move {} is not waiting for an answer: it was answered, or its time is over", .0.number())]
    UnknownTicket(Ticket),
    /// Bytes beyond the range.
    #[error("bytes {offset}..{offset}+{bytes} of {region} end after its {limit}")]
    OutOfRange {
        /// Whose memory.
        region: Region,
        /// The first byte asked for.
        offset: u64,
        /// How many were asked for.
        bytes: u64,
        /// How many there are.
        limit: u64,
    },
    /// Two operands share bytes, one of them is an output, and they are not exactly an input and an output in place.
    #[error("output {output} overlaps another operand: make them equal or disjoint")]
    Overlap {
        /// The output's index.
        output: usize,
    },
    /// A copy has one input, a reduction at least one.
    #[error("{count} inputs: a copy has exactly one, a reduction at least one")]
    InputCount {
        /// How many there were.
        count: usize,
    },
    /// The device is full. `reclaiming` says that it is making room, so that asking again later may succeed.
    #[error("{wanted_bytes} bytes of device memory, of which {free_bytes} are free{}", if *.reclaiming { ": room is being made, ask again" } else { ": free some" })]
    OutOfMemory {
        /// What was asked for, with what the device adds.
        wanted_bytes: u64,
        /// What is free, perhaps in pieces.
        free_bytes: u64,
        /// Whether memory is being moved out of the way.
        reclaiming: bool,
    },
    /// Pinned memory cannot move while anybody imports it. The move still waits for an acknowledgement.
    #[error("{region} is still imported {pins} times: release the imports, then acknowledge")]
    StillPinned {
        /// Whose memory.
        region: Region,
        /// How many imports hold it, those of queued work included.
        pins: u64,
    },
    /// The descriptor cannot be imported.
    #[error("the descriptor cannot be imported: {0}")]
    BadDescriptor(#[from] BadDescriptor),
    /// The exporter maps this memory for devices only, so neither the host nor an engine of windlass's can look at it.
    #[error(
        "{region} cannot be reached by the processor: send and receive it by RDMA; what reduces or copies it needs the device's own engine"
    )]
    Unreachable {
        /// Whose memory.
        region: Region,
    },
    /// The accelerator knows its own memory only.
    #[error(
        "this accelerator takes no memory of other exporters into use: open one of the kernel's, such as dma-heap"
    )]
    AdoptsNothing,
    /// Its memory stays where it is, or is somebody else's to move.
    #[error("this memory never moves")]
    NeverMoves,
    /// The accelerator was shut down before the work ran.
    #[error("the accelerator was shut down")]
    Gone,
    /// The operating system refused.
    #[error(transparent)]
    System(#[from] MemoryError),
}

/// Why a descriptor is not the memory that it was said to be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadDescriptor {
    /// It is not open.
    #[error("it is not open")]
    Closed,
    /// Memory that is to be adopted must be a dma-buf.
    #[error(
        "it is no dma-buf: export the memory as one (CUDA: cuMemGetHandleForAddressRange, ROCm: hsa_amd_portable_export_dmabuf, Level Zero: ZE_EXTERNAL_MEMORY_TYPE_FLAG_DMA_BUF)"
    )]
    NotDmaBuf,
    /// A file, a pipe, a socket: nothing that an accelerator exports.
    #[error("it is no device memory")]
    NotMemory,
    /// It could shrink while it is mapped.
    #[error("it is not sealed against shrinking")]
    Unsealed,
    /// It does not begin as this kind of accelerator's exports do.
    #[error("it does not come from this kind of accelerator, or from another version of it")]
    WrongHeader,
    /// It is memory of another region or generation.
    #[error("it holds another region or generation than was announced with it")]
    OtherMemory,
    /// The range ends after the memory.
    #[error("it is too short: {needed_bytes} bytes are needed, {bytes} are there")]
    TooShort {
        /// Where the range ends.
        needed_bytes: u64,
        /// Where the memory ends.
        bytes: u64,
    },
}
