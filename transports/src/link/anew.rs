//! Pieces that begin anew after a break, where there are places.
//!
//! What a device read from the poster's memory is nowhere else, and the processor may not be able to read that memory when the connection stands again:
//! it may be on its way to another place, or lost for good. If the stream had to go on with the very piece, all behind it would wait for that memory.
//! So the receiver forgets what had come of a piece that is not here whole, and the sender takes pieces of such memory that the peer has not got out of
//! what is sent again, and puts frames that say nothing in their stead. They wait among those that have not begun; others pass them until their memory
//! is back. A message that was withdrawn meanwhile is told off then.

use super::arrive::Incoming;
use super::buffers::Buffers;
use super::cursor::Purpose;
use super::outbound::Frame;
use super::replay::Replay;
use super::wire::{Header, Kind};
use super::{Garbled, Link};
use crate::Event;

impl Replay {
    /// Takes out the first piece of each message that neither has left for good nor can be read, with all of the message after it.
    fn take_absent(&mut self, buffers: &mut Buffers) -> Vec<Frame> {
        let mut taken: Vec<Frame> = Vec::new();
        for at in 0..self.kept.len() {
            let kept = &self.kept[at];
            let Some(id) = kept.message() else { continue };
            let is_later = taken.iter().any(|first| first.message() == Some(id));
            if !is_later && !kept.is_absent() {
                continue;
            }
            let nothing = Frame::notice(&Header::nothing(id));
            let mut frame = std::mem::replace(&mut self.kept[at], nothing);
            self.unended -= usize::from(frame.ends_send());
            self.copied -= frame.release(buffers);
            if !is_later {
                taken.push(frame);
            }
        }
        taken
    }
}

impl Link {
    /// The stream stands again: what cannot be sent again as it was waits for its memory.
    pub(super) fn begin_anew(&mut self, events: &mut Vec<Event>) -> Result<(), Garbled> {
        let Some(replay) = self.replay.as_mut().filter(|_| self.places) else { return Ok(()) };
        let taken = replay.take_absent(&mut self.buffers);
        for frame in &taken {
            self.outbound.drop_pieces(|piece| piece.message() == frame.message());
        }
        // Those of which the peer has got all that had left.
        let ended = self.outbound.drop_pieces(Frame::is_void);
        for frame in taken.into_iter().rev().chain(ended) {
            let Some(header) = frame.header() else { continue };
            match frame.token() {
                Some(_) => self.outbound.return_piece(frame),
                None if frame.is_begun() => self.notify(Kind::Abandon, &header.message),
                // The receiver waits for it as before.
                None => self.clear_arrived(header.message, None, events)?,
            }
        }
        Ok(())
    }

    /// The stream broke amid a piece: it comes anew.
    pub(super) fn forget_piece(&mut self) {
        let (whole, left) = (self.cursor.whole, self.cursor.left);
        let Purpose::Transfer(mut transfer) = self
            .cursor
            .take_if(|purpose| matches!(purpose, Purpose::Transfer(transfer) if transfer.in_pieces))
        else {
            return;
        };
        transfer.arrived -= whole - left;
        let message = transfer.message;
        let rescinding = self.rescinding.contains(&message.id);
        match transfer.posted.take() {
            Some(posted) if transfer.arrived == 0 => {
                let posted = Incoming::Posted { posted, cleared: !rescinding };
                self.incoming.insert(message.id, posted);
            }
            // Withdrawn while it came.
            None if transfer.arrived == 0 && !rescinding => self.rescind(&message),
            None if transfer.arrived == 0 => {}
            posted => {
                transfer.posted = posted;
                self.incoming.insert(message.id, Incoming::Arriving(transfer));
            }
        }
    }
}
