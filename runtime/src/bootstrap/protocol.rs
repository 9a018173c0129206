//! The messages between ranks and the rendezvous. Postcard-encoded, one a datagram.

use serde::{Deserialize, Serialize};

use crate::error::{AbortReason, PeerCause, Refusal};

/// Changes whenever a message does.
pub(crate) const VERSION: u32 = 2;

/// The most bytes of a message: a datagram must fit into a socket's buffer.
pub(crate) const MAX_BYTES: usize = 128 << 10;

/// From a rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ToServer {
    /// The first message. Rank 0 attaches the job's board.
    Join {
        version: u32,
        rank: u32,
        ranks: u32,
        /// Settings that all must share.
        agreement: Vec<(String, String)>,
        /// Where its TCP transport listens, if it has one.
        tcp: Option<String>,
        /// The cores it may use.
        cpus: Vec<u32>,
    },
    /// A new segment of its shared memory, attached.
    Segment { number: u32 },
    /// A board for a communicator, attached, meant for these ranks of the job.
    Board { communicator: u32, members: Vec<u32> },
    /// An operation has waited for long: the last calls, to be compared with the others'.
    Stalled { communicator: u32, calls: Vec<(u64, [u64; 2])>, members: Vec<u32>, doing: String },
    /// It waits no more.
    Moving,
    /// A communicator has failed; the members are to know.
    Failed { communicator: u32, members: Vec<u32>, failure: Failure },
    /// It leaves the job in order.
    Leave,
}

/// To a rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ToRank {
    /// All have joined. The job's board is attached.
    Welcome {
        /// Where each rank's TCP transport listens.
        tcp: Vec<Option<String>>,
        /// Cores that the ranks share.
        cores: u32,
    },
    /// It may not join.
    Refused(Refusal),
    /// Not all have joined; these are missing.
    Waiting { missing: Vec<u32> },
    /// A peer's new segment, attached.
    Segment { rank: u32, number: u32 },
    /// A communicator's board, attached.
    Board { communicator: u32 },
    /// A communicator has failed.
    Failed { communicator: u32, failure: Failure },
    /// A peer's process has ended, or it has left.
    Lost { rank: u32, cause: PeerCause },
}

/// Why a communicator failed, as told to its other members.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// Two ranks made different calls.
    Mismatch { sequence: u64, first: (u32, [u64; 2]), second: (u32, [u64; 2]) },
    /// A rank died.
    PeerFailed { rank: u32, cause: PeerCause },
    /// A rank gave up.
    Aborted { by: u32, reason: AbortReason },
}
