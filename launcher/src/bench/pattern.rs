//! What the ranks put in and what must come out.
//!
//! Inputs repeat after a prime number of elements and shift from iteration to iteration. So a buffer is filled and
//! checked, all of it, at the speed of memory, whatever the type; and what an earlier iteration left behind, a
//! neighbour's element, or an operand that was left out, shows.

use windlass::{DataType, ReduceOp, bf16, f16};

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

impl Patterns {
    /// For `ranks` ranks, of which the first `reduced` ones are reduced with `op`.
    pub(super) fn new(ranks: usize, reduced: usize, data_type: DataType, op: ReduceOp) -> Self {
        let input = |rank| (0..PERIOD).map(|at| input(rank, ranks, at, data_type, op)).collect::<Vec<i64>>();
        let columns: Vec<Vec<i64>> = (0..ranks).map(input).collect();
        let first = &columns[..reduced];
        let results = (0..PERIOD).map(|at| reduce(first.iter().map(|column| column[at]), ranks, op));
        let reduced = Tile::new(&results.collect::<Vec<_>>(), data_type);
        let inputs = columns.iter().map(|column| Tile::new(column, data_type)).collect();
        Self { element: data_type.size_bytes(), inputs, reduced }
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
    fn new(period: &[i64], data_type: DataType) -> Self {
        let repeated = || period.iter().cycle().take((REPEAT + 1) * PERIOD);
        let bytes = match data_type {
            DataType::U8 => repeated().map(|&v| v as u8).collect(),
            DataType::I32 => repeated().flat_map(|&v| (v as i32).to_ne_bytes()).collect(),
            DataType::I64 => repeated().flat_map(|&v| v.to_ne_bytes()).collect(),
            DataType::F16 => repeated().flat_map(|&v| f16::from_f64(v as f64).to_ne_bytes()).collect(),
            DataType::BF16 => repeated().flat_map(|&v| bf16::from_f64(v as f64).to_ne_bytes()).collect(),
            DataType::F64 => repeated().flat_map(|&v| (v as f64).to_ne_bytes()).collect(),
            // f32, and what a later version may add and the command line refuses.
            _ => repeated().flat_map(|&v| (v as f32).to_ne_bytes()).collect(),
        };
        Self { bytes }
    }
}

/// The largest whole number up to which the type has all of them.
const fn exact(data_type: DataType) -> usize {
    match data_type {
        DataType::U8 => 255,
        DataType::BF16 => 256,
        DataType::F16 => 2048,
        _ => 1 << 24,
    }
}

/// Small whole numbers, such that every partial result is exact in every type: then the order of the additions,
/// which is the algorithm's, does not show.
fn input(rank: usize, ranks: usize, at: usize, data_type: DataType, op: ReduceOp) -> i64 {
    let mut mixed = (rank as u64 * 0x9e37_79b9 + at as u64 + 1).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^= mixed >> 29;
    let random = (mixed.wrapping_mul(0xc4ce_b9fe_1a85_ec53) >> 33) as usize;
    let most = (exact(data_type) / ranks).clamp(2, 64);
    let value = match op {
        ReduceOp::Prod => 1 + random % 2 * usize::from(rank < FACTORS),
        // The sum must divide: all ranks have the same value but one, which has `ranks` more.
        ReduceOp::Avg => at % (most - 1) + if at % ranks == rank { ranks } else { 0 },
        ReduceOp::Min | ReduceOp::Max => 1 + random % 100,
        ReduceOp::Sum => 1 + random % most,
        _ => 1,
    };
    value as i64
}

fn reduce(inputs: impl Iterator<Item = i64>, ranks: usize, op: ReduceOp) -> i64 {
    let result = match op {
        ReduceOp::Prod => return inputs.product(),
        ReduceOp::Min => inputs.min(),
        ReduceOp::Max => inputs.max(),
        ReduceOp::Avg => Some(inputs.sum::<i64>() / ranks as i64),
        _ => Some(inputs.sum()),
    };
    result.unwrap_or(0)
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
            buffer[12_000 * size..12_002 * size].fill(0);
            assert_eq!(patterns.wrong(&buffer, Values::Reduced, 7, 11), 2);
            assert!(patterns.wrong(&buffer, Values::Reduced, 8, 11) > 10_000, "another iteration");
            assert!(patterns.wrong(&buffer, Values::Of(0), 7, 11) > 10_000, "an operand alone");
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
                let sum = |at| (0..ranks).map(|r| input(r, ranks, at, data_type, ReduceOp::Sum)).sum::<i64>();
                assert!((0..PERIOD).all(|at| sum(at) as usize <= exact(data_type)), "{data_type} {ranks}");
                let avg = |at| (0..ranks).map(|r| input(r, ranks, at, data_type, ReduceOp::Avg)).sum::<i64>();
                assert!((0..PERIOD).all(|at| avg(at) % ranks as i64 == 0), "{data_type} {ranks}");
            }
        }
    }
}
