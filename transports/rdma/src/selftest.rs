//! How a NIC takes an accelerator's memory that moves, tried: the kernel can be asked neither of the exporter nor of the NIC's driver.
//!
//! A dma-buf is registered behind its first page. The NIC, [connected to itself](crate::loopback), writes to it, reads back, and the processor looks where it may.
//! If the memory can be moved, it then is: without force, with force, and by a revoke, each on a dma-buf of its own.
//!
//! **What has moved is read first.** The processor puts new bytes where the memory is now; a NIC that reads others still reaches the place that was left. It is not
//! made to write there, since that may be anybody's memory by now. One that reads right writes, too, and the processor looks; and the device, where it
//! counts who writes too late, has the last word.
//!
//! Bounded by a few seconds, if the NIC does not answer; some milliseconds otherwise. All that is made for it is gone afterwards.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use windlass_memory::accelerator::kernel::{Driver, Mover};
use windlass_memory::accelerator::{Accelerator, AcceleratorError, Movement};
use windlass_memory::{MemoryError, page_bytes};

use crate::loopback::{self, Loopback};
use crate::verbs::{
    Access, Attachment, Completion, CompletionChannel, CompletionQueue, Device, Failure, MemoryRegion, Place,
    PostError, RegisterError, Status, VerbError,
};

/// How long one completion is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the registered range begins in its page: offsets are neither zero nor aligned.
const SKEW: u64 = 64;

/// What has become of a registration when its memory was moved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum After {
    /// The NIC reaches the memory where it is now.
    Follows,
    /// The memory did not move: its exporter refused, with this error, because the NIC holds it.
    Stays {
        /// `EBUSY`, mostly.
        errno: i32,
    },
    /// The key holds no more, and whoever uses it is told so.
    Dies {
        /// How.
        status: Status,
    },
    /// The NIC goes on reaching the place that was left, and nobody is told.
    Strays,
}

/// What has become of it after each kind of move.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moves {
    /// One that the exporter may refuse.
    pub shifted: After,
    /// One that it may not.
    pub forced: After,
    /// The memory was taken away for good.
    pub revoked: After,
}

/// How a NIC and an accelerator get on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// The NIC follows.
    Transparent,
    /// The memory stays while the NIC holds it. What is moved all the same, the NIC does not hear of.
    Pinned,
    /// As above, but the key dies when the memory is moved all the same.
    Revocable,
    /// The NIC reaches memory that has gone, also after moves that its exporter could have refused.
    Unsafe,
}

impl Moves {
    /// What they come to.
    pub fn mode(&self) -> Mode {
        match (self.shifted, self.strays()) {
            (After::Strays, _) | (After::Follows | After::Dies { .. }, true) => Mode::Unsafe,
            (After::Stays { .. }, true) => Mode::Pinned,
            (After::Follows, false) => Mode::Transparent,
            (After::Stays { .. } | After::Dies { .. }, false) => Mode::Revocable,
        }
    }

    fn strays(&self) -> bool {
        [self.shifted, self.forced, self.revoked].contains(&After::Strays)
    }

    /// Whether the NIC may be given memory that moves like this. If its owner asks, it is taken back from the NIC before anything moves. If nobody asks,
    /// nothing must have strayed.
    pub fn permit(&self, movement: Movement) -> bool {
        movement.asks() || !self.strays()
    }
}

/// Why nothing has been found out.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Untried {
    /// The accelerator refuses.
    #[error("the accelerator: {0}")]
    Accelerator(#[from] AcceleratorError),
    /// The NIC does not take the memory.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The NIC is not connected to itself.
    #[error("the NIC is not connected to itself: {0}")]
    Loopback(#[from] loopback::Error),
    /// A verb failed.
    #[error(transparent)]
    Verb(#[from] VerbError),
    /// Nothing is posted.
    #[error(transparent)]
    Post(#[from] PostError),
    /// What was written before anything had moved failed.
    #[error("a transfer failed before anything had moved: {0}")]
    Failed(#[from] Failure),
    /// The NIC does not answer.
    #[error("the NIC has not ended a transfer to itself within {} s", PATIENCE.as_secs())]
    Silent,
    /// Before anything had moved, the bytes were not where they should be.
    #[error(
        "bytes that were written to the memory are not found there by {by}, although nothing has moved: do not use this pair"
    )]
    Garbled {
        /// Who has looked.
        by: &'static str,
    },
}

impl From<MemoryError> for Untried {
    fn from(error: MemoryError) -> Self {
        Self::Accelerator(error.into())
    }
}

/// Tries a NIC with the memory of a driver. `None`: the memory is registered and its bytes are right, and it never moves.
///
/// # Errors
/// See [`Untried`].
pub fn run(device: &Device, attachment: Attachment, driver: &Driver) -> Result<Option<Moves>, Untried> {
    let begin = || Trial::begin(device, attachment, driver);
    let Some(mover) = driver.mover() else {
        begin()?;
        return Ok(None);
    };
    let shift = |force| {
        let trial = begin()?;
        let moved = mover.shift(trial.buffer.as_fd(), force);
        trial.moved(mover, moved)
    };
    Ok(Some(Moves { shifted: shift(false)?, forced: shift(true)?, revoked: begin()?.revoke(mover)? }))
}

/// Why a NIC is given no memory that moves without asking: it goes by way of the host.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Staged {
    /// The NIC would go on with the place that was left.
    #[error(
        "{accelerator} moves its memory without asking, and {device} would go on reaching the place that was left ({mode:?}): such memory goes by way of the host; \
         have its owner ask (movement pinned or cooperative), or use a NIC that copes. `windlass doctor` shows what was tried"
    )]
    Strays {
        /// The NIC.
        device: Arc<str>,
        /// Whose memory.
        accelerator: &'static str,
        /// What was found.
        mode: Mode,
    },
    /// It was not found out.
    #[error(
        "how {device} takes memory of {accelerator} that moves without asking was not found out: it goes by way of the host: {cause}"
    )]
    Untried {
        /// The NIC.
        device: Arc<str>,
        /// Whose memory.
        accelerator: &'static str,
        /// Why not.
        cause: Untried,
    },
    /// It cannot be.
    #[error(
        "memory that moves without asking and is no driver's of the kernel cannot be tried with {device}: it goes by way of the host"
    )]
    NoDriver {
        /// The NIC.
        device: Arc<str>,
    },
}

/// Whether a NIC may be given the memory of an accelerator that does not ask before it moves, as far as can be found out.
///
/// # Errors
/// See [`Staged`].
pub fn admit(device: &Device, attachment: Attachment, accelerator: &dyn Accelerator) -> Result<(), Staged> {
    let name = Arc::clone(device.name());
    let Some(driver) = accelerator.driver() else { return Err(Staged::NoDriver { device: name }) };
    let accelerator_name = driver.name();
    match run(device, attachment, &driver) {
        Ok(None) => Ok(()),
        Ok(Some(moves)) if moves.permit(accelerator.movement()) => Ok(()),
        Ok(Some(moves)) => {
            Err(Staged::Strays { device: name, accelerator: accelerator_name, mode: moves.mode() })
        }
        Err(cause) => Err(Staged::Untried { device: name, accelerator: accelerator_name, cause }),
    }
}

/// A dma-buf, registered and known to be reached.
struct Trial<'a> {
    driver: &'a Driver,
    device: &'a Device,
    buffer: OwnedFd,
    loopback: Loopback,
    region: MemoryRegion,
    queue: CompletionQueue,
    channel: CompletionChannel,
}

/// Bytes of which each trial has others.
fn pattern(seed: u8) -> Vec<u8> {
    (0..2 * page_bytes()).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

/// Where the range is in the dma-buf, in bytes.
fn offset() -> u64 {
    page_bytes() as u64 + SKEW
}

impl<'a> Trial<'a> {
    fn begin(device: &'a Device, attachment: Attachment, driver: &'a Driver) -> Result<Self, Untried> {
        let bytes = 2 * page_bytes();
        let buffer = driver.allocate(4 * page_bytes() as u64)?;
        let region = register(device, &buffer)?;
        let channel = CompletionChannel::create(device)?;
        let queue = CompletionQueue::create(device, 8, Some(&channel))?;
        let loopback = Loopback::connect(device, attachment, &queue, 2, bytes)?;
        let trial = Self { driver, device, buffer, loopback, region, queue, channel };
        let first = pattern(0x11);
        trial.write(&first)??;
        if trial.read()?? != first {
            return Err(Untried::Garbled { by: "the NIC" });
        }
        if trial.seen()?.is_some_and(|seen| seen != first) {
            return Err(Untried::Garbled { by: "the processor" });
        }
        Ok(trial)
    }

    /// What has become of it, now that the memory has been moved, or not.
    fn moved(&self, mover: &dyn Mover, moved: Result<(), MemoryError>) -> Result<After, Untried> {
        let here = pattern(0x22);
        // Where the processor may not look, the bytes that have moved along must do.
        let here = match self.driver.store(self.buffer.as_fd(), offset() as usize, &here)? {
            true => here,
            false => pattern(0x11),
        };
        let found = match self.read()? {
            Err(failure) => After::Dies { status: failure.status },
            Ok(read) if read != here => After::Strays,
            Ok(_) if !self.writes_here()? => After::Strays,
            Ok(_) => moved.map_or_else(|error| After::Stays { errno: error.errno }, |()| After::Follows),
        };
        Ok(self.unless_counted(mover, found))
    }

    /// As [`moved`](Self::moved): of memory that was taken away there is no place where it would be right.
    fn revoke(&self, mover: &dyn Mover) -> Result<After, Untried> {
        let revoked = mover.revoke(self.buffer.as_fd());
        let found = match self.read()? {
            Err(failure) => After::Dies { status: failure.status },
            Ok(_) => match (register(self.device, &self.buffer), revoked) {
                // It can be registered as before, so it was not revoked.
                (Ok(_), Err(error)) => After::Stays { errno: error.errno },
                _ => After::Strays,
            },
        };
        Ok(self.unless_counted(mover, found))
    }

    fn unless_counted(&self, mover: &dyn Mover, found: After) -> After {
        let late = mover.stale_bytes_in(self.buffer.as_fd()).is_some_and(|bytes| bytes > 0);
        if late { After::Strays } else { found }
    }

    fn writes_here(&self) -> Result<bool, Untried> {
        let next = pattern(0x33);
        Ok(self.write(&next)?.is_ok() && self.seen()?.is_none_or(|seen| seen == next))
    }

    fn place(&self) -> Place {
        Place { address: self.region.address(), key: self.region.remote_key() }
    }

    fn write(&self, bytes: &[u8]) -> Result<Result<(), Failure>, Untried> {
        self.loopback.fill(bytes);
        self.loopback.write(0, self.place(), bytes.len() as u32)?;
        Ok(self.next()?.outcome.map(drop))
    }

    fn read(&self) -> Result<Result<Vec<u8>, Failure>, Untried> {
        let bytes = self.region.bytes();
        self.loopback.fill(&vec![0; bytes]);
        self.loopback.read(1, self.place(), bytes as u32)?;
        Ok(self.next()?.outcome.map(|_| self.loopback.bytes(bytes)))
    }

    /// What the processor sees, where it may look.
    fn seen(&self) -> Result<Option<Vec<u8>>, Untried> {
        let mut bytes = vec![0; self.region.bytes()];
        let looked = self.driver.load(self.buffer.as_fd(), offset() as usize, &mut bytes)?;
        Ok(looked.then_some(bytes))
    }

    fn next(&self) -> Result<Completion, Untried> {
        let (deadline, mut seen) = (Instant::now() + PATIENCE, Vec::new());
        loop {
            self.queue.arm()?;
            // After arming, so that none falls between.
            self.queue.poll(&mut seen)?;
            if let Some(completion) = seen.pop() {
                return Ok(completion);
            }
            let left = deadline.checked_duration_since(Instant::now()).ok_or(Untried::Silent)?;
            let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ =
                poll(&mut [PollFd::from_borrowed_fd(self.channel.descriptor(), PollFlags::IN)], Some(&time));
            self.channel.take()?;
        }
    }
}

fn register(device: &Device, buffer: &OwnedFd) -> Result<MemoryRegion, RegisterError> {
    let access = Access::REMOTE_WRITE | Access::REMOTE_READ;
    MemoryRegion::register_dmabuf(device, buffer.as_fd(), offset(), 2 * page_bytes(), offset(), access)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAYS: After = After::Stays { errno: libc::EBUSY };
    const DIES: After = After::Dies { status: Status::RemoteAccess };
    const ALL: [After; 4] = [After::Follows, STAYS, DIES, After::Strays];

    #[test]
    fn a_mode_is_what_the_moves_come_to() {
        let mode = |shifted, forced, revoked| Moves { shifted, forced, revoked }.mode();
        assert_eq!(mode(After::Follows, After::Follows, DIES), Mode::Transparent);
        assert_eq!(mode(STAYS, DIES, DIES), Mode::Revocable);
        assert_eq!(mode(STAYS, After::Strays, After::Strays), Mode::Pinned);
        assert_eq!(mode(STAYS, DIES, After::Strays), Mode::Pinned);
        assert_eq!(mode(After::Strays, DIES, DIES), Mode::Unsafe);
        assert_eq!(mode(After::Follows, After::Follows, After::Strays), Mode::Unsafe);
    }

    /// Whatever has strayed, memory that moves unasked is not given; and what has not is.
    #[test]
    fn memory_that_moves_unasked_is_given_only_to_what_never_strays() {
        for shifted in ALL {
            for forced in ALL {
                for revoked in ALL {
                    let moves = Moves { shifted, forced, revoked };
                    let safe = [shifted, forced, revoked].iter().all(|after| *after != After::Strays);
                    assert_eq!(safe, !matches!(moves.mode(), Mode::Pinned | Mode::Unsafe), "{moves:?}");
                    for movement in [Movement::Transparent, Movement::Revocable] {
                        assert_eq!(moves.permit(movement), safe, "{moves:?}");
                    }
                    assert!(moves.permit(Movement::Pinned) && moves.permit(Movement::Cooperative));
                }
            }
        }
    }

    #[test]
    fn no_two_patterns_agree_anywhere() {
        let [a, b, c] = [0x11, 0x22, 0x33].map(pattern);
        assert!(a.iter().zip(&b).zip(&c).all(|((a, b), c)| a != b && b != c && a != c));
    }
}
