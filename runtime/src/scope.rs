//! Where operations may borrow memory.

use std::marker::PhantomData;
use std::sync::Mutex;

use windlass_collectives::Collective;
use windlass_kernels::Element;

use crate::communicator::{Communicator, Tag, exclusive, in_place, shared};
use crate::error::Error;
use crate::fork;
use crate::group::{Group, lock};
use crate::operation::Kind;
use crate::request::RawRequest;

/// Where operations may borrow memory: see [`Communicator::scope`].
#[derive(Debug)]
pub struct Scope<'scope, 'env: 'scope> {
    communicator: Communicator,
    started: Mutex<Vec<Kind>>,
    scope: PhantomData<&'scope mut &'scope ()>,
    environment: PhantomData<&'env mut &'env ()>,
}

/// An operation over borrowed memory.
#[derive(Debug)]
pub struct Borrowed<'scope> {
    communicator: Communicator,
    kind: Kind,
    scope: PhantomData<&'scope ()>,
}

impl Borrowed<'_> {
    /// Waits for the end. Without it the scope does.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn wait(self) -> Result<(), Error> {
        finish(self.communicator.group(), &self.kind)
    }
}

fn finish(group: &Group, kind: &Kind) -> Result<(), Error> {
    match kind {
        _ if fork::is_forked() => Err(Error::Forked { rank: group.job.rank }),
        Kind::Collective(sequence) => group.wait(*sequence),
        Kind::Transfer(ticket) => group.wait_for_transfer(*ticket),
        Kind::Refused(error) => Err(error.clone()),
    }
}

impl<'scope, 'env> Scope<'scope, 'env> {
    pub(crate) fn new(communicator: &Communicator) -> Self {
        Self {
            communicator: communicator.clone(),
            started: Mutex::default(),
            scope: PhantomData,
            environment: PhantomData,
        }
    }

    pub(crate) const fn communicator(&self) -> &Communicator {
        &self.communicator
    }

    pub(crate) fn start(&'scope self, request: Result<RawRequest, Error>) -> Borrowed<'scope> {
        let group = self.communicator.group();
        self.enter(request.and_then(|r| self.communicator.limited(&r, |r| group.submit(r))))
    }

    pub(crate) fn enter(&'scope self, posted: Result<Kind, Error>) -> Borrowed<'scope> {
        let kind = posted.unwrap_or_else(Kind::Refused);
        lock(&self.started).push(kind.clone());
        Borrowed { communicator: self.communicator.clone(), kind, scope: PhantomData }
    }

    /// As [`Communicator::send`], on a borrowed slice.
    pub fn send<T: Element>(&'scope self, memory: &'env [T], to: u32, tag: Tag) -> Borrowed<'scope> {
        self.start(Ok(in_place(Collective::Send, shared(memory)).root(to).tag(tag)))
    }

    /// As [`Communicator::recv`], on a borrowed slice.
    pub fn recv<T: Element>(&'scope self, memory: &'env mut [T], from: u32, tag: Tag) -> Borrowed<'scope> {
        self.start(Ok(in_place(Collective::Recv, exclusive(memory)).root(from).tag(tag)))
    }

    /// An error stays with the communicator, which returns it from the next call.
    pub(crate) fn wait_all(&self) {
        for kind in lock(&self.started).drain(..) {
            let _ = finish(self.communicator.group(), &kind);
        }
    }
}
