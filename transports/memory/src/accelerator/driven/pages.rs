//! One generation of a region: memory of a descriptor, whose first page is a header.
//!
//! The descriptor is a sealed memfd, which stands for a dma-buf, or a dma-buf of the kernel's. The header is one reason why no offset is zero; the data then
//! begins at an odd place of the second page, because accelerators cut allocations out of larger memory and their exports begin
//! anywhere. *Adopted* memory is somebody else's and has no header: its region's number says so.
//!
//! Only the engine looks at the mapping. The owner of a memfd copies, poisons and checks by `pread` and `pwrite`, as a device's own copy engine
//! would: beside whatever engines do, and without a Rust access that could race with them. A dma-buf is copied through the mapping.
//!
//! A dma-buf that its exporter moves is the same memory at the next generation; a memfd is another one.

use std::fmt;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::{Errno, pread, pwrite};

use super::fault::Watch;
use super::leaving::leave;
use crate::accelerator::dma_buf::{self, Look};
use crate::accelerator::life::{Life, State};
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
pub(in crate::accelerator) const SKEW_BYTES: u64 = 64;

/// Region numbers from here on are of adopted memory, which has no header.
pub(in crate::accelerator) const ADOPTED: u64 = 1 << 63;

type Result<T> = std::result::Result<T, AcceleratorError>;

/// What is the same for every import of a region's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::accelerator) struct Identity {
    file: (u64, u64),
    region: Region,
}

impl Identity {
    /// Of what may be device memory.
    pub(in crate::accelerator) fn of(descriptor: BorrowedFd<'_>, exported: &Exported) -> Result<Self> {
        Ok(Self { file: dma_buf::file(descriptor)?, region: exported.region })
    }
}

/// Whole pages of the device that a region of `bytes` takes, header and odd beginning included.
pub(in crate::accelerator) fn pages_of(bytes: u64) -> u64 {
    bytes.div_ceil(page_bytes() as u64).saturating_add(2)
}

/// Where the memory is, for as long as anybody has it.
#[derive(Debug)]
struct Backing {
    /// Dropped before the mapping is.
    watch: Option<Watch>,
    /// None where the exporter maps for devices only.
    mapping: Option<ManuallyDrop<Mapping>>,
    descriptor: ManuallyDrop<OwnedFd>,
    file: (u64, u64),
    length: u64,
    is_dma_buf: bool,
    /// Of memory without a header; nobody else sees it.
    life: Option<Box<Life>>,
}

/// One generation of a region, own or imported.
pub(in crate::accelerator) struct Pages {
    pub(in crate::accelerator) region: Region,
    pub(in crate::accelerator) generation: u32,
    /// The region's length.
    pub(in crate::accelerator) bytes: u64,
    /// Where its first byte is in the descriptor.
    pub(in crate::accelerator) data: u64,
    /// The generation that the memory was made for; a dma-buf can have later ones.
    first: u32,
    backing: Arc<Backing>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({}, generation {})", self.region, self.generation)
    }
}

impl Pages {
    /// New memory, whose pages come when they are populated or written. `skew` is where in its page the data begins.
    pub(in crate::accelerator) fn create(
        region: Region,
        generation: u32,
        bytes: u64,
        skew: u64,
        state: State,
    ) -> Result<Arc<Self>> {
        let length = pages_of(bytes).saturating_mul(page_bytes() as u64);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        let fail = |call| move |errno| MemoryError::new(call, errno, size);
        crate::available::check(size)?;
        let descriptor = memfd_create("windlass-device", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(fail("memfd_create"))?;
        ftruncate(&descriptor, length).map_err(fail("ftruncate"))?;
        fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(fail("fcntl(F_ADD_SEALS)"))?;
        let backing = Backing::memfd(descriptor, length)?;
        Self::begin(backing, region, generation, bytes, skew, state)
    }

    /// A region of that many bytes on a new dma-buf, which has [`pages_of`] them.
    pub(in crate::accelerator) fn on(
        descriptor: OwnedFd,
        region: Region,
        generation: u32,
        bytes: u64,
        skew: u64,
        state: State,
    ) -> Result<Arc<Self>> {
        let backing = Backing::dma_buf(descriptor)?;
        if backing.mapping.is_none() {
            return Err(AcceleratorError::Unreachable { region });
        }
        Self::begin(backing, region, generation, bytes, skew, state)
    }

    /// Writes the header.
    fn begin(
        backing: Backing,
        region: Region,
        generation: u32,
        bytes: u64,
        skew: u64,
        state: State,
    ) -> Result<Arc<Self>> {
        let page = page_bytes() as u64;
        let data = page + skew % page;
        let mut header = [0; LIFE_OFFSET];
        let words = [MAGIC, region.device(), region.number(), generation.into(), data, bytes];
        for (place, word) in header.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let needed_bytes = data.saturating_add(bytes);
        if needed_bytes > backing.length {
            return Err(BadDescriptor::TooShort { needed_bytes, bytes: backing.length }.into());
        }
        backing.write(&header, 0)?;
        let pages = Self { region, generation, bytes, data, first: generation, backing: Arc::new(backing) };
        pages.life().set(generation, state);
        Ok(Arc::new(pages))
    }

    /// Somebody else's memory: a range of a dma-buf, alive for as long as this is.
    pub(in crate::accelerator) fn adopt(
        descriptor: BorrowedFd<'_>,
        region: Region,
        offset: u64,
        bytes: u64,
    ) -> Result<Arc<Self>> {
        if !dma_buf::is(descriptor)? {
            return Err(BadDescriptor::NotDmaBuf.into());
        }
        let mut backing = Backing::dma_buf(duplicate(descriptor)?)?;
        let needed_bytes = offset.saturating_add(bytes);
        if needed_bytes > backing.length {
            return Err(BadDescriptor::TooShort { needed_bytes, bytes: backing.length }.into());
        }
        backing.life = Some(Box::new(Life::new(0, State::Alive)));
        Ok(Arc::new(Self {
            region,
            generation: 0,
            bytes,
            data: offset,
            first: 0,
            backing: Arc::new(backing),
        }))
    }

    /// The same memory under the region's own name.
    pub(in crate::accelerator) fn named(&self, region: Region) -> Arc<Self> {
        let Self { generation, bytes, data, first, ref backing, .. } = *self;
        Arc::new(Self { region, generation, bytes, data, first, backing: Arc::clone(backing) })
    }

    /// The same memory at another generation; a memfd has but one.
    pub(in crate::accelerator) fn at(self: &Arc<Self>, generation: u32) -> Arc<Self> {
        if generation == self.generation || !self.backing.is_dma_buf || self.backing.life.is_some() {
            return Arc::clone(self);
        }
        let Self { region, bytes, data, first, ref backing, .. } = **self;
        Arc::new(Self { region, generation, bytes, data, first, backing: Arc::clone(backing) })
    }

    /// Memory of another accelerator, or of this one by the long way.
    pub(in crate::accelerator) fn open(descriptor: BorrowedFd<'_>, exported: &Exported) -> Result<Arc<Self>> {
        if exported.region.number() >= ADOPTED {
            let whole = dma_buf::length(descriptor).unwrap_or(0);
            return Self::adopt(descriptor, exported.region, 0, whole);
        }
        let backing = match dma_buf::is(descriptor)? {
            true => Backing::dma_buf(duplicate(descriptor)?)?,
            false => Backing::foreign_memfd(descriptor)?,
        };
        if backing.mapping.is_none() {
            return Err(AcceleratorError::Unreachable { region: exported.region });
        }
        let page = page_bytes() as u64;
        if backing.length < page {
            return Err(BadDescriptor::TooShort { needed_bytes: page, bytes: backing.length }.into());
        }
        let mut header = [0; LIFE_OFFSET];
        backing.read(&mut header, 0)?;
        if backing.is_lost() {
            let Exported { region, generation, .. } = *exported;
            return Err(AcceleratorError::Stale { region, generation });
        }
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[i * 8 + byte]));
        let first = u32::try_from(word(3)).map_err(|_| BadDescriptor::WrongHeader)?;
        let (data, bytes) = (word(4), word(5));
        if word(0) != MAGIC || data < page {
            return Err(BadDescriptor::WrongHeader.into());
        }
        let needed_bytes = data.saturating_add(bytes);
        if needed_bytes > backing.length {
            return Err(BadDescriptor::TooShort { needed_bytes, bytes: backing.length }.into());
        }
        let region = Region::new(word(1), word(2));
        let pages = Self { region, generation: first, bytes, data, first, backing: Arc::new(backing) };
        let pages = Arc::new(pages);
        Ok(pages.at(exported.generation))
    }

    /// Whether `exported` is a range of this memory.
    pub(in crate::accelerator) fn check(
        &self,
        exported: &Exported,
    ) -> std::result::Result<(), BadDescriptor> {
        if (exported.region, exported.generation) != (self.region, self.generation)
            || exported.generation < self.first
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

    pub(in crate::accelerator) fn is(&self, identity: Identity) -> bool {
        identity == Identity { file: self.backing.file, region: self.region }
    }

    /// What all descriptors of the memory have in common.
    pub(in crate::accelerator) fn file(&self) -> (u64, u64) {
        self.backing.file
    }

    /// How far apart two bytes are; none if they lie in different memory.
    pub(super) fn distance(&self, at: u64, other: &Self, other_at: u64) -> Option<u64> {
        let same = self.backing.file == other.backing.file;
        same.then(|| (self.data + at).abs_diff(other.data + other_at))
    }

    /// A descriptor to give away.
    pub(in crate::accelerator) fn descriptor(&self) -> Result<OwnedFd> {
        duplicate(self.backing.descriptor.as_fd())
    }

    /// The descriptor, for the exporter's own calls.
    pub(in crate::accelerator) fn as_fd(&self) -> BorrowedFd<'_> {
        self.backing.descriptor.as_fd()
    }

    pub(in crate::accelerator) fn life(&self) -> &Life {
        if let Some(life) = &self.backing.life {
            return life;
        }
        // SAFETY: the mapping is at least a page long and page-aligned (`open` and `begin` see to it), so the words are inside and
        // aligned; all processes access them as atomics only, and any bits are a value. They live as long as `self`.
        unsafe { &*self.backing.base().add(LIFE_OFFSET).cast::<Life>() }
    }

    pub(in crate::accelerator) fn state(&self) -> State {
        let state = self.life().state(self.generation);
        // What was read may be nobody's.
        if self.backing.is_lost() { State::Dead } else { state }
    }

    /// Whether the kernel has taken it away, as far as anybody here has looked: this does.
    pub(in crate::accelerator) fn is_lost(&self) -> bool {
        self.state() == State::Dead && self.backing.is_lost()
    }

    /// Whether the CPU reaches it.
    pub(super) fn is_reachable(&self) -> bool {
        self.backing.mapping.is_some()
    }

    /// Counts an engine in, before its first access. On an error it does not access, and is not counted.
    ///
    /// # Errors
    /// `Away` where it is to wait; `Stale`, `Early`.
    pub(in crate::accelerator) fn enter(&self) -> Result<()> {
        let entered = self.life().enter(self.generation);
        if self.backing.is_lost() {
            // The words were nobody's.
            return Err(self.refusal(State::Dead));
        }
        entered.map_err(|state| self.refusal(state))?;
        let begun = self.sync(Look::Begins);
        if begun.is_err() {
            // It has touched nothing, so it does not matter what has become of it.
            let _ = self.life().leave(self.generation);
        }
        begun
    }

    /// Counts it out, after its last access. `Ok` says that its stores are in the contents that go on.
    pub(in crate::accelerator) fn leave(&self) -> Result<()> {
        let ended = self.sync(Look::Ends);
        let left = self.life().leave(self.generation);
        if self.backing.is_lost() {
            return Err(self.refusal(State::Dead));
        }
        left.map_err(|state| self.refusal(state)).and(ended)
    }

    fn sync(&self, look: Look) -> Result<()> {
        if self.backing.is_dma_buf {
            dma_buf::sync(self.backing.descriptor.as_fd(), look)?;
        }
        Ok(())
    }

    /// What work ends with that found the memory in a state that it cannot work in.
    fn refusal(&self, state: State) -> AcceleratorError {
        let (region, generation) = (self.region, self.generation);
        match state {
            State::Unborn => AcceleratorError::Early { region, generation },
            State::Moving => AcceleratorError::Away { region },
            State::Alive | State::Dead => AcceleratorError::Stale { region, generation },
        }
    }

    /// For the engine: where byte `at` of the region is. `at` is at most the region's length.
    pub(super) fn address(&self, at: u64) -> *mut u8 {
        debug_assert!(at <= self.bytes);
        // `check`, `open`, `adopt` and `begin` keep data + bytes within the mapping, whose length is a usize.
        self.backing.base().wrapping_add((self.data + at) as usize)
    }

    /// Bytes of the region to the host; the range is the caller's to check.
    pub(in crate::accelerator) fn read(&self, at: u64, to: &mut [u8]) -> Result<()> {
        self.backing.read(to, self.data + at)
    }

    /// Bytes of the host to the region.
    pub(in crate::accelerator) fn write(&self, at: u64, from: &[u8]) -> Result<()> {
        self.backing.write(from, self.data + at)
    }

    /// Of all of it, header included.
    pub(in crate::accelerator) fn length(&self) -> u64 {
        self.backing.length
    }

    /// Makes pages present, from a byte of the descriptor to another: a shortage is an error now, not a signal to the engine later. A dma-buf's
    /// are its exporter's to provide.
    pub(in crate::accelerator) fn populate(&self, at: u64, end: u64) -> Result<()> {
        match &self.backing.mapping {
            Some(mapping) if !self.backing.is_dma_buf => {
                Ok(mapping.populate(at as usize, (end - at) as usize)?)
            }
            _ => Ok(()),
        }
    }

    /// Copies those of the region's bytes that have their place between two bytes of `other`, which has the same length.
    pub(in crate::accelerator) fn copy_to(&self, other: &Self, at: u64, end: u64) -> Result<()> {
        let first = at.saturating_sub(other.data).min(self.bytes);
        let last = end.saturating_sub(other.data).min(self.bytes);
        in_parts(first, last, |at, part, bounce| {
            self.read(at, &mut bounce[..part])?;
            other.write(at, &bounce[..part])
        })
    }

    /// Fills the bytes from one to another of the descriptor with poison. Behind the header that is all of it, also around the region's bytes.
    pub(in crate::accelerator) fn poison(&self, at: u64, end: u64) -> Result<()> {
        let poison = POISON.repeat(BOUNCE_BYTES / POISON.len());
        in_parts(at, end, |at, part, _| self.backing.write(&poison[..part], at))
    }

    /// The first byte among those that is not poison any more: from the region's begin, which slack before it makes negative.
    pub(in crate::accelerator) fn first_touched(&self, at: u64, end: u64) -> Option<i64> {
        let poison = POISON.repeat(BOUNCE_BYTES / POISON.len());
        let mut touched = None;
        // What cannot be read cannot be checked.
        let _ = in_parts(at, end, |at, part, bounce| {
            self.backing.read(&mut bounce[..part], at)?;
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

impl Backing {
    fn memfd(descriptor: OwnedFd, length: u64) -> Result<Self> {
        let mapping = Some(ManuallyDrop::new(Mapping::open(descriptor.as_fd())?));
        let file = dma_buf::file(descriptor.as_fd())?;
        let descriptor = ManuallyDrop::new(descriptor);
        Ok(Self { watch: None, mapping, descriptor, file, length, is_dma_buf: false, life: None })
    }

    /// What may be device memory.
    fn foreign_memfd(descriptor: BorrowedFd<'_>) -> Result<Self> {
        let seals = fcntl_get_seals(descriptor).map_err(|_| BadDescriptor::NotMemory)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(BadDescriptor::Unsealed.into());
        }
        let stat = fstat(descriptor).map_err(|_| BadDescriptor::Closed)?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let page = page_bytes() as u64;
        if length < page {
            return Err(BadDescriptor::TooShort { needed_bytes: page, bytes: length }.into());
        }
        Self::memfd(duplicate(descriptor)?, length)
    }

    /// Mapped, if the exporter lets the CPU look.
    fn dma_buf(descriptor: OwnedFd) -> Result<Self> {
        let (length, file) = (dma_buf::length(descriptor.as_fd())?, dma_buf::file(descriptor.as_fd())?);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        let mapping = Mapping::dma_buf(descriptor.as_fd(), size).ok();
        let watch = mapping.as_ref().map(Watch::new).transpose()?;
        let (mapping, descriptor) = (mapping.map(ManuallyDrop::new), ManuallyDrop::new(descriptor));
        Ok(Self { watch, mapping, descriptor, file, length, is_dma_buf: true, life: None })
    }

    fn is_lost(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_lost)
    }

    /// Where the mapping begins.
    ///
    /// # Panics
    /// Without one: what cannot be reached is refused before.
    fn base(&self) -> *mut u8 {
        self.mapping.as_ref().expect("it is mapped").base().as_ptr()
    }

    /// Copies out of it; the range is the caller's to check.
    fn read(&self, to: &mut [u8], at: u64) -> Result<()> {
        if !self.is_dma_buf {
            return read_all(self.descriptor.as_fd(), to, at);
        }
        // SAFETY: the range lies in the mapping; `to` is the caller's alone. Others may write there meanwhile: the bytes are plain, and a device's
        // copy engine would get any mixture as well.
        unsafe { std::ptr::copy_nonoverlapping(self.base().add(at as usize), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies into it.
    fn write(&self, from: &[u8], at: u64) -> Result<()> {
        if !self.is_dma_buf {
            return write_all(&self.descriptor, from, at);
        }
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base().add(at as usize), from.len()) };
        Ok(())
    }
}

/// What is large goes by a thread of the process: to unmap memory and give it back takes the system milliseconds, and whoever happens to be the last
/// with it may be an engine, or hold a lock. Nobody finds the memory by its pages any more, so nobody touches it meanwhile.
impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: each is taken once, here, and nothing of the value is used afterwards but its watch, which looks at nothing.
        let (mapping, descriptor) = unsafe {
            (
                self.mapping.as_mut().map(|mapping| ManuallyDrop::take(mapping)),
                ManuallyDrop::take(&mut self.descriptor),
            )
        };
        // Before the address can be anybody else's.
        self.watch = None;
        if let Some(mapping) = mapping.filter(|mapping| mapping.len() >= LARGE_BYTES) {
            leave((mapping, descriptor));
        }
    }
}

/// Goes from a byte to another with memory for what lies between, in parts.
fn in_parts(mut at: u64, end: u64, mut f: impl FnMut(u64, usize, &mut [u8]) -> Result<()>) -> Result<()> {
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
pub(in crate::accelerator) struct Pin(Arc<Pages>);

impl Pin {
    pub(in crate::accelerator) fn new(pages: Arc<Pages>) -> Self {
        pages.life().pin();
        Self(pages)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.life().unpin();
    }
}

fn duplicate(descriptor: BorrowedFd<'_>) -> Result<OwnedFd> {
    let duplicate = rustix::io::fcntl_dupfd_cloexec(descriptor, 3);
    Ok(duplicate.map_err(|errno| MemoryError::new("fcntl(F_DUPFD_CLOEXEC)", errno, 0))?)
}

fn read_all(descriptor: BorrowedFd<'_>, to: &mut [u8], at: u64) -> Result<()> {
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

fn write_all(descriptor: &OwnedFd, from: &[u8], at: u64) -> Result<()> {
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
