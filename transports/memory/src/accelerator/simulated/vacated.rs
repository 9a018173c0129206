//! Pages that nobody should touch any more: poisoned, kept for a while, and looked at.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::pages::Pages;
use crate::accelerator::Region;

/// Reports that are kept until [`audit`](super::SimulatedAccelerator::audit) takes them. The counters go on.
const MOST_BREACHES: usize = 1024;

/// Somebody broke a rule. `generation` is the one that was touched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Breach {
    /// Memory was stored to after it had been vacated. A store of the poison's own bytes is not seen.
    StaleStore {
        /// Whose memory.
        region: Region,
        /// The generation that had ended.
        generation: u32,
        /// The first byte changed, from the region's begin; negative or beyond its length in the slack around it.
        offset: i64,
    },
    /// Memory announced ahead was stored to before the move to it had ended.
    EarlyStore {
        /// Whose memory.
        region: Region,
        /// The generation that had not begun.
        generation: u32,
        /// As above.
        offset: i64,
    },
    /// An engine was at work on the memory when its move was acknowledged.
    AtWork {
        /// Whose memory.
        region: Region,
        /// The generation that was given up.
        generation: u32,
    },
}

#[derive(Debug)]
struct Old {
    pages: Arc<Pages>,
    /// Only once no engine that keeps the rules is at work there.
    poisoned: bool,
    until: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Vacated {
    old: VecDeque<Old>,
    breaches: Vec<Breach>,
    /// How many stores were found, reported or not.
    pub(super) stores: u64,
    /// How many generations could not be checked to their end, because an engine never left.
    pub(super) unchecked: u64,
}

impl Vacated {
    pub(super) fn add(&mut self, pages: Arc<Pages>, until: Duration) {
        self.old.push_back(Old { pages, poisoned: false, until });
        self.poison();
    }

    pub(super) fn report(&mut self, breach: Breach) {
        self.stores += 1;
        if self.breaches.len() < MOST_BREACHES {
            self.breaches.push(breach);
        }
    }

    /// Reports a changed byte of poisoned pages that nobody may store to.
    pub(super) fn look(&mut self, pages: &Pages, early: bool) -> bool {
        let Some(offset) = pages.first_touched() else { return false };
        let (region, generation) = (pages.region, pages.generation);
        self.report(match early {
            true => Breach::EarlyStore { region, generation, offset },
            false => Breach::StaleStore { region, generation, offset },
        });
        true
    }

    /// Poisons what has become quiet.
    fn poison(&mut self) {
        for old in self.old.iter_mut().filter(|old| !old.poisoned && old.pages.life().is_quiet()) {
            // Without poison nothing would be found; the pages then count as unchecked.
            old.poisoned = old.pages.poison().is_ok();
        }
    }

    /// Forgets what was kept long enough, after a last look. More than `most_bytes` are not kept, the oldest go first.
    pub(super) fn step(&mut self, now: Duration, most_bytes: u64) {
        self.poison();
        let mut kept: u64 = self.old.iter().map(|old| old.pages.bytes).sum();
        while let Some(old) = self.old.pop_front_if(|old| old.until <= now || kept > most_bytes) {
            kept -= old.pages.bytes;
            if old.poisoned {
                self.look(&old.pages, false);
            } else {
                self.unchecked += 1;
            }
        }
    }

    /// Looks at everything kept, and hands over all reports. O(bytes kept).
    pub(super) fn audit(&mut self) -> Vec<Breach> {
        self.poison();
        let old = std::mem::take(&mut self.old);
        for old in old.iter().filter(|old| old.poisoned) {
            if self.look(&old.pages, false) {
                // So that the next store is found, too.
                let _ = old.pages.poison();
            }
        }
        self.old = old;
        std::mem::take(&mut self.breaches)
    }

    pub(super) fn find(&self, region: Region, generation: u32) -> Option<&Arc<Pages>> {
        let is = |old: &&Old| old.pages.region == region && old.pages.generation == generation;
        self.old.iter().find(is).map(|old| &old.pages)
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.old.iter().any(|old| !old.poisoned)
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.old.front().map(|old| old.until)
    }
}
