//! What moves have cost so far.

use std::collections::VecDeque;
use std::time::Duration;

/// So many of the last drains and pauses are remembered.
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
}

/// What is being counted.
#[derive(Debug, Default)]
pub(crate) struct History {
    movements: Movements,
    drains: VecDeque<Duration>,
    pauses: VecDeque<Duration>,
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

    pub(crate) fn movements(&self) -> Movements {
        let all = |times: &VecDeque<Duration>| times.iter().copied().collect();
        Movements { drains: all(&self.drains), pauses: all(&self.pauses), ..self.movements.clone() }
    }
}

fn remember(times: &mut VecDeque<Duration>, time: Duration) {
    if times.len() == REMEMBERED {
        times.pop_front();
    }
    times.push_back(time);
}
