//! Pages that nobody should touch any more: poisoned, kept for a while, and looked at.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::errand::{Errand, Ran, begin};
use crate::accelerator::Region;
use crate::accelerator::driven::pages::Pages;

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
    /// It was announced and never came: what is stored there came early.
    early: bool,
    /// Up to where, and only once no engine that keeps the rules is at work there.
    poisoned: u64,
    /// Up to where the last look has come.
    looked: u64,
    until: Duration,
}

impl Old {
    fn is_poisoned(&self) -> bool {
        self.poisoned >= self.pages.length()
    }
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
        self.old.push_back(Old { pages, early: false, poisoned: begin(), looked: begin(), until });
    }

    /// What was announced ahead, and poisoned before that.
    pub(super) fn add_void(&mut self, pages: Arc<Pages>, until: Duration) {
        let poisoned = pages.length();
        self.old.push_back(Old { pages, early: true, poisoned, looked: begin(), until });
    }

    pub(super) fn report(&mut self, breach: Breach) {
        self.stores += 1;
        if self.breaches.len() < MOST_BREACHES {
            self.breaches.push(breach);
        }
    }

    /// For the next audit: what the last has found.
    pub(super) fn keep(&mut self, breaches: Vec<Breach>) {
        self.breaches = breaches;
    }

    /// Reports a changed byte of poisoned pages that nobody may store to.
    pub(super) fn found(&mut self, pages: &Pages, early: bool, offset: i64) {
        let (region, generation) = (pages.region, pages.generation);
        self.report(match early {
            true => Breach::EarlyStore { region, generation, offset },
            false => Breach::StaleStore { region, generation, offset },
        });
    }

    /// The next piece of poison, or of the last look at what was kept long enough. More than `most_bytes` are not kept, the oldest go first.
    pub(super) fn errand(&mut self, now: Duration, most_bytes: u64) -> Option<Errand> {
        // Once it is quiet it stays so: nobody who keeps the rules enters.
        let poisons = |old: &&Old| !old.is_poisoned() && old.pages.life().is_quiet();
        if let Some(old) = self.old.iter().find(poisons) {
            return Some(Errand::Poison { pages: Arc::clone(&old.pages), at: old.poisoned });
        }
        let mut kept: u64 = self.old.iter().map(|old| old.pages.bytes).sum();
        while let Some(old) = self.old.front().filter(|old| old.until <= now || kept > most_bytes) {
            if old.is_poisoned() {
                return Some(Errand::Look { pages: Arc::clone(&old.pages), at: old.looked });
            }
            kept -= old.pages.bytes;
            self.unchecked += 1;
            self.old.pop_front();
        }
        None
    }

    /// A piece of poison has been put. Without poison nothing would be found; the pages then count as unchecked.
    pub(super) fn poisoned(&mut self, pages: &Arc<Pages>, ran: &Ran) {
        let Some(index) = self.index_of(pages) else { return };
        match ran {
            // An audit may have been quicker.
            Ok((end, _)) => self.old[index].poisoned = self.old[index].poisoned.max(*end),
            Err(_) => {
                self.unchecked += 1;
                self.old.remove(index);
            }
        }
    }

    /// A piece has been looked at for the last time.
    pub(super) fn looked(&mut self, pages: &Arc<Pages>, ran: &Ran) {
        let Some(index) = self.index_of(pages) else { return };
        let (end, touched) = ran.as_ref().map_or((pages.length(), None), |ran| *ran);
        self.old[index].looked = end;
        if let Some(offset) = touched {
            self.found(pages, self.old[index].early, offset);
        }
        if touched.is_some() || end >= pages.length() {
            self.old.remove(index);
        }
    }

    fn index_of(&self, pages: &Arc<Pages>) -> Option<usize> {
        self.old.iter().position(|old| Arc::ptr_eq(&old.pages, pages))
    }

    /// Looks at everything kept, and hands over all reports. O(bytes kept).
    pub(super) fn audit(&mut self) -> Vec<Breach> {
        let mut old = std::mem::take(&mut self.old);
        for old in &mut old {
            let (pages, end) = (&old.pages, old.pages.length());
            if !old.is_poisoned() && pages.life().is_quiet() && pages.poison(old.poisoned, end).is_ok() {
                old.poisoned = end;
            }
            if old.is_poisoned()
                && let Some(offset) = pages.first_touched(begin(), end)
            {
                self.found(pages, old.early, offset);
                // So that the next store is found, too.
                let _ = pages.poison(begin(), end);
            }
        }
        self.old = old;
        std::mem::take(&mut self.breaches)
    }

    pub(super) fn find(&self, region: Region, generation: u32) -> Option<&Arc<Pages>> {
        let is = |old: &&Old| old.pages.region == region && old.pages.generation == generation;
        self.old.iter().find(is).map(|old| &old.pages)
    }

    /// Whether engines at work keep it from being poisoned.
    pub(super) fn is_waiting(&self) -> bool {
        self.old.iter().any(|old| !old.is_poisoned())
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.old.front().map(|old| old.until)
    }
}
