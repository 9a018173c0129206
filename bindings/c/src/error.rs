//! Codes, the message of the last error, and what no panic crosses.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char};
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

use windlass::accelerator::OpenError;
use windlass::{Error, JoinError};

/// What a function returns: `WINDLASS_SUCCESS`, or one of the errors of `windlass_result`. Newer
/// libraries may know more.
pub type windlass_result_t = i32;

/// What a function returns. The numbers never change.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub enum windlass_result {
    /// All is well.
    WINDLASS_SUCCESS = 0,
    /// The call is wrong in itself, and nothing was started: the only error of a communicator after which it
    /// can still be used.
    WINDLASS_ERROR_INVALID_ARGUMENT = 1,
    /// Ranks made different calls at the same place in the communicator's order.
    WINDLASS_ERROR_MISMATCH = 2,
    /// A peer died or left.
    WINDLASS_ERROR_PEER_FAILED = 3,
    /// The operation did not end within WINDLASS_TIMEOUT.
    WINDLASS_ERROR_TIMED_OUT = 4,
    /// A rank aborted the communicator.
    WINDLASS_ERROR_ABORTED = 5,
    /// The process is a fork of the one that joined the job, and has no part in it.
    WINDLASS_ERROR_FORKED = 6,
    /// The system refused something.
    WINDLASS_ERROR_SYSTEM = 7,
    /// Device memory that the communicator used was taken away.
    WINDLASS_ERROR_REGION_REVOKED = 8,
    /// Joining: a variable of the environment is missing or wrong.
    WINDLASS_ERROR_ENVIRONMENT = 32,
    /// Joining: a setting of the configuration is wrong.
    WINDLASS_ERROR_CONFIGURATION = 33,
    /// Joining: the rendezvous cannot be reached.
    WINDLASS_ERROR_NO_RENDEZVOUS = 34,
    /// Joining: the rendezvous refused this rank.
    WINDLASS_ERROR_REFUSED = 35,
    /// Joining: not all ranks came.
    WINDLASS_ERROR_MISSING = 36,
    /// The handle stands for nothing: it was freed or waited for, or never made.
    WINDLASS_ERROR_INVALID_HANDLE = 64,
    /// A mistake in windlass itself, or four million operations that nobody waits for.
    WINDLASS_ERROR_INTERNAL = 65,
}

use windlass_result::*;

impl windlass_result {
    /// Every one, with what `windlass_error_string` says of it.
    pub const ALL: &'static [(Self, &'static CStr)] = &[
        (WINDLASS_SUCCESS, c"success"),
        (WINDLASS_ERROR_INVALID_ARGUMENT, c"invalid argument"),
        (WINDLASS_ERROR_MISMATCH, c"ranks made different calls"),
        (WINDLASS_ERROR_PEER_FAILED, c"a peer died or left"),
        (WINDLASS_ERROR_TIMED_OUT, c"the operation did not end in time"),
        (WINDLASS_ERROR_ABORTED, c"the communicator was aborted"),
        (WINDLASS_ERROR_FORKED, c"the process was forked from a rank"),
        (WINDLASS_ERROR_SYSTEM, c"the system refused something"),
        (WINDLASS_ERROR_REGION_REVOKED, c"device memory was taken away"),
        (WINDLASS_ERROR_ENVIRONMENT, c"an environment variable is missing or wrong"),
        (WINDLASS_ERROR_CONFIGURATION, c"a setting is wrong"),
        (WINDLASS_ERROR_NO_RENDEZVOUS, c"the rendezvous cannot be reached"),
        (WINDLASS_ERROR_REFUSED, c"the rendezvous refused this rank"),
        (WINDLASS_ERROR_MISSING, c"not all ranks have joined"),
        (WINDLASS_ERROR_INVALID_HANDLE, c"invalid handle"),
        (WINDLASS_ERROR_INTERNAL, c"internal error"),
    ];
}

/// Why a call failed: the runtime's reasons, and those that only C can give.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Runtime(#[from] Error),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("{function}: the argument `{argument}` is NULL")]
    Null { function: &'static str, argument: &'static str },
    #[error(
        "{function}: the {what} handle {handle:#x} stands for nothing: it was freed or waited for, or windlass never made it"
    )]
    Handle { function: &'static str, what: &'static str, handle: u64 },
    #[error("{function}: the argument `{argument}` is no UTF-8")]
    NotText { function: &'static str, argument: &'static str },
    #[error("{function}: {value} is no {what}; use one of {valid}")]
    Code { function: &'static str, what: &'static str, value: i64, valid: &'static str },
    #[error("{function}: the {argument} is {value} but must be {range}")]
    Range { function: &'static str, argument: &'static str, value: i64, range: &'static str },
    #[error(
        "{function}: the unique id was not made by windlass_unique_id, or was damaged on its way to this rank"
    )]
    UniqueId { function: &'static str },
    #[error(
        "{function}: {address:#x} was not given out by windlass, or not registered, or has been freed already; give back what is there, once"
    )]
    Memory { function: &'static str, address: usize },
    #[error("{function}: {address:#x} is no device memory: it was freed, or windlass never gave it out")]
    NotOnDevice { function: &'static str, address: usize },
    #[error("{function}: {refused}")]
    NotOpened { function: &'static str, refused: OpenError },
    #[error("{function}: {most} handles are in use; wait for operations, or free them")]
    Full { function: &'static str, most: u32 },
    #[error(
        "{function}: windlass has a bug: {panic}. The communicator should be aborted; please report this"
    )]
    Bug { function: &'static str, panic: String },
}

impl Failure {
    const fn code(&self) -> windlass_result_t {
        match self {
            Self::Runtime(error) => error.code(),
            Self::Join(error) => error.code(),
            Self::Null { .. }
            | Self::Code { .. }
            | Self::NotText { .. }
            | Self::Range { .. }
            | Self::UniqueId { .. }
            | Self::Memory { .. }
            | Self::NotOnDevice { .. }
            | Self::NotOpened { .. } => WINDLASS_ERROR_INVALID_ARGUMENT as i32,
            Self::Handle { .. } => WINDLASS_ERROR_INVALID_HANDLE as i32,
            Self::Full { .. } | Self::Bug { .. } => WINDLASS_ERROR_INTERNAL as i32,
        }
    }
}

/// The rank that a forked child is told it comes from.
static JOINED_AS: AtomicU32 = AtomicU32::new(0);

pub(crate) fn joined_as(rank: u32) {
    JOINED_AS.store(rank, Ordering::Relaxed);
}

/// Runs what a function does: not in a forked child, whose copies of locks may be held for ever, and no panic
/// leaves.
#[inline]
pub(crate) fn guard(function: &'static str, body: impl FnOnce() -> Result<(), Failure>) -> windlass_result_t {
    if windlass::is_forked() {
        return failed(&Error::Forked { rank: JOINED_AS.load(Ordering::Relaxed) }.into());
    }
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => WINDLASS_SUCCESS as i32,
        Ok(Err(failure)) => failed(&failure),
        Err(panic) => failed(&Failure::Bug { function, panic: said(panic.as_ref()) }),
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".to_owned())
}

/// Refuses a null pointer, and borrows what another points to.
///
/// # Safety
/// The pointer is null or valid, for as long as the caller says.
#[inline]
pub(crate) unsafe fn required<'a, T>(
    pointer: *mut T,
    function: &'static str,
    argument: &'static str,
) -> Result<&'a mut T, Failure> {
    // SAFETY: as the caller promises; what C passes to be written to is nobody else's during the call.
    unsafe { pointer.as_mut() }.ok_or(Failure::Null { function, argument })
}

/// Takes what fits of a message. A forked child may not allocate: another thread may have held the
/// allocator's lock.
struct Cut<'a> {
    message: &'a mut [u8; MESSAGE_BYTES],
    bytes: usize,
}

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.floor_char_boundary(MESSAGE_BYTES - 1 - self.bytes);
        self.message[self.bytes..][..end].copy_from_slice(&text.as_bytes()[..end]);
        self.bytes += end;
        if end == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Longer messages are cut.
const MESSAGE_BYTES: usize = 1024;

thread_local! {
    /// Ends with a NUL. Without a destructor, so that it can be read for as long as the thread runs.
    static LAST: UnsafeCell<[u8; MESSAGE_BYTES]> = const { UnsafeCell::new([0; MESSAGE_BYTES]) };
}

#[cold]
fn failed(failure: &Failure) -> windlass_result_t {
    LAST.with(|last| {
        // SAFETY: the thread's own, and no reference to it exists but this one; C only reads, between calls.
        let mut cut = Cut { message: unsafe { &mut *last.get() }, bytes: 0 };
        // An error only says that it was cut. A NUL inside would only cut it shorter.
        let _ = write!(cut, "{failure}");
        cut.message[cut.bytes] = 0;
    });
    failure.code()
}

/// The message of the last error on the calling thread, in UTF-8: what happened, where, and what to do. Empty
/// when there was none.
///
/// It belongs to the library: it lasts until the thread ends, and changes with the next error on it.
#[unsafe(no_mangle)]
pub extern "C" fn windlass_last_error() -> *const c_char {
    LAST.with(|last| last.get().cast_const().cast())
}

/// A result in a few words, for ever valid. See `windlass_last_error` for what has happened.
#[unsafe(no_mangle)]
pub extern "C" fn windlass_error_string(result: windlass_result_t) -> *const c_char {
    let known = windlass_result::ALL.iter().find(|(known, _)| *known as i32 == result);
    known.map_or(c"unknown result", |(_, text)| text).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: the message ends with a NUL.
        unsafe { CStr::from_ptr(windlass_last_error()) }.to_str().unwrap().to_owned()
    }

    /// The variants and numbers in a `code` function of the runtime, as its source has them.
    fn codes(source: &str, of: &str) -> Vec<(String, i32)> {
        let body = source.split(&format!("impl {of} {{")).find_map(|part| part.split("fn code(").nth(1));
        let body = body.unwrap().split("\n    }\n").next().unwrap();
        let row = |line: &str| {
            let (variant, code) = line.trim().strip_prefix("Self::")?.split_once(" { .. } => ")?;
            Some((variant.to_owned(), code.trim_end_matches(',').parse().ok()?))
        };
        body.lines().filter_map(row).collect()
    }

    fn c_name(variant: &str) -> String {
        let upper = |c: char| if c.is_uppercase() { format!("_{c}") } else { c.to_uppercase().to_string() };
        format!("WINDLASS_ERROR{}", variant.chars().map(upper).collect::<String>())
    }

    #[test]
    fn every_error_of_the_runtime_has_its_name() {
        let source = std::fs::read_to_string("../../runtime/src/error.rs").unwrap();
        let (errors, joins) = (codes(&source, "Error"), codes(&source, "JoinError"));
        assert!(errors.len() >= 8 && joins.len() >= 7, "{errors:?} {joins:?}");
        for (variant, code) in errors.into_iter().chain(joins) {
            let ours = windlass_result::ALL.iter().find(|(known, _)| *known as i32 == code);
            assert_eq!(ours.map(|(known, _)| format!("{known:?}")), Some(c_name(&variant)), "{code}");
        }
    }

    #[test]
    fn a_panic_becomes_an_error_that_says_where() {
        let code = guard("windlass_test", || panic!("number {}", 5));
        assert_eq!(code, WINDLASS_ERROR_INTERNAL as i32);
        assert!(
            message().starts_with("windlass_test") && message().contains("bug: number 5"),
            "{}",
            message()
        );
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let panic = "ä".repeat(MESSAGE_BYTES);
        let code = guard("windlass_test", || panic!("{panic}"));
        assert_eq!(code, WINDLASS_ERROR_INTERNAL as i32);
        assert!(message().len() >= MESSAGE_BYTES - 2 && message().ends_with('ä'));
        let short = guard("windlass_test", || Err(Failure::UniqueId { function: "f" }));
        assert_eq!(short, WINDLASS_ERROR_INVALID_ARGUMENT as i32);
        assert!(message().starts_with("f: ") && message().len() < 200);
    }
}
