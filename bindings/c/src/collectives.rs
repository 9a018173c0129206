//! The collectives: one row each, from which its two functions, their declarations in the header, and the test that none is missing are made.
//!
//! The arguments stand in NCCL's order, the communicator last; in a row, an argument's name says what it becomes of the request.

use std::ffi::{c_int, c_void};

use windlass::{Collective, Communicator, DataType, Extent, RawRequest, ReduceOp};

use crate::communicator::{find, windlass_comm_t};
use crate::error::{Failure, guard, windlass_result_t};
use crate::list::{Lists, windlass_list_t};
use crate::operation::{start, windlass_op_t};
use crate::operator::operator;

/// The type of the elements: one of `windlass_data_type`.
pub type windlass_data_type_t = i32;
/// How the elements of several ranks become one: one of `windlass_reduce_op`, or what `windlass_register_op` gave.
pub type windlass_reduce_op_t = i32;
/// One of `windlass_collective`, for `windlass_post`.
pub type windlass_collective_t = i32;

macro_rules! functions {
    ($($(#[$doc:meta])* $row:ident: $name:ident, $started:ident($($arg:ident: $type:ty),*);)*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type,)* comm: windlass_comm_t) -> windlass_result_t {
                let request = windlass_request_t::of(Collective::$row)$(.$arg($arg))*;
                // SAFETY: the crate's contract.
                guard(stringify!($name), || unsafe { perform(stringify!($name), comm, &request) })
            }

            /// The same, started: see `windlass_op_t`.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $started(
                $($arg: $type,)*
                comm: windlass_comm_t,
                operation: *mut windlass_op_t,
            ) -> windlass_result_t {
                let request = windlass_request_t::of(Collective::$row)$(.$arg($arg))*;
                // SAFETY: the crate's contract.
                guard(stringify!($started), || unsafe { start(stringify!($started), comm, Ok(request), operation) })
            }
        )*

        /// The functions of each collective: the one that blocks and the one that starts.
        #[doc(hidden)]
        pub const FUNCTIONS: &[(Collective, &str, &str)] =
            &[$((Collective::$row, stringify!($name), stringify!($started)),)*];

        /// The same functions as source without bodies, for cbindgen, which does not see through macros.
        #[doc(hidden)]
        pub const DECLARATIONS: &str = concat!($(
            stringify!(
                $(#[$doc])*
                #[unsafe(no_mangle)]
                pub unsafe extern "C" fn $name($($arg: $type,)* comm: windlass_comm_t) -> windlass_result_t {}
                /// The same, started: see `windlass_op_t`.
                #[unsafe(no_mangle)]
                pub unsafe extern "C" fn $started(
                    $($arg: $type,)*
                    comm: windlass_comm_t,
                    operation: *mut windlass_op_t,
                ) -> windlass_result_t {}
            ),
            "\n",
        )*);
    };
}

functions! {
    /// Reduces every element of `input` over all ranks into every rank's `output`; both have `count`
    /// elements, and may be the same memory.
    AllReduce: windlass_all_reduce, windlass_all_reduce_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t, op: windlass_reduce_op_t);
    /// Reduces every element of `input` over all ranks into the root's `output`; both have `count` elements,
    /// and may be the same memory. Other ranks' `output` is not looked at and may be NULL.
    Reduce: windlass_reduce, windlass_reduce_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t, op: windlass_reduce_op_t, root: c_int);
    /// Every rank's `buffer`, of `count` elements, ends with what the root's holds.
    Broadcast: windlass_broadcast, windlass_broadcast_async(
        buffer: *mut c_void, count: usize, data_type: windlass_data_type_t, root: c_int);
    /// Reduces `input`, of a block of `count` elements for each rank, over all ranks; rank r's `output`, of
    /// `count` elements, ends with block r. In place when `output` is this rank's block of `input`.
    ReduceScatter: windlass_reduce_scatter, windlass_reduce_scatter_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t, op: windlass_reduce_op_t);
    /// Collects every rank's `input`, of `count` elements, in rank order in every rank's `output`, of `count`
    /// for each rank. In place when `input` is this rank's block of `output`.
    AllGather: windlass_all_gather, windlass_all_gather_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t);
    /// Collects every rank's `input`, of `count` elements, in rank order in the root's `output`, of `count`
    /// for each rank. Other ranks' `output` is not looked at and may be NULL.
    Gather: windlass_gather, windlass_gather_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t, root: c_int);
    /// Gives out the root's `input`, of a block of `count` elements for each rank: rank r's `output`, of
    /// `count` elements, ends with block r. Other ranks' `input` is not looked at and may be NULL.
    Scatter: windlass_scatter, windlass_scatter_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t, root: c_int);
    /// Of `input`, of a block of `count` elements for each rank, gives block r to rank r; `output`, as long,
    /// ends with one block from each rank, in rank order. The two may not overlap.
    AllToAll: windlass_all_to_all, windlass_all_to_all_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t);
    /// Reduces every element of `input` over the ranks up to this one, itself included, into `output`; both
    /// have `count` elements, and may be the same memory. Not with `WINDLASS_AVG`.
    Scan: windlass_scan, windlass_scan_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t, op: windlass_reduce_op_t);
    /// Reduces every element of `input` over the ranks below this one into `output`; both have `count`
    /// elements, and may be the same memory. Rank 0's `output` is left as it was. Not with `WINDLASS_AVG`.
    ExScan: windlass_exscan, windlass_exscan_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t, op: windlass_reduce_op_t);
    /// As `windlass_all_gather`, of blocks of different lengths: `output_counts` has the elements of every
    /// rank's block, the same list on all ranks. Blocks lie back to back, so there are no displacements.
    AllGatherV: windlass_all_gather_v, windlass_all_gather_v_async(
        input: *const c_void, output: *mut c_void, output_counts: *const usize, data_type: windlass_data_type_t);
    /// As `windlass_reduce_scatter`, of blocks of different lengths: `input_counts` has the elements of every
    /// rank's block, the same list on all ranks.
    ReduceScatterV: windlass_reduce_scatter_v, windlass_reduce_scatter_v_async(
        input: *const c_void, output: *mut c_void, input_counts: *const usize, data_type: windlass_data_type_t,
        op: windlass_reduce_op_t);
    /// As `windlass_gather`, of blocks of different lengths: `count` is this rank's own, and at the root
    /// `output_counts` has every rank's. Elsewhere that is not looked at and may be NULL.
    GatherV: windlass_gather_v, windlass_gather_v_async(
        input: *const c_void, count: usize, output: *mut c_void, output_counts: *const usize,
        data_type: windlass_data_type_t, root: c_int);
    /// As `windlass_scatter`, of blocks of different lengths: `count` is this rank's own, and at the root
    /// `input_counts` has every rank's. Elsewhere that is not looked at and may be NULL.
    ScatterV: windlass_scatter_v, windlass_scatter_v_async(
        input: *const c_void, input_counts: *const usize, output: *mut c_void, count: usize,
        data_type: windlass_data_type_t, root: c_int);
    /// As `windlass_all_to_all`, each pair of ranks with a length of its own: `input_counts` has the elements
    /// that this rank sends to each, `output_counts` those that it receives from each, which must be what
    /// those send.
    AllToAllV: windlass_all_to_all_v, windlass_all_to_all_v_async(
        input: *const c_void, input_counts: *const usize, output: *mut c_void, output_counts: *const usize,
        data_type: windlass_data_type_t);
    /// As `windlass_all_reduce` with the sum of what each rank's `input` is when multiplied by that rank's
    /// own `scalar`.
    AllReduce: windlass_all_reduce_scaled, windlass_all_reduce_scaled_async(
        input: *const c_void, output: *mut c_void, count: usize, data_type: windlass_data_type_t, scalar: f64);
    /// Ends when all ranks have called it.
    Barrier: windlass_barrier, windlass_barrier_async();
    /// Sends `count` elements of `input` to rank `peer`, which must receive as many of the same type and with
    /// the same tag, below UINT32_MAX. Ends when the memory may be used again. Messages are ordered between
    /// two ranks and within a tag, and apart from the collectives.
    Send: windlass_send, windlass_send_async(
        input: *const c_void, count: usize, data_type: windlass_data_type_t, peer: c_int, tag: u32);
    /// Receives `count` elements from whichever rank sends a message of this tag first, and says in `source`
    /// which it was, at the operation's end; NULL if that does not matter.
    Recv: windlass_recv_any, windlass_recv_any_async(
        output: *mut c_void, count: usize, data_type: windlass_data_type_t, source: *mut c_int, tag: u32);
    /// Receives `count` elements from rank `peer`: a message of exactly that length and type, and with the
    /// same tag.
    Recv: windlass_recv, windlass_recv_async(
        output: *mut c_void, count: usize, data_type: windlass_data_type_t, peer: c_int, tag: u32);
}

/// In the place of a recv's peer: whoever sends first.
pub const WINDLASS_ANY_SOURCE: c_int = -1;

/// A call as C gives it: what a collective has no use for is not looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct windlass_request_t {
    /// sizeof(windlass_request_t): says which fields the program knows of.
    pub bytes: usize,
    /// Which collective.
    pub collective: windlass_collective_t,
    /// The elements' type.
    pub data_type: windlass_data_type_t,
    /// The operator.
    pub op: windlass_reduce_op_t,
    /// The root, or the peer of a send or recv, or of a recv `WINDLASS_ANY_SOURCE`.
    pub root: c_int,
    /// The tag of a send or recv.
    pub tag: u32,
    /// Elements, as in the collective's own function.
    pub count: usize,
    /// What is read; not of a broadcast or a recv.
    pub input: *const c_void,
    /// What is written; not of a send. Of a broadcast, the buffer.
    pub output: *mut c_void,
    /// Where blocks differ: the elements of the input's blocks, one number for each rank.
    pub input_counts: *const usize,
    /// The same of the output's.
    pub output_counts: *const usize,
    /// What `WINDLASS_SCALED_SUM` multiplies this rank's input by.
    pub scalar: f64,
    /// Where a recv says who has sent; NULL: nowhere.
    pub source: *mut c_int,
    /// In the place of `input`: many buffers as one vector. NULL: `input`.
    pub input_list: *const windlass_list_t,
    /// In the place of `output`, or of a broadcast's buffer. The same members as `input_list`: in place.
    pub output_list: *const windlass_list_t,
}

/// Runs a request to its end: the collectives as data, for bindings and tables.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_perform(
    request: *const windlass_request_t,
    comm: windlass_comm_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_perform";
    // SAFETY: the crate's contract, for the request and for the memory that it names.
    guard(NAME, || unsafe { perform(NAME, comm, &windlass_request_t::read(NAME, request)?) })
}

/// Starts a request: see `windlass_op_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_post(
    request: *const windlass_request_t,
    comm: windlass_comm_t,
    operation: *mut windlass_op_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_post";
    // SAFETY: the crate's contract, for the request, for the memory that it names, and for `operation`.
    guard(NAME, || unsafe { start(NAME, comm, windlass_request_t::read(NAME, request), operation) })
}

/// Runs a request to its end.
///
/// # Safety
/// The crate's contract, for the memory that the request names.
#[inline]
unsafe fn perform(
    function: &'static str,
    comm: windlass_comm_t,
    request: &windlass_request_t,
) -> Result<(), Failure> {
    let communicator = find(function, comm)?;
    let mut lists = Lists::default();
    // SAFETY: the lists are valid, as the caller promises.
    let request = unsafe { request.with_lists(function, &communicator, &mut lists) }?;
    // SAFETY: the memory is valid during the call, as the caller promises.
    Ok(unsafe { communicator.blocking().perform(&request) }?)
}

impl windlass_request_t {
    #[inline]
    pub(crate) const fn of(collective: Collective) -> Self {
        Self {
            bytes: size_of::<Self>(),
            collective: collective as i32,
            data_type: 0,
            op: 0,
            root: 0,
            tag: 0,
            count: 0,
            input: std::ptr::null(),
            output: std::ptr::null_mut(),
            input_counts: std::ptr::null(),
            output_counts: std::ptr::null(),
            scalar: 1.0,
            source: std::ptr::null_mut(),
            input_list: std::ptr::null(),
            output_list: std::ptr::null(),
        }
    }

    /// # Safety
    /// The pointer is null, or valid for as many bytes as it says in its first field.
    pub(crate) unsafe fn read(function: &'static str, request: *const Self) -> Result<Self, Failure> {
        if request.is_null() {
            return Err(Failure::Null { function, argument: "request" });
        }
        // SAFETY: not null, so valid for its first field at least; all of it once that has said so.
        let (bytes, all) = unsafe { ((*request).bytes, request) };
        if bytes != size_of::<Self>() {
            let (argument, range) = ("request's field `bytes`", "sizeof(windlass_request_t) of this library");
            return Err(Failure::Range { function, argument, value: bytes as i64, range });
        }
        // SAFETY: as above.
        Ok(unsafe { *all })
    }

    /// The call for the runtime, which checks what it means; without its lists.
    #[inline]
    pub(crate) fn checked(
        &self,
        function: &'static str,
        communicator: &Communicator,
    ) -> Result<RawRequest, Failure> {
        let wrong = |what, value: i32, valid| Failure::Code { function, what, value: value.into(), valid };
        let collective = code(self.collective).and_then(Collective::from_code);
        let collective = collective
            .ok_or_else(|| wrong("collective", self.collective, "the values of windlass_collective"))?;
        let mut request = RawRequest::new(collective, DataType::U8, self.count);
        if collective.input() != Extent::Nothing || collective.output() != Extent::Nothing {
            request.data_type = data_type(function, self.data_type)?;
        }
        if collective.reduces() {
            request.op = operator(self.op)
                .ok_or_else(|| wrong("operator", self.op, "the values of windlass_reduce_op"))?;
        }
        if collective.rooted() {
            let argument = if collective.is_point_to_point() { "peer" } else { "root" };
            let range = "0 or more, and below the communicator's size";
            let negative = |_| Failure::Range { function, argument, value: self.root.into(), range };
            let from_any = collective == Collective::Recv && self.root == WINDLASS_ANY_SOURCE;
            let known = u32::try_from(self.root).map_err(negative);
            request.root = if from_any { RawRequest::ANY_SOURCE } else { known? };
        }
        request.tag = self.tag;
        request.scalar = self.scalar;
        if collective == Collective::Recv {
            // A rank is a number of 20 bits.
            request.source = self.source.cast();
        }
        if collective.is_uneven() {
            self.give_counts(function, communicator, &mut request)?;
        }
        (request.input, request.output) = match collective {
            Collective::Send => (self.input.cast(), self.input.cast_mut().cast()),
            Collective::Recv | Collective::Broadcast => (self.output.cast_const().cast(), self.output.cast()),
            _ => (self.input.cast(), self.output.cast()),
        };
        Ok(request)
    }

    /// The lists of counts that this rank must have. Those of others are not looked at.
    fn give_counts(
        &self,
        function: &'static str,
        communicator: &Communicator,
        request: &mut RawRequest,
    ) -> Result<(), Failure> {
        let collective = request.collective;
        for (extent, argument, given, to) in [
            (collective.input(), "input_counts", self.input_counts, &mut request.input_lengths),
            (collective.output(), "output_counts", self.output_counts, &mut request.output_lengths),
        ] {
            let needed = match extent {
                Extent::BlocksAtRoot => request.root == communicator.rank(),
                extent => extent == Extent::Blocks,
            };
            if needed && given.is_null() {
                return Err(Failure::Null { function, argument });
            }
            if needed {
                *to = std::ptr::slice_from_raw_parts(given, communicator.size() as usize);
            }
        }
        Ok(())
    }
}

fn code(code: i32) -> Option<u8> {
    u8::try_from(code).ok()
}

#[inline]
pub(crate) fn data_type(
    function: &'static str,
    data_type: windlass_data_type_t,
) -> Result<DataType, Failure> {
    let known = code(data_type).and_then(DataType::from_code);
    let (what, value, valid) = ("data type", data_type.into(), "the values of windlass_data_type");
    known.ok_or(Failure::Code { function, what, value, valid })
}

/// What an argument of a row becomes of the request.
macro_rules! arguments {
    ($($arg:ident: $type:ty => $field:ident;)*) => {
        impl windlass_request_t {
            $(
                #[inline]
                pub(crate) const fn $arg(mut self, $arg: $type) -> Self {
                    self.$field = $arg;
                    self
                }
            )*
        }
    };
}

arguments! {
    input: *const c_void => input;
    output: *mut c_void => output;
    buffer: *mut c_void => output;
    count: usize => count;
    data_type: windlass_data_type_t => data_type;
    op: windlass_reduce_op_t => op;
    root: c_int => root;
    peer: c_int => root;
    tag: u32 => tag;
    input_counts: *const usize => input_counts;
    output_counts: *const usize => output_counts;
}

impl windlass_request_t {
    /// Whoever asks for the source does not know it.
    #[inline]
    const fn source(mut self, source: *mut c_int) -> Self {
        (self.source, self.root) = (source, WINDLASS_ANY_SOURCE);
        self
    }

    /// Whoever gives a factor means the sum that has one.
    #[inline]
    const fn scalar(mut self, scalar: f64) -> Self {
        (self.scalar, self.op) = (scalar, ReduceOp::ScaledSum.code() as windlass_reduce_op_t);
        self
    }
}

/// The bytes of one element of a type; 0 when there is no such type.
#[unsafe(no_mangle)]
pub extern "C" fn windlass_type_size(data_type: windlass_data_type_t) -> usize {
    code(data_type).and_then(DataType::from_code).map_or(0, DataType::size_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new row of the runtime's table gets its functions here.
    #[test]
    fn every_collective_has_its_functions() {
        for collective in Collective::ALL {
            let name = format!("windlass_{collective}");
            let of = FUNCTIONS.iter().filter(|(known, named, _)| known == collective && *named == name);
            assert_eq!(of.count(), 1, "{name} is not once in {FUNCTIONS:?}");
        }
        for (_, name, started) in FUNCTIONS {
            assert_eq!(*started, format!("{name}_async"));
        }
        // The sum with a factor and the message from anybody are no collectives of their own.
        assert_eq!(FUNCTIONS.len(), Collective::ALL.len() + 2);
    }
}
