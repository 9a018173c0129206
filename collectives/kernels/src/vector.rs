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

/// The elements of one register in the form in which they are reduced: 16-bit and 8-bit floats are widened to f32.
///
/// What else a vector can do, the traits below say; no instruction set has vectors for everything.
///
/// # Safety of the methods, and of the other traits'
/// The caller runs on a CPU of the implementor's level; they touch no memory.
pub(crate) trait Vector: Copy {
    /// The register that the elements arrive in.
    type Register: Register;
    /// The size of one element in memory.
    const ELEMENT_BYTES: usize;

    /// Takes the elements out of a register. Safety: see the trait.
    unsafe fn decode(bits: Self::Register) -> Self;
    /// Packs (and for small floats rounds) the elements into a register. Safety: see the trait.
    unsafe fn encode(self) -> Self::Register;
}

/// Vectors that can be added.
pub(crate) trait Adds: Vector {
    /// The sums. Safety: see `Vector`.
    unsafe fn add(self, other: Self) -> Self;
}

/// Vectors that can be multiplied.
pub(crate) trait Multiplies: Vector {
    /// The products. Safety: see `Vector`.
    unsafe fn mul(self, other: Self) -> Self;
}

/// Vectors that can be divided.
pub(crate) trait Divides: Vector {
    /// The quotients. Safety: see `Vector`.
    unsafe fn divide(self, by: Divisor) -> Self;
}

/// Vectors of numbers that can be scaled.
pub(crate) trait Scales: Multiplies {
    /// `number`, rounded to the type that the vector calculates in, in each place. Safety: see `Vector`.
    unsafe fn splat(number: f64) -> Self;
}

/// Vectors of which there is a smaller and a larger.
pub(crate) trait Orders: Vector {
    /// The smaller of each pair. Safety: see `Vector`.
    unsafe fn min(self, other: Self) -> Self;
    /// The larger of each pair. Safety: see `Vector`.
    unsafe fn max(self, other: Self) -> Self;
}

/// Vectors of bits.
pub(crate) trait Bits: Vector {
    /// The conjunctions. Safety: see `Vector`.
    unsafe fn and(self, other: Self) -> Self;
    /// The disjunctions. Safety: see `Vector`.
    unsafe fn or(self, other: Self) -> Self;
    /// The differences. Safety: see `Vector`.
    unsafe fn xor(self, other: Self) -> Self;
}

/// A reduction operator at compile time.
pub(crate) trait Operator<V: Vector> {
    /// Folds one more input into the accumulator.
    ///
    /// # Safety
    /// The CPU has `V`'s level.
    unsafe fn fold(accumulator: V, input: V) -> V;

    /// What is left to do when all inputs are folded.
    ///
    /// # Safety
    /// The CPU has `V`'s level.
    #[inline(always)]
    unsafe fn finish(accumulator: V, parameter: u64) -> V {
        let _ = parameter;
        accumulator
    }
}

macro_rules! operators {
    ($($(#[$doc:meta])* $name:ident: $needs:ident => $method:ident;)*) => { $(
        $(#[$doc])*
        pub(crate) struct $name;

        impl<V: $needs> Operator<V> for $name {
            #[inline(always)]
            unsafe fn fold(accumulator: V, input: V) -> V {
                // SAFETY: the caller promises V's level, which is all the method asks.
                unsafe { accumulator.$method(input) }
            }
        }
    )* };
}

operators! {
    /// [`Fold::Sum`](crate::recipe::Fold::Sum).
    Sum: Adds => add;
    /// [`Fold::Prod`](crate::recipe::Fold::Prod).
    Prod: Multiplies => mul;
    /// [`Fold::Min`](crate::recipe::Fold::Min).
    Min: Orders => min;
    /// [`Fold::Max`](crate::recipe::Fold::Max).
    Max: Orders => max;
    /// [`Fold::And`](crate::recipe::Fold::And).
    And: Bits => and;
    /// [`Fold::Or`](crate::recipe::Fold::Or).
    Or: Bits => or;
    /// [`Fold::Xor`](crate::recipe::Fold::Xor).
    Xor: Bits => xor;
}

/// [`Fold::Avg`](crate::recipe::Fold::Avg): the parameter is the divisor.
pub(crate) struct Avg;

impl<V: Adds + Divides> Operator<V> for Avg {
    #[inline(always)]
    unsafe fn fold(accumulator: V, input: V) -> V {
        // SAFETY: the caller promises V's level, which is all the method asks.
        unsafe { accumulator.add(input) }
    }

    #[inline(always)]
    unsafe fn finish(accumulator: V, parameter: u64) -> V {
        match Divisor::new(parameter) {
            // SAFETY: the caller promises V's level, which is all the method asks.
            Some(divisor) => unsafe { accumulator.divide(divisor) },
            None => accumulator,
        }
    }
}

/// [`Fold::Scale`](crate::recipe::Fold::Scale): the parameter is the factor, the bits of an f64.
pub(crate) struct Scale;

impl<V: Scales> Operator<V> for Scale {
    /// Of a single input, which `Combine` sees to, nothing is folded.
    #[inline(always)]
    unsafe fn fold(accumulator: V, _: V) -> V {
        accumulator
    }

    #[inline(always)]
    unsafe fn finish(accumulator: V, parameter: u64) -> V {
        // SAFETY: the caller promises V's level, which is all the methods ask.
        unsafe { accumulator.mul(V::splat(f64::from_bits(parameter))) }
    }
}
