//! What no algorithm can beat: the lower bounds of Chan, Heimlich, Purkayastha and van de Geijn, "Collective communication: theory, practice,
//! and experience" (Concurrency and Computation 19, 2007), section 3, in their model: a rank sends to one and
//! receives from one other rank at a time, a message of b bytes takes α + b·β, and combining takes γ a byte.

use windlass_collectives::{Call, Collective, Model};

/// The least that a collective takes in each of the three respects, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowerBound {
    /// ⌈log₂ p⌉·α: who knows doubles with each message.
    pub latency_ns: f64,
    /// What a rank must send or receive, times β.
    pub bandwidth_ns: f64,
    /// What a rank must combine if all share the work, times γ.
    pub compute_ns: f64,
}

impl LowerBound {
    /// Of a call on so many ranks.
    pub fn of(call: &Call, ranks: u32, model: &Model) -> Self {
        let (p, n) = (f64::from(ranks), call.size_bytes(ranks) as f64);
        let share = (p - 1.0) / p * n;
        let (moved, combined) = match call.collective {
            Collective::AllReduce => (2.0 * share, share),
            Collective::ReduceScatter => (share, share),
            // A root sends or receives all but its own part; in an exchange each rank does.
            Collective::AllGather | Collective::Gather | Collective::Scatter | Collective::AllToAll => {
                (share, 0.0)
            }
            Collective::Broadcast if ranks > 1 => (n, 0.0),
            Collective::Reduce => (if ranks > 1 { n } else { 0.0 }, share),
            // Rank 0 sends all of its operand, the last rank receives as much and adds its own to it.
            Collective::Scan if ranks > 1 => (n, n),
            Collective::ExScan if ranks > 1 => (n, 0.0),
            _ => (0.0, 0.0),
        };
        Self {
            latency_ns: f64::from(ranks.next_power_of_two().ilog2()) * model.message_ns,
            bandwidth_ns: moved * model.message_byte_ns,
            compute_ns: combined * model.reduce_byte_ns,
        }
    }

    /// No algorithm is faster than the largest of them.
    pub const fn time_ns(&self) -> f64 {
        self.latency_ns.max(self.bandwidth_ns).max(self.compute_ns)
    }
}
