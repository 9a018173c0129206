//! The two processes between the launcher and the ranks. The module `run` explains why there are two.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::CpuSet;

use super::control::{Control, Event, Launch, Order, spawn_self};
use super::readiness::wait_ready;
use super::signals::{self, Signals};
use super::{descendants, error};

/// What processes that outlive their rank get between SIGTERM and SIGKILL when nothing has failed.
const LEFTOVER_GRACE: Duration = Duration::from_millis(500);
/// How often the guard looks whether process groups have emptied: nothing announces that.
const GROUP_POLL: Duration = Duration::from_millis(5);

/// Names both processes in `ps`, where `pkill windlass` must hit the launcher alone: its death ends the job in order.
const WARDEN_NAME: &str = "wl-warden";
const GUARD_NAME: &str = "wl-guard";

/// Starts the warden, from the launcher.
pub(crate) fn spawn_warden(control: OwnedFd) -> Result<std::process::Child, Errno> {
    spawn_self(WARDEN_NAME, "__warden", control.as_fd())
}

/// `windlass __warden`: starts the guard, waits for the launcher's or the guard's end, and ends all that is left.
pub(crate) fn warden(control: i32) -> ExitCode {
    exit_code("warden", watch_guard(control))
}

/// `windlass __guard`: starts the ranks, is their parent, and ends with them.
pub(crate) fn guard(control: i32) -> ExitCode {
    exit_code("guard", guard_ranks(control))
}

fn exit_code(name: &str, result: Result<bool, Errno>) -> ExitCode {
    match result {
        Ok(in_order) => ExitCode::from(u8::from(!in_order)),
        Err(errno) => {
            eprintln!("windlass: the job's {name} (pid {}) failed: {errno}", std::process::id());
            ExitCode::FAILURE
        }
    }
}

fn settle(name: &str) -> Result<(), Errno> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
    rustix::thread::set_name(&name)?;
    descendants::adopt_orphans()?;
    // What is sent to everybody (a shutdown's SIGTERM) reaches the ranks through the launcher, in order.
    signals::shrug_off(&[
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ])
}

fn watch_guard(control: i32) -> Result<bool, Errno> {
    // A session of its own: a terminal's Ctrl-C goes to the launcher only, which passes it on.
    rustix::process::setsid()?;
    settle(WARDEN_NAME)?;
    let control = Control::inherited(control)?;
    let mut guard = spawn_self(GUARD_NAME, "__guard", control.as_fd())?;
    let pidfd = rustix::process::pidfd_open(pid_of(&guard)?, PidfdFlags::empty())?;
    let mut fds = [
        // No events asked for: the launcher's death shows as a hangup, and its messages are the guard's.
        PollFd::new(&control, PollFlags::empty()),
        PollFd::new(&pidfd, PollFlags::IN),
    ];
    wait_ready(&mut fds, None)?;
    let guard_ended = guard.try_wait().map_err(|error| error::errno_of(&error))?;
    descendants::end(&[], &mut |_, _| {});
    Ok(guard_ended.is_some_and(|status| status.success()))
}

fn pid_of(child: &std::process::Child) -> Result<Pid, Errno> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)
}

fn guard_ranks(control: i32) -> Result<bool, Errno> {
    settle(GUARD_NAME)?;
    let control = Control::inherited(control)?;
    let deaths = Signals::catch(&[libc::SIGCHLD])?;
    let Some((Order::Launch, descriptors)) = control.receive()? else { return Ok(false) };
    let [launch, input] = <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| Errno::BADMSG)?;
    let launch = Launch::from_memory_file(launch)?;
    let mut guard = Guard { control, ranks: Vec::new(), deadline: None, told_to_end: false, ending: false };
    let started = guard.start(&launch, input);
    // Whatever made this loop end, no process stays behind.
    let outcome = started.and_then(|all| if all { guard.supervise(&deaths) } else { Ok(true) });
    let stuck = descendants::end(&[], &mut |_, _| {});
    let _ = guard.control.send(&Event::Finished { stuck }, &[]);
    outcome
}

/// A rank, as its parent sees it. Its process group has the number of its process.
#[derive(Debug)]
struct RankProcess {
    pid: Pid,
    exited: bool,
    /// Nobody is left in its process group, so the number may come to mean somebody else.
    group_empty: bool,
}

#[derive(Debug)]
struct Guard {
    control: Control,
    ranks: Vec<RankProcess>,
    /// When SIGKILL comes.
    deadline: Option<Instant>,
    /// The ranks' groups have been sent SIGTERM, whoever wanted it.
    told_to_end: bool,
    /// The launcher has ordered the end, and the ranks have been sent a signal for it.
    ending: bool,
}

impl Guard {
    /// Starts every rank; `false` when one could not be executed.
    fn start(&mut self, launch: &Launch, input: OwnedFd) -> Result<bool, Errno> {
        let mut input = Some(input);
        for rank in 0..launch.ranks {
            let stdin = input.take().map_or_else(Stdio::null, Stdio::from);
            let (output, output_end) = pipe_with(PipeFlags::CLOEXEC)?;
            let (errors, errors_end) = pipe_with(PipeFlags::CLOEXEC)?;
            let mut command = rank_command(launch, rank);
            command.stdin(stdin).stdout(output_end).stderr(errors_end);
            let child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let errno = error::errno_of(&error).raw_os_error();
                    self.control.send(&Event::NotStarted { rank, errno }, &[])?;
                    return Ok(false);
                }
            };
            let pid = pid_of(&child)?;
            self.ranks.push(RankProcess { pid, exited: false, group_empty: false });
            let event = Event::Started { rank, pid: pid.as_raw_pid() };
            self.control.send(&event, &[output.as_fd(), errors.as_fd()])?;
        }
        Ok(true)
    }

    /// Until every rank and its process group are gone, or the deadline has passed: `true`. `false` when the
    /// launcher is gone.
    fn supervise(&mut self, deaths: &Signals) -> Result<bool, Errno> {
        loop {
            self.report_deaths()?;
            self.note_empty_groups();
            let all_exited = self.ranks.iter().all(|rank| rank.exited);
            if all_exited && self.ranks.iter().all(|rank| rank.group_empty) {
                return Ok(true);
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.kill_ranks(deaths)?;
                return Ok(true);
            }
            if all_exited && !self.told_to_end {
                self.deadline.get_or_insert_with(|| Instant::now() + LEFTOVER_GRACE);
                self.signal(libc::SIGTERM);
            }
            let until_deadline = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let pause = if all_exited { Some(GROUP_POLL) } else { until_deadline };
            let mut fds = [PollFd::new(&self.control, PollFlags::IN), PollFd::new(deaths, PollFlags::IN)];
            wait_ready(&mut fds, pause)?;
            let (order, death) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
            if death {
                deaths.take();
            }
            if order && !self.obey()? {
                return Ok(false);
            }
        }
    }

    /// `false` when the launcher is gone.
    fn obey(&mut self) -> Result<bool, Errno> {
        let Some((order, _)) = self.control.receive()? else { return Ok(false) };
        match order {
            Order::Launch => return Err(Errno::BADMSG),
            Order::Forward(signal) => self.signal(signal),
            Order::End { signal, grace_ms } => {
                if let Some(signal) = signal {
                    // What has ended by now has ended by itself.
                    self.report_deaths()?;
                    self.ending = true;
                    self.signal(signal);
                }
                let deadline = Instant::now() + Duration::from_millis(grace_ms);
                self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
            }
        }
        Ok(true)
    }

    fn signal(&mut self, number: i32) {
        self.told_to_end |= number == libc::SIGTERM;
        let Some(signal) = signals::typed(number) else { return };
        for rank in self.ranks.iter().filter(|rank| !rank.group_empty) {
            let _ = rustix::process::kill_process_group(rank.pid, signal);
            if number == libc::SIGTERM {
                // A stopped process acts on no signal but these two.
                let _ = rustix::process::kill_process_group(rank.pid, Signal::CONT);
            }
        }
    }

    fn kill_ranks(&mut self, deaths: &Signals) -> Result<(), Errno> {
        self.ending = true;
        self.signal(libc::SIGKILL);
        let give_up = Instant::now() + Duration::from_secs(1);
        while self.ranks.iter().any(|rank| !rank.exited) && Instant::now() < give_up {
            let mut fds = [PollFd::new(deaths, PollFlags::IN)];
            wait_ready(&mut fds, Some(give_up.saturating_duration_since(Instant::now())))?;
            deaths.take();
            self.report_deaths()?;
        }
        Ok(())
    }

    /// Several ranks may have ended since the last look, and the kernel does not say in which order. A crash comes
    /// before an exit code then: peers that lose a connection exit; they do not crash.
    fn report_deaths(&mut self) -> Result<(), Errno> {
        let mut batch = Vec::new();
        descendants::collect(&mut |pid, status| {
            if let Some(rank) = self.ranks.iter().position(|rank| rank.pid.as_raw_pid() == pid) {
                self.ranks[rank].exited = true;
                batch.push((rank, status));
            }
        });
        batch.sort_by_key(|&(rank, status)| (!libc::WIFSIGNALED(status), rank));
        for (rank, status) in batch {
            match self.control.send(&Event::Exited { rank, status, told: self.ending }, &[]) {
                // The launcher is gone, which the next receive tells.
                Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn note_empty_groups(&mut self) {
        for rank in self.ranks.iter_mut().filter(|rank| rank.exited && !rank.group_empty) {
            rank.group_empty = rustix::process::test_kill_process_group(rank.pid) == Err(Errno::SRCH);
        }
    }
}

fn rank_command(launch: &Launch, rank: usize) -> Command {
    let mut command = Command::new(OsStr::from_bytes(&launch.path));
    let mut words = launch.command_line.iter().map(|word| OsStr::from_bytes(word));
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    command.args(words);
    for name in &launch.unset {
        command.env_remove(OsStr::from_bytes(name));
    }
    let rank_text = rank.to_string();
    command.env("RANK", &rank_text).env("LOCAL_RANK", &rank_text);
    command.envs(launch.set.iter().map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))));
    command.process_group(0);

    let guard = rustix::process::getpid();
    let cpus = launch.shares.get(rank).map(|share| {
        let mut set = CpuSet::new();
        share.iter().for_each(|&cpu| set.set(cpu));
        set
    });
    // SAFETY: the closure runs between fork and exec and makes bare system calls only; nothing in it allocates or
    // takes a lock.
    unsafe {
        command.pre_exec(move || {
            // This is bound to the parent's thread, and the guard has only one.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(guard) {
                // The guard died before the line above: nobody would send the signal.
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            if let Some(cpus) = &cpus {
                // Placement is a matter of speed: a CPU that has gone offline must not keep a rank from starting.
                let _ = rustix::thread::sched_setaffinity(None, cpus);
            }
            Ok(())
        });
    }
    command
}
