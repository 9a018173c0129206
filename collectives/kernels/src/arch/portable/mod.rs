//! Vectors in plain Rust: arrays, over which the compiler vectorises with whatever the target has.

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
        U8(Lanes<u8, 32>): Prod Avg;
        U16(Lanes<u16, 16>): Prod Avg;
        U32(Lanes<u32, 8>): Prod Avg;
        U64(Lanes<u64, 4>): Prod Avg;
        I8(Lanes<i8, 32>): Avg;
        I16(Lanes<i16, 16>): Avg;
        I32(Lanes<i32, 8>): Avg;
        I64(Lanes<i64, 4>): Avg;
        F16(Lanes<F16, 16>): Prod Scale;
        BF16(Lanes<BF16, 16>): Prod Scale;
        F32(Lanes<f32, 8>): Prod Scale;
        F64(Lanes<f64, 4>): Prod Scale;
        E4M3(Lanes<E4M3, 32>): Sum Prod Min Max Avg;
        E5M2(Lanes<E5M2, 32>): Sum Prod Min Max Avg;
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

/// Two registers' worth of bytes for most CPUs; the size of AVX2's.
#[derive(Copy, Clone)]
pub(in crate::arch) struct Bytes([u8; 32]);

impl Register for Bytes {
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: readable for 32 bytes, as the caller promises; byte arrays need no alignment.
        Self(unsafe { from.cast::<[u8; 32]>().read() })
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, bytes: usize) -> Self {
        let first = bytes.min(16);
        // SAFETY: `first` and the rest are at most 16 bytes each and together the caller's `bytes`.
        let (low, high) =
            unsafe { (partial::read(from, first), partial::read(from.add(first), bytes - first)) };
        let mut all = [0; 32];
        all[..16].copy_from_slice(&low.to_le_bytes());
        all[16..].copy_from_slice(&high.to_le_bytes());
        Self(all)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: writable for 32 bytes, as the caller promises; byte arrays need no alignment.
        unsafe { to.cast::<[u8; 32]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, bytes: usize) {
        let first = bytes.min(16);
        let half = |start: usize| {
            let mut half = [0; 16];
            half.copy_from_slice(&self.0[start..start + 16]);
            u128::from_le_bytes(half)
        };
        // SAFETY: `first` and the rest are at most 16 bytes each and together the caller's `bytes`.
        unsafe {
            partial::write(to, first, half(0));
            partial::write(to.add(first), bytes - first, half(16));
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
pub(in crate::arch) struct Lanes<L: Lane, const N: usize>([L::Number; N]);

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

impl<L: Lane, const N: usize> Lanes<L, N> {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(L::Number, L::Number) -> L::Number) -> Self {
        let mut lanes = self.0;
        for (lane, other) in lanes.iter_mut().zip(other.0) {
            *lane = f(*lane, other);
        }
        Self(lanes)
    }
}

impl<L: Lane, const N: usize> Vector for Lanes<L, N> {
    type Register = Bytes;
    const ELEMENT_BYTES: usize = size_of::<L>();

    #[inline(always)]
    unsafe fn decode(bits: Bytes) -> Self {
        const { assert!(size_of::<[L; N]>() == Bytes::BYTES) };
        if L::IS_NUMBER {
            // SAFETY: L is its own Number, so the array is of as many bytes, any of which is a value.
            return Self(unsafe { std::mem::transmute_copy(&bits.0) });
        }
        // SAFETY: as many bytes as the array has, and every bit pattern is a value of a Lane.
        let lanes: [L; N] = unsafe { std::mem::transmute_copy(&bits.0) };
        let mut wide = [lanes[0].widen(); N];
        for (wide, lane) in wide.iter_mut().zip(lanes) {
            *wide = lane.widen();
        }
        Self(wide)
    }

    #[inline(always)]
    unsafe fn encode(self) -> Bytes {
        if L::IS_NUMBER {
            // SAFETY: L is its own Number, so the array is of as many bytes, and has no padding.
            return Bytes(unsafe { std::mem::transmute_copy(&self.0) });
        }
        let mut lanes = [L::narrow(self.0[0]); N];
        for (lane, number) in lanes.iter_mut().zip(self.0) {
            *lane = L::narrow(number);
        }
        // SAFETY: `decode` has checked that the sizes are equal, and a Lane has no padding.
        Bytes(unsafe { std::mem::transmute_copy(&lanes) })
    }
}

/// A trait of vectors for lanes whose numbers have another.
macro_rules! lanewise {
    ($($vectors:ident for $numbers:path { $($method:ident => $each:path),* })*) => { $(
        impl<L: Lane<Number: $numbers>, const N: usize> $vectors for Lanes<L, N> { $(
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

impl<L: Lane<Number: Quotient>, const N: usize> Divides for Lanes<L, N> {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        Self(L::Number::divide(self.0, by))
    }
}

impl<L: Lane<Number: Real>, const N: usize> Scales for Lanes<L, N> {
    #[inline(always)]
    unsafe fn splat(number: f64) -> Self {
        Self([L::Number::round(number); N])
    }
}
