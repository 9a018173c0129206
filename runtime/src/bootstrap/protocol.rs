//! The messages between ranks and the rendezvous. Postcard-encoded, one a datagram.

use serde::{Deserialize, Serialize};

use crate::error::{AbortReason, PeerCause, Refusal};

/// Changes whenever a message does.
pub(crate) const VERSION: u32 = 5;

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
        /// The NUMA node that those are on, if it is one.
        node: Option<u32>,
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
    /// For one rank: about a segment of device memory, perhaps with its descriptor attached.
    Region { to: u32, message: RegionMessage },
    /// For one rank: the end of a line, attached, over which it will be told such things from now on.
    Line { to: u32 },
    /// It leaves the job in order.
    Leave,
    /// For one rank: its stream to this one broke, and it is the one that dials.
    Broken { to: u32 },
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
        /// The NUMA node of each rank that is bound to one.
        nodes: Vec<Option<u32>>,
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
    /// A peer says something about a segment of device memory, whose descriptor may be attached.
    Region { from: u32, message: RegionMessage },
    /// The end of a line from a peer, attached.
    Line { from: u32 },
    /// A peer's process has ended, or it has left.
    Lost { rank: u32, cause: PeerCause },
    /// A peer's stream broke, and waits to be opened anew.
    Broken { from: u32 },
}

/// What ranks tell each other of a segment of device memory: see `scheduler`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RegionMessage {
    pub(crate) owner: u32,
    pub(crate) segment: u32,
    pub(crate) news: RegionNews,
    /// What the attached descriptor is of, in the accelerator's wire form; or why there is none, if not because there is nothing there.
    pub(crate) exported: Result<Vec<u8>, Option<i32>>,
}

/// The news. A place is the owner's name for where the segment lies.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum RegionNews {
    /// It may be used, but not by operations that were lent it at a generation before `lent_from`.
    Advertise { generation: u32, place: u64, lent_from: u32 },
    /// It will be there.
    Announce { place: u64 },
    /// It may not be used any more: drain, unmap, answer.
    Withdraw { generation: u32 },
    /// The answer.
    Withdrawn { generation: u32 },
    /// No generation follows.
    End { generation: u32 },
}

/// Why a communicator failed, as told to its other members.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// Two ranks made different calls.
    Mismatch { sequence: u64, first: (u32, [u64; 2]), second: (u32, [u64; 2]) },
    /// A rank died.
    PeerFailed { rank: u32, cause: PeerCause },
    /// Memory that the members used is gone.
    RegionRevoked { region: (u32, u32), generation: u32 },
    /// A rank gave up.
    Aborted { by: u32, reason: AbortReason },
}

/// A door for the fuzz target, which is outside: what the rendezvous and what a rank make of a datagram, from there or from a line, written again.
#[cfg(fuzzing)]
#[doc(hidden)]
pub const RECODE: [fn(&[u8]) -> Option<Vec<u8>>; 3] =
    [recode::<ToServer>, recode::<ToRank>, recode::<RegionMessage>];

#[cfg(fuzzing)]
fn recode<M: Serialize + serde::de::DeserializeOwned>(datagram: &[u8]) -> Option<Vec<u8>> {
    let message: M = postcard::from_bytes(datagram).ok()?;
    Some(postcard::to_stdvec(&message).expect("what was read can be written"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::error::{AbortReason, PeerCause, Refusal};

    /// One message a variant, by the name of its seed.
    fn messages() -> Vec<(&'static str, Vec<u8>)> {
        fn to<M: Serialize>(message: M) -> Vec<u8> {
            postcard::to_stdvec(&message).unwrap()
        }
        let region = |news, exported| RegionMessage { owner: 1, segment: 2, news, exported };
        let agreement = vec![("transport".to_owned(), "auto".to_owned())];
        let tcp = Some("127.0.0.1:4000".to_owned());
        let mismatch = Failure::Mismatch { sequence: 9, first: (0, [1, 2]), second: (1, [3, 4]) };
        let aborted = Failure::Aborted { by: 1, reason: AbortReason::TimedOut };
        let revoked = Failure::RegionRevoked { region: (1, 2), generation: 3 };
        let members = vec![0, 1];
        vec![
            (
                "server-join",
                to(ToServer::Join {
                    version: VERSION,
                    rank: 1,
                    ranks: 2,
                    agreement,
                    tcp: tcp.clone(),
                    cpus: vec![0, 1],
                    node: Some(0),
                }),
            ),
            ("server-segment", to(ToServer::Segment { number: 300 })),
            ("server-board", to(ToServer::Board { communicator: 4, members: members.clone() })),
            (
                "server-stalled",
                to(ToServer::Stalled {
                    communicator: 4,
                    calls: vec![(7, [u64::MAX, 1])],
                    members: members.clone(),
                    doing: "all_reduce".to_owned(),
                }),
            ),
            ("server-moving", to(ToServer::Moving)),
            ("server-failed", to(ToServer::Failed { communicator: 4, members, failure: mismatch })),
            (
                "server-region",
                to(ToServer::Region {
                    to: 0,
                    message: region(
                        RegionNews::Advertise { generation: 1, place: 5, lent_from: 1 },
                        Ok(vec![7; 36]),
                    ),
                }),
            ),
            ("server-line", to(ToServer::Line { to: 300 })),
            ("server-leave", to(ToServer::Leave)),
            ("server-broken", to(ToServer::Broken { to: 1 })),
            (
                "rank-welcome",
                to(ToRank::Welcome { tcp: vec![None, tcp], cores: 2, nodes: vec![Some(0), None] }),
            ),
            ("rank-refused", to(ToRank::Refused(Refusal::Taken { pid: 77 }))),
            ("rank-waiting", to(ToRank::Waiting { missing: vec![1, 2] })),
            ("rank-segment", to(ToRank::Segment { rank: 1, number: 300 })),
            ("rank-board", to(ToRank::Board { communicator: 4 })),
            ("rank-failed", to(ToRank::Failed { communicator: 4, failure: aborted })),
            ("rank-revoked", to(ToRank::Failed { communicator: 4, failure: revoked })),
            (
                "rank-region",
                to(ToRank::Region {
                    from: 1,
                    message: region(RegionNews::Withdraw { generation: 1 }, Err(None)),
                }),
            ),
            ("line", to(region(RegionNews::Announce { place: 300 }, Ok(vec![7; 36])))),
            ("rank-line", to(ToRank::Line { from: 300 })),
            ("rank-lost", to(ToRank::Lost { rank: 1, cause: PeerCause::Killed(9) })),
            ("rank-broken", to(ToRank::Broken { from: 1 })),
        ]
    }

    /// The seeds of the fuzz target are today's messages, so a message that changes shows here, and wants another `VERSION`.
    /// Written anew with `UPDATE=1`.
    #[test]
    fn seeds() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/rendezvous");
        for (name, bytes) in messages() {
            if std::env::var_os("UPDATE").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join(name), &bytes).unwrap();
            }
            let kept = std::fs::read(folder.join(name)).unwrap();
            assert_eq!(kept, bytes, "{name} is not what is sent: change VERSION, then UPDATE=1 this test");
        }
    }
}
