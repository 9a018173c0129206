//! The instruction sets, and the one table that picks a kernel.

use crate::kernel::Kernel;
use crate::{DataType, Level, ReduceOp};

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod aarch64;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// Makes `kernel(data_type, op)` of an instruction set: its entry points, compiled with `$feature` switched on,
/// and the vector of each data type. The entry handles what is smaller than a register; the rest is a function of
/// its own, so that a tiny operation does not pay for the loops' registers; so are odd bytes, to be compiled once.
macro_rules! kernels {
    ($(#[$feature:meta])? { $($data_type:ident => $vector:ty,)* }) => {
        /// The kernel of this level.
        pub(in crate::arch) fn kernel(data_type: $crate::DataType, op: $crate::ReduceOp) -> $crate::kernel::Kernel {
            match data_type {
                $($crate::DataType::$data_type => of_vector::<$vector>(op),)*
            }
        }

        fn of_vector<V: $crate::vector::Vector>(op: $crate::ReduceOp) -> $crate::kernel::Kernel {
            use $crate::vector::{Avg, Max, Min, Prod, Sum};
            match op {
                $crate::ReduceOp::Sum => entry::<V, Sum>,
                $crate::ReduceOp::Prod => entry::<V, Prod>,
                $crate::ReduceOp::Min => entry::<V, Min>,
                $crate::ReduceOp::Max => entry::<V, Max>,
                $crate::ReduceOp::Avg => entry::<V, Avg>,
            }
        }

        /// # Safety
        /// `Kernel`'s contract.
        $(#[$feature])?
        unsafe fn entry<V: $crate::vector::Vector, O: $crate::vector::Operator>(
            inputs: &[*const u8],
            outputs: &[*mut u8],
            count: usize,
            divisor: u64,
            store: $crate::Store,
        ) {
            let bytes = count * V::ELEMENT_BYTES;
            if bytes >= <V::Register as $crate::vector::Register>::BYTES {
                // SAFETY: the contract is passed on; there is at least one register's worth.
                unsafe { bulk::<V, O>(inputs, outputs, bytes, divisor, store) }
            } else {
                // SAFETY: the contract is passed on; there is less than one register's worth.
                unsafe { $crate::kernel::tiny::<V, O>(inputs, outputs, bytes, divisor, partial::<V, O>) }
            }
        }

        /// # Safety
        /// `kernel::bulk`'s contract.
        $(#[$feature])?
        #[inline(never)]
        unsafe fn bulk<V: $crate::vector::Vector, O: $crate::vector::Operator>(
            inputs: &[*const u8],
            outputs: &[*mut u8],
            bytes: usize,
            divisor: u64,
            store: $crate::Store,
        ) {
            // SAFETY: the contract is passed on.
            unsafe { $crate::kernel::bulk::<V, O>(inputs, outputs, bytes, divisor, store, partial::<V, O>) }
        }

        /// # Safety
        /// `kernel::partial`'s contract.
        $(#[$feature])?
        #[inline(never)]
        unsafe fn partial<V: $crate::vector::Vector, O: $crate::vector::Operator>(
            inputs: &[*const u8],
            outputs: &[*mut u8],
            at: usize,
            bytes: usize,
            divisor: u64,
        ) {
            // SAFETY: the contract is passed on.
            unsafe { $crate::kernel::partial::<V, O>(inputs, outputs, at, bytes, divisor) }
        }
    };
}
use kernels;

/// The kernel of a level that this CPU has.
pub(crate) fn kernel(level: Level, data_type: DataType, op: ReduceOp) -> Kernel {
    debug_assert!(level.is_available());
    match level {
        Level::Portable => portable::kernel(data_type, op),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => x86_64::avx2::kernel(data_type, op),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => x86_64::avx512::kernel(data_type, op),
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => aarch64::neon::kernel(data_type, op),
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 => unreachable!("{level} is never available here"),
        #[cfg(not(all(target_arch = "aarch64", target_endian = "little")))]
        Level::Neon => unreachable!("{level} is never available here"),
    }
}
