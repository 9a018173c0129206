//! AVX2 with F16C: registers of 32 bytes.

use std::arch::x86_64::*;

use super::{integers, lanewise, load_short, pairwise, store_short};
use crate::arch::portable::integers::Truth;
use crate::arch::portable::{Lanes, floats};
use crate::divisor::Divisor;
use crate::vector::{Adds, Bits, Divides, Multiplies, Orders, Register, Scales, Vector};

crate::arch::kernels! {
    #[target_feature(enable = "avx2,f16c")]
    unrolled {
        U8(U8): Sum Min Max And Or Xor;
        U16(U16): Sum Min Max;
        U32(U32): Sum Min Max;
        U64(U64): Sum Min Max;
        I8(I8): Min Max;
        I16(I16): Min Max;
        I32(I32): Min Max;
        I64(I64): Min Max;
        F16(F16): Sum Min Max Avg;
        BF16(BF16): Sum Min Max Avg;
        F32(F32): Sum Min Max Avg;
        F64(F64): Sum Min Max Avg;
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
        F16(F16): Prod Scale;
        BF16(BF16): Prod Scale;
        F32(F32): Prod Scale;
        F64(F64): Prod Scale;
        E4M3(Lanes<floats::E4M3, 256, 256>): Sum Prod Min Max Avg;
        E5M2(Lanes<floats::E5M2, 256, 256>): Sum Prod Min Max Avg;
        Truth8(Lanes<Truth<u8>, 32>): And Or Xor;
        Truth16(Lanes<Truth<u16>, 16>): And Or Xor;
        Truth32(Lanes<Truth<u32>, 8>): And Or Xor;
        Truth64(Lanes<Truth<u64>, 4>): And Or Xor;
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

impl Register for __m256i {
    const BYTES: usize = 32;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: readable for 32 bytes and the level present, as the caller promises.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, bytes: usize) -> Self {
        // SAFETY: each piece lies within the caller's `bytes`, and `load_short` reads at most 16.
        unsafe {
            if bytes <= 16 {
                _mm256_zextsi128_si256(load_short(from, bytes))
            } else {
                let lower = _mm_loadu_si128(from.cast());
                let upper = load_short(from.add(16), bytes - 16);
                _mm256_set_m128i(upper, lower)
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: writable for 32 bytes and the level present, as the caller promises.
        unsafe { _mm256_storeu_si256(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, bytes: usize) {
        // SAFETY: each piece lies within the caller's `bytes`, and `store_short` writes at most 16.
        unsafe {
            let lower = _mm256_castsi256_si128(self);
            if bytes <= 16 {
                store_short(to, bytes, lower);
            } else {
                let upper = _mm256_extracti128_si256(self, 1);
                _mm_storeu_si128(to.cast(), lower);
                store_short(to.add(16), bytes - 16, upper);
            }
        }
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: writable for 32 bytes, aligned to 32 and fenced later, as the caller promises.
        unsafe { _mm256_stream_si256(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: an instruction of SSE, which every x86-64 has.
        unsafe { _mm_sfence() }
    }
}

integers! {
    __m256i:
    /// 32 elements.
    U8: 1;
    /// 16 elements.
    U16: 2;
    /// 8 elements.
    U32: 4;
    /// 4 elements.
    U64: 8;
    /// As `U8`.
    I8: 1;
    /// As `U16`.
    I16: 2;
    /// As `U32`.
    I32: 4;
    /// As `U64`.
    I64: 8;
}

lanewise!(Adds for U8 { add(a, b) => _mm256_add_epi8(a, b); });
lanewise!(Adds for U16 { add(a, b) => _mm256_add_epi16(a, b); });
lanewise!(Adds for U32 { add(a, b) => _mm256_add_epi32(a, b); });
lanewise!(Adds for U64 { add(a, b) => _mm256_add_epi64(a, b); });
lanewise!(Bits for U8 {
    and(a, b) => _mm256_and_si256(a, b);
    or(a, b) => _mm256_or_si256(a, b);
    xor(a, b) => _mm256_xor_si256(a, b);
});
lanewise!(Orders for U8 {
    min(a, b) => _mm256_min_epu8(a, b);
    max(a, b) => _mm256_max_epu8(a, b);
});
lanewise!(Orders for I8 {
    min(a, b) => _mm256_min_epi8(a, b);
    max(a, b) => _mm256_max_epi8(a, b);
});
lanewise!(Orders for U16 {
    min(a, b) => _mm256_min_epu16(a, b);
    max(a, b) => _mm256_max_epu16(a, b);
});
lanewise!(Orders for I16 {
    min(a, b) => _mm256_min_epi16(a, b);
    max(a, b) => _mm256_max_epi16(a, b);
});
lanewise!(Orders for U32 {
    min(a, b) => _mm256_min_epu32(a, b);
    max(a, b) => _mm256_max_epu32(a, b);
});
lanewise!(Orders for I32 {
    min(a, b) => _mm256_min_epi32(a, b);
    max(a, b) => _mm256_max_epi32(a, b);
});
lanewise!(Orders for I64 {
    min(a, b) => _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(a, b));
    max(a, b) => _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b));
});
lanewise!(Orders for U64 {
    min(a, b) => _mm256_blendv_epi8(a, b, above(a, b));
    max(a, b) => _mm256_blendv_epi8(b, a, above(a, b));
});

/// Where a is larger, without signs: there is a comparison with signs only.
///
/// # Safety
/// The CPU has the level.
#[inline(always)]
unsafe fn above(a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: arithmetic on registers; the caller promises the level.
    unsafe {
        let top = _mm256_set1_epi64x(i64::MIN);
        _mm256_cmpgt_epi64(_mm256_xor_si256(a, top), _mm256_xor_si256(b, top))
    }
}

/// 8 elements.
#[derive(Copy, Clone)]
struct F32(__m256);

impl Vector for F32 {
    type Register = __m256i;
    const ELEMENT_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn decode(bits: __m256i) -> Self {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        Self(unsafe { _mm256_castsi256_ps(bits) })
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m256i {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        unsafe { _mm256_castps_si256(self.0) }
    }
}

lanewise!(Adds for F32 { add(a, b) => _mm256_add_ps(a, b); });
lanewise!(Multiplies for F32 { mul(a, b) => _mm256_mul_ps(a, b); });
// Minimum and maximum yield their second operand when the two are equal or not ordered; why taking both orders
// and `or` or `and` of the two gives signed zeros and NaNs their place is told in `portable`. All ones is a NaN.
lanewise!(Orders for F32 {
    min(a, b) => _mm256_or_ps(_mm256_min_ps(a, b), _mm256_min_ps(b, a));
    max(a, b) => {
        let larger = _mm256_and_ps(_mm256_max_ps(a, b), _mm256_max_ps(b, a));
        _mm256_or_ps(larger, _mm256_cmp_ps(a, b, _CMP_UNORD_Q))
    };
});

impl Divides for F32 {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { _mm256_div_ps(self.0, _mm256_set1_ps(by.as_f32())) })
    }
}

impl Scales for F32 {
    #[inline(always)]
    unsafe fn splat(number: f64) -> Self {
        // SAFETY: a register of one number; the caller promises the level.
        Self(unsafe { _mm256_set1_ps(number as f32) })
    }
}

/// 4 elements.
#[derive(Copy, Clone)]
struct F64(__m256d);

impl Vector for F64 {
    type Register = __m256i;
    const ELEMENT_BYTES: usize = 8;

    #[inline(always)]
    unsafe fn decode(bits: __m256i) -> Self {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        Self(unsafe { _mm256_castsi256_pd(bits) })
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m256i {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        unsafe { _mm256_castpd_si256(self.0) }
    }
}

lanewise!(Adds for F64 { add(a, b) => _mm256_add_pd(a, b); });
lanewise!(Multiplies for F64 { mul(a, b) => _mm256_mul_pd(a, b); });
// As F32's.
lanewise!(Orders for F64 {
    min(a, b) => _mm256_or_pd(_mm256_min_pd(a, b), _mm256_min_pd(b, a));
    max(a, b) => {
        let larger = _mm256_and_pd(_mm256_max_pd(a, b), _mm256_max_pd(b, a));
        _mm256_or_pd(larger, _mm256_cmp_pd(a, b, _CMP_UNORD_Q))
    };
});

impl Divides for F64 {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { _mm256_div_pd(self.0, _mm256_set1_pd(by.as_f64())) })
    }
}

impl Scales for F64 {
    #[inline(always)]
    unsafe fn splat(number: f64) -> Self {
        // SAFETY: a register of one number; the caller promises the level.
        Self(unsafe { _mm256_set1_pd(number) })
    }
}

/// 16 elements: the lower 8 and the upper 8.
#[derive(Copy, Clone)]
struct F16(__m256, __m256);

impl Vector for F16 {
    type Register = __m256i;
    const ELEMENT_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn decode(bits: __m256i) -> Self {
        // SAFETY: conversions of registers; the caller promises the level.
        unsafe {
            let (lower, upper) = (_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
            Self(_mm256_cvtph_ps(lower), _mm256_cvtph_ps(upper))
        }
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m256i {
        // SAFETY: conversions of registers; the caller promises the level.
        unsafe {
            let (lower, upper) = (_mm256_cvtps_ph::<NEAREST>(self.0), _mm256_cvtps_ph::<NEAREST>(self.1));
            _mm256_set_m128i(upper, lower)
        }
    }
}

pairwise!(F16 of F32: Adds { add } Multiplies { mul } Orders { min, max });

/// 16 elements: the even ones and the odd ones, which saves moving any across the register.
#[derive(Copy, Clone)]
struct BF16(__m256, __m256);

impl BF16 {
    /// Rounds to nearest even at bit 16; the lower half is left over.
    ///
    /// # Safety
    /// The CPU has the level.
    #[inline(always)]
    unsafe fn round(value: __m256) -> __m256i {
        // SAFETY: arithmetic on registers; the caller promises the level. `half_bits` tells why it rounds.
        unsafe {
            let bits = _mm256_castps_si256(value);
            let odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
            _mm256_blendv_epi8(rounded, quiet, nan)
        }
    }
}

impl Vector for BF16 {
    type Register = __m256i;
    const ELEMENT_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn decode(bits: __m256i) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let even = _mm256_slli_epi32(bits, 16);
            let odd = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            Self(_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd))
        }
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m256i {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let even = _mm256_srli_epi32(Self::round(self.0), 16);
            _mm256_blend_epi16(even, Self::round(self.1), 0b1010_1010)
        }
    }
}

pairwise!(BF16 of F32: Adds { add } Multiplies { mul } Orders { min, max });
