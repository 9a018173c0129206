//! What ranks tell each other through the lines of a board: that they have arrived, what memory they lend, what they are done with.

use std::sync::Arc;

use windlass_collectives::{Action, Collective, Fingerprint, Peers, Phase};
use windlass_memory::{Location, Mapping};
use windlass_transports::shm::{Board, Lend};

use crate::device::address;
use crate::error::Error;
use crate::group::Group;
use crate::scheduler::RegionName;

use super::lists;
use super::plan::Plan;
use super::{Active, Lent, NOTHING, OpenWait, Stream, places};

/// How often a line is looked at before anything else is.
const GLANCES: u32 = 20;

/// Marks the number of a segment of device memory.
const ON_DEVICE: u32 = 1 << 31;
/// Marks the number of the segment where the table of a list lies.
const LISTED: u32 = 1 << 30;

const ARRIVE: Action = Action::Signal { phase: Phase::Arrival };

impl Stream {
    /// What this rank lends its peers: its memory where peers reach it, else its stage.
    pub(super) fn lends(
        &mut self,
        group: &Group,
        plan: &Plan,
        input: *mut u8,
        output: *mut u8,
    ) -> (Lend, Lend) {
        if !plan.choice.algorithm.lends_memory() || group.ranks == 1 {
            return (Lend::Nothing, Lend::Nothing);
        }
        let call = &plan.call;
        let (first_in, first_out) = plan.first_blocks;
        let (at_input, at_output) = (input, output);
        let root = call.root == group.rank;
        let (lends_input, lends_output) = match call.collective.even() {
            Collective::AllReduce | Collective::Scan => (true, true),
            Collective::ExScan => (group.rank + 1 < group.ranks, group.rank > 0),
            Collective::Reduce => (true, root),
            Collective::Broadcast | Collective::Scatter => (root, false),
            Collective::Gather => (!root, false),
            _ => (true, false),
        };
        let (bytes_in, bytes_out) = (plan.checked.input, plan.checked.output);
        let mut lend = |address: *mut u8, bytes: usize, first: usize, lends: bool| {
            if !lends {
                return Lend::Nothing;
            }
            if lists::is_list(address) {
                return self.lend_list(group, address, first, LISTED).map_or(Lend::Stage, Lend::Region);
            }
            match self.locate(group, address, bytes) {
                Some(mut location) => {
                    location.offset = location.offset.wrapping_sub(first as u64);
                    Lend::Region(location)
                }
                None => Lend::Stage,
            }
        };
        let input = lend(at_input, bytes_in, first_in, lends_input);
        let output = if lends_output && at_output == at_input && matches!(input, Lend::Region(_)) {
            input
        } else {
            lend(at_output, bytes_out, first_out, lends_output)
        };
        // One stage serves both directions.
        if input == Lend::Stage || output == Lend::Stage {
            (Lend::Stage, Lend::Stage)
        } else {
            (input, output)
        }
    }

    pub(super) fn locate(&mut self, group: &Group, address: *mut u8, bytes: usize) -> Option<Location> {
        if self.devices
            && let Some((slot, offset)) = address::decode(address)
        {
            let regions = group.job.attached.get()?.regions();
            let segment = regions.segment(slot);
            let generation = regions.generation(segment)?;
            return Some(Location { segment: segment | ON_DEVICE, generation, offset });
        }
        if let Some(segment) = &self.recent {
            let offset = address.addr().wrapping_sub(segment.mapping().base().as_ptr().addr());
            let inside = offset <= segment.mapping().len() && bytes <= segment.mapping().len() - offset;
            if inside && segment.generation() == 0 {
                return Some(Location { segment: segment.number(), generation: 0, offset: offset as u64 });
            }
        }
        let (segment, location) = group.job.pool.locate(address, bytes)?;
        self.recent = Some(segment);
        Some(location)
    }

    pub(super) fn signal(&mut self, group: &Group, phase: Phase, first: u32, end: u32) {
        let (Some(board), Some(active)) = (&group.board, &self.active) else { return };
        let me = group.rank as usize;
        // The last chunk stands for all that a peer may wait for: where lengths are private, it may have more of them.
        let last = self.execution.as_ref().is_some_and(|e| e.geometry().chunks(&ARRIVE) == end);
        let end = if last { u32::MAX } else { end };
        match phase {
            Phase::Arrival => {
                let line = board.arrival(me, active.sequence);
                if first == 0 {
                    line.describe([active.fingerprint.what, active.fingerprint.count]);
                    if active.plan.choice.algorithm.lends_memory() {
                        line.lend(active.lends.0, active.lends.1);
                        if active.plan.call.collective.has_private_lengths()
                            && active.lends.0 != Lend::Nothing
                        {
                            places::tell(group, board, active);
                        }
                    }
                }
                line.raise(active.sequence, end);
            }
            Phase::Done => board.done(me).raise(active.sequence, end),
            Phase::Relayed => board.relayed(me).raise(active.sequence, end),
        }
        self.unrung = true;
    }

    /// Looks whether an open wait has come further. Whether it has.
    pub(super) fn look(&mut self, group: &Group, slot: usize) -> Result<bool, Error> {
        let Some(wait) = self.waits[slot] else { return Ok(false) };
        if wait.done == 0 && !group.job.is_crowded() {
            self.glance(group, slot, &wait);
        }
        let phase = [Phase::Arrival, Phase::Done, Phase::Relayed][slot];
        let mut reached = wait.total;
        match wait.from {
            Peers::One(q) => reached = reached.min(self.reached(group, phase, q, &wait)?),
            Peers::All => {
                for q in 0..group.ranks {
                    if q != group.rank {
                        reached = reached.min(self.reached(group, phase, q, &wait)?);
                        if reached <= wait.done {
                            return Ok(false);
                        }
                    }
                }
            }
        }
        if reached <= wait.done {
            return Ok(false);
        }
        self.waits[slot] = (reached < wait.total).then_some(OpenWait { done: reached, ..wait });
        self.complete(wait.step, wait.done, reached);
        Ok(true)
    }

    /// Looks a few times at one peer's line, since the answer is often under way: leaving and coming back would take
    /// longer than the line does.
    fn glance(&self, group: &Group, slot: usize, wait: &OpenWait) {
        let (Some(board), Some(active)) = (&group.board, &self.active) else { return };
        let q = match wait.from {
            Peers::One(q) => q as usize,
            Peers::All => ((group.rank + 1) % group.ranks) as usize,
        };
        let arrives = slot == Phase::Arrival as usize;
        let arrival = board.arrival(q, active.sequence);
        let mark = if slot == Phase::Relayed as usize { board.relayed(q) } else { board.done(q) };
        let inline = if active.plan.inline { active.plan.checked.input } else { 0 };
        for _ in 0..GLANCES {
            arrival.fetch(inline);
            let reached = if arrives {
                arrival.ready(active.sequence)
            } else {
                mark.reached(active.sequence, wait.total)
            };
            if reached > 0 {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// How many chunks of the active operation peer `q` has signalled.
    fn reached(&mut self, group: &Group, phase: Phase, q: u32, wait: &OpenWait) -> Result<u32, Error> {
        let (Some(board), Some(active)) = (&group.board, &self.active) else { return Ok(0) };
        match phase {
            Phase::Arrival => {}
            Phase::Done => return Ok(board.done(q as usize).reached(active.sequence, wait.total)),
            Phase::Relayed => return Ok(board.relayed(q as usize).reached(active.sequence, wait.total)),
        }
        let ready = board.arrival(q as usize, active.sequence).ready(active.sequence);
        if ready == 0 || self.lent[q as usize].known == active.sequence + 1 {
            return Ok(ready);
        }
        Ok(if self.meet(group, q)? { ready } else { 0 })
    }

    /// Checks the call of a peer that has arrived and finds its memory. Whether that is mapped already.
    fn meet(&mut self, group: &Group, q: u32) -> Result<bool, Error> {
        let (Some(board), Some(active)) = (&group.board, &mut self.active) else { return Ok(false) };
        let line = board.arrival(q as usize, active.sequence);
        let [what, count] = line.fingerprint();
        let theirs = Fingerprint { what, count };
        if theirs != active.fingerprint {
            return Err(Error::Mismatch {
                communicator: group.id,
                sequence: active.sequence,
                ours: active.fingerprint,
                theirs,
                rank: group.members[q as usize],
            });
        }
        let mut lent = Lent { known: active.sequence + 1, ..NOTHING };
        if active.plan.choice.algorithm.lends_memory() {
            let (input, output) = line.lent();
            let is_private = active.plan.call.collective.has_private_lengths();
            let bounds = if is_private && input != Lend::Nothing {
                Self::place_of_block(group, active, board, q)?
            } else {
                active.plan.lent_bounds(q, group.rank)
            };
            for (slot, (lend, address)) in
                [(input, &mut lent.input), (output, &mut lent.output)].into_iter().enumerate()
            {
                let location = match lend {
                    Lend::Region(location) => location,
                    Lend::Nothing => continue,
                    Lend::Stage => {
                        lent.staged = true;
                        active.staged = true;
                        continue;
                    }
                };
                if location.segment & ON_DEVICE != 0 {
                    // Where it lies at present is the affair of whoever touches it. That it is known at all is waited for here.
                    let segment = location.segment & !ON_DEVICE;
                    let name = RegionName { owner: group.members[q as usize], segment };
                    if !group.job.attached.get().is_some_and(|a| a.regions().knows(name)) {
                        return Ok(false);
                    }
                    self.devices = true;
                    lent.segments[slot] = (segment, location.generation);
                    *address = address::encode(slot as u32, 0).wrapping_add(location.offset as usize);
                    continue;
                }
                let (met, owner) = (&mut self.met[q as usize], group.members[q as usize]);
                let Some(mapping) = meet_segment(group, met, owner, location.segment & !LISTED) else {
                    return Ok(false);
                };
                if location.segment & LISTED != 0 {
                    let mapping = Arc::clone(mapping);
                    let size = active.plan.geometry.layout.element_bytes();
                    let pieces = self.lists.borrow(
                        2 * q as usize + slot,
                        (&mapping, location.offset),
                        size,
                        |segment| {
                            let mapping = meet_segment(group, met, owner, segment)?;
                            Some((mapping.base().as_ptr(), mapping.len()))
                        },
                    );
                    let Some(pieces) = pieces else { return Ok(false) };
                    *address = pieces.wrapping_add(if is_private { bounds.0 as usize } else { 0 });
                    continue;
                }
                // A peer that lends memory outside its own segment would have us fault; it made the mistake.
                let (low, high) = bounds;
                let begin = location.offset.wrapping_add(low);
                assert!(
                    begin.checked_add(high - low).is_some_and(|end| end <= mapping.len() as u64),
                    "rank {q} lends memory outside its segment"
                );
                let begin = if is_private { begin } else { location.offset };
                *address = mapping.base().as_ptr().wrapping_add(begin as usize);
            }
        }
        self.lent[q as usize] = lent;
        Ok(true)
    }

    /// Wakes sleeping peers that what we have signalled may concern. Called when the stream blocks or falls idle.
    pub(crate) fn ring(&mut self, group: &Group) {
        if !std::mem::take(&mut self.unrung) {
            return;
        }
        let ended = std::mem::take(&mut self.ended_unrung);
        let Some(board) = &group.board else { return };
        let doorbell = group.job.doorbell();
        if !doorbell.somebody_sleeps() {
            return;
        }
        if !ended
            && let Some(active) = &self.active
            && !active.plan.call.collective.rooted()
            && self.execution.as_ref().is_some_and(|e| e.geometry().chunks(&ARRIVE) == 1)
        {
            // Everyone waits for everyone: only who comes last has a reason to wake the others, or p ranks would make p² wakes.
            let done = board.done(group.rank as usize).reached(active.sequence, 1);
            let last = (0..group.ranks as usize).all(|q| {
                board.arrival(q, active.sequence).ready(active.sequence) > 0
                    && (done == 0 || board.done(q).reached(active.sequence, 1) > 0)
            });
            if !last && done == 0 {
                return;
            }
        }
        doorbell.ring(group.members.iter().map(|&m| m as usize));
    }
}

/// How often the lines that only some operations raise are raised by others. Numbers are compared modulo 2³²: a line that stood still for half of
/// that would seem to be ahead.
const FRESH: u64 = 1 << 30;

/// An operation is over, and with it all that it could have told.
#[inline]
pub(super) fn keep_fresh(board: &Board, me: u32, sequence: u64) {
    if sequence.is_multiple_of(FRESH) {
        board.done(me as usize).raise(sequence, u32::MAX);
        board.relayed(me as usize).raise(sequence, u32::MAX);
    }
}

/// The next operation begins with stores to a line that peers have read, and to a slot.
pub(super) fn prepare_next(group: &Group, board: &Board, active: &Active) {
    let (me, next, input) = (group.rank as usize, active.sequence + 1, active.plan.checked.input);
    board.arrival(me, next).prepare(if active.plan.inline { input } else { 0 });
    if active.plan.gives_only {
        board.prepare_slot(me, next, input);
    }
}

/// An operation that device memory was lent to has failed: no peer's engine touches that for it any more.
pub(super) fn take_back(group: &Group, active: &Active) {
    let Some(attached) = group.job.attached.get() else { return };
    let segment = |lend: Lend| match lend {
        Lend::Region(location) if location.segment & ON_DEVICE != 0 => Some(location.segment & !ON_DEVICE),
        _ => None,
    };
    let (input, output) = (segment(active.lends.0), segment(active.lends.1));
    for segment in input.into_iter().chain(output.filter(|_| output != input)) {
        attached.regions().silence(segment);
    }
}

/// A peer's segment, once it is mapped here; the job's table is asked once.
fn meet_segment<'a>(
    group: &Group,
    met: &'a mut Vec<Option<Arc<Mapping>>>,
    owner: u32,
    segment: u32,
) -> Option<&'a Arc<Mapping>> {
    let index = segment as usize;
    if met.get(index).is_none_or(Option::is_none) {
        let mapping = group.job.segments.of(owner, segment)?;
        if met.len() <= index {
            met.resize(index + 1, None);
        }
        met[index] = Some(mapping);
    }
    met[index].as_ref()
}

#[cfg(test)]
mod tests {
    use windlass_kernels::DataType;

    use super::*;
    use crate::request::RawRequest;

    #[test]
    fn a_line_that_nothing_raises_is_never_ahead() {
        crate::threads_with(2, &crate::Config::default(), |comm| {
            if comm.rank() > 0 {
                return;
            }
            let Some(board) = &comm.group().board else { unreachable!("ranks of one host have a board") };
            let (done, relayed) = (board.done(0), board.relayed(0));
            for line in [done, relayed] {
                line.raise(5, 3);
                // This is why.
                assert_eq!((line.reached(1 << 31, 4), line.reached(6 + (1 << 31), 4)), (0, 4));
            }
            for sequence in (1..=9).map(|nth| nth * FRESH) {
                keep_fresh(board, 0, sequence - 1);
                keep_fresh(board, 0, sequence);
                for line in [done, relayed] {
                    assert_eq!((line.reached(sequence - 1, 4), line.reached(sequence, 4)), (4, 4));
                    for ahead in [1, 7, FRESH - 1, FRESH, FRESH + 100] {
                        assert_eq!(line.reached(sequence + ahead, 4), 0, "{ahead} after {sequence}");
                    }
                }
            }
        })
        .unwrap();
    }

    /// The same by operations, of a communicator that has had as many: these raise neither line of their own accord.
    #[test]
    fn operations_keep_lines_fresh() {
        let joined = std::sync::Barrier::new(2);
        crate::threads_with(2, &crate::Config::default(), |comm| {
            let group = comm.group();
            let Some(board) = &group.board else { unreachable!("ranks of one host have a board") };
            let begin = FRESH - 2;
            board.ended(group.rank as usize).store(begin);
            group.with_stream(|stream| (stream.next, stream.released) = (begin, begin));
            joined.wait();
            for _ in 0..4 {
                comm.all_reduce(vec![1i32], crate::ReduceOp::Sum).wait().unwrap();
            }
            let me = group.rank as usize;
            for line in [board.done(me), board.relayed(me)] {
                assert_eq!(line.reached(FRESH, 1), 1, "the line stood still");
                assert_eq!(line.reached(FRESH + 1, 1), 0, "something else raises it");
            }
        })
        .unwrap();
    }

    #[test]
    fn registered_memory_is_lent_itself_and_heap_memory_by_the_stage() {
        let lends = |group: &Group, address: *mut u8, output: *mut u8, collective| {
            let request = RawRequest::new(collective, DataType::F32, 100_000);
            group.with_stream(|stream| {
                let plan = stream.plans.of(group, &request).unwrap();
                stream.lends(group, &plan, address, output)
            })
        };
        crate::threads_with(2, &crate::Config::default(), |comm| {
            let group = comm.group();
            let mut registered = comm.alloc::<f32>(200_000).unwrap();
            let mut heap = vec![0f32; 200_000];
            let (r, h) = (registered.as_mut_ptr().cast(), heap.as_mut_ptr().cast());
            let (input, output) = lends(group, r, r, Collective::AllReduce);
            assert!(matches!(input, Lend::Region(_)) && input == output);
            for (a, b) in [(h, h), (r, h), (h, r)] {
                assert_eq!(lends(group, a, b, Collective::AllReduce), (Lend::Stage, Lend::Stage));
            }
            // What peers only read is lent alone: where the result goes is this rank's own affair.
            let (input, output) = lends(group, r, h, Collective::ReduceScatter);
            assert!(matches!(input, Lend::Region(_)) && output == Lend::Nothing);
            // Taken back from the peers, it is heap memory like any other.
            group.job.pool.locate(r, 4).unwrap().0.detach(0, 4).unwrap();
            assert_eq!(lends(group, r, r, Collective::AllReduce), (Lend::Stage, Lend::Stage));
        })
        .unwrap();
    }
}
