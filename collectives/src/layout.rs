//! Blocks and chunks to byte ranges.

use std::sync::Arc;

use crate::call::Call;
use crate::step::{Action, Blocks, Operands, Role, Span};

/// Parts of a vector begin on cache lines, so that two ranks never store to one.
const CACHE_LINE_BYTES: u64 = 64;

/// Maps the blocks of a vector to bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout {
    blocks: u32,
    /// Where each block begins, and the end, where that follows no rule.
    starts: Option<Arc<[u64]>>,
    /// The whole vector.
    bytes: u64,
    element_bytes: u64,
    /// Elements of every block, and those left over: what `start` would divide by hand each time it is asked.
    quotient: u64,
    remainder: u64,
    /// What a boundary in bytes keeps of its bits: none below the cache line where it is rounded down to one.
    mask: u64,
}

impl Layout {
    /// A vector of `count` elements cut into `blocks` parts: part `i` is `[i·n/p, (i+1)·n/p)`
    /// rounded down to cache lines, so parts may be empty.
    pub const fn parts(count: u64, element_bytes: u64, blocks: u32) -> Self {
        Self::new(count, element_bytes, blocks, !(CACHE_LINE_BYTES - 1))
    }

    /// `blocks` blocks of `count` elements each.
    pub const fn uniform(count: u64, element_bytes: u64, blocks: u32) -> Self {
        Self::new(count * blocks as u64, element_bytes, blocks, !0)
    }

    const fn new(elements: u64, element_bytes: u64, blocks: u32, mask: u64) -> Self {
        let (quotient, remainder) = (elements / blocks as u64, elements % blocks as u64);
        let bytes = elements * element_bytes;
        Self { blocks, starts: None, bytes, element_bytes, quotient, remainder, mask }
    }

    /// Blocks of these numbers of elements.
    pub fn uneven(counts: &[u64], element_bytes: u64) -> Self {
        let starts = std::iter::once(0).chain(counts.iter().scan(0, |end, count| {
            *end += count * element_bytes;
            Some(*end)
        }));
        let starts: Arc<[u64]> = starts.collect();
        let elements = counts.iter().sum();
        Self { starts: Some(starts), ..Self::new(elements, element_bytes, counts.len().max(1) as u32, !0) }
    }

    /// The layout that `call` has on `ranks` ranks when its vector is cut into `blocks`.
    pub fn of(call: &Call, ranks: u32, blocks: u32) -> Self {
        let size = call.data_type.size_bytes() as u64;
        if call.collective.has_blocks() {
            Self::uniform(call.count, size, ranks)
        } else {
            Self::parts(call.count, size, blocks)
        }
    }

    /// The number of blocks.
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The bytes of the whole vector.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes of one element.
    pub const fn element_bytes(&self) -> u64 {
        self.element_bytes
    }

    /// The bytes of every block, where all have the same by their rule.
    pub const fn stride(&self) -> Option<u64> {
        let alike = self.starts.is_none() && self.remainder == 0 && self.mask == !0;
        if alike { Some(self.quotient * self.element_bytes) } else { None }
    }

    /// The offset at which block `block` begins; `start(blocks())` is the end.
    #[inline]
    pub fn start(&self, block: u32) -> u64 {
        if let Some(starts) = &self.starts {
            return starts[block.min(self.blocks) as usize];
        }
        if block == 0 {
            return 0;
        }
        if block >= self.blocks {
            return self.bytes;
        }
        // block·n/p in elements, from n = quotient·p + remainder; what is left to divide is below p².
        let rest = block as u64 * self.remainder;
        let rest = if rest <= u32::MAX as u64 {
            (rest as u32 / self.blocks) as u64
        } else {
            rest / self.blocks as u64
        };
        ((block as u64 * self.quotient + rest) * self.element_bytes) & self.mask
    }

    /// The bytes of the largest block. By a rule that is the last, in whole grains: the boundary before it
    /// is rounded down, that after it is not.
    pub fn largest(&self) -> u64 {
        match &self.starts {
            Some(starts) => starts.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0),
            None => self.bytes - self.start(self.blocks - 1),
        }
    }
}

/// A contiguous run of bytes of one rank's memory, relative to where the vector's block 0 would begin
/// for `Input` and `Output`, and to the beginning of the memory for the others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Bytes from the origin of the role.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How an execution cuts a layout into chunks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Geometry {
    /// Blocks to bytes.
    pub layout: Layout,
    /// The same for `Output`, where that has blocks of other lengths.
    pub output: Option<Layout>,
    /// The bytes of a message's chunk, and of a slot in a scratch ring.
    pub chunk_bytes: u64,
    /// The bytes of one block's piece in a chunk of a shared-memory schedule.
    pub piece_bytes: u64,
    /// How many chunks a ring holds. A power of two.
    pub depth: u32,
    /// The chunks of a shared-memory schedule: the same on every rank, but where a rank knows the lengths of its own blocks alone.
    pieces: u32,
}

impl Geometry {
    /// Cuts `layout`; the chunk sizes are rounded up to cache lines.
    pub fn new(layout: Layout, chunk_bytes: u64, piece_bytes: u64, depth: u32) -> Self {
        let round = |b: u64| b.max(1).next_multiple_of(CACHE_LINE_BYTES);
        let piece_bytes = round(piece_bytes);
        let pieces = clamp_chunks(layout.largest(), piece_bytes);
        Self { layout, output: None, chunk_bytes: round(chunk_bytes), piece_bytes, depth, pieces }
    }

    /// The same with another layout of `Output`. Ranks whose blocks differ then may have different numbers of chunks.
    #[must_use]
    pub fn with_output(self, output: Layout) -> Self {
        let pieces = self.pieces.max(clamp_chunks(output.largest(), self.piece_bytes));
        Self { output: Some(output), pieces, ..self }
    }

    #[inline]
    fn layout_of(&self, role: Role) -> &Layout {
        match (&self.output, role) {
            (Some(output), Role::Output) => output,
            _ => &self.layout,
        }
    }

    /// How many chunks an action is handed out in. At least one, also for nothing.
    pub fn chunks(&self, action: &Action) -> u32 {
        match action {
            Action::Copy { from: span, .. }
            | Action::Send { from: span, .. }
            | Action::Recv { into: span, .. } => self.chunks_of(span),
            Action::Reduce { outputs, .. } => match outputs {
                Operands::Mine(span)
                | Operands::All(span)
                | Operands::First(_, span)
                | Operands::Of(_, span)
                | Operands::Node(span)
                | Operands::Pair(span, _) => self.chunks_of(span),
                // No step stores to what it has received, or to what others hold ready.
                Operands::Received(..) | Operands::Relays(_) => self.pieces,
            },
            Action::Gather { .. }
            | Action::Fetch { .. }
            | Action::Scan { .. }
            | Action::Signal { .. }
            | Action::Wait { .. } => self.pieces,
        }
    }

    fn chunks_of(&self, span: &Span) -> u32 {
        match span.blocks {
            Blocks::Range { first, end } => {
                let layout = self.layout_of(span.role);
                clamp_chunks(layout.start(end) - layout.start(first), self.chunk_bytes)
            }
            Blocks::One(_) | Blocks::Each | Blocks::Others(_) | Blocks::Relayed | Blocks::Unrelayed => {
                self.pieces
            }
        }
    }

    /// Where chunk `chunk` of the contiguous blocks `first..end` lies in `role`.
    #[inline]
    pub fn range_piece(&self, role: Role, first: u32, end: u32, chunk: u32) -> Piece {
        let layout = self.layout_of(role);
        let (start, stop) = (layout.start(first), layout.start(end));
        let begin = (start + u64::from(chunk) * self.chunk_bytes).min(stop);
        let bytes = (stop - begin).min(self.chunk_bytes);
        match role {
            Role::Input | Role::Output | Role::Slot => Piece { offset: begin, bytes },
            Role::Scratch(ring) => {
                let slot = u64::from(ring) * u64::from(self.depth) + u64::from(chunk % self.depth);
                Piece { offset: slot * self.chunk_bytes, bytes }
            }
            Role::Stage => Piece { offset: u64::from(chunk % self.depth) * self.chunk_bytes, bytes },
            Role::Partial(nth) => {
                Piece { offset: u64::from(nth) * self.partial_stride() + begin - start, bytes }
            }
        }
    }

    /// Where the chunks `first..end` of block `block` lie in `role`. They are one run of bytes in
    /// `Input`, `Output` and `Slot`; in `Stage` only a single chunk is.
    #[inline]
    pub fn block_piece(&self, role: Role, block: u32, first: u32, end: u32) -> Piece {
        let layout = self.layout_of(role);
        let (start, stop) = (layout.start(block), layout.start(block + 1));
        let begin = (start + u64::from(first) * self.piece_bytes).min(stop);
        let bytes = (start + u64::from(end) * self.piece_bytes).min(stop) - begin;
        match role {
            Role::Input | Role::Output | Role::Slot => Piece { offset: begin, bytes },
            Role::Stage | Role::Scratch(_) => {
                let slot = u64::from(first % self.depth) * u64::from(self.layout.blocks()) + u64::from(block);
                Piece { offset: slot * self.piece_bytes, bytes }
            }
            Role::Partial(nth) => {
                Piece { offset: u64::from(nth) * self.partial_stride() + begin - start, bytes }
            }
        }
    }

    /// Where the chunks `first..end` of a peer's block `block` lie, which are to become those of block `into` of `Output`, if nobody but the
    /// peer knows where its blocks are ([`crate::Collective::has_private_lengths`]): from where that block begins, or in the peer's `Stage`.
    pub fn lent_piece(&self, role: Role, block: u32, into: u32, first: u32, end: u32) -> Piece {
        let target = self.block_piece(Role::Output, into, first, end);
        let offset = match role {
            Role::Stage => self.block_piece(role, block, first, end).offset,
            _ => target.offset - self.layout_of(Role::Output).start(into),
        };
        Piece { offset, bytes: target.bytes }
    }

    /// The bytes of stage memory a rank with heap memory needs.
    pub fn stage_bytes(&self) -> u64 {
        u64::from(self.depth) * u64::from(self.layout.blocks()) * self.piece_bytes
    }

    fn partial_stride(&self) -> u64 {
        self.layout.largest().next_multiple_of(CACHE_LINE_BYTES)
    }

    /// The bytes of `many` memories for partial sums.
    pub fn partial_bytes(&self, many: u32) -> u64 {
        u64::from(many) * self.partial_stride()
    }

    /// The bytes of `rings` scratch rings.
    pub fn scratch_bytes(&self, rings: u32) -> u64 {
        u64::from(rings) * u64::from(self.depth) * self.chunk_bytes
    }
}

fn clamp_chunks(bytes: u64, chunk_bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(chunk_bytes).max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Collective;
    use windlass_kernels::{DataType, ReduceOp};

    /// More elements than 32 bits count.
    const MANY: u64 = (5 << 32) + 12_345;

    /// The pieces of a range, as (offset, bytes), cover it without a gap.
    fn covers(pieces: impl Iterator<Item = Piece>, start: u64, end: u64) {
        let mut at = start;
        for piece in pieces {
            assert_eq!(piece.offset, at);
            at += piece.bytes;
        }
        assert_eq!(at, end);
    }

    #[test]
    fn parts_of_vectors_beyond_32_bits_cover_them() {
        for element_bytes in [1, 2, 4, 8, 16] {
            for blocks in [1, 2, 3, 7, 64, 1000, 1 << 20] {
                let layout = Layout::parts(MANY, element_bytes, blocks);
                assert_eq!((layout.start(0), layout.start(blocks)), (0, MANY * element_bytes));
                for block in [0, 1, blocks / 2, blocks - 1].into_iter().filter(|b| *b < blocks) {
                    let (start, end) = (layout.start(block), layout.start(block + 1));
                    let exact =
                        u128::from(block) * u128::from(MANY) / u128::from(blocks) * u128::from(element_bytes);
                    assert_eq!(u128::from(start), exact / 64 * 64, "block {block} of {blocks}");
                    assert!(start <= end && end - start <= layout.largest().next_multiple_of(64));
                }
            }
        }
    }

    #[test]
    fn chunks_of_vectors_beyond_32_bits_cover_them() {
        let layouts = [
            Layout::parts(MANY, 1, 2),
            Layout::uniform(MANY, 2, 3),
            Layout::uneven(&[1 << 33, 0, 7, MANY, 1], 1),
        ];
        for layout in layouts {
            let geometry = Geometry::new(layout.clone(), 128 << 10, 64 << 10, 4);
            for block in 0..layout.blocks() {
                let (start, end) = (layout.start(block), layout.start(block + 1));
                let copy = |blocks| {
                    let span = |role| Span { role, blocks };
                    Action::Copy { whose: None, from: span(Role::Input), to: span(Role::Output) }
                };
                let range = geometry.chunks(&copy(Blocks::Range { first: block, end: block + 1 }));
                covers(
                    (0..range).map(|c| geometry.range_piece(Role::Output, block, block + 1, c)),
                    start,
                    end,
                );
                let pieces = geometry.chunks(&copy(Blocks::One(block)));
                covers((0..pieces).map(|c| geometry.block_piece(Role::Input, block, c, c + 1)), start, end);
                covers(std::iter::once(geometry.block_piece(Role::Input, block, 0, pieces)), start, end);
            }
        }
    }

    #[test]
    fn calls_beyond_32_bits_keep_their_count() {
        let call = Call {
            collective: Collective::AllGather,
            data_type: DataType::F64,
            op: ReduceOp::Sum,
            count: MANY,
            root: 0,
        };
        assert_eq!(call.size_bytes(6), MANY * 8 * 6);
        assert_eq!(call.fingerprint().call(), Some(call));
        assert_eq!(Layout::of(&call, 6, 1).start(5), MANY * 8 * 5);
    }

    #[test]
    fn a_block_that_a_peer_has_placed_is_cut_as_ones_own() {
        let own = Geometry::new(Layout::uneven(&[64, 0, 640], 64), 4096, 4096, 2)
            .with_output(Layout::uneven(&[64, 256, 1], 64));
        // One's own operand has the longest block, so there are as many chunks.
        assert_eq!(own.chunks(&Action::Gather { from: Role::Input, take: crate::step::Take::Ours }), 10);
        let lent = |role, first| own.lent_piece(role, 0, 1, first, first + 1);
        assert_eq!(lent(Role::Input, 3), Piece { offset: 3 * 4096, bytes: 4096 });
        assert_eq!(lent(Role::Input, 4), Piece { offset: 4 * 4096, bytes: 0 });
        assert_eq!(lent(Role::Stage, 3), Piece { offset: 3 * 4096, bytes: 4096 });
    }
}
