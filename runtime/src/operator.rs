//! Operators that a program brings along: a name, a type, and a function of two runs of elements.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use windlass_kernels::{DataType, Element, ReduceOp, UserOp};

use crate::communicator::Communicator;
use crate::error::{Error, Problem};
use crate::group::lock;

/// The most operators of a job on a rank.
const MOST: usize = 256;
const MOST_NAME_BYTES: usize = 255;

/// Combines `count` elements at the second address into those at the first.
type Fold = dyn Fn(*mut u8, *const u8, usize) + Send + Sync;

/// A program's own operator.
pub(crate) struct Operator {
    op: UserOp,
    name: String,
    data_type: DataType,
    fold: Box<Fold>,
}

/// The operator panicked.
#[derive(Debug)]
pub(crate) struct Panicked;

impl Operator {
    /// Combines `count` elements at `x` into those at `acc`.
    ///
    /// # Safety
    /// Both are aligned for the type and of so many elements, which nobody else touches meanwhile.
    pub(crate) unsafe fn fold_into(&self, acc: *mut u8, x: *const u8, count: usize) -> Result<(), Panicked> {
        // What it leaves half done is thrown away with the operation.
        catch_unwind(AssertUnwindSafe(|| (self.fold)(acc, x, count))).map_err(|_| Panicked)
    }

    pub(crate) const fn data_type(&self) -> DataType {
        self.data_type
    }
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator")
            .field("name", &self.name)
            .field("data_type", &self.data_type)
            .finish_non_exhaustive()
    }
}

/// The operators that a rank has registered. They stay as long as the job: what is under way may use them.
#[derive(Debug, Default)]
pub(crate) struct Operators(Mutex<Vec<Arc<Operator>>>);

impl Operators {
    pub(crate) fn find(&self, op: UserOp) -> Option<Arc<Operator>> {
        lock(&self.0).iter().find(|known| known.op == op).cloned()
    }

    fn register(&self, name: &str, data_type: DataType, fold: Box<Fold>) -> Result<ReduceOp, Problem> {
        if name.is_empty() || name.len() > MOST_NAME_BYTES {
            return Err(Problem::WrongLength { expected: MOST_NAME_BYTES as u64, actual: name.len() as u64 });
        }
        let op = UserOp::named(name);
        let mut operators = lock(&self.0);
        if operators.iter().any(|known| known.op == op) {
            return Err(Problem::NameTaken);
        }
        if operators.len() == MOST {
            return Err(Problem::OutOfRange { value: MOST as u64, limit: MOST as u64 });
        }
        operators.push(Arc::new(Operator { op, name: name.to_owned(), data_type, fold }));
        Ok(ReduceOp::User(op))
    }
}

impl Communicator {
    /// Registers an operator of this program under a name, for all communicators of this rank's job: `fold(acc, x)` combines every element of `x`
    /// into the one of `acc` at the same place. Each rank that takes part in a reduction with it registers it under the same name; ranks whose
    /// names differ are told by [`Error::Mismatch`].
    ///
    /// Operands are folded from the left in rank order, so the operator need neither be commutative nor associative. It is called on private
    /// copies of the operands, a few KiB at a time, by whichever thread drives the operation and without a lock of windlass; it may take its time,
    /// but must not call the communicator whose operation it is part of. When it panics, the communicator is aborted on all its ranks. Device memory
    /// goes through the host. An average has no meaning here: divide in the operator or after it.
    ///
    /// # Errors
    /// `InvalidArgument` when the name is empty, longer than 255 bytes or taken, or there are 256 operators already.
    ///
    /// ```
    /// let largest = windlass::threads(2, |comm| {
    ///     let by_magnitude = |acc: &mut [f32], x: &[f32]| {
    ///         for (acc, x) in acc.iter_mut().zip(x) {
    ///             if x.abs() > acc.abs() {
    ///                 *acc = *x;
    ///             }
    ///         }
    ///     };
    ///     let op = comm.register_op("largest magnitude", by_magnitude).unwrap();
    ///     let mut values = if comm.rank() == 0 { [-3.0f32, 1.0] } else { [2.0, -5.0] };
    ///     comm.blocking().all_reduce(&mut values, op).unwrap();
    ///     values
    /// });
    /// assert_eq!(largest.unwrap(), [[-3.0, -5.0]; 2]);
    /// ```
    pub fn register_op<T: Element>(
        &self,
        name: &str,
        fold: impl Fn(&mut [T], &[T]) + Send + Sync + 'static,
    ) -> Result<ReduceOp, Error> {
        let fold = move |acc: *mut u8, x: *const u8, count| {
            // SAFETY: who calls the operator gives two private runs of so many initialised elements, aligned for the type; elements are plain
            // data, of which every bit pattern is one.
            let (acc, x) = unsafe {
                (
                    std::slice::from_raw_parts_mut(acc.cast::<T>(), count),
                    std::slice::from_raw_parts(x.cast(), count),
                )
            };
            fold(acc, x);
        };
        self.register_boxed(name, T::DATA_TYPE, Box::new(fold))
    }

    /// As [`register_op`](Self::register_op), of elements whose type is known at run time only: `fold(acc, x, count)` gets two aligned addresses of
    /// `count` elements each, which are nobody else's during the call. A function and its context, from C or Python, are a closure here; what
    /// unwinds out of it aborts the communicator.
    ///
    /// # Errors
    /// As [`register_op`](Self::register_op).
    ///
    /// # Safety
    /// Called with what is said above, `fold` accesses nothing that it must not.
    pub unsafe fn register_raw_op(
        &self,
        name: &str,
        data_type: DataType,
        fold: impl Fn(*mut u8, *const u8, usize) + Send + Sync + 'static,
    ) -> Result<ReduceOp, Error> {
        self.register_boxed(name, data_type, Box::new(fold))
    }

    fn register_boxed(&self, name: &str, data_type: DataType, fold: Box<Fold>) -> Result<ReduceOp, Error> {
        let operation = "register_op";
        self.group().usable(operation)?;
        let registered = self.group().job.operators.register(name, data_type, fold);
        registered.map_err(|problem| {
            let argument = if matches!(problem, Problem::OutOfRange { .. }) {
                "the number of operators"
            } else {
                "the operator's name"
            };
            Error::InvalidArgument { operation, argument, problem }
        })
    }
}
