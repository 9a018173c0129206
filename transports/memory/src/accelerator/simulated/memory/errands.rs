//! Which errand is next, and what follows from one that is back.

use std::sync::Arc;

use super::{Arrival, Memory, Pages, Phase, ROOM_AGAIN};
use crate::accelerator::life::State;
use crate::accelerator::simulated::errand::{Errand, Ran};
use crate::accelerator::{Contents, Notice};

impl Memory {
    /// The next errand, if there is any. What moves comes before what has moved.
    pub(super) fn next_errand(&mut self) -> Option<Errand> {
        let moving = self.regions.iter().find_map(|(&region, owned)| match &owned.phase {
            Phase::Readying { next, at } => {
                let (next, poison) = (Arc::clone(next), self.announces());
                Some(Errand::Ready { region, next, at: *at, poison })
            }
            Phase::Away { next, at, arrival, announced, again, .. }
                if *at < next.length() && *again <= self.common.now =>
            {
                let carries = *arrival != Arrival::Replaced(Contents::Lost);
                let old = carries.then(|| Arc::clone(&owned.pages));
                let (next, at, announced) = (Arc::clone(next), *at, *announced);
                Some(Errand::Carry { region, old, next, at, announced })
            }
            _ => None,
        });
        moving.or_else(|| self.vacated.errand(self.common.now, self.common.options.keep_bytes))
    }

    /// An errand is back. The region may have been freed or revoked meanwhile, and then it was in vain.
    pub(super) fn came_back(&mut self, errand: &Errand, ran: &Ran) {
        match errand {
            Errand::Ready { region, next, .. } => self.readied(*region, next, ran),
            Errand::Carry { region, next, announced, .. } => {
                if let Ok((_, Some(offset))) = ran
                    && *announced
                {
                    self.vacated.found(next, true, *offset);
                }
                self.carried(*region, next, ran);
            }
            Errand::Poison { pages, .. } => self.vacated.poisoned(pages, ran),
            Errand::Look { pages, .. } => self.vacated.looked(pages, ran),
        }
    }

    /// The next place is there, or a part of it: when all is, the question is asked.
    fn readied(&mut self, number: u64, place: &Arc<Pages>, ran: &Ran) {
        let (region, announces) = (self.common.region(number), self.announces());
        let Some(owned) = self.regions.get_mut(&number) else { return };
        let Phase::Readying { next, at } = &mut owned.phase else { return };
        match ran {
            _ if !Arc::ptr_eq(next, place) => return,
            Ok((end, _)) => *at = *end,
            // A move that fails for want of memory is a move that did not happen.
            Err(_) => {
                owned.phase = Phase::Active;
                self.common.counters.refused += 1;
                return;
            }
        }
        if *at < next.length() {
            return;
        }
        let (next, generation) = (Arc::clone(next), owned.pages.generation);
        if announces {
            owned.next_generation += 1;
        }
        let ticket = self.common.take_ticket();
        let (asked, deadline) = (self.common.now, self.common.now + self.common.options.patience);
        let ahead = next.generation;
        owned.phase = Phase::Asked { ticket, deadline, next, announced: announces };
        if announces {
            self.common.tell(Notice::Announced { region, generation: ahead });
        }
        self.common.tell(Notice::MoveAsked { region, generation, ticket, asked, deadline });
    }

    /// A piece has been carried. When all have, nobody needs the old place any more.
    fn carried(&mut self, number: u64, place: &Arc<Pages>, ran: &Ran) {
        let Some(owned) = self.regions.get_mut(&number) else { return };
        let Phase::Away { next, at, arrival, copied, again, .. } = &mut owned.phase else { return };
        if !Arc::ptr_eq(next, place) {
            return;
        }
        let Ok((end, _)) = ran else {
            // The host has no memory left. It is waited for: the old place has been given up already.
            *again = self.common.now + ROOM_AGAIN;
            return;
        };
        *at = *end;
        if *at < next.length() {
            return;
        }
        *copied = self.common.now;
        if *arrival != Arrival::Replaced(Contents::Lost) {
            self.common.counters.bytes_copied += owned.bytes;
        }
        debug_assert_eq!(owned.pages.state(), State::Dead);
        self.vacated.add(Arc::clone(&owned.pages), self.common.now + self.common.options.keep);
    }
}
