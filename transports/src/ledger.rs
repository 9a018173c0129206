//! What is done again: one mechanism for a revoked region, a broken TCP stream and a recycled queue pair.
//!
//! A [`Ledger`] is the sender's: the chunks of one (operation, step, target), each `Idle → Busy(g) → Written(g)`, and delivered once the
//! receiver's watermark has passed it. A [`Receipt`] is the receiver's: which chunks have arrived. The receiver alone decides what is
//! done again. A sender's completion says that its network interface is content, not that the bytes survived the receiver's revoke.
//!
//! A chunk that is done again is written again, never added again, and from bytes that did not change meanwhile: then it does not matter
//! how much of the first attempt had arrived.

use std::collections::VecDeque;

/// How often a segment has been placed anew, or a stream opened anew. It only grows, and what carries an older one is refused at both ends.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Generation(pub u32);

impl Generation {
    /// The one after this.
    ///
    /// # Panics
    ///
    /// After 2³² of them: a number would be used again.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("nothing is placed or opened anew 2^32 times"))
    }
}

/// A chunk beyond those that are under way: a broken peer. Nothing changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("chunk {chunk} is not under way: {low} to {high} are")]
pub struct NotUnderWay {
    /// The chunk, or the watermark.
    pub chunk: u32,
    /// The first that is under way.
    pub low: u32,
    /// The first that is not.
    pub high: u32,
}

/// A planted fault, by which the tests show that they would notice. Nothing else makes one.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Fault {
    /// A sender takes its own completion for the delivery.
    TrustCompletion,
    /// A sender takes everything written before a break for delivered, whatever the receiver says.
    IgnoreWatermark,
}

/// What has become of a chunk that is not known to be delivered.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Chunk {
    /// To be written.
    Idle,
    /// Being written, over this generation (or connection).
    Busy {
        /// Which.
        generation: Generation,
        /// The receiver has spoken meanwhile: whatever this attempt says at its end, the chunk is done again.
        void: bool,
    },
    /// Written, for all that the sender knows.
    Written(Generation),
}

/// The chunks of one operation's step towards one target. It is made for one operation and ends with it, so nothing is ever written
/// again into an operation that is over.
///
/// - Inputs: [`handle_started`](Self::handle_started), [`handle_written`](Self::handle_written), [`handle_failed`](Self::handle_failed) (own
///   steps), [`handle_delivered`](Self::handle_delivered), [`handle_break`](Self::handle_break) (the receiver's watermark),
///   [`handle_end`](Self::handle_end).
/// - Outputs: [`poll_idle`](Self::poll_idle).
/// - Getters: the rest.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Ledger {
    /// None: the stream has no end, and its numbers come round after 2³² chunks.
    count: Option<u32>,
    /// The receiver's watermark: chunks before it are delivered.
    delivered: u32,
    /// Chunks from here on have never been begun, so nobody can have them.
    begun: u32,
    /// The chunks from the watermark on, as far as they may be under way.
    window: VecDeque<Chunk>,
    limit: usize,
    ended: bool,
    fault: Option<Fault>,
}

impl Ledger {
    /// A stream of this many chunks, of which at most `window` are under way.
    pub fn new(count: u32, window: usize) -> Self {
        Self::with(Some(count), window)
    }

    /// A stream without end, of which at most `window` chunks are under way.
    pub fn endless(window: usize) -> Self {
        Self::with(None, window)
    }

    fn with(count: Option<u32>, limit: usize) -> Self {
        let now = count.map_or(limit, |count| limit.min(count as usize));
        let window = VecDeque::from(vec![Chunk::Idle; now]);
        Self { count, delivered: 0, begun: 0, window, limit, ended: false, fault: None }
    }

    /// The same with a planted fault.
    #[doc(hidden)]
    pub fn plant(mut self, fault: Option<Fault>) -> Self {
        self.fault = fault;
        self
    }

    /// A step begins to write a chunk that [`poll_idle`](Self::poll_idle) gave.
    ///
    /// # Panics
    ///
    /// If it gave another one.
    pub fn handle_started(&mut self, chunk: u32, generation: Generation) {
        let entry = self.entry(chunk).expect("a chunk that is under way");
        assert_eq!(*entry, Chunk::Idle, "chunk {chunk} is written once at a time");
        *entry = Chunk::Busy { generation, void: false };
        if self.ahead(chunk) >= self.ahead(self.begun) {
            self.begun = chunk.wrapping_add(1);
        }
    }

    /// The step has written it, for all it knows.
    pub fn handle_written(&mut self, chunk: u32) -> Result<(), NotUnderWay> {
        match self.busy(chunk)? {
            Some(Chunk::Busy { void: true, .. }) => self.set(chunk, Chunk::Idle),
            Some(Chunk::Busy { generation, .. }) => self.set(chunk, Chunk::Written(generation)),
            _ => {}
        }
        if self.fault == Some(Fault::TrustCompletion) {
            while let Some(Chunk::Written(_)) = self.window.front() {
                self.advance(self.delivered.wrapping_add(1));
            }
        }
        Ok(())
    }

    /// The step could not write it, or not all of it.
    pub fn handle_failed(&mut self, chunk: u32) -> Result<(), NotUnderWay> {
        if self.busy(chunk)?.is_some() {
            self.set(chunk, Chunk::Idle);
        }
        Ok(())
    }

    /// The receiver has everything before this.
    pub fn handle_delivered(&mut self, watermark: u32) -> Result<(), NotUnderWay> {
        match self.ahead(watermark) {
            // An older watermark is an echo: what is delivered stays so.
            None => Ok(()),
            ahead if ahead > self.ahead(self.begun) => {
                Err(NotUnderWay { chunk: watermark, low: self.delivered, high: self.begun })
            }
            Some(_) => {
                self.advance(watermark);
                Ok(())
            }
        }
    }

    /// The way to the receiver broke and stands again: the receiver has everything before this, and the rest is done again.
    pub fn handle_break(&mut self, watermark: u32) -> Result<(), NotUnderWay> {
        if self.fault == Some(Fault::IgnoreWatermark) {
            let written = self.window.iter().take_while(|chunk| matches!(chunk, Chunk::Written(_))).count();
            self.advance(self.delivered.wrapping_add(written as u32));
            return Ok(());
        }
        self.handle_delivered(watermark)?;
        for chunk in &mut self.window {
            match chunk {
                Chunk::Busy { void, .. } => *void = true,
                Chunk::Idle | Chunk::Written(_) => *chunk = Chunk::Idle,
            }
        }
        Ok(())
    }

    /// The operation is over. Nothing is written any more.
    pub fn handle_end(&mut self) {
        self.ended = true;
    }

    /// The first chunk to write before `limit`, how far its source is ready.
    pub fn poll_idle(&self, limit: u32) -> Option<u32> {
        let first = self.window.iter().position(|chunk| *chunk == Chunk::Idle)?;
        let chunk = self.delivered.wrapping_add(first as u32);
        (!self.ended && self.ahead(chunk) < self.ahead(limit)).then_some(chunk)
    }

    /// The receiver's watermark, as far as it is known here.
    pub const fn delivered(&self) -> u32 {
        self.delivered
    }

    /// The first chunk that has never been begun.
    pub const fn begun(&self) -> u32 {
        self.begun
    }

    /// How many chunks have been begun and are not known to be delivered.
    pub const fn under_way(&self) -> u32 {
        self.begun.wrapping_sub(self.delivered)
    }

    /// How far a chunk is ahead of the watermark; none if it is delivered.
    fn ahead(&self, chunk: u32) -> Option<u32> {
        match self.count {
            Some(_) => chunk.checked_sub(self.delivered),
            // Half of the numbers lie ahead: far more than a window has.
            None => Some(chunk.wrapping_sub(self.delivered)).filter(|ahead| *ahead < 1 << 31),
        }
    }

    /// Whether all are delivered.
    pub fn is_delivered(&self) -> bool {
        self.count.is_some_and(|count| count == self.delivered)
    }

    /// What has become of a chunk; none if it is delivered, or not under way yet.
    pub fn chunk(&self, chunk: u32) -> Option<Chunk> {
        self.window.get(self.ahead(chunk)? as usize).copied()
    }

    /// The chunk's entry if it is being written; none if the receiver has it already.
    fn busy(&self, chunk: u32) -> Result<Option<Chunk>, NotUnderWay> {
        if self.ahead(chunk).is_none() {
            return Ok(None);
        }
        match self.chunk(chunk) {
            Some(busy @ Chunk::Busy { .. }) => Ok(Some(busy)),
            _ => {
                let high = self.delivered.wrapping_add(self.window.len() as u32);
                Err(NotUnderWay { chunk, low: self.delivered, high })
            }
        }
    }

    fn entry(&mut self, chunk: u32) -> Option<&mut Chunk> {
        let ahead = self.ahead(chunk)?;
        self.window.get_mut(ahead as usize)
    }

    fn set(&mut self, chunk: u32, state: Chunk) {
        if let Some(entry) = self.entry(chunk) {
            *entry = state;
        }
    }

    fn advance(&mut self, watermark: u32) {
        let passed = watermark.wrapping_sub(self.delivered) as usize;
        self.window.drain(..passed.min(self.window.len()));
        self.delivered = watermark;
        let left = self.count.map_or(self.limit, |count| (count - watermark) as usize);
        self.window.resize(self.limit.min(left), Chunk::Idle);
    }
}

/// What has arrived of one stream of chunks. Chunks may arrive out of order and more than once.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Receipt {
    count: Option<u32>,
    watermark: u32,
    /// Bit i: chunk `watermark + i` has arrived.
    early: u64,
}

impl Receipt {
    /// A stream of this many chunks.
    pub const fn new(count: u32) -> Self {
        Self { count: Some(count), watermark: 0, early: 0 }
    }

    /// A stream without end.
    pub const fn endless() -> Self {
        Self { count: None, watermark: 0, early: 0 }
    }

    /// A chunk is in place, whole. The caller has seen that its generation is admitted.
    pub fn handle_arrived(&mut self, chunk: u32) -> Result<(), NotUnderWay> {
        let ahead = match self.count {
            Some(_) => chunk.checked_sub(self.watermark),
            None => Some(chunk.wrapping_sub(self.watermark)).filter(|ahead| *ahead < 1 << 31),
        };
        if let Some(ahead) = ahead {
            let left = self.count.map_or(u64::BITS, |count| u64::BITS.min(count - self.watermark));
            if ahead >= left {
                let high = self.watermark.wrapping_add(left);
                return Err(NotUnderWay { chunk, low: self.watermark, high });
            }
            self.early |= 1 << ahead;
            let whole = self.early.trailing_ones();
            self.watermark = self.watermark.wrapping_add(whole);
            self.early = self.early.checked_shr(whole).unwrap_or(0);
        }
        Ok(())
    }

    /// The way to this rank broke and is about to stand again: says the watermark to tell the sender. What arrived beyond it is
    /// forgotten, because the sender will do it again; if it counted, the operation could end before that, and be written into
    /// afterwards.
    pub const fn handle_break(&mut self) -> u32 {
        self.early = 0;
        self.watermark
    }

    /// Everything before this has arrived.
    pub const fn watermark(&self) -> u32 {
        self.watermark
    }

    /// Whether all has.
    pub fn is_complete(&self) -> bool {
        self.count.is_some_and(|count| count == self.watermark)
    }
}
