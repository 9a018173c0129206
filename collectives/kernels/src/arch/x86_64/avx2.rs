//! AVX2 with F16C: registers of 32 bytes.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{lanewise, load_short, pairwise, store_short};
use crate::divisor::Divisor;
use crate::vector::{Register, Vector};

crate::arch::kernels! {
    #[target_feature(enable = "avx2,f16c")]
    {
        U8 => U8,
        I32 => I32,
        I64 => I64,
        F16 => F16,
        BF16 => BF16,
        F32 => F32,
        F64 => F64,
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

/// 32 elements.
#[derive(Copy, Clone)]
struct U8(__m256i);

impl Vector for U8 {
    type Register = __m256i;
    const ELEMENT_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn decode(bits: __m256i) -> Self {
        Self(bits)
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m256i {
        self.0
    }

    lanewise! {
        add(a, b) => _mm256_add_epi8(a, b);
        min(a, b) => _mm256_min_epu8(a, b);
        max(a, b) => _mm256_max_epu8(a, b);
        // There are products of 16 bits only: of the even bytes in place, of the odd ones shifted down.
        mul(a, b) => {
            let even = _mm256_mullo_epi16(a, b);
            let odd = _mm256_mullo_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
            _mm256_blendv_epi8(_mm256_slli_epi16(odd, 8), even, _mm256_set1_epi16(0x00ff))
        };
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: a register is as large as the array, and every bit pattern is a value of both.
        Self(unsafe { transmute::<[u8; 32], __m256i>(by.divide_u8(transmute::<__m256i, [u8; 32]>(self.0))) })
    }
}

/// 8 elements.
#[derive(Copy, Clone)]
struct I32(__m256i);

impl Vector for I32 {
    type Register = __m256i;
    const ELEMENT_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn decode(bits: __m256i) -> Self {
        Self(bits)
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m256i {
        self.0
    }

    lanewise! {
        add(a, b) => _mm256_add_epi32(a, b);
        mul(a, b) => _mm256_mullo_epi32(a, b);
        min(a, b) => _mm256_min_epi32(a, b);
        max(a, b) => _mm256_max_epi32(a, b);
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: a register is as large as the array, and every bit pattern is a value of both.
        Self(unsafe { transmute::<[i32; 8], __m256i>(by.divide_i32(transmute::<__m256i, [i32; 8]>(self.0))) })
    }
}

/// 4 elements.
#[derive(Copy, Clone)]
struct I64(__m256i);

impl Vector for I64 {
    type Register = __m256i;
    const ELEMENT_BYTES: usize = 8;

    #[inline(always)]
    unsafe fn decode(bits: __m256i) -> Self {
        Self(bits)
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m256i {
        self.0
    }

    lanewise! {
        add(a, b) => _mm256_add_epi64(a, b);
        min(a, b) => _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(a, b));
        max(a, b) => _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b));
        // Modulo 2^64, low * low plus the two mixed products of halves, 32 bits up.
        mul(a, b) => {
            let mixed = _mm256_mullo_epi32(a, _mm256_shuffle_epi32(b, 0b10_11_00_01));
            let mixed = _mm256_add_epi32(mixed, _mm256_srli_epi64(mixed, 32));
            _mm256_add_epi64(_mm256_mul_epu32(a, b), _mm256_slli_epi64(mixed, 32))
        };
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: a register is as large as the array, and every bit pattern is a value of both.
        Self(unsafe { transmute::<[i64; 4], __m256i>(by.divide_i64(transmute::<__m256i, [i64; 4]>(self.0))) })
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

    // Minimum and maximum yield their second operand when the two are equal or not ordered; why taking both orders
    // and `or` or `and` of the two gives signed zeros and NaNs their place is told in `portable`. All ones is a NaN.
    lanewise! {
        add(a, b) => _mm256_add_ps(a, b);
        mul(a, b) => _mm256_mul_ps(a, b);
        min(a, b) => _mm256_or_ps(_mm256_min_ps(a, b), _mm256_min_ps(b, a));
        max(a, b) => {
            let larger = _mm256_and_ps(_mm256_max_ps(a, b), _mm256_max_ps(b, a));
            _mm256_or_ps(larger, _mm256_cmp_ps(a, b, _CMP_UNORD_Q))
        };
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { _mm256_div_ps(self.0, _mm256_set1_ps(by.as_f32())) })
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

    // As F32's.
    lanewise! {
        add(a, b) => _mm256_add_pd(a, b);
        mul(a, b) => _mm256_mul_pd(a, b);
        min(a, b) => _mm256_or_pd(_mm256_min_pd(a, b), _mm256_min_pd(b, a));
        max(a, b) => {
            let larger = _mm256_and_pd(_mm256_max_pd(a, b), _mm256_max_pd(b, a));
            _mm256_or_pd(larger, _mm256_cmp_pd(a, b, _CMP_UNORD_Q))
        };
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { _mm256_div_pd(self.0, _mm256_set1_pd(by.as_f64())) })
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

    pairwise!(F32: add, mul, min, max);

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe { Self(F32(self.0).divide(by).0, F32(self.1).divide(by).0) }
    }
}

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

    pairwise!(F32: add, mul, min, max);

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe { Self(F32(self.0).divide(by).0, F32(self.1).divide(by).0) }
    }
}
