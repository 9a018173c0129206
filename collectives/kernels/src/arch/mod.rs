//! The instruction sets, and the one table that picks a kernel.

use crate::Level;
use crate::kernel::Kernel;
use crate::recipe::{Fold, Form};

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod aarch64;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// Makes `kernel(form, fold)` of an instruction set: for each form its vector, and the folds it has a kernel for, compiled with
/// `$feature` switched on; `None` for what the instruction set leaves to another.
///
/// The kernels of `unrolled` are [`bulk`](crate::kernel::bulk): their entry handles what is smaller than a register; the
/// rest is a function of its own, so that a tiny operation does not pay for the loops' registers; so are odd bytes, to be
/// compiled once. Those of `plain` are [`plain`](crate::kernel::plain).
macro_rules! kernels {
    (
        $(#[$feature:meta])?
        unrolled { $($form:ident($vector:ty): $($fold:ident)+;)* }
        plain { $($plain_form:ident($plain_vector:ty): $($plain_fold:ident)+;)* }
    ) => {
        /// The kernel of this level.
        pub(in crate::arch) fn kernel(
            form: $crate::recipe::Form,
            fold: $crate::recipe::Fold,
        ) -> Option<$crate::kernel::Kernel> {
            use $crate::recipe::{Fold, Form};
            Some(match (form, fold) {
                $($((Form::$form, Fold::$fold) => entry::<$vector, $crate::vector::$fold>,)+)*
                $($((Form::$plain_form, Fold::$plain_fold) => plain::<$plain_vector, $crate::vector::$plain_fold>,)+)*
                #[allow(unreachable_patterns, reason = "no level has a kernel for every pair")]
                _ => return None,
            })
        }

        /// # Safety
        /// `Kernel`'s contract.
        $(#[$feature])?
        unsafe fn plain<V: $crate::vector::Vector, O: $crate::vector::Operator<V>>(
            inputs: &[*const u8],
            outputs: &[*mut u8],
            count: usize,
            parameter: u64,
            _: $crate::Store,
        ) {
            // SAFETY: the contract is passed on.
            unsafe { $crate::kernel::plain::<V, O>(inputs, outputs, count * V::ELEMENT_BYTES, parameter) }
        }

        /// # Safety
        /// `Kernel`'s contract.
        $(#[$feature])?
        pub(in crate::arch) unsafe fn entry<V: $crate::vector::Vector, O: $crate::vector::Operator<V>>(
            inputs: &[*const u8],
            outputs: &[*mut u8],
            count: usize,
            parameter: u64,
            store: $crate::Store,
        ) {
            let bytes = count * V::ELEMENT_BYTES;
            if bytes >= <V::Register as $crate::vector::Register>::BYTES {
                // SAFETY: the contract is passed on; there is at least one register's worth.
                unsafe { bulk::<V, O>(inputs, outputs, bytes, parameter, store) }
            } else {
                // SAFETY: the contract is passed on; there is less than one register's worth.
                unsafe { $crate::kernel::tiny::<V, O>(inputs, outputs, bytes, parameter, partial::<V, O>) }
            }
        }

        /// # Safety
        /// `kernel::bulk`'s contract.
        $(#[$feature])?
        #[inline(never)]
        unsafe fn bulk<V: $crate::vector::Vector, O: $crate::vector::Operator<V>>(
            inputs: &[*const u8],
            outputs: &[*mut u8],
            bytes: usize,
            parameter: u64,
            store: $crate::Store,
        ) {
            // SAFETY: the contract is passed on.
            unsafe { $crate::kernel::bulk::<V, O>(inputs, outputs, bytes, parameter, store, partial::<V, O>) }
        }

        /// # Safety
        /// `kernel::partial`'s contract.
        $(#[$feature])?
        #[inline(never)]
        unsafe fn partial<V: $crate::vector::Vector, O: $crate::vector::Operator<V>>(
            inputs: &[*const u8],
            outputs: &[*mut u8],
            at: usize,
            bytes: usize,
            parameter: u64,
        ) {
            // SAFETY: the contract is passed on.
            unsafe { $crate::kernel::partial::<V, O>(inputs, outputs, at, bytes, parameter) }
        }
    };
}
use kernels;

/// The kernel of a level that this CPU has, or, of what the level leaves to others, theirs.
pub(crate) fn kernel(level: Level, form: Form, fold: Fold) -> Kernel {
    debug_assert!(level.is_available());
    let own = match level {
        Level::Portable => None,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => x86_64::avx2::kernel(form, fold),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => x86_64::avx512::kernel(form, fold).or_else(|| x86_64::avx2::kernel(form, fold)),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Fp16 => match x86_64::avx512_fp16::kernel(form, fold) {
            None => return kernel(Level::Avx512, form, fold),
            own => own,
        },
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        Level::Neon => aarch64::neon::kernel(form, fold),
        #[cfg(not(target_arch = "x86_64"))]
        Level::Avx2 | Level::Avx512 | Level::Avx512Fp16 => unreachable!("{level} is never available here"),
        #[cfg(not(all(target_arch = "aarch64", target_endian = "little")))]
        Level::Neon => unreachable!("{level} is never available here"),
    };
    let Some(kernel) = own.or_else(|| portable::kernel(form, fold)) else {
        unreachable!("the portable level has a kernel for every recipe, but not for {fold:?} of {form:?}")
    };
    kernel
}
