//! AVX-512 (F, BW, DQ, VL): registers of 64 bytes, a cache line.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::{lanewise, load_short, pairwise, store_short};
use crate::divisor::Divisor;
use crate::vector::{Register, Vector};

crate::arch::kernels! {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

impl Register for __m512i {
    const BYTES: usize = 64;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: readable for 64 bytes and the level present, as the caller promises.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_partial(from: *const u8, bytes: usize) -> Self {
        // A masked access that reaches into an inaccessible page, or meets a pending store, takes the CPU far longer
        // than plain ones. What fits 16 bytes, where nanoseconds count, is therefore read plainly.
        // SAFETY: readable for `bytes`, as the caller promises; bytes that the mask leaves out are not accessed.
        unsafe {
            if bytes <= 16 {
                _mm512_zextsi128_si512(load_short(from, bytes))
            } else {
                _mm512_maskz_loadu_epi8(mask(bytes), from.cast())
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: writable for 64 bytes and the level present, as the caller promises.
        unsafe { _mm512_storeu_si512(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut u8, bytes: usize) {
        // SAFETY: writable for `bytes`, as the caller promises; bytes that the mask leaves out are not accessed.
        unsafe {
            if bytes <= 16 {
                store_short(to, bytes, _mm512_castsi512_si128(self));
            } else {
                _mm512_mask_storeu_epi8(to.cast(), mask(bytes), self);
            }
        }
    }

    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: writable for 64 bytes, aligned to 64 and fenced later, as the caller promises.
        unsafe { _mm512_stream_si512(to.cast(), self) }
    }

    #[inline(always)]
    unsafe fn fence() {
        // SAFETY: an instruction of SSE, which every x86-64 has.
        unsafe { _mm_sfence() }
    }
}

/// The mask of the first `bytes` bytes, of which there are 1 to 63.
#[inline(always)]
fn mask(bytes: usize) -> u64 {
    u64::MAX >> (64 - bytes)
}

/// 64 elements.
#[derive(Copy, Clone)]
struct U8(__m512i);

impl Vector for U8 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        Self(bits)
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        self.0
    }

    lanewise! {
        add(a, b) => _mm512_add_epi8(a, b);
        min(a, b) => _mm512_min_epu8(a, b);
        max(a, b) => _mm512_max_epu8(a, b);
        // There are products of 16 bits only: of the even bytes in place, of the odd ones shifted down.
        mul(a, b) => {
            let even = _mm512_mullo_epi16(a, b);
            let odd = _mm512_mullo_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
            _mm512_mask_blend_epi8(0xaaaa_aaaa_aaaa_aaaa, even, _mm512_slli_epi16(odd, 8))
        };
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: a register is as large as the array, and every bit pattern is a value of both.
        Self(unsafe { transmute::<[u8; 64], __m512i>(by.divide_u8(transmute::<__m512i, [u8; 64]>(self.0))) })
    }
}

/// 16 elements.
#[derive(Copy, Clone)]
struct I32(__m512i);

impl Vector for I32 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        Self(bits)
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        self.0
    }

    lanewise! {
        add(a, b) => _mm512_add_epi32(a, b);
        mul(a, b) => _mm512_mullo_epi32(a, b);
        min(a, b) => _mm512_min_epi32(a, b);
        max(a, b) => _mm512_max_epi32(a, b);
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: a register is as large as the array, and every bit pattern is a value of both.
        Self(unsafe {
            transmute::<[i32; 16], __m512i>(by.divide_i32(transmute::<__m512i, [i32; 16]>(self.0)))
        })
    }
}

/// 8 elements.
#[derive(Copy, Clone)]
struct I64(__m512i);

impl Vector for I64 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 8;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        Self(bits)
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        self.0
    }

    lanewise! {
        add(a, b) => _mm512_add_epi64(a, b);
        mul(a, b) => _mm512_mullo_epi64(a, b);
        min(a, b) => _mm512_min_epi64(a, b);
        max(a, b) => _mm512_max_epi64(a, b);
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: a register is as large as the array, and every bit pattern is a value of both.
        Self(unsafe { transmute::<[i64; 8], __m512i>(by.divide_i64(transmute::<__m512i, [i64; 8]>(self.0))) })
    }
}

/// 16 elements.
#[derive(Copy, Clone)]
struct F32(__m512);

impl Vector for F32 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        Self(unsafe { _mm512_castsi512_ps(bits) })
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        unsafe { _mm512_castps_si512(self.0) }
    }

    // Minimum and maximum yield their second operand when the two are equal or not ordered; why taking both orders
    // and `or` or `and` of the two gives signed zeros and NaNs their place is told in `portable`.
    lanewise! {
        add(a, b) => _mm512_add_ps(a, b);
        mul(a, b) => _mm512_mul_ps(a, b);
        min(a, b) => _mm512_or_ps(_mm512_min_ps(a, b), _mm512_min_ps(b, a));
        max(a, b) => {
            let larger = _mm512_and_ps(_mm512_max_ps(a, b), _mm512_max_ps(b, a));
            let unordered = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
            _mm512_mask_blend_ps(unordered, larger, _mm512_set1_ps(f32::NAN))
        };
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { _mm512_div_ps(self.0, _mm512_set1_ps(by.as_f32())) })
    }
}

/// 8 elements.
#[derive(Copy, Clone)]
struct F64(__m512d);

impl Vector for F64 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 8;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        Self(unsafe { _mm512_castsi512_pd(bits) })
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        unsafe { _mm512_castpd_si512(self.0) }
    }

    // As F32's.
    lanewise! {
        add(a, b) => _mm512_add_pd(a, b);
        mul(a, b) => _mm512_mul_pd(a, b);
        min(a, b) => _mm512_or_pd(_mm512_min_pd(a, b), _mm512_min_pd(b, a));
        max(a, b) => {
            let larger = _mm512_and_pd(_mm512_max_pd(a, b), _mm512_max_pd(b, a));
            let unordered = _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q);
            _mm512_mask_blend_pd(unordered, larger, _mm512_set1_pd(f64::NAN))
        };
    }

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { _mm512_div_pd(self.0, _mm512_set1_pd(by.as_f64())) })
    }
}

/// 32 elements: the lower 16 and the upper 16.
#[derive(Copy, Clone)]
struct F16(__m512, __m512);

impl Vector for F16 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        // SAFETY: conversions of registers; the caller promises the level.
        unsafe {
            let (lower, upper) = (_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64(bits, 1));
            Self(_mm512_cvtph_ps(lower), _mm512_cvtph_ps(upper))
        }
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        // SAFETY: conversions of registers; the caller promises the level.
        unsafe {
            let (lower, upper) = (_mm512_cvtps_ph::<NEAREST>(self.0), _mm512_cvtps_ph::<NEAREST>(self.1));
            _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1)
        }
    }

    pairwise!(F32: add, mul, min, max);

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe { Self(F32(self.0).divide(by).0, F32(self.1).divide(by).0) }
    }
}

/// 32 elements: the even ones and the odd ones, which saves moving any across the register.
#[derive(Copy, Clone)]
struct BF16(__m512, __m512);

impl BF16 {
    /// Rounds to nearest even at bit 16; the lower half is left over. The CPU's own conversion (AVX512_BF16) would
    /// flush subnormals to zero.
    ///
    /// # Safety
    /// The CPU has the level.
    #[inline(always)]
    unsafe fn round(value: __m512) -> __m512i {
        // SAFETY: arithmetic on registers; the caller promises the level. `half_bits` tells why it rounds.
        unsafe {
            let bits = _mm512_castps_si512(value);
            let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
            _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000))
        }
    }
}

impl Vector for BF16 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let even = _mm512_slli_epi32(bits, 16);
            let odd = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            Self(_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd))
        }
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let even = _mm512_srli_epi32(Self::round(self.0), 16);
            _mm512_mask_blend_epi16(0xaaaa_aaaa, even, Self::round(self.1))
        }
    }

    pairwise!(F32: add, mul, min, max);

    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe { Self(F32(self.0).divide(by).0, F32(self.1).divide(by).0) }
    }
}
