//! What goes through the connections: completions taken and acted on, writes posted, and the farewell.

use std::time::Instant;

use windlass_transports::link::Garbled;
use windlass_transports::link::place::Destined;
use windlass_transports::{LostCause, Rank};

use super::Rdma;
use super::connections::{Standing, cause, failed};
use super::end::{End, Name};
use crate::pipe::{Immediate, Landed};
use crate::verbs::{Completion, Kind, Status};

/// Batches of completions that one poll takes from a NIC.
const BATCHES: usize = 4;

/// Whether a write that ended so says something of the NICs and the way between them, rather than of what was written.
const fn blames_the_rail(status: Status) -> bool {
    matches!(status, Status::RetryExceeded | Status::ResponseTimeout | Status::Fatal | Status::General)
}

impl Rdma {
    /// Takes what the NICs have completed. Whether there was anything.
    pub(super) fn harvest(&mut self) -> bool {
        let mut moved = false;
        for at in 0..self.rails.len() {
            for _ in 0..BATCHES {
                let Some(rail) = &mut self.rails[at] else { break };
                let mut completions = std::mem::take(&mut self.completions);
                let polled = rail.queue.poll(&mut completions);
                let taken = completions.len();
                completions.retain(|completion| !rail.watch.completed(completion));
                for completion in &completions {
                    self.completed(completion);
                }
                // Those of one peer come in a row, mostly.
                let names = completions.iter().map(|completion| Name::of(completion.id));
                let mut last = None;
                for name in names {
                    if last.replace(name) != Some(name) {
                        self.settle(name);
                    }
                }
                completions.clear();
                self.completions = completions;
                if let Err(error) = polled {
                    self.lose_rail(at, &failed(&error));
                    return true;
                }
                if taken == 0 {
                    break;
                }
                moved = true;
                // What it was asked to tell of was this, and it tells it once.
                self.rails[at].iter_mut().for_each(|rail| rail.armed = false);
            }
        }
        moved
    }

    /// The end of this name, unless it is one that is no more.
    fn end_of(&mut self, name: Name) -> Option<&mut End> {
        self.peers.get_mut(name.peer() as usize)?.end.as_mut().filter(|end| end.name == name)
    }

    fn completed(&mut self, completion: &Completion) {
        let name = Name::of(completion.id);
        let peer = name.peer();
        let Some(end) = self.end_of(name) else { return };
        match completion.outcome {
            Ok(Kind::Write) => end.completed(completion.id),
            Ok(Kind::Receive { immediate, bytes }) => {
                end.received(completion.id);
                let arrived = match immediate.and_then(Immediate::decode) {
                    Some(immediate) => end.pipe.arrived(immediate, bytes).map_err(|garbled| garbled.0),
                    None => Err("a write that says nothing"),
                };
                if let Err(what) = arrived {
                    self.lose(peer, LostCause::Garbled(what));
                }
            }
            Ok(_) => self.lose(peer, LostCause::Garbled("what this rank's NIC was not asked for")),
            Err(failure) => {
                let rail = end.lanes.get(Name::lane(completion.id)).map(|lane| lane.rail);
                // What came before it counts.
                self.settle(name);
                if let Some(rail) = rail.filter(|_| blames_the_rail(failure.status)) {
                    self.peers[peer as usize].record.fail(rail, Instant::now());
                }
                self.break_off(peer, cause(&failure));
            }
        }
    }

    /// Acts on what has come from a peer, and gives credit for it.
    fn settle(&mut self, name: Name) {
        let peer = name.peer();
        let Some(entry) = self.peers.get_mut(peer as usize) else { return };
        let Some(end) = entry.end.as_mut().filter(|end| end.name == name) else { return };
        if let Err(refused) = end.replenish() {
            return self.refused(peer, &refused);
        }
        while let Some(landed) = end.pipe.poll() {
            let fed = match landed {
                Landed::Ring { slot, bytes } => {
                    let slot = self.rings.ring(peer).wrapping_add(self.options.shape.offset(slot));
                    // SAFETY: the slot was written, and is not written again before credit is given for it, which is below.
                    let bytes = unsafe { std::slice::from_raw_parts(slot, bytes) };
                    entry.link.feed(bytes, &mut self.ready)
                }
                Landed::Placed { bytes } => entry.link.landed(bytes, &mut self.ready),
            };
            if let Err(Garbled(what)) = fed {
                return self.lose(peer, LostCause::Garbled(what));
            }
        }
        if let Some(credit) = end.pipe.credit()
            && let Err(refused) = end.give_credit(credit)
        {
            return self.refused(peer, &refused);
        }
        self.activate(peer);
    }

    /// Writes what waits for a peer, as far as it has room. Whether anything left.
    pub(super) fn flush(&mut self, peer: Rank) -> bool {
        let Self { peers, rails, rings, register, ready, options, .. } = self;
        let entry = &mut peers[peer as usize];
        let Some(end) = entry.end.as_mut().filter(|_| entry.standing == Standing::Open) else { return false };
        let mut moved = false;
        while end.lanes.has_room() {
            // SAFETY: the NIC reads slots that have left and are not free again; the pipe writes into one that is free.
            let staging =
                unsafe { std::slice::from_raw_parts_mut(rings.staging(peer), options.shape.ring_bytes()) };
            let mut full = false;
            let way = |placed: Option<(&Destined, usize)>| {
                let Some((destined, bytes)) = placed else { return end.lanes.way_by_ring() };
                let lasts = register.as_ref().filter(|_| destined.lasts);
                let found = lasts.and_then(|register| register.find(destined.memory, bytes));
                let way = end.lanes.way_to_place(&destined.place.keys, |rail| {
                    let known = rails[rail].as_mut()?.know(found.as_ref()?, bytes)?;
                    Some((known.address, known.local))
                });
                full = way.is_none();
                way
            };
            entry.link.load();
            let Some(write) = end.pipe.depart(&mut entry.link, staging, way, ready) else {
                if !full && end.pipe.has_room() && entry.link.destined().is_some() {
                    // Half a piece has left, and the rest is away: it begins anew, and lets others pass.
                    self.fence(peer);
                }
                break;
            };
            moved = true;
            if let Err(refused) = end.post(&write, rails, rings) {
                self.refused(peer, &refused);
                break;
            }
        }
        moved
    }

    /// Goes on with all that has to leave before this rank does. Whether it has.
    pub(super) fn bid_farewell(&mut self) -> bool {
        self.attend();
        self.harvest();
        self.flush_active();
        let mut gone = true;
        for peer in 0..self.peers.len() as Rank {
            let entry = &mut self.peers[peer as usize];
            if entry.standing != Standing::Open {
                continue;
            }
            let Some(end) = entry.end.as_mut() else { continue };
            if entry.link.has_output() {
                gone = false;
            } else if let Err(refused) = end.bid_farewell() {
                self.refused(peer, &refused);
            } else {
                gone &= end.has_left();
            }
        }
        gone
    }
}
