//! What every owner of device memory keeps besides the memory: the clock, chance, who listens, numbers, and counts.

use std::sync::Arc;
use std::time::Duration;

use super::random::Random;
use crate::accelerator::{AcceleratorError, Contents, Counters, Notice, Notices, Options, Region, Ticket};

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::accelerator) struct Common {
    pub(in crate::accelerator) options: Options,
    pub(in crate::accelerator) now: Duration,
    pub(in crate::accelerator) random: Random,
    pub(in crate::accelerator) notices: Option<Arc<Notices>>,
    pub(in crate::accelerator) counters: Counters,
    next_region: u64,
    next_ticket: u64,
    next_move: Option<Duration>,
    next_revoke: Option<Duration>,
}

impl Common {
    pub(in crate::accelerator) fn new(options: Options) -> Self {
        let mut random = Random::new(options.seed);
        let next_move = random.until_next(options.moves_per_second);
        let next_revoke = random.until_next(options.revokes_per_second);
        Self {
            options,
            now: Duration::ZERO,
            random,
            notices: None,
            counters: Counters::default(),
            next_region: 1,
            next_ticket: 1,
            next_move,
            next_revoke,
        }
    }

    pub(in crate::accelerator) fn tell(&self, notice: Notice) {
        if let Some(notices) = &self.notices {
            notices.push(notice);
        }
    }

    /// The region of a number.
    pub(in crate::accelerator) const fn region(&self, number: u64) -> Region {
        Region::new(self.options.device, number)
    }

    /// A region's number, if it could be one of this device's.
    pub(in crate::accelerator) fn number(&self, region: Region) -> Result<u64, AcceleratorError> {
        let own = region.device() == self.options.device;
        if own { Ok(region.number()) } else { Err(AcceleratorError::UnknownRegion(region)) }
    }

    /// What the next region will be called.
    pub(in crate::accelerator) const fn next_region(&self) -> u64 {
        self.next_region
    }

    /// It is called so.
    pub(in crate::accelerator) fn take_region(&mut self) -> u64 {
        self.next_region += 1;
        self.next_region - 1
    }

    pub(in crate::accelerator) fn take_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket::new(self.next_ticket - 1)
    }

    /// Whether a random move is due.
    pub(in crate::accelerator) fn take_move(&mut self) -> bool {
        let due = self.next_move.is_some_and(|at| at <= self.now);
        if due {
            let pause = self.random.until_next(self.options.moves_per_second);
            self.next_move = pause.map(|pause| self.now + pause);
        }
        due
    }

    /// Whether a random revoke is due.
    pub(in crate::accelerator) fn take_revoke(&mut self) -> Option<Contents> {
        self.next_revoke.filter(|at| *at <= self.now)?;
        let pause = self.random.until_next(self.options.revokes_per_second);
        self.next_revoke = pause.map(|pause| self.now + pause);
        let lost = self.random.unit() < self.options.lost_share;
        Some(if lost { Contents::Lost } else { Contents::Preserved })
    }

    /// One of them, at random.
    pub(in crate::accelerator) fn victim(&mut self, of: &[u64]) -> Option<u64> {
        (!of.is_empty()).then(|| of[self.random.below(of.len() as u64) as usize])
    }

    /// When the next random event is.
    pub(in crate::accelerator) fn next_event(&self) -> Option<Duration> {
        [self.next_move, self.next_revoke].into_iter().flatten().min()
    }
}
