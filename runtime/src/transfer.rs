//! Point-to-point messages: schedules of one step, numbered by (peer, tag, direction), apart from the collectives' order.
//!
//! The table is touched under the group's `transfers` lock, which is taken after the stream's, never before it.

use std::any::Any;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use windlass_collectives::model::DEPTH;
use windlass_collectives::{
    Algorithm, Call, Collective, Execution, Fingerprint, Geometry, Layout, Role, Schedule,
};
use windlass_transports::{Message, MessageId, Token};

use crate::engine::Status;
use crate::engine::wait::Waiter;
use crate::error::{Error, Problem};
use crate::group::{Group, STALL_AFTER, lock, to_the_end};
use crate::metrics::{self, Series};
use crate::progress::Kick;
use crate::request::{Checked, Key, RawRequest};

/// Bytes of a message's chunk: a large transfer is posted piece by piece, so that it can be matched and bounded like the rest.
const CHUNK_BYTES: u64 = 4 << 20;

/// What a call needs that does not depend on where its memory is: remembered for the next one like it.
#[derive(Debug)]
struct Plan {
    key: Key,
    tag: u32,
    checked: Checked,
    /// What sender and receiver share.
    fingerprint: [u64; 2],
    series: Series,
    schedule: Schedule,
    geometry: Geometry,
}

/// Names a transfer that was started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ticket {
    index: u32,
    serial: u64,
}

#[derive(Debug)]
struct Transfer {
    serial: u64,
    plan: Rc<Plan>,
    memory: *mut u8,
    /// Nobody waits in the call.
    asynchronous: bool,
    execution: Box<Execution>,
    sequence: u64,
    done: bool,
    waker: Option<Waker>,
    keep: Option<Box<dyn Any + Send>>,
    detached: bool,
    /// A thread waits for it, and may sleep.
    waited: bool,
    /// Whether, and when, its time began to be taken.
    started: Option<u64>,
    /// When somebody first found that it had to be waited for.
    since: Option<Instant>,
    reported: bool,
}

/// A transfer that has ended: to be counted at once, and settled when no lock is held.
pub(crate) struct Ended {
    pub(crate) series: Series,
    pub(crate) started: Option<u64>,
    pub(crate) waker: Option<Waker>,
    pub(crate) memory: Option<Box<dyn Any + Send>>,
}

/// A communicator's transfers under way.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    numbers: BTreeMap<(u32, u32, bool), u64>,
    table: Vec<Option<Transfer>>,
    plans: [Option<Rc<Plan>>; 16],
    /// Executions to use again, of receives and of sends: the steady state allocates nothing.
    spare: [Vec<Box<Execution>>; 2],
    serial: u64,
    open: usize,
}

// SAFETY: the raw pointers are those of operations that own or borrow their memory until they end; the counted plans are reached through
// the table alone, under its lock.
unsafe impl Send for Transfers {}

impl Plan {
    fn new(group: &Group, request: &RawRequest) -> Result<Self, Error> {
        let checked = request.check(group)?;
        let call = &checked.call;
        let bytes = call.data_type.size_bytes() as u64;
        let geometry = Geometry::new(Layout::parts(call.count, bytes, 1), CHUNK_BYTES, CHUNK_BYTES, DEPTH);
        let schedule =
            Schedule::new(call.collective, Algorithm::Pair, group.rank, group.ranks, call.root, false);
        let Ok(schedule) = schedule else {
            unreachable!("a pair serves send and recv on any number of ranks")
        };
        Ok(Self {
            key: request.key(),
            tag: request.tag,
            fingerprint: pair_fingerprint(call),
            series: Series::of(call.collective, call.count * bytes),
            schedule,
            geometry,
            checked,
        })
    }

    /// The peer's rank in the communicator.
    const fn peer(&self) -> u32 {
        self.checked.call.root
    }

    const fn operation(&self) -> &'static str {
        self.checked.call.collective.name()
    }

    const fn sends(&self) -> bool {
        matches!(self.checked.call.collective, Collective::Send)
    }
}

impl Transfers {
    /// The plan of a request that is right.
    fn plan(&mut self, group: &Group, request: &RawRequest) -> Result<Rc<Plan>, Error> {
        let key = request.key();
        let place = &mut self.plans[key.place()];
        let plan = match place {
            Some(plan) if plan.key == key && plan.tag == request.tag => plan,
            _ => place.insert(Rc::new(Plan::new(group, request)?)),
        };
        request.check_memory(&plan.checked)?;
        if crate::device::address::decode(request.output).is_some() {
            let (operation, problem) = (plan.operation(), Problem::OnDevice);
            return Err(Error::InvalidArgument { operation, argument: "the buffer", problem });
        }
        Ok(Rc::clone(plan))
    }

    fn start(&mut self, group: &Group, request: &RawRequest, asynchronous: bool) -> Result<Ticket, Error> {
        group.still_usable()?;
        let plan = self.plan(group, request)?;
        let memory = if plan.sends() { request.input.cast_mut() } else { request.output };
        let number = self.numbers.entry((plan.peer(), plan.tag, plan.sends())).or_default();
        let sequence = *number;
        *number += 1;
        let execution = match self.spare[usize::from(plan.sends())].pop() {
            Some(mut execution) => {
                execution.restart(&plan.schedule, &plan.geometry);
                execution
            }
            None => Box::new(Execution::new(plan.schedule, plan.geometry.clone())),
        };
        self.serial += 1;
        let index = self.table.iter().position(Option::is_none).unwrap_or(self.table.len());
        let transfer = Transfer {
            serial: self.serial,
            started: metrics::begin(sequence, &plan.series),
            plan,
            memory,
            asynchronous,
            execution,
            sequence,
            done: false,
            waker: None,
            keep: None,
            detached: false,
            waited: !asynchronous,
            since: None,
            reported: false,
        };
        if index == self.table.len() {
            self.table.push(Some(transfer));
        } else {
            self.table[index] = Some(transfer);
        }
        self.open += 1;
        let ticket = Ticket { index: index as u32, serial: self.serial };
        self.pump(group, ticket.index);
        Ok(ticket)
    }

    /// Posts what a transfer may post.
    fn pump(&mut self, group: &Group, index: u32) {
        let Some(Some(transfer)) = self.table.get_mut(index as usize) else { return };
        let plan = &*transfer.plan;
        while let Some(task) = transfer.execution.poll(1) {
            let piece = transfer.execution.geometry().range_piece(Role::Input, 0, 1, task.first);
            let id = MessageId {
                communicator: group.id,
                tag: plan.tag,
                sequence: transfer.sequence,
                label: 0,
                chunk: task.first,
            };
            let message = Message { id, fingerprint: plan.fingerprint, bytes: piece.bytes as usize };
            let token = group.transfer_token(index, task.first);
            let address = transfer.memory.wrapping_add(piece.offset as usize);
            group.job.post(plan.sends(), group.members[plan.peer() as usize], &message, address, token);
        }
    }

    /// A message of a transfer is complete. Says what has ended with it.
    pub(crate) fn delivered(&mut self, group: &Group, token: Token) -> Option<Ended> {
        let (index, chunk) = Group::split_transfer(token);
        let transfer = self.table.get_mut(index as usize)?.as_mut()?;
        transfer.execution.complete(0, chunk..chunk + 1);
        if !transfer.execution.is_done() {
            self.pump(group, index);
            return None;
        }
        transfer.done = true;
        if transfer.asynchronous {
            group.detached.fetch_sub(1, Ordering::AcqRel);
        }
        let ended = Ended {
            series: transfer.plan.series,
            started: transfer.started,
            waker: transfer.waker.take(),
            memory: transfer.keep.take(),
        };
        if transfer.detached {
            drop(self.free(group, index));
        }
        Some(ended)
    }

    pub(crate) fn mismatched(&self, group: &Group, token: Token, peer: u32, theirs: &Message) -> Error {
        let (index, _) = Group::split_transfer(token);
        let (sequence, ours) = match self.table.get(index as usize) {
            Some(Some(t)) => (t.sequence, t.plan.checked.call.fingerprint()),
            _ => (0, Fingerprint::default()),
        };
        let theirs = Fingerprint { what: theirs.fingerprint[0], count: theirs.fingerprint[1] };
        Error::Mismatch { communicator: group.id, sequence, ours, theirs, rank: peer }
    }

    /// Forgets a transfer and withdraws what it still has under way: its memory is about to be given back. Returns the
    /// memory it kept, to be dropped when no lock is held.
    #[must_use]
    fn free(&mut self, group: &Group, index: u32) -> Option<Box<dyn Any + Send>> {
        let transfer = self.table.get_mut(index as usize)?.take()?;
        self.open -= 1;
        if !transfer.done {
            for (_, chunk) in transfer.execution.in_flight() {
                group.job.withdraw(group.transfer_token(index, chunk));
            }
            if transfer.asynchronous {
                group.detached.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.spare[usize::from(transfer.plan.sends())].push(transfer.execution);
        transfer.keep
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Transfer> {
        self.table.get_mut(ticket.index as usize)?.as_mut().filter(|t| t.serial == ticket.serial)
    }

    /// Whether a finished transfer has not been collected by the thread that waits for it.
    fn has_ended(&self) -> bool {
        self.table.iter().flatten().any(|t| t.done && t.waited)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.table.iter().flatten().all(|t| t.done)
    }

    /// The communicator has failed: forgets what nobody waits for. Who waits for a transfer withdraws it himself, before its
    /// memory is his again. Returns whom to wake and what to drop when no lock is held.
    pub(crate) fn abandon(&mut self, group: &Group) -> (Vec<Waker>, Vec<Box<dyn Any + Send>>) {
        let (mut wakers, mut memory) = (Vec::new(), Vec::new());
        for index in 0..self.table.len() as u32 {
            let Some(transfer) = &mut self.table[index as usize] else { continue };
            wakers.extend(transfer.waker.take());
            if transfer.detached {
                memory.extend(self.free(group, index));
            }
        }
        (wakers, memory)
    }

    /// The transfer that is late, in words and numbers, if one is.
    fn late(&mut self, group: &Group) -> Option<Error> {
        let config = &group.job.config;
        let now = group.job.now();
        for transfer in self.table.iter_mut().flatten().filter(|t| !t.done) {
            let after = now.duration_since(*transfer.since.get_or_insert(now));
            let peer = group.members[transfer.plan.peer() as usize];
            let (operation, sequence) = (transfer.plan.operation(), transfer.sequence);
            if after >= STALL_AFTER
                && let Some((rank, cause)) = group.job.culprit(&[peer], &group.members)
            {
                return Some(Error::PeerFailed { rank, cause, operation, sequence, communicator: group.id });
            }
            if after >= config.timeout {
                let waiting_on = vec![peer];
                return Some(Error::TimedOut {
                    operation,
                    sequence,
                    communicator: group.id,
                    waiting_on,
                    after,
                });
            }
            if !config.report_after.is_zero() && after >= config.report_after && !transfer.reported {
                transfer.reported = true;
                crate::error::report(format_args!(
                    "rank {} has waited {after:.1?} in {operation} #{sequence} (tag {}) of communicator {} for rank {peer}",
                    group.job.rank, transfer.plan.tag, group.id
                ));
            }
        }
        None
    }
}

/// What sender and receiver of a message share.
fn pair_fingerprint(call: &Call) -> [u64; 2] {
    let print = Call { collective: Collective::Send, root: 0, ..*call }.fingerprint();
    [print.what, print.count]
}

impl Group {
    /// Starts a transfer.
    pub(crate) fn start_transfer(&self, request: &RawRequest, asynchronous: bool) -> Result<Ticket, Error> {
        if !asynchronous {
            return lock(&self.transfers).start(self, request, false);
        }
        self.job.start_progress()?;
        self.detached.fetch_add(1, Ordering::AcqRel);
        let started = lock(&self.transfers).start(self, request, true);
        if started.is_err() {
            self.detached.fetch_sub(1, Ordering::AcqRel);
        }
        self.job.kick_progress(Kick::Soon);
        started
    }

    /// Moves messages, if any are under way. Whether anything moved.
    pub(crate) fn drive_transfers(&self) -> bool {
        !lock(&self.transfers).is_idle() && self.deliver_transfers()
    }

    fn deliver_transfers(&self) -> bool {
        match self.try_deliver() {
            Ok(moved) => moved,
            Err(error) => {
                self.fail(error, true);
                true
            }
        }
    }

    /// Whether a transfer has ended, and how.
    fn transfer_result(&self, ticket: Ticket) -> Option<Result<(), Error>> {
        let mut transfers = lock(&self.transfers);
        let ended = transfers.find(ticket).is_none_or(|t| t.done);
        let result = if ended { Ok(()) } else { Err(self.failure()?) };
        // What it kept is nothing: a transfer that is asked for has not been detached.
        drop(transfers.free_if(self, ticket));
        Some(result)
    }

    /// Waits for a transfer that somebody else may have driven so far, driving it.
    pub(crate) fn wait_for_transfer(&self, ticket: Ticket) -> Result<(), Error> {
        to_the_end(self.wait_for_transfer_with(ticket, Waiter::new(&self.job)))
    }

    /// The same as long as `waiter` does; `None` when it has given up.
    pub(crate) fn wait_for_transfer_with(&self, ticket: Ticket, waiter: Waiter) -> Option<Result<(), Error>> {
        if let Some(transfer) = lock(&self.transfers).find(ticket) {
            transfer.waited = true;
        }
        self.finish_transfer_with(ticket, waiter)
    }

    /// Runs a transfer to its end.
    pub(crate) fn finish_transfer(&self, ticket: Ticket) -> Result<(), Error> {
        to_the_end(self.finish_transfer_with(ticket, Waiter::new(&self.job)))
    }

    /// The same as long as `waiter` does; `None` when it has given up.
    pub(crate) fn finish_transfer_with(
        &self,
        ticket: Ticket,
        mut waiter: Waiter,
    ) -> Option<Result<(), Error>> {
        loop {
            let moved = self.deliver_transfers();
            if let Some(result) = self.transfer_result(ticket) {
                return Some(result);
            }
            if moved {
                waiter.moved(&self.job);
            } else if !waiter.pause(self, false) {
                self.job.kick_progress(Kick::Soon);
                return None;
            }
        }
    }

    /// Starts a transfer and drives it for `time` at most: what has not ended by then goes on as if nobody had waited.
    pub(crate) fn run_transfer_for(
        &self,
        request: &RawRequest,
        time: Duration,
    ) -> Result<Option<Ticket>, Error> {
        let ticket = self.start_transfer(request, false)?;
        if let Some(result) = self.finish_transfer_with(ticket, Waiter::limited(&self.job, time)) {
            return result.map(|()| None);
        }
        self.let_go(|| {
            let mut transfers = lock(&self.transfers);
            if let Some(transfer) = transfers.find(ticket).filter(|transfer| !transfer.done) {
                transfer.asynchronous = true;
                self.detached.fetch_add(1, Ordering::AcqRel);
            }
        })?;
        Ok(Some(ticket))
    }

    /// Polls a transfer.
    pub(crate) fn poll_transfer(&self, ticket: Ticket, context: &Context<'_>) -> Poll<Result<(), Error>> {
        self.drive_transfers();
        if let Some(result) = self.transfer_result(ticket) {
            return Poll::Ready(result);
        }
        if let Some(transfer) = lock(&self.transfers).find(ticket) {
            transfer.waker = Some(context.waker().clone());
        }
        // It may have ended between the look and the waker's place.
        if let Some(result) = self.transfer_result(ticket) {
            return Poll::Ready(result);
        }
        self.job.kick_progress(Kick::Soon);
        Poll::Pending
    }

    /// Keeps a transfer's memory until it ends; nobody will ask for the result.
    pub(crate) fn detach_transfer(&self, ticket: Ticket, memory: Box<dyn Any + Send>) {
        let mut transfers = lock(&self.transfers);
        // Asked under the lock: a failure that comes later finds the transfer detached and frees it.
        let failed = self.failure().is_some();
        match transfers.find(ticket) {
            Some(transfer) if !transfer.done && !failed => {
                transfer.keep = Some(memory);
                transfer.detached = true;
                transfer.waker = None;
            }
            _ => {
                let kept = transfers.free_if(self, ticket);
                drop(transfers);
                drop((kept, memory));
            }
        }
    }

    /// Gives up in time, and reports.
    pub(crate) fn overdue_transfers(&self) {
        let late = lock(&self.transfers).late(self);
        if let Some(error) = late {
            self.fail(error, true);
        }
    }

    /// Whether anything is under way that nobody waits for.
    pub(crate) fn has_pending(&self) -> bool {
        let transfers = !lock(&self.transfers).is_idle();
        transfers || self.with_stream(|s| s.has_work() && s.waiters == 0)
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire) > 0
    }

    /// Whether a waiter has something to do, asked just before it sleeps.
    pub(crate) fn stirs(&self) -> bool {
        self.failure().is_some()
            || self.try_drive() == Status::Moved
            || self.drive_transfers()
            || lock(&self.transfers).has_ended()
    }
}

impl Transfers {
    #[must_use]
    fn free_if(&mut self, group: &Group, ticket: Ticket) -> Option<Box<dyn Any + Send>> {
        self.find(ticket)?;
        self.free(group, ticket.index)
    }
}

impl Group {
    /// Whether a transfer has ended.
    pub(crate) fn transfer_ended(&self, ticket: Ticket) -> bool {
        lock(&self.transfers).find(ticket).is_none_or(|t| t.done)
    }
}
