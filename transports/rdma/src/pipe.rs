//! The stream between two ranks, cut into RDMA writes, without I/O.
//!
//! Every write carries an immediate: two bits of kind and a number of 30 bits. **Receivers act in the order of numbers, never of arrival**, so
//! nothing depends on the order in which a device, or several, deliver writes.
//!
//! | kind | the number is | the bytes |
//! |---|---|---|
//! | `Ring` | this write's | lie in slot *number* mod N of the receiver's ring, and are the next of the stream |
//! | `Placed` | this write's | lie where the receiver's clearance said that they belong, and are the next of the stream |
//! | `Credit` | how far its writer has acted | none |
//!
//! **Flow control.** A sender has at most N writes under way that the receiver has not acted on: the ring has a slot, and the receiver a posted
//! receive, for each. A receiver gives credit for a quarter of the ring at a time, and no second credit leaves before the first has been
//! completed. So completions of credits are in order, whatever the device does, and fewer than [`CREDITS`] can wait at the other end:
//! no write ever finds no receive posted, whichever of the [lanes](crate::lanes) each goes by, if so many are posted on every lane.
//!
//! A pipe lasts for one generation of the connection. When it breaks, the [link](windlass_transports::link) knows what has arrived.
//!
//! Who touches what: `next`, `theirs` and the credit under way belong to the sending half, `expected`, `landed` and `told` to the receiving half.

use std::io::IoSlice;

use windlass_transports::Event;
use windlass_transports::link::Link;
use windlass_transports::link::place::Destined;

/// Receives that are posted for credits on each lane, besides one for each slot: four may have been given, one more may be given as soon as the first of
/// them was taken, and a last one says farewell.
pub const CREDITS: u32 = 6;

const NUMBER_BITS: u32 = 30;
const NUMBERS: u32 = 1 << NUMBER_BITS;
/// The first number. It wraps soon, so that this is no rare event.
const FIRST: u32 = NUMBERS - 1000;
/// Slices of the link that are gathered into a slot at a time.
const SLICES: usize = 8;

/// What a write is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes in the receiver's ring.
    Ring = 0,
    /// Bytes where they belong.
    Placed = 1,
    /// How far its writer has acted.
    Credit = 2,
}

/// What a write tells besides its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Immediate {
    /// What it is.
    pub kind: Kind,
    /// See the module's table.
    pub number: u32,
}

impl Immediate {
    /// As it goes on the wire.
    pub const fn encode(self) -> u32 {
        (self.kind as u32) << NUMBER_BITS | self.number
    }

    /// Reads an immediate; there is no fourth kind.
    pub const fn decode(word: u32) -> Option<Self> {
        let kind = match word >> NUMBER_BITS {
            0 => Kind::Ring,
            1 => Kind::Placed,
            2 => Kind::Credit,
            _ => return None,
        };
        Some(Self { kind, number: word % NUMBERS })
    }
}

/// What both ends of a pipe agree on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Slots of a ring, a power of two from 4 on.
    pub slots: u32,
    /// Bytes of a slot.
    pub slot_bytes: u32,
    /// Bytes that one write places at most.
    pub placed_bytes: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { slots: 32, slot_bytes: 8 << 10, placed_bytes: 256 << 10 }
    }
}

impl Shape {
    /// Bytes of a ring.
    pub const fn ring_bytes(&self) -> usize {
        self.slots as usize * self.slot_bytes as usize
    }

    /// Where a slot begins in its ring.
    pub const fn offset(&self, slot: u32) -> usize {
        slot as usize * self.slot_bytes as usize
    }

    /// Receives that must be posted on each lane.
    pub const fn receives(&self) -> u32 {
        self.slots + CREDITS
    }

    /// Writes that can be under way.
    pub const fn writes(&self) -> u32 {
        self.slots + CREDITS
    }
}

/// Where a write's bytes come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// A slot of the sender's own ring, into which they were copied.
    Slot(u32),
    /// Memory of a send, as the sender's device knows it.
    Memory {
        /// Where.
        address: u64,
        /// The key.
        key: u32,
    },
}

/// Where they go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// A slot of the receiver's ring.
    Slot(u32),
    /// Memory that the receiver has told of.
    Place {
        /// Where.
        address: u64,
        /// The key.
        key: u32,
    },
}

/// How bytes can go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way {
    /// By which lane.
    pub lane: u8,
    /// Where they go to their place: by which key the peer's device at the lane's other end knows that.
    pub remote_key: u32,
    /// By which address and key the device at this end knows where they lie, if it does. Otherwise they are copied.
    pub local: Option<(u64, u32)>,
}

impl Way {
    /// Through the rings.
    pub const fn by_ring(lane: u8) -> Self {
        Self { lane, remote_key: 0, local: None }
    }
}

/// A write to be posted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Write {
    /// By which lane.
    pub lane: u8,
    /// What it tells.
    pub immediate: Immediate,
    /// From where.
    pub source: Source,
    /// To where.
    pub target: Target,
    /// How many bytes.
    pub bytes: usize,
}

/// What has come, in the order of the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Landed {
    /// So many bytes in this slot of the ring.
    Ring {
        /// Which.
        slot: u32,
        /// How many.
        bytes: usize,
    },
    /// So many bytes where they belong.
    Placed {
        /// How many.
        bytes: usize,
    },
}

/// The peer broke the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Garbled(pub &'static str);

/// A planted fault, by which tests show that they would notice.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Planted {
    /// Acts on writes as they come.
    OrderOfArrival,
    /// Gives credit for what it has not acted on.
    EarlyCredit,
    /// Does not wait for the last credit's completion.
    ManyCredits,
    /// Sends beyond its credit.
    Overdraft,
}

/// One end of a pipe.
#[derive(Debug)]
pub struct Pipe {
    shape: Shape,
    /// The next number to be sent.
    next: u32,
    /// How far the peer has acted.
    theirs: u32,
    /// A credit has left and was not completed.
    credit_under_way: bool,
    /// The number to be acted on next.
    expected: u32,
    /// By number modulo slots: what has come before its turn.
    landed: Box<[Option<(Kind, u32)>]>,
    /// Up to where credit was given.
    told: u32,
    planted: Option<Planted>,
    /// Of a planted fault: what has come, as it came.
    arrivals: Vec<u32>,
}

/// How far `to` is after `from`.
const fn distance(from: u32, to: u32) -> u32 {
    to.wrapping_sub(from) % NUMBERS
}

impl Pipe {
    /// A pipe through which nothing has gone.
    pub fn new(shape: Shape) -> Self {
        Self::planted(shape, None)
    }

    /// The same with a planted fault.
    #[doc(hidden)]
    pub fn planted(shape: Shape, planted: Option<Planted>) -> Self {
        assert!(shape.slots.is_power_of_two() && shape.slots >= 4, "slots are a power of two, from 4 on");
        Self {
            shape,
            next: FIRST,
            theirs: FIRST,
            credit_under_way: false,
            expected: FIRST,
            landed: vec![None; shape.slots as usize].into_boxed_slice(),
            told: FIRST,
            planted,
            arrivals: Vec::new(),
        }
    }

    // ---- the sending half --------------------------------------------------------------------------------------------------

    /// Whether another write may leave.
    pub fn has_room(&self) -> bool {
        let beyond = if self.planted == Some(Planted::Overdraft) { 2 } else { 0 };
        distance(self.theirs, self.next) < self.shape.slots + beyond
    }

    /// The write that is to leave next, if the link has something and there is room for it. What is not read where it lies was copied into the slot of
    /// `staging` that the write names. `way` says how what is destined for a place goes, so many bytes of it, or what goes through the rings; `None`
    /// while the lanes that could take it are full.
    pub fn depart(
        &mut self,
        link: &mut Link,
        staging: &mut [u8],
        way: impl FnOnce(Option<(&Destined, usize)>) -> Option<Way>,
        events: &mut Vec<Event>,
    ) -> Option<Write> {
        if !self.has_room() {
            return None;
        }
        let slot = self.next % self.shape.slots;
        let begin = self.shape.offset(slot);
        let staged = &mut staging[begin..begin + self.shape.slot_bytes as usize];
        let (lane, kind, source, target, bytes) = match link.destined() {
            Some(destined) => {
                let most = destined.bytes.min(self.shape.placed_bytes as usize);
                let Way { lane, remote_key, local } = way(Some((&destined, most)))?;
                let target = Target::Place { address: destined.place.address, key: remote_key };
                match local {
                    Some((address, key)) => {
                        let source = Source::Memory { address, key };
                        (lane, Kind::Placed, source, target, most)
                    }
                    None => {
                        let bytes = most.min(staged.len());
                        if !link.stage(&destined, &mut staged[..bytes]) {
                            return None;
                        }
                        (lane, Kind::Placed, Source::Slot(slot), target, bytes)
                    }
                }
            }
            None => {
                let lane = way(None)?.lane;
                (lane, Kind::Ring, Source::Slot(slot), Target::Slot(slot), gather(link, staged))
            }
        };
        if bytes == 0 {
            return None;
        }
        link.wrote(bytes, events);
        let immediate = Immediate { kind, number: self.next };
        self.next = (self.next + 1) % NUMBERS;
        Some(Write { lane, immediate, source, target, bytes })
    }

    // ---- the receiving half ------------------------------------------------------------------------------------------------

    /// A write of the peer's has come, in whatever order.
    ///
    /// # Errors
    /// The peer cannot have sent it.
    pub fn arrived(&mut self, immediate: Immediate, bytes: u32) -> Result<(), Garbled> {
        let Immediate { kind, number } = immediate;
        if kind == Kind::Credit {
            // An older one than was known already means nothing, and so does the half of all numbers that lies behind.
            let step = distance(self.theirs, number);
            if step > NUMBERS / 2 {
                return Ok(());
            }
            if step > distance(self.theirs, self.next) {
                return Err(Garbled("credit for what it was not sent"));
            }
            self.theirs = number;
            return Ok(());
        }
        if distance(self.expected, number) >= self.shape.slots {
            return Err(Garbled("a write beyond its credit"));
        }
        let most = if kind == Kind::Ring { self.shape.slot_bytes } else { self.shape.placed_bytes };
        if bytes == 0 || bytes > most {
            return Err(Garbled("a write of a size that none has"));
        }
        let place = &mut self.landed[(number % self.shape.slots) as usize];
        if place.is_some() {
            return Err(Garbled("the same write twice"));
        }
        *place = Some((kind, bytes));
        if self.planted == Some(Planted::OrderOfArrival) {
            self.arrivals.push(number);
        }
        Ok(())
    }

    /// What comes next in the stream, once it is here. It is taken from its slot before [`credit`](Self::credit) is asked for.
    pub fn poll(&mut self) -> Option<Landed> {
        let number = match self.planted {
            Some(Planted::OrderOfArrival) if self.arrivals.is_empty() => return None,
            Some(Planted::OrderOfArrival) => self.arrivals.remove(0),
            _ => self.expected,
        };
        let slot = number % self.shape.slots;
        let (kind, bytes) = self.landed[slot as usize].take()?;
        self.expected = (self.expected + 1) % NUMBERS;
        let bytes = bytes as usize;
        Some(if kind == Kind::Ring { Landed::Ring { slot, bytes } } else { Landed::Placed { bytes } })
    }

    /// The credit that is to leave now, if one is due.
    pub fn credit(&mut self) -> Option<Immediate> {
        let early = if self.planted == Some(Planted::EarlyCredit) { self.shape.slots / 2 } else { 0 };
        let acted = (self.expected + early) % NUMBERS;
        let waits = self.credit_under_way && self.planted != Some(Planted::ManyCredits);
        let due = if self.planted == Some(Planted::ManyCredits) { 1 } else { self.shape.slots / 4 };
        if waits || distance(self.told, acted) < due || distance(self.told, acted) > NUMBERS / 2 {
            return None;
        }
        self.told = acted;
        self.credit_under_way = true;
        Some(Immediate { kind: Kind::Credit, number: acted })
    }

    /// The last credit that was given.
    pub fn told(&self) -> Immediate {
        Immediate { kind: Kind::Credit, number: self.told }
    }

    /// The credit that left is complete.
    pub fn credit_completed(&mut self) {
        self.credit_under_way = false;
    }
}

/// Copies what the link has to say into a slot; says how many bytes.
fn gather(link: &mut Link, slot: &mut [u8]) -> usize {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let limit = slot.len();
    let filled = link.gather(&mut slices, limit);
    let mut at = 0;
    for slice in &slices[..filled] {
        let bytes = slice.len().min(limit - at);
        slot[at..at + bytes].copy_from_slice(&slice[..bytes]);
        at += bytes;
    }
    at
}
