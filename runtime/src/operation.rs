//! An asynchronous operation: a future that owns its memory and gives it back.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::engine::wait::Waiter;
use crate::error::{Error, Failed};
use crate::fork;
use crate::group::Group;
use crate::transfer::Ticket;

/// What an operation is, inside.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Collective(u64),
    Transfer(Ticket),
    Refused(Error),
}

/// An operation that runs while the program does something else.
///
/// It owns its memory: await it, or [`wait`](Self::wait) for it, to get the memory back, also with an error. Dropped, it goes on, and the
/// memory is freed at its end. Forgotten, it leaks. Any executor can poll it; without one being asked, a progress thread of the
/// runtime moves it.
#[must_use = "an operation gives its memory back when awaited; dropped, it goes on unobserved"]
pub struct Operation<M: Send + 'static> {
    group: Arc<Group>,
    kind: Kind,
    memory: Option<M>,
}

// An operation never pins what it owns: memory is reached by the address taken before it was posted.
impl<M: Send + 'static> Unpin for Operation<M> {}

impl<M: Send + 'static> fmt::Debug for Operation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operation").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl<M: Send + 'static> Operation<M> {
    pub(crate) fn new(group: Arc<Group>, posted: Result<Kind, Error>, memory: M) -> Self {
        Self { group, kind: posted.unwrap_or_else(Kind::Refused), memory: Some(memory) }
    }

    /// Waits for the end, driving the operation from this thread.
    ///
    /// # Errors
    /// The operation's error, with the memory.
    pub fn wait(mut self) -> Result<M, Failed<M>> {
        let result = match &self.kind {
            _ if fork::is_forked() => Err(Error::Forked { rank: self.group.job.rank }),
            Kind::Collective(sequence) => self.group.wait(*sequence),
            Kind::Transfer(ticket) => self.group.wait_for_transfer(*ticket),
            Kind::Refused(error) => Err(error.clone()),
        };
        self.take(result)
    }

    /// Waits for `time` at most, driving the operation from this thread. One that has not ended by then goes on, and comes back.
    ///
    /// # Errors
    /// The operation itself, when it has not ended.
    pub fn wait_for(mut self, time: Duration) -> Result<Result<M, Failed<M>>, Self> {
        let waiter = || Waiter::limited(&self.group.job, time);
        let result = match &self.kind {
            _ if fork::is_forked() => Some(Err(Error::Forked { rank: self.group.job.rank })),
            Kind::Collective(sequence) => self.group.wait_with(*sequence, waiter()),
            Kind::Transfer(ticket) => self.group.wait_for_transfer_with(*ticket, waiter()),
            Kind::Refused(error) => Some(Err(error.clone())),
        };
        match result {
            Some(result) => Ok(self.take(result)),
            None => Err(self),
        }
    }

    /// Whether the operation has ended, well or not.
    pub fn is_done(&self) -> bool {
        match &self.kind {
            _ if fork::is_forked() => true,
            Kind::Collective(sequence) => {
                self.group.ended.load(Ordering::Acquire) > *sequence || self.group.failure().is_some()
            }
            Kind::Transfer(ticket) => self.group.transfer_ended(*ticket) || self.group.failure().is_some(),
            Kind::Refused(_) => true,
        }
    }

    fn take(&mut self, result: Result<(), Error>) -> Result<M, Failed<M>> {
        // The memory is there until it is taken once, and an operation ends once: `wait` consumes it, and a future that was ready is not polled again.
        let Some(memory) = self.memory.take() else { panic!("an operation was polled after it had ended") };
        match result {
            Ok(()) => Ok(memory),
            Err(error) => Err(Failed { error, memory }),
        }
    }
}

impl<M: Send + 'static> Future for Operation<M> {
    type Output = Result<M, Failed<M>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = match &self.kind {
            _ if fork::is_forked() => Poll::Ready(Err(Error::Forked { rank: self.group.job.rank })),
            Kind::Collective(sequence) => self.group.poll(*sequence, context),
            Kind::Transfer(ticket) => self.group.poll_transfer(*ticket, context),
            Kind::Refused(error) => Poll::Ready(Err(error.clone())),
        };
        polled.map(|result| self.take(result))
    }
}

impl<M: Send + 'static> Drop for Operation<M> {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        if fork::is_forked() {
            // The parent's operation still has it; this copy is not ours to free.
            std::mem::forget(memory);
            return;
        }
        // The operation goes on when the last communicator is dropped: what it keeps holds the group until its end.
        let keep = |memory: M| Box::new((memory, Arc::clone(&self.group)));
        match self.kind {
            Kind::Collective(sequence) => self.group.keep(sequence, keep(memory)),
            Kind::Transfer(ticket) => self.group.detach_transfer(ticket, keep(memory)),
            Kind::Refused(_) => {}
        }
    }
}
