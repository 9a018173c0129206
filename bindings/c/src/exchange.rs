//! Several messages as one call: what is posted together never waits for each other.

use std::ffi::{c_int, c_void};

use windlass::{Collective, Communicator, Error, Problem, RawRequest};

use crate::collectives::{windlass_data_type_t, windlass_request_t};
use crate::communicator::{find, windlass_comm_t};
use crate::error::{Failure, guard, required, windlass_result_t};
use crate::memory::Held;
use crate::operation::{give_out, windlass_op_t};

/// Sends and receives any number of messages as one call, which ends with the last of them, or with the first
/// error: each of the `count` requests is a `WINDLASS_SEND` or a `WINDLASS_RECV`. All are posted before any is
/// waited for, so no order of peers stands still. What a rank sends to itself it receives in the same call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_exchange(
    requests: *const windlass_request_t,
    count: usize,
    comm: windlass_comm_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_exchange";
    // SAFETY: the crate's contract, for the requests and for the memory that they name.
    guard(NAME, || unsafe { perform(NAME, comm, || read(NAME, requests, count)) })
}

/// The same, started: see `windlass_op_t`. The requests are read during the call only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_exchange_async(
    requests: *const windlass_request_t,
    count: usize,
    comm: windlass_comm_t,
    operation: *mut windlass_op_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_exchange_async";
    // SAFETY: the crate's contract, for the requests, the memory that they name, and `operation`.
    guard(NAME, || unsafe { start(NAME, comm, operation, || read(NAME, requests, count)) })
}

/// Sends `input` to rank `to` and receives `output` from rank `from`, the same or another or `WINDLASS_ANY_SOURCE`,
/// at once: ranks that all send along a ring get through. The two may not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_sendrecv(
    input: *const c_void,
    input_count: usize,
    to: c_int,
    output: *mut c_void,
    output_count: usize,
    from: c_int,
    data_type: windlass_data_type_t,
    tag: u32,
    comm: windlass_comm_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_sendrecv";
    let pair = || Ok(pair((input, input_count, to), (output, output_count, from), data_type, tag));
    // SAFETY: the crate's contract, for the memory.
    guard(NAME, || unsafe { perform(NAME, comm, pair) })
}

/// The same, started: see `windlass_op_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_sendrecv_async(
    input: *const c_void,
    input_count: usize,
    to: c_int,
    output: *mut c_void,
    output_count: usize,
    from: c_int,
    data_type: windlass_data_type_t,
    tag: u32,
    comm: windlass_comm_t,
    operation: *mut windlass_op_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_sendrecv_async";
    let pair = || Ok(pair((input, input_count, to), (output, output_count, from), data_type, tag));
    // SAFETY: the crate's contract, for the memory and for `operation`.
    guard(NAME, || unsafe { start(NAME, comm, operation, pair) })
}

fn pair(
    (input, input_count, to): (*const c_void, usize, c_int),
    (output, output_count, from): (*mut c_void, usize, c_int),
    data_type: windlass_data_type_t,
    tag: u32,
) -> Vec<windlass_request_t> {
    let message = |collective| windlass_request_t::of(collective).data_type(data_type).tag(tag);
    let sent = message(Collective::Send).input(input).count(input_count).peer(to);
    vec![sent, message(Collective::Recv).output(output).count(output_count).peer(from)]
}

/// # Safety
/// The requests are null, or `count` of them are valid.
unsafe fn read(
    function: &'static str,
    requests: *const windlass_request_t,
    count: usize,
) -> Result<Vec<windlass_request_t>, Failure> {
    if requests.is_null() && count > 0 {
        return Err(Failure::Null { function, argument: "requests" });
    }
    // SAFETY: the caller's.
    (0..count).map(|at| unsafe { windlass_request_t::read(function, requests.wrapping_add(at)) }).collect()
}

fn checked(
    function: &'static str,
    communicator: &Communicator,
    requests: &[windlass_request_t],
) -> Result<Vec<RawRequest>, Failure> {
    let checked = |request: &windlass_request_t| {
        if request.is_listed() {
            let (operation, argument, problem) = (function, "the buffer", Problem::Listed);
            return Err(Error::InvalidArgument { operation, argument, problem }.into());
        }
        request.checked(function, communicator)
    };
    requests.iter().map(checked).collect()
}

/// # Safety
/// The crate's contract, for the memory that the requests name.
unsafe fn perform(
    function: &'static str,
    comm: windlass_comm_t,
    requests: impl FnOnce() -> Result<Vec<windlass_request_t>, Failure>,
) -> Result<(), Failure> {
    let communicator = find(function, comm)?;
    let requests = checked(function, &communicator, &requests()?)?;
    // SAFETY: the memory is valid during the call, as the caller promises.
    Ok(unsafe { communicator.blocking().perform_exchange(&requests) }?)
}

/// # Safety
/// The crate's contract, for the memory that the requests name and for `operation`.
unsafe fn start(
    function: &'static str,
    comm: windlass_comm_t,
    operation: *mut windlass_op_t,
    requests: impl FnOnce() -> Result<Vec<windlass_request_t>, Failure>,
) -> Result<(), Failure> {
    // SAFETY: null or valid, by the crate's contract.
    let operation = unsafe { required(operation, function, "operation") }?;
    *operation = std::ptr::null_mut();
    let communicator = find(function, comm)?;
    let requests = checked(function, &communicator, &requests()?)?;
    let held = Held::around(requests.iter().map(|request| request.output.cast_const()));
    // SAFETY: the memory is valid until the operation has ended, by the crate's contract.
    give_out(function, operation, || unsafe { communicator.post_exchange(&requests, held) })
}
