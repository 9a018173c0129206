//! A rank's end of the rendezvous: what it tells, and a thread that listens.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use windlass_memory::Segment;

use super::Identity;
use super::protocol::{ToRank, ToServer, VERSION};
use super::socket;
use crate::config::Config;
use crate::error::JoinError;
use crate::numa;

/// The connection to the rendezvous.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    /// Rank 0 serves the rendezvous: no launcher does, or the world is one of threads.
    of_rank_0: bool,
}

/// What joining gave.
pub(crate) struct Welcome {
    pub(crate) board: OwnedFd,
    pub(crate) tcp: Vec<Option<String>>,
    pub(crate) cores: u32,
    pub(crate) nodes: Vec<Option<u32>>,
}

impl Control {
    /// Connects. A rank that serves the rendezvous itself, or whose peer does, may come first: it tries until the time is over.
    pub(crate) fn connect(identity: &Identity, config: &Config) -> Result<Self, JoinError> {
        let address = identity.rendezvous.clone().unwrap_or_default();
        let parsed = socket::parse_address(&address).ok_or_else(|| JoinError::Environment {
            variable: "WINDLASS_RENDEZVOUS",
            value: Some(address.clone()),
            problem: "must have the form unix:@name, as `windlass run` sets it, or unix:/path, of at most 107 bytes",
        })?;
        // A launcher's rendezvous is there before its ranks; only torchrun's rank 0 may be late.
        let patient = std::env::var_os("WINDLASS_RENDEZVOUS").is_none_or(|v| v.to_str() != Some(&address));
        let begin = Instant::now();
        loop {
            match socket::reach(&parsed) {
                Ok(socket) => return Ok(Self { socket, of_rank_0: patient }),
                Err(Errno::CONNREFUSED | Errno::AGAIN | Errno::NOENT)
                    if patient && begin.elapsed() < config.join_timeout =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(Errno::AGAIN) if begin.elapsed() < config.join_timeout => {
                    std::thread::sleep(Duration::from_millis(2))
                }
                Err(e) => {
                    let hint = if e == Errno::CONNREFUSED {
                        "nobody listens there: the launcher has ended, or WINDLASS_RENDEZVOUS is left over from another job"
                    } else {
                        "start the program with `windlass run`"
                    };
                    return Err(JoinError::NoRendezvous { address, errno: e.raw_os_error(), hint });
                }
            }
        }
    }

    /// Joins and waits for the others. `board` is the job's, which rank 0 makes.
    pub(crate) fn join(
        &self,
        identity: &Identity,
        config: &Config,
        board: Option<&Segment>,
        tcp: Option<String>,
    ) -> Result<Welcome, JoinError> {
        let cpus = allowed_cpus();
        let node = numa::common_node(&cpus, numa::node_of_cpu);
        let join = ToServer::Join {
            version: VERSION,
            rank: identity.rank,
            ranks: identity.ranks,
            agreement: config.agreement(),
            tcp,
            cpus,
            node,
        };
        let broken = |e: Errno| JoinError::NoRendezvous {
            address: identity.rendezvous.clone().unwrap_or_default(),
            errno: e.raw_os_error(),
            hint: "the rendezvous ended while this rank was joining",
        };
        socket::send(self.socket.as_fd(), &join, board.map(Segment::descriptor)).map_err(broken)?;
        let begin = Instant::now();
        let (mut buffer, mut missing, mut reported) = (Vec::new(), Vec::new(), false);
        loop {
            let waited = begin.elapsed();
            if waited >= config.join_timeout {
                return Err(JoinError::Missing { missing, after: waited });
            }
            if !reported && !config.report_after.is_zero() && waited >= config.report_after {
                reported = true;
                crate::error::report(format_args!(
                    "rank {} has waited {waited:.0?} for rank(s) {missing:?} to join",
                    identity.rank
                ));
            }
            let wait = Duration::from_millis(500).min(config.join_timeout - waited);
            if !readable(self.socket.as_fd(), wait) {
                continue;
            }
            match socket::receive::<ToRank>(self.socket.as_fd(), &mut buffer) {
                Ok(Some((ToRank::Welcome { tcp, cores, nodes }, Some(board)))) => {
                    return Ok(Welcome { board, tcp, cores, nodes });
                }
                Ok(Some((ToRank::Refused(refusal), _))) => {
                    return Err(JoinError::Refused { rank: identity.rank, refusal });
                }
                Ok(Some((ToRank::Waiting { missing: now }, _))) => missing = now,
                Ok(Some((ToRank::Lost { rank, cause }, _))) => {
                    return Err(JoinError::PeerFailed { rank, cause });
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(broken(Errno::CONNRESET)),
                Err(e) => return Err(broken(e)),
            }
        }
    }

    /// Tells the rendezvous something. That it is gone is no error here: the launcher then ends the job.
    pub(crate) fn tell(&self, message: &ToServer, descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        socket::send(self.socket.as_fd(), message, descriptor)
    }

    /// The next message; `None` when the rendezvous has ended. A descriptor that could not be installed is an error, and others
    /// may follow.
    pub(crate) fn listen(&self, buffer: &mut Vec<u8>) -> Result<Option<(ToRank, Option<OwnedFd>)>, Errno> {
        loop {
            match socket::receive(self.socket.as_fd(), buffer) {
                Ok(message) => return Ok(message),
                Err(Errno::MFILE) => return Err(Errno::MFILE),
                // Garbage is one message lost.
                Err(Errno::BADMSG) => {}
                Err(_) => return Ok(None),
            }
        }
    }

    /// Readable when there is something to [`listen`](Self::listen) to.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the end of the rendezvous is the end of rank 0.
    pub(crate) const fn is_of_rank_0(&self) -> bool {
        self.of_rank_0
    }

    /// Ends the connection: the listening thread returns.
    pub(crate) fn close(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

fn readable(socket: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
    matches!(poll(&mut polled, Some(&timeout)), Ok(n) if n > 0)
}

/// The cores this process may run on, so that the rendezvous can count those the job has.
fn allowed_cpus() -> Vec<u32> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => {
            (0..rustix::thread::CpuSet::MAX_CPU).filter(|&c| set.is_set(c)).map(|c| c as u32).collect()
        }
        Err(_) => Vec::new(),
    }
}
