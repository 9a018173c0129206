//! Division of whole vectors by the number of contributions.

/// The divisor of an average; at least 2.
#[derive(Copy, Clone)]
pub(crate) struct Divisor(u64);

impl Divisor {
    /// `None` for 0 and 1, which divide nothing.
    #[inline(always)]
    pub(crate) fn new(value: u64) -> Option<Self> {
        (value > 1).then_some(Self(value))
    }

    /// The divisor for f32 (and the 16-bit floats), rounded to nearest.
    #[inline(always)]
    pub(crate) fn as_f32(self) -> f32 {
        self.0 as f32
    }

    /// The divisor for f64, rounded to nearest.
    #[inline(always)]
    pub(crate) fn as_f64(self) -> f64 {
        self.0 as f64
    }

    /// Divides magnitudes, truncating toward zero. Powers of two, the usual sizes of a job, are shifts; the rest
    /// is a division instruction per element, since no instruction set divides vectors of i64.
    #[inline(always)]
    pub(crate) fn divide_i64<const N: usize>(self, mut lanes: [i64; N]) -> [i64; N] {
        if self.0.is_power_of_two() {
            let shift = self.0.trailing_zeros();
            for lane in &mut lanes {
                *lane = with_sign_of(*lane, lane.unsigned_abs() >> shift);
            }
        } else {
            for lane in &mut lanes {
                *lane = with_sign_of(*lane, lane.unsigned_abs() / self.0);
            }
        }
        lanes
    }

    /// As `divide_i64`.
    #[inline(always)]
    pub(crate) fn divide_u64<const N: usize>(self, mut lanes: [u64; N]) -> [u64; N] {
        if self.0.is_power_of_two() {
            let shift = self.0.trailing_zeros();
            for lane in &mut lanes {
                *lane >>= shift;
            }
        } else {
            for lane in &mut lanes {
                *lane /= self.0;
            }
        }
        lanes
    }
}

/// Division in a float of so many bits of mantissa, which vectorises, truncating toward zero. It is exact: a quotient of a dividend
/// below 2^24 (in f64 2^53) that is not whole is further than one rounding from every whole number, and a divisor that the
/// float cannot hold gives 0 anyway.
macro_rules! divide_in_float {
    ($($name:ident: $integer:ty, $whole:ty, $float:ty, $divisor:ident;)*) => {
        impl Divisor { $(
            #[inline(always)]
            pub(crate) fn $name<const N: usize>(self, mut lanes: [$integer; N]) -> [$integer; N] {
                let divisor = self.$divisor();
                for lane in &mut lanes {
                    let quotient = <$float>::from(*lane) / divisor;
                    // SAFETY: the divisor is at least 2, so the quotient is finite and fits where the dividend did. (A
                    // conversion that would see to that itself does not vectorise.)
                    *lane = unsafe { quotient.to_int_unchecked::<$whole>() } as $integer;
                }
                lanes
            }
        )* }
    };
}

divide_in_float! {
    divide_u8: u8, i32, f32, as_f32;
    divide_i8: i8, i32, f32, as_f32;
    divide_u16: u16, i32, f32, as_f32;
    divide_i16: i16, i32, f32, as_f32;
    divide_u32: u32, u32, f64, as_f64;
    divide_i32: i32, i32, f64, as_f64;
}

/// The magnitude, which is at most 2^62 here, with the sign of `lane`.
#[inline(always)]
fn with_sign_of(lane: i64, magnitude: u64) -> i64 {
    let sign = lane >> 63;
    (magnitude as i64 ^ sign) - sign
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIVISORS: &[u64] = &[
        2,
        3,
        7,
        8,
        255,
        256,
        257,
        1 << 24,
        (1 << 24) + 1,
        (1 << 31) - 1,
        1 << 31,
        1 << 53,
        1 << 63,
        u64::MAX,
    ];

    #[test]
    fn zero_and_one_divide_nothing() {
        assert!(Divisor::new(0).is_none());
        assert!(Divisor::new(1).is_none());
    }

    #[test]
    fn integers_truncate_toward_zero_for_every_divisor() {
        let wide = [i64::MIN, i64::MIN + 1, -1001, -7, -2, -1, 0, 1, 2, 7, 1001, i64::MAX - 1, i64::MAX];
        let narrow = [i32::MIN, i32::MIN + 1, -1001, -7, -2, -1, 0, 1, 2, 7, 1001, i32::MAX - 1, i32::MAX];
        for &value in DIVISORS {
            let divisor = Divisor::new(value).unwrap();
            let exact = |x: i128| x / i128::from(value);
            assert_eq!(divisor.divide_i64(wide).map(i128::from), wide.map(|x| exact(x.into())), "{value}");
            assert_eq!(
                divisor.divide_i32(narrow).map(i128::from),
                narrow.map(|x| exact(x.into())),
                "{value}"
            );
            for byte in 0..=255_u8 {
                let signed = byte.cast_signed();
                assert_eq!(i128::from(divisor.divide_u8([byte])[0]), exact(byte.into()), "{byte} / {value}");
                assert_eq!(
                    i128::from(divisor.divide_i8([signed])[0]),
                    exact(signed.into()),
                    "{signed} / {value}"
                );
            }
            for word in (0..=u16::MAX).step_by(if cfg!(miri) { 1009 } else { 7 }) {
                let signed = word.cast_signed();
                assert_eq!(i128::from(divisor.divide_u16([word])[0]), exact(word.into()), "{word} / {value}");
                assert_eq!(
                    i128::from(divisor.divide_i16([signed])[0]),
                    exact(signed.into()),
                    "{signed} / {value}"
                );
            }
            for x in wide.map(i64::cast_unsigned) {
                assert_eq!(i128::from(divisor.divide_u64([x])[0]), exact(x.into()), "{x} / {value}");
                let narrow = x as u32;
                assert_eq!(
                    i128::from(divisor.divide_u32([narrow])[0]),
                    exact(narrow.into()),
                    "{narrow} / {value}"
                );
            }
        }
    }

    #[test]
    fn quotients_next_to_whole_numbers_are_exact() {
        for value in 2..200_u64 {
            let divisor = Divisor::new(value).unwrap();
            for multiple in [1_i64, 1000, i64::from(i32::MAX) / value as i64] {
                for near in [-1, 0, 1] {
                    let x = multiple * value as i64 + near;
                    let Ok(narrow) = i32::try_from(x) else { continue };
                    assert_eq!(i64::from(divisor.divide_i32([narrow])[0]), x / value as i64, "{x} / {value}");
                    assert_eq!(divisor.divide_i64([-x])[0], -x / value as i64, "-{x} / {value}");
                }
            }
        }
    }
}
