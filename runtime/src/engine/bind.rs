//! A step's spans to addresses, and the Combine over them: the one place that calls the kernels.

use std::rc::Rc;

use windlass_collectives::{Action, Blocks, Geometry, Operands, Piece, Role, Span, Take, Task};
use windlass_kernels::{Combine, DataType, Store};

use crate::fault;
use crate::group::Group;
use crate::list::{Table, Tables};
use crate::request::RawRequest;

use super::plan::Plan;
use super::relays::relays;
use super::{Active, Stream};

/// Multiplies a checked request's operand by its scalar, into its result. That precedes the schedule: peers read only what is
/// scaled already, and need not know the scalar.
pub(crate) fn scale(request: &RawRequest, mut tables: Tables) {
    // A checked request is of a type that can be scaled.
    let Ok(combine) = Combine::scale(request.data_type) else { return };
    let size = request.data_type.size_bytes();
    let mut done = 0;
    while done < request.count {
        let (from, first) = place(tables.input.as_mut(), request.input.cast_mut(), done * size);
        let to = if tables.same { tables.input.as_mut() } else { tables.output.as_mut() };
        let (to, second) = place(to, request.output, done * size);
        let run = (request.count - done).min(first / size).min(second / size);
        // SAFETY: the request was checked: an all_reduce, whose operand and result are of `count` elements of host memory, the same
        // or apart, of which these are in one piece; whoever made it promises that they are valid and nobody else's until the operation ends.
        unsafe {
            combine.run(&[from.cast_const()], &[to], run, request.scalar.to_bits(), Store::Cached);
        }
        done += run;
    }
}

/// Where a byte of a vector lies that is in one piece, or in those of a table, and how many lie there together.
fn place(table: Option<&mut Table>, base: *mut u8, offset: usize) -> (*mut u8, usize) {
    match table {
        Some(table) => table.at(offset as u64),
        None => (base.wrapping_add(offset), usize::MAX),
    }
}

/// Copies from memory to memory of this rank: a message to itself, or a list's pieces. Both have been checked: valid, and apart.
pub(crate) fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: whoever made the requests promises that what they name is valid for so many bytes, and nobody else's, until the operation ends.
        unsafe { Combine::copy(DataType::U8).run(&[from], &[to], bytes, 1, Store::Cached) };
    }
}

impl Stream {
    /// Executes a Copy, Reduce or Gather for the task's chunks. False when an accelerator, or an operator of the program's own, has yet to do it.
    pub(crate) fn combine(&mut self, group: &Group, task: &Task) -> bool {
        if fault::skips_combine() {
            return true;
        }
        if self.devices {
            return self.combine_by_engine(group, task);
        }
        self.combine_here(group, task);
        if self.folding.is_idle() {
            return true;
        }
        self.folding.begin((task.step, task.first, task.end));
        false
    }

    /// On device memory a task is a piece or a few, each a flight.
    fn combine_by_engine(&mut self, group: &Group, task: &Task) -> bool {
        self.flights.task = (task.step, task.first, task.end);
        let before = self.flights.count();
        self.combine_here(group, task);
        self.flights.count() == before
    }

    fn combine_here(&mut self, group: &Group, task: &Task) {
        if let Some(active) = &self.active
            && !(active.staged || self.devices)
            && let Some(&Some(run)) = active.plan.bound.get(task.step as usize)
        {
            return self.combine_bound(group, &task.action, &run);
        }
        match task.action {
            Action::Copy { whose, from, to } => self.copy(group, whose, from, to, task.first, task.end),
            Action::Reduce { inputs, outputs, last } => {
                self.reduce(group, inputs, outputs, last, task.first, task.end);
            }
            Action::Gather { from, take } => self.gather(group, from, take, task.first, task.end),
            Action::Fetch { from, blocks, to } => {
                self.fetch(group, from, blocks, to, (task.first, task.end));
            }
            Action::Scan { exclusive } => self.scan(group, exclusive, task.first, task.end),
            _ => {}
        }
    }

    /// A Combine of which all but the addresses was worked out before.
    #[inline]
    fn combine_bound(&mut self, group: &Group, action: &Action, run: &Run) {
        match *action {
            Action::Copy { whose, from, to } => {
                let source = match whose {
                    Some(q) => self.of_peer(group, q, from.role).0,
                    None => self.own(group, from.role),
                };
                let target = self.own(group, to.role).wrapping_add(run.offset);
                self.copy_bytes(group, source.wrapping_add(run.offset), target, run.bytes, to.role);
            }
            Action::Reduce { inputs, outputs, .. } => {
                self.fold(group, inputs, outputs, run.divisor, run.bytes, |_| run.offset);
            }
            Action::Gather { from, take } => {
                let (own, output) = (self.own(group, Role::Input), self.own(group, Role::Output));
                for q in from_next(group) {
                    let source = if q == group.rank { own } else { self.of_peer(group, q, from).0 };
                    let block = if take == Take::Ours { group.rank } else { q };
                    let [s, t] = [block, q].map(|block| block as usize * run.bytes);
                    let (source, target) = (source.wrapping_add(s), output.wrapping_add(t));
                    self.copy_bytes(group, source, target, run.bytes, Role::Output);
                }
            }
            _ => {}
        }
    }

    /// The memory of a message's chunk.
    pub(crate) fn message_memory(&mut self, task: &Task, chunk: u32) -> Option<(*mut u8, usize)> {
        let (Action::Send { from: span, .. } | Action::Recv { into: span, .. }) = task.action else {
            return None;
        };
        let Blocks::Range { first, end } = span.blocks else { return None };
        let active = self.active()?;
        let piece = active.plan.geometry.range_piece(span.role, first, end, chunk);
        let origin = match span.role {
            Role::Input => active.input,
            Role::Output => active.output,
            role => self.scratch.base(role),
        };
        Some((origin.wrapping_add(piece.offset as usize), piece.bytes as usize))
    }

    /// The active operation's plan, to be looked at while the stream changes.
    pub(super) fn plan(&self) -> Option<Rc<Plan>> {
        self.active.as_ref().map(|active| Rc::clone(&active.plan))
    }

    /// Where block 0 of a role of this rank begins.
    #[inline]
    pub(super) fn own(&mut self, group: &Group, role: Role) -> *mut u8 {
        let Some(active) = self.active() else { return std::ptr::null_mut() };
        match (role, &group.board) {
            (Role::Input, _) => active.input,
            (Role::Output, _) => active.output,
            (Role::Slot, Some(board)) => slot(board, group.rank, active),
            (Role::Stage, Some(board)) => board.stage(group.rank as usize).as_ptr(),
            (role, _) => self.scratch.base(role),
        }
    }

    /// Where block 0 of a role of another rank begins, and the role it is resolved to.
    #[inline]
    pub(super) fn of_peer(&self, group: &Group, q: u32, role: Role) -> (*mut u8, Role) {
        let (Some(active), Some(board)) = (self.active(), &group.board) else {
            return (std::ptr::null_mut(), role);
        };
        let lent = &self.lent[q as usize];
        debug_assert!(
            q == group.rank || lent.known == active.sequence + 1,
            "a peer's memory is touched after its arrival only"
        );
        match role {
            Role::Slot => (slot(board, q, active), role),
            _ if lent.staged => (board.stage(q as usize).as_ptr(), Role::Stage),
            Role::Output => (lent.output, role),
            _ => (lent.input, role),
        }
    }

    fn copy(&mut self, group: &Group, whose: Option<u32>, from: Span, to: Span, first: u32, end: u32) {
        let Some(plan) = self.plan() else { return };
        let geometry = &plan.geometry;
        let (source, source_role) = match whose {
            Some(q) => self.of_peer(group, q, from.role),
            None => (self.own(group, from.role), from.role),
        };
        let target = self.own(group, to.role);
        let mut copy = |s: Piece, t: Piece| {
            let (source, target) =
                (source.wrapping_add(s.offset as usize), target.wrapping_add(t.offset as usize));
            self.copy_bytes(group, source, target, s.bytes as usize, to.role);
        };
        if let (Blocks::Range { first: a, end: b }, Blocks::Range { first: c, end: d }) =
            (from.blocks, to.blocks)
        {
            for chunk in first..end {
                copy(
                    geometry.range_piece(source_role, a, b, chunk),
                    geometry.range_piece(to.role, c, d, chunk),
                );
            }
            return;
        }
        let ring = source_role == Role::Stage || to.role == Role::Stage;
        let is_told = whose.is_some() && plan.call.collective.has_private_lengths();
        for_blocks(group, &plan, from.blocks, |block| {
            runs(ring, first, end, |a, b| {
                let source = if is_told {
                    geometry.lent_piece(source_role, block, block, a, b)
                } else {
                    geometry.block_piece(source_role, block, a, b)
                };
                copy(source, geometry.block_piece(to.role, block, a, b));
            });
        });
    }

    fn gather(&mut self, group: &Group, from: Role, take: Take, first: u32, end: u32) {
        let (Some(plan), Some(active)) = (self.plan(), self.active()) else { return };
        let (geometry, own, output) = (&plan.geometry, active.input, active.output);
        let is_told = plan.call.collective.has_private_lengths();
        for q in from_next(group) {
            let (source, role) =
                if q == group.rank { (own, Role::Input) } else { self.of_peer(group, q, from) };
            runs(role == Role::Stage, first, end, |a, b| {
                let block = if take == Take::Ours { group.rank } else { q };
                let s = if is_told && q != group.rank {
                    geometry.lent_piece(role, block, q, a, b)
                } else {
                    geometry.block_piece(role, block, a, b)
                };
                let t = geometry.block_piece(Role::Output, q, a, b);
                let source = source.wrapping_add(s.offset as usize);
                let target = output.wrapping_add(t.offset as usize);
                self.copy_bytes(group, source, target, s.bytes as usize, Role::Output);
            });
        }
    }

    /// This rank's block of every rank's scan, the last rank's first: see [`Action::Scan`]. Chunk by chunk, as the operands are read again for each.
    fn scan(&mut self, group: &Group, exclusive: bool, first: u32, end: u32) {
        let Some(plan) = self.plan() else { return };
        let geometry = &plan.geometry;
        let block = |role| Span::one(role, group.rank);
        for chunk in first..end {
            for q in (u32::from(exclusive)..group.ranks).rev() {
                let inputs = Operands::First(q + u32::from(!exclusive), block(Role::Input));
                let outputs = Operands::Of(q, block(Role::Output));
                let piece = |role| geometry.block_piece(role, group.rank, chunk, chunk + 1);
                self.reduce_pieces(group, inputs, outputs, 1, piece);
            }
        }
    }

    pub(super) fn copy_bytes(
        &mut self,
        group: &Group,
        source: *const u8,
        target: *mut u8,
        bytes: usize,
        to: Role,
    ) {
        let Some(active) = &self.active else { return };
        if bytes == 0 || std::ptr::eq(source, target) {
            return;
        }
        // Between peers that reach each other's memory only the host's is copied, to the stage and from it.
        if self.by_messages {
            return self.launch_copy(group, source, target, bytes);
        }
        let store = active.store(to);
        if self.lists.in_use {
            let mut done = 0;
            while done < bytes {
                let (from, to, run) =
                    self.lists.pair(source.wrapping_add(done), target.wrapping_add(done), bytes - done);
                if !std::ptr::eq(from, to) {
                    // SAFETY: as below, of what lies in one piece.
                    unsafe { active.plan.copy.run(&[from], &[to], run, 1, store) };
                }
                done += run;
            }
            return;
        }
        // SAFETY: both ranges lie in memory that the operation owns, borrows or was lent, by the layout's bounds; the
        // schedule's proof shows that they do not overlap and that nobody else accesses them in a conflicting way now.
        unsafe { active.plan.copy.run(&[source], &[target], bytes, 1, store) };
    }

    fn reduce(
        &mut self,
        group: &Group,
        inputs: Operands,
        outputs: Operands,
        last: bool,
        first: u32,
        end: u32,
    ) {
        let (Some(plan), Some(active)) = (self.plan(), self.active()) else { return };
        let (geometry, ring) = (&plan.geometry, active.staged);
        let divisor = if last { u64::from(group.ranks) } else { 1 };
        let target = spans_of(outputs)[0];
        if let Blocks::Range { first: a, end: b } = target.blocks {
            for chunk in first..end {
                let piece = |role| geometry.range_piece(role, a, b, chunk);
                self.reduce_pieces(group, inputs, outputs, divisor, piece);
            }
            return;
        }
        let block_of = |block| move |role, a, b| geometry.block_piece(role, block, a, b);
        for_blocks(group, &plan, target.blocks, |block| {
            let piece_of = block_of(block);
            let inputs = match inputs {
                Operands::Relays(_) => Operands::Relays(Blocks::One(block)),
                inputs => inputs,
            };
            runs(ring, first, end, |a, b| {
                self.reduce_pieces(group, inputs, outputs, divisor, |role| piece_of(role, a, b));
            });
        });
    }

    /// One call of the kernel: the same piece of every operand.
    fn reduce_pieces(
        &mut self,
        group: &Group,
        inputs: Operands,
        outputs: Operands,
        divisor: u64,
        piece: impl Fn(Role) -> Piece,
    ) {
        // The same offset in every memory of the same shape: worked out once, not for each operand.
        let user = piece(Role::Input);
        self.fold(group, inputs, outputs, divisor, user.bytes as usize, |role| {
            if is_whole(role) { user.offset as usize } else { piece(role).offset as usize }
        });
    }

    /// Calls the kernel over `bytes` bytes of every operand, which begin at `at(role)` behind block 0 of its memory.
    #[inline(always)]
    fn fold(
        &mut self,
        group: &Group,
        inputs: Operands,
        outputs: Operands,
        divisor: u64,
        bytes: usize,
        at: impl Fn(Role) -> usize,
    ) {
        let input_count = match inputs {
            Operands::Mine(span) => {
                self.inputs[0] = self.own(group, span.role).wrapping_add(at(span.role));
                1
            }
            Operands::Pair(a, b) => {
                self.inputs[0] = self.own(group, a.role).wrapping_add(at(a.role));
                self.inputs[1] = self.own(group, b.role).wrapping_add(at(b.role));
                2
            }
            Operands::All(span) => self.operands_below(group, group.ranks, span, at(Role::Input), &at),
            Operands::First(ranks, span) => self.operands_below(group, ranks, span, at(Role::Input), &at),
            Operands::Received(ranks, _) => {
                for q in 0..ranks {
                    let role = if q == group.rank { Role::Input } else { Role::Partial(q as u16) };
                    self.inputs[q as usize] = self.own(group, role).wrapping_add(at(role));
                }
                ranks as usize
            }
            Operands::Node(span) => self.operands_of_node(group, span, &at),
            Operands::Relays(blocks) => self.sums_of_relays(group, blocks, at(Role::Stage)),
            // No step reads one other rank's operand but to copy it.
            Operands::Of(..) => {
                unreachable!("a reduction reads one's own operands, or those of the first ranks")
            }
        };
        let output_count = match outputs {
            Operands::All(span) => {
                for q in 0..group.ranks {
                    let (origin, role) = self.of_peer(group, q, span.role);
                    self.outputs[q as usize] = origin.wrapping_add(at(role));
                }
                self.outputs[group.rank as usize] = self.own(group, span.role).wrapping_add(at(span.role));
                group.ranks as usize
            }
            Operands::Node(span) => self.results_of_node(group, span, &at),
            Operands::Of(q, span) if q != group.rank => {
                let (origin, role) = self.of_peer(group, q, span.role);
                self.outputs[0] = origin.wrapping_add(at(role));
                1
            }
            Operands::Mine(span)
            | Operands::Pair(span, _)
            | Operands::First(_, span)
            | Operands::Of(_, span) => {
                self.outputs[0] = self.own(group, span.role).wrapping_add(at(span.role));
                1
            }
            Operands::Received(..) | Operands::Relays(_) => {
                unreachable!("what was received or is held ready is read, and nothing stored to it")
            }
        };
        let Some(active) = &self.active else { return };
        let count = bytes >> active.plan.element_shift;
        if count == 0 {
            return;
        }
        if self.devices {
            return self.launch(group, (input_count, output_count), bytes, divisor);
        }
        if active.plan.operator.is_some() {
            let (inputs, outputs) = (&self.inputs[..input_count], &self.outputs[..output_count]);
            return self.folding.push(inputs, outputs, bytes);
        }
        let store = active.store(spans_of(outputs)[0].role);
        if self.lists.in_use {
            let (inputs, outputs) = (&mut self.inputs[..input_count], &mut self.outputs[..output_count]);
            self.lists.aim(inputs, outputs);
            let (mut done, shift) = (0, active.plan.element_shift);
            while done < bytes {
                let run = self.lists.run(inputs, outputs, done, bytes - done) >> shift;
                assert!(run > 0, "lists are as long as their vector, and cut between elements");
                // SAFETY: as below, of what lies in one piece.
                unsafe { active.plan.reduce.run(inputs, outputs, run, divisor, store) };
                done += run << shift;
            }
            return;
        }
        // SAFETY: every range lies in memory that the operation owns, borrows or was lent, by the layout's bounds; an output
        // equals an input or lies apart; the schedule's proof shows that nobody accesses them in a conflicting way now.
        unsafe {
            let (inputs, outputs) = (&self.inputs[..input_count], &self.outputs[..output_count]);
            active.plan.reduce.run(inputs, outputs, count, divisor, store);
        }
    }
}

impl Stream {
    /// The operands of the ranks below `ranks`, in their order; how many they are.
    #[inline(always)]
    fn operands_below(
        &mut self,
        group: &Group,
        ranks: u32,
        span: Span,
        own: usize,
        at: &impl Fn(Role) -> usize,
    ) -> usize {
        for q in 0..ranks {
            let (origin, role) = self.of_peer(group, q, span.role);
            self.inputs[q as usize] = origin.wrapping_add(at(role));
        }
        // One's own operand comes from the caller's memory: what was just stored to a slot is still on its way
        // to the cache, and reading it would wait for that.
        if group.rank < ranks {
            self.inputs[group.rank as usize] = self.own(group, Role::Input).wrapping_add(own);
        }
        ranks as usize
    }
}

/// All ranks, from the next one on, so that not all ranks read the same peer at once.
fn from_next(group: &Group) -> impl Iterator<Item = u32> + use<> {
    (group.rank + 1..group.ranks).chain(0..=group.rank)
}

impl Active {
    /// How results are stored to `to`. What goes through a stage is wanted soon again.
    #[inline]
    fn store(&self, to: Role) -> Store {
        let past = self.plan.streaming && !self.staged && to != Role::Stage;
        if past { Store::Streaming } else { Store::Cached }
    }
}

/// What of a Combine over a single piece can be worked out before the memory is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// From block 0 of every operand, in bytes.
    offset: usize,
    /// Of the piece; of a Gather, of each block.
    bytes: usize,
    divisor: u64,
}

impl Run {
    /// Of `action` in a schedule whose steps are all of one chunk; `None` when it is no Combine, or one over several pieces.
    pub(crate) fn of(action: &Action, geometry: &Geometry, ranks: u32) -> Option<Self> {
        let (sources, targets, divisor) = match *action {
            Action::Copy { from, to, .. } => ([from; 2], [to; 2], 1),
            Action::Reduce { inputs, outputs, last } => {
                (spans_of(inputs), spans_of(outputs), if last { u64::from(ranks) } else { 1 })
            }
            Action::Gather { .. } => {
                let bytes = geometry.layout.stride()? as usize;
                return Some(Self { offset: 0, bytes, divisor: 1 });
            }
            _ => return None,
        };
        let piece = |span: Span| match span.blocks {
            _ if !is_whole(span.role) => None,
            Blocks::Range { first, end } => Some(geometry.range_piece(span.role, first, end, 0)),
            Blocks::One(block) => Some(geometry.block_piece(span.role, block, 0, 1)),
            Blocks::Each if geometry.layout.blocks() == 1 => Some(geometry.block_piece(span.role, 0, 0, 1)),
            Blocks::Each | Blocks::Others(_) | Blocks::Relayed | Blocks::Unrelayed => None,
        };
        let first = piece(sources[0])?;
        for span in [sources[1], targets[0], targets[1]] {
            let other = piece(span)?;
            if (other.offset, other.bytes) != (first.offset, first.bytes) {
                return None;
            }
        }
        Some(Self { offset: first.offset as usize, bytes: first.bytes as usize, divisor })
    }
}

const fn spans_of(operands: Operands) -> [Span; 2] {
    match operands {
        Operands::Mine(span)
        | Operands::All(span)
        | Operands::First(_, span)
        | Operands::Of(_, span)
        | Operands::Node(span) => [span; 2],
        Operands::Relays(blocks) => [Span { role: Role::Stage, blocks }; 2],
        Operands::Pair(a, b) => [a, b],
        Operands::Received(_, blocks) => [Span { role: Role::Partial(0), blocks }; 2],
    }
}

/// Whether a role's memory holds the whole vector, and no ring or part of it.
const fn is_whole(role: Role) -> bool {
    matches!(role, Role::Input | Role::Output | Role::Slot)
}

/// The slot of `rank`: the arrival line's own bytes when the message fits there.
fn slot(board: &windlass_transports::shm::Board, rank: u32, active: &Active) -> *mut u8 {
    if active.plan.inline {
        board.arrival(rank as usize, active.sequence).inline()
    } else {
        board.slot(rank as usize, active.sequence).as_ptr()
    }
}

#[inline(always)]
fn for_blocks(group: &Group, plan: &Plan, blocks: Blocks, mut each: impl FnMut(u32)) {
    let count = plan.geometry.layout.blocks();
    let relayed = |block: &u32| relays(group, plan.call.collective, *block);
    match blocks {
        Blocks::Relayed => (0..count).filter(relayed).for_each(each),
        Blocks::Unrelayed => (0..count).filter(|block| !relayed(block)).for_each(each),
        Blocks::One(block) => each(block),
        Blocks::Each => (0..count).for_each(each),
        Blocks::Others(but) => (0..count).filter(|b| *b != but).for_each(each),
        Blocks::Range { first, end } => (first..end).for_each(each),
    }
}

/// The chunks `first..end` as one run of bytes, or one by one where a ring is involved.
#[inline(always)]
pub(super) fn runs(ring: bool, first: u32, end: u32, mut each: impl FnMut(u32, u32)) {
    if ring {
        (first..end).for_each(|c| each(c, c + 1));
    } else {
        each(first, end);
    }
}
