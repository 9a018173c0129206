//! Messages from memory that the processor does not touch, whose connection breaks while that memory is on its way to another place.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use windlass_transports::ledger::Generation;
use windlass_transports::link::place::Rails;
use windlass_transports::link::{Limits, Link};
use windlass_transports::reach::{Register, Registrable};
use windlass_transports::{Event, Message, MessageId, Token};

const LIMITS: Limits =
    Limits { eager_bytes: 64, credit_bytes: 1 << 20, credit_messages: 100, announcements: 100 };
/// As a link cuts them.
const PIECE: usize = 1 << 20;
const SEND: Token = Token(1);
const RECEIVE: Token = Token(2);
const OTHER: Token = Token(3);

/// The sender's accelerator: one piece of memory, which no pointer reaches.
#[derive(Debug)]
struct Accelerator {
    bytes: Mutex<Vec<u8>>,
    away: AtomicBool,
}

impl Accelerator {
    const BASE: usize = 0x40f << 52;

    fn leave(&self, is_away: bool) {
        self.away.store(is_away, Ordering::Relaxed);
    }

    fn copy(&self, from: *const u8, to: &mut [u8]) {
        let at = from.addr() - Self::BASE;
        to.copy_from_slice(&self.bytes.lock().expect("nobody panicked")[at..at + to.len()]);
    }
}

// SAFETY: nothing is found.
unsafe impl Register for Accelerator {
    fn find(&self, _memory: *const u8, _bytes: usize) -> Option<Registrable> {
        None
    }

    fn is_foreign(&self, memory: *const u8) -> bool {
        memory.addr() >= Self::BASE
    }

    fn is_here(&self, _memory: *const u8) -> bool {
        !self.away.load(Ordering::Relaxed)
    }

    fn load(&self, from: *const u8, to: &mut [u8]) -> bool {
        let here = self.is_here(from);
        if here {
            self.copy(from, to);
        }
        here
    }
}

fn message(sequence: u64, bytes: usize) -> Message {
    let id = MessageId { communicator: 1, tag: 2, sequence, label: 3, chunk: 4 };
    Message { id, fingerprint: [5, 6], bytes }
}

/// A sender with an accelerator, a receiver with memory of the host's, and a device between.
struct Pair {
    accelerator: Arc<Accelerator>,
    into: Vec<u8>,
    links: [Link; 2],
    events: [Vec<Event>; 2],
    generation: u32,
}

impl Pair {
    fn new(bytes: usize) -> Self {
        let content = (0..bytes).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect();
        let accelerator = Arc::new(Accelerator { bytes: Mutex::new(content), away: AtomicBool::new(false) });
        let sender = Link::placing(1, LIMITS).with_register(Some(accelerator.clone()));
        let into = vec![0; bytes];
        let links = [sender, Link::placing(0, LIMITS)];
        let mut pair = Self { accelerator, into, links, events: Default::default(), generation: 0 };
        pair.mend();
        pair
    }

    fn send(&mut self) {
        let memory = std::ptr::without_provenance(Accelerator::BASE);
        let message = message(1, self.into.len());
        // SAFETY: foreign memory, which the accelerator keeps.
        unsafe { self.links[0].post_send(&message, memory, SEND, &mut self.events[0]) };
    }

    fn receive(&mut self) {
        let memory = self.into.as_mut_ptr();
        let keys = [(0, 7)].into_iter().collect();
        let reach = Some((memory.expose_provenance() as u64, keys));
        let message = message(1, self.into.len());
        // SAFETY: the memory lives as long as the pair, and its links are not used after it.
        unsafe { self.links[1].post_recv_at(&message, memory, reach, RECEIVE, &mut self.events[1]) };
    }

    /// Bytes of frames go from one rank to the other, as far as nothing stands between that has a place.
    fn say(&mut self, from: usize) {
        let [one, other] = &mut self.links;
        let (link, to) = if from == 0 { (one, other) } else { (other, one) };
        loop {
            link.load();
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = link.gather(&mut slices, 1 << 20);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            if bytes.is_empty() {
                return;
            }
            link.wrote(bytes.len(), &mut self.events[from]);
            to.feed(&bytes, &mut self.events[1 - from]).expect("frames");
        }
    }

    /// The device moves what has a place; the receiver hears of it if it `lands`.
    fn place(&mut self, lands: bool) {
        let destined = self.links[0].destined().expect("something has a place");
        let offset = destined.place.address as usize - self.into.as_ptr().addr();
        self.accelerator.copy(destined.memory, &mut self.into[offset..offset + destined.bytes]);
        self.links[0].wrote(destined.bytes, &mut self.events[0]);
        if lands {
            self.links[1].landed(destined.bytes, &mut self.events[1]).expect("it was lent");
        }
    }

    fn break_off(&mut self) {
        for rank in 0..2 {
            self.links[rank].broke(&mut self.events[rank]);
        }
    }

    fn mend(&mut self) {
        self.generation += 1;
        let positions = [0, 1].map(|rank: usize| self.links[rank].position());
        for rank in 0..2 {
            self.links[rank].enter(Generation(self.generation), Rails::first(1));
            let resumed = self.links[rank].resume(positions[1 - rank], &mut self.events[rank]);
            resumed.expect("a position that can be");
        }
    }

    /// Both sides say all that they can.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.say(0);
            self.say(1);
        }
    }

    /// Another message passes.
    fn pass(&mut self) {
        let (bytes, mut into) = ([9; 8], [0; 8]);
        // SAFETY: the memory outlives the operations, which end below.
        unsafe {
            self.links[1].post_recv(&message(2, 8), into.as_mut_ptr(), OTHER, &mut self.events[1]);
            self.links[0].post_send(&message(2, 8), bytes.as_ptr(), OTHER, &mut self.events[0]);
        }
        self.settle();
        assert!(self.events[1].contains(&Event::Received(OTHER)), "it waits for memory of another's");
        assert_eq!(into, bytes);
    }

    fn has_arrived(&self) -> bool {
        let whole = self.into == *self.accelerator.bytes.lock().expect("nobody panicked");
        let ended = self.events[0].contains(&Event::Sent(SEND));
        assert_eq!(self.events[1].contains(&Event::Received(RECEIVE)), ended);
        assert!(whole || !ended);
        ended
    }

    /// The first pieces of a message have left for their places, of which the receiver has heard of so many; then the connection breaks and the
    /// memory leaves.
    fn torn(bytes: usize, placed: usize, landed: usize) -> Self {
        let mut pair = Self::new(bytes);
        pair.receive();
        pair.say(1);
        pair.send();
        for piece in 0..placed {
            pair.say_header(piece < landed);
            pair.place(piece < landed);
        }
        pair.break_off();
        pair.accelerator.leave(true);
        pair
    }

    /// The header of a piece leaves, and comes if it `lands`.
    fn say_header(&mut self, lands: bool) {
        let mut slices = [IoSlice::new(&[]); 8];
        let filled = self.links[0].gather(&mut slices, 1 << 20);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
        self.links[0].wrote(bytes.len(), &mut self.events[0]);
        if lands {
            self.links[1].feed(&bytes, &mut self.events[1]).expect("a header");
        }
    }

    fn expects_nothing(&mut self) {
        self.settle();
        for link in &self.links {
            assert!(!link.expects() && !link.has_output(), "{link:?}");
        }
    }
}

#[test]
fn others_pass_a_message_whose_memory_is_away() {
    for placed in 1..=3 {
        for landed in 0..placed {
            let mut pair = Pair::torn(2 * PIECE + 70_000, placed, landed);
            pair.mend();
            pair.pass();
            assert!(!pair.has_arrived(), "out of memory that is away");
            pair.accelerator.leave(false);
            pair.settle();
            assert!(pair.has_arrived(), "{placed} {landed}");
            pair.expects_nothing();
        }
    }
}

#[test]
fn what_had_arrived_is_not_sent_again() {
    let mut pair = Pair::torn(2 * PIECE + 70_000, 2, 1);
    pair.into[..PIECE].fill(0xdd);
    pair.mend();
    pair.accelerator.leave(false);
    pair.settle();
    assert!(pair.events[1].contains(&Event::Received(RECEIVE)));
    assert!(pair.into[..PIECE].iter().all(|&byte| byte == 0xdd), "it arrived twice");
    assert_eq!(pair.into[PIECE..], pair.accelerator.bytes.lock().expect("nobody panicked")[PIECE..]);
}

#[test]
fn a_withdrawn_message_whose_memory_is_lost_leaves_nothing_behind() {
    for placed in 1..=3 {
        for landed in 0..=placed {
            let mut pair = Pair::torn(2 * PIECE + 70_000, placed, landed);
            assert!(pair.links[0].withdraw(SEND));
            pair.mend();
            pair.pass();
            // If all of it had come, the receive has ended.
            let ended = landed == 3;
            assert_eq!(pair.events[1].contains(&Event::Received(RECEIVE)), ended);
            assert_eq!(pair.links[1].withdraw(RECEIVE), !ended);
            pair.expects_nothing();
        }
    }
}

#[test]
fn a_withdrawn_message_of_which_nothing_had_come_can_be_sent_again() {
    let cases = [(PIECE, 1, 0), (2 * PIECE + 70_000, 2, 0)];
    for (case, again_before) in cases.into_iter().flat_map(|case| [(case, true), (case, false)]) {
        let (bytes, placed, landed) = case;
        let mut pair = Pair::torn(bytes, placed, landed);
        assert!(pair.links[0].withdraw(SEND));
        pair.accelerator.leave(false);
        if again_before {
            pair.send();
        }
        pair.mend();
        if !again_before {
            pair.send();
        }
        pair.settle();
        while pair.links[0].destined().is_some() {
            pair.place(true);
            pair.settle();
        }
        assert!(pair.has_arrived());
        pair.expects_nothing();
    }
}

#[test]
fn what_was_copied_of_a_withdrawn_message_does_not_leave() {
    let mut pair = Pair::new(2 * PIECE + 70_000);
    pair.receive();
    pair.say(1);
    pair.send();
    pair.say_header(true);
    pair.place(true);
    // The next piece cannot go to its place, and then is copied.
    pair.accelerator.leave(true);
    pair.links[0].load();
    pair.accelerator.leave(false);
    pair.links[0].load();
    pair.break_off();
    pair.accelerator.leave(true);
    assert!(pair.links[0].withdraw(SEND));
    pair.into[PIECE..].fill(0);
    pair.mend();
    pair.settle();
    assert!(pair.into[PIECE..].iter().all(|&byte| byte == 0), "it left");
    assert!(pair.links[1].withdraw(RECEIVE));
    pair.expects_nothing();
}
