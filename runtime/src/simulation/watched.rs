//! What is watched of the data: a random 64-bit weight of each rank for some elements, in place of their values.
//!
//! A reduction adds weights. So a result that holds each rank's part exactly once is the sum of all ranks' weights, and any other,
//! but for a chance of 2⁻⁶⁴, is not. Operands are computed when they are read; results and scratch are kept.

use windlass_collectives::model::DEPTH;
use windlass_collectives::{Blocks, Call, Collective, Extent, Geometry, Operands, Role, Schedule, Span};

/// Weights of consecutive watched elements.
pub(super) type Values = Vec<u64>;

/// So many weights are kept, of all ranks together, unless that left fewer than [`FEWEST`] to each.
const MOST: u64 = 1 << 24;
const FEWEST: u64 = 16;

/// The watched elements of every rank.
#[derive(Debug)]
pub(super) struct Watched {
    call: Call,
    ranks: u32,
    seed: u64,
    geometry: Geometry,
    /// The watched elements, as offsets in bytes.
    offsets: Vec<u64>,
    /// The first of them in each block, and their number.
    firsts: Vec<u32>,
    outputs: Values,
    /// What each rank publishes.
    slots: Values,
    /// By rank and slot of its rings.
    scratch: Vec<Vec<Values>>,
    /// By rank and place.
    partial: Vec<Vec<Values>>,
    spare: Values,
}

/// splitmix64.
pub(super) const fn chance(seed: u64, index: u64) -> u64 {
    let word = seed ^ index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

impl Watched {
    pub(super) fn new(call: &Call, ranks: u32, schedule: &Schedule, geometry: &Geometry, seed: u64) -> Self {
        let layout = &geometry.layout;
        let elements = layout.bytes() / layout.element_bytes();
        // Two in each block and in each chunk, if they are not too many.
        let parts = u64::from(layout.blocks()).max(layout.bytes() / geometry.chunk_bytes);
        let wanted = (2 * parts).max(64);
        let count = wanted.min(MOST / u64::from(ranks)).max(FEWEST).min(elements);
        // One of each of `count` alike parts of the vector, the first and the last element among them.
        let element = |i: u64| {
            let part = |i: u64| (u128::from(i) * u128::from(elements) / u128::from(count)) as u64;
            match i {
                0 => 0,
                _ if i + 1 == count => elements - 1,
                _ => part(i) + chance(seed, i) % (part(i + 1) - part(i)),
            }
        };
        let mut offsets: Vec<u64> = (0..count).map(|i| element(i) * layout.element_bytes()).collect();
        if call.collective == Collective::AllToAll {
            // A block becomes another one: the same elements of each are watched.
            let each = call.count.min(count.div_ceil(u64::from(ranks)));
            let within = |i: u64| i * call.count / each.max(1);
            let blocks = 0..u64::from(ranks);
            offsets = blocks.flat_map(|b| (0..each).map(move |i| b * call.count + within(i))).collect();
            offsets.iter_mut().for_each(|offset| *offset *= layout.element_bytes());
        }
        let count = offsets.len();
        let first = |block| offsets.partition_point(|offset| *offset < layout.start(block)) as u32;
        let cells = count * ranks as usize;
        let slots = if schedule.algorithm().needs_mapped_peers() { cells } else { 0 };
        let rings = (schedule.scratch_rings() * DEPTH) as usize;
        Self {
            call: *call,
            ranks,
            seed,
            geometry: geometry.clone(),
            firsts: (0..=layout.blocks()).map(first).collect(),
            offsets,
            outputs: vec![0; cells],
            slots: vec![0; slots],
            scratch: vec![vec![Values::new(); rings]; ranks as usize],
            partial: vec![Vec::new(); ranks as usize],
            spare: Values::new(),
        }
    }

    /// How many elements are watched, and of how many.
    pub(super) fn count(&self) -> (u64, u64) {
        let layout = &self.geometry.layout;
        (self.offsets.len() as u64, layout.bytes() / layout.element_bytes())
    }

    fn weight(&self, rank: u32, index: usize) -> u64 {
        chance(self.seed, u64::from(rank) << 32 | index as u64)
    }

    fn cell(&self, rank: u32, index: usize) -> usize {
        rank as usize * self.offsets.len() + index
    }

    /// The watched elements of these bytes, which lie in blocks `first..end`.
    fn between(&self, first: u32, end: u32, begin: u64, bytes: u64) -> (usize, usize) {
        let (low, high) = (self.firsts[first as usize] as usize, self.firsts[end as usize] as usize);
        let layout = &self.geometry.layout;
        if begin == layout.start(first) && begin + bytes == layout.start(end) {
            return (low, high);
        }
        let within = &self.offsets[low..high];
        let from = low + within.partition_point(|offset| *offset < begin);
        (from, low + within.partition_point(|offset| *offset < begin + bytes))
    }

    /// The watched elements of a chunk of a range of blocks, and the first of the range.
    fn range(&self, span: Span, chunk: u32) -> (usize, usize, usize) {
        let Blocks::Range { first, end } = span.blocks else { return (0, 0, 0) };
        let piece = self.geometry.range_piece(Role::Output, first, end, chunk);
        let (from, to) = self.between(first, end, piece.offset, piece.bytes);
        (from, to, self.firsts[first as usize] as usize)
    }

    fn slot(&self, ring: u8, chunk: u32) -> usize {
        (u32::from(ring) * DEPTH + chunk % DEPTH) as usize
    }

    /// Appends what a chunk of a rank's span holds.
    pub(super) fn load(&self, rank: u32, span: Span, chunk: u32, values: &mut Values) {
        let (from, to, origin) = self.range(span, chunk);
        match span.role {
            Role::Input => values.extend((from..to).map(|index| self.weight(rank, index))),
            Role::Scratch(ring) => {
                values.extend_from_slice(&self.scratch[rank as usize][self.slot(ring, chunk)]);
            }
            Role::Partial(nth) => {
                let partial = &self.partial[rank as usize][usize::from(nth)];
                values.extend_from_slice(&partial[from - origin..to - origin]);
            }
            _ => values.extend_from_slice(&self.outputs[self.cell(rank, from)..self.cell(rank, to)]),
        }
    }

    /// A chunk of a rank's span holds these now. What it held may be left in their place.
    pub(super) fn store(&mut self, rank: u32, span: Span, chunk: u32, values: &mut Values) {
        let (from, to, origin) = self.range(span, chunk);
        assert_eq!(values.len(), to - from, "a message is as long as the span it is received into");
        match span.role {
            Role::Scratch(ring) => {
                let slot = self.slot(ring, chunk);
                std::mem::swap(&mut self.scratch[rank as usize][slot], values);
            }
            Role::Partial(nth) => {
                let (partials, nth) = (&mut self.partial[rank as usize], usize::from(nth));
                if partials.len() <= nth {
                    partials.resize(nth + 1, Values::new());
                }
                let partial = &mut partials[nth];
                partial.resize(partial.len().max(to - origin), 0);
                partial[from - origin..to - origin].copy_from_slice(values);
            }
            _ => {
                let (from, to) = (self.cell(rank, from), self.cell(rank, to));
                self.outputs[from..to].copy_from_slice(values);
            }
        }
    }

    /// Copies or reduces a chunk of spans of one rank.
    pub(super) fn combine(
        &mut self,
        rank: u32,
        inputs: impl IntoIterator<Item = Span>,
        output: Span,
        chunk: u32,
    ) {
        let mut values = std::mem::take(&mut self.spare);
        values.clear();
        for (nth, input) in inputs.into_iter().enumerate() {
            let own = values.len();
            self.load(rank, input, chunk, &mut values);
            if nth == 0 {
                continue;
            }
            let (sums, others) = values.split_at_mut(own);
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum = sum.wrapping_add(*other));
            values.truncate(own);
        }
        self.store(rank, output, chunk, &mut values);
        self.spare = values;
    }

    // ---- memory that peers map -------------------------------------------------------------------------------------------

    /// The watched elements of the chunks `first..end` of a block.
    fn piece(&self, block: u32, first: u32, end: u32) -> (usize, usize) {
        let piece = self.geometry.block_piece(Role::Output, block, first, end);
        self.between(block, block + 1, piece.offset, piece.bytes)
    }

    fn read(&self, rank: u32, role: Role, index: usize) -> u64 {
        match role {
            Role::Input => self.weight(rank, index),
            Role::Slot => self.slots[self.cell(rank, index)],
            _ => self.outputs[self.cell(rank, index)],
        }
    }

    fn write(&mut self, rank: u32, role: Role, index: usize, value: u64) {
        let cell = self.cell(rank, index);
        *(if role == Role::Slot { &mut self.slots[cell] } else { &mut self.outputs[cell] }) = value;
    }

    /// Copies chunks of one block of a rank's memory to a block of another's.
    pub(super) fn copy_piece(
        &mut self,
        (source, target): (u32, u32),
        (first, end): (u32, u32),
        from: (u32, Role),
        to: (u32, Role),
    ) {
        let (low, high) = self.piece(source, first, end);
        let at = self.piece(target, first, end).0;
        for index in low..high {
            let value = self.read(from.0, from.1, index);
            self.write(to.0, to.1, at + index - low, value);
        }
    }

    /// Reduces chunks of one block over some ranks, to `rank`, to another one or to all.
    pub(super) fn reduce_piece(
        &mut self,
        block: u32,
        (first, end): (u32, u32),
        rank: u32,
        (operands, input): (std::ops::Range<u32>, Role),
        outputs: &Operands,
    ) {
        let (low, high) = self.piece(block, first, end);
        for index in low..high {
            let role = |q| if q == rank && input == Role::Slot { Role::Input } else { input };
            let sum = operands.clone().fold(0_u64, |sum, q| sum.wrapping_add(self.read(q, role(q), index)));
            match outputs {
                Operands::All(_) => (0..self.ranks).for_each(|q| self.write(q, Role::Output, index, sum)),
                Operands::Of(q, _) => self.write(*q, Role::Output, index, sum),
                _ => self.write(rank, Role::Output, index, sum),
            }
        }
    }

    // ---- the results -----------------------------------------------------------------------------------------------------

    /// The first wrong result: whose, and which element.
    pub(super) fn wrong(&self) -> Option<(u32, u64)> {
        let blocks = self.firsts.windows(2).enumerate();
        let owners: Vec<u32> =
            blocks.flat_map(|(block, ends)| (ends[0]..ends[1]).map(move |_| block as u32)).collect();
        let all = self.offsets.len();
        // A scan's grows from rank to rank; the others' are the same for all.
        let mut expected: Values = (0..all)
            .map(|index| match self.call.collective {
                Collective::Broadcast | Collective::Scatter => self.weight(self.call.root, index),
                Collective::AllGather | Collective::Gather => self.weight(owners[index], index),
                Collective::Scan | Collective::ExScan | Collective::AllToAll => 0,
                _ => (0..self.ranks).fold(0_u64, |sum, rank| sum.wrapping_add(self.weight(rank, index))),
            })
            .collect();
        for rank in 0..self.ranks {
            let first = |block: u32| self.firsts[block as usize] as usize;
            let (low, high) = match self.call.collective.output() {
                Extent::Block => (first(rank), first(rank + 1)),
                Extent::BlocksAtRoot | Extent::WholeAtRoot if rank != self.call.root => (0, 0),
                _ if self.call.collective == Collective::ExScan && rank == 0 => (0, 0),
                _ => (0, all),
            };
            match self.call.collective {
                Collective::Scan => (0..all).for_each(|index| self.add(&mut expected, rank, index)),
                Collective::ExScan if rank > 0 => {
                    (0..all).for_each(|index| self.add(&mut expected, rank - 1, index));
                }
                // Of each rank the block that it has for this one, which begins alike.
                Collective::AllToAll => (0..all).for_each(|index| {
                    let q = owners[index];
                    expected[index] = self.weight(q, first(rank) + index - first(q));
                }),
                _ => {}
            }
            let found = &self.outputs[self.cell(rank, low)..self.cell(rank, high)];
            if let Some(at) = found.iter().zip(&expected[low..high]).position(|(a, b)| a != b) {
                return Some((rank, self.offsets[low + at] / self.geometry.layout.element_bytes()));
            }
        }
        None
    }

    fn add(&self, sums: &mut [u64], rank: u32, index: usize) {
        sums[index] = sums[index].wrapping_add(self.weight(rank, index));
    }

    /// Spoils a result, for the canary.
    #[cfg(test)]
    pub(super) fn spoil(&mut self, rank: u32, index: usize) {
        let cell = self.cell(rank, index);
        self.outputs[cell] ^= 1;
    }
}
