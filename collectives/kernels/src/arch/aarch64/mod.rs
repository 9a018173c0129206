//! AArch64, little-endian.

pub(super) mod neon;
