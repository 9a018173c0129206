//! Vectors in plain Rust: arrays, over which the compiler vectorises with whatever the target has.

use crate::divisor::Divisor;
use crate::half_bits::{bf16_from_f32, bf16_to_f32, f16_from_f32, f16_to_f32};
use crate::partial;
use crate::vector::{Register, Vector};

super::kernels! {
    {
        U8 => Lanes<u8, 32>,
        I32 => Lanes<i32, 8>,
        I64 => Lanes<i64, 4>,
        F16 => Lanes<F16, 16>,
        BF16 => Lanes<BF16, 16>,
        F32 => Lanes<f32, 8>,
        F64 => Lanes<f64, 4>,
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

/// An element in memory.
pub(in crate::arch) trait Lane: Copy {
    /// What it is calculated in.
    type Number: Number;
    /// Whether that is the element itself. Loops that convert nothing would keep some compilers from vectorising.
    const IS_NUMBER: bool;
    fn widen(self) -> Self::Number;
    fn narrow(number: Self::Number) -> Self;
}

/// The arithmetic of the crate's documentation.
pub(in crate::arch) trait Number: Copy {
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn divide<const N: usize>(lanes: [Self; N], by: Divisor) -> [Self; N];
}

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

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.each(other, L::Number::add)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.each(other, L::Number::mul)
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.each(other, L::Number::min)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.each(other, L::Number::max)
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        Self(L::Number::divide(self.0, by))
    }
}

macro_rules! integers {
    ($($integer:ty => $divide:ident,)*) => { $(
        impl Lane for $integer {
            type Number = Self;
            const IS_NUMBER: bool = true;
            #[inline(always)]
            fn widen(self) -> Self { self }
            #[inline(always)]
            fn narrow(number: Self) -> Self { number }
        }
        impl Number for $integer {
            #[inline(always)]
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)]
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            #[inline(always)]
            fn min(self, other: Self) -> Self { Ord::min(self, other) }
            #[inline(always)]
            fn max(self, other: Self) -> Self { Ord::max(self, other) }
            #[inline(always)]
            fn divide<const N: usize>(lanes: [Self; N], by: Divisor) -> [Self; N] { by.$divide(lanes) }
        }
    )* };
}

integers! {
    u8 => divide_u8,
    i32 => divide_i32,
    i64 => divide_i64,
}

macro_rules! floats {
    ($($float:ident => $divisor:ident,)*) => { $(
        impl Lane for $float {
            type Number = Self;
            const IS_NUMBER: bool = true;
            #[inline(always)]
            fn widen(self) -> Self { self }
            #[inline(always)]
            fn narrow(number: Self) -> Self { number }
        }
        impl Number for $float {
            #[inline(always)]
            fn add(self, other: Self) -> Self { self + other }
            #[inline(always)]
            fn mul(self, other: Self) -> Self { self * other }
            // Each comparison yields its second operand when the two are equal or not ordered. Where they are
            // ordered, both pick the same value, and `|` or `&` leaves it. For a pair of zeros `|` keeps a minus
            // and `&` drops it. With one NaN the picks differ: `|` keeps all ones in the exponent and some one in
            // the mantissa, which is a NaN; `&` may not, so the maximum asks.
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                let a = if self < other { self } else { other };
                let b = if other < self { other } else { self };
                Self::from_bits(a.to_bits() | b.to_bits())
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                let a = if self > other { self } else { other };
                let b = if other > self { other } else { self };
                let larger = Self::from_bits(a.to_bits() & b.to_bits());
                if self.is_nan() || other.is_nan() { Self::NAN } else { larger }
            }
            #[inline(always)]
            fn divide<const N: usize>(lanes: [Self; N], by: Divisor) -> [Self; N] {
                let divisor = by.$divisor();
                lanes.map(|lane| lane / divisor)
            }
        }
    )* };
}

floats! {
    f32 => as_f32,
    f64 => as_f64,
}

macro_rules! halves {
    ($($(#[$doc:meta])* $name:ident => $widen:ident, $narrow:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Copy, Clone)]
        #[repr(transparent)]
        pub(in crate::arch) struct $name(u16);

        impl Lane for $name {
            type Number = f32;
            const IS_NUMBER: bool = false;
            #[inline(always)]
            fn widen(self) -> f32 { $widen(self.0) }
            #[inline(always)]
            fn narrow(number: f32) -> Self { Self($narrow(number)) }
        }
    )* };
}

halves! {
    /// The bits of a binary16.
    F16 => f16_to_f32, f16_from_f32;
    /// The bits of a bf16.
    BF16 => bf16_to_f32, bf16_from_f32;
}
