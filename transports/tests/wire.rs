//! The decoders: any bytes give an answer, and what is encoded is decoded.

use proptest::prelude::*;
use windlass_transports::ledger::Generation;
use windlass_transports::link::wire::{Detail, HEADER_BYTES, Header, Kind};
use windlass_transports::link::{Limits, Link, Position};
use windlass_transports::message::{Message, MessageId};
use windlass_transports::tcp::greeting::{GREETING_BYTES, Greeting};

const KINDS: [Kind; 15] = [
    Kind::Eager,
    Kind::Announce,
    Kind::Clear,
    Kind::Data,
    Kind::Credit,
    Kind::Retract,
    Kind::Rescind,
    Kind::Rescinded,
    Kind::RefuseMessage,
    Kind::RefuseAnnounce,
    Kind::RefuseClear,
    Kind::Stalled,
    Kind::Resumed,
    Kind::Abandon,
    Kind::Ack,
];

/// Headers whose identities are few, so that they meet.
fn headers() -> impl Strategy<Value = Header> {
    let numbers = (0u32..3, 0u64..3, 0usize..130, any::<u32>(), any::<u32>());
    (prop::sample::select(&KINDS[..]), numbers).prop_map(|(kind, (communicator, sequence, bytes, a, b))| {
        let id = MessageId { communicator, tag: u32::MAX, sequence, label: 0, chunk: 0 };
        let detail = match kind {
            Kind::Data => Detail::Piece(if bytes == 0 { 0 } else { 1 + a as usize % bytes }),
            _ => Detail::Credits { bytes: u32::from(a % 16 == 0) * 8, messages: u32::from(b % 16 == 0) },
        };
        let ack = if a % 8 == 0 { b % 4 } else { 0 };
        Header { kind, ack, message: Message { id, fingerprint: [1, 2], bytes }, detail }
    })
}

proptest! {
    #[test]
    fn headers_survive(header in headers()) {
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn any_header_bytes_give_an_answer(mut bytes in any::<[u8; HEADER_BYTES]>(), plausible: bool) {
        if plausible {
            bytes[..3].copy_from_slice(b"WL\x02");
            bytes[3] %= 16;
        }
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn greetings_survive(job: u128, rank: u32, a: u32, b: u32, c: u32, d: u32, far: u64) {
        let limits = Limits { eager_bytes: a, credit_bytes: b, credit_messages: c, announcements: d };
        let position = Position { frames: a ^ d, bytes: far };
        let greeting = Greeting { job, rank, limits, generation: Generation(b ^ c), position };
        prop_assert_eq!(Greeting::decode(&greeting.encode()), Some(greeting));
    }

    #[test]
    fn any_greeting_bytes_give_an_answer(bytes in any::<[[u8; 16]; GREETING_BYTES / 16]>()) {
        let bytes: Vec<u8> = bytes.concat();
        prop_assert_eq!(Greeting::decode(bytes.first_chunk().unwrap()), None);
    }

    /// A peer that says anything at all: the link answers with an event or an error, and never panics.
    #[test]
    fn a_link_survives_any_frames(frames in prop::collection::vec((headers(), any::<bool>()), 0..60), cut in 1usize..200) {
        let limits = Limits { eager_bytes: 100, credit_bytes: 300, credit_messages: 4, announcements: 2 };
        let mut link = Link::new(1, limits);
        let mut memory = vec![0u8; 256 * 64];
        let mut events = Vec::new();
        let mut bytes = Vec::new();
        for (at, (header, posted)) in frames.iter().enumerate() {
            bytes.extend(header.encode());
            bytes.extend(std::iter::repeat_n(at as u8, header.payload()));
            if *posted {
                let token = windlass_transports::Token(at as u64);
                // SAFETY: each operation has 256 bytes of `memory` of its own, which outlives the link's use.
                unsafe {
                    let place = memory.as_mut_ptr().add(at * 256);
                    match at % 2 {
                        0 => link.post_recv(&header.message, place, token, &mut events),
                        _ => link.post_send(&header.message, place, token, &mut events),
                    }
                }
            }
            if at % 7 == 6 {
                link.withdraw(windlass_transports::Token(at as u64 / 2));
            }
            for piece in std::mem::take(&mut bytes).chunks(cut) {
                if link.feed(piece, &mut events).is_err() {
                    link.clear();
                    break;
                }
            }
        }
        link.clear();
    }
}
