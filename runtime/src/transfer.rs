//! Point-to-point messages: schedules of one step, numbered by (peer, tag, direction), apart from the collectives' order.
//!
//! A call posts one message or several, an [`Exchange`]: all of them before anybody waits for one, receives first, so that no order of
//! peers stands still.
//!
//! The tables are touched under the group's `transfers` lock, which is taken after the stream's, never before it.

mod any;
mod driving;
mod late;

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use windlass_collectives::model::DEPTH;
use windlass_collectives::{Algorithm, Call, Collective, Execution, Fingerprint, Geometry, Layout, Schedule};
use windlass_transports::{Message, MessageId, Token};

use crate::error::Error;
use crate::group::Group;
use crate::metrics::{self, Series};
use crate::request::{Checked, Key, RawRequest};

/// Bytes of a message's chunk: a large transfer is posted piece by piece, so that it can be matched and bounded like the rest.
const CHUNK_BYTES: u64 = 4 << 20;

/// In the place of a peer: whoever sends first.
pub(crate) const ANY_SOURCE: u32 = u32::MAX;

/// A message asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) call: Call,
    /// The peer's rank in the communicator; of a receive from any source, once it is known.
    pub(crate) peer: u32,
    pub(crate) tag: u32,
    pub(crate) memory: *mut u8,
    /// Where the sender's rank is written, or null.
    pub(crate) source: *mut u32,
    /// How long it may take, if not as long as the configuration says.
    pub(crate) timeout: Option<Duration>,
}

/// Names an exchange that was started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Ticket {
    index: u32,
    serial: u64,
}

/// One message of an exchange.
#[derive(Debug)]
struct Transfer {
    exchange: u32,
    /// The next message of the same exchange.
    next: Option<u32>,
    request: Request,
    execution: Box<Execution>,
    sequence: u64,
    series: Series,
    /// When it began, if its time is taken.
    started: Option<u64>,
    done: bool,
}

/// The messages of one call, which ends with the last of them.
#[derive(Debug)]
struct Exchange {
    serial: u64,
    first: Option<u32>,
    /// Messages that are not done.
    left: u32,
    waker: Option<Waker>,
    keep: Option<Box<dyn Any + Send>>,
    /// Nobody waits in the call.
    asynchronous: bool,
    detached: bool,
    /// A thread waits for it, and may sleep.
    waited: bool,
    /// When somebody first found that it had to be waited for.
    since: Option<Instant>,
    reported: bool,
}

/// A message that is done: to be counted at once, and what ended with it settled when no lock is held.
pub(crate) struct Ended {
    pub(crate) series: Series,
    pub(crate) started: Option<u64>,
    pub(crate) waker: Option<Waker>,
    pub(crate) memory: Option<Box<dyn Any + Send>>,
}

/// A communicator's messages under way.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    numbers: BTreeMap<(u32, u32, bool), u64>,
    exchanges: Vec<Option<Exchange>>,
    table: Vec<Option<Transfer>>,
    /// What was found right lately: a message like one before is not looked at again.
    checked: [Option<(Key, u32, Checked)>; 16],
    /// Executions to use again, of receives and of sends: the steady state allocates nothing.
    spare: [Vec<Box<Execution>>; 2],
    serial: u64,
    /// Messages that are not done.
    left: usize,
    /// Receives that have no number yet, in the order of their calls: those from any source, and behind one of them those of its tag.
    unmatched: VecDeque<u32>,
}

// SAFETY: the raw pointers are those of operations that own or borrow their memory until they end.
unsafe impl Send for Transfers {}

/// The first free place of a table, which grows when there is none.
fn place<T>(table: &mut Vec<Option<T>>) -> u32 {
    let index = table.iter().position(Option::is_none).unwrap_or(table.len());
    if index == table.len() {
        table.push(None);
    }
    index as u32
}

impl Transfers {
    /// A message, found right but for its memory and the peer, which may be this rank.
    fn check(&mut self, group: &Group, request: &RawRequest) -> Result<&Checked, Error> {
        let key = request.key();
        let place = &mut self.checked[key.place()];
        let known = place.as_ref().is_some_and(|(of, tag, _)| (*of, *tag) == (key, request.tag));
        if !known {
            *place = None;
        }
        let checked = match place {
            Some(checked) => checked,
            None => place.insert((key, request.tag, request.check(group)?)),
        };
        Ok(&checked.2)
    }

    fn start(&mut self, group: &Group, requests: &[Request], asynchronous: bool) -> Result<Ticket, Error> {
        group.still_usable()?;
        self.serial += 1;
        let exchange = place(&mut self.exchanges);
        let mut first = None;
        for request in requests.iter().rev() {
            first = Some(self.enter(group, *request, exchange, first));
        }
        self.exchanges[exchange as usize] = Some(Exchange {
            serial: self.serial,
            first,
            left: requests.len() as u32,
            waker: None,
            keep: None,
            asynchronous,
            detached: false,
            waited: !asynchronous,
            // Its own time begins with the call.
            since: requests.iter().any(|r| r.timeout.is_some()).then(|| group.job.now()),
            reported: false,
        });
        // Numbers follow the order of the calls, which is that of the list.
        for sends in [false, true] {
            let mut at = first;
            while let Some(index) = at
                && let Some(transfer) = &self.table[index as usize]
            {
                let Request { call, peer, .. } = transfer.request;
                at = transfer.next;
                if (call.collective == Collective::Send) != sends {
                    continue;
                }
                if !sends && (peer == ANY_SOURCE || !self.unmatched.is_empty()) {
                    self.unmatched.push_back(index);
                } else {
                    self.number(group, index);
                }
            }
            if !sends {
                self.match_receives(group);
            }
        }
        if requests.is_empty() && asynchronous {
            group.detached.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(Ticket { index: exchange, serial: self.serial })
    }

    /// Gives a message its number among those of its peer, tag and direction, and posts it.
    fn number(&mut self, group: &Group, index: u32) {
        let Some(Some(transfer)) = self.table.get_mut(index as usize) else { return };
        let Request { call, peer, tag, .. } = transfer.request;
        let number = self.numbers.entry((peer, tag, call.collective == Collective::Send)).or_default();
        transfer.sequence = *number;
        transfer.started = metrics::begin(*number, &transfer.series);
        *number += 1;
        self.pump(group, index);
    }

    /// Gives a message its place in the table.
    fn enter(&mut self, group: &Group, request: Request, exchange: u32, next: Option<u32>) -> u32 {
        let Call { collective, count, data_type, .. } = request.call;
        let layout = Layout::parts(count, data_type.size_bytes() as u64, 1);
        let geometry = Geometry::new(layout, CHUNK_BYTES, CHUNK_BYTES, DEPTH);
        // Whom a message is from does not change how it is cut: from any source, this rank stands for all.
        let peer = if request.peer == ANY_SOURCE { group.rank } else { request.peer };
        let schedule = Schedule::new(collective, Algorithm::Pair, group.rank, group.ranks, peer, false);
        let Ok(schedule) = schedule else {
            unreachable!("a pair serves send and recv on any number of ranks")
        };
        let sends = collective == Collective::Send;
        let execution = match self.spare[usize::from(sends)].pop() {
            Some(mut execution) => {
                execution.restart(schedule, geometry);
                execution
            }
            None => Box::new(Execution::new(schedule, geometry)),
        };
        let index = place(&mut self.table);
        self.table[index as usize] = Some(Transfer {
            exchange,
            next,
            request,
            execution,
            sequence: 0,
            series: Series::of(collective, request.call.bytes()),
            started: None,
            done: false,
        });
        self.left += 1;
        index
    }

    /// Posts what a message may post.
    fn pump(&mut self, group: &Group, index: u32) {
        let Some(Some(transfer)) = self.table.get_mut(index as usize) else { return };
        let Request { call, peer, tag, memory, .. } = transfer.request;
        while let Some(task) = transfer.execution.poll(1) {
            let piece = transfer.execution.geometry().range_piece(
                windlass_collectives::Role::Input,
                0,
                1,
                task.first,
            );
            let id = MessageId {
                communicator: group.id,
                tag,
                sequence: transfer.sequence,
                label: 0,
                chunk: task.first,
            };
            let message = Message { id, fingerprint: pair_fingerprint(&call), bytes: piece.bytes as usize };
            let token = group.transfer_token(index, task.first);
            let sends = call.collective == Collective::Send;
            let address = memory.wrapping_add(piece.offset as usize);
            group.post_message(sends, group.members[peer as usize], &message, address, token);
        }
    }

    /// A chunk is complete. Says what has ended with it.
    pub(crate) fn delivered(&mut self, group: &Group, token: Token) -> Option<Ended> {
        let (index, chunk) = Group::split_transfer(token);
        let transfer = self.table.get_mut(index as usize)?.as_mut()?;
        transfer.execution.complete(0, chunk..chunk + 1);
        if !transfer.execution.is_done() {
            self.pump(group, index);
            return None;
        }
        transfer.done = true;
        self.left -= 1;
        let (series, started, at) = (transfer.series, transfer.started, transfer.exchange);
        let exchange = self.exchanges.get_mut(at as usize)?.as_mut()?;
        exchange.left -= 1;
        if exchange.left > 0 {
            return Some(Ended { series, started, waker: None, memory: None });
        }
        if exchange.asynchronous {
            group.detached.fetch_sub(1, Ordering::AcqRel);
        }
        let ended = Ended { series, started, waker: exchange.waker.take(), memory: exchange.keep.take() };
        if exchange.detached {
            drop(self.free(group, at));
        }
        Some(ended)
    }

    pub(crate) fn mismatched(&self, group: &Group, token: Token, peer: u32, theirs: &Message) -> Error {
        let (index, _) = Group::split_transfer(token);
        let (sequence, ours) = match self.table.get(index as usize) {
            Some(Some(t)) => (t.sequence, t.request.call.fingerprint()),
            _ => (0, Fingerprint::default()),
        };
        let theirs = Fingerprint { what: theirs.fingerprint[0], count: theirs.fingerprint[1] };
        Error::Mismatch { communicator: group.id, sequence, ours, theirs, rank: peer }
    }

    /// Forgets an exchange and withdraws what it still has under way: its memory is about to be given back. Returns the
    /// memory it kept, to be dropped when no lock is held.
    #[must_use]
    fn free(&mut self, group: &Group, index: u32) -> Option<Box<dyn Any + Send>> {
        let exchange = self.exchanges.get_mut(index as usize)?.take()?;
        let mut at = exchange.first;
        while let Some(index) = at
            && let Some(transfer) = self.table[index as usize].take()
        {
            if !transfer.done {
                self.left -= 1;
                self.unmatched.retain(|unmatched| *unmatched != index);
                for (_, chunk) in transfer.execution.in_flight() {
                    group.withdraw(group.transfer_token(index, chunk));
                }
            }
            at = transfer.next;
            let sends = transfer.request.call.collective == Collective::Send;
            self.spare[usize::from(sends)].push(transfer.execution);
        }
        if exchange.left > 0 && exchange.asynchronous {
            group.detached.fetch_sub(1, Ordering::AcqRel);
        }
        exchange.keep
    }

    #[must_use]
    fn free_if(&mut self, group: &Group, ticket: Ticket) -> Option<Box<dyn Any + Send>> {
        self.find(ticket)?;
        self.free(group, ticket.index)
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Exchange> {
        self.exchanges.get_mut(ticket.index as usize)?.as_mut().filter(|e| e.serial == ticket.serial)
    }

    /// Whether a finished exchange has not been collected by the thread that waits for it.
    fn has_ended(&self) -> bool {
        self.exchanges.iter().flatten().any(|e| e.left == 0 && e.waited)
    }

    pub(crate) const fn is_idle(&self) -> bool {
        self.left == 0
    }

    /// The communicator has failed: forgets what nobody waits for. Who waits for an exchange withdraws it himself, before its
    /// memory is his again. Returns whom to wake and what to drop when no lock is held.
    pub(crate) fn abandon(&mut self, group: &Group) -> (Vec<Waker>, Vec<Box<dyn Any + Send>>) {
        let (mut wakers, mut memory) = (Vec::new(), Vec::new());
        for index in 0..self.exchanges.len() as u32 {
            let Some(exchange) = &mut self.exchanges[index as usize] else { continue };
            wakers.extend(exchange.waker.take());
            if exchange.detached {
                memory.extend(self.free(group, index));
            }
        }
        (wakers, memory)
    }
}

/// What sender and receiver of a message share.
fn pair_fingerprint(call: &Call) -> [u64; 2] {
    let print = Call { collective: Collective::Send, root: 0, ..*call }.fingerprint();
    [print.what, print.count]
}
