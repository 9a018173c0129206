//! Point-to-point messages: schedules of one step, numbered by (peer, tag, direction), apart from the collectives' order.
//!
//! A call posts one message or several, an [`Exchange`]: all of them before anybody waits for one, receives first, so that no order of
//! peers stands still.
//!
//! The tables are touched under the group's `transfers` lock, which is taken after the stream's, never before it.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use windlass_collectives::model::DEPTH;
use windlass_collectives::{Algorithm, Call, Collective, Execution, Fingerprint, Geometry, Layout, Schedule};
use windlass_transports::{Message, MessageId, Token};

use crate::engine::Status;
use crate::engine::wait::Waiter;
use crate::error::Error;
use crate::group::{Group, LOOK_AGAIN, STALL_AFTER, lock, to_the_end};
use crate::progress::Kick;

/// Bytes of a message's chunk: a large transfer is posted piece by piece, so that it can be matched and bounded like the rest.
const CHUNK_BYTES: u64 = 4 << 20;

/// A message asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) call: Call,
    /// The peer's rank in the communicator.
    pub(crate) peer: u32,
    pub(crate) tag: u32,
    pub(crate) memory: *mut u8,
    /// How long it may take, if not as long as the configuration says.
    pub(crate) timeout: Option<Duration>,
}

/// Names an exchange that was started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ticket {
    index: u32,
    serial: u64,
}

/// One message of an exchange.
#[derive(Debug)]
struct Transfer {
    exchange: u32,
    /// The next message of the same exchange.
    next: Option<u32>,
    request: Request,
    execution: Box<Execution>,
    sequence: u64,
    done: bool,
}

/// The messages of one call, which ends with the last of them.
#[derive(Debug)]
struct Exchange {
    serial: u64,
    first: Option<u32>,
    /// Messages that are not done.
    left: u32,
    waker: Option<Waker>,
    keep: Option<Box<dyn Any + Send>>,
    /// Nobody waits in the call.
    asynchronous: bool,
    detached: bool,
    /// A thread waits for it, and may sleep.
    waited: bool,
    since: Instant,
    reported: bool,
}

/// A message that is done: to be counted at once, and what ended with it settled when no lock is held.
pub(crate) struct Ended {
    pub(crate) call: Call,
    pub(crate) elapsed: Duration,
    pub(crate) waker: Option<Waker>,
    pub(crate) memory: Option<Box<dyn Any + Send>>,
}

/// A communicator's messages under way.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    numbers: BTreeMap<(u32, u32, bool), u64>,
    exchanges: Vec<Option<Exchange>>,
    table: Vec<Option<Transfer>>,
    /// Executions to use again: the steady state allocates nothing.
    spare: Vec<Box<Execution>>,
    serial: u64,
    /// Messages that are not done.
    left: usize,
}

// SAFETY: the raw pointers are those of operations that own or borrow their memory until they end.
unsafe impl Send for Transfers {}

/// The first free place of a table, which grows when there is none.
fn place<T>(table: &mut Vec<Option<T>>) -> u32 {
    let index = table.iter().position(Option::is_none).unwrap_or(table.len());
    if index == table.len() {
        table.push(None);
    }
    index as u32
}

impl Transfers {
    fn start(&mut self, group: &Group, requests: &[Request], asynchronous: bool) -> Result<Ticket, Error> {
        group.still_usable()?;
        self.serial += 1;
        let exchange = place(&mut self.exchanges);
        let mut first = None;
        for request in requests.iter().rev() {
            first = Some(self.enter(group, *request, exchange, first));
        }
        self.exchanges[exchange as usize] = Some(Exchange {
            serial: self.serial,
            first,
            left: requests.len() as u32,
            waker: None,
            keep: None,
            asynchronous,
            detached: false,
            waited: false,
            since: group.job.now(),
            reported: false,
        });
        // Numbers follow the order of the calls, which is that of the list.
        let mut at = first;
        while let Some(transfer) = at.and_then(|index| self.table[index as usize].as_mut()) {
            let Request { call, peer, tag, .. } = transfer.request;
            let number = self.numbers.entry((peer, tag, call.collective == Collective::Send)).or_default();
            transfer.sequence = *number;
            *number += 1;
            at = transfer.next;
        }
        for sends in [false, true] {
            let mut at = first;
            while let Some(index) = at
                && let Some(transfer) = &self.table[index as usize]
            {
                at = transfer.next;
                if (transfer.request.call.collective == Collective::Send) == sends {
                    self.pump(group, index);
                }
            }
        }
        if requests.is_empty() && asynchronous {
            group.detached.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(Ticket { index: exchange, serial: self.serial })
    }

    /// Gives a message its place in the table.
    fn enter(&mut self, group: &Group, request: Request, exchange: u32, next: Option<u32>) -> u32 {
        let Call { collective, count, data_type, .. } = request.call;
        let layout = Layout::parts(count, data_type.size_bytes() as u64, 1);
        let geometry = Geometry::new(layout, CHUNK_BYTES, CHUNK_BYTES, DEPTH);
        let schedule =
            Schedule::new(collective, Algorithm::Pair, group.rank, group.ranks, request.peer, false);
        let Ok(schedule) = schedule else {
            unreachable!("a pair serves send and recv on any number of ranks")
        };
        let execution = match self.spare.pop() {
            Some(mut execution) => {
                execution.restart(schedule, geometry);
                execution
            }
            None => Box::new(Execution::new(schedule, geometry)),
        };
        let index = place(&mut self.table);
        self.table[index as usize] =
            Some(Transfer { exchange, next, request, execution, sequence: 0, done: false });
        self.left += 1;
        index
    }

    /// Posts what a message may post.
    fn pump(&mut self, group: &Group, index: u32) {
        let Some(Some(transfer)) = self.table.get_mut(index as usize) else { return };
        let Request { call, peer, tag, memory, .. } = transfer.request;
        while let Some(task) = transfer.execution.poll(1) {
            let piece = transfer.execution.geometry().range_piece(
                windlass_collectives::Role::Input,
                0,
                1,
                task.first,
            );
            let id = MessageId {
                communicator: group.id,
                tag,
                sequence: transfer.sequence,
                label: 0,
                chunk: task.first,
            };
            let message = Message { id, fingerprint: pair_fingerprint(&call), bytes: piece.bytes as usize };
            let token = group.transfer_token(index, task.first);
            let sends = call.collective == Collective::Send;
            let address = memory.wrapping_add(piece.offset as usize);
            group.job.post(sends, group.members[peer as usize], &message, address, token);
        }
    }

    /// A chunk is complete. Says what has ended with it.
    pub(crate) fn delivered(&mut self, group: &Group, token: Token) -> Option<Ended> {
        let (index, chunk) = Group::split_transfer(token);
        let transfer = self.table.get_mut(index as usize)?.as_mut()?;
        transfer.execution.complete(0, chunk..chunk + 1);
        if !transfer.execution.is_done() {
            self.pump(group, index);
            return None;
        }
        transfer.done = true;
        self.left -= 1;
        let (call, at) = (transfer.request.call, transfer.exchange);
        let exchange = self.exchanges.get_mut(at as usize)?.as_mut()?;
        let elapsed = group.job.now().duration_since(exchange.since);
        exchange.left -= 1;
        if exchange.left > 0 {
            return Some(Ended { call, elapsed, waker: None, memory: None });
        }
        if exchange.asynchronous {
            group.detached.fetch_sub(1, Ordering::AcqRel);
        }
        let ended = Ended { call, elapsed, waker: exchange.waker.take(), memory: exchange.keep.take() };
        if exchange.detached {
            drop(self.free(group, at));
        }
        Some(ended)
    }

    pub(crate) fn mismatched(&self, group: &Group, token: Token, peer: u32, theirs: &Message) -> Error {
        let (index, _) = Group::split_transfer(token);
        let (sequence, ours) = match self.table.get(index as usize) {
            Some(Some(t)) => (t.sequence, t.request.call.fingerprint()),
            _ => (0, Fingerprint::default()),
        };
        let theirs = Fingerprint { what: theirs.fingerprint[0], count: theirs.fingerprint[1] };
        Error::Mismatch { communicator: group.id, sequence, ours, theirs, rank: peer }
    }

    /// Forgets an exchange and withdraws what it still has under way: its memory is about to be given back. Returns the
    /// memory it kept, to be dropped when no lock is held.
    #[must_use]
    fn free(&mut self, group: &Group, index: u32) -> Option<Box<dyn Any + Send>> {
        let exchange = self.exchanges.get_mut(index as usize)?.take()?;
        let mut at = exchange.first;
        while let Some(index) = at
            && let Some(transfer) = self.table[index as usize].take()
        {
            if !transfer.done {
                self.left -= 1;
                for (_, chunk) in transfer.execution.in_flight() {
                    group.job.withdraw(group.transfer_token(index, chunk));
                }
            }
            at = transfer.next;
            self.spare.push(transfer.execution);
        }
        if exchange.left > 0 && exchange.asynchronous {
            group.detached.fetch_sub(1, Ordering::AcqRel);
        }
        exchange.keep
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Exchange> {
        self.exchanges.get_mut(ticket.index as usize)?.as_mut().filter(|e| e.serial == ticket.serial)
    }

    /// Whether a finished exchange has not been collected by the thread that waits for it.
    fn has_ended(&self) -> bool {
        self.exchanges.iter().flatten().any(|e| e.left == 0 && e.waited)
    }

    pub(crate) const fn is_idle(&self) -> bool {
        self.left == 0
    }

    /// The communicator has failed: forgets what nobody waits for. Who waits for an exchange withdraws it himself, before its
    /// memory is his again. Returns whom to wake and what to drop when no lock is held.
    pub(crate) fn abandon(&mut self, group: &Group) -> (Vec<Waker>, Vec<Box<dyn Any + Send>>) {
        let (mut wakers, mut memory) = (Vec::new(), Vec::new());
        for index in 0..self.exchanges.len() as u32 {
            let Some(exchange) = &mut self.exchanges[index as usize] else { continue };
            wakers.extend(exchange.waker.take());
            if exchange.detached {
                memory.extend(self.free(group, index));
            }
        }
        (wakers, memory)
    }

    /// A message that is under way, for errors: send or recv, and its number.
    pub(crate) fn doing(&self) -> Option<(&'static str, u64)> {
        let transfer = self.table.iter().flatten().find(|transfer| !transfer.done)?;
        Some((transfer.request.call.collective.name(), transfer.sequence))
    }

    /// The message that is late, in words and numbers, if one is; else after how long at most this is to be asked again.
    fn late(&mut self, group: &Group) -> Result<Duration, Error> {
        let config = &group.job.config;
        let now = group.job.now();
        let mut again = LOOK_AGAIN;
        for transfer in self.table.iter().flatten().filter(|t| !t.done) {
            let Some(Some(exchange)) = self.exchanges.get_mut(transfer.exchange as usize) else { continue };
            let after = now.duration_since(exchange.since);
            let peer = group.members[transfer.request.peer as usize];
            let (operation, sequence) = (transfer.request.call.collective.name(), transfer.sequence);
            if after >= STALL_AFTER
                && let Some((rank, cause)) = group.job.culprit(&[peer], &group.members)
            {
                return Err(Error::PeerFailed { rank, cause, operation, sequence, communicator: group.id });
            }
            let timeout = transfer.request.timeout.unwrap_or(config.timeout);
            again = again.min(timeout.saturating_sub(after));
            if after >= timeout {
                let waiting_on = vec![peer];
                return Err(Error::TimedOut {
                    operation,
                    sequence,
                    communicator: group.id,
                    waiting_on,
                    after,
                });
            }
            if !config.report_after.is_zero() && after >= config.report_after && !exchange.reported {
                exchange.reported = true;
                crate::error::report(format_args!(
                    "rank {} has waited {after:.1?} in {operation} #{sequence} (tag {}) of communicator {} for rank {peer}",
                    group.job.rank, transfer.request.tag, group.id
                ));
            }
        }
        Ok(again)
    }
}

/// What sender and receiver of a message share.
fn pair_fingerprint(call: &Call) -> [u64; 2] {
    let print = Call { collective: Collective::Send, root: 0, ..*call }.fingerprint();
    [print.what, print.count]
}

impl Group {
    /// Posts the messages of one call.
    pub(crate) fn start_exchange(&self, requests: &[Request], asynchronous: bool) -> Result<Ticket, Error> {
        if asynchronous {
            self.job.start_progress()?;
            self.detached.fetch_add(1, Ordering::AcqRel);
            let started = lock(&self.transfers).start(self, requests, true);
            if started.is_err() {
                self.detached.fetch_sub(1, Ordering::AcqRel);
            }
            self.job.kick_progress(Kick::Soon);
            return started;
        }
        lock(&self.transfers).start(self, requests, false)
    }

    /// Moves messages. Whether anything moved.
    pub(crate) fn drive_transfers(&self) -> bool {
        if lock(&self.transfers).is_idle() {
            return false;
        }
        match self.try_deliver() {
            Ok(moved) => moved,
            Err(error) => {
                self.fail(error, true);
                true
            }
        }
    }

    /// Whether an exchange has ended, and how.
    fn transfer_result(&self, ticket: Ticket) -> Option<Result<(), Error>> {
        let mut transfers = lock(&self.transfers);
        let ended = transfers.find(ticket).is_none_or(|e| e.left == 0);
        let result = if ended { Ok(()) } else { Err(self.failure()?) };
        // What it kept is nothing: an exchange that is asked for has not been detached.
        drop(transfers.free_if(self, ticket));
        Some(result)
    }

    /// Waits for an exchange, driving it.
    pub(crate) fn finish_transfer(&self, ticket: Ticket) -> Result<(), Error> {
        to_the_end(self.finish_transfer_with(ticket, Waiter::new(&self.job)))
    }

    /// The same as long as `waiter` does; `None` when it has given up.
    pub(crate) fn finish_transfer_with(
        &self,
        ticket: Ticket,
        mut waiter: Waiter,
    ) -> Option<Result<(), Error>> {
        if let Some(exchange) = lock(&self.transfers).find(ticket) {
            exchange.waited = true;
        }
        loop {
            if let Some(result) = self.transfer_result(ticket) {
                return Some(result);
            }
            if self.drive_transfers() {
                waiter.moved(&self.job);
            } else if !waiter.pause(self, false) {
                self.job.kick_progress(Kick::Soon);
                return None;
            }
        }
    }

    /// Posts messages and drives them for `time` at most: what has not ended by then goes on as if nobody had waited.
    pub(crate) fn run_exchange_for(
        &self,
        requests: &[Request],
        time: Duration,
    ) -> Result<Option<Ticket>, Error> {
        let ticket = self.start_exchange(requests, false)?;
        if let Some(result) = self.finish_transfer_with(ticket, Waiter::limited(&self.job, time)) {
            return result.map(|()| None);
        }
        self.let_go(|| {
            let mut transfers = lock(&self.transfers);
            if let Some(exchange) = transfers.find(ticket).filter(|exchange| exchange.left > 0) {
                exchange.asynchronous = true;
                self.detached.fetch_add(1, Ordering::AcqRel);
            }
        })?;
        Ok(Some(ticket))
    }

    /// Polls an exchange.
    pub(crate) fn poll_transfer(&self, ticket: Ticket, context: &Context<'_>) -> Poll<Result<(), Error>> {
        self.drive_transfers();
        if let Some(result) = self.transfer_result(ticket) {
            return Poll::Ready(result);
        }
        if let Some(exchange) = lock(&self.transfers).find(ticket) {
            exchange.waker = Some(context.waker().clone());
        }
        // It may have ended between the look and the waker's place.
        if let Some(result) = self.transfer_result(ticket) {
            return Poll::Ready(result);
        }
        self.job.kick_progress(Kick::Soon);
        Poll::Pending
    }

    /// Keeps an exchange's memory until it ends; nobody will ask for the result.
    pub(crate) fn detach_transfer(&self, ticket: Ticket, memory: Box<dyn Any + Send>) {
        let mut transfers = lock(&self.transfers);
        // Asked under the lock: a failure that comes later finds the exchange detached and frees it.
        let failed = self.failure().is_some();
        match transfers.find(ticket) {
            Some(exchange) if exchange.left > 0 && !failed => {
                exchange.keep = Some(memory);
                exchange.detached = true;
                exchange.waker = None;
            }
            _ => {
                let kept = transfers.free_if(self, ticket);
                drop(transfers);
                drop((kept, memory));
            }
        }
    }

    /// Gives up in time, and reports. After how long at most this is to be called again.
    pub(crate) fn overdue_transfers(&self) -> Duration {
        let late = lock(&self.transfers).late(self);
        late.unwrap_or_else(|error| {
            self.fail(error, true);
            LOOK_AGAIN
        })
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
    /// Whether an exchange has ended.
    pub(crate) fn transfer_ended(&self, ticket: Ticket) -> bool {
        lock(&self.transfers).find(ticket).is_none_or(|e| e.left == 0)
    }
}
