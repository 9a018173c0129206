//! Two connected queue pairs of one device, and memory for them.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use windlass_rdma::choice::{Facts, Wishes, choose};
use windlass_rdma::verbs::{
    Access, Attachment, Capacities, Completion, CompletionChannel, CompletionQueue, Device, Failure, Kind,
    Local, MemoryRegion, Place, QueuePair, Sge, Timing, Verbs, Write,
};

/// What a completion is waited for at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// The device and attachment that this host should use. Where there is none, says so; then the test has nothing to do.
pub(crate) fn device() -> Option<(Device, Attachment)> {
    let skip =
        |why: &dyn std::fmt::Display| println!("skipped: verbs on a device, because there is none: {why}");
    let verbs = Verbs::load().map_err(|e| skip(&e)).ok()?;
    let facts = Facts::gather(&verbs).map_err(|e| skip(&e)).ok()?;
    let choice = choose(&facts, &Wishes::default()).map_err(|e| skip(&e)).ok()?;
    let rail = &choice.rails[0];
    let device = Device::open(&verbs, &rail.device).expect("a chosen device opens");
    let attachment = device.attachment(rail.port, rail.gid_index).expect("a chosen GID is there");
    assert_eq!(attachment.gid, rail.gid);
    Some((device, attachment))
}

/// Pages of its own, which the NIC may write at any time.
#[derive(Debug)]
pub(crate) struct Pages {
    at: *mut u8,
    pub(crate) bytes: usize,
}

impl Pages {
    pub(crate) fn new(bytes: usize) -> Self {
        // SAFETY: a new mapping touches nobody's memory.
        let at = unsafe {
            mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        Self { at: at.expect("memory").cast(), bytes }
    }

    pub(crate) fn at(&self) -> *mut u8 {
        self.at
    }

    pub(crate) fn register(&self, device: &Device, access: Access) -> MemoryRegion {
        // SAFETY: the pages stay mapped until after their regions are gone: tests drop those first.
        unsafe { MemoryRegion::register(device, self.at, self.bytes, access) }
            .expect("the pages are registered")
    }

    pub(crate) fn fill(&self, value: u8) {
        // SAFETY: the pages are mapped, and no work on them is under way.
        unsafe { std::ptr::write_bytes(self.at, value, self.bytes) };
    }

    pub(crate) fn holds(&self, offset: usize, bytes: usize, value: u8) -> bool {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: in the pages, as just checked. Volatile, as the NIC may have written it.
        (offset..offset + bytes).all(|i| unsafe { self.at.add(i).read_volatile() } == value)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and used no more.
        unsafe { munmap(self.at.cast(), self.bytes) }.expect("the pages are given back");
    }
}

/// One end.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) queue_pair: QueuePair,
    pub(crate) queue: CompletionQueue,
    channel: CompletionChannel,
    pub(crate) device: Device,
    seen: Vec<Completion>,
}

impl End {
    fn new(device: &Device, attachment: Attachment) -> Self {
        let channel = CompletionChannel::create(device).expect("a channel");
        let queue = CompletionQueue::create(device, 256, Some(&channel)).expect("a completion queue");
        let wanted = Capacities { sends: 64, receives: 128, pieces: 2, inline_bytes: 64 };
        let queue_pair = QueuePair::create(device, attachment, &queue, &queue, wanted).expect("a queue pair");
        let got = queue_pair.capacities();
        assert!(got.sends >= 64 && got.pieces >= 2, "{got:?}");
        Self { queue_pair, queue, channel, device: device.clone(), seen: Vec::new() }
    }

    /// The next completion, waited for on the channel. `None` after the patience is at its end.
    pub(crate) fn next_within(&mut self, time: Duration) -> Option<Completion> {
        let deadline = Instant::now() + time;
        loop {
            if !self.seen.is_empty() {
                return Some(self.seen.remove(0));
            }
            self.queue.arm().expect("armed");
            // After arming, so that none falls between.
            if self.queue.poll(&mut self.seen).expect("polled") > 0 {
                continue;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut readable = [PollFd::from_borrowed_fd(self.channel.descriptor(), PollFlags::IN)];
            let _ = poll(&mut readable, Some(&timeout)).expect("waited");
            self.channel.take().expect("taken");
        }
    }

    pub(crate) fn next(&mut self) -> Completion {
        self.next_within(PATIENCE).expect("a completion comes")
    }

    #[track_caller]
    pub(crate) fn fails(&mut self) -> Failure {
        self.next().outcome.expect_err("the work fails")
    }

    #[track_caller]
    pub(crate) fn succeeds(&mut self) -> Kind {
        self.next().outcome.expect("the work succeeds")
    }

    /// Forgets what has ended.
    pub(crate) fn drain(&mut self) {
        while self.queue.poll(&mut self.seen).expect("polled") > 0 {}
        self.seen.clear();
    }
}

/// Two ends.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) a: End,
    pub(crate) b: End,
}

impl Pair {
    pub(crate) fn connected() -> Option<Self> {
        let pair = Self::unconnected()?;
        pair.connect(Timing::default());
        Some(pair)
    }

    pub(crate) fn unconnected() -> Option<Self> {
        let (device, attachment) = device()?;
        // Of its own, so that it has events of its own.
        let other = Device::open(device.verbs(), device.name()).expect("opened twice");
        Some(Self { a: End::new(&device, attachment), b: End::new(&other, attachment) })
    }

    pub(crate) fn connect(&self, timing: Timing) {
        self.b.queue_pair.connect(&self.a.queue_pair.address(), timing).expect("connected");
        self.a.queue_pair.connect(&self.b.queue_pair.address(), timing).expect("connected");
    }

    /// Resets both ends, forgets what was under way, and connects them again.
    pub(crate) fn recycle(&mut self) {
        for end in [&mut self.a, &mut self.b] {
            end.queue_pair.reset().expect("reset");
            end.drain();
        }
        self.connect(Timing::default());
    }
}

/// A signalled write of a whole region to a place, with an immediate if there is one.
pub(crate) fn write(from: &Sge, to: Place, immediate: Option<u32>) -> Write<'_> {
    Write { id: 1, local: Local::Pieces(std::slice::from_ref(from)), remote: to, immediate, signalled: true }
}

pub(crate) fn sge(region: &MemoryRegion) -> Sge {
    Sge { address: region.address(), bytes: region.bytes() as u32, key: region.local_key() }
}

pub(crate) fn place(region: &MemoryRegion) -> Place {
    Place { address: region.address(), key: region.remote_key() }
}

/// Writes all of `from` to `to`, and waits.
pub(crate) fn move_over(pair: &mut Pair, from: &Sge, to: Place) -> Result<(), Failure> {
    // SAFETY: the tests keep their regions until the work has ended.
    unsafe { pair.a.queue_pair.post_write(&write(from, to, None)) }.expect("posted");
    pair.a.next().outcome.map(|kind| assert_eq!(kind, Kind::Write))
}
