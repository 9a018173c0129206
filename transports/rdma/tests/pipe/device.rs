//! An end of the walk: its link and pipe, and what the device is at for it.

use std::collections::VecDeque;
use std::sync::Arc;

use windlass_rdma::lanes::{self, Lane, Lanes, Rails, Work};
use windlass_rdma::pipe::{CREDITS, Kind, Pipe, Shape, Source, Target, Write};
use windlass_transports::ledger::Generation;
use windlass_transports::link::{self, Limits, Link};

use super::memory::Memories;
use super::{Fault, Walk};

pub(super) const SHAPE: Shape = Shape { slots: 8, slot_bytes: 500, placed_bytes: 20_000 };
pub(super) const LIMITS: Limits =
    Limits { eager_bytes: 64, credit_bytes: 200, credit_messages: 3, announcements: 2 };
/// One less than a rank posts: nobody says farewell here.
pub(super) const RECEIVES: u32 = SHAPE.receives() - 1;
/// What the device moves at once.
pub(super) const PACKET: usize = 4096;

/// A write that the device is at.
pub(super) struct Flight {
    pub(super) write: Write,
    /// Its order on its lane.
    pub(super) order: u32,
    /// Packets that are not applied.
    pub(super) left: Vec<usize>,
}

pub(super) struct End {
    pub(super) link: Link,
    pub(super) pipe: Pipe,
    pub(super) staging: Vec<u8>,
    pub(super) ring: Vec<u8>,
    /// Writes of this end.
    pub(super) flights: Vec<Flight>,
    /// What has come and was not polled.
    pub(super) completions: Vec<Completion>,
    /// Credits of this end that are complete.
    pub(super) credits: u32,
    pub(super) lanes: Lanes<Traffic>,
    pub(super) open: bool,
}

/// What a simulated lane has.
pub(super) struct Traffic {
    pub(super) receives: u32,
    /// Writes that have left by it, by their order: whether each is signalled, and has been applied.
    pub(super) left: VecDeque<(u32, Work, bool, bool)>,
    /// How many have left.
    pub(super) writes: u32,
}

/// A receive of a lane that was used up.
pub(super) struct Completion {
    pub(super) lane: u8,
    pub(super) immediate: u32,
    pub(super) bytes: u32,
}

impl End {
    pub(super) fn new(peer: u32, fault: Fault, memories: &Arc<Memories>) -> Self {
        let ring = vec![0; SHAPE.ring_bytes()];
        let pipe = Self::pipe(fault);
        let planted = (fault == Fault::TrustCompletion).then_some(link::Planted::TrustCompletion);
        let mut link = Link::placing_planted(peer, LIMITS, planted).with_register(Some(memories.clone()));
        link.enter(Generation(1), Rails::first(2));
        let (flights, completions) = (Vec::new(), Vec::new());
        Self {
            link,
            pipe,
            staging: ring.clone(),
            ring,
            flights,
            completions,
            credits: 0,
            lanes: new_lanes(Rails::first(2), 1, fault),
            open: true,
        }
    }

    pub(super) fn pipe(fault: Fault) -> Pipe {
        match fault {
            Fault::Pipe(planted) => Pipe::planted(SHAPE, Some(planted)),
            _ => Pipe::new(SHAPE),
        }
    }

    pub(super) fn post(&mut self, write: Write) {
        let packets = write.bytes.div_ceil(PACKET).max(1);
        let work = if write.immediate.kind == Kind::Credit { Work::Credit } else { Work::Bytes };
        let signalled = self.lanes.begin(write.lane, work, write.bytes);
        let traffic = &mut self.lanes.get_mut(write.lane).expect("a lane of the connection's").pair;
        let order = traffic.writes;
        traffic.writes += 1;
        traffic.left.push_back((order, work, signalled, false));
        self.flights.push(Flight { write, order, left: (0..packets).collect() });
    }

    /// A write of this end's is applied. Completions of one lane are told in order, of those that are signalled.
    pub(super) fn applied(&mut self, number: u8, order: u32) {
        let Some(lane) = self.lanes.get_mut(number) else { return };
        let left = &mut lane.pair.left;
        left.iter_mut().filter(|(of, ..)| *of == order).for_each(|(.., applied)| *applied = true);
        let mut told = Vec::new();
        while let Some((_, work, signalled, _)) = left.pop_front_if(|(.., applied)| *applied) {
            told.extend(signalled.then_some(work));
        }
        told.into_iter().for_each(|work| self.lanes.completed(number, work));
    }
}

/// So many lanes on each of these rails.
pub(super) fn new_lanes(rails: Rails, pairs: usize, fault: Fault) -> Lanes<Traffic> {
    let share = (rails.count() * pairs) as u32;
    let receives = if fault == Fault::SharedReceives { SHAPE.slots / share + CREDITS - 1 } else { RECEIVES };
    // Some take few writes at a time, so that there is none for what only they can take.
    let capacity = if pairs > 1 { 11 } else { 2 * SHAPE.writes() };
    let lane = |rail: usize, pair: usize| {
        let traffic = Traffic { receives, left: VecDeque::new(), writes: 0 };
        Lane::new(lanes::number(rail, pair), rail, traffic, capacity)
    };
    Lanes::new(rails.iter().flat_map(|rail| (0..pairs).map(move |pair| lane(rail, pair))).collect())
}

impl Walk {
    /// The device moves a packet of a write of `rank`'s.
    pub(super) fn carry(&mut self, rank: usize) {
        if !self.ends[1 - rank].open {
            // It goes to a queue pair that is no more.
            self.ends[rank].flights.clear();
        }
        if self.ends[rank].flights.is_empty() {
            return;
        }
        let (any, last) =
            (self.chance(self.ends[rank].flights.len() as u64) as usize, self.ends[rank].flights.len() - 1);
        // What was posted last overtakes all before it, for as long as there is something later.
        let at = if self.slow && self.chance(8) > 0 { last } else { any };
        let packet = self.chance(self.ends[rank].flights[at].left.len() as u64) as usize;
        let [one, other] = &mut self.ends;
        let (from, to) = if rank == 0 { (one, other) } else { (other, one) };
        let Write { lane, source, target, bytes, .. } = from.flights[at].write;
        let rail = from.lanes.get(lane).expect("a lane of the connection's").rail;
        let skip = from.flights[at].left.swap_remove(packet) * PACKET;
        let step = PACKET.min(bytes - skip);
        let packet: Vec<u8> = match source {
            Source::Slot(slot) => from.staging[SHAPE.offset(slot) + skip..][..step].to_vec(),
            Source::Memory { address, key } => {
                self.memories.at(rail, (address + skip as u64, key), step, |bytes| bytes.to_vec())
            }
        };
        match target {
            Target::Slot(slot) => to.ring[SHAPE.offset(slot) + skip..][..step].copy_from_slice(&packet),
            Target::Place { address, key } => {
                let write = |bytes: &mut [u8]| bytes.copy_from_slice(&packet);
                self.memories.at(rail, (address + skip as u64, key), step, write);
            }
        }
        self.seen.striped += if from.lanes.rails().iter().next() == Some(rail) { 0 } else { step as u64 };
        if from.flights[at].left.is_empty() {
            let flight = from.flights.swap_remove(at);
            let receives = &mut to.lanes.get_mut(lane).expect("a lane of the connection's").pair.receives;
            assert!(*receives > 0, "a write finds no receive");
            *receives -= 1;
            let immediate = flight.write.immediate.encode();
            to.completions.push(Completion { lane, immediate, bytes: bytes as u32 });
            let is_credit = |completion: &&Completion| completion.immediate >> 30 == Kind::Credit as u32;
            let credits = to.completions.iter().filter(is_credit).count();
            assert!(credits < CREDITS as usize, "more credits wait than there are receives for");
            from.credits += u32::from(flight.write.immediate.kind == Kind::Credit);
            from.applied(lane, flight.order);
        }
    }
}
