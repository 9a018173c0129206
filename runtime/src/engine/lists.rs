//! Memory that lies in pieces, this rank's and its peers'.
//!
//! To a schedule a list is a vector like any other. Its memory gets an address that no process can have, as device memory does: it names a rank's operand or
//! result, and an offset. Where a Combine is called the offset is looked up in a table of pieces, and the Combine done run by run: as far as all its operands
//! and results lie in one piece each.
//!
//! What a rank lends of a list is its table, in registered memory of its own: where each piece lies, and how long it is. A table is written before the
//! arrival that tells of it, and not again before every peer has ended the last operation that lent it. A list that is lent again finds its table as it
//! was: then no cache line travels for it.
//!
//! Schedules of messages, and device memory, need the vector in one piece: then host memory stands in (`shadow`).

use windlass_memory::{Allocation, Location, Mapping, Segment};
use windlass_transports::shm::{Lend, WAYS};

use crate::group::Group;
use crate::list::{MOST_BYTES, Table, Tables};

use super::plan::Plan;
use super::{Active, Stream};

/// No canonical address of x86-64, and beyond the user's half on aarch64; none of device memory either.
const BASE: usize = 0x40e << 52;
const OFFSET_BITS: u32 = MOST_BYTES.trailing_zeros();
/// Two for each rank: its operand, and its result.
const MOST_SLOTS: u32 = 1 << (52 - OFFSET_BITS);

/// Words of a table in shared memory before its pieces: how many these are, and where in the whole vector they begin.
const HEAD_WORDS: usize = 2;
/// Words of a piece: segment and generation, offset, bytes.
const PIECE_WORDS: usize = 3;

const fn encode(slot: usize) -> *mut u8 {
    std::ptr::without_provenance_mut(BASE + (slot << OFFSET_BITS))
}

/// The table and the offset in it that an address stands for.
#[inline]
fn decode(address: *const u8) -> Option<(usize, u64)> {
    let bits = address.addr();
    let slot = bits >> OFFSET_BITS & (MOST_SLOTS as usize - 1);
    (bits >> 52 == BASE >> 52).then_some((slot, (bits & (MOST_BYTES - 1)) as u64))
}

/// Whether an address names a list.
pub(super) fn is_list(address: *const u8) -> bool {
    decode(address).is_some()
}

/// The lists of the operation under way.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// There are any.
    pub(super) in_use: bool,
    /// By slot.
    tables: Vec<Table>,
    /// To fill again.
    pub(super) spare: Vec<Table>,
    /// Where this rank's tables lie for its peers, and the bytes of one; outgrown ones are kept, for peers that may still read them.
    lent: Vec<(Allocation, usize)>,
    /// What the last of those holds.
    written: Vec<Written>,
    sources: Vec<*mut u8>,
    targets: Vec<*mut u8>,
}

/// A table that peers can read.
#[derive(Debug, Default)]
struct Written {
    /// One more than the operation that lent it last; 0 if none has.
    lent: u64,
    first: usize,
    table: Table,
}

/// An operation lends two tables at most, and peers may read those of as many operations as there are arrival lines.
const TABLES: usize = 2 * WAYS as usize;

impl Lists {
    /// Takes over the tables of the operation that begins; says by which addresses its operand and its result go.
    pub(super) fn begin(
        &mut self,
        group: &Group,
        tables: Option<Tables>,
        (input, output): (*mut u8, *mut u8),
    ) -> (*mut u8, *mut u8) {
        self.in_use = false;
        let Some(Tables { input: from, output: to, same, .. }) = tables else { return (input, output) };
        let slot = 2 * group.rank as usize;
        let mut name = |slot: usize, table: Option<Table>, address: *mut u8| match table {
            // One piece is memory like any other.
            Some(mut table) if table.len() == 1 => {
                let base = table.at(0).0;
                self.spare.push(table);
                base
            }
            Some(table) => {
                self.in_use = true;
                let before = std::mem::replace(self.table(slot), table);
                self.spare.push(before);
                encode(slot)
            }
            None => address,
        };
        let input = name(slot, from, input);
        (input, if same { input } else { name(slot + 1, to, output) })
    }

    fn table(&mut self, slot: usize) -> &mut Table {
        if self.tables.len() <= slot {
            self.tables.resize_with(slot + 1, Table::default);
        }
        &mut self.tables[slot]
    }

    /// The pieces of what an address names: where each begins, and its bytes.
    pub(super) fn pieces(&self, address: *const u8) -> impl Iterator<Item = (*mut u8, u64)> {
        let table = decode(address).and_then(|(slot, _)| self.tables.get(slot));
        table.into_iter().flat_map(Table::pieces)
    }

    /// Where an address really is, and how many bytes lie there together.
    #[inline]
    fn resolve(&mut self, address: *mut u8) -> (*mut u8, usize) {
        match decode(address) {
            Some((slot, offset)) => self.table(slot).at(offset),
            None => (address, usize::MAX),
        }
    }

    /// Where two addresses really are, and for how many bytes of `left` both lie in one piece.
    pub(super) fn pair(
        &mut self,
        source: *const u8,
        target: *mut u8,
        left: usize,
    ) -> (*const u8, *mut u8, usize) {
        let (from, first) = self.resolve(source.cast_mut());
        let (to, second) = self.resolve(target);
        let run = left.min(first).min(second);
        assert!(run > 0, "a list is as long as its vector");
        (from.cast_const(), to, run)
    }

    /// Takes the addresses of a Combine's operands and results, whose runs are asked for next.
    pub(super) fn aim(&mut self, inputs: &[*const u8], outputs: &[*mut u8]) {
        self.sources.clear();
        self.sources.extend(inputs.iter().map(|input| input.cast_mut()));
        self.targets.clear();
        self.targets.extend(outputs.iter());
    }

    /// Where what was aimed at really is after `done` bytes, and for how many of `left` all of it lies in one piece.
    pub(super) fn run(
        &mut self,
        inputs: &mut [*const u8],
        outputs: &mut [*mut u8],
        done: usize,
        mut left: usize,
    ) -> usize {
        for (nth, input) in inputs.iter_mut().enumerate() {
            let (address, bytes) = self.resolve(self.sources[nth].wrapping_add(done));
            (*input, left) = (address.cast_const(), left.min(bytes));
        }
        for (nth, output) in outputs.iter_mut().enumerate() {
            let (address, bytes) = self.resolve(self.targets[nth].wrapping_add(done));
            (*output, left) = (address, left.min(bytes));
        }
        left
    }

    /// Writes the table of what is lent for operation `sequence`; where it lies. `None` when peers reach not all of it.
    fn lend(
        &mut self,
        group: &Group,
        address: *const u8,
        sequence: u64,
        first: usize,
        mut locate: impl FnMut(*mut u8, usize) -> Option<Location>,
    ) -> Option<Location> {
        let (slot, _) = decode(address)?;
        let count = self.tables.get(slot)?.len();
        let bytes = (HEAD_WORDS + PIECE_WORDS * count) * size_of::<u64>();
        if self.lent.last().is_none_or(|(_, room)| *room < bytes) {
            let room = bytes.next_power_of_two();
            self.lent.push((group.job.pool.allocate(TABLES * room).ok()?, room));
            self.written.clear();
            self.written.resize_with(TABLES, Written::default);
        }
        let (allocation, room) = self.lent.last()?;
        let place = |nth: usize| allocation.base().as_ptr().wrapping_add(nth * room).cast::<u64>();
        let table = &self.tables[slot];
        let same =
            self.written.iter().position(|w| w.lent > 0 && w.first == first && w.table.holds_same(table));
        // Where the pieces lie cannot have changed, unless they were taken back from the peers.
        if let Some(nth) = same
            && table.pieces().all(|(base, bytes)| locate(base, bytes as usize).is_some())
        {
            self.written[nth].lent = sequence + 1;
            return Some(group.job.pool.locate(place(nth).cast(), bytes)?.1);
        }
        // The one lent longest ago: no peer reads that any more.
        let nth = (0..TABLES).min_by_key(|&nth| self.written[nth].lent)?;
        self.written[nth].lent = 0;
        let mut at = 0;
        let mut write = |word: u64| {
            // SAFETY: the place has room for this table's words; every peer has ended the operation that last lent what was there, and none
            // reads it before the arrival.
            unsafe { place(nth).add(at).write(word) };
            at += 1;
        };
        write(count as u64);
        write(first as u64);
        for (base, bytes) in table.pieces() {
            let location = locate(base, bytes as usize)?;
            write(u64::from(location.segment) | u64::from(location.generation) << 32);
            write(location.offset);
            write(bytes);
        }
        self.written[nth] = Written { lent: sequence + 1, first, table: table.clone() };
        Some(group.job.pool.locate(place(nth).cast(), bytes)?.1)
    }

    /// Reads a peer's table. What is lent by it; `None` while a segment is not mapped here yet.
    pub(super) fn borrow(
        &mut self,
        slot: usize,
        table: (&Mapping, u64),
        element_bytes: u64,
        mut mapped: impl FnMut(u32) -> Option<(*mut u8, usize)>,
    ) -> Option<*mut u8> {
        let (mapping, offset) = table;
        let word = |at: usize| {
            let begin = offset.checked_add((at * size_of::<u64>()) as u64);
            let inside =
                begin.and_then(|begin| begin.checked_add(8)).is_some_and(|end| end <= mapping.len() as u64);
            assert!(inside && offset.is_multiple_of(8), "a peer lends a list outside its segment");
            let place = mapping.base().as_ptr().wrapping_add(offset as usize).cast::<u64>();
            // SAFETY: the word lies in the mapping, aligned, and its owner wrote it before the arrival that has been seen.
            unsafe { place.add(at).read() }
        };
        let (count, first) = (word(0), word(1));
        self.table(slot).clear();
        for piece in 0..count as usize {
            let at = HEAD_WORDS + PIECE_WORDS * piece;
            let (segment, offset, bytes) = (word(at) as u32, word(at + 1), word(at + 2));
            let (base, length) = mapped(segment)?;
            let inside = offset.checked_add(bytes).is_some_and(|end| end <= length as u64);
            // A peer that lends memory outside its own segment would have us fault; it made the mistake.
            assert!(
                inside && bytes.is_multiple_of(element_bytes),
                "a peer lends a piece outside its segment"
            );
            self.table(slot).push(base.wrapping_add(offset as usize), bytes);
        }
        self.in_use = true;
        Some(encode(slot).wrapping_sub(first as usize))
    }

    /// The operation has failed. A peer that was stopped may read its tables yet: they stay, and say what they said.
    fn abandon(&mut self) {
        self.lent.drain(..).for_each(std::mem::forget);
    }
}

impl Stream {
    /// What this rank lends of a list: its table, marked.
    pub(super) fn lend_list(
        &mut self,
        group: &Group,
        address: *mut u8,
        first: usize,
        mark: u32,
    ) -> Option<Location> {
        let sequence = self.next - self.queue.len() as u64 - 1;
        let mut lists = std::mem::take(&mut self.lists);
        let located =
            lists.lend(group, address, sequence, first, |base, bytes| self.locate(group, base, bytes));
        self.lists = lists;
        located.map(|location| Location { segment: location.segment | mark, ..location })
    }

    /// Whether the schedule reaches the pieces of lists: not if it sends messages, nor does a program's own operator.
    pub(super) fn reaches_pieces(group: &Group, plan: &Plan) -> bool {
        let mapped = group.ranks == 1 || plan.choice.algorithm.needs_mapped_peers();
        mapped && 2 * group.ranks <= MOST_SLOTS && plan.operator.is_none()
    }

    /// Takes the pages of the result back from peers that were lent them.
    ///
    /// # Panics
    /// Never; but the process ends when they cannot be taken back, as the memory must never be used again.
    pub(super) fn detach_output(&mut self, group: &Group, active: &Active) {
        let (bytes, first) = (active.plan.checked.output, active.plan.first_blocks.1);
        if let (_, Lend::Region(_)) = active.lends {
            let output = active.output.wrapping_add(first);
            if is_list(output) {
                self.lists.pieces(output).for_each(|(base, bytes)| detach(group, base, bytes as usize));
            } else {
                detach(group, output, bytes);
            }
        }
        self.lists.abandon();
    }
}

fn detach(group: &Group, address: *const u8, bytes: usize) {
    let located = group.job.pool.locate(address, bytes);
    let detached = located.map_or(Ok(()), |(segment, location): (std::sync::Arc<Segment>, Location)| {
        segment.detach(location.offset as usize, bytes)
    });
    if let Err(error) = detached {
        // The memory cannot be made safe to give back, so it must never be used again.
        crate::error::report(format_args!(
            "{error}; rank {} stops, since a peer may still write its memory",
            group.job.rank
        ));
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_arithmetic_and_are_no_other_memory() {
        let address = encode(5).wrapping_add(4096);
        assert_eq!(decode(address), Some((5, 4096)));
        assert_eq!(decode(encode(6).wrapping_sub(100).wrapping_add(108)), Some((6, 8)));
        let last = MOST_SLOTS as usize - 1;
        assert_eq!(decode(encode(last).wrapping_add(MOST_BYTES - 1)), Some((last, MOST_BYTES as u64 - 1)));
        assert_eq!(decode((&raw const address).cast()), None);
        assert_eq!(decode(crate::device::address::encode(3, 17)), None);
        assert_eq!(crate::device::address::decode(address), None);
    }
}
