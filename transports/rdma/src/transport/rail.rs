//! A NIC in use: its completion queue, and what is registered with it.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};
use windlass_memory::accelerator::Accelerator;
use windlass_transports::Rank;
use windlass_transports::reach::{Registrable, SegmentKey, Source};

use super::Error;
use super::watch::{self, Watch};
use crate::choice;
use crate::pipe::Shape;
use crate::selftest::{self, Staged};
use crate::verbs::{
    Access, Attachment, CompletionChannel, CompletionQueue, Device, DmaBufSupport, MemoryRegion, Place,
    RegisterError, Verbs,
};

/// Memory is registered in whole blocks of this size, as far as its segment has them: what is not used is not pinned, and what is, is not
/// registered many times.
const BLOCK: usize = 1 << 20;

/// The rings of all peers: a half that they write, and a half that this rank's writes leave from.
#[derive(Debug)]
pub(super) struct Rings {
    base: NonNull<u8>,
    shape: Shape,
    peers: usize,
}

// SAFETY: the memory is this value's own; who may touch which part of it is settled by `slot` and `staging`, which say so.
unsafe impl Send for Rings {}

impl Rings {
    pub(super) fn allocate(peers: usize, shape: Shape) -> Result<Self, Error> {
        let bytes = 2 * peers * shape.ring_bytes();
        let flags = MapFlags::PRIVATE;
        // SAFETY: a new mapping, wherever the kernel has room.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        let base = base.map_err(|errno| Error::System { call: "mmap", errno: errno.raw_os_error() })?;
        // A child must not share pages that the NIC writes.
        // SAFETY: the mapping was just made.
        unsafe { rustix::mm::madvise(base, bytes, Advice::LinuxDontFork) }
            .map_err(|errno| Error::System { call: "madvise", errno: errno.raw_os_error() })?;
        let base = NonNull::new(base.cast()).ok_or(Error::System { call: "mmap", errno: libc::ENOMEM })?;
        Ok(Self { base, shape, peers })
    }

    fn half(&self) -> usize {
        self.peers * self.shape.ring_bytes()
    }

    /// What `peer` writes into.
    pub(super) fn ring(&self, peer: Rank) -> *mut u8 {
        self.base.as_ptr().wrapping_add(peer as usize * self.shape.ring_bytes())
    }

    /// What leaves for `peer`.
    pub(super) fn staging(&self, peer: Rank) -> *mut u8 {
        self.ring(peer).wrapping_add(self.half())
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's; the rails that had registered it are declared before it in `Rdma`, and so gone.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), 2 * self.half()) };
    }
}

/// A part of a segment that is registered.
#[derive(Debug)]
struct Window {
    begin: usize,
    end: usize,
    region: MemoryRegion,
    is_device: bool,
}

/// How a device knows some memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) address: u64,
    pub(super) local: u32,
    pub(super) remote: u32,
}

/// A NIC.
#[derive(Debug)]
pub(super) struct Rail {
    pub(super) attachment: Attachment,
    pub(super) queue: CompletionQueue,
    pub(super) channel: CompletionChannel,
    /// The channel tells of the next completion.
    pub(super) armed: bool,
    /// By segment and generation.
    windows: BTreeMap<SegmentKey, Vec<Window>>,
    /// Segments of which something could not be registered, with the reason for the last.
    refused: BTreeMap<SegmentKey, RegisterError>,
    pub(super) ring: MemoryRegion,
    pub(super) staging: MemoryRegion,
    /// Whether it takes dma-bufs.
    pub(super) imports: bool,
    /// Whether it takes those whose memory moves without asking.
    imports_unasked: bool,
    pub(super) watch: Watch,
    /// Whether its port is active.
    pub(super) up: bool,
    pub(super) device: Device,
}

impl Rail {
    /// Opens a NIC for connections to `peers`, each of which has `completions` completions at most at a time.
    pub(super) fn open(
        verbs: &Verbs,
        chosen: &choice::Rail,
        rings: &Rings,
        completions: u32,
    ) -> Result<Self, Error> {
        let device = Device::open(verbs, &chosen.device)?;
        let attachment = device.attachment(chosen.port, chosen.gid_index)?;
        let channel = CompletionChannel::create(&device)?;
        let needed = u64::from(completions) * rings.peers as u64 + u64::from(watch::COMPLETIONS);
        let (most, _) = device.most()?;
        let entries = u32::try_from(needed).ok().filter(|&entries| entries <= most);
        let entries = entries.ok_or_else(|| Error::TooManyPeers {
            device: device.name().to_string(),
            needed,
            most: u64::from(most),
        })?;
        let queue = CompletionQueue::create(&device, entries, Some(&channel))?;
        // SAFETY: the rings outlive the rail (`Rdma` declares them after it), and what the NIC and this process do to them is ordered by the pipe.
        let ring =
            unsafe { MemoryRegion::register(&device, rings.ring(0), rings.half(), Access::REMOTE_WRITE) }?;
        // SAFETY: as above.
        let staging =
            unsafe { MemoryRegion::register(&device, rings.staging(0), rings.half(), Access::LOCAL_READ) }?;
        let (windows, refused) = (BTreeMap::new(), BTreeMap::new());
        let imports = device.dmabuf_support() == DmaBufSupport::Yes;
        Ok(Self {
            attachment,
            queue,
            channel,
            armed: false,
            windows,
            refused,
            ring,
            staging,
            imports,
            imports_unasked: false,
            watch: Watch::default(),
            up: true,
            device,
        })
    }

    /// Finds out how the NIC takes the memory of an accelerator that does not ask before it moves.
    pub(super) fn attach(&mut self, accelerator: &dyn Accelerator) -> Result<(), Staged> {
        if self.imports {
            selftest::admit(&self.device, self.attachment, accelerator)?;
            self.imports_unasked = true;
        }
        Ok(())
    }

    /// Looks whether the NIC still reaches the device memory that is registered with it. What it does not, as far as is known by now.
    pub(super) fn probe(&mut self) -> Vec<SegmentKey> {
        let place =
            |window: &Window| Place { address: window.region.address(), key: window.region.remote_key() };
        // What is taken away is taken away whole.
        let first = |(key, windows): (&SegmentKey, &Vec<Window>)| {
            windows.first().filter(|window| window.is_device).map(|window| (*key, place(window)))
        };
        let places: Vec<_> = self.windows.iter().filter_map(first).collect();
        self.watch.look(&self.device, self.attachment, &self.queue, &places);
        self.watch.take_gone()
    }

    /// Asks to be told of the next completion. What was there before is not told.
    pub(super) fn arm(&mut self) -> Result<(), crate::verbs::VerbError> {
        self.channel.take()?;
        self.queue.arm()?;
        self.armed = true;
        Ok(())
    }

    /// Takes a segment back. Nobody uses it any more.
    pub(super) fn forget(&mut self, segment: u64) {
        self.windows.retain(|key, _| key.segment != segment);
        self.refused.retain(|key, _| key.segment != segment);
        self.watch.forget(segment);
    }

    /// How the NIC knows these bytes, which are registered if they are not yet; `None` if they cannot be.
    pub(super) fn know(&mut self, found: &Registrable, bytes: usize) -> Option<Known> {
        let (begin, end) = (found.offset, found.offset.checked_add(bytes)?);
        if matches!(found.source, Source::DmaBuf { asks: false, .. }) && !self.imports_unasked {
            return None;
        }
        let windows = self.windows.entry(found.key).or_default();
        let holds = |window: &&Window| window.begin <= begin && end <= window.end;
        if let Some(window) = windows.iter().find(holds) {
            return Some(window.known(begin));
        }
        if self.refused.contains_key(&found.key) {
            return None;
        }
        match Window::register(&self.device, &found.source, begin, end) {
            Ok(window) => {
                let known = window.known(begin);
                windows.push(window);
                Some(known)
            }
            Err(error) => {
                self.refused.insert(found.key, error);
                None
            }
        }
    }

    /// What could not be registered, and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = &RegisterError> {
        self.refused.values()
    }
}

impl Window {
    fn register(device: &Device, source: &Source, begin: usize, end: usize) -> Result<Self, RegisterError> {
        let bounds = |bytes: usize| (begin / BLOCK * BLOCK, end.next_multiple_of(BLOCK).min(bytes));
        match source {
            Source::Host { base, bytes } => {
                let (begin, end) = bounds(*bytes);
                let memory = base.wrapping_add(begin).cast_mut();
                // SAFETY: segments stay mapped as long as their `Register`, which outlives the rails; what the NIC does to the memory is ordered
                // by the completions of the operations that it belongs to.
                let region =
                    unsafe { MemoryRegion::register(device, memory, end - begin, Access::REMOTE_WRITE) }?;
                Ok(Self { begin, end, region, is_device: false })
            }
            Source::DmaBuf { descriptor, bytes, .. } => {
                let (begin, end) = bounds(*bytes);
                let descriptor = std::os::fd::AsFd::as_fd(descriptor);
                let (offset, length) = (begin as u64, end - begin);
                // Read by the watch alone.
                let access = Access::REMOTE_WRITE | Access::REMOTE_READ;
                let region =
                    MemoryRegion::register_dmabuf(device, descriptor, offset, length, offset, access)?;
                Ok(Self { begin, end, region, is_device: true })
            }
        }
    }

    fn known(&self, offset: usize) -> Known {
        let address = self.region.address() + (offset - self.begin) as u64;
        Known { address, local: self.region.local_key(), remote: self.region.remote_key() }
    }
}
