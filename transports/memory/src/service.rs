//! Threads that others wait for.
//!
//! They sleep nearly always, and what they do takes microseconds. On a machine with more busy threads than cores they would wait for a time slice
//! behind threads that calculate, a few milliseconds each time, and a move of memory goes through several of them.

/// How soon a thread is to have a core when it wakes: the time slice it asks for, of which the shorter one goes first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Promptness {
    /// It answers: the shortest slice that the kernel grants.
    Answers,
    /// It calculates, and what it calculates is waited for: before threads that nobody waits for, behind those that answer.
    Works,
    /// Nobody waits for it: it never takes the core from who wakes it.
    Tidies,
}

impl Promptness {
    const fn slice_ns(self) -> u64 {
        match self {
            Self::Answers => 100_000,
            Self::Works => 400_000,
            Self::Tidies => 0,
        }
    }

    const fn policy(self) -> u32 {
        match self {
            Self::Answers | Self::Works => libc::SCHED_OTHER as u32,
            Self::Tidies => libc::SCHED_BATCH as u32,
        }
    }
}

/// Asks for such a time slice for this thread: since Linux 6.12 one that wakes with a shorter slice than the running thread's takes the core from it,
/// within its fair share and without any privilege. Where the kernel knows no slices, nothing changes.
pub fn serve(promptness: Promptness) {
    // SAFETY: made of integers, for which zero is a value.
    let mut wish: libc::sched_attr = unsafe { std::mem::zeroed() };
    wish.size = size_of::<libc::sched_attr>() as u32;
    wish.sched_policy = promptness.policy();
    // SAFETY: a plain call for the calling thread; it reads the structure, whose size the structure says.
    let nice = unsafe {
        let mut now: libc::sched_attr = std::mem::zeroed();
        let got = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut now, size_of::<libc::sched_attr>(), 0);
        // Who was made nicer, or given to another scheduler, stays so.
        if got != 0 || now.sched_policy != libc::SCHED_OTHER as u32 {
            return;
        }
        now.sched_nice
    };
    (wish.sched_nice, wish.sched_runtime) = (nice, promptness.slice_ns());
    // Threads that this one starts are no servants.
    wish.sched_flags = libc::SCHED_FLAG_RESET_ON_FORK as u64;
    // SAFETY: as above. That the kernel refuses is no error.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice() -> u64 {
        // SAFETY: as in the function.
        unsafe {
            let mut now: libc::sched_attr = std::mem::zeroed();
            let size = size_of::<libc::sched_attr>();
            assert_eq!(libc::syscall(libc::SYS_sched_getattr, 0, &raw mut now, size, 0), 0);
            now.sched_runtime
        }
    }

    #[test]
    fn a_servant_has_a_short_slice_and_its_children_have_not() {
        let usual = slice();
        if usual == 0 {
            println!("this kernel knows no slices");
            return;
        }
        let (own, child) = std::thread::spawn(|| {
            serve(Promptness::Answers);
            (slice(), std::thread::spawn(slice).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((own, child, slice()), (Promptness::Answers.slice_ns(), usual, usual));
    }
}
