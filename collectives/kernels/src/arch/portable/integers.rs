//! Integers, and integers as truth values.

use super::{Lane, Ordered, Quotient, Ring, themselves};
use crate::divisor::Divisor;

/// A number of bits that is also an element.
pub(in crate::arch) trait Word:
    Copy
    + Eq
    + From<bool>
    + Default
    + std::ops::BitAnd<Output = Self>
    + std::ops::BitOr<Output = Self>
    + std::ops::BitXor<Output = Self>
{
}

macro_rules! integers {
    ($($integer:ty => $divide:ident,)*) => { $(
        themselves!($integer);
        impl Ring for $integer {
            #[inline(always)]
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            #[inline(always)]
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
        }
        impl Ordered for $integer {
            #[inline(always)]
            fn min(self, other: Self) -> Self { Ord::min(self, other) }
            #[inline(always)]
            fn max(self, other: Self) -> Self { Ord::max(self, other) }
        }
        impl Quotient for $integer {
            #[inline(always)]
            fn divide<const N: usize>(lanes: [Self; N], by: Divisor) -> [Self; N] { by.$divide(lanes) }
        }
        impl Word for $integer {}
    )* };
}

integers! {
    u8 => divide_u8,
    u16 => divide_u16,
    u32 => divide_u32,
    u64 => divide_u64,
    i8 => divide_i8,
    i16 => divide_i16,
    i32 => divide_i32,
    i64 => divide_i64,
}

/// An integer of which only counts whether it is 0; calculated as 0 or 1.
#[derive(Copy, Clone)]
#[repr(transparent)]
pub(in crate::arch) struct Truth<W>(W);

impl<W: Word> Lane for Truth<W> {
    type Number = W;
    const IS_NUMBER: bool = false;
    #[inline(always)]
    fn widen(self) -> W {
        W::from(self.0 != W::default())
    }
    #[inline(always)]
    fn narrow(number: W) -> Self {
        Self(number)
    }
}
