//! How bytes and notices reach a peer.
//!
//! A [`Transport`] carries messages between the ranks of a job. It reports facts ([`Event`]s) and never
//! retries, times out or decides: replay, deadlines and the classification of failures live in one place above it.
//!
//! | module | one idea |
//! |---|---|
//! | [`message`] | a message's identity on the wire |
//! | [`ledger`] | what is done again after a break, by the receiver's watermark |
//! | [`link`] | matching, eager credits and rendezvous between two ranks, without I/O |
//! | [`tcp`] | links over TCP streams |
//! | [`sim`] | links over a simulated network with virtual time |
//! | [`reach`] | memory that peers of a host read where it lies, or that a device is given |
//! | [`shm`] | links over lanes in shared memory, and the boards through which mapped peers signal |

pub mod conformance;
pub mod ledger;
pub mod link;
pub mod message;
pub mod reach;
pub mod shm;
pub mod sim;
pub mod tcp;

pub use message::{Message, MessageId};

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use reach::SegmentKey;
use windlass_memory::accelerator::Accelerator;

/// A rank's number in the job.
pub type Rank = u32;

/// What a transport can do: data for those who choose, so that nobody asks for its name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capabilities {
    /// Peers' registered memory can be mapped and reached with loads and stores.
    pub maps_peers: bool,
    /// Messages up to this size leave without waiting for the receiver, while credits last.
    pub eager_bytes: usize,
    /// What carries messages can break while both ranks live, and be opened anew: [`Event::Broken`] and [`Transport::reopen`].
    pub streams_break: bool,
    /// Large messages are read from and written to [registered](reach::Register) memory of this process where it lies, by a device.
    pub reaches_memory: bool,
    /// The same of [foreign](reach::Register::is_foreign) memory.
    pub reaches_devices: bool,
    /// What carries messages works on this host's cores, as a NIC in software does: whoever spins keeps it from them.
    pub needs_cores: bool,
    /// Completions may be waited for on a descriptor; otherwise on the job's doorbell.
    pub has_descriptor: bool,
}

/// Names the posted operation in its completion; the poster chooses it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Why a peer cannot be reached any more, as the operating system put it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LostCause {
    /// The peer closed its end: it exited, or finished with the job.
    Closed,
    /// A system call failed.
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: i32,
    },
    /// The peer sent bytes that are no frame of this protocol.
    Garbled(&'static str),
    /// One of both takes it down to open it anew, so that a device lets go of memory. Nothing is wrong, or the other knows what.
    Renewed,
    /// The device that carries the stream ended it.
    Device {
        /// What happened.
        what: &'static str,
        /// The nearest error number.
        errno: i32,
    },
}

impl fmt::Display for LostCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => write!(f, "it closed the connection"),
            Self::System { call, errno } => {
                write!(f, "{call}: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::Garbled(what) => write!(f, "it sent {what}"),
            Self::Renewed => write!(f, "it was taken down to be opened anew"),
            Self::Device { what, .. } => f.write_str(what),
        }
    }
}

/// What has happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A posted send is complete: its memory may be reused. The peer has it, or will have it unless one of both is lost.
    Sent(Token),
    /// A posted receive is complete: its memory holds the message.
    Received(Token),
    /// A message met a receive with the same identity but other arguments. Nothing was delivered. It ends the receive, and
    /// the send too if that had not ended; otherwise the sender gets [`Event::Refused`].
    Mismatch {
        /// The receive, or at the sender the send.
        token: Token,
        /// The other rank.
        peer: Rank,
        /// What the other rank said it sends, or receives.
        theirs: Message,
    },
    /// A message that had already ended here with [`Event::Sent`] met a receive with the same identity but other
    /// arguments at the peer, and was thrown away there.
    Refused {
        /// The receiver.
        peer: Rank,
        /// What the receiver expected.
        theirs: Message,
    },
    /// A message that was [sought](Transport::seek) is here, or announced, and waits for its receive.
    Arrived {
        /// The sender.
        peer: Rank,
        /// Which.
        id: MessageId,
    },
    /// The stream to a peer broke, or could not be opened. What was posted waits; [`Transport::reopen`] or [`Transport::give_up`] decides.
    Broken {
        /// Which.
        peer: Rank,
        /// Why.
        cause: LostCause,
    },
    /// The stream to a peer stands again. What the peer has not got leaves once more, and nothing else does.
    Reopened {
        /// Which.
        peer: Rank,
        /// Frames that leave once more.
        chunks: u64,
        /// Their bytes.
        bytes: u64,
        /// Anything had passed since it was last opened anew, or nothing waited to.
        progressed: bool,
    },
    /// A peer cannot be reached any more. Operations posted to it complete no more; their memory is not
    /// touched after this event.
    Lost {
        /// Which.
        peer: Rank,
        /// Why.
        cause: LostCause,
    },
}

impl Event {
    /// Whether it ends the operation with this token.
    pub fn ends(&self, token: Token) -> bool {
        matches!(*self, Self::Sent(of) | Self::Received(of) | Self::Mismatch { token: of, .. } if of == token)
    }
}

/// Carries messages between the ranks of a job.
///
/// Every call but [`linger`](Transport::linger) returns at once. Completions come from [`poll`](Transport::poll), in any order.
pub trait Transport: Send + fmt::Debug {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Begins to send `message.bytes` bytes at `memory` to `peer`. Ends with [`Event::Sent`], [`Event::Mismatch`] or [`Event::Lost`].
    /// What is posted to a lost peer never ends.
    ///
    /// # Safety
    /// `memory` stays valid for reads, and is not written, until the operation ends, or [`withdraw`](Transport::withdraw) names
    /// its token, or the transport is dropped.
    unsafe fn post_send(&mut self, peer: Rank, message: &Message, memory: *const u8, token: Token);

    /// Begins to receive a message into `memory`, of `message.bytes` bytes. Ends with [`Event::Received`], [`Event::Mismatch`]
    /// or [`Event::Lost`].
    ///
    /// # Safety
    /// `memory` stays valid for writes, and is not accessed otherwise, until the operation ends, or is
    /// withdrawn, or the transport is dropped.
    unsafe fn post_recv(&mut self, peer: Rank, message: &Message, memory: *mut u8, token: Token);

    /// The place in the order of arrivals, over all peers, of a user's message that is here, or announced, and waits for its receive; it is known by its first
    /// chunk. `None` while there is no such message: [`Event::Arrived`] then tells of it. For those who would take it without knowing what it is.
    fn seek(&mut self, peer: Rank, id: &MessageId) -> Option<u64>;

    /// Forgets a posted operation: after the return its memory is not written again, what is still read from it reaches nobody, and no event names
    /// it. Of a half-sent message, what has begun to leave may leave from a copy; the peer may receive the message whole, or wait as if it had not been sent.
    /// The identity of a withdrawn send is not used again.
    /// A large message that comes for a withdrawn receive is thrown away, unless a receive of the same identity has been posted before it comes.
    fn withdraw(&mut self, token: Token);

    /// Opens a [broken](Event::Broken) stream anew: ends with [`Event::Reopened`] or [`Event::Broken`]. It may last until the peer does its part.
    fn reopen(&mut self, _peer: Rank) {}

    /// Whether a peer whose stream is being opened is known to have heard of it; then it is late, not gone. The end that waits to be
    /// called knows nothing else.
    fn is_heard(&self, _peer: Rank) -> bool {
        true
    }

    /// Opens a broken stream no more: the peer is [lost](Event::Lost).
    fn give_up(&mut self, _peer: Rank) {}

    /// Takes a segment back from the devices that it is registered with, and that peers may reach it by: after the return nothing of it is touched. What
    /// is under way of its memory, which `within` knows, goes on by way of the host.
    fn release(&mut self, _segment: u64, _within: &dyn Fn(*const u8) -> bool) {}

    /// The rank has taken an accelerator into use whose memory moves without asking. Tries how the devices take that; the answers are why some
    /// of them are given no such memory. May take as long as a device that does not answer is waited for.
    fn attach(&mut self, _accelerator: &dyn Accelerator) -> Vec<Box<dyn std::error::Error>> {
        Vec::new()
    }

    /// Begins to look whether the devices still reach the foreign memory that is registered with them, and tells what earlier looks have found: segments
    /// that they do not. For whoever has a timer.
    fn probe(&mut self) -> Vec<SegmentKey> {
        Vec::new()
    }

    /// Breaks the stream to a peer under its protocol, as a network would. For tests.
    #[doc(hidden)]
    fn sever(&mut self, _peer: Rank) {}

    /// Makes progress and appends what has happened to `events`. Never blocks. Returns whether anything moved, also
    /// when it completed nothing.
    fn poll(&mut self, events: &mut Vec<Event>) -> bool;

    /// Sends the acknowledgements that peers wait for, unless something that leaves soon carries them. Whoever stops polling calls it first.
    /// False if a peer does not take them now.
    fn acknowledge(&mut self) -> bool {
        true
    }

    /// Whether a stream is being opened, or carries what it had lost, or an acknowledgement waits: somebody must poll, although nobody may wait for a message.
    fn is_disturbed(&self) -> bool {
        false
    }

    /// Waits until what has left this rank is where its peers find it also when this rank is gone, but no longer than `time`. Called before a transport
    /// is dropped; the only call that waits.
    fn linger(&mut self, _time: Duration) {}

    /// A descriptor that is readable when a peer calls, and otherwise not.
    fn guard(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// A descriptor that is readable when [`poll`](Transport::poll) has something to do, if there is one.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
