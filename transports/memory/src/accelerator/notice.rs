//! What an accelerator tells of its memory, and the queue it tells it through.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use crate::accelerator::Region;

/// A question whether a region may move. Never given out twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

impl Ticket {
    /// For accelerators: the ticket of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// Whether the bytes of before are in the memory of after.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Contents {
    /// They are.
    Preserved,
    /// They are gone; what is there instead is unspecified.
    Lost,
}

/// An event in the life of a region. `generation` is the one that the event is about.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// The region's next memory exists and can be exported by its generation, so that peers import it ahead. Nobody may touch it
    /// before [`Notice::Moved`] of the same generation. Comes right before its [`Notice::MoveAsked`].
    Announced {
        /// Whose memory.
        region: Region,
        /// The next generation.
        generation: u32,
    },
    /// The region is to move: quiesce it, then acknowledge, or refuse. No answer until the deadline is a refusal.
    MoveAsked {
        /// Whose memory.
        region: Region,
        /// The generation that would end.
        generation: u32,
        /// What to answer with.
        ticket: Ticket,
        /// When it was asked, on the accelerator's clock ([`now`](crate::accelerator::Accelerator::now)).
        asked: Duration,
        /// On the same clock.
        deadline: Duration,
    },
    /// The move was refused or its deadline passed: the generation goes on. What was announced ahead is void.
    Abandoned {
        /// Whose memory.
        region: Region,
        /// The generation that goes on.
        generation: u32,
        /// The question, which is over.
        ticket: Ticket,
    },
    /// The region lives at a new generation, with the bytes it had.
    Moved {
        /// Whose memory.
        region: Region,
        /// The new generation.
        generation: u32,
        /// When the last byte was in its place, on the accelerator's clock.
        copied: Duration,
    },
    /// The memory is gone, without a question; work on it ends stale.
    Revoked {
        /// Whose memory.
        region: Region,
        /// The generation that ended.
        generation: u32,
    },
    /// What was revoked has memory again.
    Replaced {
        /// Whose memory.
        region: Region,
        /// The new generation.
        generation: u32,
        /// Whether the bytes are those of before the revoke.
        contents: Contents,
    },
    /// The region was freed by its user.
    Freed {
        /// Whose memory.
        region: Region,
        /// The generation that ended.
        generation: u32,
    },
}

impl Notice {
    /// The region it is about.
    pub const fn region(self) -> Region {
        match self {
            Self::Announced { region, .. }
            | Self::MoveAsked { region, .. }
            | Self::Abandoned { region, .. }
            | Self::Moved { region, .. }
            | Self::Revoked { region, .. }
            | Self::Replaced { region, .. }
            | Self::Freed { region, .. } => region,
        }
    }
}

/// A bounded queue of notices, written inside drivers and read by a scheduler.
///
/// Telling is free: it takes no lock, allocates nothing and never waits, so a driver may do it in an interrupt's shadow. When
/// the queue is full the notice is dropped and [`Notices::overflowed`] says so: the reader then asks for the
/// [`status`](crate::accelerator::Accelerator::status) of each region it uses, which has all that notices say.
pub struct Notices {
    queue: ArrayQueue<Notice>,
    overflowed: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Notices {
    /// A queue of at most `capacity` notices (at least one). `wake` is called after each notice and each fence that the accelerator
    /// ends, perhaps inside the accelerator's locks: it wakes somebody, calls nothing of the accelerator, takes no lock that is held
    /// across I/O and allocates nothing.
    pub fn new(capacity: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let queue = ArrayQueue::new(capacity.max(1));
        Self { queue, overflowed: AtomicBool::new(false), wake: Box::new(wake) }
    }

    /// For accelerators: tells.
    pub fn push(&self, notice: Notice) {
        if self.queue.push(notice).is_err() {
            self.overflowed.store(true, Ordering::Release);
        }
        (self.wake)();
    }

    /// For accelerators: wakes the reader because a fence is done.
    pub fn wake(&self) {
        (self.wake)();
    }

    /// The oldest notice.
    pub fn pop(&self) -> Option<Notice> {
        self.queue.pop()
    }

    /// Whether there is nothing to read, lost notices included.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && !self.overflowed.load(Ordering::Acquire)
    }

    /// Whether notices were dropped since the last call.
    pub fn overflowed(&self) -> bool {
        self.overflowed.swap(false, Ordering::AcqRel)
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notices({} of {})", self.queue.len(), self.queue.capacity())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn notices_keep_their_order_and_a_full_queue_says_so() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let notices = Notices::new(2, move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let notice =
            |generation| Notice::Moved { region: Region::new(1, 2), generation, copied: Duration::ZERO };
        (0..3).for_each(|generation| notices.push(notice(generation)));
        assert_eq!([notices.pop(), notices.pop(), notices.pop()], [Some(notice(0)), Some(notice(1)), None]);
        assert!(notices.overflowed() && !notices.overflowed());
        assert_eq!(woken.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_notice_is_small() {
        // It goes through a queue by value: a cache line at most.
        assert!(size_of::<Notice>() <= 64);
    }
}
