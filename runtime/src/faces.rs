//! The collectives as methods: one row each, from which the asynchronous, the blocking and the borrowing call are made.
//!
//! A row is in place, on one buffer, or from an operand *into* a result. What is named `root` or `op` in it becomes an argument, and that part of the
//! request.

use windlass_collectives::{Collective, Extent};
use windlass_kernels::{Element, ReduceOp};

use crate::communicator::{Blocking, Communicator, exclusive, in_place, shared};
use crate::error::{Error, Problem};
use crate::memory::{Memory, MemoryMut, Span};
use crate::operation::Operation;
use crate::request::RawRequest;
use crate::scope::{Borrowed, Scope};

macro_rules! faces {
    ($($(#[$doc:meta])* $kind:ident $name:ident($($arg:ident: $type:ty),*) = $collective:ident;)*) => {
        /// # The collectives
        ///
        /// Counts are in elements. Where a call takes a root, what concerns the root alone is left alone by the others: there it may
        /// be an empty buffer.
        impl Communicator {
            $(face!(owned $kind [$(#[$doc])*] $name($($arg: $type),*) = $collective);)*
        }

        /// # The collectives
        impl Blocking<'_> {
            $(face!(blocking $kind [$(#[$doc])*] $name($($arg: $type),*) = $collective);)*
        }

        /// # The collectives
        impl<'scope, 'env> Scope<'scope, 'env> {
            $(face!(scoped $kind [$(#[$doc])*] $name($($arg: $type),*) = $collective);)*
        }

        /// # The collectives
        impl BlockingLists<'_> {
            $(listed!(listed $kind [$(#[$doc])*] $name($($arg: $type),*) = $collective);)*
        }

        /// # The collectives
        impl<'scope, 'env> ScopedLists<'scope, 'env> {
            $(listed!(scoped_lists $kind [$(#[$doc])*] $name($($arg: $type),*) = $collective);)*
        }
    };
}

/// The calls that block and borrow, over whatever is [`Memory`]: a [`List`](crate::List) above all. See [`Blocking::lists`].
#[derive(Clone, Copy, Debug)]
pub struct BlockingLists<'c> {
    calls: Blocking<'c>,
}

impl<'c> Blocking<'c> {
    /// The same calls over lists, or other memory that an operation could own, which they borrow.
    ///
    /// ```
    /// use windlass::{List, ReduceOp};
    ///
    /// windlass::threads(2, |comm| {
    ///     let mut gradients = List::new(vec![comm.alloc::<f32>(1000).unwrap(), comm.alloc(20).unwrap()]);
    ///     for step in 1..4 {
    ///         gradients[0].fill(step as f32);
    ///         gradients[1].fill(-1.0);
    ///         comm.blocking().lists().all_reduce(&mut gradients, ReduceOp::Sum).unwrap();
    ///         assert_eq!((gradients[0][999], gradients[1][0]), (2.0 * step as f32, -2.0));
    ///     }
    /// })
    /// .unwrap();
    /// ```
    pub const fn lists(self) -> BlockingLists<'c> {
        BlockingLists { calls: self }
    }
}

/// A scope's calls over whatever is [`Memory`]: a [`List`](crate::List) above all. See [`Scope::lists`].
#[derive(Clone, Copy, Debug)]
pub struct ScopedLists<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
}

impl<'scope, 'env> Scope<'scope, 'env> {
    /// The same calls over lists, or other memory that an operation could own, which they borrow.
    pub const fn lists(&'scope self) -> ScopedLists<'scope, 'env> {
        ScopedLists { scope: self }
    }
}

macro_rules! face {
    (owned in_place [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        pub fn $name<M: MemoryMut>(&self, mut memory: M, $($arg: $type),*) -> Operation<M> {
            let request = in_place(Collective::$collective, memory.span())$(.$arg($arg))*;
            self.start(&request, memory)
        }
    };
    (owned into [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        pub fn $name<I, O>(&self, mut input: I, mut output: O, $($arg: $type),*) -> Operation<(I, O)>
        where
            I: Memory,
            O: MemoryMut<Element = I::Element>,
        {
            let request = into(self, Collective::$collective, (input.span(), output.span()), |r| r$(.$arg($arg))*);
            self.start_checked(request, (input, output))
        }
    };
    (blocking in_place [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        ///
        /// # Errors
        /// See [`Error`].
        #[inline]
        pub fn $name<T: Element>(self, memory: &mut [T], $($arg: $type),*) -> Result<(), Error> {
            self.run(&in_place(Collective::$collective, exclusive(memory))$(.$arg($arg))*)
        }
    };
    (blocking into [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        ///
        /// # Errors
        /// See [`Error`].
        #[inline]
        pub fn $name<T: Element>(self, input: &[T], output: &mut [T], $($arg: $type),*) -> Result<(), Error> {
            let memory = (shared(input), exclusive(output));
            self.run(&into(self.communicator, Collective::$collective, memory, |r| r$(.$arg($arg))*)?)
        }
    };
    (scoped in_place [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        pub fn $name<T: Element>(&'scope self, memory: &'env mut [T], $($arg: $type),*) -> Borrowed<'scope> {
            self.start(Ok(in_place(Collective::$collective, exclusive(memory))$(.$arg($arg))*))
        }
    };
    (scoped into [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        pub fn $name<T: Element>(
            &'scope self,
            input: &'env [T],
            output: &'env mut [T],
            $($arg: $type),*
        ) -> Borrowed<'scope> {
            let memory = (shared(input), exclusive(output));
            self.start(into(self.communicator(), Collective::$collective, memory, |r| r$(.$arg($arg))*))
        }
    };
}

macro_rules! listed {
    (listed in_place [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        ///
        /// # Errors
        /// See [`Error`].
        pub fn $name<M: MemoryMut>(self, memory: &mut M, $($arg: $type),*) -> Result<(), Error> {
            self.calls.run(&in_place(Collective::$collective, memory.span())$(.$arg($arg))*)
        }
    };
    (listed into [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        ///
        /// # Errors
        /// See [`Error`].
        pub fn $name<I, O>(self, input: &mut I, output: &mut O, $($arg: $type),*) -> Result<(), Error>
        where
            I: Memory,
            O: MemoryMut<Element = I::Element>,
        {
            let memory = (input.span(), output.span());
            self.calls.run(&into(self.calls.communicator, Collective::$collective, memory, |r| r$(.$arg($arg))*)?)
        }
    };
    (scoped_lists in_place [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        pub fn $name<M: MemoryMut>(self, memory: &'env mut M, $($arg: $type),*) -> Borrowed<'scope> {
            self.scope.start(Ok(in_place(Collective::$collective, memory.span())$(.$arg($arg))*))
        }
    };
    (scoped_lists into [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) = $collective:ident) => {
        $($doc)*
        pub fn $name<I, O>(self, input: &'env mut I, output: &'env mut O, $($arg: $type),*) -> Borrowed<'scope>
        where
            I: Memory,
            O: MemoryMut<Element = I::Element>,
        {
            let memory = (input.span(), output.span());
            let communicator = self.scope.communicator();
            self.scope.start(into(communicator, Collective::$collective, memory, |r| r$(.$arg($arg))*))
        }
    };
}

faces! {
    /// Reduces every element over all ranks; every rank's memory ends with the result.
    in_place all_reduce(op: ReduceOp) = AllReduce;
    /// Reduces every element of `input` over all ranks into every rank's `output`, of the same length.
    into all_reduce_into(op: ReduceOp) = AllReduce;
    /// Reduces every element over all ranks; the memory of `root` ends with the result, that of the others is as it was.
    in_place reduce(op: ReduceOp, root: u32) = Reduce;
    /// Reduces every element of `input` over all ranks into `root`'s `output`, of the same length.
    into reduce_into(op: ReduceOp, root: u32) = Reduce;
    /// Reduces `input`, of `size()` blocks, over all ranks; rank `r`'s `output` ends with block `r`.
    into reduce_scatter_into(op: ReduceOp) = ReduceScatter;
    /// Collects every rank's `input`, in rank order, in every rank's `output`, of `size()` times its length.
    into all_gather_into() = AllGather;
    /// Collects every rank's `input`, in rank order, in `root`'s `output`, of `size()` times its length.
    into gather_into(root: u32) = Gather;
    /// Gives out `root`'s `input`, of `size()` blocks: rank `r`'s `output` ends with block `r`.
    into scatter_into(root: u32) = Scatter;
    /// Every rank's memory ends with what `root`'s holds.
    in_place broadcast(root: u32) = Broadcast;
    /// Of `input`, of `size()` blocks, gives block `r` to rank `r`; `output`, as long, ends with one block from each rank, in rank order. The
    /// two may not be the same memory.
    into all_to_all_into() = AllToAll;
    /// As [`all_gather_into`](Self::all_gather_into) of blocks of different lengths: `output_lengths` has every rank's, the same list on all ranks, and
    /// `output` is as long as all together.
    into all_gather_v_into(output_lengths: &[usize]) = AllGatherV;
    /// As [`reduce_scatter_into`](Self::reduce_scatter_into) of blocks of different lengths: `input_lengths` has every rank's, the same list on all ranks,
    /// and `input` is as long as all together.
    into reduce_scatter_v_into(input_lengths: &[usize], op: ReduceOp) = ReduceScatterV;
    /// As [`all_to_all_into`](Self::all_to_all_into) of blocks of different lengths: `input_lengths` has those of what this rank sends to each, and
    /// `output_lengths` those of what it receives from each, which must be what those send.
    into all_to_all_v_into(input_lengths: &[usize], output_lengths: &[usize]) = AllToAllV;
    /// As [`gather_into`](Self::gather_into) of blocks of different lengths: at the root `output_lengths` has every rank's, elsewhere it is ignored.
    into gather_v_into(output_lengths: &[usize], root: u32) = GatherV;
    /// As [`scatter_into`](Self::scatter_into) of blocks of different lengths: at the root `input_lengths` has every rank's, elsewhere it is ignored.
    into scatter_v_into(input_lengths: &[usize], root: u32) = ScatterV;
    /// Reduces every element over the ranks up to this one, itself included.
    in_place scan(op: ReduceOp) = Scan;
    /// Reduces every element of `input` over the ranks up to this one, itself included, into `output`, of the same length.
    into scan_into(op: ReduceOp) = Scan;
    /// Reduces every element over the ranks below this one. Rank 0's memory is left as it was.
    in_place exscan(op: ReduceOp) = ExScan;
    /// Reduces every element of `input` over the ranks below this one into `output`, of the same length. Rank 0's `output` is left as it was.
    into exscan_into(op: ReduceOp) = ExScan;
}

/// A request from an operand into a result, whose lengths fit each other.
#[inline]
fn into(
    communicator: &Communicator,
    collective: Collective,
    (input, output): (Span, Span),
    arguments: impl FnOnce(RawRequest) -> RawRequest,
) -> Result<RawRequest, Error> {
    let ranks = communicator.size() as usize;
    let wrong =
        |argument, problem| Err(Error::InvalidArgument { operation: collective.name(), argument, problem });
    let count = match (collective.input(), collective.output()) {
        (Extent::Whole | Extent::Block, _) => input.count,
        (_, Extent::Whole | Extent::Block) => output.count,
        _ if collective.is_uneven() => 0,
        _ if !input.count.is_multiple_of(ranks) => {
            let problem = Problem::NotDivisible { length: input.count as u64, by: ranks as u64 };
            return wrong("the input", problem);
        }
        _ => input.count / ranks,
    };
    let request = RawRequest::new(collective, output.data_type, count);
    let memory = RawRequest {
        input: input.address,
        output: output.address,
        input_pieces: input.pieces,
        output_pieces: output.pieces,
        ..request
    };
    let request = arguments(memory);
    let root = request.root == communicator.rank();
    let (needed_input, needed_output) = match request.sizes(communicator.rank(), communicator.size()) {
        Ok(sizes) => sizes,
        Err((argument, problem)) => return wrong(argument, problem),
    };
    for (argument, extent, expected, actual) in [
        ("the input", collective.input(), needed_input, input.count),
        ("the output", collective.output(), needed_output, output.count),
    ] {
        let ignored = matches!(extent, Extent::WholeAtRoot | Extent::BlocksAtRoot) && !root;
        if !ignored && actual != expected {
            let (expected, actual) = (expected as u64, actual as u64);
            return wrong(argument, Problem::WrongLength { expected, actual });
        }
    }
    Ok(request)
}
