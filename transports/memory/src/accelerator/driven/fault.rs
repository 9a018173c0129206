//! Memory that the kernel takes away while it is looked at.
//!
//! Whoever touches a mapping of a revoked dma-buf gets SIGBUS. An engine that was at work there when it happened has broken no rule: its
//! work is to end stale. So a handler of that signal puts private pages in the place of a *watched* mapping that has faulted, and marks it lost;
//! the engine goes on, over memory of nobody's, until it looks. A fault anywhere else, and a fault of the hardware, go to whoever handled the signal
//! before.
//!
//! The handler is installed with the first watch, and stays. It takes no lock and allocates nothing: the watches are in a list that only grows.

use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use crate::{Mapping, MemoryError};

const SLOTS: usize = 64;

/// A mapping that is watched, or a place for one: then `begin` is 0.
struct Slot {
    taken: AtomicBool,
    begin: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            begin: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }
}

struct Block {
    slots: [Slot; SLOTS],
    next: AtomicPtr<Self>,
}

impl Block {
    const fn new() -> Self {
        Self { slots: [const { Slot::new() }; SLOTS], next: AtomicPtr::new(null_mut()) }
    }
}

static BLOCKS: Block = Block::new();
/// Who handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// All blocks there are.
fn blocks() -> impl Iterator<Item = &'static Block> {
    // SAFETY: a block that was once linked is never freed nor changed but by its atomics.
    std::iter::successors(Some(&BLOCKS), |block| unsafe { block.next.load(Ordering::Acquire).as_ref() })
}

/// A watch on a mapping, for as long as it lives.
pub(super) struct Watch(&'static Slot);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch(lost: {})", self.is_lost())
    }
}

impl Watch {
    /// Watches a mapping, which must be unmapped after the watch is dropped.
    pub(super) fn new(mapping: &Mapping) -> Result<Self, MemoryError> {
        install()?;
        let slot = take();
        let begin = mapping.base().as_ptr().addr();
        slot.lost.store(false, Ordering::Relaxed);
        slot.end.store(begin + mapping.len(), Ordering::Relaxed);
        slot.begin.store(begin, Ordering::Release);
        Ok(Self(slot))
    }

    /// Whether the memory was taken away. What was read there may be nobody's, if so.
    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.begin.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
    }
}

fn take() -> &'static Slot {
    let mut last = &BLOCKS;
    for block in blocks() {
        last = block;
        if let Some(slot) = block.slots.iter().find(|slot| !slot.taken.swap(true, Ordering::AcqRel)) {
            return slot;
        }
    }
    let block = Box::leak(Box::new(Block::new()));
    *block.slots[0].taken.get_mut() = true;
    // Somebody else may append as well.
    while let Err(other) = last.next.compare_exchange(null_mut(), block, Ordering::AcqRel, Ordering::Acquire)
    {
        // SAFETY: it was not null, and blocks are never freed.
        last = unsafe { &*other };
    }
    &block.slots[0]
}

fn install() -> Result<(), MemoryError> {
    static INSTALLED: OnceLock<Result<(), MemoryError>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            // SAFETY: zeros are an empty action; both calls get pointers to actions of this frame. The handler does only what may be done
            // in one (see `handle`). What is to be called for foreign faults is known before the handler can run.
            unsafe {
                let mut before: libc::sigaction = std::mem::zeroed();
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before);
                let _ = BEFORE.set(before);
                action.sa_sigaction =
                    (handle as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void)) as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                if libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) == 0 {
                    return Ok(());
                }
            }
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
            Err(MemoryError::new("sigaction(SIGBUS)", rustix::io::Errno::from_raw_os_error(errno), 0))
        })
        .clone()
}

/// A signal's handler: loads and stores of atomics, and calls of the kernel.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid one.
    let (address, code) = unsafe { ((*info).si_addr().addr(), (*info).si_code) };
    if code != libc::BUS_ADRERR || !replace(address) {
        hand_on(signal, info, context);
    }
}

/// Puts private pages under the watched mapping that an address is in.
fn replace(address: usize) -> bool {
    let hit = |slot: &&Slot| {
        let begin = slot.begin.load(Ordering::Acquire);
        begin != 0 && (begin..slot.end.load(Ordering::Relaxed)).contains(&address)
    };
    let Some(slot) = blocks().flat_map(|block| &block.slots).find(hit) else { return false };
    // Before there is anything else to be read: whoever reads of nobody's pages finds that he has.
    slot.lost.store(true, Ordering::SeqCst);
    let (begin, end) = (slot.begin.load(Ordering::Acquire), slot.end.load(Ordering::Relaxed));
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: `errno` is this thread's. The range is a whole mapping, which its watch outlives by no means, and whose users look at it by raw
    // accesses that expect any bytes at any time.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let base = std::ptr::with_exposed_provenance_mut(begin);
        let mapped = libc::mmap(base, end - begin, protection, flags, -1, 0);
        *errno = before;
        mapped != libc::MAP_FAILED
    }
}

/// What would have happened without this handler.
fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().filter(|before| !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN));
    // SAFETY: the action was the process's, so its handler is a function of the kind that its flags say; the default is set for a fault that
    // comes again as soon as this returns.
    unsafe {
        match before {
            Some(before) if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let call: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(before.sa_sigaction);
                call(signal, info, context);
            }
            Some(before) => {
                let call: extern "C" fn(libc::c_int) = std::mem::transmute(before.sa_sigaction);
                call(signal);
            }
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    /// A file that shrinks under its mapping is as good as a dma-buf that is revoked.
    #[test]
    fn a_watched_mapping_outlives_its_memory_and_says_so() {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 8192).unwrap();
        let mappings: Vec<Mapping> =
            (0..SLOTS + 3).map(|_| Mapping::dma_buf(file.as_fd(), 8192).unwrap()).collect();
        let watches: Vec<Watch> = mappings.iter().map(|mapping| Watch::new(mapping).unwrap()).collect();
        let look = |index: usize, at: usize| {
            // SAFETY: inside the mapping; any byte is a value.
            unsafe { mappings[index].base().as_ptr().add(at).read_volatile() }
        };
        rustix::io::pwrite(&file, &[7], 5000).unwrap();
        assert_eq!((look(3, 5000), watches[3].is_lost()), (7, false));
        ftruncate(&file, 0).unwrap();
        for index in [0, 3, SLOTS + 2] {
            assert_eq!((look(index, 5000), watches[index].is_lost()), (0, true));
        }
        assert!(!watches[4].is_lost(), "nobody has looked there");
        let first = std::ptr::from_ref(watches[0].0);
        drop(watches);
        let again = Watch::new(&mappings[0]).unwrap();
        assert!(std::ptr::eq(first, again.0) && !again.is_lost(), "places are used again");
    }
}
