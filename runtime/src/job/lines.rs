//! How ranks of a host tell each other of device memory: directly, past the rendezvous.
//!
//! A *line* leads from one rank to another: a pair of sockets, which keeps messages whole and in order and passes descriptors. The sender makes it
//! for its first message, and the rendezvous gives the other end to the receiver; so a line has no name, and nobody is at its end whom the rendezvous has
//! not let in. All that the sender has to say goes over it, from the first message on. Where a descriptor for it is wanting, everything goes
//! over the rendezvous instead. Between the lines and the rendezvous there is no order.
//!
//! The thread that listens to the rendezvous listens to the lines, too. But a rank whose operation is under way need not wait until that
//! thread gets a core: whoever drives the operation looks at the rank's *mail* on the board, a word, and takes in what has come.
//!
//! Who sends never waits. What a receiver has no room for is kept until it has.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::Job;
use crate::bootstrap::protocol::{RegionMessage, RegionNews, ToServer};
use crate::bootstrap::{control::Control, socket};
use crate::group::lock;

#[derive(Debug, Default)]
pub(super) struct Lines {
    outward: Mutex<BTreeMap<u32, Outward>>,
    /// Something is kept for a receiver that has no room.
    keeps: AtomicBool,
    inward: Mutex<Inward>,
    /// A message was lost, for want of a descriptor to put it in.
    lost: AtomicBool,
}

/// To one rank.
#[derive(Debug)]
struct Outward {
    /// Without a line everything goes over the rendezvous.
    line: Option<OwnedFd>,
    kept: VecDeque<(RegionMessage, Option<OwnedFd>)>,
}

/// From all ranks.
#[derive(Debug, Default)]
struct Inward {
    lines: Vec<(u32, Arc<OwnedFd>)>,
    buffer: Vec<u8>,
}

/// What became of a message.
enum Sent {
    Yes,
    /// There is no room.
    Later,
}

impl Outward {
    /// A line of which the rendezvous is to give away the other end.
    fn open(control: &Control, to: u32) -> Self {
        let made = socket::pair().and_then(|(near, far)| {
            control.tell(&ToServer::Line { to }, Some(far.as_fd()))?;
            Ok(near)
        });
        Self { line: made.ok(), kept: VecDeque::new() }
    }

    fn send(line: &OwnedFd, message: &RegionMessage, descriptor: Option<&OwnedFd>) -> Sent {
        match socket::offer(line.as_fd(), message, descriptor.map(AsFd::as_fd)) {
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS) => Sent::Later,
            // A rank that cannot be told has ended, as the rendezvous will say.
            _ => Sent::Yes,
        }
    }

    /// Sends what was kept, as much as there is room for. Whether any was.
    fn catch_up(&mut self) -> bool {
        let before = self.kept.len();
        while let (Some(line), Some((message, descriptor))) = (&self.line, self.kept.front()) {
            if let Sent::Later = Self::send(line, message, descriptor.as_ref()) {
                break;
            }
            self.kept.pop_front();
        }
        self.kept.len() < before
    }

    fn keep(&mut self, message: RegionMessage, descriptor: Option<OwnedFd>) {
        // Descriptors do not pile up: what is withdrawn before it is heard of will not be mapped.
        if let RegionNews::Withdraw { .. } = message.news {
            let same = |kept: &RegionMessage| (kept.owner, kept.segment) == (message.owner, message.segment);
            self.kept
                .iter_mut()
                .filter(|(kept, _)| same(kept))
                .for_each(|(_, descriptor)| *descriptor = None);
        }
        self.kept.push_back((message, descriptor));
    }
}

impl Job {
    /// Tells a peer something about device memory. Who tells has an order with others who do: see `Attached`.
    pub(super) fn tell_by_line(
        &self,
        control: &Control,
        to: u32,
        message: RegionMessage,
        descriptor: Option<OwnedFd>,
    ) {
        let mut outward = lock(&self.lines.outward);
        let peer = outward.entry(to).or_insert_with(|| Outward::open(control, to));
        let Some(line) = &peer.line else {
            // Without a rendezvous the job has ended, and nobody waits for the answer.
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            let _ = control.tell(&ToServer::Region { to, message }, descriptor);
            return;
        };
        if peer.kept.is_empty()
            && let Sent::Yes = Outward::send(line, &message, descriptor.as_ref())
        {
            return self.put_mail(to);
        }
        peer.keep(message, descriptor);
        self.lines.keeps.store(true, Ordering::Release);
    }

    fn put_mail(&self, to: u32) {
        if let Some(board) = &self.board {
            board.mail(to as usize).store(1);
        }
    }

    /// Sends what was kept for receivers that had no room. Whether something still is.
    pub(crate) fn tell_kept(&self) -> bool {
        if !self.lines.keeps.load(Ordering::Acquire) {
            return false;
        }
        let mut outward = lock(&self.lines.outward);
        for (&to, peer) in &mut *outward {
            if peer.catch_up() {
                self.put_mail(to);
            }
        }
        let keeps = outward.values().any(|peer| !peer.kept.is_empty());
        self.lines.keeps.store(keeps, Ordering::Release);
        keeps
    }

    /// A line from a peer.
    pub(super) fn add_line(&self, from: u32, line: OwnedFd) {
        lock(&self.lines.inward).lines.push((from, Arc::new(line)));
    }

    /// What is readable when a peer has said something.
    pub(super) fn lines(&self) -> Vec<Arc<OwnedFd>> {
        lock(&self.lines.inward).lines.iter().map(|(_, line)| Arc::clone(line)).collect()
    }

    /// Whether something has come that nobody has taken in: to be asked often.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.board.as_ref().is_some_and(|board| board.mail(self.rank as usize).load() != 0)
    }

    /// Takes in what peers have said, unless another thread does. Its order is that in which it came: nobody else takes in meanwhile.
    pub(crate) fn take_mail(&self) {
        if let Ok(mut inward) = self.lines.inward.try_lock() {
            self.take_in(&mut inward);
        }
    }

    /// The same, and waits for the other thread.
    pub(super) fn take_all_mail(&self) {
        self.take_in(&mut lock(&self.lines.inward));
    }

    fn take_in(&self, inward: &mut Inward) {
        if let Some(board) = &self.board {
            // Before the look: what comes after it is announced anew.
            board.mail(self.rank as usize).store(0);
        }
        let Inward { lines, buffer } = inward;
        lines.retain(|(from, line)| {
            loop {
                match socket::take_in::<RegionMessage>(line.as_fd(), buffer) {
                    Ok(Some((message, descriptor))) => self.hear_of_region(*from, message, descriptor),
                    // Garbage is one message lost.
                    Err(Errno::BADMSG) => {}
                    Err(Errno::MFILE) => self.lines.lost.store(true, Ordering::Release),
                    Err(Errno::AGAIN) => return true,
                    // Its sender has ended.
                    Ok(None) | Err(_) => return false,
                }
            }
        });
    }

    /// Whether a message was lost since the last call, and with it perhaps memory that everybody would wait for.
    pub(super) fn has_lost_mail(&self) -> bool {
        self.lines.lost.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(segment: u32, news: RegionNews) -> RegionMessage {
        RegionMessage { owner: 1, segment, news, exported: Err(None) }
    }

    /// A receiver that reads nothing for long gets everything, once, in order; but descriptors of what was withdrawn meanwhile are not sent.
    #[test]
    fn what_there_is_no_room_for_comes_later_in_order_without_what_was_withdrawn() {
        const MESSAGES: u32 = 5000;
        let (near, far) = socket::pair().unwrap();
        let mut outward = Outward { line: Some(near), kept: VecDeque::new() };
        let advertise =
            |segment| news(segment, RegionNews::Advertise { generation: 0, place: 0, lent_from: 0 });
        let say = |outward: &mut Outward, message: RegionMessage, descriptor: Option<OwnedFd>| {
            let line = outward.line.as_ref().unwrap();
            if outward.kept.is_empty()
                && let Sent::Yes = Outward::send(line, &message, descriptor.as_ref())
            {
                return;
            }
            outward.keep(message, descriptor);
        };
        for segment in 0..MESSAGES {
            say(&mut outward, advertise(segment), None);
        }
        assert!(outward.kept.len() > 100, "the socket holds {MESSAGES} messages");
        for segment in [MESSAGES, MESSAGES + 1] {
            let (one, _) = socket::pair().unwrap();
            say(&mut outward, advertise(segment), Some(one));
        }
        say(&mut outward, news(MESSAGES, RegionNews::Withdraw { generation: 0 }), None);
        assert!(!outward.catch_up(), "nobody has read");
        let (mut heard, mut buffer) = (Vec::new(), Vec::new());
        loop {
            while let Ok(Some((message, descriptor))) =
                socket::take_in::<RegionMessage>(far.as_fd(), &mut buffer)
            {
                heard.push((message.segment, descriptor.is_some()));
            }
            if !outward.catch_up() {
                break;
            }
        }
        let all = (0..MESSAGES).map(|segment| (segment, false));
        let last = [(MESSAGES, false), (MESSAGES + 1, true), (MESSAGES, false)];
        assert_eq!(heard, all.chain(last).collect::<Vec<_>>());
        // Who has ended is told nothing, and holds up nobody.
        drop(far);
        let line = outward.line.as_ref().unwrap();
        assert!(matches!(Outward::send(line, &advertise(0), None), Sent::Yes));
    }
}
