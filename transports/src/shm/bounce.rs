//! A rank's bounce buffers: what is too large for cells, and not lent, is copied into one of them and out of it, by two processors at a time.
//!
//! The writer takes the buffers in turn. One is free again when the peer has read the cell that named it. No peer can have more than half of
//! them, so that one that has stopped does not stop the messages to the others.

use super::board::BOUNCE_BYTES;
use crate::Rank;

/// Bytes of a buffer.
pub const BUFFER_BYTES: usize = 32 << 10;

const BUFFERS: usize = BOUNCE_BYTES / BUFFER_BYTES;

/// Which buffers are in use.
#[derive(Debug, Default)]
pub struct Bounce {
    /// To whom, and by which cell.
    lent: [Option<(Rank, u64)>; BUFFERS],
    /// The one whose turn it is: the oldest of those in use.
    next: usize,
}

/// What [`Bounce::take`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Buffer {
    /// A free buffer, which begins here.
    At(usize),
    /// The peer has its share, and gives some back when it reads.
    Wait,
    /// Others have all.
    Taken,
}

impl Bounce {
    /// A buffer for what cell `number` to `peer` names. `read` says how far a peer has read.
    pub fn take(&mut self, peer: Rank, number: u64, mut read: impl FnMut(Rank) -> u64) -> Buffer {
        let mut held = 0;
        for buffer in &mut self.lent {
            if let Some((owner, cell)) = *buffer {
                if read(owner) >= cell {
                    *buffer = None;
                } else {
                    held += usize::from(owner == peer);
                }
            }
        }
        if held >= BUFFERS / 2 {
            return Buffer::Wait;
        }
        let free = (0..BUFFERS).map(|i| (self.next + i) % BUFFERS).find(|&at| self.lent[at].is_none());
        match free {
            Some(at) => {
                self.lent[at] = Some((peer, number));
                self.next = (at + 1) % BUFFERS;
                Buffer::At(at * BUFFER_BYTES)
            }
            None if held > 0 => Buffer::Wait,
            None => Buffer::Taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_peer_leaves_half_to_the_others() {
        let mut bounce = Bounce::default();
        let read = |peer: Rank| if peer == 1 { 0 } else { 100 };
        let mut taken = Vec::new();
        for number in 1.. {
            match bounce.take(1, number, read) {
                Buffer::At(at) => taken.push(at),
                full => {
                    assert_eq!(full, Buffer::Wait);
                    break;
                }
            }
        }
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), BUFFERS / 2);
        for number in 1..50 {
            let Buffer::At(at) = bounce.take(2, number, read) else { panic!("nothing is left for rank 2") };
            assert!(!taken.contains(&at), "a buffer that rank 1 has not read");
        }
    }

    #[test]
    fn where_others_have_all_there_is_nothing_to_wait_for() {
        let mut bounce = Bounce::default();
        for peer in [1, 2] {
            while let Buffer::At(_) = bounce.take(peer, 1, |_| 0) {}
        }
        assert_eq!(bounce.take(3, 1, |_| 0), Buffer::Taken);
        assert_eq!(bounce.take(1, 2, |_| 0), Buffer::Wait);
    }
}
