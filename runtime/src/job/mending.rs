//! Streams that break while both ranks live: the scheduler's machines, joined to the transport and the membership.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use windlass_transports::{Event, LostCause, Transport};

use super::Job;
use super::delivery::peer_cause;
use crate::bootstrap::protocol::ToServer;
use crate::error::{PeerCause, report};
use crate::group::lock;
use crate::metrics;
use crate::scheduler::{Connection, ConnectionAction, Hopeless};

/// How often a rank's streams were opened anew, and what left once more.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reconnects {
    /// Streams opened anew.
    pub streams: u64,
    /// Frames that left once more.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A job's streams, as far as they have ever broken. Whoever touches them holds the transport's lock first.
#[derive(Debug, Default)]
pub(crate) struct Mending {
    connections: Mutex<Connections>,
    /// How many are being opened; looked at without the lock.
    under_way: AtomicU32,
    counts: [AtomicU64; 3],
    /// Streams among them that something was wrong with.
    faults: AtomicU64,
    /// Wakes the thread that looks after streams while nobody polls.
    wake: OnceLock<OwnedFd>,
}

#[derive(Debug, Default)]
struct Connections {
    /// Times are counted from here.
    epoch: Option<Instant>,
    machines: Machines,
}

/// By peer, with the last reason for a break.
type Machines = BTreeMap<u32, (Connection, LostCause)>;

/// What a poll said of streams, and others do not know yet.
#[derive(Debug)]
pub(super) struct Heard {
    again: Vec<Reopened>,
    /// Whose calls are awaited.
    uncalled: Vec<u32>,
}

/// A stream that stands again.
#[derive(Debug)]
struct Reopened {
    peer: u32,
    after: LostCause,
    chunks: u64,
    bytes: u64,
}

impl Job {
    /// How often streams were opened anew.
    pub(crate) fn reconnects(&self) -> Reconnects {
        let [streams, chunks, bytes] =
            [0, 1, 2].map(|count: usize| self.mending.counts[count].load(Ordering::Relaxed));
        Reconnects { streams, chunks, bytes }
    }

    /// Hears what a poll said of streams, in order. Says what others are to be told.
    pub(super) fn tend(&self, transport: &mut dyn Transport, events: &[Event]) -> Heard {
        let (mut again, mut uncalled) = (Vec::new(), Vec::new());
        for event in events {
            match event {
                Event::Broken { peer, cause } => {
                    self.broken(transport, *peer, cause);
                    uncalled.extend((*peer > self.rank).then_some(*peer));
                }
                Event::Reopened { peer, chunks, bytes, progressed } => {
                    let after = self.reopened(transport, *peer, *progressed);
                    again.push(Reopened { peer: *peer, after, chunks: *chunks, bytes: *bytes });
                }
                _ => {}
            }
        }
        Heard { again, uncalled }
    }

    /// Tells of it, once no lock is held.
    pub(super) fn pass_on(&self, heard: &Heard) {
        heard.again.iter().for_each(|reopened| self.report_reopened(reopened));
        // The higher rank dials, and may be busy with something else than messages.
        heard.uncalled.iter().for_each(|peer| self.tell(&ToServer::Broken { to: *peer }));
    }

    fn broken(&self, transport: &mut dyn Transport, peer: u32, cause: &LostCause) {
        let known_dead = self.knows_dead() && lock(&self.dead).contains_key(&peer);
        self.drive_connections(transport, |now, machines| {
            let new = || (Connection::new(self.config.reconnect.as_nanos() as u64), cause.clone());
            let (machine, last) = machines.entry(peer).or_insert_with(new);
            *last = cause.clone();
            if known_dead {
                machine.handle_died();
            }
            match cause {
                LostCause::Renewed => machine.handle_renewed(now),
                _ => machine.handle_broken(now),
            }
        });
        // Who polled may not poll again.
        self.wake_tender();
    }

    fn wake_tender(&self) {
        if let Some(wake) = self.mending.wake.get() {
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }

    fn reopened(&self, transport: &mut dyn Transport, peer: u32, progressed: bool) -> LostCause {
        let mut after = LostCause::Closed;
        self.drive_connections(transport, |_, machines| {
            if let Some((machine, cause)) = machines.get_mut(&peer) {
                after = cause.clone();
                machine.handle_stands(progressed);
            }
        });
        after
    }

    fn report_reopened(&self, reopened: &Reopened) {
        let Reopened { peer, after, chunks, bytes } = reopened;
        let counted = [1, *chunks, *bytes];
        for (count, by) in self.mending.counts.iter().zip(counted) {
            count.fetch_add(by, Ordering::Relaxed);
        }
        if let Some(board) = &self.board {
            metrics::count_reconnect(board, self.rank as usize, counted);
        }
        // Memory that moves costs connections, as it should.
        if *after == LostCause::Renewed {
            return;
        }
        let faults = self.mending.faults.fetch_add(1, Ordering::Relaxed) + 1;
        let times = self.reconnects().streams;
        // A network that breaks streams all the time must not fill the disk, too.
        if !self.is_simulated() && faults.is_power_of_two() {
            report(format_args!(
                "rank {}: the stream to rank {peer} broke ({after}) and stands again; {bytes} bytes are sent once more. Streams of this \
                 rank were opened anew {times} time(s)",
                self.rank
            ));
        }
    }

    /// A peer's death is known: its stream is not opened any more.
    pub(super) fn peer_died(&self, peer: u32) {
        let Some(messages) = &self.messages else { return };
        let mut messages = lock(messages);
        self.drive_connections(&mut **messages, |_, machines| {
            if let Some((machine, _)) = machines.get_mut(&peer) {
                machine.handle_died();
            }
        });
    }

    /// Lets time pass for streams that are being opened. Whether any is.
    pub(super) fn mend(&self, transport: &mut dyn Transport) -> bool {
        if self.mending.under_way.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let peers: Vec<u32> = lock(&self.mending.connections).machines.keys().copied().collect();
        let unheard: Vec<u32> = peers.into_iter().filter(|peer| !transport.is_heard(*peer)).collect();
        self.drive_connections(transport, |now, machines| {
            for (peer, (machine, _)) in machines {
                machine.handle_time(now, !unheard.contains(peer));
            }
        })
    }

    /// Gives the machines an input, and does what they say. Whether they said anything.
    fn drive_connections(
        &self,
        transport: &mut dyn Transport,
        input: impl FnOnce(u64, &mut Machines),
    ) -> bool {
        let now = self.now();
        let mut connections = lock(&self.mending.connections);
        let epoch = *connections.epoch.get_or_insert(now);
        input(now.saturating_duration_since(epoch).as_nanos() as u64, &mut connections.machines);
        let (mut under_way, mut acted) = (0, false);
        for (peer, (machine, cause)) in &mut connections.machines {
            if let Some(action) = machine.poll_action() {
                acted = true;
                self.perform(transport, *peer, action, cause);
            }
            under_way += u32::from(machine.is_mending());
        }
        self.mending.under_way.store(under_way, Ordering::Relaxed);
        acted
    }

    fn perform(&self, transport: &mut dyn Transport, peer: u32, action: ConnectionAction, cause: &LostCause) {
        let ConnectionAction::GiveUp(why) = action else { return transport.reopen(peer) };
        match why {
            Hopeless::Exhausted { attempts, after_ns } => {
                let errno = match cause {
                    LostCause::System { errno, .. } | LostCause::Device { errno, .. } => *errno,
                    _ => rustix::io::Errno::CONNRESET.raw_os_error(),
                };
                let within_ms = after_ns / 1_000_000;
                self.lost(peer, PeerCause::NotReopened { errno, attempts, within_ms });
            }
            Hopeless::Off => self.lost(peer, peer_cause(cause)),
            // Who heard of it has noted why.
            Hopeless::Dead => {}
        }
        transport.give_up(peer);
    }

    /// The first of these whose stream could not be opened anew.
    pub(super) fn cut_off(&self, members: &[u32]) -> Option<(u32, PeerCause)> {
        if !self.knows_dead() {
            return None;
        }
        let dead = lock(&self.dead);
        let cut = |rank: &u32| match dead.get(rank) {
            Some((cause @ PeerCause::NotReopened { .. }, _)) => Some((*rank, cause.clone())),
            _ => None,
        };
        members.iter().find_map(cut)
    }

    /// What a rank that stops polling still owes its peers.
    pub(crate) fn acknowledge(&self) {
        if self.acknowledges
            && let Some(messages) = &self.messages
            && !lock(messages).acknowledge()
        {
            self.wake_tender();
        }
    }

    /// What to wait on for streams that break while nobody polls, and whether to look soon in any case.
    pub(super) fn watched(&self) -> (Vec<OwnedFd>, bool) {
        let Some(messages) = &self.messages else { return (Vec::new(), false) };
        let messages = lock(messages);
        let disturbed = self.mending.under_way.load(Ordering::Relaxed) > 0 || messages.is_disturbed();
        let polled = messages.descriptor().filter(|_| disturbed);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        if self.mending.wake.get().is_none()
            && let Ok(wake) = eventfd(0, flags)
        {
            let _ = self.mending.wake.set(wake);
        }
        let wake = self.mending.wake.get().map(AsFd::as_fd);
        let watched = messages.guard().into_iter().chain(polled).chain(wake);
        (watched.filter_map(|descriptor| descriptor.try_clone_to_owned().ok()).collect(), disturbed)
    }

    /// Polls for the sake of streams that broke, or are being opened.
    pub(crate) fn tend_streams(&self) {
        if let Some(wake) = self.mending.wake.get() {
            let _ = rustix::io::read(wake, &mut [0u8; 8]);
        }
        let mut nobodys = Vec::new();
        // A poll looks at sockets of which nothing is expected only now and then.
        for _ in 0..32 {
            self.poll_messages(None, &mut nobodys);
        }
    }

    /// The same where nothing moves by itself. Whether there was anything to do.
    pub(crate) fn tend_simulated_streams(&self) -> bool {
        let Some(messages) = &self.messages else { return false };
        if !lock(messages).is_disturbed() && self.mending.under_way.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.poll_messages(None, &mut Vec::new())
    }
}
