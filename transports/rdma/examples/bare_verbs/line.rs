//! A connection to the other rank, and memory at both ends.

use std::io::{Read, Write as _};
use std::net::TcpStream;

use rustix::event::{PollFd, PollFlags, poll};
use windlass_rdma::choice::{Facts, Wishes, choose};
use windlass_rdma::verbs::{
    Access, Address, Attachment, Capacities, Completion, CompletionChannel, CompletionQueue, Device, Gid,
    Kind, Local, MemoryRegion, Mtu, Place, QueuePair, Sge, Timing, Verbs, Write,
};

use crate::Outcome;

/// Writes under way at once.
pub(crate) const WINDOW: usize = 16;

/// Places of 1 MiB at the target.
pub(crate) const SLOTS: usize = 4;

/// The memory of each end.
pub(crate) const ROOM: usize = SLOTS << 20;

/// Receives that are posted.
const RECEIVES: usize = 64;

pub(crate) struct Line {
    control: TcpStream,
    rank: usize,
    device: Device,
    attachment: Attachment,
    channel: CompletionChannel,
    queue: CompletionQueue,
    queue_pair: QueuePair,
    seen: Vec<Completion>,
    /// Of both, dropped before the memory.
    regions: [MemoryRegion; 2],
    source: Vec<u8>,
    _target: Vec<u8>,
    remote: Place,
    under_way: usize,
    arrived: usize,
}

/// What each tells the other.
struct Hello {
    address: Address,
    place: Place,
}

impl Hello {
    const BYTES: usize = 4 + 4 + 16 + 2 + 4 + 8 + 4;

    fn encode(&self) -> Vec<u8> {
        let Address { number, first_packet, gid, lid, mtu } = self.address;
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend(number.to_le_bytes());
        bytes.extend(first_packet.to_le_bytes());
        bytes.extend(gid.0);
        bytes.extend(lid.to_le_bytes());
        bytes.extend(mtu.bytes().to_le_bytes());
        bytes.extend(self.place.address.to_le_bytes());
        bytes.extend(self.place.key.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut gid = Gid::default();
        gid.0.copy_from_slice(&bytes[8..24]);
        let address = Address {
            number: word(0),
            first_packet: word(4),
            gid,
            lid: u16::from_le_bytes([bytes[24], bytes[25]]),
            mtu: Mtu::from_bytes(word(26))?,
        };
        let place = Place { address: u64::from(word(30)) | u64::from(word(34)) << 32, key: word(38) };
        Some(Self { address, place })
    }
}

impl Line {
    pub(crate) fn open(rank: usize, address: &str) -> Outcome<Self> {
        let verbs = Verbs::load()?;
        let listed = std::env::var("WINDLASS_RDMA_DEVICES").unwrap_or_default();
        let devices = listed.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        let choice =
            choose(&Facts::gather(&verbs)?, &Wishes { devices: devices.collect(), gid_index: None })?;
        let rail = &choice.rails[0];
        let device = Device::open(&verbs, &rail.device)?;
        let attachment = device.attachment(rail.port, rail.gid_index)?;
        let channel = CompletionChannel::create(&device)?;
        let queue = CompletionQueue::create(&device, (RECEIVES + 2 * WINDOW) as u32, Some(&channel))?;
        let wanted =
            Capacities { sends: WINDOW as u32, receives: RECEIVES as u32, pieces: 1, inline_bytes: 64 };
        let queue_pair = QueuePair::create(&device, attachment, &queue, &queue, wanted)?;
        let (mut source, mut target) = (vec![1; ROOM], vec![0; ROOM]);
        let register = |memory: &mut Vec<u8>, access| {
            // SAFETY: the vectors are neither moved from nor grown, and the regions are dropped first.
            unsafe { MemoryRegion::register(&device, memory.as_mut_ptr(), ROOM, access) }
        };
        let regions =
            [register(&mut source, Access::LOCAL_READ)?, register(&mut target, Access::REMOTE_WRITE)?];
        let control = crate::meet(rank, address)?;
        control.set_nodelay(true)?;
        let mut line = Self {
            control,
            rank,
            device,
            attachment,
            channel,
            queue,
            queue_pair,
            seen: Vec::new(),
            regions,
            source,
            _target: target,
            remote: Place { address: 0, key: 0 },
            under_way: 0,
            arrived: 0,
        };
        line.connect()?;
        Ok(line)
    }

    pub(crate) fn device_name(&self) -> &str {
        self.device.name()
    }

    pub(crate) fn attachment(&self) -> Attachment {
        self.attachment
    }

    fn connect(&mut self) -> Outcome<()> {
        let place = Place { address: self.regions[1].address(), key: self.regions[1].remote_key() };
        let hello = Hello { address: self.queue_pair.address(), place };
        self.control.write_all(&hello.encode())?;
        let mut bytes = [0; Hello::BYTES];
        self.control.read_exact(&mut bytes)?;
        let theirs = Hello::decode(&bytes).ok_or("the other rank has packets of no known size")?;
        self.queue_pair.initialize()?;
        self.queue_pair.post_receives(0, RECEIVES)?;
        self.queue_pair.ready(&theirs.address, Timing::default())?;
        self.remote = theirs.place;
        self.meet()
    }

    /// Both are here.
    pub(crate) fn meet(&mut self) -> Outcome<()> {
        self.control.write_all(&[0])?;
        Ok(self.control.read_exact(&mut [0])?)
    }

    /// Rank 0's number, at both.
    pub(crate) fn agree(&mut self, mut number: u64) -> Outcome<u64> {
        let mut bytes = number.to_le_bytes();
        if self.rank == 0 {
            self.control.write_all(&bytes)?;
        } else {
            self.control.read_exact(&mut bytes)?;
            number = u64::from_le_bytes(bytes);
        }
        self.settle()?;
        Ok(number)
    }

    /// Begins a write of so many bytes to an offset of the other's memory, once the window has room for it.
    pub(crate) fn write(&mut self, offset: usize, bytes: usize, immediate: Option<u32>) -> Outcome<()> {
        while self.under_way == WINDOW {
            self.progress()?;
        }
        let remote = Place { address: self.remote.address + offset as u64, ..self.remote };
        let piece = [Sge {
            address: self.regions[0].address() + offset as u64,
            bytes: bytes as u32,
            key: self.regions[0].local_key(),
        }];
        let inline = bytes <= self.queue_pair.capacities().inline_bytes as usize;
        let local =
            if inline { Local::Inline(&self.source[offset..offset + bytes]) } else { Local::Pieces(&piece) };
        // SAFETY: the source is registered as long as the line, and not written.
        unsafe { self.queue_pair.post_write(&Write { id: 0, local, remote, immediate, signalled: true }) }?;
        self.under_way += 1;
        Ok(())
    }

    /// The other's next write with an immediate has come.
    pub(crate) fn received(&mut self) -> Outcome<()> {
        while self.arrived == 0 {
            self.progress()?;
        }
        self.arrived -= 1;
        Ok(self.queue_pair.post_receive(0)?)
    }

    /// All that was begun has ended.
    pub(crate) fn settle(&mut self) -> Outcome<()> {
        while self.under_way > 0 {
            self.progress()?;
        }
        Ok(())
    }

    /// Takes completions, and sleeps while there are none.
    fn progress(&mut self) -> Outcome<()> {
        if self.queue.poll(&mut self.seen)? == 0 {
            self.queue.arm()?;
            // After arming, so that none falls between.
            if self.queue.poll(&mut self.seen)? == 0 {
                poll(&mut [PollFd::from_borrowed_fd(self.channel.descriptor(), PollFlags::IN)], None)?;
                self.channel.take()?;
            }
        }
        for completion in self.seen.drain(..) {
            match completion.outcome? {
                Kind::Receive { .. } => self.arrived += 1,
                _ => self.under_way -= 1,
            }
        }
        Ok(())
    }

    /// Takes the connection down and up again, as after a fault.
    pub(crate) fn recycle(&mut self) -> Outcome<()> {
        self.queue_pair.reset()?;
        while self.queue.poll(&mut self.seen)? > 0 {}
        self.seen.clear();
        (self.under_way, self.arrived) = (0, 0);
        self.connect()
    }

    /// Deregisters and registers so many bytes of the source.
    pub(crate) fn register_anew(&mut self, bytes: usize) -> Outcome<()> {
        // SAFETY: of the line's own source, which lives longer.
        let region = unsafe {
            MemoryRegion::register(&self.device, self.source.as_mut_ptr(), bytes, Access::LOCAL_READ)
        }?;
        Ok(region.deregister()?)
    }
}
