//! What has been started and has not been waited for.

use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use windlass::{Error, Operation};

use crate::collectives::windlass_request_t;
use crate::communicator::{find, windlass_comm_t};
use crate::error::{Failure, guard, required, windlass_result_t};
use crate::list::Lists;
use crate::memory::Held;
use crate::table::{PLACES, Table};

/// What a `windlass_op_t` points to, as far as C knows.
#[derive(Debug)]
pub struct windlass_op {
    _opaque: c_void,
}

/// An operation that was started, and runs while the program does something else; NULL for none.
///
/// The memory given to it stays valid, and is not touched otherwise, until `windlass_poll` says that the
/// operation has ended, or `windlass_wait` or `windlass_op_free` has returned. Each operation is ended by one
/// of the last two, which set the handle to NULL; a copy of it is refused from then on.
pub type windlass_op_t = *mut windlass_op;

static OPERATIONS: Table<Started> = Table::new(2);

enum Started {
    Running(Operation<Held>),
    Ended(Result<(), Error>),
}

impl Started {
    /// The result, if the operation has ended; moves it on a little if not.
    fn poll(&mut self) -> Option<Result<(), Error>> {
        if let Self::Running(operation) = self {
            // Nobody is woken: whoever asks asks again, and the progress thread goes on meanwhile.
            match Pin::new(operation).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => return None,
                Poll::Ready(result) => *self = Self::Ended(result.map(drop).map_err(Error::from)),
            }
        }
        match self {
            Self::Running(_) => None,
            Self::Ended(result) => Some(result.clone()),
        }
    }

    fn has_ended(&self) -> bool {
        match self {
            Self::Running(operation) => operation.is_done(),
            Self::Ended(_) => true,
        }
    }

    fn wait(self) -> Result<(), Error> {
        match self {
            Self::Running(operation) => operation.wait().map(drop).map_err(Error::from),
            Self::Ended(result) => result,
        }
    }
}

#[cold]
fn stale(function: &'static str, op: windlass_op_t) -> Failure {
    Failure::Handle { function, what: "operation", handle: op.addr() as u64 }
}

/// Starts a call, and gives out a handle of it.
///
/// # Safety
/// The crate's contract, for the request's memory and for `operation`.
pub(crate) unsafe fn start(
    function: &'static str,
    comm: windlass_comm_t,
    request: Result<windlass_request_t, Failure>,
    operation: *mut windlass_op_t,
) -> Result<(), Failure> {
    // SAFETY: null or valid, by the crate's contract.
    let operation = unsafe { required(operation, function, "operation") }?;
    *operation = std::ptr::null_mut();
    let communicator = find(function, comm)?;
    let mut lists = Lists::default();
    // SAFETY: the lists are valid during the call, by the crate's contract.
    let request = unsafe { request?.with_lists(function, &communicator, &mut lists) }?;
    let held = lists.hold(&request);
    // SAFETY: the memory is valid until the operation has ended, by the crate's contract, and C hears of the end from the operation alone.
    give_out(function, operation, || unsafe { communicator.post(&request, held) })
}

/// Starts an operation, and gives out a handle of it.
pub(crate) fn give_out(
    function: &'static str,
    operation: &mut windlass_op_t,
    post: impl FnOnce() -> Operation<Held>,
) -> Result<(), Failure> {
    // The handle comes first: once it runs, an operation without one could only be waited for.
    let full = Failure::Full { function, most: PLACES };
    let handle = OPERATIONS.insert(Started::Ended(Ok(()))).ok_or(full)?;
    let mut started = Started::Running(post());
    // What is refused has no handle. Only what has ended is asked: asking moves it on, which the caller does not want to wait for.
    if started.has_ended()
        && let Some(Err(error)) = started.poll()
    {
        OPERATIONS.remove(handle);
        return Err(error.into());
    }
    OPERATIONS.with(handle, |reserved| *reserved = started);
    *operation = std::ptr::without_provenance_mut(handle as usize);
    Ok(())
}

/// Says in `done` whether the operation has ended, and moves it on a little if not; never waits. Returns the
/// operation's result once it has ended, else `WINDLASS_SUCCESS`. The operation is still to be waited for or
/// freed. NULL has ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_poll(op: windlass_op_t, done: *mut c_int) -> windlass_result_t {
    const NAME: &str = "windlass_poll";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let done = unsafe { required(done, NAME, "done") }?;
        *done = 1;
        if op.is_null() {
            return Ok(());
        }
        let result = OPERATIONS.with(op.addr() as u64, Started::poll).ok_or_else(|| stale(NAME, op))?;
        *done = c_int::from(result.is_some());
        Ok(result.unwrap_or(Ok(()))?)
    })
}

/// Waits for the operation to end, frees it, sets it to NULL, and returns its result. Waiting for NULL does
/// nothing.
///
/// It ends in any case: with an error when a peer dies, when a rank aborts the communicator, or after
/// WINDLASS_TIMEOUT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_wait(op: *mut windlass_op_t) -> windlass_result_t {
    const NAME: &str = "windlass_wait";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let op = unsafe { required(op, NAME, "op") }?;
        Ok(take(NAME, op)?.map_or(Ok(()), Started::wait)?)
    })
}

/// Waits for `count` operations, in any order of their ends, as `windlass_wait` does for each, also when some
/// fail; returns the first error in the array's order.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_wait_all(ops: *mut windlass_op_t, count: usize) -> windlass_result_t {
    const NAME: &str = "windlass_wait_all";
    guard(NAME, || {
        if count == 0 {
            return Ok(());
        }
        if ops.is_null() {
            return Err(Failure::Null { function: NAME, argument: "ops" });
        }
        // SAFETY: not null, so an array of `count` handles that are the caller's, by the crate's contract.
        let ops = unsafe { std::slice::from_raw_parts_mut(ops, count) };
        let mut result = Ok(());
        for op in ops {
            let ended = take(NAME, op).and_then(|taken| Ok(taken.map_or(Ok(()), Started::wait)?));
            result = result.and(ended);
        }
        result
    })
}

/// Waits for the operation to end, frees it, and sets it to NULL, whatever its result: its memory is safe to
/// free afterwards. It does not cut the operation short; `windlass_comm_abort` does. Freeing NULL does
/// nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_op_free(op: *mut windlass_op_t) -> windlass_result_t {
    const NAME: &str = "windlass_op_free";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let op = unsafe { required(op, NAME, "op") }?;
        // Nobody asks for the result.
        let _ = take(NAME, op)?.map(Started::wait);
        Ok(())
    })
}

/// Takes an operation out of its handle, which becomes NULL; `None` when it is already.
fn take(function: &'static str, op: &mut windlass_op_t) -> Result<Option<Started>, Failure> {
    let old = std::mem::replace(op, std::ptr::null_mut());
    if old.is_null() {
        return Ok(None);
    }
    OPERATIONS.remove(old.addr() as u64).map(Some).ok_or_else(|| stale(function, old))
}
