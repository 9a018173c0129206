//! The launcher's event loop: from the last rank's start to the end of every process of the job.

use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::control::{Control, Event, Order};
use super::descendants::{self, Process};
use super::error::RunError;
use super::readiness::wait_ready;
use super::rendezvous::{ExitCause, Rendezvous};
use super::signals::Signals;
use super::verdict::{Exit, Stop, Verdict};

/// How long surviving ranks have to act on the news that a rank has died, before SIGTERM.
const NOTICE: Duration = Duration::from_millis(150);
/// How long the others have once a first rank has ended of a signal that the user sent: they may be saving state.
const ASKED_GRACE: Duration = Duration::from_secs(5);
/// How often to look whether ranks have joined, while one has left: nothing announces that.
const JOINING_POLL: Duration = Duration::from_millis(50);

/// A running job.
pub(crate) struct Supervision {
    pub(crate) control: Control,
    pub(crate) warden: Child,
    /// Processes that were below the launcher before the job, and are none of its business.
    pub(crate) spare: Vec<Process>,
    pub(crate) rendezvous: Option<Arc<dyn Rendezvous + Send + Sync>>,
    pub(crate) verdict: Verdict,
    pub(crate) start: Instant,
    pub(crate) grace: Duration,
    pub(crate) timeout: Option<Duration>,
    /// What each rank was doing when the first one failed.
    pub(crate) states: Vec<String>,
    /// When the others are told to end.
    pub(crate) tell_at: Option<Instant>,
    /// The guard has seen to the end of everything.
    pub(crate) finished: bool,
}

impl Supervision {
    /// Until nothing of the job is left. `lost` becomes readable when the launcher's output takes no more.
    pub(crate) fn run(&mut self, signals: &Signals, lost: &OwnedFd) -> Result<(), RunError> {
        let warden = warden_pidfd(&self.warden)?;
        let mut output_settled = false;
        loop {
            let timeout = self.timeout();
            let mut fds = vec![
                PollFd::new(&self.control, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
                PollFd::new(&warden, PollFlags::IN),
            ];
            if !output_settled {
                fds.push(PollFd::new(lost, PollFlags::IN));
            }
            wait_ready(&mut fds, timeout).map_err(|errno| RunError::system("poll", errno))?;
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            // A hangup alone says that every rank has closed its output, which is no loss.
            let lost_now = fds.get(3).is_some_and(|fd| fd.revents().contains(PollFlags::IN));
            output_settled |= ready.get(3) == Some(&true);
            if ready[0] {
                match self.control.receive().map_err(|errno| RunError::system("recvmsg", errno))? {
                    Some((event, _)) => self.handle_event(event),
                    None => break,
                }
            } else if ready[2] {
                // The warden is gone and the guard is not: it has become this process's child, and the ranks with it.
                let _ = self.warden.try_wait();
                descendants::end(&self.spare, &mut |_, _| {});
                break;
            }
            if ready[1] {
                signals.take().into_iter().for_each(|signal| self.handle_signal(signal));
            }
            if lost_now {
                self.stop(Stop::OutputLost);
            }
            self.handle_time();
        }
        Ok(())
    }

    /// Ends whatever is left, however the loop ended. With the control socket closed the warden does so itself;
    /// what it cannot do any more, because it was killed, is done here.
    pub(crate) fn end(mut self) -> Verdict {
        drop(self.control);
        let _ = self.warden.wait();
        descendants::end(&self.spare, &mut |_, _| {});
        self.verdict
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Exited { rank, status, told } => self.handle_exit(rank, status, told),
            Event::Finished { stuck } => {
                self.finished = true;
                if stuck > 0 {
                    eprintln!(
                        "windlass: {stuck} processes of the job do not die: they wait in the kernel, usually for a \
                         device or a network file system (`ps -eo pid,stat,wchan | grep D`)"
                    );
                }
            }
            // Every rank has started before this loop.
            Event::Started { .. } | Event::NotStarted { .. } => {}
        }
    }

    fn handle_exit(&mut self, rank: usize, status: i32, told: bool) {
        let first = self.verdict.culprit().is_none();
        let joined = self.rendezvous.as_ref().map(|rendezvous| rendezvous.joined());
        let cause = ExitCause::from_wait_status(status);
        let cause = self.verdict.handle_exit(rank, Exit { cause, after: self.start.elapsed(), told }, joined);
        if first && cause.is_failure() {
            self.take_states();
        }
        if let Some(rendezvous) = &self.rendezvous {
            rendezvous.rank_exited(rank, &cause);
        }
        if first && cause.is_failure() {
            self.end_others();
        }
    }

    /// What everybody was doing: to be asked before the survivors hear of the death and leave their operations.
    fn take_states(&mut self) {
        if let Some(rendezvous) = &self.rendezvous {
            self.states = rendezvous.states();
        }
    }

    /// A rank has failed: the others must end.
    fn end_others(&mut self) {
        if self.tell_at.is_some() {
            return;
        }
        match self.verdict.stop() {
            // They have been told, by the user; a SIGTERM now could interrupt what they save.
            Some(Stop::Asked(_)) => self.order_end(None, ASKED_GRACE.max(self.grace)),
            Some(_) => {}
            None => {
                let told_by_rendezvous =
                    self.rendezvous.as_ref().is_some_and(|rendezvous| rendezvous.joined() > 0);
                let notice = if told_by_rendezvous { NOTICE.min(self.grace / 2) } else { Duration::ZERO };
                self.tell_at = Some(Instant::now() + notice);
            }
        }
    }

    fn handle_signal(&mut self, signal: i32) {
        let ends = matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT);
        let insists = matches!(signal, libc::SIGINT | libc::SIGTERM);
        let ending = self.verdict.stop().is_some() || self.verdict.culprit().is_some();
        if insists && ending {
            self.order_end(Some(libc::SIGKILL), Duration::ZERO);
            return;
        }
        if ends {
            self.verdict.handle_stop(Stop::Asked(signal));
            self.take_states();
        }
        self.order(Order::Forward(signal));
        if signal == libc::SIGTSTP {
            // After the ranks have been told; the shell, or SIGCONT, wakes all of them again through this process.
            let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
        }
    }

    fn stop(&mut self, stop: Stop) {
        if self.verdict.culprit().is_none() && self.verdict.stop().is_none() {
            self.verdict.handle_stop(stop);
            self.take_states();
            self.tell();
        }
    }

    fn handle_time(&mut self) {
        if let Some(rendezvous) = &self.rendezvous
            && self.verdict.awaits_joining()
            && let Some(rank) = self.verdict.handle_joined(rendezvous.joined())
        {
            self.states = rendezvous.states();
            rendezvous.rank_exited(rank, &ExitCause::NeverJoined);
            self.end_others();
        }
        if self.tell_at.is_some_and(|at| Instant::now() >= at) && !self.verdict.has_told() {
            self.tell();
        }
        if self.timeout.is_some_and(|timeout| self.start.elapsed() >= timeout) {
            self.timeout = None;
            self.stop(Stop::TimedOut);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let tell =
            self.tell_at.filter(|_| !self.verdict.has_told()).map(|at| at.saturating_duration_since(now));
        let timeout = self.timeout.map(|timeout| timeout.saturating_sub(self.start.elapsed()));
        let watches = self.rendezvous.is_some() && self.verdict.awaits_joining();
        [tell, timeout, watches.then_some(JOINING_POLL)].into_iter().flatten().min()
    }

    fn tell(&mut self) {
        self.order_end(Some(libc::SIGTERM), self.grace);
    }

    fn order_end(&mut self, signal: Option<i32>, grace: Duration) {
        if signal.is_some() {
            self.verdict.handle_told();
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.order(Order::End { signal, grace_ms });
    }

    fn order(&self, order: Order) {
        // It fails when the guard is gone, and then everything ends anyway.
        let _ = self.control.send(&order, &[]);
    }
}

fn warden_pidfd(warden: &Child) -> Result<OwnedFd, RunError> {
    let pid = i32::try_from(warden.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
    pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|errno| RunError::system("pidfd_open", errno))
}

/// Waits until `done` hangs up: the output is written. `false` when the user does not want to wait for a reader
/// that has stopped reading.
pub(crate) fn wait_written(done: &OwnedFd, signals: &Signals) -> bool {
    loop {
        let mut fds = [PollFd::new(done, PollFlags::empty()), PollFd::new(signals, PollFlags::IN)];
        if wait_ready(&mut fds, None).is_err() {
            return false;
        }
        if !fds[0].revents().is_empty() {
            return true;
        }
        for signal in signals.take() {
            match signal {
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT => return false,
                libc::SIGTSTP => {
                    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
                }
                _ => {}
            }
        }
    }
}

impl std::fmt::Debug for Supervision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervision").field("verdict", &self.verdict).finish_non_exhaustive()
    }
}
