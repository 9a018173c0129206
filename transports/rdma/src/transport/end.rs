//! This rank's end of one connection: a queue pair for each lane, and the pipe through them. Dropping it silences both directions: the NICs read and write
//! nothing for it any more.

use windlass_transports::Rank;

use super::offer::{Offer, Offered};
use super::rail::{Rail, Rings};
use crate::lanes::{self, Lane, Lanes, PAIRS, RAILS, Rails, Work};
use crate::pipe::{Immediate, Kind, Pipe, Shape, Source, Target, Write};
use crate::verbs::{self, Capacities, Local, Place, QueuePair, Sge, Timing, VerbError};

/// Messages up to this size need no registered memory to leave from, if the NIC agrees.
const INLINE: u32 = 256;

/// What a work request was for, in its name: a receive, or else some [`Work`].
const RECEIVE: u8 = 0;

/// Names of an end's work requests: which end, of which peer. Below that a name has the lane's number, 8 bits, and what the request was for, 2 bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Name(u64);

impl Name {
    /// Serials that there are.
    pub(super) const SERIALS: u32 = 1 << 22;

    /// `serial` is another one for each end.
    pub(super) fn new(serial: u32, peer: Rank) -> Self {
        Self(u64::from(serial) << 42 | u64::from(peer) << 10)
    }

    pub(super) const fn of(id: u64) -> Self {
        Self(id & !0x3ff)
    }

    pub(super) const fn peer(self) -> Rank {
        (self.0 >> 10) as Rank
    }

    const fn id(self, lane: u8, what: u8) -> u64 {
        self.0 | (lane as u64) << 2 | what as u64
    }

    /// The lane that a request went by.
    pub(super) const fn lane(id: u64) -> u8 {
        (id >> 2) as u8
    }

    /// What it wrote, if it was no receive.
    const fn work(id: u64) -> Option<Work> {
        match id & 3 {
            1 => Some(Work::Bytes),
            2 => Some(Work::Credit),
            3 => Some(Work::Farewell),
            _ => None,
        }
    }
}

/// A queue pair, and what is told of it to nobody.
#[derive(Debug)]
pub(super) struct Pair {
    pair: QueuePair,
    /// The peer's ring, once the two are joined.
    ring: Option<Place>,
    /// Receives that were used up and are to be posted again.
    used: usize,
}

/// What a NIC refused, and which rail it is of.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) rail: usize,
    pub(super) error: VerbError,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct End {
    pub(super) lanes: Lanes<Pair>,
    pub(super) pipe: Pipe,
    pub(super) name: Name,
    shape: Shape,
    joined: bool,
}

impl End {
    /// What a queue pair has under way at most.
    pub(super) const fn sends(shape: Shape) -> u32 {
        2 * shape.writes()
    }

    /// An end without a lane.
    pub(super) fn new(name: Name, shape: Shape) -> Self {
        Self { lanes: Lanes::new(Vec::new()), pipe: Pipe::new(shape), name, shape, joined: false }
    }

    /// Adds the queue pairs of a rail, with their receives posted, each with as many as all writes that may be under way: a write finds one, whichever lane
    /// it goes by.
    pub(super) fn add(&mut self, rail: &Rail, at: usize, pairs: usize) -> Result<(), Refused> {
        let failed = |error| Refused { rail: at, error };
        let shape = self.shape;
        let capacities = Capacities {
            sends: Self::sends(shape),
            receives: shape.receives(),
            pieces: 1,
            inline_bytes: INLINE,
        };
        let mut made = Vec::new();
        for number in (0..pairs.min(PAIRS)).map(|pair| lanes::number(at, pair)) {
            let queue = &rail.queue;
            let pair = QueuePair::create(&rail.device, rail.attachment, queue, queue, capacities);
            let pair = pair.map_err(failed)?;
            pair.initialize().map_err(failed)?;
            let posted = pair.post_receives(self.name.id(number, RECEIVE), shape.receives() as usize);
            posted.map_err(|error| failed(error.cause))?;
            let pair = Pair { pair, ring: None, used: 0 };
            made.push(Lane::new(number, at, pair, Self::sends(shape)));
        }
        self.lanes.add(made);
        Ok(())
    }

    /// What an offer says of the queue pairs.
    pub(super) fn offered(&self, rails: &[Option<Rail>]) -> [Option<Offered>; RAILS] {
        let mut all = [None; RAILS];
        for (place, rail) in all.iter_mut().zip(self.lanes.rails().iter()) {
            let ring_key = rails[rail].as_ref().map_or(0, |rail| rail.ring.remote_key());
            let address = |pair| Some(self.lanes.get(lanes::number(rail, pair))?.pair.pair.address());
            *place = Some(Offered { rail: rail as u8, pairs: std::array::from_fn(address), ring_key });
        }
        all
    }

    /// Joins the peer's end, by the lanes that both have offered; there may be none.
    pub(super) fn join(&mut self, offer: &Offer, timing: Timing) -> Result<(), Refused> {
        let theirs = |lane: &Lane<Pair>| offer.lane(lane.rail, usize::from(lane.number) % PAIRS);
        self.lanes.retain(|lane| theirs(lane).is_some());
        for lane in self.lanes.iter_mut() {
            let Some((address, key)) = theirs(lane) else { continue };
            lane.pair.pair.ready(&address, timing).map_err(|error| Refused { rail: lane.rail, error })?;
            lane.pair.ring = Some(Place { address: offer.ring, key });
        }
        self.joined = true;
        Ok(())
    }

    pub(super) const fn is_joined(&self) -> bool {
        self.joined
    }

    pub(super) fn rails(&self) -> Rails {
        self.lanes.rails()
    }

    /// Begins a write of the pipe's by its lane, whose rail is among `rails`.
    pub(super) fn post(
        &mut self,
        write: &Write,
        rails: &[Option<Rail>],
        rings: &Rings,
    ) -> Result<(), Refused> {
        let Some(lane) = self.lanes.get(write.lane) else { return Ok(()) };
        let (Some(ring), Some(rail)) = (lane.pair.ring, &rails[lane.rail]) else { return Ok(()) };
        let remote = match write.target {
            Target::Slot(slot) => Place { address: ring.address + self.shape.offset(slot) as u64, ..ring },
            Target::Place { address, key } => Place { address, key },
        };
        let inline = write.bytes <= lane.pair.pair.capacities().inline_bytes as usize;
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
        self.begin(Work::Bytes, write.lane, local, write.bytes, remote, write.immediate)
    }

    /// Tells the peer how far this end has acted.
    pub(super) fn give_credit(&mut self, immediate: Immediate) -> Result<(), Refused> {
        let lane = self.lanes.choose_for_credit().map(|lane| (lane.number, lane.pair.ring));
        let Some((lane, Some(ring))) = lane else { return Ok(()) };
        self.begin(Work::Credit, lane, Local::Inline(&[]), 0, ring, immediate)
    }

    /// Writes once more what was told last, by every lane: when that is complete, all before it is, since each queue pair completes in order.
    pub(super) fn bid_farewell(&mut self) -> Result<(), Refused> {
        while let Some(number) = self.lanes.lacks_farewell() {
            let Some(ring) = self.lanes.get(number).and_then(|lane| lane.pair.ring) else { return Ok(()) };
            let told = self.pipe.told();
            self.begin(Work::Farewell, number, Local::Inline(&[]), 0, ring, told)?;
        }
        Ok(())
    }

    /// Whether the farewells, and so all before them, are with the peer.
    pub(super) fn has_left(&self) -> bool {
        self.lanes.have_left()
    }

    fn begin(
        &mut self,
        work: Work,
        number: u8,
        local: Local<'_>,
        bytes: usize,
        remote: Place,
        immediate: Immediate,
    ) -> Result<(), Refused> {
        debug_assert!(work == Work::Bytes || immediate.kind == Kind::Credit);
        let signalled = self.lanes.begin(number, work, bytes);
        let Some(lane) = self.lanes.get(number) else { return Ok(()) };
        let id = self.name.id(number, work as u8);
        let write = verbs::Write { id, local, remote, immediate: Some(immediate.encode()), signalled };
        // SAFETY: bytes in a slot stay until the peer has acted on the write; those of a send until the peer has acknowledged them or this end is
        // dropped, which `Rdma::withdraw` and `Rdma::break_off` see to. Both stay registered as long as the rail.
        let posted = unsafe { lane.pair.pair.post_write(&write) };
        posted.map_err(|refused| Refused { rail: lane.rail, error: refused.cause })
    }

    /// A write of this end's is complete, and with it those before it by its lane.
    pub(super) fn completed(&mut self, id: u64) {
        let Some(work) = Name::work(id) else { return };
        self.lanes.completed(Name::lane(id), work);
        if work == Work::Credit {
            self.pipe.credit_completed();
        }
    }

    /// A receive was used up.
    pub(super) fn received(&mut self, id: u64) {
        self.lanes.get_mut(Name::lane(id)).into_iter().for_each(|lane| lane.pair.used += 1);
    }

    /// Posts the receives that were used up again.
    pub(super) fn replenish(&mut self) -> Result<(), Refused> {
        let name = self.name;
        for lane in self.lanes.iter_mut().filter(|lane| lane.pair.used > 0) {
            let used = std::mem::take(&mut lane.pair.used);
            let posted = lane.pair.pair.post_receives(name.id(lane.number, RECEIVE), used);
            posted.map_err(|refused| Refused { rail: lane.rail, error: refused.cause })?;
        }
        Ok(())
    }

    /// Takes a queue pair to the error state, as a fault would.
    pub(super) fn sever(&self) {
        if let Some(lane) = self.lanes.iter().last() {
            // One that does not go there is broken otherwise.
            let _ = lane.pair.pair.to_error();
        }
    }
}
