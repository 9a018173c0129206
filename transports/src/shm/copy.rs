//! Copies of large messages, past the caches that they would only empty.

/// Copies `bytes` bytes, past the caches if `streaming`. What is stored is seen by whoever sees what the caller stores next.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, bytes: usize, streaming: bool) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if streaming {
        // SAFETY: the caller's contract.
        unsafe { stream(source, target, bytes) };
        return;
    }
    let _ = streaming;
    // SAFETY: the caller's contract.
    unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) };
}

/// Every x86-64 processor has these stores; four of them fill a line, which then leaves whole.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn stream(source: *const u8, target: *mut u8, bytes: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const LINE: usize = 64;
    let head = target.align_offset(LINE).min(bytes);
    let lines = (bytes - head) / LINE;
    // SAFETY: `head` bytes, then `lines` lines, then the rest: all within the caller's `bytes`. Behind the head the target is aligned.
    unsafe {
        std::ptr::copy_nonoverlapping(source, target, head);
        for line in 0..lines {
            let at = head + line * LINE;
            let (from, to) = (source.add(at).cast::<__m128i>(), target.add(at).cast::<__m128i>());
            let values = [0, 1, 2, 3].map(|part| _mm_loadu_si128(from.add(part)));
            for (part, value) in values.into_iter().enumerate() {
                _mm_stream_si128(to.add(part), value);
            }
        }
        let done = head + lines * LINE;
        std::ptr::copy_nonoverlapping(source.add(done), target.add(done), bytes - done);
        // Such stores are ordered by no other.
        _mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied_and_no_other() {
        let source: Vec<u8> = (0..1000).map(|at| (at * 7 + 3) as u8).collect();
        for streaming in [false, true] {
            for skip in [0, 1, 63] {
                for bytes in [0, 1, 62, 63, 64, 65, 127, 128, 129, 700] {
                    let mut target = vec![0u8; 1000];
                    // SAFETY: both have more than 63 + 700 bytes, and are apart.
                    unsafe { copy(source.as_ptr(), target.as_mut_ptr().add(skip), bytes, streaming) };
                    let (before, rest) = target.split_at(skip);
                    assert_eq!(rest[..bytes], source[..bytes], "{skip} {bytes}");
                    assert!(before.iter().chain(&rest[bytes..]).all(|&byte| byte == 0), "{skip} {bytes}");
                }
            }
        }
    }
}
