//! Lists: many buffers that an operation takes as one vector, one after the other.
//!
//! Nothing is packed where peers reach the members: a collective finds each element where it lies. Where all ranks' vectors ought to be cut alike, the
//! fingerprint tells if they are not.

use std::fmt;
use std::ops::{Deref, DerefMut, Index, IndexMut};

use windlass_collectives::{Collective, Extent, Fingerprint};
use windlass_kernels::{DataType, Element};

use crate::error::{Error, Failed, Problem};
use crate::group::Group;
use crate::memory::{Memory, MemoryMut, Span, collide};
use crate::request::{Checked, RawRequest};

/// The most bytes of a list.
pub(crate) const MOST_BYTES: usize = 1 << 37;

/// A piece of a list: where it begins, and its elements.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Its first element.
    pub address: *mut u8,
    /// How many.
    pub count: usize,
}

impl Piece {
    /// Buffers in the order of [`List::by_rank`], for a [`RawRequest`]: of each as many parts as there are ranks, first those of rank 0.
    ///
    /// # Errors
    /// `NotDivisible` when one of them cannot be cut so.
    pub fn by_rank(members: &[Self], data_type: DataType, ranks: u32) -> Result<Vec<Self>, Problem> {
        let parts = ranks.max(1) as usize;
        if let Some(wrong) = members.iter().find(|member| !member.count.is_multiple_of(parts)) {
            return Err(Problem::NotDivisible { length: wrong.count as u64, by: parts as u64 });
        }
        let part_of = |part: usize, member: &Self| {
            let count = member.count / parts;
            // What overflows is refused with the request.
            let offset = (part * count).wrapping_mul(data_type.size_bytes());
            Self { address: member.address.wrapping_add(offset), count }
        };
        Ok((0..parts).flat_map(|part| members.iter().map(move |member| part_of(part, member))).collect())
    }
}

/// Many buffers as one vector: what [`Vec<T>`] or [`Buffer<T>`](crate::Buffer) are to a call, a list of them is as well. One operation over a hundred
/// gradients costs little more than over one of their length, where peers reach their memory.
///
/// ```
/// use windlass::{List, ReduceOp};
///
/// let sums = windlass::threads(2, |comm| {
///     let gradients = List::new(vec![vec![1.0f32; 10], vec![2.0; 3], vec![]]);
///     let gradients = comm.all_reduce(gradients, ReduceOp::Sum).wait().unwrap();
///     gradients.into_members()
/// });
/// assert_eq!(sums.unwrap()[0], [vec![2.0; 10], vec![4.0; 3], vec![]]);
/// ```
///
/// The list of a rank is one vector, and its members need not be a collective's blocks:
///
/// | call | operand and result | what it does |
/// |---|---|---|
/// | `all_reduce`, `reduce`, `broadcast`, `scan`, `exscan` | [`List::new`] | each member for itself; all ranks cut alike |
/// | `all_gather_into` | a buffer → `List::new` of a member for each rank | collects the ranks' buffers in as many members |
/// | `all_gather_into` | `List::new` → [`List::by_rank`] | gathers each member for itself |
/// | `reduce_scatter_into` | `List::new` of a member for each rank → a buffer | the rank's own member, reduced |
/// | `reduce_scatter_into` | [`List::by_rank`] → `List::new` | scatters the reduction of each member for itself |
/// | `all_to_all_into`, `gather_into`, `scatter_into`, those of different lengths | `List::new` of a member for each rank | a block is a member |
///
/// Members may lie in registered, heap or device memory, and may be empty. Over messages, and of device memory, a list is copied through the host; elsewhere it is
/// not. send and recv take no lists: an [`exchange`](crate::Communicator::exchange) takes as many messages.
pub struct List<M> {
    members: Vec<M>,
    /// Into how many parts each member is cut, of which the first of all come first.
    parts: usize,
    /// What `span` has last lent.
    pieces: Vec<Piece>,
}

// SAFETY: the pieces are the members' own memory, which may go where those go.
unsafe impl<M: Send> Send for List<M> {}
// SAFETY: a shared list shows its members only.
unsafe impl<M: Sync> Sync for List<M> {}

impl<M: fmt::Debug> fmt::Debug for List<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.members).finish()
    }
}

impl<M: Memory> List<M> {
    /// The members one after the other.
    pub const fn new(members: Vec<M>) -> Self {
        Self { members, parts: 1, pieces: Vec::new() }
    }

    /// Of each member as many parts as there are ranks: first all members' parts of rank 0, then those of rank 1, and so on. Then a collective with
    /// a block for each rank treats each member for itself.
    ///
    /// ```
    /// use windlass::List;
    ///
    /// let gathered = windlass::threads(2, |comm| {
    ///     let rank = comm.rank();
    ///     let shards = List::new(vec![vec![rank; 1], vec![10 + rank; 2]]);
    ///     let whole = List::by_rank(vec![vec![9; 2], vec![9; 4]], comm.size()).unwrap();
    ///     let (_, whole) = comm.all_gather_into(shards, whole).wait().unwrap();
    ///     whole.into_members()
    /// });
    /// assert_eq!(gathered.unwrap()[1], [vec![0, 1], vec![10, 10, 11, 11]]);
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument`, with the members, when one of them cannot be cut so.
    pub fn by_rank(mut members: Vec<M>, ranks: u32) -> Result<Self, Failed<Vec<M>>> {
        let (parts, by) = (ranks.max(1) as usize, u64::from(ranks.max(1)));
        let wrong = members.iter_mut().map(|member| member.span().count).find(|count| count % parts != 0);
        match wrong {
            None => Ok(Self { members, parts, pieces: Vec::new() }),
            Some(length) => {
                let problem = Problem::NotDivisible { length: length as u64, by };
                let (operation, argument) = ("List::by_rank", "a member");
                let error = Error::InvalidArgument { operation, argument, problem };
                Err(Failed { error, memory: members })
            }
        }
    }

    /// The members.
    pub fn members(&self) -> &[M] {
        &self.members
    }

    /// The members, to do with as one likes.
    pub fn into_members(self) -> Vec<M> {
        self.members
    }
}

/// A member's elements. Its length cannot change while it is in the list.
impl<M: Deref<Target = [T]>, T> Index<usize> for List<M> {
    type Output = [T];
    fn index(&self, member: usize) -> &[T] {
        &self.members[member]
    }
}

impl<M: DerefMut<Target = [T]>, T> IndexMut<usize> for List<M> {
    fn index_mut(&mut self, member: usize) -> &mut [T] {
        &mut self.members[member]
    }
}

// SAFETY: the members keep their elements in place, and the pieces, which only say where, stay in place as well: both lie on the heap.
unsafe impl<M: Memory> Memory for List<M> {
    type Element = M::Element;
    fn span(&mut self) -> Span {
        self.pieces.clear();
        let mut count = 0;
        for part in 0..self.parts {
            for member in &mut self.members {
                let span = member.span();
                let length = span.count / self.parts;
                count += length;
                cut(&span, part * length, length, &mut self.pieces);
            }
        }
        Span::of_pieces::<M::Element>(&self.pieces, count)
    }
}
// SAFETY: as above, and nobody else has the members.
unsafe impl<M: MemoryMut> MemoryMut for List<M> {}

/// Appends the pieces of so many elements of a span.
fn cut(span: &Span, first: usize, count: usize, pieces: &mut Vec<Piece>) {
    let whole = [Piece { address: span.address, count: span.count }];
    let of: &[Piece] = match span.pieces() {
        Some(pieces) => pieces,
        None => &whole,
    };
    let (size, mut at, end) = (span.data_type.size_bytes(), 0, first + count);
    for piece in of {
        let (begin, stop) = (first.max(at), end.min(at + piece.count));
        if begin < stop {
            pieces.push(Piece {
                address: piece.address.wrapping_add((begin - at) * size),
                count: stop - begin,
            });
        }
        at += piece.count;
    }
}

/// Where the bytes of a vector that lies in pieces are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Table {
    /// Where in the vector each piece ends.
    ends: Vec<u64>,
    /// Where each begins.
    bases: Vec<*mut u8>,
    /// Which was asked for last: the next is often the same, or the one after it.
    recent: usize,
}

impl Table {
    pub(crate) fn clear(&mut self) {
        self.ends.clear();
        self.bases.clear();
        self.recent = 0;
    }

    /// Whether another one is of the same pieces.
    pub(crate) fn holds_same(&self, other: &Self) -> bool {
        self.ends == other.ends && self.bases == other.bases
    }

    pub(crate) fn push(&mut self, base: *mut u8, bytes: u64) {
        if bytes > 0 {
            self.ends.push(self.bytes() + bytes);
            self.bases.push(base);
        }
    }

    fn fill(&mut self, pieces: &[Piece], size: usize) {
        self.clear();
        pieces.iter().for_each(|piece| self.push(piece.address, (piece.count * size) as u64));
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    pub(crate) const fn len(&self) -> usize {
        self.ends.len()
    }

    /// The pieces: where each begins, and its bytes.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (*mut u8, u64)> {
        let mut begin = 0;
        self.bases.iter().zip(&self.ends).map(move |(base, end)| {
            let bytes = end - begin;
            begin = *end;
            (*base, bytes)
        })
    }

    /// Where a byte of the vector lies, and how many from there on lie together. Beyond the end: nowhere, none.
    #[inline]
    pub(crate) fn at(&mut self, offset: u64) -> (*mut u8, usize) {
        let begin = |index: usize| if index == 0 { 0 } else { self.ends[index - 1] };
        let holds =
            |index: usize| index < self.ends.len() && begin(index) <= offset && offset < self.ends[index];
        let index = match self.recent {
            recent if holds(recent) => recent,
            recent if holds(recent + 1) => recent + 1,
            _ => self.ends.partition_point(|end| *end <= offset),
        };
        let Some(&end) = self.ends.get(index) else { return (std::ptr::null_mut(), 0) };
        let base = self.bases[index].wrapping_add((offset - begin(index)) as usize);
        self.recent = index;
        (base, (end - offset) as usize)
    }

    /// What tells how the vector is cut; of one piece nothing does.
    fn hash(&self) -> Option<Fingerprint> {
        let mix = |hash: u64, end: &u64| (hash.rotate_left(5) ^ end).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = self.ends.iter().fold(0x51_7c, mix);
        (self.len() > 1).then_some(Fingerprint { what: hash, count: self.len() as u64 })
    }
}

/// The tables of a call's operand and result, where they lie in pieces.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) input: Option<Table>,
    pub(crate) output: Option<Table>,
    /// The result lies where the operand does.
    pub(crate) same: bool,
    /// How the vector is cut that all ranks cut alike.
    pub(crate) cut: Option<Fingerprint>,
}

impl RawRequest {
    pub(crate) const fn is_listed(&self) -> bool {
        !self.input_pieces.is_null() || !self.output_pieces.is_null()
    }

    /// The pieces of the operand and of the result, where they are lists.
    fn pieces(&self) -> (Option<&[Piece]>, Option<&[Piece]>) {
        // SAFETY: whoever makes a request says that its lists are valid during the call, and they are looked at during the call only.
        let of = |pieces: *const [Piece]| (!pieces.is_null()).then(|| unsafe { &*pieces });
        (of(self.input_pieces), of(self.output_pieces))
    }

    /// The tables of a checked request, in the place of spare ones.
    pub(crate) fn tables(&self, checked: &Checked, spare: &mut Vec<Table>) -> Tables {
        let size = self.data_type.size_bytes();
        let (input, output) = self.pieces();
        let same = input.is_some() && input == output && checked.input == checked.output;
        let mut table = |pieces: Option<&[Piece]>, bytes: usize| {
            // What a rank does not use it need not have.
            let pieces = pieces.filter(|_| bytes > 0)?;
            let mut table = spare.pop().unwrap_or_default();
            table.fill(pieces, size);
            Some(table)
        };
        let input = table(input, checked.input);
        let output = if same { None } else { table(output, checked.output) };
        // Where each rank's part is its own affair, so is its list.
        let alike = self.collective.input() == Extent::Whole
            || matches!(self.collective, Collective::AllGather | Collective::ReduceScatter);
        let cut = input.as_ref().filter(|_| alike).and_then(Table::hash);
        Tables { input, output, same, cut }
    }

    /// Checks where the memory of a call with lists lies.
    pub(crate) fn check_pieces(&self, group: &Group, checked: &Checked) -> Result<(), Error> {
        let operation = self.collective.name();
        let wrong = |argument, problem| Err(Error::InvalidArgument { operation, argument, problem });
        if self.collective.is_point_to_point() {
            return wrong("the buffer", Problem::Listed);
        }
        let size = self.data_type.size_bytes();
        let (input, output) = self.pieces();
        let whole = |address: *mut u8, bytes: usize| [Piece { address, count: bytes / size }];
        let (one, other) = (whole(self.input.cast_mut(), checked.input), whole(self.output, checked.output));
        let sides = [
            ("the input", input.unwrap_or(&one), checked.input),
            ("the output", output.unwrap_or(&other), checked.output),
        ];
        for (argument, pieces, bytes) in sides {
            if bytes == 0 {
                continue;
            }
            let count = pieces.iter().try_fold(0usize, |sum, piece| sum.checked_add(piece.count));
            let too_large = |count: &usize| count.checked_mul(size).is_none_or(|bytes| bytes > MOST_BYTES);
            let Some(count) = count.filter(|count| !too_large(count)) else {
                return wrong(argument, Problem::TooLarge { count: (bytes / size) as u64 });
            };
            if count * size != bytes {
                let (expected, actual) = ((bytes / size) as u64, count as u64);
                return wrong(argument, Problem::WrongLength { expected, actual });
            }
            let alignment = self.data_type.alignment();
            for piece in pieces.iter().filter(|piece| piece.count > 0) {
                let address = piece.address.addr();
                if address == 0 || !address.is_multiple_of(alignment) {
                    return wrong(argument, Problem::Misaligned { address, alignment });
                }
                self.check_device(group, checked, argument, piece.address, piece.count * size)?;
            }
        }
        let [(_, input, reads), (_, output, writes)] = sides;
        if writes == 0 {
            return Ok(());
        }
        if !ascend(output, size) && collide(&mut ranges(output, size, true).collect::<Vec<_>>()) {
            return wrong("the output", Problem::Overlap);
        }
        let same = std::ptr::eq(input, output) && checked.in_place == 0;
        if reads > 0
            && !same
            && collide(&mut ranges(input, size, false).chain(ranges(output, size, true)).collect::<Vec<_>>())
            && !in_place(input, output, size, checked.in_place)
        {
            return wrong("the input", Problem::Overlap);
        }
        Ok(())
    }

    /// Whether any of the memory is an accelerator's.
    pub(crate) fn is_on_device(&self) -> bool {
        let on_device = |address: *const u8| crate::device::address::decode(address).is_some();
        let (input, output) = self.pieces();
        let any = |pieces: Option<&[Piece]>| {
            pieces.is_some_and(|pieces| pieces.iter().any(|piece| on_device(piece.address)))
        };
        on_device(self.input) || on_device(self.output) || any(input) || any(output)
    }
}

fn ranges(pieces: &[Piece], size: usize, writes: bool) -> impl Iterator<Item = (usize, usize, bool)> {
    pieces.iter().map(move |piece| {
        let begin = piece.address.addr();
        (begin, begin.wrapping_add(piece.count * size), writes)
    })
}

/// Whether the pieces lie one behind the other, as those of buffers made one after the other do: then none overlap.
fn ascend(pieces: &[Piece], size: usize) -> bool {
    let mut end = 0;
    ranges(pieces, size, true).all(|(begin, stop, _)| {
        let apart = begin == stop || end <= begin && begin < stop;
        end = end.max(stop);
        apart
    })
}

/// Whether the operand lies in the result, each element at its place, wherever the two overlap. `offset` is how far the operand's vector begins behind the result's.
fn in_place(input: &[Piece], output: &[Piece], size: usize, offset: usize) -> bool {
    let placed = |pieces: &[Piece]| {
        let mut at = 0;
        let placed = ranges(pieces, size, true).map(|(begin, end, _)| {
            // Where the vector would begin.
            let origin = begin.wrapping_sub(at);
            at += end - begin;
            (begin, end, origin)
        });
        let mut placed: Vec<_> = placed.filter(|(begin, end, _)| begin < end).collect();
        placed.sort_unstable();
        placed
    };
    let outputs = placed(output);
    placed(input).into_iter().all(|(begin, end, origin)| {
        let first = outputs.partition_point(|(_, stop, _)| *stop <= begin);
        let mut over = outputs[first..].iter().take_while(|(start, ..)| *start < end);
        over.all(|(.., other)| origin == other.wrapping_add(offset))
    })
}

impl Span {
    fn of_pieces<T: Element>(pieces: &[Piece], count: usize) -> Self {
        Self { address: std::ptr::null_mut(), count, data_type: T::DATA_TYPE, pieces }
    }

    fn pieces(&self) -> Option<&[Piece]> {
        // SAFETY: the pieces belong to the list that has just lent the span.
        (!self.pieces.is_null()).then(|| unsafe { &*self.pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_finds_every_byte_in_any_order() {
        let memory = [0u8; 100];
        let base = memory.as_ptr().cast_mut();
        let mut table = Table::default();
        for (at, bytes) in [(90, 4), (0, 0), (10, 30), (60, 1), (50, 8)] {
            table.push(base.wrapping_add(at), bytes);
        }
        assert_eq!((table.len(), table.bytes()), (4, 43));
        let places: Vec<usize> = (90..94).chain(10..40).chain(60..61).chain(50..58).collect();
        let left = |at: usize| [4usize, 34, 35, 43].into_iter().find(|end| at < *end).unwrap() - at;
        for at in (0..43).chain((0..43).rev()).chain((0..430).map(|n| n * 17 % 43)) {
            assert_eq!(table.at(at as u64), (base.wrapping_add(places[at]), left(at)), "{at}");
        }
        assert_eq!(table.at(43).1, 0);
    }

    #[test]
    fn members_are_cut_by_rank_and_lists_of_lists_are_one_vector() {
        let count = |pieces: &[Piece]| pieces.iter().map(|piece| piece.count).collect::<Vec<_>>();
        let mut list = List::by_rank(vec![vec![0u16; 6], vec![], vec![0; 3]], 3).unwrap();
        let (first, second) = (list[0].as_ptr().addr(), list[2].as_ptr().addr());
        let span = list.span();
        assert_eq!((span.count, count(span.pieces().unwrap())), (9, vec![2, 1, 2, 1, 2, 1]));
        let addresses: Vec<_> = span.pieces().unwrap().iter().map(|piece| piece.address.addr()).collect();
        assert_eq!(addresses, [first, second, first + 4, second + 2, first + 8, second + 4]);
        let refused = List::by_rank(vec![vec![0u16; 6], vec![0; 4]], 3).unwrap_err();
        assert_eq!(refused.memory.len(), 2);
        assert!(matches!(
            refused.error,
            Error::InvalidArgument { problem: Problem::NotDivisible { length: 4, by: 3 }, .. }
        ));
        let mut nested = List::by_rank(vec![List::new(vec![vec![0u8; 3], vec![0; 5]])], 2).unwrap();
        assert_eq!(count(nested.span().pieces().unwrap()), [3, 1, 4]);
    }

    #[test]
    fn pieces_are_in_place_where_every_element_is_at_its_place() {
        let piece =
            |address: usize, count| Piece { address: std::ptr::without_provenance_mut(address), count };
        let output = [piece(0x1000, 4), piece(0x3000, 8), piece(0x2000, 4)];
        assert!(in_place(&output, &output, 4, 0));
        // Cut elsewhere, but the same memory.
        let cut = [piece(0x1000, 4), piece(0x3000, 3), piece(0x300c, 5), piece(0x2000, 4)];
        assert!(in_place(&cut, &output, 4, 0));
        assert!(!in_place(&cut, &output, 4, 4));
        // The block of four elements that begins behind the first six.
        let block = [piece(0x3008, 4)];
        assert!(in_place(&block, &output, 4, 24) && !in_place(&block, &output, 4, 20));
        assert!(!in_place(&[piece(0x3000, 8), piece(0x1000, 4), piece(0x2000, 4)], &output, 4, 0));
        assert!(in_place(&[piece(0x5000, 16)], &output, 4, 0), "apart");
        assert!(ascend(&[piece(8, 2), piece(16, 0), piece(20, 1)], 4) && !ascend(&output, 4));
        assert!(!ascend(&[piece(8, 2), piece(12, 1)], 4));
    }
}
