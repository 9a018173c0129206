//! What a rank hears from the rendezvous, and the thread that listens to it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use windlass_memory::{Mapping, Promptness};
use windlass_transports::shm::Board;

use super::Job;
use crate::bootstrap::control::Control;
use crate::bootstrap::protocol::{RegionMessage, ToRank, ToServer};
use crate::error::{Error, JoinError, PeerCause};
use crate::group::lock;

/// How often what a peer has no room for is offered again.
pub(crate) const RETRY: Duration = Duration::from_millis(5);

/// How often streams that are being opened anew are looked at.
const SOON: Duration = Duration::from_millis(20);

/// What the listening thread has found.
struct Stirred {
    /// A line has something.
    mail: bool,
    /// The rendezvous has.
    news: bool,
    /// A stream that broke while nobody waits for a message may have come further.
    streams: bool,
}

/// Waits for a line, the rendezvous, or one of the `streams` that nobody else looks after; not for long if these are `disturbed`, or if this rank
/// `keeps` what a peer has no room for. The job must be able to end meanwhile: only descriptors are held.
fn await_any(
    control: &Control,
    lines: &[Arc<OwnedFd>],
    (streams, disturbed): &(Vec<OwnedFd>, bool),
    keeps: bool,
) -> Stirred {
    let lines = lines.iter().map(|line| PollFd::new(&**line, PollFlags::IN));
    let streams = streams.iter().map(|stream| PollFd::new(stream, PollFlags::IN));
    let mut polled: Vec<_> = [PollFd::from_borrowed_fd(control.descriptor(), PollFlags::IN)].into();
    polled.extend(streams);
    let first_line = polled.len();
    polled.extend(lines);
    let most = [keeps.then_some(RETRY), disturbed.then_some(SOON)].into_iter().flatten().min();
    let most = most.map(|most| Timespec { tv_sec: 0, tv_nsec: i64::from(most.subsec_nanos()) });
    // Interrupted, there may be anything: what does not wait is looked at, and the next round waits again.
    if poll(&mut polled, most.as_ref()).is_err() {
        return Stirred { mail: true, news: false, streams: true };
    }
    let stirs = |polled: &PollFd<'_>| !polled.revents().is_empty();
    Stirred {
        mail: polled[first_line..].iter().any(stirs),
        news: stirs(&polled[0]),
        streams: *disturbed || polled[1..first_line].iter().any(stirs),
    }
}

impl Job {
    pub(super) fn listen(job: &Arc<Self>) -> Result<(), JoinError> {
        let Some(control) = job.control.clone() else { return Ok(()) };
        let weak = Arc::downgrade(job);
        let thread =
            std::thread::Builder::new().name("wl-control".into()).stack_size(256 << 10).spawn(move || {
                windlass_memory::serve(Promptness::Answers);
                let (mut buffer, mut keeps) = (Vec::new(), false);
                loop {
                    let Some((lines, streams)) = weak.upgrade().map(|job| (job.lines(), job.watched()))
                    else {
                        return;
                    };
                    let stirred = await_any(&control, &lines, &streams, keeps);
                    let Some(job) = weak.upgrade() else { return };
                    if stirred.mail {
                        job.take_all_mail();
                    }
                    if stirred.mail || keeps {
                        keeps = job.answer();
                    }
                    if stirred.streams {
                        job.tend_streams();
                    }
                    if !stirred.news {
                        continue;
                    }
                    let heard = control.listen(&mut buffer);
                    match heard {
                        Ok(Some((message, descriptor))) => {
                            job.hear(message, descriptor);
                            keeps = job.answer();
                        }
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
                    self.segments.insert(rank, number, mapping);
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

    /// Takes news of a peer's device memory, or of what becomes of it in a peer's hands.
    pub(super) fn hear_of_region(&self, from: u32, message: RegionMessage, descriptor: Option<OwnedFd>) {
        let mut early = lock(&self.early_regions);
        match self.attached.get() {
            Some(attached) => {
                drop(early);
                attached.hear(from, message, descriptor);
            }
            None => self.hear_early(&mut early, from, message, descriptor),
        }
    }

    /// Says what follows from the mail, and only then wakes who may go on here: he might be given this thread's core, and the peer waits.
    /// Whether something is kept that a peer has no room for.
    fn answer(&self) -> bool {
        if let Some(attached) = self.attached.get() {
            attached.turn(self);
        }
        let keeps = self.see_to_mail();
        self.ring_self();
        keeps
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
