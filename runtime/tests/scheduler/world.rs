//! The model: ranks, their exporters and the network between them. One [`Step`] is one event; the checker sees each.

use windlass::scheduler::table::owner::State;
use windlass::scheduler::{Access, Descriptor, ImportAction, Notice, Place, Refusal, RegionAction};

use crate::checker::{Checker, Seen, Violation};
use crate::exporter::{Cell, Exporter};
use crate::rank::{Message, Outcome, Rank, Request, Setup};

pub(crate) const OPERATION_TIMEOUT_NS: u64 = 1_000_000;

/// One thing that happens. What is not possible at its time does not happen.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Step {
    Deliver {
        from: u32,
        to: u32,
    },
    Notice {
        rank: u32,
    },
    Finish {
        rank: u32,
        request: usize,
        fails: bool,
    },
    Sum {
        rank: u32,
    },
    Commit {
        rank: u32,
        target: u32,
    },
    Work {
        rank: u32,
        task: usize,
    },
    /// A write reaches the target's memory.
    Place {
        from: u32,
        to: u32,
    },
    /// The sender is told that its write is done.
    Complete {
        from: u32,
        to: u32,
    },
    FinishMove {
        owner: u32,
    },
    Replace {
        owner: u32,
        is_lost: bool,
    },
    Learn {
        rank: u32,
        dead: u32,
    },
    /// Time passes until something is due.
    Tick,
    Ask {
        owner: u32,
        again: bool,
        patience_ns: u64,
    },
    Announce {
        owner: u32,
    },
    Revoke {
        owner: u32,
    },
    MoveUnasked {
        owner: u32,
    },
    Free {
        owner: u32,
    },
    /// The exporter never says anything again.
    Abandon {
        owner: u32,
    },
    BreakLink {
        from: u32,
        to: u32,
    },
    Crash {
        rank: u32,
    },
    Stop {
        rank: u32,
    },
    Wake {
        rank: u32,
    },
}

#[derive(Clone, Debug, Hash)]
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) ranks: Vec<Rank>,
    pub(crate) exporters: Vec<Exporter>,
    pub(crate) checker: Checker,
    pub(crate) now_ns: u64,
    /// The weights each cell began with, summed over the ranks.
    pub(crate) sums: Vec<Cell>,
    pub(crate) violation: Option<String>,
    /// Something happened after which an operation may fail.
    pub(crate) may_fail: bool,
}

impl World {
    pub(crate) fn new(setup: Setup, mut weight: impl FnMut() -> u64) -> Self {
        let cells = (setup.ranks * setup.chunks) as usize;
        let mut exporters = Vec::new();
        let mut sums = vec![[0u64; 2]; cells];
        for rank in 0..setup.ranks {
            let memory: Vec<Cell> = (0..cells).map(|_| [weight(), weight()]).collect();
            for (sum, cell) in sums.iter_mut().zip(&memory) {
                *sum = [sum[0].wrapping_add(cell[0]), sum[1].wrapping_add(cell[1])];
            }
            exporters.push(Exporter::new(rank, memory));
        }
        let ranks: Vec<Rank> = (0..setup.ranks).map(|id| Rank::new(id, &setup)).collect();
        let checker = Checker::new(setup.ranks);
        let mut world =
            Self { setup, ranks, exporters, checker, now_ns: 0, sums, violation: None, may_fail: false };
        (0..world.setup.ranks).for_each(|rank| world.drain(rank));
        world
    }

    pub(crate) fn see(&mut self, seen: Seen) {
        if let Err(Violation { invariant, what }) = self.checker.see(&seen) {
            self.violation.get_or_insert(format!("{invariant}: {what}"));
        }
    }

    pub(crate) fn rank(&mut self, rank: u32) -> &mut Rank {
        &mut self.ranks[rank as usize]
    }

    pub(crate) fn exporter(&mut self, owner: u32) -> &mut Exporter {
        &mut self.exporters[owner as usize]
    }

    pub(crate) fn cell(&self, slice: u32, chunk: u32) -> usize {
        (slice * self.setup.chunks + chunk) as usize
    }

    /// One access. None if what is there is not there any more.
    pub(crate) fn touch(&mut self, by: u32, owner: u32, place: u64, cell: usize) -> Option<&mut Cell> {
        let cut = by != owner && self.ranks[by as usize].is_cut[owner as usize];
        if cut || !self.exporters[owner as usize].places[place as usize].is_alive {
            return None;
        }
        self.see(Seen::Touched { by, owner, place });
        self.landing(owner, place, cell)
    }

    /// What the network writes, which its sender need not map any more. None if there is nothing to write to.
    pub(crate) fn land(&mut self, from: u32, to: u32, place: u64, cell: usize) -> Option<&mut Cell> {
        let is_alive = self.exporters[to as usize].places[place as usize].is_alive;
        if is_alive {
            self.see(Seen::Landed { from, owner: to, place });
        }
        is_alive.then_some(())?;
        self.landing(to, place, cell)
    }

    fn landing(&mut self, owner: u32, place: u64, cell: usize) -> Option<&mut Cell> {
        Some(&mut self.exporters[owner as usize].places[place as usize].cells[cell])
    }

    fn send(&mut self, from: u32, to: u32, message: Message) {
        if self.ranks[to as usize].is_alive {
            self.rank(to).inbox[from as usize].push_back(message);
        }
    }

    /// Does what the rank's machines ask for.
    pub(crate) fn drain(&mut self, rank: u32) {
        while let Some(action) = self.rank(rank).region.poll_action() {
            self.region_action(rank, action);
        }
        for owner in 0..self.setup.ranks {
            while let Some(action) =
                self.rank(rank).imports[owner as usize].as_mut().and_then(|import| import.poll_action())
            {
                self.import_action(rank, owner, action);
            }
        }
    }

    fn region_action(&mut self, rank: u32, action: RegionAction) {
        match action {
            RegionAction::Register { descriptor, .. } => {
                self.rank(rank).requests.push(Request::Register(descriptor));
            }
            RegionAction::Deregister => self.rank(rank).requests.push(Request::Deregister),
            RegionAction::Break { rank: peer } => self.rank(rank).requests.push(Request::Break(peer)),
            RegionAction::Advertise { to, generation, descriptor } => {
                // A broken queue pair is set up anew by its owner, not by an advertisement that was sent before it broke.
                self.rank(to).is_cut[rank as usize] = false;
                let watermark = self.rank(rank).receipts[to as usize].handle_break();
                self.send(rank, to, Message::Advertise { generation, descriptor, watermark });
            }
            RegionAction::Announce { to, descriptor } => self.send(rank, to, Message::Announce(descriptor)),
            RegionAction::Withdraw { to, generation } => {
                self.see(Seen::Withdrew { owner: rank, from: to });
                self.send(rank, to, Message::Withdraw(generation));
            }
            RegionAction::End { to, .. } => self.send(rank, to, Message::End),
            RegionAction::Resume { generation } => {
                let is_calm = self.exporters[rank as usize].notices.is_empty();
                self.see(Seen::Began { owner: rank, generation: generation.0, is_calm });
                let own = self.rank(rank).receipts[rank as usize].handle_break();
                let said = self.rank(rank).delivered(rank, own, true);
                self.expect(rank, said);
            }
            RegionAction::Acknowledge { ticket } => {
                let (now, place) = (self.now_ns, self.ranks[rank as usize].place);
                self.see(Seen::Acknowledged { owner: rank, ticket: ticket.0, place });
                let exporter = self.exporter(rank);
                // Asked and answered while the memory was already under way: it moves on from where it is now.
                let again = exporter.asked.iter().any(|(asked, _, again)| *asked == ticket && *again);
                exporter.asked.retain(|(asked, _, _)| *asked != ticket);
                if !exporter.has_ended && !exporter.is_revoked {
                    exporter.granted.push(ticket);
                }
                if again {
                    self.ask(rank, now + 300, false);
                }
            }
            RegionAction::Refuse { ticket, refusal } => {
                let waiting_on = match refusal {
                    Refusal::TimedOut { waiting_on } => Some(waiting_on),
                    _ => None,
                };
                self.exporter(rank).asked.retain(|(asked, _, _)| *asked != ticket);
                self.see(Seen::Refused { owner: rank, ticket: ticket.0, waiting_on });
            }
            RegionAction::Fail(_) => self.fail(rank, "its region ended"),
            other => self.violation = Some(format!("unknown action {other:?}")),
        }
    }

    fn import_action(&mut self, rank: u32, owner: u32, action: ImportAction) {
        match action {
            ImportAction::Map(descriptor) => self.rank(rank).requests.push(Request::Map(owner, descriptor)),
            ImportAction::Unmap(descriptor) => {
                self.rank(rank).requests.push(Request::Unmap(owner, descriptor))
            }
            ImportAction::Answer(generation) => {
                let summed = self.ranks[rank as usize].summed;
                self.see(Seen::Answered { by: rank, owner });
                self.send(rank, owner, Message::Withdrawn { generation, summed });
            }
            ImportAction::Resume(generation) => {
                self.see(Seen::Resumed { by: rank, owner, generation: generation.0 });
                let watermark = self.ranks[rank as usize].advertised[owner as usize].1;
                let said = self.rank(rank).delivered(owner, watermark, true);
                self.expect(rank, said);
            }
            ImportAction::Fail(_) if self.ranks[rank as usize].uses(owner) => {
                self.fail(rank, "a region that it uses ended");
            }
            ImportAction::Fail(_) => {}
            other => self.violation = Some(format!("unknown action {other:?}")),
        }
    }

    pub(crate) fn expect(&mut self, rank: u32, said: Result<(), String>) {
        if let Err(what) = said {
            self.see(Seen::Stale { rank, what });
        }
    }

    /// The operation fails: its memory is given back when nobody can touch it, which freeing the region finds out.
    pub(crate) fn fail(&mut self, rank: u32, why: &'static str) {
        if self.ranks[rank as usize].outcome.is_some() {
            return;
        }
        if !self.may_fail {
            self.violation.get_or_insert(format!("everything ends well without a cause: rank {rank}: {why}"));
        }
        self.rank(rank).outcome = Some(Outcome::Failed(why));
        self.rank(rank).reduction.handle_end();
        if !self.exporters[rank as usize].has_ended {
            self.free(rank);
        }
    }

    fn free(&mut self, owner: u32) {
        let deadline_ns = self.now_ns + 400;
        self.exporter(owner).free(deadline_ns);
        self.asked(owner, deadline_ns);
    }

    fn ask(&mut self, owner: u32, deadline_ns: u64, again: bool) {
        self.exporter(owner).ask(deadline_ns, again);
        self.asked(owner, deadline_ns);
    }

    /// The ticket is the rank's to answer once the notice has reached it.
    fn asked(&mut self, owner: u32, deadline_ns: u64) {
        let ticket = self.exporters[owner as usize].asked.last().expect("it was just asked").0;
        self.see(Seen::Asked { owner, ticket: ticket.0, deadline_ns });
        self.see(Seen::Stirred { owner });
    }

    pub(crate) fn notice(&mut self, rank: u32) {
        let notice = self.exporter(rank).notices.remove(0);
        if !matches!(notice, Notice::Announce(_)) {
            self.see(Seen::Stirred { owner: rank });
        }
        let now = self.now_ns;
        self.rank(rank).region.handle_notice(notice, now);
        self.drain(rank);
    }

    pub(crate) fn deliver(&mut self, from: u32, to: u32) {
        let Some(message) = self.rank(to).inbox[from as usize].pop_front() else { return };
        let now = self.now_ns;
        let said = self.hear(from, to, message, now);
        self.expect(to, said);
        self.drain(to);
        self.end_if_done(to);
    }

    fn hear(&mut self, from: u32, to: u32, message: Message, now: u64) -> Result<(), String> {
        let rank = self.rank(to);
        let import = rank.imports[from as usize].as_mut();
        match (message, import) {
            (Message::Withdrawn { generation, summed }, _) => {
                assert!(summed <= self.setup.chunks, "a watermark within the stream");
                self.rank(to).region.handle_withdrawn(from, generation, now).map_err(|s| s.to_string())
            }
            (Message::Arrived { chunk, generation }, _) => {
                self.arrive(from, to, chunk, generation);
                Ok(())
            }
            (Message::Delivered(watermark), _) => rank.delivered(from, watermark, false),
            (Message::Reset, _) => {
                let watermark = rank.receipts[from as usize].handle_break();
                self.send(to, from, Message::ResetDone(watermark));
                Ok(())
            }
            (Message::ResetDone(watermark), _) => {
                rank.is_down[from as usize] = false;
                rank.delivered(from, watermark, true)
            }
            (Message::Advertise { generation, descriptor, watermark }, Some(import)) => {
                let heard = import.handle_advertise(generation, descriptor).map_err(|s| s.to_string());
                if heard.is_ok() {
                    rank.advertised[from as usize] = (descriptor.0, watermark);
                }
                heard
            }
            (Message::Withdraw(generation), Some(import)) => {
                import.handle_withdraw(generation).map_err(|s| s.to_string())
            }
            (Message::Announce(descriptor), Some(import)) => {
                import.handle_announce(descriptor);
                Ok(())
            }
            (Message::End, Some(import)) => {
                import.handle_end();
                Ok(())
            }
            // The owner is known to be dead.
            (_, None) => Ok(()),
        }
    }

    /// Tells a writer how far its writes have come.
    pub(crate) fn acknowledge_delivery(&mut self, writer: u32, owner: u32) {
        let watermark = self.ranks[owner as usize].receipts[writer as usize].watermark();
        if writer == owner {
            let said = self.rank(owner).delivered(owner, watermark, false);
            self.expect(owner, said);
        } else {
            self.send(owner, writer, Message::Delivered(watermark));
        }
        self.end_if_done(owner);
    }

    pub(crate) fn end_if_done(&mut self, rank: u32) {
        let done = &self.ranks[rank as usize];
        if done.runs() && done.outcome.is_none() && done.is_delivered() {
            self.rank(rank).outcome = Some(Outcome::Success);
            self.see(Seen::Ended { rank });
        }
    }

    pub(crate) fn finish_request(&mut self, rank: u32, request: usize, fails: bool) {
        let now = self.now_ns;
        match self.rank(rank).requests.remove(request) {
            Request::Register(_) if fails => {
                while !self.exporters[rank as usize].notices.is_empty() {
                    self.notice(rank);
                }
                self.rank(rank).region.handle_unregistrable(12, now);
            }
            Request::Register(descriptor) => {
                self.rank(rank).place = descriptor.0;
                self.rank(rank).region.handle_registered(now);
            }
            Request::Deregister => {
                // It fences the NIC: what is on the wire finds no key.
                (0..self.setup.ranks).for_each(|from| self.drop_flights(from, rank));
                self.rank(rank).region.handle_deregistered(now);
            }
            Request::Map(owner, descriptor) => self.finish_map(rank, owner, descriptor, fails),
            Request::Unmap(owner, descriptor) => {
                self.see(Seen::Unmapped { by: rank, owner, place: descriptor.0 });
                if let Some(import) = self.rank(rank).imports[owner as usize].as_mut() {
                    import.handle_unmapped(descriptor);
                }
            }
            Request::Break(peer) => {
                self.drop_flights(peer, rank);
                self.rank(peer).is_cut[rank as usize] = true;
                self.rank(rank).region.handle_broken(peer, now);
            }
        }
        self.drain(rank);
    }

    fn finish_map(&mut self, rank: u32, owner: u32, descriptor: Descriptor, fails: bool) {
        if !fails {
            self.see(Seen::Mapped { by: rank, owner, place: descriptor.0 });
        }
        if let Some(import) = self.rank(rank).imports[owner as usize].as_mut() {
            if fails {
                import.handle_unmappable(descriptor, 12);
            } else {
                import.handle_mapped(descriptor);
            }
        }
    }

    /// What is on the wire from one rank to another is lost, but for half of the first write.
    pub(crate) fn drop_flights(&mut self, from: u32, to: u32) {
        let on_wire =
            self.ranks[from as usize].flights[to as usize].iter().find(|f| !f.is_placed && !f.is_dropped);
        if let Some(flight) = on_wire.cloned() {
            let value = self.value(from, flight.chunk, flight.from);
            let cell = self.cell(from, flight.chunk);
            if let (Some(value), Some(torn)) = (value, self.land(from, to, flight.place, cell)) {
                torn[0] = value[0];
            }
        }
        let flights = &mut self.rank(from).flights[to as usize];
        flights.iter_mut().filter(|f| !f.is_placed).for_each(|f| f.is_dropped = true);
        flights.retain(|f| f.lease.is_some());
    }

    /// What a commit reads.
    pub(crate) fn value(&self, rank: u32, chunk: u32, place: Place) -> Option<Cell> {
        match place {
            Place::Slot(slot) => Some(self.ranks[rank as usize].scratch[slot]),
            Place::Output => {
                let memory = &self.exporters[rank as usize].places[self.ranks[rank as usize].place as usize];
                memory.is_alive.then(|| memory.cells[self.cell(rank, chunk)])
            }
        }
    }

    /// By when time passes: the next moment at which a running rank has something to do.
    pub(crate) fn next_time(&self) -> Option<u64> {
        let running = self.ranks.iter().filter(|rank| rank.runs());
        let due = running.clone().filter_map(|rank| rank.region.deadline_ns());
        let operation = running.filter(|rank| rank.outcome.is_none()).map(|_| OPERATION_TIMEOUT_NS);
        due.chain(operation).min().map(|due| due.max(self.now_ns))
    }

    pub(crate) fn tick(&mut self) {
        let Some(now) = self.next_time() else { return };
        self.now_ns = now;
        let kept =
            |rank: &Rank| rank.region.state() == State::Withdrawn && rank.region.deadline_ns() <= Some(now);
        // An exporter that keeps the memory that long is a cause to fail.
        self.may_fail |= self.ranks.iter().any(kept);
        for rank in (0..self.setup.ranks).filter(|rank| self.ranks[*rank as usize].runs()).collect::<Vec<_>>()
        {
            while !self.exporters[rank as usize].notices.is_empty() {
                self.notice(rank);
            }
            self.rank(rank).region.handle_time(now);
            self.drain(rank);
            if now >= OPERATION_TIMEOUT_NS {
                self.fail(rank, "it timed out");
                while !self.exporters[rank as usize].notices.is_empty() {
                    self.notice(rank);
                }
            }
        }
        self.see(Seen::Time { now_ns: now });
    }

    pub(crate) fn exporter_step(&mut self, step: Step) {
        let now = self.now_ns;
        match step {
            Step::Ask { owner, again, patience_ns } => self.ask(owner, now + patience_ns, again),
            Step::Announce { owner } => self.exporter(owner).announce(),
            Step::FinishMove { owner } => {
                self.see(Seen::Stirred { owner });
                self.exporter(owner).finish_move();
            }
            Step::Replace { owner, is_lost } => {
                self.see(Seen::Stirred { owner });
                self.may_fail |= is_lost;
                self.exporter(owner).replace(is_lost);
            }
            Step::Revoke { owner } | Step::MoveUnasked { owner } => {
                // The wire tears before the memory dies.
                (0..self.setup.ranks).for_each(|from| self.drop_flights(from, owner));
                self.see(Seen::Stirred { owner });
                match step {
                    Step::Revoke { .. } => self.exporter(owner).revoke(),
                    _ => self.exporter(owner).move_unasked(),
                }
            }
            Step::Free { owner } => {
                self.may_fail = true;
                self.free(owner);
            }
            Step::Abandon { owner } => {
                self.may_fail = true;
                self.exporter(owner).is_gone = true;
            }
            _ => {}
        }
    }

    pub(crate) fn crash(&mut self, rank: u32) {
        self.may_fail = true;
        (0..self.setup.ranks).for_each(|to| self.drop_flights(rank, to));
        let dead = self.rank(rank);
        dead.is_alive = false;
        dead.tasks.clear();
        dead.requests.clear();
        dead.flights.iter_mut().for_each(|flights| flights.clear());
        dead.inbox.iter_mut().for_each(|inbox| inbox.clear());
        self.see(Seen::Crashed { rank });
    }

    pub(crate) fn learn(&mut self, rank: u32, dead: u32) {
        let now = self.now_ns;
        self.rank(rank).dead_peers[dead as usize] = true;
        self.rank(rank).inbox[dead as usize].clear();
        self.rank(rank).region.handle_death(dead, now);
        self.fail(rank, "a peer died");
        self.drain(rank);
    }

    pub(crate) fn is_key(&self, by: u32, owner: u32) -> bool {
        self.setup.access(by, owner) == Access::Key && by != owner
    }
}
