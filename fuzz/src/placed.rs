//! A count of operations, the operations (kind, identity and size), the length of the cuts, and how much lands; the rest is what the peer sends.

use crate::desk::{Desk, message};

/// Feeds a link whose messages may be written where they belong with what came from nowhere. After each cut so much has landed, if anything can.
pub fn run(bytes: &[u8]) {
    let Some((&[count, cut, lands], rest)) = bytes.split_first_chunk() else { return };
    let Some((operations, stream)) = rest.split_at_checked(usize::from(count % 16) * 3) else { return };
    let mut desk = Desk::placing(1);
    for operation in operations.chunks_exact(3) {
        desk.post(
            operation[0] & 1 == 0,
            operation[1],
            &message(operation[1], operation[2]),
            operation[1] | 1,
        );
        desk.ended();
    }
    for piece in stream.chunks(usize::from(cut).max(1)) {
        if !desk.hear(piece) {
            return;
        }
        desk.ended();
        if piece[0] & 1 == 1 && lands > 0 && !desk.land(usize::from(lands)) {
            return;
        }
        desk.ended();
        desk.say(usize::from(cut) * 2);
        desk.place(usize::from(cut));
        desk.ended();
    }
}
