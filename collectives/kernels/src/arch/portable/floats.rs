//! Floats: those that calculate in themselves, those that are widened to f32, and complex numbers.

use super::{Lane, Ordered, Quotient, Real, Ring, themselves};
use crate::divisor::Divisor;
use crate::fp8::{e4m3_from_f32, e4m3_to_f32, e5m2_from_f32, e5m2_to_f32};
use crate::half_bits::{bf16_from_f32, bf16_to_f32, f16_from_f32, f16_to_f32};

macro_rules! floats {
    ($($float:ident => $divisor:ident,)*) => { $(
        themselves!($float);
        impl Ring for $float {
            #[inline(always)]
            fn add(self, other: Self) -> Self { self + other }
            #[inline(always)]
            fn mul(self, other: Self) -> Self { self * other }
        }
        impl Ordered for $float {
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
        }
        impl Quotient for $float {
            #[inline(always)]
            fn divide<const N: usize>(mut lanes: [Self; N], by: Divisor) -> [Self; N] {
                let divisor = by.$divisor();
                for lane in &mut lanes {
                    *lane /= divisor;
                }
                lanes
            }
        }
        impl Real for $float {
            #[inline(always)]
            fn round(factor: f64) -> Self { factor as Self }
        }
    )* };
}

floats! {
    f32 => as_f32,
    f64 => as_f64,
}

macro_rules! widened {
    ($($(#[$doc:meta])* $name:ident($bits:ty) => $widen:ident, $narrow:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Copy, Clone)]
        #[repr(transparent)]
        pub(in crate::arch) struct $name($bits);

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

widened! {
    /// The bits of a binary16.
    F16(u16) => f16_to_f32, f16_from_f32;
    /// The bits of a bf16.
    BF16(u16) => bf16_to_f32, bf16_from_f32;
    /// The bits of an E4M3.
    E4M3(u8) => e4m3_to_f32, e4m3_from_f32;
    /// The bits of an E5M2.
    E5M2(u8) => e5m2_to_f32, e5m2_from_f32;
}

/// A real and an imaginary part.
#[derive(Copy, Clone)]
#[repr(C)]
pub(in crate::arch) struct Complex<F> {
    re: F,
    im: F,
}

themselves!(Complex<f32>, Complex<f64>);

macro_rules! complex {
    ($($float:ty),*) => { $(
        impl Ring for Complex<$float> {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                Self { re: self.re + other.re, im: self.im + other.im }
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                Self {
                    re: self.re * other.re - self.im * other.im,
                    im: self.re * other.im + self.im * other.re,
                }
            }
        }
    )* };
}

complex!(f32, f64);
