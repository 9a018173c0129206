//! What a kernel needs of an instruction set: registers that reach memory, and vectors that calculate.

use crate::divisor::Divisor;

/// One vector register as bytes: everything that touches memory.
///
/// # Safety of the methods
/// The caller runs on a CPU of the implementor's [`Level`](crate::Level), and the addressed bytes are valid for
/// the access. No method needs alignment but `stream`.
pub(crate) trait Register: Copy {
    /// The bytes that one register holds; a power of two.
    const BYTES: usize;

    /// Reads `BYTES` bytes.
    ///
    /// # Safety
    /// The CPU has the level; `from` is readable for `BYTES` bytes.
    unsafe fn load(from: *const u8) -> Self;

    /// Reads `bytes` bytes and not one more; the others are zero.
    ///
    /// # Safety
    /// The CPU has the level; `0 < bytes < BYTES`; `from` is readable for `bytes` bytes.
    unsafe fn load_partial(from: *const u8, bytes: usize) -> Self;

    /// Writes `BYTES` bytes.
    ///
    /// # Safety
    /// The CPU has the level; `to` is writable for `BYTES` bytes.
    unsafe fn store(self, to: *mut u8);

    /// Writes the first `bytes` bytes and not one more.
    ///
    /// # Safety
    /// The CPU has the level; `0 < bytes < BYTES`; `to` is writable for `bytes` bytes.
    unsafe fn store_partial(self, to: *mut u8, bytes: usize);

    /// Writes `BYTES` bytes past the caches where the CPU can.
    ///
    /// # Safety
    /// As `store`; `to` is aligned to `BYTES`, and `fence` is called before anyone is told.
    unsafe fn stream(self, to: *mut u8);

    /// Orders the streamed stores before every later store.
    ///
    /// # Safety
    /// The CPU has the level.
    unsafe fn fence();
}

/// The elements of one register in the form in which they are reduced: 16-bit floats are widened to f32.
///
/// # Safety of the methods
/// The caller runs on a CPU of the implementor's level; they touch no memory.
pub(crate) trait Vector: Copy {
    /// The register that the elements arrive in.
    type Register: Register;
    /// The size of one element in memory.
    const ELEMENT_BYTES: usize;

    /// Takes the elements out of a register. Safety: see the trait.
    unsafe fn decode(bits: Self::Register) -> Self;
    /// Packs (and for 16-bit floats rounds) the elements into a register. Safety: see the trait.
    unsafe fn encode(self) -> Self::Register;
    /// The sums. Safety: see the trait.
    unsafe fn add(self, other: Self) -> Self;
    /// The products. Safety: see the trait.
    unsafe fn mul(self, other: Self) -> Self;
    /// The smaller of each pair. Safety: see the trait.
    unsafe fn min(self, other: Self) -> Self;
    /// The larger of each pair. Safety: see the trait.
    unsafe fn max(self, other: Self) -> Self;
    /// The quotients. Safety: see the trait.
    unsafe fn divide(self, by: Divisor) -> Self;
}

/// A reduction operator at compile time.
pub(crate) trait Operator {
    /// Whether the result is divided at the end.
    const DIVIDES: bool = false;

    /// Folds one more input into the accumulator.
    ///
    /// # Safety
    /// The CPU has `V`'s level.
    unsafe fn fold<V: Vector>(accumulator: V, input: V) -> V;
}

macro_rules! operators {
    ($($(#[$doc:meta])* $name:ident => $method:ident, divides: $divides:literal;)*) => { $(
        $(#[$doc])*
        pub(crate) struct $name;

        impl Operator for $name {
            const DIVIDES: bool = $divides;

            #[inline(always)]
            unsafe fn fold<V: Vector>(accumulator: V, input: V) -> V {
                // SAFETY: the caller promises V's level, which is all the method asks.
                unsafe { accumulator.$method(input) }
            }
        }
    )* };
}

operators! {
    /// [`ReduceOp::Sum`](crate::ReduceOp::Sum).
    Sum => add, divides: false;
    /// [`ReduceOp::Prod`](crate::ReduceOp::Prod).
    Prod => mul, divides: false;
    /// [`ReduceOp::Min`](crate::ReduceOp::Min).
    Min => min, divides: false;
    /// [`ReduceOp::Max`](crate::ReduceOp::Max).
    Max => max, divides: false;
    /// [`ReduceOp::Avg`](crate::ReduceOp::Avg).
    Avg => add, divides: true;
}
