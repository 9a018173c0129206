//! A planted fault, for the test that shows there is one path only: with the feature `planted-fault` and
//! `WINDLASS_PLANT_SKIP_COMBINE=N`, every N-th Combine is left out. A result that stayed right would have come another way.

#[cfg(feature = "planted-fault")]
mod planted {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    pub(crate) const PLANTED: bool = true;

    /// Whether this Combine is to be left out.
    pub(crate) fn skips_combine() -> bool {
        static EVERY: OnceLock<u64> = OnceLock::new();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let every = *EVERY.get_or_init(|| {
            std::env::var("WINDLASS_PLANT_SKIP_COMBINE").ok().and_then(|v| v.parse().ok()).unwrap_or(0)
        });
        every > 0 && COUNT.fetch_add(1, Ordering::Relaxed) % every == every - 1
    }
}

#[cfg(not(feature = "planted-fault"))]
mod planted {
    pub(crate) const PLANTED: bool = false;

    /// No fault is planted.
    #[inline]
    pub(crate) const fn skips_combine() -> bool {
        false
    }
}

pub(crate) use planted::{PLANTED, skips_combine};
