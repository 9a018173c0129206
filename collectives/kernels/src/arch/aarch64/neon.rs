//! Advanced SIMD ("NEON"): registers of 16 bytes.
//!
//! Every AArch64 target of Rust has the instruction set switched on, so that the compiler vectorises the portable
//! kernels with it too. What gains nothing over them, and what has no stable intrinsics (conversions of f16), is
//! theirs.

use std::arch::aarch64::*;
use std::mem::transmute;

use crate::divisor::Divisor;
use crate::partial;
use crate::vector::{Adds, Divides, Multiplies, Orders, Register, Vector};

crate::arch::kernels! {
    #[target_feature(enable = "neon")]
    unrolled {
        U8(U8): Sum Min Max;
        U32(I32): Sum;
        I32(I32): Min Max;
        BF16(BF16): Sum Min Max Avg;
        F32(F32): Sum Min Max Avg;
        F64(F64): Sum Min Max Avg;
    }
    plain {
        BF16(BF16): Prod;
    }
}

impl Register for uint8x16_t {
    const BYTES: usize = 16;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: readable for 16 bytes, as the caller promises; the load needs no alignment.
        unsafe { vld1q_u8(from) }
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, bytes: usize) -> Self {
        // SAFETY: `bytes` is below 16 and readable, as the caller promises; any bits are a register's.
        unsafe { transmute::<u128, Self>(partial::read(from, bytes)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: writable for 16 bytes, as the caller promises; the store needs no alignment.
        unsafe { vst1q_u8(to, self) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, bytes: usize) {
        // SAFETY: `bytes` is below 16 and writable, as the caller promises; any bits are a number's.
        unsafe { partial::write(to, bytes, transmute::<Self, u128>(self)) }
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: the same promise. The architecture's non-temporal hint has no intrinsic; the store is ordinary.
        unsafe { self.store(to) }
    }

    #[inline(always)]
    unsafe fn fence() {}
}

/// A `Vector` whose elements are one register, with its operations as expressions over the registers `$a` and `$b`.
macro_rules! vectors {
    ($($(#[$doc:meta])* $name:ident($register:ty), $bytes:literal,
        { $($vectors:ident { $($method:ident($a:ident, $b:ident) => $result:expr;)* })* })*) => { $(
        $(#[$doc])*
        #[derive(Copy, Clone)]
        struct $name($register);

        #[allow(clippy::useless_transmute, reason = "of the four, U8 is the register itself")]
        impl Vector for $name {
            type Register = uint8x16_t;
            const ELEMENT_BYTES: usize = $bytes;

            #[inline(always)]
            unsafe fn decode(bits: uint8x16_t) -> Self {
                // SAFETY: a register of the same size; every bit pattern is a value.
                Self(unsafe { transmute::<uint8x16_t, $register>(bits) })
            }

            #[inline(always)]
            unsafe fn encode(self) -> uint8x16_t {
                // SAFETY: a register of the same size; every bit pattern is a value.
                unsafe { transmute::<$register, uint8x16_t>(self.0) }
            }
        }

        $(impl $vectors for $name { $(
            #[inline(always)]
            unsafe fn $method(self, other: Self) -> Self {
                let (Self($a), Self($b)) = (self, other);
                // SAFETY: arithmetic on registers; the caller promises the level.
                Self(unsafe { $result })
            }
        )* })*
    )* };
}

vectors! {
    /// 16 elements.
    U8(uint8x16_t), 1, {
        Adds { add(a, b) => vaddq_u8(a, b); }
        Orders {
            min(a, b) => vminq_u8(a, b);
            max(a, b) => vmaxq_u8(a, b);
        }
    }
    /// 4 elements.
    I32(int32x4_t), 4, {
        Adds { add(a, b) => vaddq_s32(a, b); }
        Orders {
            min(a, b) => vminq_s32(a, b);
            max(a, b) => vmaxq_s32(a, b);
        }
    }
    // The architecture's minimum and maximum give NaN for a NaN and hold -0.0 below +0.0: exactly what is specified.
    /// 4 elements.
    F32(float32x4_t), 4, {
        Adds { add(a, b) => vaddq_f32(a, b); }
        Multiplies { mul(a, b) => vmulq_f32(a, b); }
        Orders {
            min(a, b) => vminq_f32(a, b);
            max(a, b) => vmaxq_f32(a, b);
        }
    }
    /// 2 elements.
    F64(float64x2_t), 8, {
        Adds { add(a, b) => vaddq_f64(a, b); }
        Orders {
            min(a, b) => vminq_f64(a, b);
            max(a, b) => vmaxq_f64(a, b);
        }
    }
}

impl Divides for F32 {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { vdivq_f32(self.0, vdupq_n_f32(by.as_f32())) })
    }
}

impl Divides for F64 {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { vdivq_f64(self.0, vdupq_n_f64(by.as_f64())) })
    }
}

/// 8 elements: the even ones and the odd ones, which saves moving any across the register.
#[derive(Copy, Clone)]
struct BF16(float32x4_t, float32x4_t);

impl BF16 {
    /// Rounds to nearest even at bit 16; the lower half is left over.
    ///
    /// # Safety
    /// The CPU has the level.
    #[inline(always)]
    unsafe fn round(value: float32x4_t) -> uint32x4_t {
        // SAFETY: arithmetic on registers; the caller promises the level. `half_bits` tells why it rounds.
        unsafe {
            let bits = vreinterpretq_u32_f32(value);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            vbslq_u32(vceqq_f32(value, value), rounded, quiet)
        }
    }
}

macro_rules! pairwise {
    ($($vectors:ident { $($method:ident),* })*) => {
        $(impl $vectors for BF16 { $(
            #[inline(always)]
            unsafe fn $method(self, other: Self) -> Self {
                // SAFETY: arithmetic on registers; the caller promises the level.
                unsafe { Self(F32(self.0).$method(F32(other.0)).0, F32(self.1).$method(F32(other.1)).0) }
            }
        )* })*
    };
}

pairwise! {
    Adds { add }
    Multiplies { mul }
    Orders { min, max }
}

impl Divides for BF16 {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe { Self(F32(self.0).divide(by).0, F32(self.1).divide(by).0) }
    }
}

impl Vector for BF16 {
    type Register = uint8x16_t;
    const ELEMENT_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn decode(bits: uint8x16_t) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let bits = vreinterpretq_u32_u8(bits);
            let odd = vandq_u32(bits, vdupq_n_u32(0xffff_0000));
            Self(vreinterpretq_f32_u32(vshlq_n_u32::<16>(bits)), vreinterpretq_f32_u32(odd))
        }
    }

    #[inline(always)]
    unsafe fn encode(self) -> uint8x16_t {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let even = vshrq_n_u32::<16>(Self::round(self.0));
            let odd = vandq_u32(Self::round(self.1), vdupq_n_u32(0xffff_0000));
            vreinterpretq_u8_u32(vorrq_u32(even, odd))
        }
    }
}
