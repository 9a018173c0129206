//! This rank's end of one connection: a queue pair, and the pipe through it. Dropping it silences both directions: the NIC reads and writes nothing
//! for it any more.

use std::collections::VecDeque;

use windlass_transports::Rank;

use super::rail::{Rail, Rings};
use crate::pipe::{Immediate, Kind, Pipe, Shape, Source, Target, Write};
use crate::verbs::{self, Address, Capacities, Local, Place, PostError, QueuePair, Sge, Timing, VerbError};

/// Writes of which only the last is signalled.
const SIGNALLED: u32 = 8;
/// Messages up to this size need no registered memory to leave from, if the NIC agrees.
const INLINE: u32 = 256;

/// What a work request was for: the low byte of its name.
const RECEIVE: u8 = 0;
const WRITE: u8 = 1;
const CREDIT: u8 = 2;
const FAREWELL: u8 = 3;

/// Names of an end's work requests: which end, of which peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Name(u64);

impl Name {
    /// `serial` is another one for each end.
    pub(super) fn new(serial: u32, peer: Rank) -> Self {
        Self(u64::from(serial) << 40 | u64::from(peer) << 8)
    }

    pub(super) const fn of(id: u64) -> Self {
        Self(id & !0xff)
    }

    pub(super) const fn peer(self) -> Rank {
        (self.0 >> 8) as Rank
    }

    const fn id(self, what: u8) -> u64 {
        self.0 | what as u64
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct End {
    pair: QueuePair,
    pub(super) pipe: Pipe,
    pub(super) name: Name,
    pub(super) rail: usize,
    shape: Shape,
    /// The peer's ring, once the two are joined.
    remote: Option<Place>,
    /// Writes whose completion has not come.
    under_way: u32,
    unsignalled: u32,
    /// How many writes each completion ends.
    batches: VecDeque<u32>,
    /// Receives that were used up and are to be posted again.
    pub(super) used: usize,
    farewell: Option<bool>,
}

impl End {
    /// What a queue pair has under way at most.
    pub(super) const fn sends(shape: Shape) -> u32 {
        2 * shape.writes()
    }

    /// A queue pair with its receives posted.
    pub(super) fn create(rail: &Rail, at: usize, name: Name, shape: Shape) -> Result<Self, VerbError> {
        let capacities = Capacities {
            sends: Self::sends(shape),
            receives: shape.receives(),
            pieces: 1,
            inline_bytes: INLINE,
        };
        let pair = QueuePair::create(&rail.device, rail.attachment, &rail.queue, &rail.queue, capacities)?;
        pair.initialize()?;
        pair.post_receives(name.id(RECEIVE), shape.receives() as usize).map_err(|error| error.cause)?;
        Ok(Self {
            pair,
            pipe: Pipe::new(shape),
            name,
            rail: at,
            shape,
            remote: None,
            under_way: 0,
            unsignalled: 0,
            batches: VecDeque::new(),
            used: 0,
            farewell: None,
        })
    }

    pub(super) fn address(&self) -> Address {
        self.pair.address()
    }

    /// Joins the peer's end.
    pub(super) fn join(&mut self, peer: &Address, ring: Place, timing: Timing) -> Result<(), VerbError> {
        self.pair.ready(peer, timing)?;
        self.remote = Some(ring);
        Ok(())
    }

    pub(super) const fn is_joined(&self) -> bool {
        self.remote.is_some()
    }

    /// Whether the queue pair takes another write, with places left for a credit and a farewell.
    pub(super) const fn has_room(&self) -> bool {
        self.under_way + 2 < Self::sends(self.shape)
    }

    pub(super) fn post(&mut self, write: &Write, rail: &Rail, rings: &Rings) -> Result<(), PostError> {
        let Some(ring) = self.remote else { return Ok(()) };
        let remote = match write.target {
            Target::Slot(slot) => Place { address: ring.address + self.shape.offset(slot) as u64, ..ring },
            Target::Place { address, key } => Place { address, key },
        };
        let inline = write.bytes <= self.pair.capacities().inline_bytes as usize;
        let sge;
        let local = match write.source {
            Source::Slot(slot) => {
                let from = rings.staging(self.name.peer()).wrapping_add(self.shape.offset(slot));
                if inline {
                    // SAFETY: the slot is this end's, whose number is not used again before the peer has acted on this write.
                    Local::Inline(unsafe { std::slice::from_raw_parts(from, write.bytes) })
                } else {
                    let address = from.expose_provenance() as u64;
                    sge = [Sge { address, bytes: write.bytes as u32, key: rail.staging.local_key() }];
                    Local::Pieces(&sge)
                }
            }
            Source::Memory { address, key } => {
                sge = [Sge { address, bytes: write.bytes as u32, key }];
                Local::Pieces(&sge)
            }
        };
        self.begin(WRITE, local, remote, write.immediate)
    }

    /// Tells the peer how far this end has acted.
    pub(super) fn give_credit(&mut self, immediate: Immediate) -> Result<(), PostError> {
        let Some(ring) = self.remote else { return Ok(()) };
        self.begin(CREDIT, Local::Inline(&[]), ring, immediate)
    }

    /// Writes once more what was told last: when that is complete, all before it is, since one queue pair completes in order.
    pub(super) fn bid_farewell(&mut self) -> Result<(), PostError> {
        let Some(ring) = self.remote.filter(|_| self.farewell.is_none()) else { return Ok(()) };
        self.farewell = Some(false);
        self.begin(FAREWELL, Local::Inline(&[]), ring, self.pipe.told())
    }

    /// Whether the farewell, and so all before it, is with the peer.
    pub(super) fn has_left(&self) -> bool {
        self.farewell == Some(true)
    }

    fn begin(
        &mut self,
        what: u8,
        local: Local<'_>,
        remote: Place,
        immediate: Immediate,
    ) -> Result<(), PostError> {
        debug_assert!(what == WRITE || immediate.kind == Kind::Credit);
        let signalled = what != WRITE || self.unsignalled + 1 >= SIGNALLED;
        let id = self.name.id(what);
        let write = verbs::Write { id, local, remote, immediate: Some(immediate.encode()), signalled };
        // SAFETY: bytes in a slot stay until the peer has acted on the write; those of a send until the peer has acknowledged them or this end is
        // dropped, which `Rdma::withdraw` and `Rdma::break_off` see to. Both stay registered as long as the rail.
        unsafe { self.pair.post_write(&write) }?;
        self.under_way += 1;
        self.unsignalled += 1;
        if signalled {
            self.batches.push_back(std::mem::take(&mut self.unsignalled));
        }
        Ok(())
    }

    /// A write of this end's is complete, and with it those before it.
    pub(super) fn completed(&mut self, id: u64) {
        self.under_way -= self.batches.pop_front().unwrap_or(0);
        match id as u8 {
            CREDIT => self.pipe.credit_completed(),
            FAREWELL => self.farewell = Some(true),
            _ => {}
        }
    }

    /// Posts the receives that were used up again.
    pub(super) fn replenish(&mut self) -> Result<(), PostError> {
        let used = std::mem::take(&mut self.used);
        self.pair.post_receives(self.name.id(RECEIVE), used)
    }

    /// Takes the queue pair to the error state, as a fault would.
    pub(super) fn sever(&self) {
        // One that does not go there is broken otherwise.
        let _ = self.pair.to_error();
    }
}
