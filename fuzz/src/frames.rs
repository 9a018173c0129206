//! Four bytes a step: what, identity, size, detail. What is a post, a withdrawal, a search, some output, or a frame of the peer.

use windlass_transports::link::wire::{Detail, Header, Kind};

use crate::desk::{Desk, message};

/// By its number on the wire, less one.
const KINDS: [Kind; 18] = [
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
    Kind::Seek,
    Kind::Found,
    Kind::Forget,
];

/// A peer that says what it likes, in order or not.
pub fn run(bytes: &[u8]) {
    let mut desk = Desk::new(1);
    for &[what, id, size, detail] in bytes.as_chunks().0 {
        let message = message(id, size);
        match what % 26 {
            0 | 1 => desk.post(true, id, &message, 7),
            2 | 3 => desk.post(false, id, &message, 0),
            4 | 5 => drop(desk.withdraw(detail)),
            6 => drop(desk.say(usize::from(detail) * 4)),
            25 => desk.seek(&message),
            kind => {
                let kind = KINDS[usize::from(kind) - 7];
                let detail = match kind {
                    Kind::Data => Detail::Piece(usize::from(detail)),
                    _ => Detail::Credits { bytes: u32::from(detail & 63), messages: u32::from(detail >> 6) },
                };
                let header = Header { kind, ack: 0, message, detail };
                if !desk.hear(&header.encode()) || !desk.hear(&vec![id; header.payload()]) {
                    return;
                }
            }
        }
        desk.ended();
    }
}
