//! Reads and writes of 0 to 16 bytes without touching a byte beyond: what is left of a vector at either end.
//!
//! Two overlapping accesses of a power of two cover any size, so there is no loop and no byte-wise branch. A tiny
//! collective (the 8-byte all-reduce) is nothing but this.

/// Reads `bytes` bytes into the low end of a number, as if it were little-endian; the others are zero.
///
/// # Safety
/// `bytes <= 16`, and `from` is readable for `bytes` bytes.
#[inline(always)]
pub(crate) unsafe fn read(from: *const u8, bytes: usize) -> u128 {
    debug_assert!(bytes <= 16);
    if bytes >= 8 {
        // SAFETY: 8 <= bytes <= 16, so both windows of eight lie within the caller's `bytes`.
        let (low, high) = unsafe { (word(from), word(from.add(bytes - 8))) };
        // The second window repeats what the first has read; 16 - bytes of its bytes fall out at the low end.
        // For exactly 8 that is all 64 bits, hence two shifts.
        let half_shift = 4 * (16 - bytes);
        return u128::from(low) | u128::from((high >> half_shift) >> half_shift) << 64;
    }
    if bytes >= 4 {
        // SAFETY: 4 <= bytes < 8, so both windows of four lie within the caller's `bytes`.
        let (low, high) = unsafe { (half_word(from), half_word(from.add(bytes - 4))) };
        return u128::from(u64::from(low) | u64::from(high) << (8 * (bytes - 4)));
    }
    if bytes == 0 {
        return 0;
    }
    let (middle, last) = (bytes / 2, bytes - 1);
    // SAFETY: 1 <= bytes < 4, so 0, bytes / 2 and bytes - 1 are all below it.
    let (a, b, c) = unsafe { (from.read(), from.add(middle).read(), from.add(last).read()) };
    u128::from(u32::from(a) | u32::from(b) << (8 * middle) | u32::from(c) << (8 * last))
}

/// Writes the low `bytes` bytes of what [`read`] gives.
///
/// # Safety
/// `bytes <= 16`, and `to` is writable for `bytes` bytes.
#[inline(always)]
pub(crate) unsafe fn write(to: *mut u8, bytes: usize, value: u128) {
    debug_assert!(bytes <= 16);
    let low = value as u64;
    if bytes >= 8 {
        // The window that ends the range starts `bytes - 8` bytes in; the overlap is written twice, alike.
        let high = (value >> (8 * (bytes - 8))) as u64;
        // SAFETY: 8 <= bytes <= 16, so both windows of eight lie within the caller's `bytes`.
        unsafe {
            to.cast::<[u8; 8]>().write(low.to_le_bytes());
            to.add(bytes - 8).cast::<[u8; 8]>().write(high.to_le_bytes());
        }
    } else if bytes >= 4 {
        let high = (low >> (8 * (bytes - 4))) as u32;
        // SAFETY: 4 <= bytes < 8, so both windows of four lie within the caller's `bytes`.
        unsafe {
            to.cast::<[u8; 4]>().write((low as u32).to_le_bytes());
            to.add(bytes - 4).cast::<[u8; 4]>().write(high.to_le_bytes());
        }
    } else if bytes > 0 {
        let (middle, last) = (bytes / 2, bytes - 1);
        // SAFETY: 1 <= bytes < 4, so 0, bytes / 2 and bytes - 1 are all below it.
        unsafe {
            to.write(low as u8);
            to.add(middle).write((low >> (8 * middle)) as u8);
            to.add(last).write((low >> (8 * last)) as u8);
        }
    }
}

/// Eight bytes as a little-endian number.
///
/// # Safety
/// `from` is readable for 8 bytes.
#[inline(always)]
unsafe fn word(from: *const u8) -> u64 {
    // SAFETY: the caller's promise; byte arrays need no alignment.
    u64::from_le_bytes(unsafe { from.cast::<[u8; 8]>().read() })
}

/// Four bytes as a little-endian number.
///
/// # Safety
/// `from` is readable for 4 bytes.
#[inline(always)]
unsafe fn half_word(from: *const u8) -> u32 {
    // SAFETY: the caller's promise; byte arrays need no alignment.
    u32::from_le_bytes(unsafe { from.cast::<[u8; 4]>().read() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_reads_and_writes_exactly_its_bytes() {
        for bytes in 0..=16 {
            // A box of exactly this size: Miri sees any byte too far.
            let source: Box<[u8]> = (1..=bytes as u8).collect();
            // SAFETY: the box has `bytes` bytes, and `bytes <= 16`.
            let value = unsafe { read(source.as_ptr(), bytes) };
            let mut expected = [0; 16];
            expected[..bytes].copy_from_slice(&source);
            assert_eq!(value, u128::from_le_bytes(expected), "{bytes}");

            let mut target = vec![0_u8; bytes].into_boxed_slice();
            // SAFETY: as above. The ones beyond the value's end must not be written.
            unsafe {
                write(
                    target.as_mut_ptr(),
                    bytes,
                    value | u128::MAX.checked_shl(8 * bytes as u32).unwrap_or(0),
                )
            };
            assert_eq!(target, source, "{bytes}");
        }
    }
}
