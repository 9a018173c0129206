//! What moves have cost so far.

use std::collections::VecDeque;
use std::time::Duration;

/// So many of the last drains, pauses and returns are remembered.
const REMEMBERED: usize = 4096;

/// How often a rank's device memory has moved, and what that cost. See [`Device::movements`](super::Device::movements).
#[derive(Clone, Debug, Default)]
pub struct Movements {
    /// Moves that the accelerator asked for and made.
    pub moves: u64,
    /// Times that it took memory without asking.
    pub revokes: u64,
    /// Moves that were refused, because a peer could not be made to stop in time.
    pub refused: u64,
    /// Pieces of operations that were done again because memory they touched had gone.
    pub replays: u64,
    /// The last drains: from the question until nobody touched the memory.
    pub drains: Vec<Duration>,
    /// The last pauses: from the question or the revoke until this rank's operations could touch the memory again.
    pub pauses: Vec<Duration>,
    /// The last returns, of moves in the middle of an operation: from the end of the accelerator's copy until the first piece of this rank's
    /// work on the new place had ended.
    pub returns: Vec<Duration>,
    /// What of each return the accelerator had the work for: the engine's time, in which it meets pages that are not mapped yet.
    pub first_pieces: Vec<Duration>,
}

/// The way back to work after one move.
#[derive(Debug, Default)]
pub(crate) struct Return {
    /// Somebody has wanted the memory and had to wait.
    awaited: bool,
    /// When the last byte was in its place.
    copied: Option<Duration>,
    /// When the first piece of work began.
    begun: Option<Duration>,
}

impl Return {
    pub(crate) const fn handle_wanted(&mut self) {
        self.awaited = true;
    }

    pub(crate) const fn handle_moved(&mut self, copied: Duration) {
        (self.copied, self.begun) = (Some(copied), None);
    }

    /// A piece of work begins.
    pub(crate) fn handle_begun(&mut self, now: Duration) {
        if self.copied.is_some() {
            self.begun.get_or_insert(now);
        }
    }
}

/// What is being counted.
#[derive(Debug, Default)]
pub(crate) struct History {
    movements: Movements,
    drains: VecDeque<Duration>,
    pauses: VecDeque<Duration>,
    returns: VecDeque<Duration>,
    first_pieces: VecDeque<Duration>,
}

impl History {
    pub(crate) const fn moved(&mut self) {
        self.movements.moves += 1;
    }

    pub(crate) const fn revoked(&mut self) {
        self.movements.revokes += 1;
    }

    pub(crate) const fn refused(&mut self) {
        self.movements.refused += 1;
    }

    pub(crate) const fn replayed(&mut self) {
        self.movements.replays += 1;
    }

    pub(crate) fn drained(&mut self, time: Duration) {
        remember(&mut self.drains, time);
    }

    pub(crate) fn paused(&mut self, time: Duration) {
        remember(&mut self.pauses, time);
    }

    /// A piece of work has ended, which found the memory in its place or not. The first after a move is the end of its return.
    pub(crate) fn worked(&mut self, way: &mut Return, found: bool, now: Duration) {
        let Some(begun) = way.begun else { return };
        if let Some(copied) = way.copied.filter(|_| way.awaited && found) {
            remember(&mut self.returns, now.saturating_sub(copied));
            remember(&mut self.first_pieces, now.saturating_sub(begun));
        }
        *way = Return::default();
    }

    pub(crate) fn movements(&self) -> Movements {
        let all = |times: &VecDeque<Duration>| times.iter().copied().collect();
        Movements {
            drains: all(&self.drains),
            pauses: all(&self.pauses),
            returns: all(&self.returns),
            first_pieces: all(&self.first_pieces),
            ..self.movements.clone()
        }
    }
}

fn remember(times: &mut VecDeque<Duration>, time: Duration) {
    if times.len() == REMEMBERED {
        times.pop_front();
    }
    times.push_back(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn a_return_is_from_the_copy_to_the_first_piece_of_work_that_waited() {
        let (mut history, mut way) = (History::default(), Return::default());
        way.handle_wanted();
        way.handle_begun(at(5));
        way.handle_moved(at(100));
        way.handle_begun(at(130));
        way.handle_begun(at(140));
        history.worked(&mut way, true, at(190));
        history.worked(&mut way, true, at(250));
        let movements = history.movements();
        assert_eq!((movements.returns, movements.first_pieces), (vec![at(90)], vec![at(60)]));
    }

    #[test]
    fn what_nobody_waited_for_or_what_had_gone_again_is_no_return() {
        for (wanted, found) in [(false, true), (true, false)] {
            let (mut history, mut way) = (History::default(), Return::default());
            if wanted {
                way.handle_wanted();
            }
            way.handle_moved(at(100));
            way.handle_begun(at(130));
            history.worked(&mut way, found, at(190));
            assert!(history.movements().returns.is_empty(), "{wanted} {found}");
        }
    }
}
