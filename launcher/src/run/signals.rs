//! Signals as events: a handler writes the number into a pipe that an event loop polls.
//!
//! A pipe, not a signalfd: other threads of the launcher (the rendezvous server's) exist before this module is used,
//! and a signalfd needs the signal blocked in every thread.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

/// The signals that are passed on to every rank.
pub(crate) const FORWARDED: [i32; 8] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// The write end that the handler uses. It is set before any handler is installed and never closed.
static HANDLER_PIPE: OnceLock<OwnedFd> = OnceLock::new();

/// The caught signals of this process, as a descriptor to poll.
#[derive(Debug)]
pub(crate) struct Signals {
    pipe: OwnedFd,
}

impl Signals {
    /// Catches `numbers` from now on. To be called once in a process.
    pub(crate) fn catch(numbers: &[i32]) -> Result<Self, Errno> {
        let (pipe, handler_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if HANDLER_PIPE.set(handler_end).is_err() {
            return Err(Errno::ALREADY);
        }
        for &number in numbers {
            // A hangup that was set to be ignored (nohup) stays so.
            if number == libc::SIGHUP && disposition(number)? == libc::SIG_IGN {
                continue;
            }
            set_handler(number, on_signal)?;
        }
        Ok(Self { pipe })
    }

    /// The signals that have arrived since the last call, oldest first.
    pub(crate) fn take(&self) -> Vec<i32> {
        let mut bytes = [0_u8; 64];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut bytes)) {
            Ok(count) => bytes[..count].iter().map(|&byte| i32::from(byte)).collect(),
            Err(_) => Vec::new(),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Lets `numbers` do nothing to this process, without being inherited by the programs it executes
/// (a handler ends at exec; an ignored signal would stay ignored in every rank).
pub(crate) fn shrug_off(numbers: &[i32]) -> Result<(), Errno> {
    for &number in numbers {
        if disposition(number)? != libc::SIG_IGN {
            set_handler(number, on_signal_ignored)?;
        }
    }
    Ok(())
}

extern "C" fn on_signal_ignored(_number: libc::c_int) {}

extern "C" fn on_signal(number: libc::c_int) {
    let Some(pipe) = HANDLER_PIPE.get() else { return };
    let byte = number as u8;
    // SAFETY: write and __errno_location are async-signal-safe; the descriptor lives as long as the process. errno is
    // put back because the interrupted code may be between a failing call and its reading of errno.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(pipe.as_raw_fd(), (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}

fn set_handler(number: i32, handler: extern "C" fn(libc::c_int)) -> Result<(), Errno> {
    // SAFETY: a zeroed sigaction is a valid one (empty mask, no flags); the handler is async-signal-safe (see
    // on_signal) and has the signature that a handler without SA_SIGINFO must have.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(number, &raw const action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn disposition(number: i32) -> Result<libc::sighandler_t, Errno> {
    // SAFETY: with a null new action sigaction only fills in the old one, for which a zeroed value is valid room.
    let (result, action) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(number, std::ptr::null(), &raw mut action), action)
    };
    if result == 0 { Ok(action.sa_sigaction) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    super::error::errno_of(&std::io::Error::last_os_error())
}

/// The typed signal for a number that this launcher forwards or sends.
pub(crate) fn typed(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number)
}

/// `SIGKILL` for 9, and so on.
pub(crate) fn name(number: i32) -> String {
    let known = match number {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSTKFLT => "SIGSTKFLT",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGVTALRM => "SIGVTALRM",
        libc::SIGPROF => "SIGPROF",
        libc::SIGIO => "SIGIO",
        libc::SIGPWR => "SIGPWR",
        libc::SIGSYS => "SIGSYS",
        _ => return format!("real-time signal {number}"),
    };
    known.to_owned()
}
