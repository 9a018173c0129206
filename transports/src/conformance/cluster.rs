//! Ranks under test, their operations, and the promises that hold for each operation.

use std::time::{Duration, Instant};

use crate::message::{Message, MessageId};
use crate::{Event, LostCause, Rank, Token, Transport};

/// Bytes on both sides of each operation's memory that nobody may touch.
const MARGIN: usize = 64;
const CANARY: u8 = 0xc5;
const BLANK: u8 = 0x3a;
/// A case in which nothing moves for so long hangs.
const PATIENCE: Duration = Duration::from_secs(3);

/// How an operation ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Sent or received.
    Done,
    /// Met other arguments, these.
    Mismatch(Message),
    /// Withdrawn; no event may name it.
    Withdrawn,
}

/// A posted operation.
struct Operation {
    rank: Rank,
    peer: Rank,
    message: Message,
    is_send: bool,
    memory: Vec<u8>,
    outcome: Option<Outcome>,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.is_send { "send to" } else { "receive from" };
        write!(f, "rank {}'s {kind} {}: {:?} {:?}", self.rank, self.peer, self.message, self.outcome)
    }
}

/// The ranks of a case.
pub struct Cluster<'a> {
    name: &'static str,
    endpoints: Vec<Option<Box<dyn Transport>>>,
    drive: &'a mut dyn FnMut(),
    operations: Vec<Operation>,
    /// By rank: who was lost.
    lost: Vec<Vec<Rank>>,
    /// By rank: whose streams stand again.
    reopened: Vec<Vec<Rank>>,
    /// By rank: refusals of messages that had ended.
    refused: Vec<Vec<(Rank, Message)>>,
    /// By rank: messages that were sought and have arrived.
    arrived: Vec<Vec<(Rank, MessageId)>>,
    events: Vec<Event>,
    /// When nothing has moved for so long, nothing is under way.
    quiet: Duration,
}

impl std::fmt::Debug for Cluster<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.name)
            .field("operations", &self.operations.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Cluster<'a> {
    pub(super) fn new(
        name: &'static str,
        endpoints: Vec<Box<dyn Transport>>,
        drive: &'a mut dyn FnMut(),
        quiet: Duration,
    ) -> Self {
        let ranks = endpoints.len();
        Self {
            name,
            endpoints: endpoints.into_iter().map(Some).collect(),
            drive,
            operations: Vec::new(),
            lost: vec![Vec::new(); ranks],
            reopened: vec![Vec::new(); ranks],
            refused: vec![Vec::new(); ranks],
            arrived: vec![Vec::new(); ranks],
            events: Vec::new(),
            quiet,
        }
    }

    /// How many ranks there were at the start.
    pub fn ranks(&self) -> Rank {
        self.endpoints.len() as Rank
    }

    /// The transports' eager limit.
    pub fn eager(&self) -> usize {
        self.endpoints.iter().flatten().map(|endpoint| endpoint.capabilities().eager_bytes).min().unwrap_or(0)
    }

    /// Posts a send of a pattern that is this message's alone; gives the operation's number.
    pub fn send(&mut self, from: Rank, to: Rank, message: Message) -> usize {
        let at = self.enter(from, to, message, true);
        let memory = self.operations[at].memory[MARGIN..].as_ptr();
        if let Some(endpoint) = &mut self.endpoints[from as usize] {
            // SAFETY: the operation owns the memory, and the cluster keeps every operation until the endpoints are gone (they
            // are declared first, so they drop first).
            unsafe { endpoint.post_send(to, &message, memory, Token(at as u64)) };
        }
        at
    }

    /// Posts a receive; gives the operation's number.
    pub fn recv(&mut self, at_rank: Rank, from: Rank, message: Message) -> usize {
        let at = self.enter(at_rank, from, message, false);
        let memory = self.operations[at].memory[MARGIN..].as_mut_ptr();
        if let Some(endpoint) = &mut self.endpoints[at_rank as usize] {
            // SAFETY: as for `send`; nobody reads the memory before the operation has ended.
            unsafe { endpoint.post_recv(from, &message, memory, Token(at as u64)) };
        }
        at
    }

    /// Seeks a message; its place in the order of arrivals.
    pub fn seek(&mut self, at_rank: Rank, from: Rank, message: &Message) -> Option<u64> {
        self.endpoints[at_rank as usize].as_mut()?.seek(from, &message.id)
    }

    /// Takes what is known of a sought message: that it arrived, once.
    pub fn take_arrival(&mut self, at_rank: Rank, from: Rank, message: &Message) -> bool {
        let arrived = &mut self.arrived[at_rank as usize];
        let before = arrived.len();
        arrived.retain(|arrival| *arrival != (from, message.id));
        assert!(before <= arrived.len() + 1, "{}: {:?} arrived twice", self.name, message.id);
        before > arrived.len()
    }

    fn enter(&mut self, rank: Rank, peer: Rank, message: Message, is_send: bool) -> usize {
        let mut memory = vec![CANARY; message.bytes + 2 * MARGIN];
        let inner = &mut memory[MARGIN..MARGIN + message.bytes];
        if is_send {
            fill(inner, &message.id)
        } else {
            inner.fill(BLANK)
        }
        self.operations.push(Operation { rank, peer, message, is_send, memory, outcome: None });
        self.operations.len() - 1
    }

    /// Forgets an operation; its memory is then this cluster's.
    pub fn withdraw(&mut self, operation: usize) {
        let rank = self.operations[operation].rank;
        if let Some(endpoint) = &mut self.endpoints[rank as usize] {
            endpoint.withdraw(Token(operation as u64));
        }
        let entry = &mut self.operations[operation];
        if entry.outcome.is_none() {
            entry.outcome = Some(Outcome::Withdrawn);
            let end = MARGIN + entry.message.bytes;
            entry.memory[MARGIN..end].fill(BLANK);
        }
    }

    /// Ends a rank without a word.
    pub fn kill(&mut self, rank: Rank) {
        self.endpoints[rank as usize] = None;
    }

    /// Polls every rank once. Says whether anything moved.
    pub fn turn(&mut self) -> bool {
        let mut moved = false;
        for rank in 0..self.ranks() {
            let Some(endpoint) = &mut self.endpoints[rank as usize] else { continue };
            let mut events = std::mem::take(&mut self.events);
            moved |= endpoint.poll(&mut events);
            for event in events.drain(..) {
                self.note(rank, event);
            }
            self.events = events;
        }
        (self.drive)();
        moved
    }

    fn note(&mut self, rank: Rank, event: Event) {
        let name = self.name;
        let (token, outcome) = match event {
            Event::Sent(token) | Event::Received(token) => (token, Outcome::Done),
            Event::Mismatch { token, theirs, peer } => {
                let ours = self.operations.get(token.0 as usize).map(|operation| operation.peer);
                assert_eq!(ours, Some(peer), "{name}: a mismatch with the wrong peer");
                (token, Outcome::Mismatch(theirs))
            }
            Event::Refused { peer, theirs } => {
                self.refused[rank as usize].push((peer, theirs));
                return;
            }
            Event::Arrived { peer, id } => {
                self.arrived[rank as usize].push((peer, id));
                return;
            }
            Event::Broken { peer, .. } => {
                // What decides in a cluster: who was killed is gone, and everybody else is there.
                let gone = self.endpoints[peer as usize].is_none();
                let endpoint =
                    self.endpoints[rank as usize].as_mut().filter(|e| e.capabilities().streams_break);
                let endpoint = endpoint.unwrap_or_else(|| panic!("{name}: a stream that cannot break did"));
                if gone {
                    endpoint.give_up(peer)
                } else {
                    endpoint.reopen(peer)
                }
                return;
            }
            Event::Reopened { peer, .. } => {
                self.reopened[rank as usize].push(peer);
                return;
            }
            Event::Lost { peer, cause } => {
                assert!(!self.lost[rank as usize].contains(&peer), "{name}: rank {rank} lost {peer} twice");
                assert!(!matches!(cause, LostCause::Garbled(_)), "{name}: rank {rank} lost {peer}: {cause}");
                self.lost[rank as usize].push(peer);
                return;
            }
        };
        let operation = self.operations.get_mut(token.0 as usize);
        let Some(operation) =
            operation.filter(|operation| operation.rank == rank && operation.outcome.is_none())
        else {
            panic!("{name}: rank {rank} got {event:?}, which names no live operation");
        };
        let is_sent = matches!(event, Event::Sent(_));
        assert!(
            outcome != Outcome::Done || is_sent == operation.is_send,
            "{name}: {event:?} for the other kind"
        );
        if outcome == Outcome::Done && !operation.is_send {
            let mut expected = vec![0; operation.message.bytes];
            fill(&mut expected, &operation.message.id);
            let id = operation.message.id;
            let right = operation.memory[MARGIN..MARGIN + operation.message.bytes] == expected;
            assert!(right, "{name}: rank {rank} received wrong bytes for {id:?}");
        }
        operation.outcome = Some(outcome);
    }

    /// How an operation ended, if it has.
    pub fn outcome(&self, operation: usize) -> Option<&Outcome> {
        self.operations[operation].outcome.as_ref()
    }

    /// Whether it is done.
    pub fn is_done(&self, operation: usize) -> bool {
        self.outcome(operation) == Some(&Outcome::Done)
    }

    /// Whom a rank has lost.
    pub fn lost(&self, rank: Rank) -> &[Rank] {
        &self.lost[rank as usize]
    }

    /// Whose streams stand again, once for each time.
    pub fn reopened(&self, rank: Rank) -> &[Rank] {
        &self.reopened[rank as usize]
    }

    /// Whether streams between ranks can break.
    pub fn streams_break(&self) -> bool {
        self.endpoints.iter().flatten().all(|endpoint| endpoint.capabilities().streams_break)
    }

    /// Breaks the stream between two ranks.
    pub fn sever(&mut self, rank: Rank, peer: Rank) {
        if let Some(endpoint) = &mut self.endpoints[rank as usize] {
            endpoint.sever(peer);
        }
    }

    /// The refusals that a rank was told of.
    pub fn refused(&self, rank: Rank) -> &[(Rank, Message)] {
        &self.refused[rank as usize]
    }

    /// Polls until all these are done.
    pub fn finish(&mut self, operations: &[usize]) {
        let mut next = 0;
        self.until("an operation hangs", |cluster| {
            while next < operations.len() && cluster.is_done(operations[next]) {
                next += 1;
            }
            next == operations.len()
        });
    }

    /// Polls until a condition holds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let mut moved_at = Instant::now();
        while !holds(self) {
            if self.turn() {
                moved_at = Instant::now();
            }
            if moved_at.elapsed() > PATIENCE {
                let open: Vec<_> =
                    self.operations.iter().filter(|operation| operation.outcome.is_none()).take(4).collect();
                panic!("{}: {what}: {open:?}", self.name);
            }
        }
    }

    /// Polls until nothing has moved for a while.
    pub fn settle(&mut self) {
        let mut still = 0;
        let mut quiet_since = Instant::now();
        while still < 500 || quiet_since.elapsed() < self.quiet {
            if self.turn() {
                still = 0;
                quiet_since = Instant::now();
            } else {
                still += 1;
            }
        }
    }

    /// Checks the margins of all operations, and all of the memory of those that were not delivered.
    pub fn check_untouched(&self) {
        let name = self.name;
        for operation in &self.operations {
            let end = MARGIN + operation.message.bytes;
            let margins = operation.memory[..MARGIN].iter().chain(&operation.memory[end..]);
            assert!(margins.into_iter().all(|&byte| byte == CANARY), "{name}: written beyond the memory");
            let blank = matches!(operation.outcome, Some(Outcome::Mismatch(_))) && !operation.is_send
                || operation.outcome == Some(Outcome::Withdrawn);
            let inner = &operation.memory[MARGIN..end];
            assert!(
                !blank || inner.iter().all(|&byte| byte == BLANK),
                "{name}: memory touched after its operation"
            );
        }
    }
}

/// A message's bytes: no two messages have the same.
fn fill(memory: &mut [u8], id: &MessageId) {
    let mut word = u64::from(id.communicator) << 40 ^ u64::from(id.tag) << 20 ^ id.sequence.rotate_left(32);
    word ^= u64::from(id.label) << 8 ^ u64::from(id.chunk) << 50;
    for bytes in memory.chunks_mut(8) {
        word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bytes.copy_from_slice(&mixed.to_le_bytes()[..bytes.len()]);
    }
}
