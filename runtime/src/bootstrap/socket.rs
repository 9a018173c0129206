//! One message, perhaps with one descriptor, over a Unix socket that keeps message boundaries.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::MAX_BYTES;

/// How an address is written in `WINDLASS_RENDEZVOUS`: an abstract Unix name, or a path, which network namespaces do not part.
const SCHEME: &str = "unix:@";
const PATH_SCHEME: &str = "unix:/";

/// Parses `unix:@name` and `unix:/path`.
pub(crate) fn parse_address(text: &str) -> Option<SocketAddrUnix> {
    match text.strip_prefix(SCHEME) {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()).ok(),
        None => SocketAddrUnix::new(path_of(text)?).ok(),
    }
}

/// The path, if the address is one.
pub(crate) fn path_of(address: &str) -> Option<&str> {
    address.starts_with(PATH_SCHEME).then(|| &address[PATH_SCHEME.len() - 1..])
}

/// Writes `name` as an address.
pub(crate) fn format_address(name: &str) -> String {
    format!("{SCHEME}{name}")
}

fn new_socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Two ends of a connection without a name.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// A listening socket at an address.
pub(crate) fn serve(address: &str) -> Result<OwnedFd, Errno> {
    let parsed = parse_address(address).ok_or(Errno::INVAL)?;
    let socket = new_socket()?;
    match (bind(&socket, &parsed), path_of(address)) {
        // What a job that was killed has left behind.
        (Err(Errno::ADDRINUSE), Some(path)) if reach(&parsed).is_err_and(|e| e == Errno::CONNREFUSED) => {
            rustix::fs::unlink(path)?;
            bind(&socket, &parsed)?;
        }
        (bound, _) => bound?,
    }
    listen(&socket, 4096)?;
    Ok(socket)
}

/// Takes a connection.
pub(crate) fn take(listener: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    accept_with(listener, SocketFlags::CLOEXEC)
}

/// Connects to an address.
pub(crate) fn reach(address: &SocketAddrUnix) -> Result<OwnedFd, Errno> {
    let socket = new_socket()?;
    connect(&socket, address)?;
    Ok(socket)
}

/// Sends a message, whole, with a descriptor or without. Blocks while the peer's buffer is full.
pub(crate) fn send<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    send_with(socket, message, descriptor, SendFlags::NOSIGNAL)
}

/// The same, but [`Errno::AGAIN`] while the peer's buffer is full.
pub(crate) fn offer<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    send_with(socket, message, descriptor, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with<M: Serialize>(
    socket: BorrowedFd<'_>,
    message: &M,
    descriptor: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> Result<(), Errno> {
    let bytes = postcard::to_stdvec(message).map_err(|_| Errno::INVAL)?;
    if bytes.len() > MAX_BYTES {
        return Err(Errno::MSGSIZE);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.map(|d| [d]);
    if let Some(descriptors) = &descriptors {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Receives a message; `None` when the peer has closed. Bytes that are no message are [`Errno::BADMSG`].
pub(crate) fn receive<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Option<(M, Option<OwnedFd>)>, Errno> {
    receive_with(socket, buffer, RecvFlags::CMSG_CLOEXEC)
}

/// The same, but [`Errno::AGAIN`] while there is none.
pub(crate) fn take_in<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> Result<Option<(M, Option<OwnedFd>)>, Errno> {
    receive_with(socket, buffer, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)
}

fn receive_with<M: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    flags: RecvFlags,
) -> Result<Option<(M, Option<OwnedFd>)>, Errno> {
    buffer.resize(MAX_BYTES, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            descriptor = descriptors.last();
        }
    }
    if received.flags.contains(rustix::net::ReturnFlags::CTRUNC) && descriptor.is_none() {
        // A descriptor was sent and could not be installed.
        return Err(Errno::MFILE);
    }
    let message = postcard::from_bytes(&buffer[..received.bytes]).map_err(|_| Errno::BADMSG)?;
    Ok(Some((message, descriptor)))
}

/// The user that opened the other end.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> Result<(u32, i32), Errno> {
    let credentials = rustix::net::sockopt::socket_peercred(socket.as_fd())?;
    Ok((credentials.uid.as_raw(), credentials.pid.as_raw_nonzero().get()))
}
