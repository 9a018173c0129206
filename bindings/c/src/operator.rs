//! Operators that a program brings along.

use std::ffi::{CStr, c_char, c_void};

use windlass::{ReduceOp, UserOp};

use crate::collectives::{data_type, windlass_data_type_t, windlass_reduce_op_t};
use crate::communicator::{find, windlass_comm_t};
use crate::error::{Failure, guard, required, windlass_result_t};

/// An operator: combines every one of the `count` elements at `x` into the one at `acc` in the same place. The
/// elements are private copies. It is called by any thread, several at once, and must neither call windlass with
/// the communicator whose operation it is part of, nor leave by longjmp or by an exception.
pub type windlass_fold_t =
    Option<unsafe extern "C" fn(acc: *mut c_void, x: *const c_void, count: usize, context: *mut c_void)>;

/// What a function gets of its own.
struct Context(*mut c_void);

// SAFETY: only the function looks at it, which any thread may call, by its contract.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    const fn get(&self) -> *mut c_void {
        self.0
    }
}

/// Registers an operator under a name, for all communicators of this rank's job, and gives the number by which
/// reductions take it. Ranks that reduce with it register it under the same name. Operands are folded from the left
/// in rank order, so it need not be commutative. `fold` and `context` stay valid as long as the job.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_register_op(
    name: *const c_char,
    data_type: windlass_data_type_t,
    fold: windlass_fold_t,
    context: *mut c_void,
    comm: windlass_comm_t,
    op: *mut windlass_reduce_op_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_register_op";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let op = unsafe { required(op, NAME, "op") }?;
        if name.is_null() {
            return Err(Failure::Null { function: NAME, argument: "name" });
        }
        let fold = fold.ok_or(Failure::Null { function: NAME, argument: "fold" })?;
        // SAFETY: not null, so a string that ends with a NUL, by the crate's contract.
        let name = unsafe { CStr::from_ptr(name) }.to_str();
        let name = name.map_err(|_| Failure::NotText { function: NAME, argument: "name" })?;
        let elements = self::data_type(NAME, data_type)?;
        let communicator = find(NAME, comm)?;
        let context = Context(context);
        let fold = move |acc: *mut u8, x: *const u8, count: usize| {
            // SAFETY: the function is valid as long as the job, and is given what it is promised.
            unsafe { fold(acc.cast(), x.cast(), count, context.get()) };
        };
        // SAFETY: by its contract, the function touches nothing but what it is given.
        let registered = unsafe { communicator.register_raw_op(name, elements, fold) }?;
        *op = number(registered);
        Ok(())
    })
}

/// Operators of windlass's have numbers from 0, those of a program's own below.
const fn number(op: ReduceOp) -> windlass_reduce_op_t {
    match op {
        // A number of 31 bits.
        ReduceOp::User(op) => !(op.number() as i32),
        op => op.code() as i32,
    }
}

/// The operator of a number, also of one that nobody has registered.
pub(crate) fn operator(number: windlass_reduce_op_t) -> Option<ReduceOp> {
    match u32::try_from(!number) {
        Ok(own) => UserOp::from_number(own).map(ReduceOp::User),
        Err(_) => u8::try_from(number).ok().and_then(ReduceOp::from_code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operator_has_a_number_of_its_own() {
        for &op in ReduceOp::ALL {
            assert_eq!(operator(number(op)), Some(op));
        }
        for own in [0, 1, 0x1234_5678, (1 << 31) - 1] {
            let op = ReduceOp::User(UserOp::from_number(own).unwrap());
            assert!(number(op) < 0);
            assert_eq!(operator(number(op)), Some(op));
        }
        assert_eq!((operator(200), operator(i32::MAX)), (None, None));
    }
}
