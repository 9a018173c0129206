//! The collectives as methods: one row each, from which the blocking and the asynchronous method are made.
//!
//! What a row's arguments mean, the runtime's table of collectives says: which are needed, what is read and written, and how long it is.

use std::sync::Arc;

use pyo3::prelude::*;
use windlass::{Collective, DataType, Failed, Piece, RawRequest};

use crate::call::{Call, Resolved};
use crate::communicator::Communicator;
use crate::error::raise;
use crate::keep::{Held, Keep, release_buried};
use crate::operation::{Operation, Pending, SLICE};

/// What a call may be given.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) x: Option<Py<PyAny>>,
    pub(crate) out: Option<Py<PyAny>>,
    pub(crate) op: Option<Py<PyAny>>,
    pub(crate) scalar: Option<Py<PyAny>>,
    pub(crate) root: Option<Py<PyAny>>,
    pub(crate) to: Option<Py<PyAny>>,
    pub(crate) from_: Option<Py<PyAny>>,
    pub(crate) tag: Option<Py<PyAny>>,
    pub(crate) counts: Option<Py<PyAny>>,
    pub(crate) input_counts: Option<Py<PyAny>>,
    pub(crate) output_counts: Option<Py<PyAny>>,
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
    /// Reduces every element over all ranks, in place, or of `x` into `out`. Returns the result's memory. With `scalar`, the sum of what each rank's
    /// `x` is when multiplied by that rank's own.
    AllReduce: all_reduce, all_reduce_async(x; op, out, scalar);
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
    Scatter: scatter, scatter_async(; x, root, out);
    /// Gives block `r` of `x`, of `size` blocks, to rank `r`; the result, as long, has one block from each rank.
    AllToAll: all_to_all, all_to_all_async(x; out);
    /// Reduces every element over the ranks up to this one, itself included, in place or into `out`.
    Scan: scan, scan_async(x; op, out);
    /// Reduces every element over the ranks below this one, in place or into `out`. Rank 0's result is as it was.
    ExScan: exscan, exscan_async(x; op, out);
    /// As `all_gather`, of blocks of different lengths: `counts` has the rows of every rank's block, the same on all ranks.
    AllGatherV: all_gather_v, all_gather_v_async(x; counts, out);
    /// As `reduce_scatter`, of blocks of different lengths: `counts` has the rows of every rank's block, the same on all ranks.
    ReduceScatterV: reduce_scatter_v, reduce_scatter_v_async(x; counts, op, out);
    /// As `gather`, of blocks of different lengths: at `root`, `counts` has the rows of every rank's block.
    GatherV: gather_v, gather_v_async(x; counts, root, out);
    /// As `scatter`, of blocks of different lengths: at `root`, `counts` has the rows of every rank's block.
    ScatterV: scatter_v, scatter_v_async(; x, counts, root, out);
    /// As `all_to_all`, each pair of ranks with a length of its own: `input_counts` has the rows that go to each rank, `output_counts` those that come
    /// from each.
    AllToAllV: all_to_all_v, all_to_all_v_async(x; input_counts, output_counts, out);
    /// Sends `x` to rank `to`.
    Send: send, send_async(x, to; tag);
    /// Receives from rank `from_` a message of exactly the length and type of `x`.
    Recv: recv, recv_async(x, from_; tag);
}

/// A call that is right as far as Python can tell, and what it keeps.
struct Prepared {
    request: RawRequest,
    /// What the request points to.
    _lengths: [Vec<usize>; 2],
    _pieces: Vec<Vec<Piece>>,
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
        let Resolved { mut request, lengths, pieces } = if collective == Collective::Barrier {
            RawRequest::new(collective, DataType::U8, 0).into()
        } else if collective.has_blocks() || arguments.out.is_some() {
            call.between(&arguments, &mut held)?
        } else {
            call.in_place(&arguments, &mut held)?
        };
        call.complete(&mut request);
        (request.input_lengths, request.output_lengths) =
            (&raw const lengths[0][..], &raw const lengths[1][..]);
        Ok(Prepared {
            request,
            _lengths: lengths,
            _pieces: pieces,
            keep: Keep::new(held, &self.open.under_way),
        })
    }
}
