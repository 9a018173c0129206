//! One collective on many ranks, in virtual time, without payload: what it costs there, and whether it is right.
//!
//! Every rank runs the real `Execution` of its real schedule. A message carries its size and what is watched of its contents
//! (`watched`). Each rank has one port outwards and one inwards, which work at the same time: a message of b bytes takes each of
//! the two α + b·β. Combining takes the rank γ a byte. That is the model of the bounds it is compared with (`bound`), so none is beaten. Not
//! simulated: credits and clearances (a message leaves when its sender has it, and waits at the receiver, which is counted), and
//! links that several pairs share.

use windlass_collectives::{Action, Algorithm, Call, Collective, Model, Topology, Unsupported};

use super::world::World;

/// What is to be found out.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The call that all ranks make.
    pub call: Call,
    /// How they do it.
    pub algorithm: Algorithm,
    /// How many they are.
    pub ranks: u32,
    /// α is its `message_ns`, β its `message_byte_ns`, γ its `reduce_byte_ns`.
    pub model: Model,
    /// Decides which elements are watched, and when each rank enters a barrier.
    pub seed: u64,
}

/// What a collective costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// From the last rank's entry to the last rank's end, in nanoseconds.
    pub time_ns: f64,
    /// Messages sent, by all ranks.
    pub messages: u64,
    /// Bytes sent, by all ranks.
    pub bytes: u64,
    /// Links used: pairs of a sender and a receiver.
    pub links: u64,
    /// Bytes over the most loaded link.
    pub most_link_bytes: u64,
    /// Bytes a rank needs beside operand and result: scratch, partial sums, and messages that came before their receive, at
    /// the rank that needs the most.
    pub memory_bytes: u64,
    /// How many elements were watched on every rank: each ended with each rank's part exactly once.
    pub watched: u64,
    /// Of so many.
    pub elements: u64,
}

impl Estimate {
    /// Bytes over a link that is used, on average.
    pub fn mean_link_bytes(&self) -> f64 {
        self.bytes as f64 / self.links.max(1) as f64
    }
}

/// Why there is no estimate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// The algorithm does not serve the collective there.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Messages between two ranks have no algorithm to compare.
    #[error("{0} is between two ranks: simulate a collective")]
    PointToPoint(Collective),
    /// Nothing moved any more: the schedule is wrong.
    #[error("rank {rank} waits for ever at `{action}`: the algorithm {algorithm} is wrong")]
    Deadlock {
        /// Who.
        rank: u32,
        /// The step it cannot end.
        action: Action,
        /// The algorithm.
        algorithm: Algorithm,
    },
    /// A result is wrong: the schedule or the execution is.
    #[error("element {element} of rank {rank} does not hold each rank's part exactly once")]
    Wrong {
        /// Whose.
        rank: u32,
        /// Which.
        element: u64,
    },
    /// A rank left a barrier before all had entered.
    #[error("rank {rank} left the barrier before all ranks had entered it")]
    LeftEarly {
        /// Who.
        rank: u32,
    },
}

impl Experiment {
    /// The algorithms that serve the call, the cheapest by the model first.
    pub fn algorithms(call: &Call, ranks: u32, mapped: bool, model: &Model) -> Vec<Algorithm> {
        let topology = Topology { ranks, mapped, cores: ranks, nodes: None };
        let price = |a: &Algorithm| model.predict(call, &topology, *a);
        let mut serving: Vec<_> = Algorithm::ALL.iter().filter_map(|a| Some((price(a)?, *a))).collect();
        serving.sort_by(|a, b| a.0.total_cmp(&b.0));
        serving.into_iter().map(|(_, algorithm)| algorithm).collect()
    }

    /// At most how many messages it takes. Costs as much as three ranks' schedules are long.
    pub fn messages(&self) -> u64 {
        World::messages(self).unwrap_or(0)
    }

    /// Runs it. `progress` hears now and then how many messages have been received.
    ///
    /// # Errors
    /// See [`ExperimentError`].
    pub fn run(&self, progress: impl FnMut(u64)) -> Result<Estimate, ExperimentError> {
        if self.call.collective.is_point_to_point() {
            return Err(ExperimentError::PointToPoint(self.call.collective));
        }
        let mut world = World::new(self)?;
        world.run(progress);
        world.estimate()
    }
}
