//! The collectives as methods: one row each, from which the blocking and the asynchronous method are made.
//!
//! What a row's arguments mean, the runtime's table of collectives says: which are needed, what is read and written, and how long it is.

use std::sync::Arc;

use pyo3::prelude::*;
use windlass::{Collective, DataType, Error, Failed, Problem, RawRequest, ReduceOp};

use crate::array::{Array, Purpose};
use crate::buffer::Buffer;
use crate::communicator::{Communicator, number};
use crate::error::{Wrong, invalid, raise};
use crate::keep::{Held, Keep, release_buried};
use crate::operation::{Operation, Pending, SLICE};

/// What a call may be given.
#[derive(Default)]
struct Arguments {
    x: Option<Py<PyAny>>,
    out: Option<Py<PyAny>>,
    op: Option<Py<PyAny>>,
    root: Option<Py<PyAny>>,
    to: Option<Py<PyAny>>,
    from_: Option<Py<PyAny>>,
    tag: Option<Py<PyAny>>,
}

macro_rules! faces {
    ($($(#[$doc:meta])* $collective:ident: $now:ident, $later:ident($($needed:ident),*; $($optional:ident),*);)*) => {
        #[pymethods]
        impl Communicator { $(
            $(#[$doc])*
            #[pyo3(signature = ($($needed,)* $($optional = None),*))]
            fn $now(
                &self,
                py: Python<'_>,
                $($needed: Py<PyAny>,)*
                $($optional: Option<Py<PyAny>>,)*
            ) -> PyResult<Py<PyAny>> {
                let arguments = Arguments { $($needed: Some($needed),)* $($optional,)* ..Arguments::default() };
                self.run(py, Collective::$collective, arguments)
            }

            /// The same, while the program does something else: returns an `Operation`.
            #[pyo3(signature = ($($needed,)* $($optional = None),*))]
            fn $later(
                &self,
                py: Python<'_>,
                $($needed: Py<PyAny>,)*
                $($optional: Option<Py<PyAny>>,)*
            ) -> PyResult<Operation> {
                let arguments = Arguments { $($needed: Some($needed),)* $($optional,)* ..Arguments::default() };
                self.post(py, Collective::$collective, arguments)
            }
        )* }
    };
}

faces! {
    /// Reduces every element over all ranks, in place, or of `x` into `out`. Returns the result's memory.
    AllReduce: all_reduce, all_reduce_async(x; op, out);
    /// Reduces every element over all ranks: the memory of `root` ends with the result, that of the others is as it was. With `out`, the result
    /// is there on the root.
    Reduce: reduce, reduce_async(x; op, root, out);
    /// Reduces `x`, of `size` blocks, over all ranks; rank `r`'s result is block `r`: in `out`, or in new registered memory.
    ReduceScatter: reduce_scatter, reduce_scatter_async(x; op, out);
    /// Collects every rank's `x`, in rank order: in `out`, of `size` times its length, or in new registered memory.
    AllGather: all_gather, all_gather_async(x; out);
    /// Every rank's memory ends with what `root`'s holds.
    Broadcast: broadcast, broadcast_async(x; root);
    /// Returns when all ranks have called it.
    Barrier: barrier, barrier_async(;);
    /// Collects every rank's `x`, in rank order, on `root`: in its `out`, or in new registered memory. `None` elsewhere.
    Gather: gather, gather_async(x; root, out);
    /// Gives out `root`'s `x`, of `size` blocks: rank `r`'s result is block `r`. The others give `out`; the root may.
    Scatter: scatter, scatter_async(x; root, out);
    /// Gives block `r` of `x`, of `size` blocks, to rank `r`; the result, as long, has one block from each rank.
    AllToAll: all_to_all, all_to_all_async(x; out);
    /// Reduces every element over the ranks up to this one, itself included, in place or into `out`.
    Scan: scan, scan_async(x; op, out);
    /// Reduces every element over the ranks below this one, in place or into `out`. Rank 0's result is as it was.
    ExScan: exscan, exscan_async(x; op, out);
    /// Sends `x` to rank `to`.
    Send: send, send_async(x, to; tag);
    /// Receives from rank `from_` a message of exactly the length and type of `x`.
    Recv: recv, recv_async(x, from_; tag);
}

/// A call that is right as far as Python can tell, and what it keeps.
struct Prepared {
    request: RawRequest,
    keep: Keep,
}

// SAFETY: the request's pointers are to memory that `keep` keeps, whichever thread has both.
unsafe impl Send for Prepared {}

type Posted = windlass::Operation<Keep>;

impl Prepared {
    /// Runs it for a slice of time; what has not ended then goes on, and comes back.
    fn perform(self, communicator: &windlass::Communicator) -> Result<Result<Keep, Failed<Keep>>, Posted> {
        // SAFETY: `keep` has the exporters' word that the memory stays, writable where it is written, until it is released. That nobody else uses
        // it meanwhile is asked of Python's code.
        unsafe { communicator.perform_for(&self.request, self.keep, SLICE) }
    }

    fn post(self, communicator: &windlass::Communicator) -> Posted {
        // SAFETY: as above.
        unsafe { communicator.post(&self.request, self.keep) }
    }
}

impl Communicator {
    fn run(&self, py: Python<'_>, collective: Collective, arguments: Arguments) -> PyResult<Py<PyAny>> {
        release_buried(py);
        let prepared = self.prepare(py, collective, arguments)?;
        let performed = py.detach(|| prepared.perform(self.runtime()));
        match performed {
            Ok(Ok(keep)) => Ok(keep.release(py).unwrap_or_else(|| py.None())),
            Ok(Err(failed)) => {
                failed.memory.release(py);
                Err(raise(py, &failed.error))
            }
            Err(operation) => {
                let pending = Arc::new(Pending::new(collective.name(), operation));
                self.open.observe(&pending);
                // Without a limit it comes back with a result only, or with an exception from a signal: then the operation goes on.
                pending.wait(py, None).map(|value| value.unwrap_or_else(|| py.None()))
            }
        }
    }

    fn post(&self, py: Python<'_>, collective: Collective, arguments: Arguments) -> PyResult<Operation> {
        release_buried(py);
        let prepared = self.prepare(py, collective, arguments)?;
        let operation = py.detach(|| prepared.post(self.runtime()));
        let pending = Arc::new(Pending::new(collective.name(), operation));
        self.open.observe(&pending);
        Ok(Operation::new(pending))
    }

    fn prepare(&self, py: Python<'_>, collective: Collective, arguments: Arguments) -> PyResult<Prepared> {
        let call = Call::new(py, self, collective, &arguments)?;
        let mut held = Held::default();
        let mut request = if collective == Collective::Barrier {
            RawRequest::new(collective, DataType::U8, 0)
        } else if collective.has_blocks() || arguments.out.is_some() {
            call.between(&arguments, &mut held)?
        } else {
            call.in_place(&arguments, &mut held)?
        };
        (request.op, request.root, request.tag) = (call.op, call.root, call.tag);
        Ok(Prepared { request, keep: Keep::new(held, &self.open.under_way) })
    }
}

/// A call's plain arguments, and what they make of its memory.
struct Call<'c, 'py> {
    py: Python<'py>,
    communicator: &'c Communicator,
    collective: Collective,
    op: ReduceOp,
    /// Or the peer.
    root: u32,
    tag: u32,
    /// In units of the count: what this rank reads, and what it writes.
    reads: usize,
    writes: usize,
}

impl<'c, 'py> Call<'c, 'py> {
    fn new(
        py: Python<'py>,
        communicator: &'c Communicator,
        collective: Collective,
        arguments: &Arguments,
    ) -> PyResult<Self> {
        let runtime = communicator.runtime();
        let (name, ranks) = (collective.name(), runtime.size());
        let whole = |object: &Option<Py<PyAny>>, argument, limit| match object {
            None => Ok(0),
            Some(object) => number(object.bind(py), name, argument, limit),
        };
        let peer = arguments.to.as_ref().or(arguments.from_.as_ref());
        let root = match peer {
            Some(peer) => number(peer.bind(py), name, "the peer", u64::from(ranks))?,
            None => whole(&arguments.root, "the root", u64::from(ranks))?,
        };
        let tag = whole(&arguments.tag, "the tag", u64::from(u32::MAX))?;
        let op = match &arguments.op {
            None => ReduceOp::Sum,
            Some(op) => operator(op.bind(py), name)?,
        };
        let me = root == runtime.rank();
        let units = |extent: Option<usize>| extent.unwrap_or(0);
        let (reads, writes) = match collective {
            Collective::Send => (1, 0),
            Collective::Recv => (0, 1),
            // The root has what the others get.
            Collective::Broadcast => {
                if me {
                    (1, 0)
                } else {
                    (0, 1)
                }
            }
            _ => (
                units(collective.input().elements(1, ranks as usize, me)),
                units(collective.output().elements(1, ranks as usize, me)),
            ),
        };
        Ok(Self { py, communicator, collective, op, root, tag, reads, writes })
    }

    const fn purpose(&self, argument: &'static str, write: bool) -> Purpose {
        Purpose { operation: self.collective.name(), argument, write }
    }

    /// One memory for operand and result.
    fn in_place(&self, arguments: &Arguments, held: &mut Held) -> PyResult<RawRequest> {
        let x = arguments.x.as_ref().map(|x| x.bind(self.py)).filter(|x| !x.is_none());
        let Some(x) = x else { return Err(self.missing("the buffer")) };
        let array = Array::of(x, self.purpose("the buffer", self.writes > 0))?;
        let mut request = RawRequest::new(self.collective, array.data_type, array.count);
        (request.input, request.output) = (array.address, array.address);
        array.hand_to(held);
        held.value = Some(x.clone().unbind());
        Ok(request)
    }

    /// An operand, and a result elsewhere.
    fn between(&self, arguments: &Arguments, held: &mut Held) -> PyResult<RawRequest> {
        let given = |object: &Option<Py<PyAny>>, needed: bool, purpose: Purpose| {
            let object = object.as_ref().filter(|_| needed).map(|o| o.bind(self.py)).filter(|o| !o.is_none());
            object.map(|object| Array::of(object, purpose)).transpose()
        };
        let input = given(&arguments.x, self.reads > 0, self.purpose("the input", false))?;
        let output = given(&arguments.out, self.writes > 0, self.purpose("the output", true))?;
        if self.reads > 0 && input.is_none() {
            return Err(self.missing("the input"));
        }
        let count = self.count(input.as_ref(), output.as_ref())?;
        held.value = arguments.out.as_ref().map(|out| out.clone_ref(self.py));
        let output = match (output, &input) {
            (None, Some(input)) if self.writes > 0 => {
                let shape = self.result_shape(input, count);
                let runtime = self.communicator.runtime();
                let buffer = Buffer::allocate(self.py, runtime, input.data_type, &shape)?;
                let buffer = Bound::new(self.py, buffer)?;
                let array = Array::of_buffer(&buffer);
                held.value = Some(buffer.into_any().unbind());
                Some(array)
            }
            (output, _) => output,
        };
        if let (Some(input), Some(output)) = (&input, &output)
            && input.data_type != output.data_type
        {
            let (input, output) = (input.data_type.name(), output.data_type.name());
            let wrong = Wrong::TypesDiffer { input, output };
            return Err(invalid(self.py, self.collective.name(), "the output", &wrong));
        }
        let data_type = input.as_ref().or(output.as_ref()).map_or(DataType::U8, |array| array.data_type);
        let mut request = RawRequest::new(self.collective, data_type, count);
        request.input = input.as_ref().map_or(std::ptr::null(), |array| array.address.cast_const());
        request.output = output.as_ref().map_or(std::ptr::null_mut(), |array| array.address);
        input.into_iter().chain(output).for_each(|array| array.hand_to(held));
        Ok(request)
    }

    /// The count that the lengths stand for, if they agree.
    fn count(&self, input: Option<&Array>, output: Option<&Array>) -> PyResult<usize> {
        let sides = [("the input", input, self.reads), ("the output", output, self.writes)];
        let sides = sides.map(|(argument, array, units)| array.map(|array| (argument, array.count, units)));
        // Of a side of one block the length is the count; from a side of several it follows.
        let exact = sides.iter().flatten().find(|(_, _, units)| *units == 1);
        let Some(&(argument, length, units)) = exact.or_else(|| sides.iter().flatten().next()) else {
            return Err(self.missing("the output"));
        };
        if !length.is_multiple_of(units) {
            let problem = Problem::NotDivisible { length: length as u64, by: units as u64 };
            return Err(self.wrong(argument, problem));
        }
        let count = length / units;
        for (argument, length, units) in sides.into_iter().flatten() {
            // A product that overflows is the length of no buffer.
            let expected = count.saturating_mul(units);
            if length != expected {
                let problem = Problem::WrongLength { expected: expected as u64, actual: length as u64 };
                return Err(self.wrong(argument, problem));
            }
        }
        Ok(count)
    }

    /// The operand's shape with the first dimension as much longer or shorter as the result is.
    fn result_shape(&self, input: &Array, count: usize) -> Vec<usize> {
        let mut shape = input.shape();
        match shape.first_mut() {
            Some(first) if (*first * self.writes).is_multiple_of(self.reads) => {
                *first = *first * self.writes / self.reads;
                shape
            }
            _ => vec![count * self.writes],
        }
    }

    fn missing(&self, argument: &'static str) -> PyErr {
        invalid(self.py, self.collective.name(), argument, &Wrong::Missing)
    }

    fn wrong(&self, argument: &'static str, problem: Problem) -> PyErr {
        raise(self.py, &Error::InvalidArgument { operation: self.collective.name(), argument, problem })
    }
}

fn operator(object: &Bound<'_, PyAny>, operation: &'static str) -> PyResult<ReduceOp> {
    let py = object.py();
    let Ok(name) = object.extract::<&str>() else {
        let given = object.repr()?.to_string();
        return Err(invalid(py, operation, "the operator", &Wrong::Operator { given }));
    };
    name.parse().map_err(|_| {
        let valid = ReduceOp::ALL.iter().map(|op| op.name()).collect::<Vec<_>>().join(", ");
        invalid(py, operation, "the operator", &Wrong::Name { given: name.to_owned(), valid })
    })
}
