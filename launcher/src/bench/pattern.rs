//! What the ranks put in and what must come out.
//!
//! Inputs repeat after a prime number of elements and shift from iteration to iteration. So a buffer is filled and
//! checked, all of it, at the speed of memory, whatever the type; and what an earlier iteration left behind, a
//! neighbour's element, or an operand that was left out, shows.

use windlass::{DataType, F8E4M3, F8E5M2, ReduceOp, bf16, f16};

/// Elements after which a pattern repeats. A prime, so that no power of two maps it onto itself.
const PERIOD: usize = 509;

/// Periods that are copied or compared at once: some 16 KiB.
const REPEAT: usize = 8;

/// How far the pattern shifts from one iteration to the next.
const SHIFT: usize = 101;

/// How far the pattern shifts from one block of an operand to the next. Blocks for different ranks differ, whatever their length.
const BLOCK_SHIFT: usize = 53;

/// Ranks that contribute more than a 1 to a product, which would overflow otherwise.
const FACTORS: usize = 8;

/// One rank's inputs, or the results.
#[derive(Debug)]
struct Tile {
    bytes: Vec<u8>,
}

/// Where the values of a block begin, of an operand that has a block for each rank.
pub(super) const fn block_start(block: usize) -> usize {
    block * BLOCK_SHIFT
}

/// The inputs of all ranks and the reduction of them, or of the first of them.
#[derive(Debug)]
pub(super) struct Patterns {
    element: usize,
    inputs: Vec<Tile>,
    reduced: Tile,
}

/// Whose values a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    /// What this rank puts in.
    Of(usize),
    /// The reduction.
    Reduced,
}

/// An element before it has a type: a whole number, and the rank it came from, which is the place of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    number: i64,
    rank: usize,
}

impl Patterns {
    /// For `ranks` ranks, of which the first `reduced` ones are reduced with `op`.
    pub(super) fn new(ranks: usize, reduced: usize, data_type: DataType, op: ReduceOp) -> Self {
        let op = meant(data_type, op);
        let input = |rank| {
            let entry = |at| Entry { number: input(rank, ranks, at, data_type, op), rank };
            (0..PERIOD).map(entry).collect::<Vec<_>>()
        };
        let columns: Vec<Vec<Entry>> = (0..ranks).map(input).collect();
        let first = &columns[..reduced];
        let results = (0..PERIOD).map(|at| reduce(first.iter().map(|column| column[at]), op));
        let divisor = if op == ReduceOp::Avg { ranks } else { 1 };
        let reduced = Tile::new(&results.collect::<Vec<_>>(), data_type, op, divisor);
        let inputs = columns.iter().map(|column| Tile::new(column, data_type, op, 1)).collect();
        Self { element: data_type.size_bytes(), inputs, reduced }
    }

    /// What a rank's inputs are multiplied by in a scaled sum: not the same everywhere.
    pub(super) fn scalar(rank: usize) -> f64 {
        factor(rank) as f64
    }

    /// Writes elements `start..` of an iteration's values.
    pub(super) fn fill(&self, buffer: &mut [u8], values: Values, iteration: usize, start: usize) {
        let expected = self.tile(values, iteration, start);
        for piece in buffer.chunks_mut(REPEAT * PERIOD * self.element) {
            piece.copy_from_slice(&expected[..piece.len()]);
        }
    }

    /// How many elements are not elements `start..` of an iteration's values.
    pub(super) fn wrong(&self, buffer: &[u8], values: Values, iteration: usize, start: usize) -> u64 {
        let expected = self.tile(values, iteration, start);
        let mut wrong = 0;
        for piece in buffer.chunks(REPEAT * PERIOD * self.element) {
            if *piece != expected[..piece.len()] {
                let pairs = piece.chunks(self.element).zip(expected.chunks(self.element));
                wrong += pairs.filter(|(is, should)| is != should).count() as u64;
            }
        }
        wrong
    }

    fn tile(&self, values: Values, iteration: usize, start: usize) -> &[u8] {
        let tile = match values {
            Values::Of(rank) => &self.inputs[rank],
            Values::Reduced => &self.reduced,
        };
        let phase = (iteration % PERIOD * SHIFT + start) % PERIOD;
        &tile.bytes[phase * self.element..]
    }
}

impl Tile {
    /// Of a period of entries, each divided by `divisor`.
    fn new(period: &[Entry], data_type: DataType, op: ReduceOp, divisor: usize) -> Self {
        let mut bytes = Vec::new();
        for entry in period.iter().cycle().take((REPEAT + 1) * PERIOD) {
            push(*entry, data_type, op, divisor, &mut bytes);
        }
        Self { bytes }
    }
}

fn push(entry: Entry, data_type: DataType, op: ReduceOp, divisor: usize, bytes: &mut Vec<u8>) {
    let Entry { number, rank } = entry;
    let whole = number / divisor as i64;
    // As the kernels divide: in f32, but for f64 and what is made of it.
    let (single, double) = (number as f32 / divisor as f32, number as f64 / divisor as f64);
    // Of complex products only the real part is other than 0.
    let part = if op == ReduceOp::Prod { 0.0 } else { 1.0_f32 };
    match data_type {
        DataType::I16 | DataType::U16 => bytes.extend((whole as u16).to_ne_bytes()),
        DataType::I32 | DataType::U32 => bytes.extend((whole as u32).to_ne_bytes()),
        DataType::I64 | DataType::U64 => bytes.extend(whole.to_ne_bytes()),
        DataType::F16 => bytes.extend(f16::from_f32(single).to_ne_bytes()),
        DataType::BF16 => bytes.extend(bf16::from_f32(single).to_ne_bytes()),
        DataType::E4M3 => bytes.push(F8E4M3::from_f32(single).to_bits()),
        DataType::E5M2 => bytes.push(F8E5M2::from_f32(single).to_bits()),
        DataType::F32 => bytes.extend(single.to_ne_bytes()),
        DataType::F64 => bytes.extend(double.to_ne_bytes()),
        // A sum of zeros has no sign.
        DataType::Complex64 => {
            bytes.extend([single, part * -single].map(|x| (x + 0.0).to_ne_bytes()).concat());
        }
        DataType::Complex128 => {
            bytes.extend([double, f64::from(part) * -double].map(|x| (x + 0.0).to_ne_bytes()).concat());
        }
        DataType::F32I32 => bytes.extend([single.to_ne_bytes(), (rank as i32).to_ne_bytes()].concat()),
        DataType::I32I32 => {
            bytes.extend([(whole as i32).to_ne_bytes(), (rank as i32).to_ne_bytes()].concat())
        }
        DataType::F64I32 => {
            bytes.extend(double.to_ne_bytes());
            bytes.extend([(rank as i32).to_ne_bytes(), [0; 4]].concat());
        }
        DataType::F64I64 => bytes.extend([double.to_ne_bytes(), (rank as i64).to_ne_bytes()].concat()),
        DataType::I64I64 => bytes.extend([whole.to_ne_bytes(), (rank as i64).to_ne_bytes()].concat()),
        // Single bytes, and what a later version may add and the command line refuses.
        _ => bytes.push(whole as u8),
    }
}

/// The operator that another one is on truth values.
const fn meant(data_type: DataType, op: ReduceOp) -> ReduceOp {
    match (data_type, op) {
        (DataType::Bool, ReduceOp::Sum | ReduceOp::Max | ReduceOp::BitOr) => ReduceOp::LogicalOr,
        (DataType::Bool, ReduceOp::Prod | ReduceOp::Min | ReduceOp::BitAnd) => ReduceOp::LogicalAnd,
        (DataType::Bool, ReduceOp::BitXor) => ReduceOp::LogicalXor,
        _ => op,
    }
}

/// The largest power of two up to which the type has all whole numbers.
const fn exact(data_type: DataType) -> usize {
    match data_type {
        DataType::E5M2 => 8,
        DataType::E4M3 => 16,
        DataType::I8 => 64,
        DataType::U8 => 128,
        DataType::BF16 => 256,
        DataType::F16 => 2048,
        DataType::I16 | DataType::U16 => 1 << 14,
        _ => 1 << 24,
    }
}

const fn factor(rank: usize) -> usize {
    1 + rank % 2
}

/// Small whole numbers, such that every partial result is exact in every type: then the order of the additions,
/// which is the algorithm's, does not show.
fn input(rank: usize, ranks: usize, at: usize, data_type: DataType, op: ReduceOp) -> i64 {
    let mut mixed = (rank as u64 * 0x9e37_79b9 + at as u64 + 1).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^= mixed >> 29;
    let random = (mixed.wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 33) as usize;
    let exact = if op == ReduceOp::ScaledSum { exact(data_type) / 2 } else { exact(data_type) };
    let most = (exact / ranks).min(64);
    let any = 1 + random % 100;
    let value = match op {
        ReduceOp::Prod => 1 + random % 2 * usize::from(rank < FACTORS),
        // The sum must divide: all ranks have the same value but one, which has `ranks` more.
        ReduceOp::Avg if ranks <= exact => {
            at % (most.max(2) - 1) + if at % ranks == rank { ranks } else { 0 }
        }
        // Or there is one summand only.
        ReduceOp::Avg => usize::from(at % ranks == rank) * exact,
        ReduceOp::Min | ReduceOp::Max => any,
        ReduceOp::Sum | ReduceOp::ScaledSum if most > 1 => 1 + random % most,
        // Not more ranks have a 1 than the type can count.
        ReduceOp::Sum | ReduceOp::ScaledSum => random % 2 * usize::from((rank + at) % ranks < exact),
        ReduceOp::BitAnd | ReduceOp::BitOr | ReduceOp::BitXor => random % 256,
        // Both results are frequent, whatever the number of ranks; a truth value is 0 or 1.
        ReduceOp::LogicalAnd | ReduceOp::LogicalOr | ReduceOp::LogicalXor => {
            let seldom = at.is_multiple_of(3) && at / 3 % ranks == rank;
            let true_here = match op {
                ReduceOp::LogicalAnd => !seldom,
                ReduceOp::LogicalOr => seldom,
                _ => random % 2 == 1,
            };
            usize::from(true_here) * if matches!(data_type, DataType::Bool) { 1 } else { any }
        }
        // Few values, so that places decide.
        ReduceOp::MinLoc | ReduceOp::MaxLoc => 1 + random % 7,
        _ => 1,
    };
    value as i64
}

fn reduce(inputs: impl Iterator<Item = Entry>, op: ReduceOp) -> Entry {
    let numbers = inputs.map(|entry| match op {
        ReduceOp::ScaledSum => Entry { number: entry.number * factor(entry.rank) as i64, ..entry },
        ReduceOp::LogicalAnd | ReduceOp::LogicalOr | ReduceOp::LogicalXor => {
            Entry { number: i64::from(entry.number != 0), ..entry }
        }
        _ => entry,
    });
    let result = numbers.reduce(|a, b| {
        let number = match op {
            ReduceOp::Prod => a.number * b.number,
            ReduceOp::Min => a.number.min(b.number),
            ReduceOp::Max => a.number.max(b.number),
            ReduceOp::BitAnd | ReduceOp::LogicalAnd => a.number & b.number,
            ReduceOp::BitOr | ReduceOp::LogicalOr => a.number | b.number,
            ReduceOp::BitXor | ReduceOp::LogicalXor => a.number ^ b.number,
            // Ranks come in order: of equal values the first has the lowest place.
            ReduceOp::MinLoc => return if b.number < a.number { b } else { a },
            ReduceOp::MaxLoc => return if b.number > a.number { b } else { a },
            _ => a.number + b.number,
        };
        Entry { number, ..a }
    });
    result.unwrap_or(Entry { number: 0, rank: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_is_found_and_what_is_not_is_counted() {
        for &data_type in DataType::ALL {
            let patterns = Patterns::new(3, 3, data_type, ReduceOp::Sum);
            let size = data_type.size_bytes();
            let mut buffer = vec![0; 12_345 * size];
            patterns.fill(&mut buffer, Values::Reduced, 7, 11);
            assert_eq!(patterns.wrong(&buffer, Values::Reduced, 7, 11), 0);
            assert_eq!(patterns.wrong(&buffer[100 * size..], Values::Reduced, 7, 111), 0);
            buffer[12_000 * size..12_002 * size].iter_mut().for_each(|byte| *byte ^= 0x55);
            assert_eq!(patterns.wrong(&buffer, Values::Reduced, 7, 11), 2);
            // Types with few numbers have the same one in many places.
            let many = if size == 1 { 1000 } else { 10_000 };
            assert!(patterns.wrong(&buffer, Values::Reduced, 8, 11) > many, "{data_type}: another iteration");
            assert!(patterns.wrong(&buffer, Values::Of(0), 7, 11) > many, "{data_type}: an operand alone");
        }
    }

    #[test]
    fn a_prefix_and_another_block_are_told_apart() {
        let of = |reduced| Patterns::new(4, reduced, DataType::F32, ReduceOp::Sum);
        let mut buffer = vec![0; 4 * 12_345];
        for (longer, shorter) in [(4, 3), (3, 2), (2, 1)] {
            of(longer).fill(&mut buffer, Values::Reduced, 5, 0);
            assert_eq!(of(longer).wrong(&buffer, Values::Reduced, 5, 0), 0);
            // Every input is at least 1.
            assert_eq!(of(shorter).wrong(&buffer, Values::Reduced, 5, 0), 12_345);
        }
        for block in 1..128 {
            of(4).fill(&mut buffer, Values::Of(2), 5, block_start(block));
            assert_eq!(of(4).wrong(&buffer, Values::Of(2), 5, block_start(block)), 0);
            assert!(of(4).wrong(&buffer, Values::Of(2), 5, block_start(block - 1)) > 10_000, "{block}");
            assert!(of(4).wrong(&buffer, Values::Of(3), 5, block_start(block)) > 10_000, "{block}");
        }
    }

    #[test]
    fn reductions_are_exact_in_every_type() {
        for &data_type in DataType::ALL {
            for ranks in [1, 2, 5, 64, 100] {
                let of =
                    |op| move |at| (0..ranks).map(move |r| input(r, ranks, at, data_type, op)).sum::<i64>();
                let exact = exact(data_type);
                assert!((0..PERIOD).all(|at| of(ReduceOp::Sum)(at) as usize <= exact), "{data_type} {ranks}");
                assert!((0..PERIOD).all(|at| of(ReduceOp::ScaledSum)(at) as usize * 2 <= exact));
                if ranks <= exact {
                    let sum = of(ReduceOp::Avg);
                    assert!((0..PERIOD).all(|at| sum(at) % ranks as i64 == 0), "{data_type} {ranks}");
                }
            }
        }
    }

    /// A result that were the same whatever is put in could not be wrong.
    #[test]
    fn results_differ_and_depend_on_every_rank() {
        for &data_type in DataType::ALL {
            for &op in ReduceOp::ALL.iter().filter(|op| op.supports(data_type)) {
                let op = meant(data_type, op);
                for ranks in [2, 3, 8] {
                    let entries = |at| {
                        (0..ranks)
                            .map(move |rank| Entry { number: input(rank, ranks, at, data_type, op), rank })
                    };
                    let all: Vec<_> = (0..PERIOD).map(|at| reduce(entries(at), op)).collect();
                    assert!(
                        all.iter().any(|entry| *entry != all[0]) || op == ReduceOp::Avg,
                        "{data_type} {op}"
                    );
                    for left_out in 0..ranks {
                        let without = |at| reduce(entries(at).filter(|entry| entry.rank != left_out), op);
                        let shows = (0..PERIOD).any(|at| without(at) != all[at]);
                        assert!(shows, "{data_type} {op} on {ranks} without {left_out}");
                    }
                }
            }
        }
    }
}
