//! Messages between ranks of one host: a link to every peer over a pair of lanes.
//!
//! Collectives whose ranks map each other send no messages; point-to-point operations, and the message algorithms when they are asked for by
//! name, do.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::board::{Board, LANE_BYTES};
use crate::link::{Garbled, Limits, Link, Withdrawal};
use crate::{Capabilities, Event, LostCause, Message, MessageId, Rank, Token, Transport};

/// Bytes moved to or from one peer in a poll: others get their turn.
const BURST: usize = 256 << 10;

/// A rank's transport over the lanes of its job's board.
#[derive(Debug)]
pub struct Lanes {
    rank: Rank,
    board: Arc<Board>,
    /// By rank; `None` once the peer is lost.
    links: Vec<Option<Link>>,
    /// What lost peers had sent before, by rank.
    lost: BTreeMap<Rank, Link>,
    limits: Limits,
    ready: Vec<Event>,
    /// Peers to which bytes were stored since somebody looked for sleepers.
    unrung: Vec<Rank>,
}

impl Lanes {
    /// The transport of `rank`, whose peers are the other ranks of the board.
    pub fn new(rank: Rank, board: Arc<Board>) -> Self {
        Self::with_limits(rank, board, Limits::default())
    }

    /// The same, with these limits; all ranks must have the same.
    pub fn with_limits(rank: Rank, board: Arc<Board>, limits: Limits) -> Self {
        let links = (0..board.shape().ranks).map(|peer| Some(Link::new(peer as Rank, limits))).collect();
        Self { rank, board, links, lost: BTreeMap::new(), limits, ready: Vec::new(), unrung: Vec::new() }
    }

    fn lose(&mut self, peer: Rank, cause: LostCause) {
        if let Some(mut link) = self.links[peer as usize].take() {
            if !matches!(cause, LostCause::Garbled(_)) {
                link.close();
                self.lost.insert(peer, link);
            }
            self.ready.push(Event::Lost { peer, cause });
            self.close(peer);
        }
    }

    /// Tells a peer that nothing more comes.
    fn close(&mut self, peer: Rank) {
        self.board.lane(self.rank as usize, peer as usize).0.close();
        self.unrung.push(peer);
    }

    /// Stores what a link has for its peer, as much as fits.
    fn transmit(&mut self, peer: Rank, events: &mut Vec<Event>) -> bool {
        let Some(link) = &mut self.links[peer as usize] else { return false };
        let (positions, ring) = self.board.lane(self.rank as usize, peer as usize);
        let mut sent = 0;
        while sent < BURST && link.has_output() {
            let (tail, room) = positions.room(LANE_BYTES);
            if room == 0 {
                break;
            }
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = link.gather(&mut slices, room as usize);
            let mut stored = 0u64;
            for slice in &slices[..filled] {
                let mut bytes: &[u8] = slice;
                while !bytes.is_empty() && stored < room {
                    let at = (tail.wrapping_add(stored) % LANE_BYTES) as usize;
                    let run = bytes.len().min((room - stored) as usize).min(LANE_BYTES as usize - at);
                    // SAFETY: the run lies in the ring, in the part that the head says is free and that only this writer stores to.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), ring.as_ptr().add(at), run) };
                    stored += run as u64;
                    bytes = &bytes[run..];
                }
            }
            if stored == 0 {
                break;
            }
            positions.push(stored);
            link.wrote(stored as usize, events);
            sent += stored as usize;
        }
        if sent > 0 && !self.unrung.contains(&peer) {
            self.unrung.push(peer);
        }
        sent > 0
    }

    /// Loads what a peer has stored, straight to where it belongs.
    fn collect(&mut self, peer: Rank, events: &mut Vec<Event>) -> bool {
        let (positions, ring) = self.board.lane(peer as usize, self.rank as usize);
        let mut taken = 0;
        while taken < BURST {
            // Asked before the ring, so that an empty ring then means that all has been read.
            let closed = positions.is_closed();
            let (head, waiting) = positions.waiting();
            if waiting == 0 {
                if closed && self.links[peer as usize].is_some() {
                    self.lose(peer, LostCause::Closed);
                    return true;
                }
                break;
            }
            let Some(link) = &mut self.links[peer as usize] else { return false };
            if waiting > LANE_BYTES {
                self.lose(peer, LostCause::Garbled("more bytes than the lane holds"));
                return true;
            }
            let at = (head % LANE_BYTES) as usize;
            let run = (waiting as usize).min(LANE_BYTES as usize - at);
            // SAFETY: the run lies in the ring, below the tail, and the writer stores there again only after the head has passed it.
            let bytes = unsafe { std::slice::from_raw_parts(ring.as_ptr().add(at), run) };
            // A chunk that follows its header is fed with it: copied once, from the ring to the posted memory.
            let fed = link.feed(bytes, events);
            positions.pop(run as u64);
            taken += run;
            if let Err(Garbled(what)) = fed {
                self.lose(peer, LostCause::Garbled(what));
                return true;
            }
        }
        if taken > 0 && !self.unrung.contains(&peer) {
            // The writer may sleep until there is room.
            self.unrung.push(peer);
        }
        taken > 0
    }

    fn ring(&mut self) {
        if self.unrung.is_empty() {
            return;
        }
        let doorbell = self.board.doorbell();
        if doorbell.somebody_sleeps() {
            doorbell.ring(self.unrung.iter().map(|&r| r as usize));
        }
        self.unrung.clear();
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for peer in 0..self.links.len() as Rank {
            if peer != self.rank {
                self.close(peer);
            }
        }
        self.ring();
    }
}

impl Transport for Lanes {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            maps_peers: true,
            eager_bytes: self.limits.eager_bytes as usize,
            streams_break: false,
            has_descriptor: false,
        }
    }

    unsafe fn post_send(&mut self, peer: Rank, message: &Message, memory: *const u8, token: Token) {
        let mut ready = std::mem::take(&mut self.ready);
        if let Some(Some(link)) = self.links.get_mut(peer as usize) {
            // SAFETY: the caller's contract is the link's.
            unsafe { link.post_send(message, memory, token, &mut ready) };
            self.transmit(peer, &mut ready);
            self.ring();
        }
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    unsafe fn post_recv(&mut self, peer: Rank, message: &Message, memory: *mut u8, token: Token) {
        let mut ready = std::mem::take(&mut self.ready);
        if let Some(Some(link)) = self.links.get_mut(peer as usize) {
            // SAFETY: the caller's contract is the link's.
            unsafe { link.post_recv(message, memory, token, &mut ready) };
            self.transmit(peer, &mut ready);
            self.ring();
        } else if let Some(link) = self.lost.get_mut(&peer).filter(|link| link.holds(message)) {
            // SAFETY: as above.
            unsafe { link.post_recv(message, memory, token, &mut ready) };
        }
        ready.append(&mut self.ready);
        self.ready = ready;
    }

    fn seek(&mut self, peer: Rank, id: &MessageId) -> Option<u64> {
        let Some(Some(link)) = self.links.get_mut(peer as usize) else {
            return self.lost.get_mut(&peer)?.seek(id);
        };
        let order = link.seek(id);
        let mut ready = std::mem::take(&mut self.ready);
        self.transmit(peer, &mut ready);
        self.ring();
        ready.append(&mut self.ready);
        self.ready = ready;
        order
    }

    fn withdraw(&mut self, token: Token) {
        self.ready.retain(|event| !event.ends(token));
        for peer in 0..self.links.len() {
            let Some(link) = &mut self.links[peer] else { continue };
            if link.withdraw(token) == Withdrawal::Done {
                return;
            }
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        events.append(&mut self.ready);
        let mut moved = false;
        for peer in 0..self.links.len() as Rank {
            if peer == self.rank {
                continue;
            }
            moved |= self.collect(peer, events);
            if self.links[peer as usize].as_ref().is_some_and(Link::has_output) {
                moved |= self.transmit(peer, events);
            }
        }
        self.ring();
        events.append(&mut self.ready);
        moved || events.len() > before
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
