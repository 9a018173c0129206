//! A job's identity, and the environment that its ranks get.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::error::RunError;
use crate::cli::RunArguments;

/// The variables that `-x` may not touch.
const OWN: [&str; 7] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "WINDLASS_JOB",
    "WINDLASS_RENDEZVOUS",
    "WINDLASS_TRANSPORT",
];

/// 128 random bits that tell this job from every other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobId([u8; 16]);

impl JobId {
    /// A new one.
    pub(crate) fn random() -> Self {
        let mut bytes = [0_u8; 16];
        // getrandom does not fail, and is not short, for so few bytes once the kernel's pool is up; before that it waits.
        let result = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        assert_eq!(result, Ok(bytes.len()), "the kernel gave no random bytes");
        Self(bytes)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A TCP port that is this job's while this lives. It is bound but never listens, with address reuse: rank 0 can
/// listen on it (as PyTorch's store does, with the same option), while the kernel gives it to nobody else.
#[derive(Debug)]
pub(crate) struct ReservedPort {
    port: u16,
    _socket: OwnedFd,
}

impl ReservedPort {
    /// Reserves a free port.
    pub(crate) fn reserve() -> Result<Self, Errno> {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &std::net::SocketAddr::from(([0, 0, 0, 0], 0)))?;
        // A TcpListener only to read the address back; the socket has not been put into listening.
        let named = TcpListener::from(socket);
        let port = named.local_addr().map_err(|error| super::error::errno_of(&error))?.port();
        Ok(Self { port, _socket: named.into() })
    }
}

/// The variables to set for every rank and those to remove.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// Name and value.
    pub(crate) set: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names.
    pub(crate) unset: Vec<Vec<u8>>,
}

impl Environment {
    /// The job's variables, then those of `-x`, which may replace MASTER_ADDR and MASTER_PORT.
    pub(crate) fn new(
        arguments: &RunArguments,
        job: &JobId,
        rendezvous: Option<String>,
        master: &ReservedPort,
    ) -> Result<Self, RunError> {
        let mut environment = Self::default();
        let ranks = arguments.rank_count().to_string();
        environment.set("WORLD_SIZE", &ranks);
        environment.set("LOCAL_WORLD_SIZE", &ranks);
        environment.set("MASTER_ADDR", "127.0.0.1");
        environment.set("MASTER_PORT", &master.port.to_string());
        environment.set("WINDLASS_JOB", &job.to_string());
        match rendezvous {
            Some(address) => environment.set("WINDLASS_RENDEZVOUS", &address),
            // A job inside a rank of another job must not meet that one.
            None => environment.unset.push(b"WINDLASS_RENDEZVOUS".to_vec()),
        }
        match rustix::termios::isatty(rustix::stdio::stderr()) {
            // Ranks write to pipes; one that shows how far it is needs to know where people look.
            true => environment.set("WINDLASS_TERMINAL", &format!("/proc/{}/fd/2", std::process::id())),
            false => environment.unset.push(b"WINDLASS_TERMINAL".to_vec()),
        }
        if let Some(transport) = arguments.transport {
            environment.set("WINDLASS_TRANSPORT", transport.name());
        }
        for text in &arguments.variables {
            environment.add(text, arguments.transport.is_some())?;
        }
        Ok(environment)
    }

    /// The value that ranks see.
    pub(crate) fn value(&self, name: &str) -> Option<OsString> {
        let set = self.set.iter().rfind(|(key, _)| key == name.as_bytes());
        set.map_or_else(|| std::env::var_os(name), |(_, value)| Some(OsString::from_vec(value.clone())))
    }

    fn set(&mut self, name: &str, value: &str) {
        self.set.push((name.into(), value.into()));
    }

    fn add(&mut self, text: &OsStr, transport_given: bool) -> Result<(), RunError> {
        let bytes = text.as_bytes();
        let (name, value) = match bytes.iter().position(|&byte| byte == b'=') {
            Some(equals) => (&bytes[..equals], Some(&bytes[equals + 1..])),
            None => (bytes, None),
        };
        if name.is_empty() {
            return Err(RunError::NamelessVariable { text: text.display().to_string() });
        }
        // Without --transport the variable is the user's to set.
        let own =
            OWN.iter().any(|own| own.as_bytes() == name && (*own != "WINDLASS_TRANSPORT" || transport_given));
        if own {
            return Err(RunError::ReservedVariable { name: String::from_utf8_lossy(name).into_owned() });
        }
        let value = match value {
            Some(value) => value.to_vec(),
            None => match std::env::var_os(OsStr::from_bytes(name)) {
                Some(value) => value.into_vec(),
                None => {
                    eprintln!(
                        "windlass: -x {}: the variable is not set here, so the ranks do not get it",
                        text.display()
                    );
                    return Ok(());
                }
            },
        };
        self.set.push((name.to_vec(), value));
        Ok(())
    }
}
