//! One peer: its link, and the socket that the link speaks through.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::door::Guest;
use super::greeting::Greeting;
use crate::ledger::Generation;
use crate::link::{Garbled, Link, Wants};
use crate::{Event, LostCause};

/// Slices per system call: eight frames.
const SLICES: usize = 16;
/// What leaves at once up to this size is copied together first: the kernel takes one range faster than several.
const TOGETHER: usize = 512;

/// How a peer's stream stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// It is dialled, or its call is awaited.
    Opening,
    /// It has a socket.
    Open,
    /// It broke; nobody has decided yet.
    Broken(LostCause),
    /// It is not opened any more.
    Lost,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Link,
    /// While the stream is open.
    pub(super) socket: Option<OwnedFd>,
    pub(super) standing: Standing,
    /// Of the last connection that was tried, or taken. A call under this number or below is from before.
    pub(super) generation: Generation,
    /// It has called, and waits until it is decided that the stream is opened anew.
    pub(super) caller: Option<(Guest, Greeting)>,
    /// The socket took less than it was given.
    pub(super) blocked: bool,
    /// epoll tells when the socket takes more.
    pub(super) armed: bool,
    /// In the list of peers that each poll looks at.
    pub(super) active: bool,
}

impl Peer {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            socket: None,
            standing: Standing::Opening,
            generation: Generation::default(),
            caller: None,
            blocked: false,
            armed: false,
            active: false,
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.standing == Standing::Lost
    }

    /// Whether a poll must look at it.
    pub(super) fn is_busy(&self) -> bool {
        !self.is_lost() && (self.link.has_output() || self.link.expects())
    }

    /// Writes what waits, up to about `budget` bytes. Says how many bytes left.
    pub(super) fn flush(&mut self, budget: usize, events: &mut Vec<Event>) -> Result<usize, LostCause> {
        let Some(socket) = &self.socket else { return Ok(0) };
        let mut total = 0;
        while total < budget {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.link.gather(&mut slices, budget - total);
            if filled == 0 {
                break;
            }
            let offered: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = if offered <= TOGETHER {
                let mut together = [0; TOGETHER];
                let mut rest = &mut together[..];
                for slice in &slices[..filled] {
                    let (place, behind) = rest.split_at_mut(slice.len());
                    place.copy_from_slice(slice);
                    rest = behind;
                }
                rustix::net::send(socket, &together[..offered], flags)
            } else {
                rustix::net::sendmsg(socket, &slices[..filled], &mut SendAncillaryBuffer::default(), flags)
            };
            match sent {
                Ok(bytes) => {
                    self.link.wrote(bytes, events);
                    total += bytes;
                    self.blocked = bytes < offered;
                }
                Err(Errno::AGAIN) => self.blocked = true,
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    // Whether any of it left, the peer's position will tell.
                    self.link.wrote(offered, events);
                    return Err(system("sendmsg", errno));
                }
            }
            if self.blocked || !self.link.has_output() {
                break;
            }
        }
        Ok(total)
    }

    /// Reads what is there, up to about `budget` bytes. Says how many bytes came.
    pub(super) fn read(
        &mut self,
        staging: &mut [u8],
        budget: usize,
        events: &mut Vec<Event>,
    ) -> Result<usize, LostCause> {
        let Some(socket) = &self.socket else { return Ok(0) };
        let mut total = 0;
        while total < budget {
            let (direct, received) = match self.link.wants() {
                Wants::Payload(memory, wanted) => {
                    let wanted = wanted.min(budget);
                    // SAFETY: the link lends `wanted` bytes of posted memory or of its own buffer, which nobody else accesses until
                    // `placed` (the poster's contract in `post_recv`); the slice ends before the link is called again. Only the
                    // kernel writes through it.
                    let target = unsafe { std::slice::from_raw_parts_mut(memory, wanted) };
                    let mut slices = [IoSliceMut::new(target), IoSliceMut::new(staging)];
                    (wanted, rustix::io::readv(socket, &mut slices))
                }
                _ => {
                    (0, rustix::net::recv(socket, &mut *staging, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes))
                }
            };
            let bytes = match received {
                Ok(0) => return Err(LostCause::Closed),
                Ok(bytes) => bytes,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(system("recv", errno)),
            };
            total += bytes;
            let garbled = |Garbled(what)| LostCause::Garbled(what);
            if direct > 0 {
                self.link.placed(bytes.min(direct), events).map_err(garbled)?;
            }
            if bytes > direct {
                self.link.feed(&staging[..bytes - direct], events).map_err(garbled)?;
            }
            if bytes < direct + staging.len() {
                break;
            }
        }
        Ok(total)
    }
}

/// A failed call as a cause.
pub(super) fn system(call: &'static str, errno: Errno) -> LostCause {
    LostCause::System { call, errno: errno.raw_os_error() }
}
