//! Blocks of different lengths, as the bench has them of `all_gather_v` and its like.
//!
//! Of p blocks, block r is r + 1 parts of the vector's 1 + 2 + … + p: the last one is p times as long as the first, and on 2 ranks they are a third and two
//! thirds. Together they are as long as even blocks of `count` elements are, so that times can be compared. Of an all-to-all, what goes from rank r to rank q is
//! block (r + q) mod p: each rank gives and gets blocks of every length, and as much as the others. `peers/bench.c` has the same.

use windlass::{Call, Collective};

/// The elements of each of the vector's blocks.
pub fn lengths(count: usize, ranks: usize) -> Vec<usize> {
    let begin = |block: usize| count * block * (block + 1) / (ranks + 1);
    (0..ranks).map(|block| begin(block + 1) - begin(block)).collect()
}

/// The call of a collective with even blocks that is as large.
pub const fn even(call: &Call) -> Call {
    Call { collective: call.collective.even(), ..*call }
}

/// The elements of the block that goes from one rank to another, or that is of the one where there is but one for each.
pub fn block(collective: Collective, lengths: &[usize], from: usize, to: usize) -> usize {
    match collective {
        Collective::AllToAllV => lengths[(from + to) % lengths.len()],
        _ => lengths[from],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_differ_and_are_as_long_together_as_even_ones() {
        assert_eq!(lengths(3, 2), [2, 4]);
        assert_eq!(lengths(1, 2), [0, 2]);
        for ranks in 1..=64 {
            for count in [0, 1, 3, 1000, 1 << 32] {
                let lengths = lengths(count, ranks);
                assert_eq!(lengths.iter().sum::<usize>(), count * ranks);
                assert!(lengths.is_sorted_by(|a, b| *a <= b + 1), "{lengths:?}");
                assert!(count < 1000 || lengths.is_sorted_by(|a, b| a < b));
                for rank in 0..ranks {
                    let pair = |from, to| block(Collective::AllToAllV, &lengths, from, to);
                    assert_eq!((0..ranks).map(|other| pair(rank, other)).sum::<usize>(), count * ranks);
                    assert_eq!((0..ranks).map(|other| pair(other, rank)).sum::<usize>(), count * ranks);
                }
            }
        }
    }
}
