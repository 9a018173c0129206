//! What can keep a job from starting or from being watched over.

use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

/// Why `windlass run` gave up. A rank's failure is not among these: that is a report and an exit code.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub(crate) enum RunError {
    /// Nothing to run.
    #[error(
        "no program to run. Write it after the flags, for example: windlass run -n 4 -- ./train --epochs 3"
    )]
    NoProgram,
    /// The program is nowhere on PATH.
    #[error(
        "`{program}` was not found on PATH ({}). Nothing was started. Give its path (./{program}), or pass \
         another search path with -x PATH=…",
        Errno::NOENT
    )]
    NotOnPath {
        /// As typed.
        program: String,
    },
    /// The program's path cannot be executed.
    #[error("cannot execute {}: {errno}. Nothing was started. {hint}", path.display())]
    NotExecutable {
        /// The path that was tried.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
        /// What to do.
        hint: &'static str,
    },
    /// The kernel refused to execute the program, although it looked executable.
    #[error(
        "rank {rank} could not start {}: {errno}. The job was ended. A missing interpreter (the first line of a \
         script, or the loader of a foreign binary) or a process limit (`ulimit -u`) may be the cause",
        path.display()
    )]
    Start {
        /// Which rank.
        rank: usize,
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        errno: Errno,
    },
    /// `-x` names a variable that the launcher itself gives to each rank.
    #[error("-x {name}: windlass gives this variable to each rank itself; remove the flag")]
    ReservedVariable {
        /// The variable.
        name: String,
    },
    /// `-x` without a name.
    #[error("-x {text}: a variable needs a name: -x VAR=VALUE, or -x VAR to pass on the launcher's")]
    NamelessVariable {
        /// As typed.
        text: String,
    },
    /// The metrics address cannot be served.
    #[error(
        "--metrics {address}: {errno}. Nothing was started. Choose a free address of this host, or port 0"
    )]
    Metrics {
        /// As asked.
        address: SocketAddr,
        /// What the kernel said.
        errno: Errno,
    },
    /// A process between the launcher and its ranks has died.
    #[error(
        "the process that watches over the ranks (pid {pid}) died, so the job was ended and its processes killed. \
         Nothing inside the job does that: look for a kill -9 or the out-of-memory killer (`dmesg | tail`), then \
         start the job again"
    )]
    GuardLost {
        /// The warden's process id.
        pid: i32,
    },
    /// The launcher's own output cannot be written.
    #[error(
        "standard output cannot be written: {errno}. The job was ended, since its output would be lost. If it \
         goes to a file, look at the disk (`df -h`)"
    )]
    OutputLost {
        /// What the kernel said.
        errno: Errno,
    },
    /// The system refused something that supervision needs.
    #[error("{call} failed: {errno}. {hint}")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        errno: Errno,
        /// What to do.
        hint: &'static str,
    },
}

impl RunError {
    /// What the launcher exits with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NoProgram | Self::ReservedVariable { .. } | Self::NamelessVariable { .. } => 2,
            Self::NotOnPath { .. } => 127,
            Self::NotExecutable { errno, .. } | Self::Start { errno, .. } => {
                if *errno == Errno::NOENT || *errno == Errno::NOTDIR { 127 } else { 126 }
            }
            Self::GuardLost { .. } => 137,
            Self::Metrics { .. } | Self::OutputLost { .. } | Self::System { .. } => 1,
        }
    }

    /// A refused system call for which the only remedy is to free resources.
    pub(crate) fn system(call: &'static str, errno: Errno) -> Self {
        let hint = match errno {
            Errno::MFILE => "Raise the limit of open files (`ulimit -n`)",
            Errno::NFILE => "The host has no free file table entry: see fs.file-max",
            Errno::AGAIN | Errno::NOMEM => {
                "The host is out of processes or memory: see `ulimit -u` and `free -m`"
            }
            Errno::TOOMANYREFS => {
                "Raise the limit of open files (`ulimit -n`): the ranks' pipes count against it"
            }
            _ => "The job was ended",
        };
        Self::System { call, errno, hint }
    }
}

/// The errno inside a `std` error; `EIO` for the few that carry none.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
