//! A segment of device memory: a sealed memfd whose first page is its header.
//!
//! The header is one reason why no offset is zero; the data then begins at an odd place of the second page, because
//! accelerators cut allocations out of larger memory and their exports begin anywhere.
//!
//! Only the engine looks at the mapping. The owner copies, poisons and checks by `pread` and `pwrite`, as a device's own copy engine
//! would: beside whatever engines do, and without a Rust access that could race with them.

use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::{Errno, pread, pwrite};

use super::leaving::leave;
use super::life::{Life, State};
use crate::accelerator::{AcceleratorError, BadDescriptor, Exported, Region};
use crate::{Mapping, MemoryError, page_bytes};

/// The kind of accelerator, and the version of its header.
const MAGIC: u64 = u64::from_le_bytes(*b"wl-sim\x01\0");
/// Where [`Life`] lies in the header, after what never changes.
const LIFE_OFFSET: usize = 64;
/// A NaN of every float type when repeated, and signalling as f64; no result of arithmetic has these bits.
const POISON: [u8; 2] = [0xF5, 0x7F];
/// How much is copied by one call.
const BOUNCE_BYTES: usize = 256 << 10;

/// Memory of this length is not given back in passing.
const LARGE_BYTES: usize = 1 << 20;

/// Where data may begin in its page.
pub(super) const SKEW_BYTES: u64 = 64;

/// Whole pages of the device that a region of `bytes` takes, header and odd beginning included.
pub(super) fn pages_of(bytes: u64) -> u64 {
    bytes.div_ceil(page_bytes() as u64).saturating_add(2)
}

/// One generation of a region, own or imported.
pub(super) struct Pages {
    pub(super) region: Region,
    pub(super) generation: u32,
    /// The region's length.
    pub(super) bytes: u64,
    /// Where its first byte is in the descriptor.
    pub(super) data: u64,
    mapping: ManuallyDrop<Mapping>,
    descriptor: ManuallyDrop<OwnedFd>,
    /// The same for every descriptor of the same memory.
    inode: u64,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({}, generation {})", self.region, self.generation)
    }
}

impl Pages {
    /// New memory, whose pages come when they are populated or written. `skew` is where in its page the data begins.
    pub(super) fn create(
        region: Region,
        generation: u32,
        bytes: u64,
        skew: u64,
        state: State,
    ) -> Result<Arc<Self>, AcceleratorError> {
        let page = page_bytes() as u64;
        let length = pages_of(bytes).saturating_mul(page);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        let fail = |call| move |errno| MemoryError::new(call, errno, size);
        crate::available::check(size)?;
        let descriptor = memfd_create("windlass-device", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(fail("memfd_create"))?;
        ftruncate(&descriptor, length).map_err(fail("ftruncate"))?;
        fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(fail("fcntl(F_ADD_SEALS)"))?;
        let data = page + skew % page;
        let mut header = [0; LIFE_OFFSET];
        let words = [MAGIC, region.device(), region.number(), generation.into(), data, bytes];
        for (place, word) in header.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        write_all(&descriptor, &header, 0)?;
        let mapping = Mapping::open(descriptor.as_fd())?;
        let inode = fstat(&descriptor).map_err(fail("fstat"))?.st_ino;
        let (mapping, descriptor) = (ManuallyDrop::new(mapping), ManuallyDrop::new(descriptor));
        let pages = Self { region, generation, bytes, data, mapping, descriptor, inode };
        pages.life().set(generation, state);
        Ok(Arc::new(pages))
    }

    /// The inode of what may be device memory.
    pub(super) fn inode_of(descriptor: BorrowedFd<'_>) -> Result<u64, AcceleratorError> {
        Ok(fstat(descriptor).map_err(|_| BadDescriptor::NotMemory)?.st_ino)
    }

    /// Memory of another accelerator, or of this one by the long way.
    pub(super) fn open(descriptor: BorrowedFd<'_>) -> Result<Arc<Self>, AcceleratorError> {
        let seals = fcntl_get_seals(descriptor).map_err(|_| BadDescriptor::NotMemory)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(BadDescriptor::Unsealed.into());
        }
        let stat = fstat(descriptor).map_err(|_| BadDescriptor::NotMemory)?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let page = page_bytes() as u64;
        if length < page {
            return Err(BadDescriptor::TooShort { needed_bytes: page, bytes: length }.into());
        }
        let mut header = [0; LIFE_OFFSET];
        read_all(descriptor, &mut header, 0)?;
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[i * 8 + byte]));
        let generation = u32::try_from(word(3)).map_err(|_| BadDescriptor::WrongHeader)?;
        let (data, bytes) = (word(4), word(5));
        if word(0) != MAGIC || data < page {
            return Err(BadDescriptor::WrongHeader.into());
        }
        let needed_bytes = data.saturating_add(bytes);
        if needed_bytes > length {
            return Err(BadDescriptor::TooShort { needed_bytes, bytes: length }.into());
        }
        let mapping = ManuallyDrop::new(Mapping::open(descriptor)?);
        let descriptor = ManuallyDrop::new(duplicate(descriptor)?);
        let region = Region::new(word(1), word(2));
        Ok(Arc::new(Self { region, generation, bytes, data, mapping, descriptor, inode: stat.st_ino }))
    }

    /// Whether `exported` is a range of this memory.
    pub(super) fn check(&self, exported: &Exported) -> Result<(), BadDescriptor> {
        if (exported.region, exported.generation) != (self.region, self.generation)
            || exported.offset < self.data
        {
            return Err(BadDescriptor::OtherMemory);
        }
        let (end, bytes) = (exported.offset.saturating_add(exported.bytes), self.data + self.bytes);
        if end > bytes {
            return Err(BadDescriptor::TooShort { needed_bytes: end, bytes });
        }
        Ok(())
    }

    pub(super) fn is(&self, inode: u64) -> bool {
        self.inode == inode
    }

    /// A descriptor to give away.
    pub(super) fn descriptor(&self) -> Result<OwnedFd, AcceleratorError> {
        duplicate(self.descriptor.as_fd())
    }

    pub(super) fn life(&self) -> &Life {
        // SAFETY: the mapping is at least a page long and page-aligned (`open` and `create` see to it), so the words are inside and
        // aligned; all processes access them as atomics only, and any bits are a value. They live as long as `self`.
        unsafe { &*self.mapping.base().as_ptr().add(LIFE_OFFSET).cast::<Life>() }
    }

    pub(super) fn state(&self) -> State {
        self.life().state(self.generation)
    }

    /// For the engine: where byte `at` of the region is. `at` is at most the region's length.
    pub(super) fn address(&self, at: u64) -> *mut u8 {
        debug_assert!(at <= self.bytes);
        // `check`, `open` and `create` keep data + bytes within the mapping, whose length is a usize.
        self.mapping.base().as_ptr().wrapping_add((self.data + at) as usize)
    }

    /// Bytes of the region to the host; the range is the caller's to check.
    pub(super) fn read(&self, at: u64, to: &mut [u8]) -> Result<(), AcceleratorError> {
        read_all(self.descriptor.as_fd(), to, self.data + at)
    }

    /// Bytes of the host to the region.
    pub(super) fn write(&self, at: u64, from: &[u8]) -> Result<(), AcceleratorError> {
        write_all(&self.descriptor, from, self.data + at)
    }

    /// Of all of it, header included.
    pub(super) fn length(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Makes pages present, from a byte of the descriptor to another: a shortage is an error now, not a signal to the engine later.
    pub(super) fn populate(&self, at: u64, end: u64) -> Result<(), AcceleratorError> {
        Ok(self.mapping.populate(at as usize, (end - at) as usize)?)
    }

    /// Copies those of the region's bytes that have their place between two bytes of `other`, which has the same length.
    pub(super) fn copy_to(&self, other: &Self, at: u64, end: u64) -> Result<(), AcceleratorError> {
        let first = at.saturating_sub(other.data).min(self.bytes);
        let last = end.saturating_sub(other.data).min(self.bytes);
        in_parts(first, last, |at, part, bounce| {
            self.read(at, &mut bounce[..part])?;
            other.write(at, &bounce[..part])
        })
    }

    /// Fills the bytes from one to another of the descriptor with poison. Behind the header that is all of it, also around the region's bytes.
    pub(super) fn poison(&self, at: u64, end: u64) -> Result<(), AcceleratorError> {
        let poison = POISON.repeat(BOUNCE_BYTES / POISON.len());
        in_parts(at, end, |at, part, _| write_all(&self.descriptor, &poison[..part], at))
    }

    /// The first byte among those that is not poison any more: from the region's begin, which slack before it makes negative.
    pub(super) fn first_touched(&self, at: u64, end: u64) -> Option<i64> {
        let poison = POISON.repeat(BOUNCE_BYTES / POISON.len());
        let mut touched = None;
        // What cannot be read cannot be checked.
        let _ = in_parts(at, end, |at, part, bounce| {
            read_all(self.descriptor.as_fd(), &mut bounce[..part], at)?;
            // As a whole first: every vacated page is looked at, and nearly none was touched.
            if touched.is_none() && bounce[..part] != poison[..part] {
                let same = bounce.iter().zip(&poison).take_while(|(is, should)| is == should).count();
                touched = Some((at + same as u64).cast_signed() - self.data.cast_signed());
            }
            Ok(())
        });
        touched
    }
}

/// What is large goes by a thread of the process: to unmap memory and give it back takes the system milliseconds, and whoever happens to be the last
/// with it may be an engine, or hold a lock. Nobody finds the memory by its pages any more, so nobody touches it meanwhile.
impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: both are taken once, here, and nothing of the value is used afterwards.
        let left =
            unsafe { (ManuallyDrop::take(&mut self.mapping), ManuallyDrop::take(&mut self.descriptor)) };
        if left.0.len() < LARGE_BYTES {
            return;
        }
        leave(left);
    }
}

/// Goes from a byte to another with memory for what lies between, in parts.
fn in_parts(
    mut at: u64,
    end: u64,
    mut f: impl FnMut(u64, usize, &mut [u8]) -> Result<(), AcceleratorError>,
) -> Result<(), AcceleratorError> {
    let mut bounce =
        vec![0; usize::try_from(end.saturating_sub(at)).map_or(BOUNCE_BYTES, |all| all.min(BOUNCE_BYTES))];
    while at < end {
        let part = (end - at).min(bounce.len() as u64) as usize;
        f(at, part, &mut bounce)?;
        at += part as u64;
    }
    Ok(())
}

/// An import's hold on pinned memory.
#[derive(Debug)]
pub(super) struct Pin(Arc<Pages>);

impl Pin {
    pub(super) fn new(pages: Arc<Pages>) -> Self {
        pages.life().pin();
        Self(pages)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.life().unpin();
    }
}

fn duplicate(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, AcceleratorError> {
    let duplicate = rustix::io::fcntl_dupfd_cloexec(descriptor, 3);
    Ok(duplicate.map_err(|errno| MemoryError::new("fcntl(F_DUPFD_CLOEXEC)", errno, 0))?)
}

fn read_all(descriptor: BorrowedFd<'_>, to: &mut [u8], at: u64) -> Result<(), AcceleratorError> {
    let mut done = 0;
    while done < to.len() {
        match pread(descriptor, &mut to[done..], at + done as u64) {
            Ok(0) => return Err(MemoryError::new("pread", Errno::NODATA, to.len()).into()),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(MemoryError::new("pread", errno, to.len()).into()),
        }
    }
    Ok(())
}

fn write_all(descriptor: &OwnedFd, from: &[u8], at: u64) -> Result<(), AcceleratorError> {
    let mut done = 0;
    while done < from.len() {
        match pwrite(descriptor, &from[done..], at + done as u64) {
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(MemoryError::new("pwrite", errno, from.len()).into()),
        }
    }
    Ok(())
}
