//! Several messages as one operation.

use std::sync::Arc;

use pyo3::prelude::*;
use windlass::{Collective, RawRequest};

use crate::array::{Array, Purpose};
use crate::communicator::{Communicator, number};
use crate::error::{Wrong, invalid};
use crate::keep::{Held, Keep, release_buried};
use crate::operation::{Operation, Pending};

const NAME: &str = "exchange";

/// The messages of a call, and what they keep.
#[derive(Default)]
struct Messages {
    requests: Vec<RawRequest>,
    held: Held,
}

#[pymethods]
impl Communicator {
    /// Sends and receives any number of messages as one operation. Each is `(array, rank)` or `(array, rank, tag)`. No order of peers stands still,
    /// and what a rank sends to itself is received in the same call. Returns what has been received, in the order given.
    fn exchange(
        &self,
        py: Python<'_>,
        sends: &Bound<'_, PyAny>,
        receives: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let pending = self.start(py, self.messages(sends, receives)?);
        // Without a limit it comes back with a result, or with an exception.
        pending.wait(py, None).map(|value| value.unwrap_or_else(|| py.None()))
    }

    /// The same, while the program does something else: returns an `Operation`.
    fn exchange_async(
        &self,
        py: Python<'_>,
        sends: &Bound<'_, PyAny>,
        receives: &Bound<'_, PyAny>,
    ) -> PyResult<Operation> {
        Ok(Operation::new(self.start(py, self.messages(sends, receives)?)))
    }

    /// Sends `x` to rank `to` and receives `out` from rank `from_`, the same or another, at once. Returns `out`.
    #[pyo3(signature = (x, to, out, from_, tag=None))]
    fn sendrecv(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        to: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        from_: &Bound<'_, PyAny>,
        tag: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let pending = self.start(py, self.pair((x, to), (out, from_), tag)?);
        pending.wait(py, None).map(|value| value.unwrap_or_else(|| py.None()))
    }

    /// The same, while the program does something else: returns an `Operation`.
    #[pyo3(signature = (x, to, out, from_, tag=None))]
    fn sendrecv_async(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        to: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        from_: &Bound<'_, PyAny>,
        tag: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Operation> {
        Ok(Operation::new(self.start(py, self.pair((x, to), (out, from_), tag)?)))
    }

    /// Receives `x` from whichever rank sends a message of this tag first. Returns `x` and that rank.
    #[pyo3(signature = (x, tag=None))]
    fn recv_any(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        tag: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let pending = self.start(py, self.anybodys(x, tag)?);
        pending.wait(py, None).map(|value| value.unwrap_or_else(|| py.None()))
    }

    /// The same, while the program does something else: returns an `Operation`.
    #[pyo3(signature = (x, tag=None))]
    fn recv_any_async(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        tag: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Operation> {
        Ok(Operation::new(self.start(py, self.anybodys(x, tag)?)))
    }
}

impl Communicator {
    fn anybodys(&self, x: &Bound<'_, PyAny>, tag: Option<&Bound<'_, PyAny>>) -> PyResult<Messages> {
        let mut messages = Messages::default();
        self.add(&mut messages, Collective::Recv, x, None, tag)?;
        let mut source = Box::new(RawRequest::ANY_SOURCE);
        for request in &mut messages.requests {
            request.source = &raw mut *source;
        }
        messages.held.source = Some(source);
        messages.held.value = Some(x.clone().unbind());
        Ok(messages)
    }

    fn messages(&self, sends: &Bound<'_, PyAny>, receives: &Bound<'_, PyAny>) -> PyResult<Messages> {
        let py = sends.py();
        let mut messages = Messages::default();
        let mut received = Vec::new();
        for (list, collective) in [(sends, Collective::Send), (receives, Collective::Recv)] {
            let argument =
                if collective == Collective::Send { "the list of sends" } else { "the list of receives" };
            let wrong = |object: &Bound<'_, PyAny>| -> PyResult<PyErr> {
                let given = object.repr()?.to_string();
                Ok(invalid(py, NAME, argument, &Wrong::Message { given }))
            };
            let Ok(list) = list.extract::<Vec<Bound<'_, PyAny>>>() else { return Err(wrong(list)?) };
            for message in list {
                let parts = message.extract::<Vec<Bound<'_, PyAny>>>().unwrap_or_default();
                let (object, peer, tag) = match &parts[..] {
                    [object, peer] => (object, peer, None),
                    [object, peer, tag] => (object, peer, Some(tag)),
                    _ => return Err(wrong(&message)?),
                };
                self.add(&mut messages, collective, object, Some(peer), tag)?;
                if collective == Collective::Recv {
                    received.push(object.clone());
                }
            }
        }
        messages.held.value = Some(received.into_pyobject(py)?.into_any().unbind());
        Ok(messages)
    }

    fn pair(
        &self,
        (x, to): (&Bound<'_, PyAny>, &Bound<'_, PyAny>),
        (out, from): (&Bound<'_, PyAny>, &Bound<'_, PyAny>),
        tag: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Messages> {
        let mut messages = Messages::default();
        self.add(&mut messages, Collective::Send, x, Some(to), tag)?;
        self.add(&mut messages, Collective::Recv, out, Some(from), tag)?;
        messages.held.value = Some(out.clone().unbind());
        Ok(messages)
    }

    fn add(
        &self,
        messages: &mut Messages,
        collective: Collective,
        object: &Bound<'_, PyAny>,
        peer: Option<&Bound<'_, PyAny>>,
        tag: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (operation, write) = (collective.name(), collective == Collective::Recv);
        let array = Array::of(object, Purpose { operation, argument: "the buffer", write })?;
        let mut request = RawRequest::new(collective, array.data_type, array.count);
        request.root = match peer {
            Some(peer) => number(peer, operation, "the peer", u64::from(self.runtime().size()))?,
            None => RawRequest::ANY_SOURCE,
        };
        if let Some(tag) = tag.filter(|tag| !tag.is_none()) {
            request.tag = number(tag, operation, "the tag", u64::from(u32::MAX))?;
        }
        (request.input, request.output) = (array.address, array.address);
        messages.requests.push(request);
        array.hand_to(&mut messages.held);
        Ok(())
    }

    fn start(&self, py: Python<'_>, messages: Messages) -> Arc<Pending> {
        release_buried(py);
        let posted = Posted(messages.requests);
        let keep = Keep::new(messages.held, &self.open.under_way);
        let operation = py.detach(|| posted.post(self.runtime(), keep));
        let pending = Arc::new(Pending::new(NAME, operation));
        self.open.observe(&pending);
        pending
    }
}

/// Messages whose memory somebody keeps.
struct Posted(Vec<RawRequest>);

// SAFETY: the requests' pointers are to memory that is kept, whichever thread has them.
unsafe impl Send for Posted {}

impl Posted {
    fn post(self, communicator: &windlass::Communicator, keep: Keep) -> windlass::Operation<Keep> {
        // SAFETY: `keep` has the exporters' word that the memory stays, writable where it is written, until it is released. That nobody else uses
        // it meanwhile is asked of Python's code.
        unsafe { communicator.post_exchange(&self.0, keep) }
    }
}
