//! Vectors in plain Rust: arrays, over which the compiler vectorises with whatever the target has.

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays are not always inlined, and then not vectorised"
)]

use crate::divisor::Divisor;
use crate::partial;
use crate::vector::{Adds, Bits, Divides, Multiplies, Orders, Register, Scales, Vector};

pub(in crate::arch) mod floats;
pub(in crate::arch) mod integers;
mod pairs;

use floats::{BF16, Complex, E4M3, E5M2, F16};
use integers::Truth;
use pairs::Pair;

super::kernels! {
    unrolled {
        U8(Lanes<u8, 32>): Sum Min Max And Or Xor;
        U16(Lanes<u16, 16>): Sum Min Max;
        U32(Lanes<u32, 8>): Sum Min Max;
        U64(Lanes<u64, 4>): Sum Min Max;
        I8(Lanes<i8, 32>): Min Max;
        I16(Lanes<i16, 16>): Min Max;
        I32(Lanes<i32, 8>): Min Max;
        I64(Lanes<i64, 4>): Min Max;
        F16(Lanes<F16, 16>): Sum Min Max Avg;
        BF16(Lanes<BF16, 16>): Sum Min Max Avg;
        F32(Lanes<f32, 8>): Sum Min Max Avg;
        F64(Lanes<f64, 4>): Sum Min Max Avg;
    }
    plain {
        U8(Lanes<u8, 32>): Prod;
        U8(Lanes<u8, 256, 256>): Avg;
        U16(Lanes<u16, 16>): Prod;
        U16(Lanes<u16, 128, 256>): Avg;
        U32(Lanes<u32, 8>): Prod;
        U32(Lanes<u32, 64, 256>): Avg;
        U64(Lanes<u64, 4>): Prod;
        U64(Lanes<u64, 32, 256>): Avg;
        I8(Lanes<i8, 256, 256>): Avg;
        I16(Lanes<i16, 128, 256>): Avg;
        I32(Lanes<i32, 64, 256>): Avg;
        I64(Lanes<i64, 32, 256>): Avg;
        F16(Lanes<F16, 16>): Prod Scale;
        BF16(Lanes<BF16, 16>): Prod Scale;
        F32(Lanes<f32, 8>): Prod Scale;
        F64(Lanes<f64, 4>): Prod Scale;
        E4M3(Lanes<E4M3, 256, 256>): Sum Prod Min Max Avg;
        E5M2(Lanes<E5M2, 256, 256>): Sum Prod Min Max Avg;
        Truth8(Lanes<Truth<u8>, 32>): And Or Xor;
        Truth16(Lanes<Truth<u16>, 16>): And Or Xor;
        Truth32(Lanes<Truth<u32>, 8>): And Or Xor;
        Truth64(Lanes<Truth<u64>, 4>): And Or Xor;
        Complex64(Lanes<Complex<f32>, 4>): Prod;
        Complex128(Lanes<Complex<f64>, 2>): Prod;
        F32I32(Lanes<Pair<f32, i32>, 4>): Min Max;
        F64I32(Lanes<Pair<f64, i32, i32>, 2>): Min Max;
        I32I32(Lanes<Pair<i32, i32>, 4>): Min Max;
        F64I64(Lanes<Pair<f64, i64>, 2>): Min Max;
        I64I64(Lanes<Pair<i64, i64>, 2>): Min Max;
    }
}

/// Bytes that are handled together. 32 are AVX2's register, and two of most other CPUs. Of what has to be converted, a page's
/// sixteenth: loops as long as that are not unrolled, and what is not unrolled is vectorised.
#[derive(Copy, Clone)]
pub(in crate::arch) struct Bytes<const B: usize>([u8; B]);

impl<const B: usize> Register for Bytes<B> {
    const BYTES: usize = B;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: readable for B bytes, as the caller promises; byte arrays need no alignment.
        Self(unsafe { from.cast::<[u8; B]>().read() })
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, bytes: usize) -> Self {
        let mut all = [0; B];
        for (piece, at) in all.chunks_exact_mut(16).zip((0..bytes).step_by(16)) {
            // SAFETY: `at` is below the caller's `bytes`, and not more than is left of them is read.
            let value = unsafe { partial::read(from.add(at), (bytes - at).min(16)) };
            piece.copy_from_slice(&value.to_le_bytes());
        }
        Self(all)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: writable for B bytes, as the caller promises; byte arrays need no alignment.
        unsafe { to.cast::<[u8; B]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, bytes: usize) {
        for (piece, at) in self.0.chunks_exact(16).zip((0..bytes).step_by(16)) {
            let mut value = [0; 16];
            value.copy_from_slice(piece);
            // SAFETY: `at` is below the caller's `bytes`, and not more than is left of them is written.
            unsafe { partial::write(to.add(at), (bytes - at).min(16), u128::from_le_bytes(value)) }
        }
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: the same promise. Plain Rust has no other store.
        unsafe { self.store(to) }
    }

    #[inline(always)]
    unsafe fn fence() {}
}

/// The elements of one register, widened.
#[derive(Copy, Clone)]
pub(in crate::arch) struct Lanes<L: Lane, const N: usize, const B: usize = 32>([L::Number; N]);

/// An element in memory. Every pattern of its bits is one, and there is no padding.
pub(in crate::arch) trait Lane: Copy {
    /// What it is calculated in.
    type Number: Copy;
    /// Whether that is the element itself. Loops that convert nothing would keep some compilers from vectorising.
    const IS_NUMBER: bool;
    fn widen(self) -> Self::Number;
    fn narrow(number: Self::Number) -> Self;
}

/// A number that can be added and multiplied, as the crate's documentation says.
pub(in crate::arch) trait Ring: Copy {
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
}

/// A number that can be divided.
pub(in crate::arch) trait Quotient: Copy {
    fn divide<const N: usize>(lanes: [Self; N], by: Divisor) -> [Self; N];
}

/// Something of which there is a smaller and a larger.
pub(in crate::arch) trait Ordered: Copy {
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
}

/// A number that a factor is rounded to.
pub(in crate::arch) trait Real: Ring {
    fn round(factor: f64) -> Self;
}

/// Elements that are their own numbers.
macro_rules! themselves {
    ($($lane:ty),*) => { $(
        impl crate::arch::portable::Lane for $lane {
            type Number = Self;
            const IS_NUMBER: bool = true;
            #[inline(always)]
            fn widen(self) -> Self {
                self
            }
            #[inline(always)]
            fn narrow(number: Self) -> Self {
                number
            }
        }
    )* };
}
use themselves;

impl<L: Lane, const N: usize, const B: usize> Lanes<L, N, B> {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(L::Number, L::Number) -> L::Number) -> Self {
        let mut lanes = self.0;
        for n in 0..N {
            lanes[n] = f(lanes[n], other.0[n]);
        }
        Self(lanes)
    }
}

impl<L: Lane, const N: usize, const B: usize> Vector for Lanes<L, N, B> {
    type Register = Bytes<B>;
    const ELEMENT_BYTES: usize = size_of::<L>();

    #[inline(always)]
    unsafe fn decode(bits: Bytes<B>) -> Self {
        const { assert!(size_of::<[L; N]>() == B) };
        if L::IS_NUMBER {
            // SAFETY: L is its own Number, so the array is of as many bytes, any of which is a value.
            return Self(unsafe { std::mem::transmute_copy(&bits.0) });
        }
        // SAFETY: as many bytes as the array has, and every bit pattern is a value of a Lane.
        let lanes: [L; N] = unsafe { std::mem::transmute_copy(&bits.0) };
        let mut wide = [lanes[0].widen(); N];
        for n in 0..N {
            wide[n] = lanes[n].widen();
        }
        Self(wide)
    }

    #[inline(always)]
    unsafe fn encode(self) -> Bytes<B> {
        if L::IS_NUMBER {
            // SAFETY: L is its own Number, so the array is of as many bytes, and has no padding.
            return Bytes(unsafe { std::mem::transmute_copy(&self.0) });
        }
        let mut lanes = [L::narrow(self.0[0]); N];
        for n in 0..N {
            lanes[n] = L::narrow(self.0[n]);
        }
        // SAFETY: `decode` has checked that the sizes are equal, and a Lane has no padding.
        Bytes(unsafe { std::mem::transmute_copy(&lanes) })
    }
}

/// A trait of vectors for lanes whose numbers have another.
macro_rules! lanewise {
    ($($vectors:ident for $numbers:path { $($method:ident => $each:path),* })*) => { $(
        impl<L: Lane<Number: $numbers>, const N: usize, const B: usize> $vectors for Lanes<L, N, B> { $(
            #[inline(always)]
            unsafe fn $method(self, other: Self) -> Self {
                self.each(other, $each)
            }
        )* }
    )* };
}

lanewise! {
    Adds for Ring { add => Ring::add }
    Multiplies for Ring { mul => Ring::mul }
    Orders for Ordered { min => Ordered::min, max => Ordered::max }
    Bits for integers::Word {
        and => std::ops::BitAnd::bitand,
        or => std::ops::BitOr::bitor,
        xor => std::ops::BitXor::bitxor
    }
}

impl<L: Lane<Number: Quotient>, const N: usize, const B: usize> Divides for Lanes<L, N, B> {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        Self(L::Number::divide(self.0, by))
    }
}

impl<L: Lane<Number: Real>, const N: usize, const B: usize> Scales for Lanes<L, N, B> {
    #[inline(always)]
    unsafe fn splat(number: f64) -> Self {
        Self([L::Number::round(number); N])
    }
}
