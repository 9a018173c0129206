//! The device's address space: which pages are whose. First fit, so it fragments as real allocators do.

use std::collections::BTreeMap;
use std::time::Duration;

/// For whom pages are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Claim {
    /// A new allocation.
    New,
    /// A region that comes back from a move.
    Returning(u64),
}

/// Pages that are kept free until those that were moved out of the way for a claim have been used by it.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    start: u64,
    pages: u64,
    claim: Claim,
    until: Duration,
}

#[derive(Debug)]
pub(super) struct Extents {
    pages: u64,
    /// By first page: how many, and whose.
    used: BTreeMap<u64, (u64, u64)>,
    reserved: Option<Reserved>,
}

impl Extents {
    pub(super) fn new(pages: u64) -> Self {
        Self { pages, used: BTreeMap::new(), reserved: None }
    }

    pub(super) fn free_pages(&self) -> u64 {
        self.pages - self.used.values().map(|(pages, _)| pages).sum::<u64>()
    }

    /// Takes the first gap that is large enough.
    pub(super) fn take(&mut self, pages: u64, owner: u64, claim: Claim) -> Option<u64> {
        let reserved = self.reserved.filter(|r| r.claim != claim || pages > r.pages);
        let mut at = 0;
        let mut taken: Vec<(u64, u64)> =
            self.used.iter().map(|(&start, &(pages, _))| (start, pages)).collect();
        taken.extend(reserved.map(|r| (r.start, r.pages)));
        taken.sort_unstable();
        // Something reserved may still have its old owner in it, so that ends do not only grow.
        for (start, length) in taken {
            if start.saturating_sub(at) >= pages {
                break;
            }
            at = at.max(start + length);
        }
        if at.checked_add(pages)? > self.pages {
            return None;
        }
        self.used.insert(at, (pages, owner));
        self.reserved = self.reserved.filter(|r| r.claim != claim);
        Some(at)
    }

    pub(super) fn give_back(&mut self, start: u64) {
        self.used.remove(&start);
    }

    /// Whether room is being made for somebody.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    pub(super) fn expire(&mut self, now: Duration) {
        self.reserved = self.reserved.filter(|r| r.until > now);
    }

    /// The owners to be moved so that `pages` are free in one piece, with the fewest pages to move; their place is
    /// reserved for the claim. `None` when those that may not move are in the way everywhere. O(n²) for n regions.
    pub(super) fn clear(
        &mut self,
        pages: u64,
        claim: Claim,
        until: Duration,
        may_move: impl Fn(u64) -> bool,
    ) -> Option<Vec<u64>> {
        let ends = self.used.iter().map(|(start, (pages, _))| start + pages);
        let begins = self.used.keys().filter_map(|start| start.checked_sub(pages));
        let candidates =
            ends.chain(begins).chain([0]).filter(|start| start.saturating_add(pages) <= self.pages);
        let window = |start: u64| {
            let inside =
                self.used.iter().filter(move |(s, (length, _))| **s < start + pages && **s + length > start);
            let mut cost = 0;
            let mut owners = Vec::new();
            for (_, &(length, owner)) in inside {
                if !may_move(owner) {
                    return None;
                }
                cost += length;
                owners.push(owner);
            }
            Some((cost, start, owners))
        };
        let (_, start, owners) = candidates.filter_map(window).min()?;
        self.reserved = Some(Reserved { start, pages, claim, until });
        Some(owners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(1);

    fn full() -> (Extents, Vec<u64>) {
        let mut extents = Extents::new(10);
        let starts = (0..5).map(|owner| extents.take(2, owner, Claim::New).unwrap()).collect();
        (extents, starts)
    }

    #[test]
    fn first_fit_fragments() {
        let (mut extents, starts) = full();
        assert_eq!(starts, [0, 2, 4, 6, 8]);
        extents.give_back(2);
        extents.give_back(6);
        assert_eq!((extents.free_pages(), extents.take(3, 9, Claim::New)), (4, None));
        assert_eq!(extents.take(2, 9, Claim::New), Some(2));
        assert_eq!(extents.take(u64::MAX, 9, Claim::New), None);
    }

    #[test]
    fn a_cleared_window_waits_for_its_claim() {
        let (mut extents, _) = full();
        extents.give_back(2);
        extents.give_back(6);
        let owners = extents.clear(4, Claim::New, LATER, |owner| owner != 0).unwrap();
        assert_eq!(owners, [2], "the two gaps beside owner 2 are the cheapest");
        extents.give_back(4);
        assert_eq!(extents.take(2, 2, Claim::Returning(2)), Some(6), "not into the window");
        assert_eq!(extents.take(4, 7, Claim::New), Some(2));
        assert_eq!(extents.free_pages(), 0);
        assert!(!extents.is_reserved());
    }

    #[test]
    fn what_may_not_move_is_not_moved_and_reservations_end() {
        let (mut extents, _) = full();
        assert!(extents.clear(4, Claim::New, LATER, |_| false).is_none());
        assert!(extents.clear(11, Claim::New, LATER, |_| true).is_none());
        assert_eq!(extents.clear(10, Claim::New, LATER, |_| true).unwrap().len(), 5);
        extents.expire(LATER);
        assert!(!extents.is_reserved());
    }
}
