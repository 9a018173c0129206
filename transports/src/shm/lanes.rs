//! Messages between ranks of one host: a link to every peer over a pair of lanes.
//!
//! Collectives whose ranks map each other send no messages; point-to-point operations, and the message algorithms when they are asked for by
//! name, do.
//!
//! A link's bytes travel in one of three ways, chosen run by run; to the link they are one pipe:
//! - in the lane's cells: headers and small messages;
//! - through one of the rank's bounce buffers, named by a cell: more;
//! - not at all: the pieces of a message whose receive is posted, in memory that the peer maps. A cell names them, the peer copies them from where
//!   they lie, and only then has the pipe taken them, so that the send ends when the peer has it all. A send that is withdrawn revokes what it
//!   has lent; what the peer had not taken by then leaves from the link's copy.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use windlass_memory::Location;

use super::board::{BOUNCE_BYTES, Board};
use super::bounce::{BUFFER_BYTES, Bounce, Buffer};
use super::copy::copy;
use super::lane::{CELL_BYTES, CELLS, Cell, Content, Positions};
use super::line::prepare;
use crate::link::{Garbled, Limits, Link, Wants};
use crate::reach::{Found, Reach};
use crate::{Capabilities, Event, LostCause, Message, MessageId, Rank, Token, Transport};

/// Bytes moved to or from one peer in a poll: others get their turn.
const BURST: usize = 256 << 10;

/// Runs of at least this many bytes go through a bounce buffer: copied at once instead of cell by cell.
const BOUNCED_BYTES: usize = 512;

/// Bytes that a cell lends: the sender sees how far its peer is, and knows that it is not asleep.
const LENT_BYTES: usize = 128 << 10;

/// Messages this large, of which a chunk is asked for at a time, would not stay in the caches anyway.
const STREAMING_BYTES: usize = 4 << 20;

/// So many cells read are worth a look for sleepers: the writer sleeps for want of cells only when all are full.
const CELLS_WORTH_RINGING: u64 = CELLS / 4;

/// The writing end of a lane.
#[derive(Debug, Default)]
struct Writer {
    /// The last cell that was shown.
    shown: u64,
    /// The last cell known to have been read.
    read: u64,
    /// What the peer is to read where it lies: up to which cell, and how many bytes it has not taken.
    lent: Option<(u64, usize)>,
    /// Lent bytes that the peer has taken.
    taken: u64,
}

/// The reading end of a lane.
#[derive(Debug, Default)]
struct Reader {
    /// The last cell that was read.
    read: u64,
    /// The last one when the writer was last rung for.
    rung: u64,
    /// Lent bytes taken in all.
    taken: u64,
}

/// A rank's transport over the lanes of its job's board.
#[derive(Debug)]
pub struct Lanes {
    rank: Rank,
    board: Arc<Board>,
    reach: Option<Arc<dyn Reach>>,
    /// By rank; `None` once the peer is lost.
    links: Vec<Option<Link>>,
    writers: Vec<Writer>,
    readers: Vec<Reader>,
    bounce: Bounce,
    /// What lost peers had sent before, by rank.
    lost: BTreeMap<Rank, Link>,
    limits: Limits,
    ready: Vec<Event>,
    /// Peers that may sleep and have something to do since somebody looked for sleepers.
    unrung: Vec<Rank>,
}

impl Lanes {
    /// The transport of `rank`, whose peers are the other ranks of the board. What `reach` knows is read where it lies.
    pub fn new(rank: Rank, board: Arc<Board>, reach: Option<Arc<dyn Reach>>) -> Self {
        Self::with_limits(rank, board, reach, Limits::default())
    }

    /// The same, with these limits; all ranks must have the same.
    pub fn with_limits(rank: Rank, board: Arc<Board>, reach: Option<Arc<dyn Reach>>, limits: Limits) -> Self {
        let ranks = board.shape().ranks;
        Self {
            rank,
            board,
            reach,
            links: (0..ranks).map(|peer| Some(Link::new(peer as Rank, limits))).collect(),
            writers: (0..ranks).map(|_| Writer::default()).collect(),
            readers: (0..ranks).map(|_| Reader::default()).collect(),
            bounce: Bounce::default(),
            lost: BTreeMap::new(),
            limits,
            ready: Vec::new(),
            unrung: Vec::new(),
        }
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

    /// Tells a peer that nothing more comes, and that nothing is lent to it any more.
    fn close(&mut self, peer: Rank) {
        self.revoke(peer);
        self.board.lane(self.rank as usize, peer as usize).0.close();
        self.wake_later(peer);
    }

    /// Takes back what is lent to a peer: what it reads there from now on, it does not take.
    fn revoke(&self, peer: Rank) {
        if let Some((cell, _)) = self.writers[peer as usize].lent {
            self.board.lane(self.rank as usize, peer as usize).0.revoke(cell);
        }
    }

    fn wake_later(&mut self, peer: Rank) {
        if !self.unrung.contains(&peer) {
            self.unrung.push(peer);
        }
    }

    /// Stores what a link has for its peer, as much as fits.
    fn transmit(&mut self, peer: Rank, events: &mut Vec<Event>) -> bool {
        let mut sent = 0;
        while sent < BURST {
            match self.transmit_run(peer, events) {
                Ok(0) => break,
                Ok(bytes) => sent += bytes,
                Err(Garbled(what)) => {
                    self.lose(peer, LostCause::Garbled(what));
                    return true;
                }
            }
        }
        if sent > 0 {
            self.wake_later(peer);
        }
        sent > 0
    }

    /// Stores the next run in one of the three ways. Says how many bytes have moved.
    fn transmit_run(&mut self, peer: Rank, events: &mut Vec<Event>) -> Result<usize, Garbled> {
        let to = peer as usize;
        let (positions, cells) = self.board.lane(self.rank as usize, to);
        let (Some(link), writer) = (&mut self.links[to], &mut self.writers[to]) else { return Ok(0) };
        if let Some((last, bytes)) = writer.lent {
            writer.read = positions.read().clamp(writer.read, writer.shown);
            let taken = positions.taken();
            let fresh = usize::try_from(taken.wrapping_sub(writer.taken)).unwrap_or(usize::MAX);
            if fresh > bytes {
                return Err(Garbled("more bytes taken than it was lent"));
            }
            writer.taken = taken;
            writer.lent = (writer.read < last).then_some((last, bytes - fresh));
            link.wrote(fresh, events);
            return Ok(if writer.lent.is_some() { fresh } else { fresh.max(1) });
        }
        if !link.has_output() || !writer.has_room(positions) {
            return Ok(0);
        }
        if let Some(piece) = link.lendable()
            && let Some(at) = self.reach.as_ref().and_then(|reach| reach.lend(piece))
        {
            writer.lend(positions, cells, at, piece.len());
            return Ok(BURST);
        }
        let mut slices = [IoSlice::new(&[]); 8];
        let filled = link.gather(&mut slices, BURST);
        let slices = &slices[..filled];
        let Some(first) = slices.first() else { return Ok(0) };
        let buffer = if first.len() < BOUNCED_BYTES {
            Buffer::Taken
        } else {
            take_buffer(&mut self.bounce, &mut self.writers, &self.board, (self.rank, peer))
        };
        let writer = &mut self.writers[to];
        let stored = match buffer {
            Buffer::Wait => return Ok(0),
            Buffer::At(at) => {
                let bytes = first.len().min(BUFFER_BYTES);
                let target = self.board.bounce(self.rank as usize).as_ptr().wrapping_add(at);
                // SAFETY: the buffer lies in this rank's bounce buffers and is free: nobody reads it, and only this rank writes it.
                unsafe { std::ptr::copy_nonoverlapping(first.as_ptr(), target, bytes) };
                writer.name(cells, Content::Bounced, &[at as u64, bytes as u64]);
                bytes
            }
            Buffer::Taken => writer.fill(positions, cells, slices),
        };
        link.wrote(stored, events);
        Ok(stored)
    }

    /// Loads what a peer has stored, straight to where it belongs.
    fn collect(&mut self, peer: Rank, events: &mut Vec<Event>) -> bool {
        let from = peer as usize;
        let (mut moved, mut rings) = (0, false);
        while moved < BURST {
            let (positions, cells) = self.board.lane(from, self.rank as usize);
            let (Some(link), reader) = (&mut self.links[from], &mut self.readers[from]) else { break };
            let number = reader.read + 1;
            let cell = &cells[(number % CELLS) as usize];
            let Some(content) = cell.shown(number) else {
                // Looked at again after the end was seen, an empty cell means that all has been read.
                if positions.is_closed() && cell.shown(number).is_none() {
                    self.lose(peer, LostCause::Closed);
                    return true;
                }
                break;
            };
            let fed = match content {
                Content::Bytes(bytes) => {
                    // SAFETY: the cell is shown, and the writer stores to it again only after it is read; it holds no more bytes than a cell has.
                    let bytes = unsafe { std::slice::from_raw_parts(cell.bytes(), bytes) };
                    link.feed(bytes, events).map(|()| Some(bytes.len()))
                }
                Content::Bounced => bounced(&self.board, from, cell).and_then(|bytes| {
                    rings = true;
                    link.feed(bytes, events).map(|()| Some(bytes.len()))
                }),
                Content::Lent => {
                    rings = true;
                    let found = find(self.reach.as_deref(), peer, cell);
                    found.and_then(|found| fetch(link, reader, found, positions, events))
                }
                Content::Unknown => Err(Garbled("a cell of an unknown kind")),
            };
            match fed {
                Ok(Some(bytes)) => {
                    // A cell that has been revoked holds nothing; it has been read all the same.
                    moved += bytes.max(1);
                    reader.read = number;
                    positions.set_read(number);
                }
                Ok(None) => break,
                Err(Garbled(what)) => {
                    self.lose(peer, LostCause::Garbled(what));
                    return true;
                }
            }
        }
        let reader = &mut self.readers[from];
        if rings || reader.read - reader.rung >= CELLS_WORTH_RINGING {
            // The writer may sleep until there is room.
            reader.rung = reader.read;
            self.wake_later(peer);
        }
        moved > 0
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

impl Writer {
    #[inline]
    fn has_room(&mut self, positions: &Positions) -> bool {
        if self.shown - self.read < CELLS {
            return true;
        }
        self.read = positions.read().clamp(self.read, self.shown);
        self.shown - self.read < CELLS
    }

    /// Shows a cell that says where bytes lie.
    fn name(&mut self, cells: &[Cell; CELLS as usize], content: Content, words: &[u64]) {
        self.shown += 1;
        let cell = &cells[(self.shown % CELLS) as usize];
        cell.store(words);
        cell.show(self.shown, content);
    }

    /// Shows cells that lend memory which peers find at `location`, as much as there are cells for.
    fn lend(
        &mut self,
        positions: &Positions,
        cells: &[Cell; CELLS as usize],
        location: Location,
        bytes: usize,
    ) {
        let segment = u64::from(location.segment) | u64::from(location.generation) << 32;
        let mut named = 0;
        while named < bytes && self.has_room(positions) {
            let run = (bytes - named).min(LENT_BYTES);
            self.name(cells, Content::Lent, &[segment, location.offset + named as u64, run as u64]);
            named += run;
        }
        self.lent = Some((self.shown, named));
    }

    /// Stores the first of `slices` in cells, one after the other, and as many others as are small. Says how many bytes it stored.
    #[inline]
    fn fill(
        &mut self,
        positions: &Positions,
        cells: &[Cell; CELLS as usize],
        slices: &[IoSlice<'_>],
    ) -> usize {
        let (mut stored, mut used) = (0, 0);
        for (at, slice) in slices.iter().enumerate() {
            if at > 0 && slice.len() >= BOUNCED_BYTES {
                break;
            }
            let mut bytes: &[u8] = slice;
            while !bytes.is_empty() {
                if used == 0 && !self.has_room(positions) {
                    return stored;
                }
                let cell = &cells[((self.shown + 1) % CELLS) as usize];
                let run = bytes.len().min(CELL_BYTES - used);
                // SAFETY: the run lies in the cell, which is free and which only this writer stores to.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), cell.bytes().add(used), run) };
                (used, stored, bytes) = (used + run, stored + run, &bytes[run..]);
                if used == CELL_BYTES {
                    self.show(cells, &mut used);
                }
            }
        }
        self.show(cells, &mut used);
        stored
    }

    /// Shows a cell that holds so many bytes, if it holds any.
    #[inline]
    fn show(&mut self, cells: &[Cell; CELLS as usize], used: &mut usize) {
        if *used > 0 {
            self.shown += 1;
            cells[(self.shown % CELLS) as usize].show(self.shown, Content::Bytes(std::mem::take(used)));
            // The next store takes that line from its reader.
            prepare(cells[((self.shown + 1) % CELLS) as usize].bytes());
        }
    }
}

/// A bounce buffer for the next cell from one rank to another.
fn take_buffer(
    bounce: &mut Bounce,
    writers: &mut [Writer],
    board: &Board,
    (me, peer): (Rank, Rank),
) -> Buffer {
    let number = writers[peer as usize].shown + 1;
    match bounce.take(peer, number, |of| writers[of as usize].read) {
        taken @ Buffer::At(_) => taken,
        _ => bounce.take(peer, number, |of| {
            let read = board.lane(me as usize, of as usize).0.read();
            writers[of as usize].read = read.clamp(writers[of as usize].read, writers[of as usize].shown);
            writers[of as usize].read
        }),
    }
}

/// What a cell names in its writer's bounce buffers.
fn bounced<'b>(board: &'b Board, writer: usize, cell: &Cell) -> Result<&'b [u8], Garbled> {
    let [at, bytes] = cell.load().map(|word| usize::try_from(word).unwrap_or(usize::MAX));
    if at > BOUNCE_BYTES || bytes > BOUNCE_BYTES - at {
        return Err(Garbled("the name of a bounce buffer that it does not have"));
    }
    // SAFETY: the range lies in the writer's bounce buffers (just compared), which the board keeps mapped, and the writer stores there again only
    // after the cell is read.
    Ok(unsafe { std::slice::from_raw_parts(board.bounce(writer).as_ptr().add(at), bytes) })
}

/// Where what a cell lends lies, and how many bytes; `None` while that is not known.
fn find(reach: Option<&dyn Reach>, writer: Rank, cell: &Cell) -> Result<Option<(*const u8, usize)>, Garbled> {
    let [segment, offset, bytes] = cell.load();
    let location = Location { segment: segment as u32, generation: (segment >> 32) as u32, offset };
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    match reach.map_or(Found::Outside, |reach| reach.find(writer, location, bytes)) {
        Found::At(source) => Ok(Some((source, bytes))),
        Found::NotYet => Ok(None),
        Found::Outside => Err(Garbled("the name of memory that it does not lend")),
    }
}

/// Copies what the next cell lends to where it belongs. Says how many bytes that were, or that it cannot yet.
fn fetch(
    link: &mut Link,
    reader: &mut Reader,
    found: Option<(*const u8, usize)>,
    positions: &Positions,
    events: &mut Vec<Event>,
) -> Result<Option<usize>, Garbled> {
    let Some((source, bytes)) = found else { return Ok(None) };
    match link.wants() {
        Wants::Payload(target, wanted) if bytes <= wanted => {
            let streaming = link.arriving() >= STREAMING_BYTES;
            // SAFETY: `source` is valid for `bytes` bytes (`Reach`). Another process may write them once it has revoked them; whatever
            // is copied then is not taken. `target` is what the receive's poster keeps valid for `wanted` bytes.
            unsafe { copy(source, target, bytes, streaming) };
        }
        // Nobody waits for them any more: they are not read.
        Wants::Discard(wanted) if bytes <= wanted => {}
        _ => return Err(Garbled("lent memory where less or something else belongs")),
    }
    if !positions.is_lent(reader.read + 1) {
        return Ok(Some(0));
    }
    link.placed(bytes, events)?;
    reader.taken += bytes as u64;
    positions.set_taken(reader.taken);
    Ok(Some(bytes))
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
            reaches_devices: false,
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
            if link.withdraw(token) {
                // Before its memory is given back. What is lent for another send is lent again.
                self.revoke(peer as Rank);
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
