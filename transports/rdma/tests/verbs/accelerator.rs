//! The testbed's accelerator, by the ioctls of its header, and the kernel's own udmabuf.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const NODE: &str = "/dev/windlass_accelerator";

#[repr(C)]
#[derive(Default)]
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
#[derive(Debug, Default)]
pub(crate) struct Stat {
    dmabuf: i32,
    pub(crate) revoked: u32,
    pub(crate) bytes: u64,
    pub(crate) moves: u64,
    pub(crate) maps: u64,
    pub(crate) pins: u64,
    pub(crate) kept_bytes: u64,
    pub(crate) stale_bytes: u64,
}

const fn request(direction: u64, number: u64, bytes: usize) -> u64 {
    direction << 30 | (bytes as u64) << 16 | (b'W' as u64) << 8 | number
}

const ALLOC: u64 = request(3, 0x40, size_of::<Alloc>());
const MOVE: u64 = request(1, 0x41, size_of::<Move>());
const REVOKE: u64 = request(1, 0x42, size_of::<Revoke>());
const STAT: u64 = request(3, 0x43, size_of::<Stat>());

fn ioctl<T>(descriptor: RawFd, request: u64, argument: &mut T) -> Result<i32, i32> {
    // SAFETY: the request's number says how many bytes the argument has, and all of them are numbers.
    match unsafe { libc::ioctl(descriptor, request as _, &raw mut *argument) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        value => Ok(value),
    }
}

#[derive(Debug)]
pub(crate) struct Accelerator(File);

impl Accelerator {
    /// The testbed's; where it is not, says so.
    pub(crate) fn open() -> Option<Self> {
        match File::options().read(true).write(true).open(NODE) {
            Ok(file) => Some(Self(file)),
            Err(error) => {
                println!("skipped: device memory, because {NODE} does not open: {error}");
                None
            }
        }
    }

    pub(crate) fn allocate(&self, bytes: u64) -> DmaBuf {
        let mut alloc = Alloc { bytes, ..Alloc::default() };
        ioctl(self.0.as_raw_fd(), ALLOC, &mut alloc).expect("allocated");
        // SAFETY: the descriptor is new, and nobody else's.
        DmaBuf { descriptor: unsafe { OwnedFd::from_raw_fd(alloc.dmabuf) }, bytes: bytes as usize }
    }

    pub(crate) fn shift(&self, buffer: &DmaBuf) -> Result<i32, i32> {
        let mut argument = Move { dmabuf: buffer.descriptor.as_raw_fd(), flags: 0, fence_ms: 0, reserved: 0 };
        ioctl(self.0.as_raw_fd(), MOVE, &mut argument)
    }

    pub(crate) fn revoke(&self, buffer: &DmaBuf) -> Result<i32, i32> {
        let mut argument = Revoke { dmabuf: buffer.descriptor.as_raw_fd(), flags: 0 };
        ioctl(self.0.as_raw_fd(), REVOKE, &mut argument)
    }

    pub(crate) fn stat(&self, buffer: &DmaBuf) -> Stat {
        let mut stat = Stat { dmabuf: buffer.descriptor.as_raw_fd(), ..Stat::default() };
        ioctl(self.0.as_raw_fd(), STAT, &mut stat).expect("counted");
        stat
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

/// A dma-buf of the kernel's udmabuf: a sealed memfd's pages.
pub(crate) fn udmabuf(bytes: usize) -> Option<DmaBuf> {
    #[repr(C)]
    struct Create {
        memfd: u32,
        flags: u32,
        offset: u64,
        size: u64,
    }
    const CREATE: u64 = 1 << 30 | (size_of::<Create>() as u64) << 16 | (b'u' as u64) << 8 | 0x42;
    let node = match File::options().read(true).write(true).open("/dev/udmabuf") {
        Ok(node) => node,
        Err(error) => {
            println!("skipped: udmabuf, because /dev/udmabuf does not open: {error}");
            return None;
        }
    };
    let memfd = rustix::fs::memfd_create("udmabuf", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("a memfd");
    rustix::fs::ftruncate(&memfd, bytes as u64).expect("its size");
    rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::SHRINK).expect("sealed");
    let mut create = Create { memfd: memfd.as_raw_fd() as u32, flags: 1, offset: 0, size: bytes as u64 };
    let descriptor = ioctl(node.as_raw_fd(), CREATE, &mut create).expect("a dma-buf");
    // SAFETY: the descriptor is new, and nobody else's.
    Some(DmaBuf { descriptor: unsafe { OwnedFd::from_raw_fd(descriptor) }, bytes })
}
