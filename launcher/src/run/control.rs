//! The control socket between the launcher and the guard: one message per packet, with descriptors where needed.

use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::{Errno, FdFlags, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The most descriptors that one message carries.
const DESCRIPTORS: usize = 2;
/// No message is longer: what can grow (the launch itself) travels in a memory file.
const MESSAGE_BYTES: usize = 256;

/// What the launcher tells the guard.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Start the ranks. Carries two descriptors: the [`Launch`] in a memory file, and rank 0's input.
    Launch,
    /// Pass this signal on to every rank's process group.
    Forward(i32),
    /// End every rank: `signal` now, where there is one, and SIGKILL to what is left after the grace.
    End {
        /// What to send now.
        signal: Option<i32>,
        /// Milliseconds until SIGKILL.
        grace_ms: u64,
    },
}

/// What the guard tells the launcher.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A rank runs. Carries the read ends of its standard output and standard error.
    Started {
        /// Which.
        rank: usize,
        /// Its process id, which is also its process group's.
        pid: i32,
    },
    /// A rank could not be executed; the guard ends the others.
    NotStarted {
        /// Which.
        rank: usize,
        /// What the kernel said.
        errno: i32,
    },
    /// A rank has ended.
    Exited {
        /// Which.
        rank: usize,
        /// As `waitpid` gives it.
        status: i32,
        /// Whether the guard had been ordered to end the ranks before, and had sent them a signal for that.
        told: bool,
    },
    /// Every rank has ended and every process they left behind is gone, but for this many the kernel cannot kill.
    Finished {
        /// How many are stuck in the kernel.
        stuck: usize,
    },
}

/// What the guard needs to start the ranks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// The executable.
    pub(crate) path: Vec<u8>,
    /// The command line, the program's name as typed first.
    pub(crate) command_line: Vec<Vec<u8>>,
    /// How many ranks.
    pub(crate) ranks: usize,
    /// Variables that every rank gets.
    pub(crate) set: Vec<(Vec<u8>, Vec<u8>)>,
    /// Variables that no rank may inherit.
    pub(crate) unset: Vec<Vec<u8>>,
    /// The CPUs of each rank; empty when ranks are not bound.
    pub(crate) shares: Vec<Vec<usize>>,
}

impl Launch {
    /// Writes it into a memory file, which has no name and ends with its last descriptor.
    pub(crate) fn to_memory_file(&self) -> Result<OwnedFd, Errno> {
        let file = rustix::fs::memfd_create("windlass-launch", MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(file);
        let bytes = serde_json::to_vec(self).map_err(|_| Errno::INVAL)?;
        file.write_all(&bytes)
            .and_then(|()| file.rewind())
            .map_err(|error| super::error::errno_of(&error))?;
        Ok(file.into())
    }

    /// Reads it back.
    pub(crate) fn from_memory_file(file: OwnedFd) -> Result<Self, Errno> {
        let mut bytes = Vec::new();
        let mut file = std::fs::File::from(file);
        file.read_to_end(&mut bytes).map_err(|error| super::error::errno_of(&error))?;
        serde_json::from_slice(&bytes).map_err(|_| Errno::INVAL)
    }
}

/// One end of the control socket. The other end's death shows as `None` from [`Control::receive`].
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
}

impl Control {
    /// The launcher's end, and the one that the warden and the guard inherit.
    pub(crate) fn pair() -> Result<(Self, OwnedFd), Errno> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: ours }, theirs))
    }

    /// Takes over the inherited end, whose number came on the command line.
    pub(crate) fn inherited(number: i32) -> Result<Self, Errno> {
        // SAFETY: fcntl only inspects the number; the descriptor is not used unless it is open.
        if number <= 2 || unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            return Err(Errno::BADF);
        }
        // SAFETY: it is open (just checked), it was handed to this process for this purpose alone, and this is the
        // only place that takes it, once, at the process's start.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
        Ok(Self { socket })
    }

    /// Sends one message.
    pub(crate) fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let bytes = serde_json::to_vec(message).map_err(|_| Errno::INVAL)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::INVAL);
        }
        let parts = [IoSlice::new(&bytes)];
        retry_on_intr(|| rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// Waits for the next message. `None` when the other end is gone.
    pub(crate) fn receive<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, Errno> {
        let mut bytes = [0_u8; MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match rustix::net::recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        // The kernel drops descriptors that do not fit into this process's table.
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Errno::MFILE);
        }
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let message = serde_json::from_slice(&bytes[..received.bytes]).map_err(|_| Errno::BADMSG)?;
        Ok(Some((message, descriptors)))
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Starts this same executable as one of the job's own processes, which inherits `control`.
pub(crate) fn spawn_self(
    name: &str,
    subcommand: &str,
    control: BorrowedFd<'_>,
) -> Result<std::process::Child, Errno> {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    let number = control.as_raw_fd();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).arg(subcommand).arg(number.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: the closure runs between fork and exec, and fcntl is async-signal-safe; the descriptor is open in the
    // child because it is borrowed from the caller until spawn has returned.
    unsafe {
        command.pre_exec(move || {
            let borrowed = BorrowedFd::borrow_raw(number);
            Ok(rustix::io::fcntl_setfd(borrowed, FdFlags::empty())?)
        });
    }
    command.spawn().map_err(|error| super::error::errno_of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_whole_and_the_end_shows() {
        let (ours, theirs) = Control::pair().unwrap();
        let theirs = Control { socket: theirs };
        let (read, write) = rustix::pipe::pipe().unwrap();
        theirs.send(&Event::Started { rank: usize::MAX, pid: i32::MAX }, &[read.as_fd()]).unwrap();
        theirs.send(&Event::Finished { stuck: 3 }, &[]).unwrap();
        drop((read, theirs));

        let (event, descriptors) = ours.receive::<Event>().unwrap().unwrap();
        assert!(matches!(event, Event::Started { rank: usize::MAX, pid: i32::MAX }), "{event:?}");
        rustix::io::write(&write, b"x").unwrap();
        let mut byte = [0_u8; 1];
        assert_eq!(rustix::io::read(&descriptors[0], &mut byte), Ok(1));

        let (event, descriptors) = ours.receive::<Event>().unwrap().unwrap();
        assert!(matches!(event, Event::Finished { stuck: 3 }) && descriptors.is_empty());
        assert!(ours.receive::<Event>().unwrap().is_none(), "the other end is gone");
    }

    #[test]
    fn a_launch_of_any_bytes_survives_its_memory_file() {
        let launch = Launch {
            path: b"/bin/\xff".to_vec(),
            command_line: vec![b"\x00\xfe".to_vec(), vec![b'a'; 1 << 20]],
            ranks: 3,
            set: vec![(b"A".to_vec(), b"\x80=\n".to_vec())],
            unset: vec![b"B".to_vec()],
            shares: vec![vec![0, 1], vec![5]],
        };
        let read = Launch::from_memory_file(launch.to_memory_file().unwrap()).unwrap();
        assert_eq!(read.path, launch.path);
        assert_eq!(read.command_line, launch.command_line);
        assert_eq!((read.set, read.unset, read.shares), (launch.set, launch.unset, launch.shares));
    }
}
