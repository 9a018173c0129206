//! x86-64.

use std::arch::x86_64::*;
use std::mem::transmute;

use crate::partial;

pub(super) mod avx2;
pub(super) mod avx512;
pub(super) mod avx512_fp16;
mod fp8;

/// Reads at most 16 bytes; the others are zero. The usual sizes are single loads: in an all-reduce of one or two
/// numbers this is most of the work.
///
/// # Safety
/// `bytes <= 16`, and `from` is readable for `bytes` bytes.
#[inline(always)]
unsafe fn load_short(from: *const u8, bytes: usize) -> __m128i {
    // SAFETY: SSE2, which every x86-64 has; no arm reads more than `bytes` bytes, and none needs alignment.
    unsafe {
        match bytes {
            8 => _mm_loadl_epi64(from.cast()),
            4 => _mm_loadu_si32(from),
            16 => _mm_loadu_si128(from.cast()),
            _ => transmute::<u128, __m128i>(partial::read(from, bytes)),
        }
    }
}

/// Writes the first `bytes` bytes.
///
/// # Safety
/// `bytes <= 16`, and `to` is writable for `bytes` bytes.
#[inline(always)]
unsafe fn store_short(to: *mut u8, bytes: usize, value: __m128i) {
    // SAFETY: SSE2, which every x86-64 has; no arm writes more than `bytes` bytes, and none needs alignment.
    unsafe {
        match bytes {
            8 => _mm_storel_epi64(to.cast(), value),
            4 => _mm_storeu_si32(to, value),
            16 => _mm_storeu_si128(to.cast(), value),
            _ => partial::write(to, bytes, transmute::<__m128i, u128>(value)),
        }
    }
}

/// A trait of vectors whose methods are one expression over the registers `$a` and `$b`.
macro_rules! lanewise {
    ($vectors:ident for $vector:ident { $($method:ident($a:ident, $b:ident) => $result:expr;)* }) => {
        impl $vectors for $vector { $(
            #[inline(always)]
            unsafe fn $method(self, other: Self) -> Self {
                let (Self($a), Self($b)) = (self, other);
                // SAFETY: arithmetic on registers; the caller promises the level's instructions.
                Self(unsafe { $result })
            }
        )* }
    };
}
use lanewise;

/// Vectors of integers, which are their register.
macro_rules! integers {
    ($register:ident: $($(#[$doc:meta])* $name:ident: $bytes:literal;)*) => { $(
        $(#[$doc])*
        #[derive(Copy, Clone)]
        struct $name($register);

        impl Vector for $name {
            type Register = $register;
            const ELEMENT_BYTES: usize = $bytes;

            #[inline(always)]
            unsafe fn decode(bits: $register) -> Self {
                Self(bits)
            }

            #[inline(always)]
            unsafe fn encode(self) -> $register {
                self.0
            }
        }
    )* };
}
use integers;

/// The arithmetic of a vector of 16-bit floats, which is that of its two vectors of f32.
macro_rules! pairwise {
    ($vector:ident of $float:ident: $($vectors:ident { $($method:ident),* })*) => {
        $(impl $vectors for $vector { $(
            #[inline(always)]
            unsafe fn $method(self, other: Self) -> Self {
                // SAFETY: arithmetic on registers; the caller promises the level's instructions.
                unsafe {
                    Self($float(self.0).$method($float(other.0)).0, $float(self.1).$method($float(other.1)).0)
                }
            }
        )* })*

        impl Divides for $vector {
            #[inline(always)]
            unsafe fn divide(self, by: Divisor) -> Self {
                // SAFETY: arithmetic on registers; the caller promises the level's instructions.
                unsafe { Self($float(self.0).divide(by).0, $float(self.1).divide(by).0) }
            }
        }

        impl Scales for $vector {
            #[inline(always)]
            unsafe fn splat(number: f64) -> Self {
                // SAFETY: arithmetic on registers; the caller promises the level's instructions.
                let factor = unsafe { $float::splat(number).0 };
                Self(factor, factor)
            }
        }
    };
}
use pairwise;
