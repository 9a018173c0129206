//! `windlass run`: starts the ranks of a job on this host, watches over them, and ends them together.
//!
//! # No process is left behind, whoever dies
//!
//! ```text
//! launcher ── warden ── guard ── rank 0, rank 1, …, each with a process group of its own
//!     └──────── control socket ─┘        └─ whatever the ranks start
//! ```
//!
//! All three are *child subreapers*: a process that loses its parent becomes the child of its nearest living
//! ancestor among them, whatever session or process group it has moved to. So the lowest one alive sees, as its own
//! descendants in /proc, every process that the job has left, and kills until none is there (`descendants`).
//!
//! - **A rank dies**: the guard, its parent, tells the launcher, which has the others ended: SIGTERM to their process
//!   groups, SIGKILL after the grace to every descendant.
//! - **The launcher dies** (kill -9): the control socket hangs up. The guard and the warden each see that, and kill.
//! - **The guard dies**: the ranks, which have asked for it (PDEATHSIG), die with it; what they had started becomes
//!   the warden's, which kills it and ends.
//! - **The warden dies**: the guard and all below become the launcher's, which kills them.
//! - **Two of the three die at once**: the third does all of that alone. This is why there is a warden: with a guard
//!   only, a grandchild would outlive the death of the launcher and the guard.
//! - **All three die at once**: the ranks die with the guard (PDEATHSIG), but nobody is left to end what they had
//!   started. `pkill -9 windlass` is not that case: the warden and the guard carry other names.
//!
//! The warden and the guard are this same executable, started anew rather than forked: the rendezvous server's threads
//! already run then. Nothing has a name in a file system: the launch travels to the guard in a memory file, the ranks'
//! output comes back as pipe ends over the control socket.
//!
//! # Threads
//!
//! The main thread decides (`supervision`, by `verdict`) and never writes to standard output or waits for whoever reads it.
//! Two threads pass on the ranks' output (`output`). A terminal's input and the metrics have threads of their own.

mod binding;
mod control;
mod descendants;
mod error;
mod guard;
mod input;
mod job;
mod metrics;
mod output;
mod program;
mod readiness;
mod rendezvous;
mod report;
mod signals;
mod supervision;
mod verdict;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, Rlimit};

pub(crate) use error::RunError;
pub(crate) use guard::{guard, warden};
pub(crate) use job::JobId;
pub(crate) use rendezvous::{ExitCause, Rendezvous};

use crate::cli::{Output, RunArguments};
use control::{Control, Event, Launch, Order};
use job::{Environment, ReservedPort};
use output::{Lines, Outcome, SinkState, Style, WriteLock};
use report::Evidence;
use signals::Signals;
use supervision::Supervision;
use verdict::Verdict;

/// Runs the job to its end and returns its exit code.
pub(crate) fn run(
    arguments: &RunArguments,
    job: &JobId,
    rendezvous: Option<Box<dyn Rendezvous + Send + Sync>>,
) -> Result<u8, RunError> {
    let rendezvous: Option<Arc<dyn Rendezvous + Send + Sync>> = rendezvous.map(Arc::from);
    let port = ReservedPort::reserve().map_err(|errno| RunError::system("bind", errno))?;
    let launch = plan(arguments, job, rendezvous.as_deref(), &port)?;
    serve_metrics(arguments, rendezvous.as_ref())?;
    let spare = descendants::alive(&[]);
    descendants::adopt_orphans().map_err(|errno| RunError::system("prctl(PR_SET_CHILD_SUBREAPER)", errno))?;
    let signals =
        Signals::catch(&signals::FORWARDED).map_err(|errno| RunError::system("sigaction", errno))?;

    let (control, guards_end) = Control::pair().map_err(|errno| RunError::system("socketpair", errno))?;
    let start = Instant::now();
    let warden = guard::spawn_warden(guards_end).map_err(|errno| RunError::system("fork", errno))?;
    raise_descriptor_limit();
    let mut supervision = Supervision {
        control,
        warden,
        spare,
        rendezvous,
        verdict: Verdict::new(launch.ranks),
        start,
        grace: arguments.grace,
        timeout: arguments.timeout,
        states: Vec::new(),
        tell_at: None,
        finished: false,
    };
    let supervised = start_and_supervise(&mut supervision, &launch, arguments.output, &signals);
    let (states, finished) = (std::mem::take(&mut supervision.states), supervision.finished);
    let warden = i32::try_from(supervision.warden.id()).unwrap_or_default();
    let verdict = supervision.end();
    let (pids, threads) = supervised?;
    let Some((output, errors)) = threads.finish(&signals)? else { return Ok(verdict.exit_code()) };

    if let (SinkState::Failed(errno), Some(verdict::Stop::OutputLost)) = (output.sink, verdict.stop()) {
        return Err(RunError::OutputLost { errno });
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let evidence = Evidence { pids: &pids, host: &host, states: &states, tails: &errors.tails };
    // Standard error may be closed; there is nobody else to tell.
    let _ = std::io::stderr().write_all(report::report(&verdict, &evidence).as_bytes());
    if !finished && verdict.culprit().is_none() {
        return Err(RunError::GuardLost { pid: warden });
    }
    Ok(verdict.exit_code())
}

/// Everything that can be wrong before a process is started.
fn plan(
    arguments: &RunArguments,
    job: &JobId,
    rendezvous: Option<&(dyn Rendezvous + Send + Sync)>,
    port: &ReservedPort,
) -> Result<Launch, RunError> {
    let program = arguments.program.first().ok_or(RunError::NoProgram)?;
    let environment = Environment::new(arguments, job, rendezvous.map(Rendezvous::address), port)?;
    let path = program::resolve(program, environment.value("PATH").as_deref())?;
    let ranks = arguments.rank_count();
    Ok(Launch {
        path: path.into_os_string().into_vec(),
        command_line: arguments.program.iter().map(|word| word.as_bytes().to_vec()).collect(),
        ranks,
        set: environment.set,
        unset: environment.unset,
        shares: binding::shares(arguments.bind_to, ranks),
    })
}

fn serve_metrics(
    arguments: &RunArguments,
    rendezvous: Option<&Arc<dyn Rendezvous + Send + Sync>>,
) -> Result<(), RunError> {
    let Some(address) = arguments.metrics else { return Ok(()) };
    let rendezvous = rendezvous.cloned();
    let text = Arc::new(move || rendezvous.as_ref().and_then(|rendezvous| rendezvous.metrics_text()));
    let bound = metrics::serve(address, text)?;
    eprintln!("windlass: metrics at http://{bound}/metrics");
    Ok(())
}

/// The launcher holds two pipes for each rank. The ranks keep the limit that the launcher was started with: the guard
/// has been started before.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Where it is refused, the ranks that do not fit fail to start, with the reason.
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The ranks' pipes: standard output and standard error, in rank order.
#[derive(Debug, Default)]
struct Started {
    pids: Vec<i32>,
    output: Vec<OwnedFd>,
    errors: Vec<OwnedFd>,
}

fn start_and_supervise(
    supervision: &mut Supervision,
    launch: &Launch,
    output: Output,
    signals: &Signals,
) -> Result<(Vec<i32>, OutputThreads), RunError> {
    let started = start_ranks(supervision, launch)?;
    let (lost, lost_end) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| RunError::system("pipe", errno))?;
    let threads = OutputThreads::start(started.output, started.errors, output, lost_end)?;
    supervision.run(signals, &lost)?;
    Ok((started.pids, threads))
}

fn start_ranks(supervision: &Supervision, launch: &Launch) -> Result<Started, RunError> {
    let file = launch.to_memory_file().map_err(|errno| RunError::system("memfd_create", errno))?;
    let input = input::for_rank_0().map_err(|errno| RunError::system("dup", errno))?;
    let control = &supervision.control;
    let guard_lost =
        || RunError::GuardLost { pid: i32::try_from(supervision.warden.id()).unwrap_or_default() };
    control.send(&Order::Launch, &[file.as_fd(), input.as_fd()]).map_err(|_| guard_lost())?;
    drop((file, input));
    let mut started = Started::default();
    while started.pids.len() < launch.ranks {
        let received = control.receive().map_err(|errno| RunError::system("recvmsg", errno))?;
        let (event, descriptors) = received.ok_or_else(guard_lost)?;
        match event {
            Event::Started { pid, .. } => {
                let [output, errors] = <[OwnedFd; 2]>::try_from(descriptors)
                    .map_err(|_| RunError::system("recvmsg", Errno::BADMSG))?;
                started.pids.push(pid);
                started.output.push(output);
                started.errors.push(errors);
            }
            Event::NotStarted { rank, errno } => {
                let path = PathBuf::from(std::ffi::OsString::from_vec(launch.path.clone()));
                return Err(RunError::Start { rank, path, errno: Errno::from_raw_os_error(errno) });
            }
            Event::Exited { .. } | Event::Finished { .. } => return Err(guard_lost()),
        }
    }
    Ok(started)
}

/// The two threads that pass on the ranks' output.
#[derive(Debug)]
struct OutputThreads {
    output: JoinHandle<Result<Outcome, Errno>>,
    errors: JoinHandle<Result<Outcome, Errno>>,
    /// Hangs up when both threads have ended.
    done: OwnedFd,
    /// Dropped to make them finish.
    finish: OwnedFd,
}

impl OutputThreads {
    fn start(
        output: Vec<OwnedFd>,
        errors: Vec<OwnedFd>,
        style: Output,
        lost_end: OwnedFd,
    ) -> Result<Self, RunError> {
        let system = |call: &'static str| move |errno| RunError::system(call, errno);
        let (stdout, stderr) = (rustix::stdio::stdout(), rustix::stdio::stderr());
        let out_lock = WriteLock::default();
        let error_lock = if same_file(stdout, stderr) { Arc::clone(&out_lock) } else { WriteLock::default() };
        let out_lines =
            Lines::new(output, stdout, line_style(style, stdout), out_lock).map_err(system("ioctl"))?;
        let error_lines =
            Lines::new(errors, stderr, line_style(style, stderr), error_lock).map_err(system("ioctl"))?;
        let (done, done_end) = pipe_with(PipeFlags::CLOEXEC).map_err(system("pipe"))?;
        let (finish_read, finish) = pipe_with(PipeFlags::CLOEXEC).map_err(system("pipe"))?;
        let finish_read = Arc::new(finish_read);
        let ends = Arc::new(done_end);
        let spawn = |name: &str, lines: Lines<_>, lost: Option<OwnedFd>| {
            let (finish, end) = (Arc::clone(&finish_read), Arc::clone(&ends));
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread
                .spawn(move || {
                    let _end = end;
                    let lost = std::cell::RefCell::new(lost);
                    lines.run(finish.as_fd(), &|| {
                        // Standard error has no one to fall back on: what goes there is lost quietly.
                        if let Some(lost) = lost.take() {
                            let _ = rustix::io::write(lost, b"x");
                        }
                    })
                })
                .map_err(|error| RunError::system("clone", error::errno_of(&error)))
        };
        let output = spawn("output", out_lines, Some(lost_end))?;
        let errors = spawn("errors", error_lines, None)?;
        Ok(Self { output, errors, done, finish })
    }

    /// Waits until all that the ranks wrote is written. `None` when the user would not wait.
    fn finish(self, signals: &Signals) -> Result<Option<(Outcome, Outcome)>, RunError> {
        drop(self.finish);
        if !supervision::wait_written(&self.done, signals) {
            return Ok(None);
        }
        let join = |thread: JoinHandle<Result<Outcome, Errno>>| match thread.join() {
            Ok(result) => result.map_err(|errno| RunError::system("read", errno)),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok(Some((join(self.output)?, join(self.errors)?)))
    }
}

fn same_file(a: rustix::fd::BorrowedFd<'_>, b: rustix::fd::BorrowedFd<'_>) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

fn line_style(output: Output, sink: rustix::fd::BorrowedFd<'_>) -> Style {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    match output {
        Output::Plain => Style::Plain,
        Output::Tag if colour && rustix::termios::isatty(sink) => Style::ColourTag,
        Output::Tag => Style::Tag,
    }
}
