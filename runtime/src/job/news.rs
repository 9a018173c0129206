//! What a rank hears from the rendezvous, and the thread that listens to it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use windlass_memory::Mapping;
use windlass_transports::shm::Board;

use super::Job;
use crate::bootstrap::control::Control;
use crate::bootstrap::protocol::{ToRank, ToServer};
use crate::error::{Error, JoinError, PeerCause};
use crate::group::lock;

impl Job {
    pub(super) fn listen(job: &Arc<Self>) -> Result<(), JoinError> {
        let Some(control) = job.control.clone() else { return Ok(()) };
        let weak = Arc::downgrade(job);
        let thread =
            std::thread::Builder::new().name("wl-control".into()).stack_size(256 << 10).spawn(move || {
                let mut buffer = Vec::new();
                loop {
                    if !watch_streams(&weak, &control) {
                        return;
                    }
                    let heard = control.listen(&mut buffer);
                    let Some(job) = weak.upgrade() else { return };
                    match heard {
                        Ok(Some((message, descriptor))) => job.hear(message, descriptor),
                        // The news is lost, and with it perhaps memory that everybody would wait for.
                        Err(errno) => job.fail_with(None, &Error::system("recvmsg", errno)),
                        Ok(None) if control.is_of_rank_0() && job.rank != 0 => {
                            return job.hear(ToRank::Lost { rank: 0, cause: PeerCause::Vanished }, None);
                        }
                        Ok(None) => return,
                    }
                }
            });
        let thread = thread.map_err(|e| JoinError::System {
            call: "pthread_create",
            errno: e.raw_os_error().unwrap_or(0),
            hint: "raise the limit on processes and threads: ulimit -u",
        })?;
        let _ = job.listener.set(thread);
        Ok(())
    }

    /// Takes news from the rendezvous.
    pub(crate) fn hear(&self, message: ToRank, descriptor: Option<std::os::fd::OwnedFd>) {
        match (message, descriptor) {
            (ToRank::Segment { rank, number }, Some(descriptor)) => match Mapping::open(descriptor.as_fd()) {
                Ok(mapping) => {
                    let mut peers = self.peers.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                    let Some(segments) = peers.get_mut(rank as usize) else { return };
                    if segments.len() <= number as usize {
                        segments.resize(number as usize + 1, None);
                    }
                    segments[number as usize] = Some(Arc::new(mapping));
                    drop(peers);
                    self.ring_self();
                }
                Err(error) => self.fail_with(Some(rank), &Error::from(error)),
            },
            (ToRank::Board { communicator }, Some(descriptor)) => {
                match Board::open(descriptor.as_fd()) {
                    Ok(board) => drop(lock(&self.boards).insert(communicator, Arc::new(board))),
                    Err(error) => self.fail_with(None, &Error::from(error)),
                }
                self.boards_changed.notify_all();
            }
            (ToRank::Failed { communicator, failure }, _) => {
                let mut early = lock(&self.early);
                let Some(group) = self.living_groups().into_iter().find(|g| g.id == communicator) else {
                    early.insert(communicator, failure);
                    return;
                };
                drop(early);
                group.told(failure);
            }
            (ToRank::Region { from, message }, descriptor) => {
                let mut early = lock(&self.early_regions);
                match self.attached.get() {
                    Some(attached) => {
                        drop(early);
                        attached.hear(from, message, descriptor);
                        self.ring_self();
                    }
                    None => self.hear_early(&mut early, from, message, descriptor),
                }
            }
            (ToRank::Broken { .. }, _) => self.tend_streams(),
            (ToRank::Lost { rank, cause }, _) => {
                let mut dead = lock(&self.dead);
                // That it vanished is what one sees without having been told: worth less than what one was told.
                let place = dead.entry(rank).or_insert_with(|| (cause.clone(), self.now()));
                if cause != PeerCause::Vanished {
                    place.0 = cause;
                }
                self.dead_count.store(dead.len() as u32, Ordering::Release);
                drop(dead);
                self.peer_died(rank);
                if let Some(attached) = self.attached.get() {
                    attached.lose(rank);
                }
                self.ring_self();
            }
            _ => {}
        }
    }

    /// Fails the communicators that have this member; all, with `None`.
    fn fail_with(&self, member: Option<u32>, error: &Error) {
        for group in self.living_groups() {
            if member.is_none_or(|m| group.members.contains(&m)) {
                group.fail(error.clone(), true);
            }
        }
    }

    /// Leaves the job: the peers hear that it was in order.
    pub(crate) fn leave(&self) {
        self.tell(&ToServer::Leave);
    }
}

/// Looks after streams that break while nobody waits for a message, until the rendezvous has something to say. False if the job is over.
fn watch_streams(job: &std::sync::Weak<Job>, control: &Control) -> bool {
    loop {
        // The job must be able to end while this waits: only descriptors are kept.
        let Some((watched, disturbed)) = job.upgrade().map(|job| job.watched()) else { return false };
        let mut polled = vec![PollFd::from_borrowed_fd(control.descriptor(), PollFlags::IN)];
        polled.extend(watched.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)));
        let soon = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = poll(&mut polled, disturbed.then_some(&soon));
        if !polled[0].revents().is_empty() {
            return true;
        }
        let Some(job) = job.upgrade() else { return false };
        job.tend_streams();
    }
}
