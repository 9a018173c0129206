//! Several messages at once: all are posted before any is waited for, receives first, so no order of peers stands still.
//!
//! What a rank sends to itself is received in the same exchange and never leaves: the first message of a tag by the first receive of that
//! tag, and so on.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use windlass_collectives::Collective;
use windlass_kernels::Element;

use crate::communicator::{Blocking, Communicator, Tag, exclusive, in_place, shared};
use crate::device::{PIECE_BYTES, address};
use crate::engine::bind;
use crate::error::{Error, Problem};
use crate::group::Group;
use crate::memory::{Memory, MemoryMut, Span, collide};
use crate::operation::{Kind, Operation};
use crate::request::{RawRequest, own_rank};
use crate::scope::{Borrowed, Scope};
use crate::transfer::{self, Ticket};

fn send(span: Span, to: u32, tag: Tag) -> RawRequest {
    in_place(Collective::Send, span).root(to).tag(tag)
}

fn recv(span: Span, from: u32, tag: Tag) -> RawRequest {
    in_place(Collective::Recv, span).root(from).tag(tag)
}

/// # Several messages at once
impl Communicator {
    /// Sends to rank `to` and receives from rank `from`, the same or another, at once. Ranks that all send along a ring get through, as
    /// they would not by a send followed by a receive.
    ///
    /// ```
    /// let left = windlass::threads(3, |comm| {
    ///     let (rank, ranks) = (comm.rank(), comm.size());
    ///     let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    ///     let (_, got) = comm.sendrecv(vec![rank; 4], next, vec![0u32; 4], previous, 0).wait().unwrap();
    ///     got
    /// });
    /// assert_eq!(left.unwrap(), [[2; 4], [0; 4], [1; 4]]);
    /// ```
    pub fn sendrecv<S, R>(
        &self,
        mut sent: S,
        to: u32,
        mut received: R,
        from: u32,
        tag: Tag,
    ) -> Operation<(S, R)>
    where
        S: Memory,
        R: MemoryMut,
    {
        let requests = [send(sent.span(), to, tag), recv(received.span(), from, tag)];
        self.start_all(&requests, (sent, received))
    }

    /// Sends and receives any number of messages as one operation, which ends with the last of them, or with the first error. Each is given with
    /// its peer and its tag. All are posted before any is waited for: no order of peers stands still.
    ///
    /// ```
    /// // Everybody with everybody, itself included.
    /// let sums = windlass::threads(3, |comm| {
    ///     let sends = (0..3).map(|to| (vec![comm.rank() * 10 + to], to, 0)).collect();
    ///     let receives = (0..3).map(|from| (vec![0], from, 0)).collect();
    ///     let (_, got) = comm.exchange(sends, receives).wait().unwrap();
    ///     got.iter().map(|message| message[0]).sum::<u32>()
    /// });
    /// assert_eq!(sums.unwrap(), [30, 33, 36]);
    /// ```
    pub fn exchange<S, R>(
        &self,
        sends: Vec<(S, u32, Tag)>,
        receives: Vec<(R, u32, Tag)>,
    ) -> Operation<(Vec<S>, Vec<R>)>
    where
        S: Memory,
        R: MemoryMut,
    {
        let mut requests = Vec::with_capacity(sends.len() + receives.len());
        let mut sent = Vec::with_capacity(sends.len());
        let mut received = Vec::with_capacity(receives.len());
        for (mut memory, to, tag) in sends {
            requests.push(send(memory.span(), to, tag));
            sent.push(memory);
        }
        for (mut memory, from, tag) in receives {
            requests.push(recv(memory.span(), from, tag));
            received.push(memory);
        }
        self.start_all(&requests, (sent, received))
    }

    /// Starts sends and receives whose types are known at run time only, as one operation.
    ///
    /// # Safety
    /// As [`post`](Self::post), of each request.
    pub unsafe fn post_exchange<K: Send + Any>(&self, requests: &[RawRequest], keep: K) -> Operation<K> {
        self.start_all(requests, keep)
    }

    fn start_all<M: Send + 'static>(&self, requests: &[RawRequest], memory: M) -> Operation<M> {
        Operation::new(Arc::clone(self.group()), self.group().submit_all(requests, self.timeout()), memory)
    }
}

/// # Several messages at once
impl Blocking<'_> {
    /// As [`Communicator::sendrecv`], on borrowed slices.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn sendrecv<S: Element, R: Element>(
        self,
        sent: &[S],
        to: u32,
        received: &mut [R],
        from: u32,
        tag: Tag,
    ) -> Result<(), Error> {
        let requests = [send(shared(sent), to, tag), recv(exclusive(received), from, tag)];
        self.communicator.group().perform_all(&requests, self.communicator.timeout())
    }

    /// As [`Communicator::exchange`], on borrowed slices. Several messages of several types are a [`scope`](Communicator::scope)'s affair: what is
    /// started there is posted at once, too.
    ///
    /// ```
    /// windlass::threads(2, |comm| {
    ///     let (peer, mine, mut small, mut large) = (1 - comm.rank(), vec![1.5f32; 9], [0.0; 2], [0.0; 7]);
    ///     let sends = [(&mine[..2], peer, 0), (&mine[2..], peer, 1)];
    ///     comm.blocking().exchange(&sends, &mut [(&mut large, peer, 1), (&mut small, peer, 0)]).unwrap();
    ///     assert_eq!((small, large), ([1.5; 2], [1.5; 7]));
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    /// See [`Error`].
    pub fn exchange<T: Element>(
        self,
        sends: &[(&[T], u32, Tag)],
        receives: &mut [(&mut [T], u32, Tag)],
    ) -> Result<(), Error> {
        let sends = sends.iter().map(|&(memory, to, tag)| send(shared(memory), to, tag));
        let receives = receives.iter_mut().map(|(memory, from, tag)| recv(exclusive(memory), *from, *tag));
        let requests: Vec<_> = sends.chain(receives).collect();
        self.communicator.group().perform_all(&requests, self.communicator.timeout())
    }

    /// Runs sends and receives whose types are known at run time only, as one call.
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Safety
    /// As [`perform`](Self::perform), of each request.
    pub unsafe fn perform_exchange(self, requests: &[RawRequest]) -> Result<(), Error> {
        self.communicator.group().perform_all(requests, self.communicator.timeout())
    }
}

/// # Several messages at once
impl<'scope, 'env> Scope<'scope, 'env> {
    /// As [`Communicator::sendrecv`], on borrowed slices.
    pub fn sendrecv<S: Element, R: Element>(
        &'scope self,
        sent: &'env [S],
        to: u32,
        received: &'env mut [R],
        from: u32,
        tag: Tag,
    ) -> Borrowed<'scope> {
        let requests = [send(shared(sent), to, tag), recv(exclusive(received), from, tag)];
        let communicator = self.communicator();
        self.enter(communicator.group().submit_all(&requests, communicator.timeout()))
    }

    /// As [`Communicator::exchange`], on borrowed slices.
    pub fn exchange<T: Element>(
        &'scope self,
        sends: &[(&'env [T], u32, Tag)],
        receives: Vec<(&'env mut [T], u32, Tag)>,
    ) -> Borrowed<'scope> {
        let sends = sends.iter().map(|&(memory, to, tag)| send(shared(memory), to, tag));
        let receives = receives.into_iter().map(|(memory, from, tag)| recv(exclusive(memory), from, tag));
        let requests: Vec<_> = sends.chain(receives).collect();
        let communicator = self.communicator();
        self.enter(communicator.group().submit_all(&requests, communicator.timeout()))
    }
}

impl Group {
    fn submit_all(&self, requests: &[RawRequest], timeout: Option<Duration>) -> Result<Kind, Error> {
        self.post_all(requests, timeout, true).map(Kind::Transfer)
    }

    fn perform_all(&self, requests: &[RawRequest], timeout: Option<Duration>) -> Result<(), Error> {
        self.finish_transfer(self.post_all(requests, timeout, false)?)
    }

    fn post_all(
        &self,
        requests: &[RawRequest],
        timeout: Option<Duration>,
        asynchronous: bool,
    ) -> Result<Ticket, Error> {
        self.usable("exchange")?;
        let leaves =
            |request: &RawRequest| request.collective.is_point_to_point() && request.root != self.rank;
        // For a sendrecv with others nothing is allocated.
        if let [one, other] = requests
            && leaves(one)
            && leaves(other)
        {
            let messages = [self.limited(one, timeout)?, self.limited(other, timeout)?];
            apart(&mut [range(&messages[0]), range(&messages[1])])?;
            return self.start_exchange(&messages, asynchronous);
        }
        self.start_exchange(&self.messages_of(requests, timeout)?, asynchronous)
    }

    /// A message found right, with this time limit if it has none of its own.
    fn limited(&self, request: &RawRequest, timeout: Option<Duration>) -> Result<transfer::Request, Error> {
        let message = self.message_of(request)?;
        Ok(transfer::Request { timeout: message.timeout.or(timeout), ..message })
    }

    /// The messages of one call, all found right before any is posted; those to this rank itself have been copied.
    fn messages_of(
        &self,
        requests: &[RawRequest],
        timeout: Option<Duration>,
    ) -> Result<Vec<transfer::Request>, Error> {
        let mut messages = Vec::with_capacity(requests.len());
        for request in requests {
            if !request.collective.is_point_to_point() {
                let (operation, argument) = ("exchange", "a request");
                let problem = Problem::NoMessage;
                return Err(Error::InvalidArgument { operation, argument, problem });
            }
            messages.push(self.limited(request, timeout)?);
        }
        apart(&mut messages.iter().map(range).collect::<Vec<_>>())?;
        let pairs = self.own_pairs(requests, &messages)?;
        for (from, to) in pairs {
            self.copy_own(messages[from].memory, messages[to].memory, messages[to].call.bytes() as usize)?;
        }
        messages.retain(|message| message.peer != self.rank);
        Ok(messages)
    }

    /// Copies a message to this rank itself; through the host where one of both is device memory.
    fn copy_own(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<(), Error> {
        let attached = self.job.attached.get();
        let (Some(attached), true) = (attached, address::is_device(from) || address::is_device(to)) else {
            bind::copy(from, to, bytes);
            return Ok(());
        };
        let mut piece = vec![0; bytes.min(PIECE_BYTES)];
        for at in (0..bytes).step_by(PIECE_BYTES) {
            let piece = &mut piece[..PIECE_BYTES.min(bytes - at)];
            attached.read(from.wrapping_add(at), piece, self.job.config.timeout)?;
            attached.write(to.wrapping_add(at), piece, self.job.config.timeout)?;
        }
        Ok(())
    }

    /// Which message to this rank itself is taken by which receive.
    fn own_pairs(
        &self,
        requests: &[RawRequest],
        messages: &[transfer::Request],
    ) -> Result<Vec<(usize, usize)>, Error> {
        let own = |collective| {
            let of = move |message: &transfer::Request| {
                message.peer == self.rank && message.call.collective == collective
            };
            (0..messages.len()).filter(move |&at| of(&messages[at]))
        };
        let mut taken = vec![false; messages.len()];
        let mut pairs = Vec::new();
        for from in own(Collective::Send) {
            let fits = |&to: &usize| !taken[to] && messages[to].tag == messages[from].tag;
            let to = own(Collective::Recv).find(fits).ok_or_else(|| own_rank(&requests[from]))?;
            let (sent, expected) = (messages[from].call, messages[to].call);
            if (sent.data_type, sent.count) != (expected.data_type, expected.count) {
                let (operation, argument) = (sent.collective.name(), "the message to this rank itself");
                let problem = if sent.data_type == expected.data_type {
                    Problem::WrongLength { expected: expected.count, actual: sent.count }
                } else {
                    Problem::WrongType { expected: expected.data_type, actual: sent.data_type }
                };
                return Err(Error::InvalidArgument { operation, argument, problem });
            }
            taken[to] = true;
            pairs.push((from, to));
        }
        match own(Collective::Recv).find(|&to| !taken[to]) {
            Some(lonely) => Err(own_rank(&requests[lonely])),
            None => Ok(pairs),
        }
    }
}

/// A message from any source, and who sent it.
#[derive(Debug)]
pub struct Received<M> {
    memory: M,
    source: Arc<AtomicU32>,
}

impl<M> Received<M> {
    /// The sender's rank; [`ANY_SOURCE`](RawRequest::ANY_SOURCE) if the receive failed before there was one.
    pub fn source(&self) -> u32 {
        self.source.load(Ordering::Relaxed)
    }

    /// The message.
    pub fn into_memory(self) -> M {
        self.memory
    }
}

fn recv_any(span: Span, tag: Tag, source: *mut u32) -> RawRequest {
    RawRequest { source, ..recv(span, RawRequest::ANY_SOURCE, tag) }
}

/// # Messages from anybody
impl Communicator {
    /// Receives the message of this tag that comes first, whoever sends it; of those that are there already, the one that came first. It must have
    /// exactly the memory's length and type. Messages of one rank and tag are taken in the order in which they were sent, and receives of one tag in
    /// the order in which they were posted, from any source or not.
    ///
    /// While it waits, the death of any rank fails it; a rank that leaves does not, as long as others are there.
    ///
    /// ```
    /// windlass::threads(4, |comm| {
    ///     if comm.rank() > 0 {
    ///         return comm.blocking().send(&[comm.rank()], 0, 7).unwrap();
    ///     }
    ///     let mut senders: Vec<u32> = (0..3)
    ///         .map(|_| {
    ///             let received = comm.recv_any(vec![0; 1], 7).wait().unwrap();
    ///             let source = received.source();
    ///             assert_eq!(received.into_memory(), [source]);
    ///             source
    ///         })
    ///         .collect();
    ///     senders.sort_unstable();
    ///     assert_eq!(senders, [1, 2, 3]);
    /// })
    /// .unwrap();
    /// ```
    pub fn recv_any<M: MemoryMut>(&self, mut memory: M, tag: Tag) -> Operation<Received<M>> {
        let source = Arc::new(AtomicU32::new(RawRequest::ANY_SOURCE));
        let request = recv_any(memory.span(), tag, source.as_ptr());
        self.start(&request, Received { memory, source })
    }
}

/// # Messages from anybody
impl Blocking<'_> {
    /// As [`Communicator::recv_any`], into a borrowed slice; returns the sender's rank.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn recv_any<T: Element>(self, memory: &mut [T], tag: Tag) -> Result<u32, Error> {
        let mut source = RawRequest::ANY_SOURCE;
        self.run(&recv_any(exclusive(memory), tag, &raw mut source))?;
        Ok(source)
    }
}

/// # Messages from anybody
impl<'scope, 'env> Scope<'scope, 'env> {
    /// As [`Communicator::recv_any`], into a borrowed slice; `source` ends with the sender's rank.
    pub fn recv_any<T: Element>(
        &'scope self,
        memory: &'env mut [T],
        tag: Tag,
        source: &'env mut u32,
    ) -> Borrowed<'scope> {
        self.start(Ok(recv_any(exclusive(memory), tag, source)))
    }
}

/// The addresses that a message takes, and whether it writes there.
fn range(message: &transfer::Request) -> (usize, usize, bool) {
    let begin = message.memory.addr();
    (begin, begin + message.call.bytes() as usize, message.call.collective == Collective::Recv)
}

/// Refuses receives into memory that another message of the call uses, too.
fn apart(ranges: &mut [(usize, usize, bool)]) -> Result<(), Error> {
    if collide(ranges) {
        let (operation, argument) = ("recv", "the buffer");
        return Err(Error::InvalidArgument { operation, argument, problem: Problem::Overlap });
    }
    Ok(())
}
