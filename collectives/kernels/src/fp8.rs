//! Conversions between f32 and the 8-bit floats of OCP's specification, without branches on the data, so that they
//! vectorise.

/// The f32 of an E4M3: exact.
#[inline(always)]
pub(crate) fn e4m3_to_f32(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    let magnitude = u32::from(bits & 0x7f);
    let normal = (magnitude << 20).wrapping_add((127 - 7) << 23);
    // The last place of a subnormal is 2^-9. (Calculating with subnormal f32 would be a hundred times slower.)
    let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 9) << 23)).to_bits();
    let finite = if magnitude < 8 { subnormal } else { normal };
    f32::from_bits(sign | if magnitude == 0x7f { 0x7fc0_0000 } else { finite })
}

/// The nearest E4M3, ties to even; what rounds beyond the largest, 448, and infinities and NaNs, become NaN.
#[inline(always)]
pub(crate) fn e4m3_from_f32(value: f32) -> u8 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = round::<7, 3>(magnitude);
    // 464 is half a place beyond the largest, and rounds to it because that is even.
    let finite = magnitude <= 464_f32.to_bits();
    (bits >> 24) as u8 & 0x80 | (if finite { rounded } else { 0x7f }) as u8
}

/// The f32 of an E5M2: exact; a NaN becomes quiet.
#[inline(always)]
pub(crate) fn e5m2_to_f32(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    let magnitude = u32::from(bits & 0x7f);
    let normal = (magnitude << 21).wrapping_add((127 - 15) << 23);
    // The last place of a subnormal is 2^-16.
    let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 16) << 23)).to_bits();
    let special = magnitude << 21 | 0x7f80_0000 | if magnitude > 0x7c { 0x0040_0000 } else { 0 };
    let finite = if magnitude < 4 { subnormal } else { normal };
    f32::from_bits(sign | if magnitude >= 0x7c { special } else { finite })
}

/// The nearest E5M2, ties to even; what rounds beyond the largest, 57344, becomes infinite; a NaN stays one.
#[inline(always)]
pub(crate) fn e5m2_from_f32(value: f32) -> u8 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = round::<15, 2>(magnitude);
    // 61440 is half a place beyond the largest, and rounds away from it because that is odd.
    let finite = magnitude < 61440_f32.to_bits();
    let special = if magnitude > 0x7f80_0000 { 0x7f } else { 0x7c };
    (bits >> 24) as u8 & 0x80 | (if finite { rounded } else { special }) as u8
}

/// Rounds an f32 without sign to a float of this exponent bias and so many bits of mantissa, as if it had no largest one.
#[inline(always)]
fn round<const BIAS: u32, const MANTISSA: u32>(magnitude: u32) -> u32 {
    let shift = 23 - MANTISSA;
    // Half a unit of the last place, less one when the last place is even; a carry out of the mantissa is the next exponent.
    let rebased = magnitude.wrapping_sub((127 - BIAS) << 23);
    let normal = rebased.wrapping_add((1 << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift;
    // The sum with `unit` has the last place of a subnormal as its own last place, and the addition rounds to it.
    let unit = f32::from_bits((127 + 24 - BIAS - MANTISSA) << 23);
    let subnormal = (f32::from_bits(magnitude) + unit).to_bits().wrapping_sub(unit.to_bits());
    if magnitude < (127 + 1 - BIAS) << 23 { subnormal } else { normal }
}
