//! 8-bit floats as binary16, of which both are a part: a shift apart, and a factor of 2⁸ for E4M3, which sums need not undo.
//!
//! Two inputs are added as binary16: its 11 bits are twice the 4 of E4M3 (or the 3 of E5M2) and two more, so that rounding its sum once more gives
//! what rounding the exact sum gives. More inputs are added as f32. Their sum goes back over binary16, too, cut off there with a last bit that
//! says whether anything was lost: the rounding after it sees on which side of a tie it is. What is smaller than the normal numbers of
//! binary16 is exact in it, because every sum is a multiple of the smallest 8-bit float.

use std::arch::x86_64::*;

use crate::vector::{Adds, Vector};

/// The lowest bits of binary16 that an E4M3 does not have; of its highest ones it has not the first.
const E4M3_SHIFT: u32 = 7;
/// What E4M3's NaN looks like as a number.
const E4M3_NAN: i16 = 0x3f80;
const HIGH_BYTE: i16 = 0xff00_u16.cast_signed();
const SIGN: i16 = 0x8000_u16.cast_signed();
/// `a | (b & c)`, bit by bit.
const OR_AND: i32 = 0xf8;
const CUT_OFF: i32 = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;

/// The even and the odd elements as the bits of binary16; those of E4M3 are 2⁻⁸ of what they stand for.
///
/// # Safety
/// The CPU has AVX-512 F and BW.
#[inline(always)]
unsafe fn widen<const E5M2: bool>(bits: __m512i) -> (__m512i, __m512i) {
    // SAFETY: arithmetic on registers; the caller promises the level.
    unsafe {
        let even = _mm512_slli_epi16::<8>(bits);
        if E5M2 {
            return (even, _mm512_and_si512(bits, _mm512_set1_epi16(HIGH_BYTE)));
        }
        // The sign is moved along, and all but its first copy taken away.
        let fields = _mm512_set1_epi16(SIGN | E4M3_NAN);
        let even = _mm512_and_si512(_mm512_srai_epi16::<1>(even), fields);
        let odd = _mm512_and_si512(_mm512_srai_epi16::<1>(bits), fields);
        let magnitudes = _mm512_or_si512(bits, _mm512_set1_epi8(0x80_u8.cast_signed()));
        if _mm512_cmpeq_epi8_mask(magnitudes, _mm512_set1_epi8(-1)) == 0 {
            return (even, odd);
        }
        (with_nan(even), with_nan(odd))
    }
}

/// What looks like E4M3's NaN as binary16's.
///
/// # Safety
/// As [`widen`].
#[inline(always)]
unsafe fn with_nan(half: __m512i) -> __m512i {
    // SAFETY: arithmetic on registers; the caller promises the level.
    unsafe {
        let nan = _mm512_set1_epi16(E4M3_NAN);
        let is_nan = _mm512_cmpeq_epi16_mask(_mm512_and_si512(half, nan), nan);
        _mm512_mask_blend_epi16(is_nan, half, _mm512_set1_epi16(0x7e00))
    }
}

/// The nearest 8-bit floats, ties to even, of even and odd elements as [`widen`] has them.
///
/// # Safety
/// The CPU has AVX-512 F and BW.
#[inline(always)]
unsafe fn narrow<const E5M2: bool>(even: __m512i, odd: __m512i) -> __m512i {
    // SAFETY: arithmetic on registers; the caller promises the level.
    unsafe {
        let even = _mm512_srli_epi16::<8>(round::<E5M2>(even));
        _mm512_ternarylogic_epi32::<OR_AND>(even, round::<E5M2>(odd), _mm512_set1_epi16(HIGH_BYTE))
    }
}

/// The same in the upper byte of each half; the lower byte is left over.
///
/// # Safety
/// As [`narrow`].
#[inline(always)]
unsafe fn round<const E5M2: bool>(half: __m512i) -> __m512i {
    // SAFETY: arithmetic on registers; the caller promises the level. `half_bits` tells why it rounds.
    unsafe {
        let magnitude = _mm512_and_si512(half, _mm512_set1_epi16(!SIGN));
        let (last, below_tie, most) = if E5M2 {
            // A NaN whose mantissa is all ones would be carried into the sign.
            (_mm512_srli_epi16::<8>(half), 0x7f, 0x7f00)
        } else {
            // What rounds beyond the largest, the infinite and NaN are NaN, which comes next.
            (_mm512_srli_epi16::<E4M3_SHIFT>(half), 0x3f, E4M3_NAN)
        };
        let odd = _mm512_and_si512(last, _mm512_set1_epi16(1));
        let rounded = _mm512_add_epi16(_mm512_add_epi16(magnitude, _mm512_set1_epi16(below_tie)), odd);
        let rounded = _mm512_min_epu16(rounded, _mm512_set1_epi16(most));
        let upper = if E5M2 { rounded } else { _mm512_slli_epi16::<1>(rounded) };
        _mm512_ternarylogic_epi32::<OR_AND>(upper, half, _mm512_set1_epi16(SIGN))
    }
}

/// 64 elements in binary16: the even ones and the odd ones.
#[derive(Copy, Clone)]
pub(super) struct Halves<const E5M2: bool>(__m512h, __m512h);

impl<const E5M2: bool> Vector for Halves<E5M2> {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let (even, odd) = widen::<E5M2>(bits);
            Self(_mm512_castsi512_ph(even), _mm512_castsi512_ph(odd))
        }
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe { narrow::<E5M2>(_mm512_castph_si512(self.0), _mm512_castph_si512(self.1)) }
    }
}

impl<const E5M2: bool> Adds for Halves<E5M2> {
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe { Self(_mm512_add_ph(self.0, other.0), _mm512_add_ph(self.1, other.1)) }
    }
}

/// 64 elements in f32: the even ones, lower half first, then the odd ones.
#[derive(Copy, Clone)]
pub(super) struct Wide<const E5M2: bool>(Sixteens, Sixteens);

/// The 32 numbers of a register of binary16.
#[derive(Copy, Clone)]
struct Sixteens(__m512, __m512);

impl Sixteens {
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline(always)]
    unsafe fn of(half: __m512i) -> Self {
        // SAFETY: conversions of registers; the caller promises the level.
        unsafe {
            let (lower, upper) = (_mm512_castsi512_si256(half), _mm512_extracti64x4_epi64::<1>(half));
            Self(_mm512_cvtph_ps(lower), _mm512_cvtph_ps(upper))
        }
    }

    /// Cut off, with a last bit that says whether anything was lost.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline(always)]
    unsafe fn cut(self) -> __m512i {
        // SAFETY: conversions of registers; the caller promises the level.
        unsafe {
            let (lower, upper) = (marked(self.0), marked(self.1));
            let lower = _mm512_castsi256_si512(_mm512_cvtps_ph::<CUT_OFF>(lower));
            _mm512_inserti64x4::<1>(lower, _mm512_cvtps_ph::<CUT_OFF>(upper))
        }
    }
}

/// With the last bit that binary16 has set where one that it has not is.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn marked(numbers: __m512) -> __m512 {
    // SAFETY: arithmetic on registers; the caller promises the level.
    unsafe {
        let (bits, lost) = (_mm512_castps_si512(numbers), _mm512_set1_epi32(0x1fff));
        let carried = _mm512_add_epi32(_mm512_and_si512(bits, lost), lost);
        _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<OR_AND>(bits, carried, _mm512_set1_epi32(0x2000)))
    }
}

impl<const E5M2: bool> Vector for Wide<E5M2> {
    type Register = __m512i;
    const ELEMENT_BYTES: usize = 1;

    #[inline(always)]
    unsafe fn decode(bits: __m512i) -> Self {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let (even, odd) = widen::<E5M2>(bits);
            Self(Sixteens::of(even), Sixteens::of(odd))
        }
    }

    #[inline(always)]
    unsafe fn encode(self) -> __m512i {
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe { narrow::<E5M2>(self.0.cut(), self.1.cut()) }
    }
}

impl<const E5M2: bool> Adds for Wide<E5M2> {
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        let (Sixteens(a, b), Sixteens(c, d)) = (self.0, self.1);
        let (Sixteens(e, f), Sixteens(g, h)) = (other.0, other.1);
        // SAFETY: arithmetic on registers; the caller promises the level.
        unsafe {
            let even = Sixteens(_mm512_add_ps(a, e), _mm512_add_ps(b, f));
            Self(even, Sixteens(_mm512_add_ps(c, g), _mm512_add_ps(d, h)))
        }
    }
}
