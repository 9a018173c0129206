//! What can happen next in the model, and the ranks' own steps: sums, commits, writes on the wire.

use windlass::scheduler::{Generation, Place};

use crate::checker::Seen;
use crate::exporter::Cell;
use crate::rank::{Flight, Hold, Message, Outcome, Task};
use crate::world::{OPERATION_TIMEOUT_NS, Step, World};

impl World {
    /// Everything that must happen sooner or later, as far as it is possible now. Faults and time are not among them.
    pub(crate) fn enabled(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for rank in 0..self.setup.ranks {
            let here = &self.ranks[rank as usize];
            steps.extend((0..here.requests.len()).map(|request| Step::Finish {
                rank,
                request,
                fails: false,
            }));
            steps.extend((0..here.tasks.len()).map(|task| Step::Work { rank, task }));
            steps.extend([Step::Notice { rank }, Step::Sum { rank }, Step::FinishMove { owner: rank }]);
            steps.push(Step::Replace { owner: rank, is_lost: false });
            for other in 0..self.setup.ranks {
                steps.push(Step::Deliver { from: other, to: rank });
                steps.push(Step::Commit { rank, target: other });
                steps.push(Step::Place { from: rank, to: other });
                steps.push(Step::Complete { from: rank, to: other });
                steps.push(Step::Learn { rank, dead: other });
            }
        }
        steps.retain(|step| self.is_possible(*step));
        steps
    }

    pub(crate) fn is_possible(&self, step: Step) -> bool {
        let rank_of = |rank: u32| &self.ranks[rank as usize];
        let exporter_of = |rank: u32| &self.exporters[rank as usize];
        let present = |owner: u32| !exporter_of(owner).has_ended && rank_of(owner).is_alive;
        match step {
            Step::Deliver { from, to } => rank_of(to).runs() && !rank_of(to).inbox[from as usize].is_empty(),
            Step::Notice { rank } => rank_of(rank).runs() && !exporter_of(rank).notices.is_empty(),
            Step::Finish { rank, request, .. } => {
                rank_of(rank).runs() && request < rank_of(rank).requests.len()
            }
            Step::Work { rank, task } => rank_of(rank).runs() && task < rank_of(rank).tasks.len(),
            Step::Sum { rank } => self.can_sum(rank),
            Step::Commit { rank, target } => self.can_commit(rank, target),
            Step::Place { from, to } => {
                rank_of(from).flights[to as usize].iter().any(|f| !f.is_placed && !f.is_dropped)
            }
            Step::Complete { from, to } => {
                rank_of(from).runs() && rank_of(from).flights[to as usize].iter().any(|f| f.lease.is_some())
            }
            Step::FinishMove { owner } => {
                present(owner) && !exporter_of(owner).granted.is_empty() && !exporter_of(owner).is_gone
            }
            Step::Replace { owner, .. } => {
                present(owner) && exporter_of(owner).is_revoked && !exporter_of(owner).is_gone
            }
            Step::Learn { rank, dead } => {
                let known = rank_of(rank).dead_peers[dead as usize];
                rank_of(rank).runs() && !rank_of(dead).is_alive && !known
            }
            Step::Tick => self.next_time().is_some_and(|time| time < OPERATION_TIMEOUT_NS),
            Step::Ask { owner, .. } | Step::Announce { owner } | Step::Free { owner } => {
                present(owner) && !exporter_of(owner).is_revoked && exporter_of(owner).asked.len() < 4
            }
            Step::Revoke { owner } | Step::MoveUnasked { owner } => {
                present(owner) && !exporter_of(owner).is_revoked
            }
            Step::Abandon { owner } => present(owner) && !exporter_of(owner).is_gone,
            Step::BreakLink { from, to } => {
                let live = rank_of(from).runs() && rank_of(to).is_alive;
                live && self.is_key(from, to) && !rank_of(from).is_down[to as usize]
            }
            Step::Crash { rank } | Step::Stop { rank } => rank_of(rank).runs() && self.setup.ranks > 1,
            Step::Wake { rank } => rank_of(rank).is_alive && rank_of(rank).is_stopped,
        }
    }

    /// Lets it happen, if it can.
    pub(crate) fn apply(&mut self, step: Step) -> bool {
        if !self.is_possible(step) {
            return false;
        }
        match step {
            Step::Deliver { from, to } => self.deliver(from, to),
            Step::Notice { rank } => self.notice(rank),
            Step::Finish { rank, request, fails } => {
                self.may_fail |= fails;
                self.finish_request(rank, request, fails);
            }
            Step::Sum { rank } => self.start_sum(rank),
            Step::Commit { rank, target } => self.start_commit(rank, target),
            Step::Work { rank, task } => self.work(rank, task),
            Step::Place { from, to } => self.place(from, to),
            Step::Complete { from, to } => self.complete(from, to),
            Step::Learn { rank, dead } => self.learn(rank, dead),
            Step::Tick => self.tick(),
            Step::BreakLink { from, to } => {
                self.drop_flights(from, to);
                self.rank(from).flights[to as usize].iter_mut().for_each(|f| f.is_lost_with_link = true);
                self.rank(from).is_down[to as usize] = true;
                self.rank(to).inbox[from as usize].push_back(Message::Reset);
            }
            Step::Crash { rank } => self.crash(rank),
            Step::Stop { rank } => {
                self.may_fail = true;
                self.rank(rank).is_stopped = true;
                self.see(Seen::Stopped { rank });
            }
            Step::Wake { rank } => self.wake(rank),
            other => self.exporter_step(other),
        }
        true
    }

    /// It first looks at what has happened meanwhile, but does not know how long it was stopped.
    fn wake(&mut self, rank: u32) {
        self.rank(rank).is_stopped = false;
        let now = self.now_ns;
        while !self.exporters[rank as usize].notices.is_empty() {
            self.notice(rank);
        }
        self.rank(rank).region.handle_time(now);
        self.drain(rank);
        self.see(Seen::Woke { rank });
        self.end_if_done(rank);
    }

    fn works(&self, rank: u32) -> bool {
        let here = &self.ranks[rank as usize];
        here.runs() && here.outcome.is_none() && here.tasks.len() < 3
    }

    fn can_sum(&self, rank: u32) -> bool {
        let here = &self.ranks[rank as usize];
        let summing = here.tasks.iter().any(|task| matches!(task, Task::Sum { .. }));
        self.works(rank) && !summing && here.reduction.poll_sum().is_some() && self.has_leases(rank, None)
    }

    fn can_commit(&self, rank: u32, target: u32) -> bool {
        let here = &self.ranks[rank as usize];
        self.works(rank)
            && !here.is_down[target as usize]
            && here.reduction.poll_commit(target as usize).is_some()
            && self.has_leases(rank, Some(target))
    }

    fn has_leases(&self, rank: u32, only: Option<u32>) -> bool {
        let here = &self.ranks[rank as usize];
        (0..self.setup.ranks).filter(|owner| only.is_none_or(|o| o == *owner)).all(|o| here.may_lease(o))
    }

    /// Tells the checker of everybody that a rank would have to wait for.
    pub(crate) fn observe_pauses(&mut self) {
        for rank in 0..self.setup.ranks {
            let here = &self.ranks[rank as usize];
            if !self.works(rank) || here.dead_peers.contains(&true) {
                continue;
            }
            for owner in 0..self.setup.ranks {
                if !self.ranks[rank as usize].may_lease(owner) {
                    self.see(Seen::Paused { by: rank, owner });
                }
            }
        }
    }

    fn take(&mut self, rank: u32, owner: u32) -> Hold {
        self.see(Seen::LeaseTaken { by: rank, owner });
        self.rank(rank).lease(owner).expect("it was seen to be possible")
    }

    fn put_back(&mut self, rank: u32, hold: Hold, worked: bool) {
        if !worked {
            self.rank(rank).broke(hold.owner, &hold.lease);
        }
        self.see(Seen::LeaseBack { by: rank, owner: hold.owner });
        let now = self.now_ns;
        self.rank(rank).give_back(hold.owner, hold.lease, now);
        self.drain(rank);
    }

    fn start_sum(&mut self, rank: u32) {
        let Some((chunk, place)) = self.ranks[rank as usize].reduction.poll_sum() else { return };
        let holds = (0..self.setup.ranks).map(|owner| self.take(rank, owner)).collect();
        self.rank(rank).reduction.handle_summing(chunk);
        self.rank(rank).tasks.push(Task::Sum { chunk, place, next: 0, sum: [0; 2], holds });
    }

    fn start_commit(&mut self, rank: u32, target: u32) {
        let Some((chunk, place)) = self.ranks[rank as usize].reduction.poll_commit(target as usize) else {
            return;
        };
        let hold = self.take(rank, target);
        let generation = hold.lease.generation();
        self.rank(rank).reduction.ledger_mut(target as usize).handle_started(chunk, generation);
        if self.is_key(rank, target) {
            let is_dropped = self.ranks[rank as usize].is_cut[target as usize];
            self.rank(rank).flights[target as usize].push_back(Flight {
                chunk,
                from: place,
                generation,
                place: hold.place,
                is_placed: false,
                is_dropped,
                is_lost_with_link: false,
                lease: Some(hold.lease),
            });
        } else {
            self.rank(rank).tasks.push(Task::Commit { target, chunk, place, hold, word: 0 });
        }
    }

    fn work(&mut self, rank: u32, task: usize) {
        let given_up = matches!(self.ranks[rank as usize].outcome, Some(Outcome::Failed(_)));
        match self.rank(rank).tasks.remove(task) {
            Task::Sum { chunk, place, next, sum, holds } => {
                let read = if given_up { None } else { self.read(rank, chunk, place, next, sum, &holds) };
                match read {
                    Some(sum) if next + 1 < self.setup.ranks => {
                        self.rank(rank).tasks.push(Task::Sum { chunk, place, next: next + 1, sum, holds });
                    }
                    Some(sum) => {
                        if let Place::Slot(slot) = place {
                            self.rank(rank).scratch[slot] = sum;
                        }
                        self.rank(rank).reduction.handle_summed(chunk);
                        self.rank(rank).summed = self.ranks[rank as usize].summed.max(chunk + 1);
                        holds.into_iter().for_each(|hold| self.put_back(rank, hold, true));
                    }
                    None => {
                        self.rank(rank).reduction.handle_broken(chunk);
                        let failed = |hold: &Hold| !given_up && hold.owner == next;
                        holds.into_iter().for_each(|hold| {
                            let worked = !failed(&hold);
                            self.put_back(rank, hold, worked);
                        });
                    }
                }
            }
            Task::Commit { target, chunk, place, hold, word } => {
                self.store(rank, Task::Commit { target, chunk, place, hold, word }, given_up);
            }
        }
    }

    /// Adds one rank's input. In place, the sum so far stands in this rank's own output, which is its input too.
    fn read(
        &mut self,
        rank: u32,
        chunk: u32,
        place: Place,
        next: u32,
        sum: Cell,
        holds: &[Hold],
    ) -> Option<Cell> {
        let cell = self.cell(rank, chunk);
        let hold = &holds[next as usize];
        let value = *self.touch(rank, next, hold.place, cell)?;
        if place != Place::Output {
            return Some(add(sum, value));
        }
        if next != rank {
            let own = holds[rank as usize].place;
            let output = self.touch(rank, rank, own, cell)?;
            *output = add(*output, value);
        }
        Some(sum)
    }

    /// Stores one word of a commit through a mapping; after the last, signals.
    fn store(&mut self, rank: u32, task: Task, given_up: bool) {
        let Task::Commit { target, chunk, place, hold, word } = task else { return };
        let cell = self.cell(rank, chunk);
        let value = if given_up { None } else { self.value(rank, chunk, place) };
        let stored = value.and_then(|value| {
            let at = hold.place;
            self.touch(rank, target, at, cell).map(|memory| memory[word] = value[word])
        });
        let ledger = self.rank(rank).reduction.ledger_mut(target as usize);
        match stored {
            Some(()) if word == 0 => {
                self.rank(rank).tasks.push(Task::Commit { target, chunk, place, hold, word: 1 });
            }
            Some(()) => {
                let said = ledger.handle_written(chunk).map_err(|stale| stale.to_string());
                self.rank(rank).reduction.handle_watermarks();
                self.expect(rank, said);
                let generation = hold.lease.generation();
                if rank == target {
                    self.arrive(rank, rank, chunk, generation);
                } else if self.ranks[target as usize].is_alive {
                    self.rank(target).inbox[rank as usize].push_back(Message::Arrived { chunk, generation });
                }
                self.put_back(rank, hold, true);
            }
            None => {
                let said = ledger.handle_failed(chunk).map_err(|stale| stale.to_string());
                self.expect(rank, said);
                self.put_back(rank, hold, given_up);
            }
        }
    }

    fn place(&mut self, from: u32, to: u32) {
        let flights = &mut self.rank(from).flights[to as usize];
        let Some(index) = flights.iter().position(|f| !f.is_placed && !f.is_dropped) else { return };
        let Flight { chunk, from: source, generation, place, .. } = flights[index].clone();
        let value = self.value(from, chunk, source);
        let cell = self.cell(from, chunk);
        let landed = value.and_then(|value| self.land(from, to, place, cell).map(|memory| *memory = value));
        let flights = &mut self.rank(from).flights[to as usize];
        (flights[index].is_placed, flights[index].is_dropped) = (landed.is_some(), landed.is_none());
        flights.retain(|flight| flight.lease.is_some() || !(flight.is_placed || flight.is_dropped));
        if landed.is_some() {
            self.arrive(from, to, chunk, generation);
        }
    }

    /// A chunk is in place; whether it counts depends on the generation that it was written under.
    pub(crate) fn arrive(&mut self, from: u32, to: u32, chunk: u32, generation: Generation) {
        let target = &mut self.ranks[to as usize];
        if target.is_alive && target.region.admits(from, generation) {
            let said =
                target.receipts[from as usize].handle_arrived(chunk).map_err(|stale| stale.to_string());
            self.expect(to, said);
            self.acknowledge_delivery(from, to);
        }
    }

    /// The sender's completion, which may come before the write has reached the memory, and whether or not it ever will.
    fn complete(&mut self, from: u32, to: u32) {
        let flights = &mut self.rank(from).flights[to as usize];
        let Some(index) = flights.iter().position(|f| f.lease.is_some()) else { return };
        let Some(lease) = flights[index].lease.take() else { return };
        let Flight { chunk, place, is_dropped, is_lost_with_link, .. } = flights[index].clone();
        flights.retain(|flight| flight.lease.is_some() || !(flight.is_placed || flight.is_dropped));
        let ledger = self.rank(from).reduction.ledger_mut(to as usize);
        let said = if is_dropped { ledger.handle_failed(chunk) } else { ledger.handle_written(chunk) };
        self.rank(from).reduction.handle_watermarks();
        self.expect(from, said.map_err(|stale| stale.to_string()));
        let hold = Hold { owner: to, lease, place };
        self.put_back(from, hold, !is_dropped || is_lost_with_link);
    }
}

fn add(a: Cell, b: Cell) -> Cell {
    [a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1])]
}
