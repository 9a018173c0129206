//! Runs schedules: one [`Stream`] a communicator.
//!
//! Collectives of a communicator run in the order of their calls, one at a time; different communicators never wait for each
//! other. Whoever waits drives: the stream is a state machine behind the communicator's lock, and
//! [`Stream::advance`] takes it as far as it goes without blocking.
//!
//! | module | one idea |
//! |---|---|
//! | [`flags`] | what ranks tell each other through lines: arrival, memory lent, done |
//! | [`places`] | where blocks lie, for peers that do not know how long the others are |
//! | [`bind`] | a step's spans to addresses, and the Combine over them |
//! | [`flight`] | a Combine by an accelerator's engine, over memory that moves |
//! | [`fold`] | a Combine by an operator of the program's own, without the lock |
//! | [`lists`] | memory that lies in pieces |
//! | [`shadow`] | host memory that stands in for device memory |
//! | [`relays`] | what NUMA nodes do once for all their ranks |
//! | [`plan`] | a call to its schedule, geometry and kernels, remembered |
//! | [`due`] | whom to wake and what to drop once the lock is released |
//! | [`report`] | what an operation waits for, in words and ranks |
//! | [`scratch`] | private memory for what messages bring and for partial sums |
//! | [`wait`] | how to wait when nothing can advance: spin, yield, park |
//!
//! # Who touches what
//! Everything in [`Stream`] is touched under the communicator's lock only. Peers' memory is touched only between the wait
//! for its arrival and the signal that one is done, as the schedule orders it; the proof in `collectives` shows that this suffices.

pub(crate) mod bind;
mod due;
mod flags;
mod flight;
mod fold;
mod lists;
mod places;
pub(crate) mod plan;
mod relays;
mod report;
pub(crate) mod scratch;
pub(crate) mod shadow;
pub(crate) mod wait;

use std::any::Any;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Instant;

use windlass_collectives::{Action, Algorithm, Call, Execution, Fingerprint, History, Peers, Schedule, Task};
use windlass_memory::{Mapping, Segment};
use windlass_transports::message::COLLECTIVE_TAG;
use windlass_transports::shm::{Lend, WAYS};
use windlass_transports::{Message, MessageId, Token};

use crate::error::Error;
use crate::group::{Group, Limit};
use crate::list::Tables;
use crate::metrics::Recorder;
use crate::request::RawRequest;
pub(crate) use due::Due;
use plan::{Plan, Plans};
use scratch::Scratch;

/// A call that has its place in the order.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Shared with the remembered plans only, under the same lock.
    pub(crate) plan: Rc<Plan>,
    pub(crate) input: *mut u8,
    pub(crate) output: *mut u8,
    /// Where operand and result lie in pieces.
    pub(crate) lists: Option<Tables>,
    /// Nobody waits in the call: the progress thread looks after it.
    pub(crate) asynchronous: bool,
    /// Its own time limit.
    pub(crate) limit: Option<Limit>,
}

/// What one peer lends for the operation under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent {
    /// Where block 0 of its input would begin, in this process; where lengths are private, the block that it lends this rank.
    pub(crate) input: *mut u8,
    /// The same for its output.
    pub(crate) output: *mut u8,
    /// It lends its stage instead.
    pub(crate) staged: bool,
    /// Where those are device memory: their segments, and the generations at which they were lent.
    pub(crate) segments: [(u32, u32); 2],
    /// One more than the number of the operation for which its arrival has been seen and checked.
    pub(crate) known: u64,
}

const NOTHING: Lent = Lent {
    input: std::ptr::null_mut(),
    output: std::ptr::null_mut(),
    staged: false,
    segments: [(0, 0); 2],
    known: 0,
};

/// A wait that has been handed out and is not over.
#[derive(Clone, Copy, Debug)]
struct OpenWait {
    step: u32,
    from: Peers,
    done: u32,
    total: u32,
}

/// The operation at the head of the order.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) sequence: u64,
    pub(crate) plan: Rc<Plan>,
    pub(crate) fingerprint: Fingerprint,
    /// Where block 0 of the operand would begin: the caller's memory.
    pub(crate) input: *mut u8,
    /// The same for the result.
    pub(crate) output: *mut u8,
    /// What this rank lends: its own memory or its stage.
    lends: (Lend, Lend),
    /// Its memory, or a peer's, goes through a stage: chunks are handed on one by one.
    pub(crate) staged: bool,
    started: Option<u64>,
    asynchronous: bool,
    /// When it was first found unable to go on.
    pub(crate) blocked: Option<Instant>,
    /// Its own time limit.
    pub(crate) limit: Option<Limit>,
}

impl Active {
    fn lends_stage(&self) -> bool {
        self.lends.0 == Lend::Stage
    }
}

/// The operations of one communicator. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The number the next call gets.
    next: u64,
    queue: VecDeque<Pending>,
    active: Option<Active>,
    /// Borrowed from the active operation's plan.
    execution: Option<Box<Execution>>,
    waits: [Option<OpenWait>; 3],
    /// Each peer's memory for the operation under way.
    pub(crate) lent: Vec<Lent>,
    /// Peers' segments this stream has met, so that the job's table is asked once each.
    met: Vec<Vec<Option<Arc<Mapping>>>>,
    /// One's own segment that the last operation used.
    recent: Option<Arc<Segment>>,
    /// Every peer has ended the operations below this.
    released: u64,
    plans: Plans,
    pub(crate) inputs: Vec<*const u8>,
    pub(crate) outputs: Vec<*mut u8>,
    pub(crate) scratch: Scratch,
    /// Combines that an accelerator's engine does.
    flights: flight::Flights,
    /// Memory of the active operation that lies in pieces.
    lists: lists::Lists,
    /// A Combine that a user's operator does.
    folding: fold::Folding,
    /// Host memory in the place of the active operation's device memory.
    shadow: Option<shadow::Shadow>,
    spare_shadow: Vec<scratch::Line>,
    /// The active operation reaches device memory, its own or a peer's, where it lies.
    devices: bool,
    /// What peers have comes by messages, which the device's memory is the source and the target of.
    by_messages: bool,
    /// Signals were raised after which nobody has looked for sleepers.
    unrung: bool,
    /// An operation has ended since: its waiters sleep on this rank, too.
    ended_unrung: bool,
    /// Memory of operations whose futures were dropped, kept until they end.
    keep: Vec<(u64, Box<dyn Any + Send>)>,
    /// Empty; its memory serves every look at the transport.
    pub(crate) events: Vec<windlass_transports::Event>,
    /// Who is to be woken when the operation of this number has ended; NOW: at once.
    wakers: Vec<(u64, Waker)>,
    pub(crate) recorder: Recorder,
    /// The calls that have begun, summed up.
    history: History,
    /// The last of them, by sequence.
    calls: [Fingerprint; RECENT as usize],
    /// Threads that wait for an operation and drive the stream meanwhile.
    pub(crate) waiters: u32,
}

// SAFETY: the raw pointers refer to memory that the operations own or borrow until they end, and to mappings that the
// stream keeps; the counted plans are reached through the stream alone; and it is only touched under its communicator's lock.
unsafe impl Send for Stream {}

/// How far a call to [`Stream::advance`] came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    /// Nothing is pending.
    Idle,
    /// Something moved; more may.
    Moved,
    /// What is pending waits for others.
    Blocked,
}

impl Stream {
    pub(crate) fn new(ranks: usize, recorder: Recorder) -> Self {
        Self {
            next: 0,
            queue: VecDeque::with_capacity(16),
            active: None,
            execution: None,
            waits: [None; 3],
            lent: vec![NOTHING; ranks],
            met: vec![Vec::new(); ranks],
            recent: None,
            released: 0,
            plans: Plans::default(),
            inputs: vec![std::ptr::null(); ranks.max(2)],
            outputs: vec![std::ptr::null_mut(); ranks.max(2)],
            scratch: Scratch::default(),
            flights: flight::Flights::default(),
            lists: lists::Lists::default(),
            folding: fold::Folding::default(),
            shadow: None,
            spare_shadow: Vec::new(),
            devices: false,
            by_messages: false,
            unrung: false,
            ended_unrung: false,
            keep: Vec::new(),
            events: Vec::new(),
            wakers: Vec::new(),
            recorder,
            history: History::default(),
            calls: [Fingerprint::default(); RECENT as usize],
            waiters: 0,
        }
    }

    /// The number the next call gets.
    pub(crate) const fn next_sequence(&self) -> u64 {
        self.next
    }

    /// A request with its plan, found right. What is refused here has not been called.
    #[inline]
    pub(crate) fn admit(
        &mut self,
        group: &Group,
        request: &RawRequest,
        asynchronous: bool,
    ) -> Result<Pending, Error> {
        let plan = self.plans.of(group, request)?;
        request.check_memory(group, &plan.checked)?;
        // The clock is asked by those alone that have a limit of their own.
        let limit = request.timeout.and_then(|timeout| Limit::new(timeout, group.job.now()));
        let lists = request.is_listed().then(|| request.tables(&plan.checked, &mut self.lists.spare));
        let (input, output) = (request.input.cast_mut(), request.output);
        Ok(Pending { plan, input, output, lists, asynchronous, limit })
    }

    /// Gives a call its place in the order.
    pub(crate) fn post(&mut self, pending: Pending) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.queue.push_back(pending);
        sequence
    }

    /// Gives a call its place in the order and begins it if nothing is before it.
    #[inline]
    pub(crate) fn enter(&mut self, group: &Group, pending: Pending) -> u64 {
        let sequence = self.next;
        if self.has_work() || !self.may_begin(group, sequence) {
            return self.post(pending);
        }
        self.next += 1;
        self.begin(group, pending, sequence);
        sequence
    }

    pub(crate) fn has_work(&self) -> bool {
        self.active.is_some() || !self.queue.is_empty()
    }

    pub(crate) fn active_mut(&mut self) -> Option<&mut Active> {
        self.active.as_mut()
    }

    pub(crate) fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// Goes as far as possible without waiting.
    ///
    /// # Errors
    /// What makes the communicator unusable; the caller records it and calls [`abandon`](Self::abandon).
    pub(crate) fn advance(&mut self, group: &Group) -> Result<Status, Error> {
        let mut status = Status::Idle;
        loop {
            if self.active.is_none() {
                let sequence = self.next - self.queue.len() as u64;
                if self.queue.is_empty() {
                    return Ok(status);
                }
                if !self.may_begin(group, sequence) {
                    return Ok(if status == Status::Moved { status } else { Status::Blocked });
                }
                if let Some(pending) = self.queue.pop_front() {
                    self.begin(group, pending, sequence);
                }
            }
            if self.step(group)? {
                status = Status::Moved;
            } else {
                return Ok(if status == Status::Moved { status } else { Status::Blocked });
            }
        }
    }

    /// Whether no peer is too far behind for operation `sequence` to begin.
    #[inline]
    fn may_begin(&mut self, group: &Group, sequence: u64) -> bool {
        let Some(board) = &group.board else { return true };
        if sequence < self.released + WAYS {
            return true;
        }
        // Our line and slot of WAYS operations ago may still be read by a peer that has not ended it.
        let ended = (0..group.ranks as usize).filter(|&q| q != group.rank as usize);
        self.released = ended.map(|q| board.ended(q).load()).min().unwrap_or(u64::MAX - WAYS);
        sequence < self.released + WAYS
    }

    /// Begins the call at the head of the order.
    fn begin(&mut self, group: &Group, pending: Pending, sequence: u64) {
        let Pending { plan, input, output, lists, asynchronous, limit } = pending;
        if let Some(cut) = lists.as_ref().and_then(|lists| lists.cut) {
            self.history = self.history.with(cut);
        }
        let (input, output) = self.lists.begin(group, lists, (input, output));
        let started = self.recorder.begin(sequence, &plan.series);
        let (first_in, first_out) = plan.first_blocks;
        let (input, output) = self.on_host(group, &plan, input, output);
        let lends = self.lends(group, &plan, input, output);
        let (input, output) = (input.wrapping_sub(first_in), output.wrapping_sub(first_out));
        let staged = lends.0 == Lend::Stage;
        self.execution = Some(plan.execution(staged));
        if !self.by_messages {
            self.scratch.reserve(group, plan.scratch);
        }
        let fingerprint = plan.fingerprint;
        let history = self.history;
        self.history = history.with(fingerprint);
        let fingerprint = fingerprint.after(history);
        self.calls[(sequence % RECENT) as usize] = fingerprint;
        self.active = Some(Active {
            sequence,
            plan,
            fingerprint,
            input,
            output,
            lends,
            staged,
            started,
            asynchronous,
            blocked: None,
            limit,
        });
    }

    /// Does what is ready, then looks at what is waited for. Whether anything moved.
    fn step(&mut self, group: &Group) -> Result<bool, Error> {
        let Some(active) = &self.active else { return Ok(false) };
        let messages = !active.plan.choice.algorithm.needs_mapped_peers();
        let mut moved = std::mem::take(&mut self.flights.taken_on);
        self.attend(group);
        if self.shadow.is_some() && !self.enter_shadow(group)? {
            return Ok(moved);
        }
        loop {
            let limit = self.limit();
            while self.flights.has_room()
                && self.folding.is_idle()
                && let Some(task) = self.execution.as_mut().and_then(|e| e.poll(limit))
            {
                moved = true;
                let Task { step, first, end, .. } = task;
                self.perform(group, &task, step, first, end);
            }
            if self.execution.as_ref().is_some_and(|e| e.is_done()) {
                if self.shadow.is_some() && !self.leave_shadow(group)? {
                    return Ok(moved);
                }
                if messages {
                    group.job.acknowledge();
                }
                self.finish(group);
                return Ok(true);
            }
            // What an arrival allows is done before anything else is looked at. A peer is done only after it has arrived, so
            // while the arrivals of a single chunk are awaited its other line is left alone: a look takes it from its owner.
            let arrived = self.look(group, 0)?;
            let reached = arrived
                || self.waits[0].is_none_or(|w| w.total != 1)
                    && (self.look(group, 1)? || self.look(group, 2)?);
            // Without messages under way the transport is not looked at: that would only slow the look at the lines.
            let flown = !self.flights.is_empty() && self.fly(group)?;
            if flown {
                self.attend(group);
            }
            if !(reached || flown || messages && group.job.deliver(group, self)?) {
                return Ok(moved);
            }
            moved = true;
        }
    }

    /// The most chunks of a task.
    #[inline]
    fn limit(&self) -> u32 {
        match &self.active {
            Some(active)
                if active.staged
                    || self.by_messages
                    || active.plan.choice.algorithm == Algorithm::Hierarchical =>
            {
                1
            }
            Some(active) if self.devices => {
                (flight::TASK_BYTES / active.plan.choice.piece_bytes.max(1)).max(1) as u32
            }
            _ => u32::MAX,
        }
    }

    /// The task's numbers come once more, in registers. Read back from memory as a pair, they would have to wait for the stores before them to
    /// reach the cache, and behind a signal that is as long as the line takes to come from its readers.
    fn perform(&mut self, group: &Group, task: &Task, step: u32, first: u32, end: u32) {
        match task.action {
            Action::Signal { phase } => {
                self.signal(group, phase, first, end);
                self.complete(step, first, end);
            }
            Action::Wait { phase, from } => {
                let wait = OpenWait { step, from, done: first, total: end };
                let slot = &mut self.waits[phase as usize];
                match slot {
                    Some(open) => open.total = end,
                    None => *slot = Some(wait),
                }
            }
            Action::Send { to, label, .. } | Action::Recv { from: to, label, .. } => {
                self.post_messages(group, task, to, label);
            }
            Action::Copy { .. }
            | Action::Reduce { .. }
            | Action::Gather { .. }
            | Action::Fetch { .. }
            | Action::Scan { .. } => {
                if self.combine(group, task) {
                    self.complete(step, first, end);
                }
            }
        }
    }

    pub(crate) fn complete(&mut self, step: u32, first: u32, end: u32) {
        if let Some(execution) = &mut self.execution {
            execution.complete(step, first..end);
        }
    }

    fn post_messages(&mut self, group: &Group, task: &Task, peer: u32, label: u32) {
        for chunk in task.first..task.end {
            let Some((address, bytes)) = self.message_memory(task, chunk) else { return };
            let Some(active) = &self.active else { return };
            let id = MessageId {
                communicator: group.id,
                tag: COLLECTIVE_TAG,
                sequence: active.sequence,
                label,
                chunk,
            };
            let fingerprint = [active.fingerprint.what, active.fingerprint.count];
            let message = Message { id, fingerprint, bytes };
            let token = group.token(task.step, chunk);
            let sends = matches!(task.action, Action::Send { .. });
            group.post_message(sends, group.members[peer as usize], &message, address, token);
        }
    }

    /// The last calls that have begun, with their numbers.
    pub(crate) fn recent_calls(&self) -> Vec<(u64, [u64; 2])> {
        let begun = self.next - self.queue.len() as u64;
        let calls = (begun.saturating_sub(RECENT)..begun).map(|s| (s, self.calls[(s % RECENT) as usize]));
        calls.map(|(s, print)| (s, [print.what, print.count])).collect()
    }

    /// Takes completions of messages.
    pub(crate) fn delivered(&mut self, token: Token) {
        let (step, chunk) = Group::split_token(token);
        self.complete(step, chunk, chunk + 1);
    }

    /// The call that met a peer's different one on a message.
    pub(crate) fn mismatched(&self, group: &Group, rank: u32, theirs: [u64; 2]) -> Error {
        let theirs = Fingerprint { what: theirs[0], count: theirs[1] };
        let (sequence, ours) =
            self.active.as_ref().map_or((self.next, theirs), |a| (a.sequence, a.fingerprint));
        Error::Mismatch { communicator: group.id, sequence, ours, theirs, rank }
    }

    fn finish(&mut self, group: &Group) {
        let Some(active) = self.active.take() else { return };
        debug_assert!(self.waits.iter().all(Option::is_none));
        if let Some(execution) = self.execution.take() {
            active.plan.keep(active.lends_stage(), execution);
        }
        if let Some(board) = &group.board {
            board.ended(group.rank as usize).store(active.sequence + 1);
            flags::keep_fresh(board, group.rank, active.sequence);
            flags::prepare_next(group, board, &active);
        }
        self.recorder.record(&active.plan.series, active.started);
        group.ended.store(active.sequence + 1, Ordering::Release);
        if active.asynchronous {
            group.detached.fetch_sub(1, Ordering::AcqRel);
        }
        (self.unrung, self.ended_unrung) = (true, true);
    }

    /// The communicator is gone.
    pub(crate) fn close(&mut self, group: &Group) {
        self.flights.close(group);
        self.scratch.close(group);
    }

    /// The communicator has failed: gives up what is under way, so that nobody writes its memory any more.
    ///
    /// Peers that have mapped lent memory may be stopped in the middle of a store; the pages they could still write are taken
    /// back from them. Messages are withdrawn.
    pub(crate) fn abandon(&mut self, group: &Group) {
        self.waits = [None; 3];
        self.folding.clear();
        self.ground(group);
        let _leaves_until_withdrawn = self.shadow.take();
        let asynchronous = self.queue.iter().filter(|p| p.asynchronous).count()
            + usize::from(self.active.as_ref().is_some_and(|a| a.asynchronous));
        group.detached.fetch_sub(asynchronous, Ordering::AcqRel);
        self.queue.clear();
        let Some(active) = self.active.take() else { return };
        flags::take_back(group, &active);
        self.recorder.record_error(&active.plan.series);
        if let Some(execution) = self.execution.take() {
            for (step, chunk) in execution.in_flight() {
                group.withdraw(group.token(step, chunk));
            }
        }
        self.detach_output(group, &active);
    }
}

/// How many calls are compared with other ranks' when one of them does not end.
const RECENT: u64 = 8;

/// A schedule for either kind of memory.
pub(crate) fn schedules(group: &Group, call: &Call, algorithm: Algorithm) -> Option<(Schedule, Schedule)> {
    let root = if call.collective.rooted() { call.root } else { 0 };
    let of = |staged| {
        let schedule =
            Schedule::new(call.collective, algorithm, group.rank, group.ranks, root, staged).ok()?;
        Some(match &group.topology.nodes {
            Some(nodes) => schedule.on(nodes),
            None => schedule,
        })
    };
    Some((of(false)?, of(true)?))
}
