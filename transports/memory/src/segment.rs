//! One memfd and its mapping.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::{MemoryError, page_bytes};

/// Segments at least this large are aligned for and advised to use huge pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Another rank's segment, or a board, mapped into this process.
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is an address range; what threads do with its bytes is their contract.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} bytes)", self.bytes)
    }
}

impl Mapping {
    /// Maps a segment's descriptor whole. It must be sealed against shrinking, or a peer could make our
    /// loads fault.
    pub fn open(descriptor: BorrowedFd<'_>) -> Result<Self, MemoryError> {
        let stat = fstat(descriptor).map_err(|e| MemoryError::new("fstat", e, 0))?;
        let bytes = usize::try_from(stat.st_size).unwrap_or(0);
        let seals =
            fcntl_get_seals(descriptor).map_err(|e| MemoryError::new("fcntl(F_GET_SEALS)", e, bytes))?;
        if bytes == 0 || !seals.contains(SealFlags::SHRINK) {
            return Err(MemoryError {
                call: "fcntl(F_GET_SEALS)",
                errno: rustix::io::Errno::INVAL.raw_os_error(),
                bytes,
                hint: "the descriptor is no sealed segment of windlass",
            });
        }
        Self::map(descriptor, bytes)
    }

    /// Maps so many bytes of a dma-buf. Its memory may be taken away: whoever looks there watches it.
    #[cfg(not(loom))]
    pub(crate) fn dma_buf(descriptor: BorrowedFd<'_>, bytes: usize) -> Result<Self, MemoryError> {
        Self::map(descriptor, bytes)
    }

    fn map(descriptor: BorrowedFd<'_>, bytes: usize) -> Result<Self, MemoryError> {
        let fail = |call| move |e| MemoryError::new(call, e, bytes);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // Huge pages need an aligned address: reserve more, then place the mapping inside.
        let slack = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { 0 };
        // SAFETY: a fresh anonymous reservation at an address of the kernel's choice overlaps nothing.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes + slack,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(fail("mmap"))?;
        let address = reserved.addr();
        let aligned = if slack > 0 { address.next_multiple_of(HUGE_PAGE_BYTES) } else { address };
        let target = reserved.wrapping_byte_add(aligned - address);
        // SAFETY: [target, target + bytes) lies inside the reservation made above, which nobody uses.
        let mapped =
            unsafe { mmap(target, bytes, protection, MapFlags::SHARED | MapFlags::FIXED, descriptor, 0) };
        let whole = bytes.next_multiple_of(page_bytes());
        let (before, after) = (aligned - address, (bytes + slack).saturating_sub(aligned - address + whole));
        // SAFETY: the unused ends of the reservation, which nobody uses.
        unsafe {
            if before > 0 {
                let _ = munmap(reserved, before);
            }
            if after > 0 {
                let _ = munmap(target.wrapping_byte_add(whole), after);
            }
        }
        let base = mapped.map_err(fail("mmap"))?;
        // SAFETY: the mapping made above, ours alone. Advice changes no bytes; without huge pages it fails, and may.
        unsafe {
            madvise(base, bytes, Advice::LinuxDontFork).map_err(fail("madvise(MADV_DONTFORK)"))?;
            if slack > 0 {
                let _ = madvise(base, bytes, Advice::LinuxHugepage);
            }
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| fail("mmap")(rustix::io::Errno::FAULT))?;
        Ok(Self { base, bytes })
    }

    /// Where it begins.
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its length.
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes; it never does.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Makes the pages of `offset..offset + bytes` present, so that a shortage of memory is an error here and not a
    /// signal later.
    pub fn populate(&self, offset: usize, bytes: usize) -> Result<(), MemoryError> {
        assert!(offset + bytes <= self.bytes, "the range lies in the mapping");
        let page = page_bytes();
        let first = offset - offset % page;
        let length = (offset + bytes).next_multiple_of(page) - first;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: pages of our own mapping (checked above); populating reads and writes no values.
        let result =
            unsafe { madvise(self.base.as_ptr().add(first).cast(), length, Advice::LinuxPopulateWrite) };
        match result {
            // Before Linux 5.14 the pages come with the first touch.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(e) => Err(MemoryError::new("madvise(MADV_POPULATE_WRITE)", e, bytes)),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and belongs to this value alone; its users keep this value alive.
        unsafe {
            let _ = munmap(self.base.as_ptr().cast(), self.bytes);
        }
    }
}

/// This rank's own shared memory.
#[derive(Debug)]
pub struct Segment {
    mapping: Mapping,
    descriptor: OwnedFd,
    number: u32,
    generation: AtomicU32,
    /// One byte a page: whether the page has been taken back from the peers.
    detached: Vec<AtomicU8>,
}

impl Segment {
    /// A new segment of zeros; its pages come with [`Mapping::populate`] or the first touch.
    pub fn create(number: u32, bytes: usize) -> Result<Self, MemoryError> {
        let bytes = bytes.max(1).next_multiple_of(page_bytes());
        let fail = |call| move |e| MemoryError::new(call, e, bytes);
        let descriptor = memfd_create("windlass", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(fail("memfd_create"))?;
        ftruncate(&descriptor, bytes as u64).map_err(fail("ftruncate"))?;
        fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(fail("fcntl(F_ADD_SEALS)"))?;
        let mapping = Mapping::map(descriptor.as_fd(), bytes)?;
        let detached = (0..bytes / page_bytes()).map(|_| AtomicU8::new(0)).collect();
        Ok(Self { mapping, descriptor, number, generation: AtomicU32::new(0), detached })
    }

    /// The owner's number for it.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// How often its memory has changed under its number.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Its memory.
    pub const fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The descriptor that peers map.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Whether all of `offset..offset + bytes` is still shared with the peers.
    pub fn is_shared(&self, offset: usize, bytes: usize) -> bool {
        self.generation() == 0 || {
            let page = page_bytes();
            let pages = offset / page..(offset + bytes).div_ceil(page);
            self.detached[pages].iter().all(|d| d.load(Ordering::Acquire) == 0)
        }
    }

    /// Takes the pages of `offset..offset + bytes` back from the peers: they keep their bytes and their addresses here, but
    /// peers that still have the segment mapped, even stopped ones that wake later, no longer reach them.
    ///
    /// The range is mapped anew as a private copy of itself and every page is copied by an atomic access that
    /// changes nothing, so that stores of other threads of this process, also to the same pages, are kept: before the remap they go to the
    /// shared page, after it they wait for the fault.
    pub fn detach(&self, offset: usize, bytes: usize) -> Result<(), MemoryError> {
        assert!(offset + bytes <= self.mapping.len(), "the range lies in the segment");
        if bytes == 0 {
            return Ok(());
        }
        let page = page_bytes();
        let (first, end) = (offset / page, (offset + bytes).div_ceil(page));
        let fail = |call| move |e| MemoryError::new(call, e, bytes);
        // Runs of pages still shared: a page taken back before holds private bytes that a remap would lose.
        let mut at = first;
        while at < end {
            if self.detached[at].load(Ordering::Acquire) != 0 {
                at += 1;
                continue;
            }
            let run = (at..end).take_while(|&p| self.detached[p].load(Ordering::Acquire) == 0).count();
            // SAFETY: whole pages inside our own mapping, replaced by a mapping of the same bytes at the same
            // addresses; the kernel replaces it atomically with respect to other threads' accesses.
            unsafe {
                let target = self.mapping.base.as_ptr().add(at * page);
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                let protection = ProtFlags::READ | ProtFlags::WRITE;
                mmap(target.cast(), run * page, protection, flags, &self.descriptor, (at * page) as u64)
                    .map_err(fail("mmap"))?;
                madvise(target.cast(), run * page, Advice::LinuxDontFork)
                    .map_err(fail("madvise(MADV_DONTFORK)"))?;
                for p in 0..run {
                    // A compare-exchange with itself, since compilers turn `fetch_or(0)` into a load.
                    let byte = &*target.add(p * page).cast::<AtomicU8>();
                    let held = byte.load(Ordering::Relaxed);
                    let _ = byte.compare_exchange(held, held, Ordering::SeqCst, Ordering::SeqCst);
                }
            }
            for flag in &self.detached[at..at + run] {
                flag.store(1, Ordering::Release);
            }
            at += run;
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::mut_from_ref, reason = "shared memory is what is tested")]
    fn bytes_of(mapping: &Mapping) -> &mut [u8] {
        // SAFETY: the test is the only user of both mappings and orders its accesses.
        unsafe { std::slice::from_raw_parts_mut(mapping.base().as_ptr(), mapping.len()) }
    }

    #[test]
    fn a_peer_sees_the_owner_s_bytes_and_the_owner_the_peer_s() {
        for bytes in [1, 4096, 5000, 3 << 20] {
            let segment = Segment::create(7, bytes).unwrap();
            segment.mapping().populate(0, segment.mapping().len()).unwrap();
            let peer = Mapping::open(segment.descriptor()).unwrap();
            assert_eq!(peer.len(), bytes.next_multiple_of(page_bytes()));
            bytes_of(segment.mapping())[bytes - 1] = 42;
            assert_eq!(bytes_of(&peer)[bytes - 1], 42);
            bytes_of(&peer)[0] = 24;
            assert_eq!(bytes_of(segment.mapping())[0], 24);
        }
    }

    #[test]
    fn a_segment_cannot_be_shrunk() {
        let segment = Segment::create(0, 1 << 16).unwrap();
        assert!(ftruncate(segment.descriptor(), 0).is_err());
    }

    #[test]
    fn an_unsealed_descriptor_is_refused() {
        let plain = memfd_create("plain", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&plain, 4096).unwrap();
        assert!(Mapping::open(plain.as_fd()).unwrap_err().to_string().contains("no sealed segment"));
    }

    #[test]
    fn detached_pages_keep_their_bytes_and_hear_no_more_of_the_peer() {
        let segment = Segment::create(0, 8 * page_bytes()).unwrap();
        let peer = Mapping::open(segment.descriptor()).unwrap();
        let page = page_bytes();
        bytes_of(segment.mapping()).fill(1);
        segment.detach(page + 10, page).unwrap();
        assert!(segment.is_shared(0, page) && !segment.is_shared(0, page + 1));
        assert!(segment.is_shared(3 * page, page) && segment.generation() == 1);
        bytes_of(&peer).fill(2);
        let own = bytes_of(segment.mapping());
        assert!(own[..page].iter().all(|&b| b == 2), "other pages stay shared");
        assert!(own[page..3 * page].iter().all(|&b| b == 1), "detached pages keep what they held");
        assert!(own[3 * page..].iter().all(|&b| b == 2));
        // A second, overlapping, detach keeps what the first made private.
        own[page] = 9;
        segment.detach(0, 4 * page).unwrap();
        bytes_of(&peer).fill(3);
        let own = bytes_of(segment.mapping());
        assert_eq!((own[0], own[page], own[3 * page], own[4 * page]), (2, 9, 2, 3));
    }

    #[test]
    fn stores_of_other_threads_survive_a_detach() {
        let segment = Segment::create(0, 64 * page_bytes()).unwrap();
        let base = segment.mapping().base().as_ptr() as usize;
        let stop = AtomicU8::new(0);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                // Counts in one word of every page; a lost store would break the equality at the end.
                let mut rounds = 0u64;
                while stop.load(Ordering::Relaxed) == 0 || rounds < 100 {
                    for p in 0..64 {
                        // SAFETY: a word of the segment that only this thread accesses.
                        unsafe { *((base + p * page_bytes() + 8) as *mut u64) += 1 };
                    }
                    rounds += 1;
                }
                rounds
            });
            std::thread::sleep(std::time::Duration::from_millis(2));
            segment.detach(0, 64 * page_bytes()).unwrap();
            stop.store(1, Ordering::Relaxed);
            let rounds = writer.join().unwrap();
            for p in 0..64 {
                // SAFETY: the writer has ended.
                assert_eq!(unsafe { *((base + p * page_bytes() + 8) as *const u64) }, rounds);
            }
        });
    }
}
