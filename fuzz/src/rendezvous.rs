//! One datagram, as each end reads it.

/// What was read is written and read again, and is the same. `windlass` has the door to its messages under `cfg(fuzzing)` alone.
#[cfg(fuzzing)]
pub fn run(bytes: &[u8]) {
    for recode in windlass::bootstrap::RECODE {
        if let Some(written) = recode(bytes) {
            assert_eq!(recode(&written).as_ref(), Some(&written));
        }
    }
}

/// Nothing, without the door.
#[cfg(not(fuzzing))]
pub fn run(_: &[u8]) {}
