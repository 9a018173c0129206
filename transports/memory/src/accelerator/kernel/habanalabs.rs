//! A Gaudi's DRAM, by the driver's interface for user space (`drm/habanalabs_accel.h`).
//!
//! Memory is allocated, mapped into the device's addresses, and exported by that address (`HL_MEM_OP_EXPORT_DMABUF_FD`). The driver lets nobody but devices map what it
//! exports, neither moves nor revokes it, and does not free it while it is exported: so it is freed when its dma-buf has gone, here and at peers.
//!
//! The first Gaudi has no such addresses, and its program divides the memory itself: there [`adopt`](crate::accelerator::Accelerator::adopt) what the program exports.

use std::fs::{File, read_dir};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::Exporter;
use super::heaps::shortage;
use crate::MemoryError;
use crate::accelerator::dma_buf::{self, ioctl};
use crate::accelerator::registry::node;
use crate::accelerator::{AcceleratorError, OpenError};

const CALL: &str = "ioctl(DRM_IOCTL_HL_MEMORY)";
const FOLDER: &str = "/dev/accel";
const FIX: &str =
    "it needs a Gaudi and its driver (modprobe habanalabs), and one that no other process has open";

/// `DRM_IOCTL_VERSION`, `DRM_IOCTL_HL_INFO`, `DRM_IOCTL_HL_MEMORY`: direction, size of the argument, 'd', number.
const VERSION: u64 = 0xc040_6400;
const INFO: u64 = 0xc018_6440;
const MEMORY: u64 = 0xc028_6444;

/// `HL_INFO_HW_IP_INFO`.
const HARDWARE: u32 = 0;
/// `HL_MEM_OP_…`.
const ALLOC: u32 = 0;
const FREE: u32 = 1;
const MAP: u32 = 2;
const UNMAP: u32 = 3;
const EXPORT: u32 = 5;

/// `struct drm_version`.
#[repr(C)]
#[derive(Default)]
struct Version {
    numbers: [i32; 4],
    name_bytes: usize,
    name: usize,
    date_bytes: usize,
    date: usize,
    description_bytes: usize,
    description: usize,
}

/// `struct hl_info_args`.
#[repr(C)]
struct Info {
    to: u64,
    bytes: u32,
    op: u32,
    argument: u32,
    pad: u32,
}

/// The begin of `struct hl_info_hw_ip_info`, of which the driver fills as much as there is room for.
#[repr(C)]
#[derive(Default)]
struct Hardware {
    sram_base: u64,
    dram_base: u64,
    dram_bytes: u64,
    unused: [u64; 25],
    dram_page_bytes: u64,
}

/// `union hl_mem_args`: three words by operation, of which the first comes back as an address, a handle or a descriptor.
#[repr(C)]
struct MemoryArgs {
    words: [u64; 3],
    op: u32,
    flags: u32,
    context: u32,
    elements: u32,
}

/// Memory that the driver has given.
#[derive(Debug)]
struct Given {
    handle: u64,
    /// The device's, until it is unmapped.
    address: Option<u64>,
    /// The dma-buf that it was exported as.
    file: (u64, u64),
    /// It was closed here.
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Habanalabs {
    node: File,
    page_bytes: u64,
    given: Mutex<Vec<Given>>,
}

impl Habanalabs {
    /// The first that is free.
    pub(super) fn open() -> Result<Self, OpenError> {
        let nodes = read_dir(FOLDER).map_err(|error| missing(FOLDER, &error))?;
        let mut nodes: Vec<_> = nodes
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.strip_prefix("accel").is_some_and(|n| n.parse::<u32>().is_ok()))
            .collect();
        nodes.sort_by_key(|name| (name.len(), name.clone()));
        let mut failure = missing(FOLDER, &std::io::Error::from_raw_os_error(libc::ENODEV));
        for name in nodes {
            match Self::at(&format!("{FOLDER}/{name}")) {
                Ok(device) => return Ok(device),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn at(path: &str) -> Result<Self, OpenError> {
        let file = node("habanalabs", path, FIX)?;
        let refused =
            |errno| OpenError::NoDevice { accelerator: "habanalabs", node: path.to_owned(), errno, fix: FIX };
        // Other accelerators' drivers have requests of the same numbers.
        let mut name = [0u8; 16];
        let mut version = Version {
            name_bytes: name.len(),
            name: name.as_mut_ptr().expose_provenance(),
            ..Version::default()
        };
        // SAFETY: the request's argument is a `Version`; it lets the driver write at most the bytes of `name`.
        unsafe { ioctl(file.as_fd(), VERSION, "ioctl(DRM_IOCTL_VERSION)", &mut version) }
            .map_err(|error| refused(error.errno))?;
        if !name.starts_with(b"habanalabs") {
            return Err(refused(libc::ENODEV));
        }
        let mut hardware = Hardware::default();
        let (to, bytes) = ((&raw mut hardware).expose_provenance() as u64, size_of::<Hardware>() as u32);
        let mut info = Info { to, bytes, op: HARDWARE, argument: 0, pad: 0 };
        // SAFETY: the request's argument is an `Info`; it lets the driver write at most the bytes of `hardware`, which are plain numbers.
        unsafe { ioctl(file.as_fd(), INFO, "ioctl(DRM_IOCTL_HL_INFO)", &mut info) }
            .map_err(|error| refused(error.errno))?;
        let page_bytes = hardware.dram_page_bytes.max(crate::page_bytes() as u64);
        Ok(Self { node: file, page_bytes, given: Mutex::default() })
    }

    /// The first word that comes back.
    fn memory(&self, op: u32, words: [u64; 3], flags: u32) -> Result<u64, MemoryError> {
        memory(self.node.as_fd(), op, words, flags)
    }

    /// Memory, mapped: its handle and its address.
    fn give(&self, bytes: u64) -> Result<(u64, u64), AcceleratorError> {
        let handle = self.memory(ALLOC, [bytes, 0, 0], 0).map_err(|error| shortage(error, bytes))?;
        if handle == 0 {
            let hint = "the program of a first Gaudi divides its memory by itself: adopt what it exports";
            let errno = Errno::OPNOTSUPP;
            return Err(MemoryError { hint, ..MemoryError::new(CALL, errno, bytes as usize) }.into());
        }
        match self.memory(MAP, [0, handle, 0], 0) {
            Ok(address) => Ok((handle, address)),
            Err(error) => {
                let _ = self.memory(FREE, [handle, 0, 0], 0);
                Err(shortage(error, bytes))
            }
        }
    }

    /// Frees what nobody has exported any more. While a peer has, the driver refuses.
    fn sweep(&self, given: &mut Vec<Given>) {
        given.retain_mut(|given| {
            if given.closed
                && let Some(address) = given.address
                && self.memory(UNMAP, [address, 0, 0], 0).is_ok()
            {
                given.address = None;
            }
            given.address.is_some() || self.memory(FREE, [given.handle, 0, 0], 0).is_err()
        });
    }

    fn given(&self) -> MutexGuard<'_, Vec<Given>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Exporter for Habanalabs {
    fn allocate(&self, bytes: u64) -> Result<OwnedFd, AcceleratorError> {
        self.sweep(&mut self.given());
        let bytes = bytes.next_multiple_of(self.page_bytes);
        let (handle, address) = self.give(bytes)?;
        let flags = (libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned();
        let exported = self.memory(EXPORT, [address, bytes, 0], flags);
        // SAFETY: on success the lower half is a descriptor, new and nobody else's.
        let exported = exported.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as u32 as i32) });
        let file = exported.as_ref().map_or(Ok((0, 0)), |fd| dma_buf::file(fd.as_fd()))?;
        // What was not exported goes with the next sweep.
        let closed = exported.is_err();
        self.given().push(Given { handle, address: Some(address), file, closed });
        Ok(exported?)
    }

    fn is_mappable(&self) -> bool {
        false
    }

    fn closed(&self, file: (u64, u64)) {
        let mut given = self.given();
        given.iter_mut().filter(|given| given.file == file).for_each(|given| given.closed = true);
        self.sweep(&mut given);
    }
}

fn memory(node: BorrowedFd<'_>, op: u32, words: [u64; 3], flags: u32) -> Result<u64, MemoryError> {
    let mut args = MemoryArgs { words, op, flags, context: 0, elements: 0 };
    // SAFETY: the request's argument is a `MemoryArgs`; no operation used here has an address of the host's in it.
    unsafe { ioctl(node, MEMORY, CALL, &mut args)? };
    Ok(args.words[0])
}

fn missing(node: &str, error: &std::io::Error) -> OpenError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    OpenError::NoDevice { accelerator: "habanalabs", node: node.to_owned(), errno, fix: FIX }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Sizes and places as the kernel's header has them.
    #[test]
    fn arguments_lie_as_the_driver_reads_them() {
        let size = |request: u64| (request >> 16 & 0x3fff) as usize;
        assert_eq!(size(VERSION), size_of::<Version>());
        assert_eq!(size(INFO), size_of::<Info>());
        assert_eq!(size(MEMORY), size_of::<MemoryArgs>());
        assert_eq!((offset_of!(MemoryArgs, op), offset_of!(MemoryArgs, flags)), (24, 28));
        assert_eq!((offset_of!(Hardware, dram_bytes), offset_of!(Hardware, dram_page_bytes)), (16, 224));
    }
}
