use super::*;
use crate::message::MessageId;

fn message(sequence: u64, bytes: usize) -> Message {
    let id = MessageId { communicator: 1, tag: 2, sequence, label: 3, chunk: 4 };
    Message { id, fingerprint: [5, 6], bytes }
}

/// Moves everything from one link to the other.
fn carry(from: &mut Link, to: &mut Link, events: &mut [Vec<Event>; 2]) {
    while from.has_output() {
        let mut slices = [IoSlice::new(&[]); 4];
        let filled = from.gather(&mut slices, 100);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
        from.wrote(bytes.len(), &mut events[0]);
        to.feed(&bytes, &mut events[1]).unwrap();
    }
}

#[test]
fn an_early_large_receive_costs_no_round_trip() {
    let limits = Limits { eager_bytes: 8, ..Limits::default() };
    let (mut here, mut there) = (Link::new(1, limits), Link::new(0, limits));
    let mut events = [Vec::new(), Vec::new()];
    let out = [7u8; 100];
    let mut into = [0u8; 100];
    // SAFETY: `into` and `out` outlive the links' use of them.
    unsafe { there.post_recv(&message(1, 100), into.as_mut_ptr(), Token(1), &mut events[1]) };
    carry(&mut there, &mut here, &mut [Vec::new(), Vec::new()]);
    // SAFETY: as above.
    unsafe { here.post_send(&message(1, 100), out.as_ptr(), Token(2), &mut events[0]) };
    carry(&mut here, &mut there, &mut events);
    assert_eq!(events, [vec![Event::Sent(Token(2))], vec![Event::Received(Token(1))]]);
    assert_eq!(into, out);
    assert!(!there.has_output(), "nothing is left to say");
}

#[test]
fn small_frames_overtake_large_messages_at_piece_boundaries() {
    let limits = Limits { eager_bytes: 8, ..Limits::default() };
    let (mut here, mut there) = (Link::new(1, limits), Link::new(0, limits));
    let mut events = [Vec::new(), Vec::new()];
    let out = vec![7u8; 5 << 20];
    let mut into = vec![0u8; 5 << 20];
    let mut small = [0u8; 8];
    // SAFETY: the buffers outlive the links' use of them.
    unsafe {
        there.post_recv(&message(1, 5 << 20), into.as_mut_ptr(), Token(1), &mut events[1]);
        there.post_recv(&message(2, 8), small.as_mut_ptr(), Token(2), &mut events[1]);
        carry(&mut there, &mut here, &mut [Vec::new(), Vec::new()]);
        here.post_send(&message(1, 5 << 20), out.as_ptr(), Token(3), &mut events[0]);
        here.post_send(&message(2, 8), out.as_ptr(), Token(4), &mut events[0]);
    }
    carry(&mut here, &mut there, &mut events);
    assert_eq!(events[1], [Event::Received(Token(2)), Event::Received(Token(1))]);
    assert_eq!(into, out);
}

#[test]
fn a_peer_beyond_its_credits_is_garbled() {
    let limits = Limits { credit_messages: 2, ..Limits::default() };
    let mut link = Link::new(1, limits);
    let mut events = Vec::new();
    for sequence in 0..3 {
        let detail = Detail::Credits { bytes: 0, messages: 0 };
        let frame = Header { kind: Kind::Eager, ack: 0, message: message(sequence, 0), detail }.encode();
        assert_eq!(link.feed(&frame, &mut events).is_err(), sequence == 2);
    }
}

/// Credits are given back in a frame that is withdrawn before it leaves, and the peer has spent them meanwhile.
#[test]
fn a_peer_that_spends_credits_before_they_return_is_garbled() {
    let limits = Limits { eager_bytes: 16, credit_bytes: 48, credit_messages: 4, ..Limits::default() };
    for (bytes, fits) in [(16, 3), (0, 4)] {
        let mut link = Link::new(1, limits);
        let mut events = Vec::new();
        let hear = |link: &mut Link, sequence| {
            let detail = Detail::Credits { bytes: 0, messages: 0 };
            let frame =
                Header { kind: Kind::Eager, ack: 0, message: message(sequence, bytes), detail }.encode();
            let payload = [7; 16];
            link.feed(&[&frame[..], &payload[..bytes]].concat(), &mut Vec::new())
        };
        let (out, mut into) = ([7u8; 16], [0u8; 16]);
        (0..fits).for_each(|sequence| hear(&mut link, sequence).unwrap());
        // SAFETY: the buffers outlive the link's use of them.
        unsafe {
            link.post_recv(&message(0, bytes), into.as_mut_ptr(), Token(1), &mut events);
            link.post_send(&message(100, bytes), out.as_ptr(), Token(2), &mut events);
        }
        assert_eq!(events, [Event::Received(Token(1))]);
        hear(&mut link, fits).unwrap();
        assert!(link.withdraw(Token(2)));
        assert!(hear(&mut link, fits + 1).is_err(), "{bytes} bytes a message");
    }
}

/// Memory of which the processor sees nothing, and which is away at first.
#[derive(Debug, Default)]
struct Away(std::sync::atomic::AtomicBool);

const FOREIGN: usize = 0x40f << 52;

// SAFETY: nothing is found.
unsafe impl crate::reach::Register for Away {
    fn find(&self, _memory: *const u8, _bytes: usize) -> Option<crate::reach::Registrable> {
        None
    }

    fn is_foreign(&self, memory: *const u8) -> bool {
        memory.addr() >= FOREIGN
    }

    fn load(&self, _from: *const u8, to: &mut [u8]) -> bool {
        to.fill(7);
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[test]
fn memory_that_is_away_holds_no_other_message_up() {
    const LARGE: usize = 100_000;
    let limits = Limits { eager_bytes: 8, ..Limits::default() };
    let away = std::sync::Arc::new(Away::default());
    let mut ends = [1, 0].map(|peer| Link::replaying(peer, limits).with_register(Some(away.clone())));
    let (large, small) = ([7u8; LARGE], [7u8; 8]);
    let (mut into, mut small_into) = ([[0u8; LARGE]; 3], [[0u8; 8]; 40]);
    let mut events = [Vec::new(), Vec::new()];
    // SAFETY: the buffers outlive the links' use of them; the foreign memory is never touched.
    unsafe {
        for (sequence, into) in into.iter_mut().enumerate() {
            let to = usize::from(sequence != 2);
            let message = message(sequence as u64, LARGE);
            ends[to].post_recv(&message, into.as_mut_ptr(), Token(sequence as u64), &mut events[to]);
        }
        for (at, into) in small_into.iter_mut().enumerate() {
            let message = message(100 + at as u64, 8);
            ends[1].post_recv(&message, into.as_mut_ptr(), Token(100 + at as u64), &mut events[1]);
        }
    }
    let exchange = |ends: &mut [Link; 2], events: &mut [Vec<Event>; 2]| {
        for step in 0..4000 {
            let mut slices = [IoSlice::new(&[]); 4];
            ends[step % 2].load();
            let filled = ends[step % 2].gather(&mut slices, 5000);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            ends[step % 2].wrote(bytes.len(), &mut events[step % 2]);
            ends[1 - step % 2].feed(&bytes, &mut events[1 - step % 2]).unwrap();
        }
    };
    exchange(&mut ends, &mut events);
    // SAFETY: as above.
    unsafe {
        let foreign = std::ptr::without_provenance(FOREIGN);
        ends[0].post_send(&message(0, LARGE), foreign, Token(10), &mut events[0]);
        ends[0].post_send(&message(1, LARGE), large.as_ptr(), Token(11), &mut events[0]);
        ends[1].post_send(&message(2, LARGE), large.as_ptr(), Token(12), &mut events[1]);
        for at in 0..40 {
            ends[0].post_send(&message(100 + at, 8), small.as_ptr(), Token(200 + at), &mut events[0]);
        }
    }
    exchange(&mut ends, &mut events);
    let is = |events: &[Event], event: Event| events.contains(&event);
    assert!(!is(&events[0], Event::Sent(Token(10))) && !is(&events[1], Event::Received(Token(0))));
    assert!(is(&events[0], Event::Sent(Token(11))), "another piece waits");
    assert!(is(&events[1], Event::Sent(Token(12))), "an acknowledgement waits");
    for at in 0..40 {
        assert!(is(&events[1], Event::Received(Token(100 + at))), "a small message waits");
    }
    away.0.store(true, std::sync::atomic::Ordering::Relaxed);
    exchange(&mut ends, &mut events);
    assert!(is(&events[0], Event::Sent(Token(10))) && is(&events[1], Event::Received(Token(0))));
    assert!(into == [large; 3] && small_into == [small; 40]);
}
