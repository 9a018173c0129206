//! SplitMix64: small, seeded, good enough to choose victims and delays.

use std::ops::RangeInclusive;
use std::time::Duration;

#[derive(Debug)]
pub(in crate::accelerator) struct Random(u64);

impl Random {
    pub(in crate::accelerator) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(in crate::accelerator) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not 0.
    pub(in crate::accelerator) fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    /// In 0..1.
    pub(in crate::accelerator) fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(in crate::accelerator) fn between(&mut self, range: &RangeInclusive<Duration>) -> Duration {
        *range.start() + range.end().saturating_sub(*range.start()).mul_f64(self.unit())
    }

    /// Until the next event of so many per second; `None` for never.
    pub(in crate::accelerator) fn until_next(&mut self, per_second: f64) -> Option<Duration> {
        (per_second > 0.0).then(|| Duration::from_secs_f64((2.0 * self.unit() / per_second).min(1e9)))
    }
}
