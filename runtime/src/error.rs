//! Why an operation or a join failed, split by culprit.

use std::fmt;
use std::io::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use windlass_collectives::Fingerprint;
use windlass_memory::MemoryError;

/// Tells the user something on standard error, where there is one: `eprintln!` would panic where its reader is gone.
pub(crate) fn report(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "windlass: {text}");
}

/// What ended a peer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PeerCause {
    /// It exited with this status.
    Exited(i32),
    /// It was killed by this signal.
    Killed(i32),
    /// It left the job, by `finalize` or by dropping its last communicator, while others still needed it.
    Left,
    /// Its connection to the rendezvous broke: the process is gone.
    Vanished,
    /// Its data connection broke; the operating system's error number.
    Unreachable(i32),
    /// Its data connection broke and could not be opened anew, although its process may live.
    NotReopened {
        /// The last attempt's error number.
        errno: i32,
        /// How often it was tried.
        attempts: u32,
        /// For how long, in milliseconds.
        within_ms: u64,
    },
}

impl fmt::Display for PeerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::Left => write!(f, "left the job while others still needed it"),
            Self::Vanished => write!(f, "is gone (its process ended)"),
            Self::Unreachable(errno) => {
                write!(f, "cannot be reached: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::NotReopened { errno, attempts, within_ms } => write!(
                f,
                "cannot be reached: its stream broke and was not opened anew by {attempts} attempts in {within_ms} ms \
                 (WINDLASS_RECONNECT), the last of which failed with: {}",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

/// What is wrong with an argument.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// A rank, root, peer, tag or colour outside its range.
    OutOfRange {
        /// What was given.
        value: u64,
        /// The first value that is too large.
        limit: u64,
    },
    /// A buffer of the wrong length, in elements.
    WrongLength {
        /// The length the call needs.
        expected: u64,
        /// The length given.
        actual: u64,
    },
    /// A buffer whose length is no multiple of what the call divides it by.
    NotDivisible {
        /// The length given.
        length: u64,
        /// What must divide it.
        by: u64,
    },
    /// An address that is no multiple of the element's alignment, or null.
    Misaligned {
        /// The address.
        address: usize,
        /// What must divide it.
        alignment: usize,
    },
    /// Input and output overlap without being the same.
    Overlap,
    /// More bytes than an address can span.
    TooLarge {
        /// Elements.
        count: u64,
    },
    /// The rank sends to or receives from itself, and nothing in the same call takes or gives it: that would wait for ever.
    OwnRank,
    /// A collective where a call takes sends and receives only.
    NoMessage,
    /// Elements of another type.
    WrongType {
        /// The type the call needs.
        expected: windlass_kernels::DataType,
        /// The type given.
        actual: windlass_kernels::DataType,
    },
    /// The communicator has been finalized.
    Finalized,
    /// This rank uses another accelerator already.
    OtherAccelerator,
    /// A list, where the call takes memory in one piece only.
    Listed,
    /// Device memory, where the call takes host memory only.
    OnDevice,
    /// An address that stands for no device memory of this rank's job.
    NoDeviceMemory {
        /// The address.
        address: usize,
    },
    /// Bytes that end after the device buffer.
    BeyondEnd {
        /// The first of them, in the buffer.
        offset: u64,
        /// How many.
        bytes: u64,
        /// How many the buffer has.
        limit: u64,
    },
    /// An average, of which a scan's ranks would each divide by another number.
    NotOfPrefixes,
    /// An operator that is not defined on the elements' type.
    Unsupported(windlass_kernels::Unsupported),
    /// A scaled sum, where the call would have to write to its input.
    Scaled,
    /// A program's own operator that this rank has not registered.
    NotRegistered,
    /// An operator has this name already.
    NameTaken,
    /// Memory that cannot be registered.
    NotAdopted(windlass_memory::adopted::NotAdopted),
    /// A descriptor of no memory that could be adopted.
    BadDescriptor(windlass_memory::accelerator::BadDescriptor),
    /// An accelerator that takes no memory of other exporters.
    AdoptsNothing,
    /// Memory of windlass's own, where the call is for memory that the program brings along.
    Shared,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { value, limit } => write!(f, "is {value} but must be below {limit}"),
            Self::WrongLength { expected, actual } => {
                write!(f, "has {actual} elements but the call needs {expected}")
            }
            Self::NotDivisible { length, by } => {
                write!(f, "has {length} elements, which {by} ranks cannot share evenly")
            }
            Self::Misaligned { address: 0, .. } => write!(f, "is null"),
            Self::Misaligned { address, alignment } => {
                write!(f, "lies at {address:#x}, which is no multiple of {alignment}")
            }
            Self::Overlap => {
                write!(f, "overlaps the other one; use separate buffers, or one buffer in place")
            }
            Self::TooLarge { count } => write!(f, "of {count} elements is larger than memory can be"),
            Self::OwnRank => {
                write!(f, "is this rank itself; copy instead, or send and receive in one exchange")
            }
            Self::NoMessage => write!(f, "is neither send nor recv"),
            Self::WrongType { expected, actual } => {
                write!(f, "is of {actual} but the call needs {expected}")
            }
            Self::Finalized => write!(f, "has been finalized; make a new one"),
            Self::OtherAccelerator => {
                write!(f, "is not the one this rank uses; a rank uses one accelerator")
            }
            Self::NotOfPrefixes => {
                write!(
                    f,
                    "is avg, which a scan does not have; scan the sums and divide by the number of ranks"
                )
            }
            Self::Unsupported(unsupported) => unsupported.fmt(f),
            Self::Scaled => {
                write!(
                    f,
                    "is scaled_sum, which is for all_reduce on host memory; multiply first, then use sum"
                )
            }
            Self::Listed => {
                write!(f, "is a list, which a message does not take; send its members in one exchange")
            }
            Self::NotRegistered => write!(f, "is none that this rank has registered; call register_op first"),
            Self::NameTaken => write!(f, "is that of an operator registered before; use another one"),
            Self::NotAdopted(refused) => write!(f, "cannot be registered: {refused}"),
            Self::BadDescriptor(bad) => write!(f, "cannot be adopted: {bad}"),
            Self::AdoptsNothing => {
                write!(f, "takes no memory of other exporters; attach one of the kernel's, such as dma-heap")
            }
            Self::NoDeviceMemory { address } => write!(
                f,
                "at {address:#x} is no device memory of this rank's job: it was freed, or is another job's"
            ),
            Self::BeyondEnd { offset, bytes, limit } => {
                write!(f, "reaches beyond the device buffer: {bytes} bytes from byte {offset} on, of {limit}")
            }
            Self::Shared => write!(f, "is registered memory of windlass, which needs no more"),
            Self::OnDevice => {
                write!(f, "is device memory, which this call does not take; copy it with read and write")
            }
        }
    }
}

/// Why an operation failed.
///
/// Every error but [`InvalidArgument`](Self::InvalidArgument) leaves the communicator unusable: later calls on it return the
/// same error at once. The contents of the failed operation's outputs are unspecified.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The call is wrong in itself; nothing was started.
    #[error("{operation}: {argument} {problem}")]
    InvalidArgument {
        /// The call.
        operation: &'static str,
        /// Which argument.
        argument: &'static str,
        /// What is wrong with it.
        problem: Problem,
    },
    /// Ranks made different calls at the same place in the communicator's order.
    #[error(
        "call #{sequence} of communicator {communicator} differs between ranks: this rank (or those that agree with it) called \
         {ours}, rank {rank} called {theirs}{}; make every rank call the same collectives in the same order",
        if ours.call() == theirs.call() { ", after earlier calls that differed, or on lists that are cut differently" } else { "" }
    )]
    Mismatch {
        /// The communicator.
        communicator: u32,
        /// The call's number on it.
        sequence: u64,
        /// What this rank called.
        ours: Fingerprint,
        /// What the other one called.
        theirs: Fingerprint,
        /// The other one.
        rank: u32,
    },
    /// A peer died or left.
    #[error(
        "rank {rank} {cause}; this rank was in {operation} #{sequence} of communicator {communicator}. Restart the job, or go on without it"
    )]
    PeerFailed {
        /// The peer, as ranked in the job.
        rank: u32,
        /// What ended it.
        cause: PeerCause,
        /// The operation that needed it.
        operation: &'static str,
        /// The call's number.
        sequence: u64,
        /// The communicator.
        communicator: u32,
    },
    /// The operation did not end in time.
    #[error(
        "{operation} #{sequence} of communicator {communicator} did not end within {after:?}: waiting for rank(s) {waiting_on:?}. Look at what \
         they do (a stack trace: gdb -p PID), or raise WINDLASS_TIMEOUT"
    )]
    TimedOut {
        /// The operation.
        operation: &'static str,
        /// The call's number.
        sequence: u64,
        /// The communicator.
        communicator: u32,
        /// The ranks, as ranked in the job, that had not done their part.
        waiting_on: Vec<u32>,
        /// How long it was under way.
        after: Duration,
    },
    /// Somebody aborted the communicator.
    #[error("communicator {communicator} was aborted by rank {by}: {reason}")]
    Aborted {
        /// The communicator.
        communicator: u32,
        /// The rank of the job that did.
        by: u32,
        /// Why.
        reason: AbortReason,
    },
    /// The process is a fork of the one that joined the job.
    #[error(
        "this process was forked from rank {rank} and has no part in the job; call windlass in the parent only, or start a \
         new program (exec) that joins a job of its own"
    )]
    Forked {
        /// The parent's rank.
        rank: u32,
    },
    /// Device memory that the communicator used was taken away, and its contents are lost or did not come back.
    #[error(
        "segment {segment} of rank {rank}'s device memory was revoked in generation {generation} and its contents are lost; allocate new memory, \
         fill it again, and repeat the operations on a new communicator"
    )]
    RegionRevoked {
        /// The rank of the job whose memory it was.
        rank: u32,
        /// Its number there.
        segment: u32,
        /// The generation that ended.
        generation: u32,
    },
    /// The system refused something.
    #[error("{call} failed: {} ({hint})", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: i32,
        /// What to do.
        hint: &'static str,
    },
}

/// Why a communicator was aborted.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AbortReason {
    /// [`abort`](crate::Communicator::abort) was called.
    Requested,
    /// An operation ran out of time there.
    TimedOut,
    /// The system refused something there; the error number.
    System(i32),
    /// A thread of the world ended or panicked before its peers.
    Panicked,
    /// An operator of the program's own panicked there.
    OperatorPanicked,
}

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => write!(f, "it called abort"),
            Self::TimedOut => write!(f, "an operation ran out of time there"),
            Self::System(errno) => {
                write!(f, "a system call failed there: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::Panicked => write!(f, "its thread panicked"),
            Self::OperatorPanicked => write!(f, "an operator of the program's own panicked there"),
        }
    }
}

impl Error {
    /// Whether the communicator is unusable after it.
    pub const fn is_fatal(&self) -> bool {
        !matches!(self, Self::InvalidArgument { .. })
    }

    pub(crate) const fn system(call: &'static str, errno: rustix::io::Errno) -> Self {
        Self::System { call, errno: errno.raw_os_error(), hint: hint(errno) }
    }

    /// A stable number for C and Python, above 0.
    pub const fn code(&self) -> i32 {
        match self {
            Self::InvalidArgument { .. } => 1,
            Self::Mismatch { .. } => 2,
            Self::PeerFailed { .. } => 3,
            Self::TimedOut { .. } => 4,
            Self::Aborted { .. } => 5,
            Self::Forked { .. } => 6,
            Self::System { .. } => 7,
            Self::RegionRevoked { .. } => 8,
        }
    }
}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        Self::System { call: error.call, errno: error.errno, hint: error.hint }
    }
}

/// Why a process could not join a job.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// A variable of the environment is missing or wrong.
    #[error("environment variable {variable}{}: {problem}", value.as_ref().map(|v| format!("={v}")).unwrap_or_default())]
    Environment {
        /// Which.
        variable: &'static str,
        /// What it holds.
        value: Option<String>,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// A setting of the configuration is wrong.
    #[error("setting {setting}={value}: {problem}")]
    Configuration {
        /// Which.
        setting: String,
        /// What it holds.
        value: String,
        /// What is wrong.
        problem: String,
    },
    /// The rendezvous cannot be reached.
    #[error("no rendezvous at {address}: {} ({hint})", std::io::Error::from_raw_os_error(*errno))]
    NoRendezvous {
        /// Where.
        address: String,
        /// The system's error.
        errno: i32,
        /// What to do.
        hint: &'static str,
    },
    /// The rendezvous refused this rank.
    #[error("the rendezvous refused rank {rank}: {refusal}")]
    Refused {
        /// This rank.
        rank: u32,
        /// Why.
        refusal: Refusal,
    },
    /// Not all ranks came.
    #[error("after {after:?} rank(s) {missing:?} have not joined; see whether they have started")]
    Missing {
        /// Who.
        missing: Vec<u32>,
        /// How long this one waited.
        after: Duration,
    },
    /// A rank ended before all had joined.
    #[error("rank {rank} {cause} before all ranks had joined")]
    PeerFailed {
        /// Who.
        rank: u32,
        /// How.
        cause: PeerCause,
    },
    /// The system refused something.
    #[error("{call} failed: {} ({hint})", std::io::Error::from_raw_os_error(*errno))]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: i32,
        /// What to do.
        hint: &'static str,
    },
}

impl From<MemoryError> for JoinError {
    fn from(error: MemoryError) -> Self {
        Self::System { call: error.call, errno: error.errno, hint: error.hint }
    }
}

impl JoinError {
    /// A stable number for C and Python, above those of [`Error::code`], which it shares where the two mean the same.
    pub const fn code(&self) -> i32 {
        match self {
            Self::Environment { .. } => 32,
            Self::Configuration { .. } => 33,
            Self::NoRendezvous { .. } => 34,
            Self::Refused { .. } => 35,
            Self::Missing { .. } => 36,
            Self::PeerFailed { .. } => 3,
            Self::System { .. } => 7,
        }
    }

    pub(crate) fn system(call: &'static str, errno: rustix::io::Errno) -> Self {
        Self::System { call, errno: errno.raw_os_error(), hint: hint(errno) }
    }
}

const fn hint(errno: rustix::io::Errno) -> &'static str {
    match errno {
        rustix::io::Errno::MFILE | rustix::io::Errno::NFILE => "raise the open-file limit: ulimit -n",
        rustix::io::Errno::NOMEM => "free memory or raise the memory limit",
        rustix::io::Errno::AGAIN => "raise the limit on processes and threads: ulimit -u",
        _ => "see the system call's manual page",
    }
}

/// Why the rendezvous refused a rank.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// It speaks another version of the protocol.
    Version {
        /// The rendezvous's.
        server: u32,
        /// The rank's.
        rank: u32,
    },
    /// It believes in another number of ranks.
    Ranks {
        /// The rendezvous's.
        server: u32,
        /// The rank's.
        rank: u32,
    },
    /// Its rank is taken by a live process.
    Taken {
        /// That process.
        pid: i32,
    },
    /// It runs as another user.
    User {
        /// Its user id.
        uid: u32,
    },
    /// Who holds the rendezvous has no file descriptor left for it.
    Descriptors,
    /// Its configuration differs from the other ranks' where all must agree.
    Configuration {
        /// The first setting that differs, with both values.
        difference: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { server, rank } => {
                write!(
                    f,
                    "it speaks protocol {rank}, the job {server}; use one version of windlass for all ranks"
                )
            }
            Self::Ranks { server, rank } => write!(f, "it expects {rank} ranks, the job has {server}"),
            Self::Taken { pid } => write!(f, "process {pid} has that rank already"),
            Self::User { uid } => write!(f, "it runs as user {uid}, not as the job's user"),
            Self::Descriptors => {
                write!(
                    f,
                    "who holds the rendezvous (the launcher, or rank 0) has no file descriptor left; raise the open-file limit: ulimit -n"
                )
            }
            Self::Configuration { difference } => {
                write!(f, "its configuration differs from rank 0's: {difference}; set it alike for all ranks")
            }
        }
    }
}

/// A failed operation gives its memory back with the error.
#[derive(Clone, Debug)]
pub struct Failed<M> {
    /// Why it failed.
    pub error: Error,
    /// The memory the operation owned.
    pub memory: M,
}

impl<M> From<Failed<M>> for Error {
    fn from(failed: Failed<M>) -> Self {
        failed.error
    }
}

impl<M> fmt::Display for Failed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<M: fmt::Debug> std::error::Error for Failed<M> {}
