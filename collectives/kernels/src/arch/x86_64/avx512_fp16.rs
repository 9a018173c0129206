//! AVX-512 FP16 and BF16: what they make faster without another result than widening to f32 has.

use std::arch::x86_64::*;

use super::avx512::{self, F32};
use super::fp8::{Halves, Wide};
use super::{lanewise, pairwise};
use crate::Store;
use crate::divisor::Divisor;
use crate::kernel::Kernel;
use crate::recipe::{Fold, Form};
use crate::vector::{Adds, Divides, Multiplies, Orders, Scales, Sum, Vector};

mod table {
    use super::{BF16, F16};

    crate::arch::kernels! {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16,avx512bf16")]
        unrolled {
            F16(F16): Sum Min Max;
            BF16(BF16): Sum Avg;
        }
        plain {
            BF16(BF16): Scale;
        }
    }
}

/// The kernel of this level.
pub(in crate::arch) fn kernel(form: Form, fold: Fold) -> Option<Kernel> {
    match (form, fold) {
        (Form::F16, Fold::Sum) => Some(sum::<F16, avx512::F16>),
        (Form::E4M3, Fold::Sum) => Some(sum::<Halves<false>, Wide<false>>),
        (Form::E5M2, Fold::Sum) => Some(sum::<Halves<true>, Wide<true>>),
        _ => table::kernel(form, fold),
    }
}

/// Two numbers of 11 bits, added in f32's 24 and then rounded to 11 again, are what adding them and rounding once gives: that
/// holds where the wider format has twice the bits and two more, as binary16 has for the 8-bit floats. More than two keep f32's
/// precision between them.
///
/// # Safety
/// `Kernel`'s contract.
unsafe fn sum<Two: Adds, Many: Adds>(
    inputs: &[*const u8],
    outputs: &[*mut u8],
    count: usize,
    parameter: u64,
    store: Store,
) {
    // SAFETY: the contract is passed on; the CPU has this level and so the one below.
    unsafe {
        if inputs.len() == 2 {
            table::entry::<Two, Sum>(inputs, outputs, count, parameter, store);
        } else {
            avx512::entry::<Many, Sum>(inputs, outputs, count, parameter, store);
        }
    }
}

/// 32 elements.
#[derive(Copy, Clone)]
struct F16(__m512h);

impl Vector for F16 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        Self(unsafe { _mm512_castsi512_ph(bits) })
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        // SAFETY: the same bits in a register of the same size; the caller promises the level.
        unsafe { _mm512_castph_si512(self.0) }
    }
}

lanewise!(Adds for F16 { add(a, b) => _mm512_add_ph(a, b); });
// As F32's of AVX-512. They are exact, so that it does not matter how many there are.
lanewise!(Orders for F16 {
    min(a, b) => {
        let (one, other) = (_mm512_castph_si512(_mm512_min_ph(a, b)), _mm512_castph_si512(_mm512_min_ph(b, a)));
        _mm512_castsi512_ph(_mm512_or_si512(one, other))
    };
    max(a, b) => {
        let (one, other) = (_mm512_castph_si512(_mm512_max_ph(a, b)), _mm512_castph_si512(_mm512_max_ph(b, a)));
        let unordered = _mm512_cmp_ph_mask::<_CMP_UNORD_Q>(a, b);
        let nan = _mm512_set1_epi16(0x7e00);
        _mm512_castsi512_ph(_mm512_mask_blend_epi16(unordered, _mm512_and_si512(one, other), nan))
    };
});

/// The places of the even elements and of the odd ones, where all even ones come first.
const INTERLEAVED: [u16; 32] = {
    let (mut places, mut at) = ([0; 32], 0);
    while at < 32 {
        places[at] = (at / 2 + at % 2 * 16) as u16;
        at += 1;
    }
    places
};

/// As AVX-512's, but for the rounding.
#[derive(Copy, Clone)]
struct BF16(__m512, __m512);

impl Vector for BF16 {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        // SAFETY: the caller promises the level.
        let avx512::BF16(even, odd) = unsafe { avx512::BF16::decode(bits) };
        Self(even, odd)
    }

    /// The CPU's conversion takes subnormals for zero. Where there are some, AVX-512's rounding does it.
    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        const SUBNORMAL: i32 = 0x20;
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let (even, odd) =
                (_mm512_fpclass_ps_mask::<SUBNORMAL>(self.0), _mm512_fpclass_ps_mask::<SUBNORMAL>(self.1));
            if even | odd != 0 {
                return avx512::BF16(self.0, self.1).encode();
            }
            // First all even elements, then all odd ones.
            let apart = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(self.1, self.0));
            let order = std::mem::transmute::<[u16; 32], __m512i>(INTERLEAVED);
            _mm512_permutexvar_epi16(order, apart)
        }
    }
}

pairwise!(BF16 of F32: Adds { add } Multiplies { mul });
