//! A count of operations, the operations (kind, that is receive, send or search, identity and size), the length of the cuts; the rest is what the peer sends.

use crate::desk::{Desk, message};

/// Feeds a link with what came from nowhere.
pub fn run(bytes: &[u8]) {
    let Some((&[count, cut], rest)) = bytes.split_first_chunk() else { return };
    let Some((operations, stream)) = rest.split_at_checked(usize::from(count % 16) * 3) else { return };
    let mut desk = Desk::new(1);
    for operation in operations.chunks_exact(3) {
        let message = message(operation[1], operation[2]);
        match operation[0] & 2 == 0 {
            true => desk.post(operation[0] & 1 == 0, operation[1], &message, operation[1] | 1),
            false => desk.seek(&message),
        }
        desk.ended();
    }
    for piece in stream.chunks(usize::from(cut).max(1)) {
        if !desk.hear(piece) {
            return;
        }
        desk.ended();
        desk.say(usize::from(cut) * 2);
        desk.ended();
    }
}
