//! What the ranks put in, and what must come out: small whole numbers, whose sums are exact.

/// After so many elements the values repeat. A prime, so that no element's neighbour in another chunk, round or rank passes for it.
const PERIOD: usize = 1021;

/// The values of all ranks.
#[derive(Debug)]
pub(crate) struct Values {
    /// What this rank contributes, and what the sum is, by (element + shift of the round) modulo the period.
    own: Vec<f32>,
    sums: Vec<f32>,
}

impl Values {
    pub(crate) fn new(rank: u32, ranks: u32) -> Self {
        let value = |rank: u32, at: usize| ((at * 31 + rank as usize * 131) % PERIOD) as f32;
        let own = (0..PERIOD).map(|at| value(rank, at)).collect();
        let sums = (0..PERIOD).map(|at| (0..ranks).map(|rank| value(rank, at)).sum()).collect();
        Self { own, sums }
    }

    pub(crate) fn fill(&self, memory: &mut [f32], round: usize) {
        for (to, value) in memory.iter_mut().zip(from(&self.own, round)) {
            *to = *value;
        }
    }

    /// How many elements are wrong.
    pub(crate) fn wrong(&self, memory: &[f32], round: usize) -> u64 {
        let wrong = memory.iter().zip(from(&self.sums, round)).filter(|(is, should)| is != should);
        wrong.count() as u64
    }
}

/// A round's values.
fn from(values: &[f32], round: usize) -> impl Iterator<Item = &f32> {
    values.iter().cycle().skip(round * 101 % PERIOD)
}
