//! AVX-512 (F, BW, DQ, VL): registers of 64 bytes, a cache line.

use std::arch::x86_64::*;

use super::fp8::Wide;
use super::{integers, lanewise, load_short, pairwise, store_short};
use crate::divisor::Divisor;
use crate::vector::{Adds, Bits, Divides, Multiplies, Orders, Register, Scales, Vector};

crate::arch::kernels! {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
        E4M3(Wide<false>): Sum;
        E5M2(Wide<true>): Sum;
    }
    plain {
        F16(F16): Prod Scale;
        BF16(BF16): Prod Scale;
        F32(F32): Prod Scale;
        F64(F64): Prod Scale;
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

integers! {
    __m512i:
    /// 64 elements.
    U8: 1;
    /// 32 elements.
    U16: 2;
    /// 16 elements.
    U32: 4;
    /// 8 elements.
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

lanewise!(Adds for U8 { add(a, b) => _mm512_add_epi8(a, b); });
lanewise!(Adds for U16 { add(a, b) => _mm512_add_epi16(a, b); });
lanewise!(Adds for U32 { add(a, b) => _mm512_add_epi32(a, b); });
lanewise!(Adds for U64 { add(a, b) => _mm512_add_epi64(a, b); });
lanewise!(Bits for U8 {
    and(a, b) => _mm512_and_si512(a, b);
    or(a, b) => _mm512_or_si512(a, b);
    xor(a, b) => _mm512_xor_si512(a, b);
});
lanewise!(Orders for U8 {
    min(a, b) => _mm512_min_epu8(a, b);
    max(a, b) => _mm512_max_epu8(a, b);
});
lanewise!(Orders for I8 {
    min(a, b) => _mm512_min_epi8(a, b);
    max(a, b) => _mm512_max_epi8(a, b);
});
lanewise!(Orders for U16 {
    min(a, b) => _mm512_min_epu16(a, b);
    max(a, b) => _mm512_max_epu16(a, b);
});
lanewise!(Orders for I16 {
    min(a, b) => _mm512_min_epi16(a, b);
    max(a, b) => _mm512_max_epi16(a, b);
});
lanewise!(Orders for U32 {
    min(a, b) => _mm512_min_epu32(a, b);
    max(a, b) => _mm512_max_epu32(a, b);
});
lanewise!(Orders for I32 {
    min(a, b) => _mm512_min_epi32(a, b);
    max(a, b) => _mm512_max_epi32(a, b);
});
lanewise!(Orders for U64 {
    min(a, b) => _mm512_min_epu64(a, b);
    max(a, b) => _mm512_max_epu64(a, b);
});
lanewise!(Orders for I64 {
    min(a, b) => _mm512_min_epi64(a, b);
    max(a, b) => _mm512_max_epi64(a, b);
});

/// 16 elements.
#[derive(Copy, Clone)]
pub(super) struct F32(pub(super) __m512);

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
}

lanewise!(Adds for F32 { add(a, b) => _mm512_add_ps(a, b); });
lanewise!(Multiplies for F32 { mul(a, b) => _mm512_mul_ps(a, b); });
// Minimum and maximum yield their second operand when the two are equal or not ordered; why taking both orders
// and `or` or `and` of the two gives signed zeros and NaNs their place is told in `portable`.
lanewise!(Orders for F32 {
    min(a, b) => _mm512_or_ps(_mm512_min_ps(a, b), _mm512_min_ps(b, a));
    max(a, b) => {
        let larger = _mm512_and_ps(_mm512_max_ps(a, b), _mm512_max_ps(b, a));
        let unordered = _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q);
        _mm512_mask_blend_ps(unordered, larger, _mm512_set1_ps(f32::NAN))
    };
});

impl Divides for F32 {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { _mm512_div_ps(self.0, _mm512_set1_ps(by.as_f32())) })
    }
}

impl Scales for F32 {
    #[inline(always)]
    unsafe fn splat(number: f64) -> Self {
        // SAFETY: a register of one number; the caller promises the level.
        Self(unsafe { _mm512_set1_ps(number as f32) })
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
}

lanewise!(Adds for F64 { add(a, b) => _mm512_add_pd(a, b); });
lanewise!(Multiplies for F64 { mul(a, b) => _mm512_mul_pd(a, b); });
// As F32's.
lanewise!(Orders for F64 {
    min(a, b) => _mm512_or_pd(_mm512_min_pd(a, b), _mm512_min_pd(b, a));
    max(a, b) => {
        let larger = _mm512_and_pd(_mm512_max_pd(a, b), _mm512_max_pd(b, a));
        let unordered = _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q);
        _mm512_mask_blend_pd(unordered, larger, _mm512_set1_pd(f64::NAN))
    };
});

impl Divides for F64 {
    #[inline(always)]
    unsafe fn divide(self, by: Divisor) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        Self(unsafe { _mm512_div_pd(self.0, _mm512_set1_pd(by.as_f64())) })
    }
}

impl Scales for F64 {
    #[inline(always)]
    unsafe fn splat(number: f64) -> Self {
        // SAFETY: a register of one number; the caller promises the level.
        Self(unsafe { _mm512_set1_pd(number) })
    }
}

/// 32 elements: the lower 16 and the upper 16.
#[derive(Copy, Clone)]
pub(super) struct F16(__m512, __m512);

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
}

pairwise!(F16 of F32: Adds { add } Multiplies { mul } Orders { min, max });

/// 32 elements: the even ones and the odd ones, which saves moving any across the register.
#[derive(Copy, Clone)]
pub(super) struct BF16(pub(super) __m512, pub(super) __m512);

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
}

pairwise!(BF16 of F32: Adds { add } Multiplies { mul } Orders { min, max });
