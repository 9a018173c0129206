//! Whether this process was forked from the one that joined.
//!
//! One page is marked `MADV_WIPEONFORK`: the kernel zeroes it in a child, whichever way the child was made, so the test is
//! one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

const JOINED: u32 = 0x77a1_d1a5;

struct Page(*const AtomicU32);

// SAFETY: the page is never unmapped and holds an atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

static PAGE: OnceLock<Option<Page>> = OnceLock::new();

/// Marks this process as the one that joined.
pub(crate) fn mark() {
    PAGE.get_or_init(|| {
        let bytes = windlass_memory::page_bytes();
        let flags = MapFlags::PRIVATE;
        // SAFETY: a fresh mapping of our own, aligned to a page, never unmapped.
        unsafe {
            let page = mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)
                .ok()?;
            madvise(page, bytes, Advice::LinuxWipeOnFork).ok()?;
            let word = page.cast::<AtomicU32>();
            (*word).store(JOINED, Ordering::Relaxed);
            Some(Page(word))
        }
    });
}

/// Whether this process is a fork of the one that joined: every call of windlass is refused in it. One load.
#[inline]
pub fn is_forked() -> bool {
    match PAGE.get() {
        // SAFETY: the page stays mapped for ever.
        Some(Some(page)) => unsafe { (*page.0).load(Ordering::Relaxed) != JOINED },
        // Nobody has joined, or the kernel is older than 4.14 and cannot tell.
        _ => false,
    }
}
