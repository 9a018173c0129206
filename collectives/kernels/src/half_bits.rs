//! Conversions between f32 and the 16-bit floats, without branches on the data, so that they vectorise.

/// The f32 of a bf16: exact.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest bf16, ties to even; a NaN stays one, and quiet.
#[inline(always)]
pub(crate) fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    // Half a unit of the last place, less one when the last place is even: ties go to even, and a carry out of the
    // mantissa is the next exponent, up to infinity.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = bits | 0x0040_0000;
    ((if value.is_nan() { quiet } else { rounded }) >> 16) as u16
}

/// The f32 of a binary16: exact; a NaN becomes quiet.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    // Moved into f32's fields, the number is 2^112 too small in f32's bias; multiplying is exact, also for
    // subnormals, which become normal.
    let finite = (f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = magnitude << 13 | 0x7f80_0000 | if magnitude > 0x7c00 { 0x0040_0000 } else { 0 };
    f32::from_bits(sign | if magnitude >= 0x7c00 { special } else { finite })
}

/// The nearest binary16, ties to even; a NaN stays one, and quiet.
#[inline(always)]
pub(crate) fn f16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // At or above 65520, half a place beyond the largest finite number, is infinity.
    const OVERFLOW: u32 = 0x477f_f000;
    // 2^-14, the smallest normal binary16.
    const NORMAL: u32 = 0x3880_0000;
    // Normal: as bf16, but with a shift of 13 and 112 taken off the exponent.
    let normal = (magnitude.wrapping_sub(112 << 23).wrapping_add(0x0fff + (magnitude >> 13 & 1))) >> 13;
    // Subnormal: the sum with 0.5 has 2^-24, the last place of a subnormal, as its own last place, and the addition
    // rounds to it, ties to even. A magnitude that would not be below NORMAL is not used.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let special = if value.is_nan() { 0x7e00 | (magnitude >> 13 & 0x03ff) } else { 0x7c00 };
    let rounded = if magnitude < NORMAL { subnormal } else { normal };
    sign | (if magnitude >= OVERFLOW { special } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn every_16_bit_pattern_widens_as_half_says_and_comes_back() {
        let step = if cfg!(miri) { 61 } else { 1 };
        for bits in (0..=u16::MAX).step_by(step) {
            let (wide, expected) = (bf16_to_f32(bits), bf16::from_bits(bits).to_f32());
            assert!(wide.to_bits() == expected.to_bits() || wide.is_nan() && expected.is_nan(), "{bits:#x}");
            assert!(
                bf16_from_f32(wide) == bits || wide.is_nan() && bf16::from_bits(bits).is_nan(),
                "{bits:#x}"
            );
            let (wide, expected) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(wide.to_bits() == expected.to_bits() || wide.is_nan() && expected.is_nan(), "{bits:#x}");
            assert!(
                f16_from_f32(wide) == bits || wide.is_nan() && f16::from_bits(bits).is_nan(),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn narrowing_rounds_as_half_says_around_every_tie() {
        let step = if cfg!(miri) { 997 } else { 1 };
        for upper in (0..=u16::MAX).step_by(step) {
            // Ties and their neighbours for both formats, and the ends.
            for lower in
                [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xffff]
            {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let (ours, expected) = (bf16_from_f32(value), bf16::from_f32(value));
                assert!(
                    ours == expected.to_bits() || bf16::from_bits(ours).is_nan() && value.is_nan(),
                    "{value:e}"
                );
                let (ours, expected) = (f16_from_f32(value), f16::from_f32(value));
                assert!(
                    ours == expected.to_bits() || f16::from_bits(ours).is_nan() && value.is_nan(),
                    "{value:e}"
                );
            }
        }
    }
}
