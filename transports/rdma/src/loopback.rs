//! A NIC that talks to itself: two queue pairs of one device, connected to each other, and a page of the host's to write from and read into.

use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::verbs::{
    Access, Attachment, Capacities, CompletionQueue, Device, Local, MemoryRegion, Place, PostError,
    QueuePair, Read, RegisterError, Sge, Timing, VerbError, Write,
};

/// Why there is no loopback.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The NIC refuses.
    #[error(transparent)]
    Verb(#[from] VerbError),
    /// Not a page of the host's is registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The system has no page.
    #[error("mmap: {}", std::io::Error::from_raw_os_error(*errno))]
    Memory {
        /// Its error.
        errno: i32,
    },
}

/// Two queue pairs and a page. The far one only answers: an error that it takes is told of by the near one's completions.
#[derive(Debug)]
pub struct Loopback {
    near: QueuePair,
    _far: QueuePair,
    /// After the queue pairs, and before the memory that it is of.
    region: MemoryRegion,
    memory: Memory,
}

impl Loopback {
    /// Connects a NIC to itself; work that ends is told of by `queue`, at most `sends` of it at a time. `bytes` of the host's are there to be written from and read into.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn connect(
        device: &Device,
        attachment: Attachment,
        queue: &CompletionQueue,
        sends: u32,
        bytes: usize,
    ) -> Result<Self, Error> {
        let memory = Memory::map(bytes)?;
        // SAFETY: the pages stay mapped until after the region is gone, as the fields are declared, and are touched by volatile accesses alone.
        let region =
            unsafe { MemoryRegion::register(device, memory.base.as_ptr(), bytes, Access::LOCAL_WRITE) }?;
        let capacities = Capacities { sends, receives: 1, pieces: 1, inline_bytes: 0 };
        let pair = || QueuePair::create(device, attachment, queue, queue, capacities);
        let (near, far) = (pair()?, pair()?);
        far.connect(&near.address(), Timing::default())?;
        near.connect(&far.address(), Timing::default())?;
        Ok(Self { near, _far: far, region, memory })
    }

    /// Begins to write the page's first bytes to a place.
    ///
    /// # Errors
    /// When the queue is full, or the queue pair broken.
    pub fn write(&self, id: u64, remote: Place, bytes: u32) -> Result<(), PostError> {
        let piece = [self.piece(bytes)];
        let write = Write { id, local: Local::Pieces(&piece), remote, immediate: None, signalled: true };
        // SAFETY: the page stays registered until the queue pair is gone, as the fields are declared.
        unsafe { self.near.post_write(&write) }
    }

    /// Begins to read bytes from a place to the page's begin.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&self, id: u64, remote: Place, bytes: u32) -> Result<(), PostError> {
        let read = Read { id, local: &[self.piece(bytes)], remote };
        // SAFETY: as above; nobody takes the page's bytes for anything before the completion has come.
        unsafe { self.near.post_read(&read) }
    }

    fn piece(&self, bytes: u32) -> Sge {
        assert!(bytes as usize <= self.region.bytes(), "more than the page has");
        Sge { address: self.region.address(), bytes, key: self.region.local_key() }
    }

    /// Fills the page's begin.
    ///
    /// # Panics
    /// When the page is smaller.
    pub fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.memory.bytes, "more than the page has");
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping. Volatile: the NIC reads it.
            unsafe { self.memory.base.as_ptr().add(at).write_volatile(byte) };
        }
    }

    /// What the page begins with.
    ///
    /// # Panics
    /// When the page is smaller.
    pub fn bytes(&self, count: usize) -> Vec<u8> {
        assert!(count <= self.memory.bytes, "more than the page has");
        // SAFETY: inside the mapping. Volatile: the NIC writes it.
        (0..count).map(|at| unsafe { self.memory.base.as_ptr().add(at).read_volatile() }).collect()
    }
}

/// Pages that a child does not share.
#[derive(Debug)]
struct Memory {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is this value's own.
unsafe impl Send for Memory {}

impl Memory {
    fn map(bytes: usize) -> Result<Self, Error> {
        let failed = |errno: rustix::io::Errno| Error::Memory { errno: errno.raw_os_error() };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever the kernel has room.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) };
        let base = NonNull::new(base.map_err(failed)?.cast()).ok_or(Error::Memory { errno: libc::ENOMEM })?;
        let memory = Self { base, bytes };
        // SAFETY: the mapping was just made.
        unsafe { madvise(base.as_ptr().cast(), bytes, Advice::LinuxDontFork) }.map_err(failed)?;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and what was registered of it is gone.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
