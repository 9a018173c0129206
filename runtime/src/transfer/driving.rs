//! Who drives messages: whoever waits for them, or polls, or the progress thread.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use windlass_collectives::Collective;

use super::{Request, Ticket};
use crate::engine::Status;
use crate::engine::wait::Waiter;
use crate::error::Error;
use crate::group::{Group, LOOK_AGAIN, lock, to_the_end};
use crate::progress::Kick;
use crate::request::RawRequest;

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

    /// A message, found right but for the peer, which may be this rank.
    pub(crate) fn message_of(&self, request: &RawRequest) -> Result<Request, Error> {
        let mut transfers = lock(&self.transfers);
        let checked = transfers.check(self, request)?;
        request.check_memory(self, checked)?;
        let call = checked.call;
        let memory =
            if call.collective == Collective::Send { request.input.cast_mut() } else { request.output };
        let RawRequest { root: peer, tag, source, timeout, .. } = *request;
        Ok(Request { call, peer, tag, memory, source, timeout })
    }

    /// Moves messages, if any are under way. Whether anything moved.
    pub(crate) fn drive_transfers(&self) -> bool {
        !lock(&self.transfers).is_idle() && self.deliver_transfers()
    }

    fn deliver_transfers(&self) -> bool {
        match self.try_deliver() {
            // The lock only if something has come: this is on every message's way.
            Ok(moved) => {
                let looked = self.looked.load(Ordering::Relaxed);
                looked != self.job.arrivals.load(Ordering::Acquire)
                    && lock(&self.transfers).match_receives(self)
                    || moved
            }
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

    /// Waits for an exchange that somebody else may have driven so far, driving it.
    pub(crate) fn wait_for_transfer(&self, ticket: Ticket) -> Result<(), Error> {
        to_the_end(self.wait_for_transfer_with(ticket, Waiter::new(&self.job)))
    }

    /// The same as long as `waiter` does; `None` when it has given up.
    pub(crate) fn wait_for_transfer_with(&self, ticket: Ticket, waiter: Waiter) -> Option<Result<(), Error>> {
        if let Some(exchange) = lock(&self.transfers).find(ticket) {
            exchange.waited = true;
        }
        self.finish_transfer_with(ticket, waiter)
    }

    /// Runs an exchange that was started by this call to its end.
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

    /// Whether an exchange has ended.
    pub(crate) fn transfer_ended(&self, ticket: Ticket) -> bool {
        lock(&self.transfers).find(ticket).is_none_or(|e| e.left == 0)
    }
}
