//! Memory that peers can map.
//!
//! A [`Segment`] is a sealed memfd mapped by its owner; peers map its descriptor as a [`Mapping`]. A [`Pool`] cuts
//! segments into page-aligned [`Allocation`]s, so that descriptors stay few. A [`Location`] is how another rank
//! names a byte of a segment: segment, generation, offset, never an address. An [`accelerator`] has memory of its own, which
//! only its engine touches. Memory that the program brings along is [`adopted`]: named, and mapped by nobody.
//!
//! Every mapping is `MADV_DONTFORK`: a forked child cannot write into a running collective. Every descriptor is close-on-exec.

pub mod accelerator;
pub mod adopted;
mod available;
mod pool;
mod segment;
mod service;

pub use pool::{Allocation, Pool, Share};
pub use segment::{Mapping, Segment};
pub use service::{Promptness, serve};

/// A byte of a rank's segment, as its peers name it.
///
/// `offset` wraps: it is where block 0 of a vector would begin, which for a rank that holds a later block only
/// may lie before the segment. Whoever resolves it adds a block's offset and checks the sum.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Location {
    /// The owner's number for the segment.
    pub segment: u32,
    /// How often the segment's memory has changed under its number.
    pub generation: u32,
    /// Bytes from the segment's begin, wrapping.
    pub offset: u64,
}

/// A system call on shared memory failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{call} of {bytes} bytes of shared memory: {} ({hint})", std::io::Error::from_raw_os_error(*errno))]
pub struct MemoryError {
    /// The call.
    pub call: &'static str,
    /// Its error.
    pub errno: i32,
    /// How much was asked for.
    pub bytes: usize,
    /// What to do.
    pub hint: &'static str,
}

impl MemoryError {
    fn new(call: &'static str, errno: rustix::io::Errno, bytes: usize) -> Self {
        use rustix::io::Errno as E;
        let hint = match errno {
            E::NOMEM | E::NOSPC | E::FAULT => {
                "free memory or raise the memory limit of this machine, container or cgroup"
            }
            E::MFILE | E::NFILE => "raise the open-file limit: ulimit -n",
            E::NOSYS => "windlass needs Linux 3.17 or later for memfd_create",
            E::PERM | E::ACCESS => {
                "the sandbox forbids it: allow memfd_create and mmap in its seccomp profile"
            }
            _ => "see the system call's manual page",
        };
        Self { call, errno: errno.raw_os_error(), bytes, hint }
    }
}

/// The size of a page.
pub fn page_bytes() -> usize {
    static PAGE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    // SAFETY: sysconf has no preconditions.
    *PAGE.get_or_init(|| usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096))
}
