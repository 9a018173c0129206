//! The cache lines by which a rank tells its peers how far it is.
//!
//! # Who writes what, and why the order holds
//! A rank's lines are written by that rank alone, under its communicator's lock, and read by its peers.
//!
//! * [`ArrivalLine`]: the body is stored relaxed, then the word with release. A peer loads the word with acquire; when it shows the
//!   awaited sequence, the body it then loads is that operation's, because (a) release/acquire on the word orders the body's stores before the
//!   body's loads, and (b) the line is not written for a later operation until every peer has *ended* this one, which each tells by a release
//!   store of its ended line after its last load of the body.
//! * Done and ended lines ([`Watermark`]) only grow. A rank stores done with release after its last access to its peers' memory for those
//!   chunks; a peer that loads it with acquire may then reuse or return that memory.
//!
//! * The relayed line is a [`Watermark`], too. A rank stores it with release after its last store to its stage for those chunks, which a peer that loads
//!   it with acquire may read until it has stored done for them.
//!
//! Loom checks (a) and (b) in `tests/loom/`.

use windlass_memory::Location;

use super::sync::{AtomicU64, Ordering};

/// Bytes of a message that fit into the arrival line itself.
pub const INLINE_BYTES: usize = 8 * BODY_WORDS;

/// What is left of a pair of cache lines behind the word and the fingerprint.
const BODY_WORDS: usize = 13;

/// Bytes of a message that fit beside the word and the fingerprint.
const FIRST_LINE_BYTES: usize = 40;

/// Asks for a copy of the cache line at `address`. A hint, as [`prepare`].
#[inline]
fn fetch(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch faults nowhere and changes nothing.
    unsafe {
        std::arch::asm!("prefetcht0 [{}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = address;
}

/// Asks for the cache line at `address` to be owned by this processor soon. A hint: it changes no byte, and any address will do.
#[inline]
pub fn prepare(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // The intrinsic asks for a shared copy where the target's oldest processors lack this instruction; to them it does nothing.
    // SAFETY: a prefetch faults nowhere and changes nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prfm pstl1keep, [{}]", in(reg) address, options(nostack, preserves_flags));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = address;
}

/// What a rank lends its peers for one operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lend {
    /// Its registered memory, from here.
    Region(Location),
    /// Its stage, which stands in for heap memory.
    Stage,
    /// Nothing: no peer touches it.
    Nothing,
}

const STAGE: u64 = u64::MAX;
const NOTHING: u64 = u64::MAX - 1;

impl Lend {
    fn encode(self) -> [u64; 2] {
        match self {
            Self::Stage => [STAGE, 0],
            Self::Nothing => [NOTHING, 0],
            Self::Region(l) => [u64::from(l.segment) | u64::from(l.generation) << 32, l.offset],
        }
    }

    fn decode(words: [u64; 2]) -> Self {
        match words[0] {
            STAGE => return Self::Stage,
            NOTHING => return Self::Nothing,
            _ => {}
        }
        let [segment, generation] = [words[0] as u32, (words[0] >> 32) as u32];
        Self::Region(Location { segment, generation, offset: words[1] })
    }
}

/// How far a rank is: a sequence and the chunks of it that are ready. Ordered, the sequence wrapping.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// The low half of the communicator's sequence.
    pub sequence: u32,
    /// Chunks.
    pub chunks: u32,
}

impl Progress {
    const fn pack(self) -> u64 {
        (self.sequence as u64) << 32 | self.chunks as u64
    }

    const fn unpack(word: u64) -> Self {
        Self { sequence: (word >> 32) as u32, chunks: word as u32 }
    }
}

/// One rank's announcement of one operation: a pair of cache lines, which the processor fetches together. Only a message
/// of more than 40 bytes touches the second.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct ArrivalLine {
    word: AtomicU64,
    fingerprint: [AtomicU64; 2],
    body: [AtomicU64; BODY_WORDS],
}

impl ArrivalLine {
    /// Fills in what the operation is. Peers see it with the next [`raise`](Self::raise).
    #[inline]
    pub fn describe(&self, fingerprint: [u64; 2]) {
        self.fingerprint[0].store(fingerprint[0], Ordering::Relaxed);
        self.fingerprint[1].store(fingerprint[1], Ordering::Relaxed);
    }

    /// Fills in where the operand and the result are.
    #[inline]
    pub fn lend(&self, input: Lend, output: Lend) {
        let ([a, b], [c, d]) = (input.encode(), output.encode());
        for (word, value) in self.body.iter().zip([a, b, c, d]) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Shows `chunks` chunks of operation `sequence` to the peers.
    #[inline]
    pub fn raise(&self, sequence: u64, chunks: u32) {
        self.word.store(Progress { sequence: sequence as u32, chunks }.pack(), Ordering::Release);
    }

    /// Begins to take the line from its readers for the stores to come.
    #[inline]
    pub fn prepare(&self, bytes: usize) {
        prepare(std::ptr::from_ref(self).cast());
        if bytes > FIRST_LINE_BYTES {
            prepare(std::ptr::from_ref(self).cast::<u8>().wrapping_add(64));
        }
    }

    /// Asks for the second line, if a message of `bytes` bytes reaches into it. Asked with every look at the first, it travels beside
    /// that instead of after it.
    #[inline]
    pub fn fetch(&self, bytes: usize) {
        if bytes > FIRST_LINE_BYTES {
            fetch(std::ptr::from_ref(self).cast::<u8>().wrapping_add(64));
        }
    }

    /// The chunks of operation `sequence` that are ready; 0 while the rank has not arrived in it.
    #[inline]
    pub fn ready(&self, sequence: u64) -> u32 {
        let seen = Progress::unpack(self.word.load(Ordering::Acquire));
        if seen.sequence == sequence as u32 { seen.chunks } else { 0 }
    }

    /// The fingerprint; meaningful once [`ready`](Self::ready) is not 0.
    #[inline]
    pub fn fingerprint(&self) -> [u64; 2] {
        [self.fingerprint[0].load(Ordering::Relaxed), self.fingerprint[1].load(Ordering::Relaxed)]
    }

    /// What is lent for the operand and the result; meaningful once [`ready`](Self::ready) is not 0.
    #[inline]
    pub fn lent(&self) -> (Lend, Lend) {
        let word = |i: usize| self.body[i].load(Ordering::Relaxed);
        (Lend::decode([word(0), word(1)]), Lend::decode([word(2), word(3)]))
    }

    /// Where a message of at most [`INLINE_BYTES`] lies in the line.
    #[cfg(not(loom))]
    pub const fn inline(&self) -> *mut u8 {
        self.body[0].as_ptr().cast()
    }

    /// The body's words, for the model of its ordering.
    #[cfg(loom)]
    pub fn body(&self) -> &[AtomicU64; BODY_WORDS] {
        &self.body
    }

    /// A line of its own, for the model of its ordering.
    #[cfg(loom)]
    pub fn new() -> Self {
        let word = || AtomicU64::new(0);
        Self { word: word(), fingerprint: [word(), word()], body: std::array::from_fn(|_| word()) }
    }
}

/// A word that only grows: how far a rank is with touching its peers' memory, or which operations it has ended.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Watermark {
    word: AtomicU64,
}

impl Watermark {
    /// Everything of operation `sequence` up to `chunks` chunks is done.
    #[inline]
    pub fn raise(&self, sequence: u64, chunks: u32) {
        self.word.store(Progress { sequence: sequence as u32, chunks }.pack(), Ordering::Release);
    }

    /// How many of `chunks` chunks of operation `sequence` are done: all, when a later one is under way.
    #[inline]
    pub fn reached(&self, sequence: u64, chunks: u32) -> u32 {
        let seen = Progress::unpack(self.word.load(Ordering::Acquire));
        match (seen.sequence.wrapping_sub(sequence as u32)).cast_signed() {
            0 => seen.chunks.min(chunks),
            ahead if ahead > 0 => chunks,
            _ => 0,
        }
    }

    /// Stores a plain count, for the line that counts ended operations.
    #[inline]
    pub fn store(&self, count: u64) {
        self.word.store(count, Ordering::Release);
    }

    /// Loads a plain count.
    #[inline]
    pub fn load(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    /// A line of its own, for the model of its ordering.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn zeroed<T>() -> Box<T> {
        // SAFETY: both lines are made of integers, for which zero is a value.
        unsafe { Box::new(std::mem::zeroed()) }
    }

    #[test]
    fn a_line_fills_its_pair_of_cache_lines() {
        assert_eq!(size_of::<ArrivalLine>(), 128);
        assert_eq!(std::mem::offset_of!(ArrivalLine, body) + INLINE_BYTES, 128);
    }

    #[test]
    fn what_is_lent_arrives() {
        let line = zeroed::<ArrivalLine>();
        let region = Lend::Region(Location { segment: 3, generation: 9, offset: 1 << 40 });
        line.describe([1, 2]);
        line.lend(region, Lend::Stage);
        assert_eq!(line.ready(5), 0);
        line.raise(5, 2);
        assert_eq!((line.ready(5), line.ready(4), line.fingerprint()), (2, 0, [1, 2]));
        assert_eq!(line.lent(), (region, Lend::Stage));
        line.lend(Lend::Nothing, region);
        assert_eq!(line.lent(), (Lend::Nothing, region));
    }

    #[test]
    fn watermarks_compare_across_the_wrap() {
        let line = zeroed::<Watermark>();
        let last = u64::from(u32::MAX);
        line.raise(last, 3);
        assert_eq!((line.reached(last, 5), line.reached(last - 1, 5), line.reached(last + 1, 5)), (3, 5, 0));
        line.raise(last + 1, 1);
        assert_eq!((line.reached(last, 5), line.reached(last + 1, 5)), (5, 1));
    }
}
