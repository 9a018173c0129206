//! What the accelerator says of this rank's memory, and what it is answered.

use std::time::Duration;

use windlass_memory::accelerator::{self, AcceleratorError, Condition, Contents, Place};

use super::{OWN_TICKETS, Own, Regions, nanoseconds};
use crate::scheduler::{Descriptor, Lease, Notice, Replacement, Ticket, table};

impl Regions {
    /// When the clock is to be looked at again.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let next = self.own.values().filter_map(|own| own.machine.deadline_ns()).min()?;
        Some(Duration::from_nanos(next.saturating_sub(self.now())))
    }

    /// Takes what the accelerator has said, and the time.
    pub(crate) fn turn(&mut self) {
        self.reap();
        let overflowed = self.notices.overflowed();
        while let Some(notice) = self.notices.pop() {
            let found = self.own.iter().find(|(_, own)| own.memory == notice.region());
            if let Some((&segment, _)) = found {
                self.heed(segment, notice);
            }
        }
        // What was lost is later than what was kept.
        if overflowed {
            self.ask_all();
        }
        for (segment, ticket) in std::mem::take(&mut self.unpinned) {
            self.acknowledge(segment, ticket);
        }
        let now = self.now();
        let due = |own: &Own| own.machine.deadline_ns().is_some_and(|deadline| deadline <= now);
        let late: Vec<u32> =
            self.own.iter().filter(|(_, own)| due(own)).map(|(&segment, _)| segment).collect();
        for segment in late {
            if let Some(own) = self.own.get_mut(&segment) {
                own.machine.handle_time(now);
            }
            self.act(segment);
        }
    }

    pub(super) fn heed(&mut self, segment: u32, notice: accelerator::Notice) {
        use accelerator::Notice as Said;
        let (now, clock) = (self.now(), self.accelerator.now());
        let Some(own) = self.own.get_mut(&segment) else { return };
        let notice = match notice {
            // It is known already, from the region's status.
            Said::MoveAsked { generation, .. } | Said::Revoked { generation, .. }
                if generation < own.heard =>
            {
                return;
            }
            Said::Moved { generation, .. } | Said::Replaced { generation, .. } if generation <= own.heard => {
                return;
            }
            Said::Announced { generation, .. } => Notice::Announce(Descriptor(u64::from(generation))),
            Said::MoveAsked { ticket, asked, deadline, .. } => {
                own.asked = Some(asked);
                own.paused.get_or_insert(asked);
                Notice::Move { ticket: Ticket(ticket.number()), deadline_ns: nanoseconds(deadline) }
            }
            Said::Moved { generation, copied, .. } => {
                self.history.moved();
                if let Some(way) = &mut own.way {
                    way.handle_moved(copied);
                }
                own.preserved(generation)
            }
            Said::Revoked { .. } => {
                self.history.revoked();
                own.paused.get_or_insert(clock);
                Notice::Revoke
            }
            Said::Replaced { generation, contents: Contents::Preserved, .. } => own.preserved(generation),
            Said::Replaced { generation, contents: Contents::Lost, .. } => {
                own.heard = generation;
                Notice::Replaced { ticket: None, outcome: Replacement::Lost }
            }
            // What was asked is refused at its own deadline here, and what was freed was freed from here.
            _ => return,
        };
        own.machine.handle_notice(notice, now);
        self.act(segment);
    }

    /// Notices were lost: each region's status says what they said.
    fn ask_all(&mut self) {
        use accelerator::Notice as Said;
        let known: Vec<_> = self.own.iter().map(|(&segment, own)| (segment, own.memory, own.heard)).collect();
        for (segment, region, heard) in known {
            let Ok(status) = self.accelerator.status(region) else { continue };
            let generation = status.generation;
            if generation != heard {
                // It was revoked or moved; in both cases the old place is dead by now. What came between is not known, nor
                // whether it kept the contents.
                let next = heard.checked_add(1) == Some(generation);
                let contents = if next { status.contents } else { Contents::Lost };
                self.heed(segment, Said::Revoked { region, generation: heard });
                self.heed(segment, Said::Replaced { region, generation, contents });
            }
            match status.condition {
                Condition::MoveAsked { ticket, deadline } => {
                    // When that was, nobody knows any more.
                    let asked = self.accelerator.now();
                    self.heed(segment, Said::MoveAsked { region, generation, ticket, asked, deadline });
                }
                // Unless it left with this rank's leave.
                Condition::Away
                    if self.own.get(&segment).is_some_and(|own| own.machine.taken().is_none()) =>
                {
                    self.heed(segment, Said::Revoked { region, generation });
                }
                _ => {}
            }
        }
    }

    pub(super) fn acknowledge(&mut self, segment: u32, ticket: Ticket) {
        let clock = self.accelerator.now();
        let Some(own) = self.own.get_mut(&segment) else { return };
        if ticket.0 >= OWN_TICKETS {
            // This rank asked, and wants nothing but the silence; or it is freed by whoever asked for this.
            return self.stay(segment, ticket);
        }
        match self.accelerator.acknowledge(accelerator::Ticket::new(ticket.0)) {
            Ok(()) => {
                if let Some(asked) = own.asked.take().filter(|_| own.way.is_some()) {
                    self.history.drained(clock.saturating_sub(asked));
                }
            }
            Err(AcceleratorError::StillPinned { .. }) => self.unpinned.push((segment, ticket)),
            // It was abandoned or revoked meanwhile.
            Err(_) => self.stay(segment, ticket),
        }
    }

    /// What nobody touches any more goes on where it is, if it is still there.
    fn stay(&mut self, segment: u32, ticket: Ticket) {
        let now = self.now();
        let Some(own) = self.own.get_mut(&segment) else { return };
        let stays = self.accelerator.status(own.memory).is_ok_and(|status| {
            let waits = matches!(status.condition, Condition::MoveAsked { .. }) && ticket.0 >= OWN_TICKETS;
            status.generation == own.place && (waits || matches!(status.condition, Condition::Active))
        });
        if stays && own.machine.state() == table::owner::State::Withdrawn {
            let outcome = Replacement::Preserved(Descriptor(u64::from(own.place)));
            own.machine.handle_notice(Notice::Replaced { ticket: Some(ticket), outcome }, now);
            self.act(segment);
        }
    }
}

impl Own {
    /// The right to touch it where it is, if it may be touched.
    pub(super) fn lend(&mut self, clock: Duration) -> Option<(Lease, Option<Place>)> {
        let (way, lease) = (self.way.as_mut(), self.machine.lease().ok());
        match (way, &lease) {
            (Some(way), Some(_)) => way.handle_begun(clock),
            (Some(way), None) => way.handle_wanted(),
            (None, _) => {}
        }
        lease.map(|lease| (lease, Some(Place::Own(self.memory, self.place))))
    }

    /// What an arrival at a new place means: after a question it is that question's answer.
    fn preserved(&mut self, generation: u32) -> Notice {
        self.heard = generation;
        let outcome = Replacement::Preserved(Descriptor(u64::from(generation)));
        Notice::Replaced { ticket: self.machine.taken(), outcome }
    }
}
