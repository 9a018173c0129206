//! What a rank hears from the rendezvous, and the thread that listens to it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use windlass_memory::Mapping;
use windlass_transports::shm::Board;

use super::Job;
use crate::bootstrap::control::Control;
use crate::bootstrap::protocol::{RegionMessage, ToRank, ToServer};
use crate::error::{Error, JoinError, PeerCause};
use crate::group::lock;
use crate::service;

/// How often what a peer has no room for is offered again.
pub(crate) const RETRY: Duration = Duration::from_millis(5);

/// Waits for a line or the rendezvous; not for long if this rank `keeps` what a peer has no room for. Whether there is mail, and whether there
/// is news.
fn await_either(control: &Control, lines: &[Arc<OwnedFd>], keeps: bool) -> (bool, bool) {
    let mut polled: Vec<_> = lines.iter().map(|line| PollFd::new(&**line, PollFlags::IN)).collect();
    polled.push(PollFd::from_borrowed_fd(control.descriptor(), PollFlags::IN));
    // Interrupted, there may be either: the mail is looked at without waiting, and the next round waits again.
    let retry = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(RETRY.subsec_nanos()) };
    if poll(&mut polled, keeps.then_some(&retry)).is_err() {
        return (true, false);
    }
    let stirs = |polled: &PollFd<'_>| !polled.revents().is_empty();
    let (news, mail) =
        polled.split_last().map_or((false, false), |(news, lines)| (stirs(news), lines.iter().any(stirs)));
    (mail, news)
}

impl Job {
    pub(super) fn listen(job: &Arc<Self>) -> Result<(), JoinError> {
        let Some(control) = job.control.clone() else { return Ok(()) };
        let weak = Arc::downgrade(job);
        let thread =
            std::thread::Builder::new().name("wl-control".into()).stack_size(256 << 10).spawn(move || {
                service::serve_promptly();
                let (mut buffer, mut keeps) = (Vec::new(), false);
                loop {
                    let Some(lines) = weak.upgrade().map(|job| job.lines()) else { return };
                    let (mail, news) = await_either(&control, &lines, keeps);
                    let Some(job) = weak.upgrade() else { return };
                    if mail {
                        job.take_all_mail();
                    }
                    if mail || keeps {
                        keeps = job.answer();
                    }
                    if !news {
                        continue;
                    }
                    let heard = control.listen(&mut buffer);
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
    pub(crate) fn hear(&self, message: ToRank, descriptor: Option<OwnedFd>) {
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
            (ToRank::Region { from, message }, descriptor) => self.hear_of_region(from, message, descriptor),
            (ToRank::Line { from }, Some(line)) => self.add_line(from, line),
            (ToRank::Lost { rank, cause }, _) => {
                let mut dead = lock(&self.dead);
                // That it vanished is what one sees without having been told: worth less than what one was told.
                let place = dead.entry(rank).or_insert_with(|| (cause.clone(), self.now()));
                if cause != PeerCause::Vanished {
                    place.0 = cause;
                }
                self.dead_count.store(dead.len() as u32, Ordering::Release);
                drop(dead);
                if let Some(attached) = self.attached.get() {
                    attached.lose(rank);
                }
                self.ring_self();
            }
            _ => {}
        }
    }

    /// Takes news of a peer's device memory, or of what becomes of it in a peer's hands.
    pub(super) fn hear_of_region(&self, from: u32, message: RegionMessage, descriptor: Option<OwnedFd>) {
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

    /// Says what follows from the mail. Whether something is kept that a peer has no room for.
    fn answer(&self) -> bool {
        if let Some(attached) = self.attached.get() {
            attached.turn(self);
        }
        self.see_to_mail()
    }

    /// Sends what was kept, and fails what waits for a message that is lost. Whether something is still kept.
    pub(crate) fn see_to_mail(&self) -> bool {
        if self.has_lost_mail() {
            self.fail_with(None, &Error::system("recvmsg", Errno::MFILE));
        }
        self.tell_kept()
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
