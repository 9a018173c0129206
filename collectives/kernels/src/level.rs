//! Which instruction sets this CPU has.

use std::fmt;
use std::sync::OnceLock;

/// An instruction set for which the kernels are compiled.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[non_exhaustive]
pub enum Level {
    /// Plain Rust: any CPU, and Miri.
    Portable,
    /// x86-64 with AVX2 and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with AVX-512 FP16 and BF16 besides.
    Avx512Fp16,
    /// AArch64 with Advanced SIMD.
    Neon,
}

impl Level {
    /// Every level, on whatever CPU.
    pub const ALL: &'static [Self] =
        &[Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Fp16, Self::Neon];

    /// The name that [`Display`](fmt::Display) prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Fp16 => "avx512-fp16",
            Self::Neon => "neon",
        }
    }

    /// Whether this CPU (and this build) can run the level's kernels.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            // Miri interprets neither level's intrinsics in full; it checks the portable kernels.
            _ if cfg!(miri) => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                // What gains nothing from the wider registers is AVX2's.
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Fp16 => {
                Self::Avx512.is_available()
                    && is_x86_feature_detected!("avx512fp16")
                    && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(all(target_arch = "aarch64", target_endian = "little")))]
            Self::Neon => false,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Fp16 => false,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The best level of this CPU, detected once.
pub fn level() -> Level {
    static BEST: OnceLock<Level> = OnceLock::new();
    *BEST.get_or_init(|| {
        [Level::Avx512Fp16, Level::Avx512, Level::Avx2, Level::Neon]
            .into_iter()
            .find(|level| level.is_available())
            .unwrap_or(Level::Portable)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_is_available() {
        assert!(level().is_available());
        assert!(Level::Portable.is_available());
        assert_eq!(level(), level());
    }
}
