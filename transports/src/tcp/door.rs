//! Connections that have not yet said who they are.
//!
//! The higher rank dials the lower; each end sends a [`Greeting`], the dialler first. A connection whose greeting is not of this
//! job is dropped, and nothing else happens.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::Options;
use super::greeting::{GREETING_BYTES, Greeting};
use super::peer::system;
use crate::ledger::Generation;
use crate::link::Limits;
use crate::{LostCause, Rank};

/// Connections that may stay unnamed at once, besides the peers that are awaited. The oldest goes first.
const STRANGERS: usize = 64;

/// A connection whose greeting is awaited.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) socket: OwnedFd,
    /// Whom this rank dialled; none if it was called.
    pub(super) dialled: Option<Rank>,
    /// What this rank says: at once if it dials, otherwise when the connection is taken.
    ours: Option<Greeting>,
    greeted: bool,
    heard: [u8; GREETING_BYTES],
    length: usize,
}

/// What became of a guest.
#[derive(Debug)]
pub(super) enum Admission {
    /// Its greeting is not complete.
    Pending,
    /// It is this peer.
    Peer(Greeting),
    /// It is nobody of this job.
    Stranger(LostCause),
}

impl Guest {
    /// Calls a peer.
    pub(super) fn dial(
        peer: Rank,
        address: &SocketAddr,
        ours: Greeting,
        options: &Options,
    ) -> Result<Self, LostCause> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|errno| system("socket", errno))?;
        configure(&socket, options).map_err(|errno| system("setsockopt", errno))?;
        match rustix::net::connect(&socket, address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {
                unpace_if_local(&socket, Some(address.ip()));
                Ok(Self::new(socket, Some((peer, ours))))
            }
            Err(errno) => Err(system("connect", errno)),
        }
    }

    /// Somebody called.
    pub(super) fn answer(socket: OwnedFd, options: &Options) -> Result<Self, LostCause> {
        configure(&socket, options).map_err(|errno| system("setsockopt", errno))?;
        let caller = rustix::net::getpeername(&socket).ok().flatten();
        unpace_if_local(
            &socket,
            caller.and_then(|from| SocketAddr::try_from(from).ok()).map(|from| from.ip()),
        );
        Ok(Self::new(socket, None))
    }

    fn new(socket: OwnedFd, dialled: Option<(Rank, Greeting)>) -> Self {
        let (dialled, ours) = dialled.unzip();
        Self { socket, dialled, ours, greeted: false, heard: [0; GREETING_BYTES], length: 0 }
    }

    /// Which of the peer's connections it is, if this rank dialled.
    pub(super) fn generation(&self) -> Option<Generation> {
        self.ours.map(|ours| ours.generation)
    }

    /// Whether the peer's host has taken the call.
    pub(super) const fn is_connected(&self) -> bool {
        self.greeted
    }

    /// Whether it waits to be able to write.
    pub(super) fn is_unanswered(&self) -> bool {
        self.dialled.is_some() && !self.greeted
    }

    /// Goes on with the greetings.
    pub(super) fn proceed(&mut self, job: u128, limits: Limits) -> Admission {
        if let Some(ours) = self.ours.filter(|_| !self.greeted) {
            match self.greet(&ours) {
                Ok(()) => self.greeted = true,
                Err(Errno::AGAIN | Errno::INTR) => return Admission::Pending,
                Err(errno) => return Admission::Stranger(system("connect", errno)),
            }
        }
        match rustix::net::recv(&self.socket, &mut self.heard[self.length..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Admission::Stranger(LostCause::Closed),
            Ok((bytes, _)) => self.length += bytes,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Admission::Stranger(system("recv", errno)),
        }
        if self.length < GREETING_BYTES {
            return Admission::Pending;
        }
        let theirs = match Greeting::decode(&self.heard) {
            Some(theirs) if theirs.job == job => theirs,
            _ => return Admission::Stranger(LostCause::Garbled("no greeting of this job")),
        };
        if theirs.limits != limits {
            return Admission::Stranger(LostCause::Garbled("a greeting with other link limits"));
        }
        if self.dialled.is_some_and(|peer| peer != theirs.rank) {
            return Admission::Stranger(LostCause::Garbled("the greeting of another rank"));
        }
        if self.generation().is_some_and(|generation| generation != theirs.generation) {
            return Admission::Stranger(LostCause::Garbled("the greeting of another connection"));
        }
        Admission::Peer(theirs)
    }

    /// Says who this rank is. A fresh socket takes a greeting whole or not at all.
    pub(super) fn greet(&self, ours: &Greeting) -> Result<(), Errno> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::send(&self.socket, &ours.encode(), flags)? {
            GREETING_BYTES => Ok(()),
            _ => Err(Errno::NOBUFS),
        }
    }
}

/// Guests, each at a place of its own.
#[derive(Debug, Default)]
pub(super) struct Guests {
    places: Vec<Option<(u64, Guest)>>,
    arrivals: u64,
}

impl Guests {
    /// Gives a guest a place.
    pub(super) fn seat(&mut self, guest: Guest) -> usize {
        self.arrivals += 1;
        let entry = Some((self.arrivals, guest));
        match self.places.iter().position(Option::is_none) {
            Some(place) => {
                self.places[place] = entry;
                place
            }
            None => {
                self.places.push(entry);
                self.places.len() - 1
            }
        }
    }

    pub(super) fn get(&mut self, place: usize) -> Option<&mut Guest> {
        self.places.get_mut(place)?.as_mut().map(|(_, guest)| guest)
    }

    pub(super) fn leave(&mut self, place: usize) -> Option<Guest> {
        self.places.get_mut(place)?.take().map(|(_, guest)| guest)
    }

    /// The guest that this rank has dialled as `peer`, if there is one.
    pub(super) fn dialled(&self, peer: Rank) -> Option<&Guest> {
        self.places.iter().flatten().map(|(_, guest)| guest).find(|guest| guest.dialled == Some(peer))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.iter().all(Option::is_none)
    }

    /// Sends the longest-waiting caller away if there are more than `awaited` plus some.
    pub(super) fn make_room(&mut self, awaited: usize) {
        let callers = || {
            self.places.iter().enumerate().filter_map(|(place, entry)| {
                entry
                    .as_ref()
                    .filter(|(_, guest)| guest.dialled.is_none())
                    .map(|(arrival, _)| (*arrival, place))
            })
        };
        if callers().count() >= awaited + STRANGERS
            && let Some((_, place)) = callers().min()
        {
            self.places[place] = None;
        }
    }
}

/// Takes congestion control off a connection within this host, where no network could be congested.
///
/// A host's default may pace (BBR), by a rate that it guesses from what has gone before; within a host the guess is often too low
/// and chunks wait. Measured on loopback against BBR, all-reduce of four ranks: 4 MiB 16.8 -> 11.8 ms; but 256 KiB, with more ranks
/// than cores, 2 to 19 % slower in three comparisons, in noise as large.
fn unpace_if_local(socket: &OwnedFd, peer: Option<IpAddr>) {
    let own = rustix::net::getsockname(socket).ok().and_then(|own| SocketAddr::try_from(own).ok());
    if own.is_some_and(|own| Some(own.ip()) == peer) {
        // Reno is in every kernel and allowed to everybody; where it is refused, the host's default serves as well, more slowly.
        let _ = sockopt::set_tcp_congestion(socket, "reno");
    }
}

fn configure(socket: impl AsFd, options: &Options) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(bytes) = options.send_buffer {
        sockopt::set_socket_send_buffer_size(&socket, bytes)?;
    }
    if let Some(bytes) = options.receive_buffer {
        sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
    }
    Ok(())
}
