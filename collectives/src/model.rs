//! What an algorithm will cost, and which one is chosen.
//!
//! The choice is a pure function of the call, the topology, the model and the configuration, all of
//! which the ranks agree on when a communicator is made; so all ranks choose alike.

use std::sync::Arc;

use crate::call::{Call, Collective};
use crate::layout::{Geometry, Layout};
use crate::nodes::Nodes;
use crate::schedule::{Algorithm, Schedule, Unsupported};

/// Who takes part, and over what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Topology {
    /// Ranks of the communicator.
    pub ranks: u32,
    /// Whether every rank can reach every other's memory with loads and stores.
    pub mapped: bool,
    /// Cores that the ranks of the most loaded host share.
    pub cores: u32,
    /// The ranks' NUMA nodes, where they share a host and are bound to more than one.
    pub nodes: Option<Arc<Nodes>>,
}

/// The constants of the cost model: what `windlass tune` measures. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// One exchange of flags between two ranks.
    pub flag_ns: f64,
    /// Reading one more peer's flag line.
    pub line_ns: f64,
    /// Handing a core to another rank, where ranks share cores.
    pub switch_ns: f64,
    /// Reading or writing a byte of cached shared memory.
    pub cached_byte_ns: f64,
    /// What an exchange of flags takes more where it crosses NUMA nodes.
    pub node_flag_ns: f64,
    /// A byte between two NUMA nodes, over the link that all ranks of the two share.
    pub node_byte_ns: f64,
    /// One message to a peer and its receipt.
    pub message_ns: f64,
    /// A byte of a message.
    pub message_byte_ns: f64,
    /// Combining a received byte with one's own.
    pub reduce_byte_ns: f64,
    /// Bytes of a message's chunk.
    pub chunk_bytes: u64,
    /// Bytes of one chunk of the stage, over all blocks.
    pub stage_chunk_bytes: u64,
    /// The most bytes a rank publishes in one slot.
    pub slot_bytes: u64,
}

impl Default for Model {
    /// One current x86 host: shared memory and loopback TCP. Between sockets, what is published of two with two links: 34 GB/s of reads from the
    /// other's memory, and some 60 ns more for a line, of which an exchange of flags takes two.
    fn default() -> Self {
        Self {
            flag_ns: 110.0,
            line_ns: 25.0,
            switch_ns: 1_100.0,
            cached_byte_ns: 0.02,
            node_flag_ns: 120.0,
            node_byte_ns: 0.03,
            message_ns: 6_000.0,
            message_byte_ns: 0.25,
            reduce_byte_ns: 0.08,
            chunk_bytes: 128 << 10,
            stage_chunk_bytes: 64 << 10,
            slot_bytes: 8 << 10,
        }
    }
}

/// The rings of scratch and stage hold this many chunks.
pub const DEPTH: u32 = 4;

/// A piece of a staged block is never smaller: below, the flags cost more than the bytes.
const MIN_PIECE_BYTES: u64 = 2 << 10;

/// What is asked of the choice.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Policy {
    /// An algorithm that overrides the choice for every collective it can serve.
    pub algorithm: Option<Algorithm>,
    /// Reductions are folded by rank, whatever the algorithm: see [`Association::ByRank`](crate::Association::ByRank).
    pub by_rank: bool,
}

impl Policy {
    const fn admits(&self, collective: Collective, algorithm: Algorithm) -> bool {
        !self.by_rank || algorithm.is_reproducible(collective)
    }
}

/// What all ranks do for a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Bytes of a message's chunk.
    pub chunk_bytes: u64,
    /// Bytes of one block's piece in the stage.
    pub piece_bytes: u64,
    /// What the model predicts.
    pub predicted_ns: f64,
}

impl Choice {
    /// The geometry of `schedule` under this choice.
    pub fn geometry(&self, call: &Call, ranks: u32, schedule: &Schedule) -> Geometry {
        self.geometry_of(Layout::of(call, ranks, schedule.blocks()))
    }

    /// The geometry of a schedule over such a layout.
    pub fn geometry_of(&self, layout: Layout) -> Geometry {
        // What is published goes in one piece: the slot holds it whole.
        let piece = if self.algorithm == Algorithm::Publish { layout.bytes() } else { self.piece_bytes };
        Geometry::new(layout, self.chunk_bytes, piece, DEPTH)
    }
}

impl Model {
    /// The stage a rank needs, whatever the call: for the largest piece and for the smallest.
    pub fn stage_bytes(&self, ranks: u32) -> u64 {
        u64::from(DEPTH) * u64::from(ranks) * self.piece_bytes(ranks)
    }

    fn piece_bytes(&self, ranks: u32) -> u64 {
        (self.stage_chunk_bytes / u64::from(ranks.max(1))).max(MIN_PIECE_BYTES).next_multiple_of(64)
    }

    /// The bytes of a block's piece under `algorithm`: fewer blocks have larger ones, and the same stage holds them.
    fn piece_of(&self, call: &Call, topology: &Topology, algorithm: Algorithm) -> u64 {
        let piece = self.piece_bytes(topology.ranks);
        match &topology.nodes {
            Some(nodes) if algorithm == Algorithm::Hierarchical && !call.collective.has_blocks() => {
                (piece * u64::from(topology.ranks) / u64::from(nodes.widest())) & !63
            }
            _ => piece,
        }
    }

    /// What the bytes between NUMA nodes add: those over the busiest link between two.
    fn crossing(&self, call: &Call, topology: &Topology, algorithm: Algorithm) -> f64 {
        use Collective as C;
        let Some(nodes) = &topology.nodes else { return 0.0 };
        let (n, p) = (call.size_bytes(topology.ranks) as f64, f64::from(topology.ranks));
        let (widest, next) = nodes.widest_two();
        let (widest, pairs) = (f64::from(widest), f64::from(widest) * f64::from(next));
        let publishes = algorithm == Algorithm::Publish;
        let bytes = match call.collective.even() {
            C::Barrier => 0.0,
            C::AllToAll => pairs * n / p,
            C::Gather | C::Scatter => widest * n / p,
            // Where each rank reaches for itself, a byte goes to each rank of a node.
            C::AllReduce | C::Scan | C::ExScan if publishes => pairs * n,
            C::Broadcast | C::Reduce if publishes => widest * n,
            C::Broadcast if algorithm == Algorithm::Direct => widest * n,
            C::ReduceScatter | C::AllGather
                if matches!(algorithm, Algorithm::Publish | Algorithm::Direct) =>
            {
                pairs * n / p
            }
            // Operands go one way, and results the other.
            C::Reduce if algorithm == Algorithm::Direct => (pairs + widest) * n / p,
            _ if algorithm == Algorithm::Direct => 2.0 * pairs * n / p,
            // Else to each node once, as by messages it does at least.
            C::ReduceScatter | C::AllGather => widest * n / p,
            _ => n,
        };
        bytes * self.node_byte_ns
    }

    /// What ranks touch in a hierarchical schedule, in bytes, and in how many chunks; nothing where they are on one node.
    fn relayed(&self, call: &Call, topology: &Topology) -> Option<(f64, f64)> {
        use Collective as C;
        let nodes = topology.nodes.as_ref()?;
        let n = call.size_bytes(topology.ranks) as f64;
        let (p, count, lanes) = (topology.ranks, f64::from(nodes.count()), nodes.widest());
        // The ranks of the narrowest node relay most.
        let relayed = n / f64::from(nodes.narrowest());
        let own = n / f64::from(p);
        let bytes = match call.collective.even() {
            C::AllReduce => n + relayed + count * relayed + n,
            C::Reduce => n + relayed + count * relayed + relayed,
            C::ReduceScatter => n + relayed + count * own + own,
            _ => 2.0 * relayed + 2.0 * n,
        };
        let blocks = if call.collective.has_blocks() { p } else { lanes };
        let piece = self.piece_of(call, topology, Algorithm::Hierarchical) as f64;
        Some((bytes, (n / f64::from(blocks) / piece).ceil().max(1.0)))
    }

    /// Whether a rank's slot can hold what it would publish.
    fn publishes(&self, call: &Call, ranks: u32) -> bool {
        let blocks = if call.collective.has_blocks() { u64::from(ranks) } else { 1 };
        let bytes =
            if call.collective.is_uneven() { call.bytes() } else { call.bytes().saturating_mul(blocks) };
        bytes <= self.slot_bytes
    }

    /// The predicted time of `algorithm`, or `None` when it cannot serve the call there.
    pub fn predict(&self, call: &Call, topology: &Topology, algorithm: Algorithm) -> Option<f64> {
        use Collective as C;
        let p = f64::from(topology.ranks);
        let n = call.size_bytes(topology.ranks) as f64;
        if !Schedule::supports(call.collective, algorithm, topology.ranks) {
            return None;
        }
        if algorithm.needs_mapped_peers() && !topology.mapped {
            return None;
        }
        // Before all have come to an exchange, or have had a round's message, every rank of a core has had it.
        let sharing = topology.ranks.div_ceil(topology.cores.max(1));
        let turns = if sharing > 1 { f64::from(sharing) * self.switch_ns } else { 0.0 };
        let apart = if topology.nodes.is_some() { self.node_flag_ns } else { 0.0 };
        let flags = |k: f64| k * (self.flag_ns + apart + (p - 2.0).max(0.0) * self.line_ns + turns);
        let touch = |bytes: f64| bytes * self.cached_byte_ns;
        let message = self.message_ns + turns;
        let send = |bytes: f64| message + bytes * self.message_byte_ns;
        let add = |bytes: f64| bytes * self.reduce_byte_ns;
        // A pipeline of hops: the first chunk goes all the way, the others follow it.
        let chunk = n.min(self.chunk_bytes as f64);
        let pipeline = |hops: f64, hop: &dyn Fn(f64) -> f64| hops * hop(chunk) + hop(n - chunk) - hop(0.0);
        let rounds = f64::from(topology.ranks.next_power_of_two().ilog2());
        let folded = if topology.ranks.is_power_of_two() { 0.0 } else { 2.0 };
        let within = match (algorithm, call.collective.even()) {
            (Algorithm::Publish, _) if !self.publishes(call, topology.ranks) => return None,
            (Algorithm::Publish, C::AllReduce | C::Reduce) => flags(1.0) + touch(2.0 * n + p * n + n),
            (Algorithm::Publish, C::ReduceScatter) => flags(1.0) + touch(2.0 * n + n + n / p),
            (Algorithm::Publish, C::AllGather | C::Gather) => flags(1.0) + touch(2.0 * n / p + 2.0 * n),
            (Algorithm::Publish, C::AllToAll) => flags(1.0) + touch(4.0 * n),
            // A root stores to its slot without waiting; who reads there waits for each line.
            (Algorithm::Publish, C::Scatter) => flags(1.0) + touch(n + 2.0 * n / p),
            (Algorithm::Publish, C::Broadcast) => flags(1.0) + touch(n + 2.0 * n),
            // The last rank reads all operands.
            (Algorithm::Publish, C::Scan | C::ExScan) => flags(1.0) + touch(2.0 * n + p * n + n),
            (Algorithm::Publish, _) => flags(1.0),
            // Where a rank's blocks lie is told in its slot.
            (Algorithm::Direct, _)
                if call.collective.has_private_lengths()
                    && 8 * (u64::from(topology.ranks) + 1) > self.slot_bytes =>
            {
                return None;
            }
            (Algorithm::Direct, C::ReduceScatter) => flags(2.0) + touch(n + n / p),
            (Algorithm::Direct, C::Scatter) => flags(2.0) + touch(2.0 * n / p),
            (Algorithm::Direct, C::Scan | C::ExScan) => flags(2.0) + touch(n * (p + 1.0) / 2.0 + n),
            (Algorithm::Direct, _) => flags(2.0) + touch(2.0 * n),
            (Algorithm::Hierarchical, _) => {
                let (bytes, chunks) = self.relayed(call, topology)?;
                // While some chunks are exchanged, the ring has others.
                flags(3.0) * (1.0 + (chunks - 1.0) / f64::from(DEPTH)) + touch(bytes)
            }
            (Algorithm::Ring, C::AllReduce) => 2.0 * (p - 1.0) * send(n / p) + (p - 1.0) / p * add(n),
            (Algorithm::Ring, C::ReduceScatter) => (p - 1.0) * (send(n / p) + add(n / p)),
            (Algorithm::Ring, _) => (p - 1.0) * send(n / p),
            (Algorithm::RecursiveDoubling, C::AllGather) => {
                rounds * message + (p - 1.0) / p * n * self.message_byte_ns
            }
            (Algorithm::RecursiveDoubling, C::Scan) => rounds * (send(n) + add(n)),
            (Algorithm::RecursiveDoubling, C::ExScan) => rounds * (send(n) + add(n)) + send(n),
            (Algorithm::RecursiveDoubling, _) => (rounds.floor() + folded) * (send(n) + add(n)),
            (Algorithm::Rabenseifner, _) => {
                let halving = (p - 1.0) / p * (2.0 * n * self.message_byte_ns + add(n));
                // Rounds of different sizes do not overlap: a chunk waits for the whole round before.
                2.0 * rounds * message + 1.15 * halving + folded * send(n)
            }
            (Algorithm::Circulant, C::AllReduce) => {
                let halving = (p - 1.0) / p * (2.0 * n * self.message_byte_ns + add(n));
                // A round is mostly two messages, as its blocks pass the vector's end.
                3.0 * rounds * message + 1.15 * halving
            }
            (Algorithm::Circulant, _) => 1.5 * rounds * message + (p - 1.0) / p * n * self.message_byte_ns,
            (Algorithm::DoubleTree, _) => {
                // Each rank is an inner one once: two halves come, one goes, and the same backwards.
                pipeline(2.0 * rounds, &|bytes| send(bytes) + add(bytes))
                    + 0.5 * (n - chunk).max(0.0) * self.message_byte_ns
            }
            (Algorithm::BinomialTree, C::Reduce) => rounds * (send(chunk) + add(chunk)) + send(n) + add(n),
            (Algorithm::BinomialTree, _) => rounds * send(chunk) + send(n),
            (Algorithm::Chain, C::Broadcast) => pipeline((p - 1.0).max(1.0), &send),
            (Algorithm::Chain, _) => pipeline((p - 1.0).max(1.0), &|bytes| send(bytes) + add(bytes)),
            (Algorithm::Linear, _) => {
                // The messages of all but the first overlap; the root's own block does not travel.
                message * (1.0 + 0.2 * (p - 2.0).max(0.0)) + (p - 1.0) / p * n * self.message_byte_ns
            }
            (Algorithm::Pairwise, _) => (p - 1.0) * send(n / p),
            // Of a reduce only the first half is a message to each of the others.
            (Algorithm::Exchange, C::ReduceScatter) => (p - 1.0) * (send(n / p) + add(n / p)),
            (Algorithm::Exchange, C::Scan | C::ExScan) => (p - 1.0) * (2.0 * send(n / p) + 0.5 * add(n)),
            (Algorithm::Exchange, _) => (p - 1.0) * (2.0 * send(n / p) + add(n / p)),
            (Algorithm::Collect, _) => (p - 1.0) * (send(n) + add(n)),
            (Algorithm::Dissemination, _) => rounds * message,
            (Algorithm::Pair, _) => send(n),
        };
        Some(within + self.crossing(call, topology, algorithm))
    }

    /// The algorithm and chunk sizes for a call. The policy's algorithm overrides the choice where it can serve.
    ///
    /// # Errors
    /// When the policy's algorithm serves the collective on no such topology.
    pub fn choose(&self, call: &Call, topology: &Topology, policy: Policy) -> Result<Choice, Unsupported> {
        let wanted = policy.algorithm;
        let price = |a: Algorithm| self.predict(call, topology, a).map(|ns| (a, ns));
        let cheapest = || {
            let admitted = Algorithm::ALL.iter().filter(|a| policy.admits(call.collective, **a));
            let all = admitted.filter_map(|&a| price(a));
            all.min_by(|a, b| a.1.total_cmp(&b.1))
        };
        let chosen = match wanted {
            // An override names an algorithm of one collective; the others keep their own.
            Some(a)
                if Schedule::supports(call.collective, a, topology.ranks)
                    && policy.admits(call.collective, a) =>
            {
                if a.needs_mapped_peers() && !topology.mapped {
                    return Err(Unsupported {
                        algorithm: a,
                        collective: call.collective,
                        ranks: topology.ranks,
                    });
                }
                // Too large to publish: the slot cannot hold it, so the choice is the model's.
                price(a).or_else(cheapest)
            }
            _ => cheapest(),
        };
        let (algorithm, predicted_ns) = chosen.ok_or(Unsupported {
            algorithm: wanted.unwrap_or(Algorithm::Direct),
            collective: call.collective,
            ranks: topology.ranks,
        })?;
        let piece_bytes = self.piece_of(call, topology, algorithm);
        Ok(Choice { algorithm, chunk_bytes: self.chunk_bytes, piece_bytes, predicted_ns })
    }
}

#[cfg(test)]
mod tests {
    use windlass_kernels::{DataType, ReduceOp};

    use super::*;

    fn call(collective: Collective, bytes: u64) -> Call {
        Call { collective, data_type: DataType::F32, op: ReduceOp::Sum, count: bytes / 4, root: 0 }
    }

    fn forced(algorithm: Algorithm) -> Policy {
        Policy { algorithm: Some(algorithm), ..Policy::default() }
    }

    #[test]
    fn by_rank_there_is_a_choice_everywhere_too_and_it_is_reproducible() {
        for &collective in Collective::ALL {
            for ranks in 1..70 {
                for (mapped, bytes) in
                    [(false, 8), (false, 4096), (false, 1 << 30), (true, 8), (true, 1 << 30)]
                {
                    let topology = Topology { ranks, mapped, cores: 2, nodes: None };
                    for algorithm in [None, Some(Algorithm::Ring), Some(Algorithm::Exchange)] {
                        let policy = Policy { algorithm, by_rank: true };
                        let choice =
                            Model::default().choose(&call(collective, bytes), &topology, policy).unwrap();
                        assert!(choice.algorithm.is_reproducible(collective), "{collective} {choice:?}");
                        assert!(mapped || !choice.algorithm.needs_mapped_peers());
                    }
                }
            }
        }
    }

    #[test]
    fn every_collective_has_a_choice_everywhere() {
        for &collective in Collective::ALL {
            for ranks in 1..70 {
                for mapped in [false, true] {
                    for bytes in [0, 8, 4096, 1 << 20, 1 << 34] {
                        let topology = Topology { ranks, mapped, cores: 2, nodes: None };
                        let choice = Model::default()
                            .choose(&call(collective, bytes), &topology, Policy::default())
                            .unwrap();
                        assert!(mapped || !choice.algorithm.needs_mapped_peers());
                    }
                }
            }
        }
    }

    #[test]
    fn small_is_published_and_large_is_direct() {
        let topology = Topology { ranks: 2, mapped: true, cores: 2, nodes: None };
        let of = |bytes| {
            Model::default()
                .choose(&call(Collective::AllReduce, bytes), &topology, Policy::default())
                .unwrap()
        };
        assert_eq!(of(8).algorithm, Algorithm::Publish);
        assert_eq!(of(1 << 20).algorithm, Algorithm::Direct);
    }

    /// Ranks on so many nodes, each with a core of its own.
    fn on_nodes(ranks: u32, nodes: u32) -> Topology {
        let map: Vec<u32> = (0..ranks).map(|rank| rank * nodes / ranks).collect();
        let nodes = (nodes > 1).then(|| Arc::new(Nodes::of(&map)));
        Topology { ranks, mapped: true, cores: ranks, nodes }
    }

    #[test]
    fn the_stage_holds_every_geometry() {
        let model = Model::default();
        for (ranks, nodes) in
            (1..100).flat_map(|ranks| [1, 2, 3, ranks].map(|nodes| (ranks, nodes.min(ranks))))
        {
            let topology = on_nodes(ranks, nodes);
            for (&collective, &algorithm) in
                Collective::ALL.iter().flat_map(|c| Algorithm::ALL.iter().map(move |a| (c, a)))
            {
                let call = call(collective, 1 << 24);
                let serves = algorithm.lends_memory() && model.predict(&call, &topology, algorithm).is_some();
                if !serves {
                    continue;
                }
                let choice = model.choose(&call, &topology, forced(algorithm)).unwrap();
                let schedule = Schedule::new(collective, algorithm, 0, ranks, 0, true).unwrap();
                let schedule = topology.nodes.iter().fold(schedule, |schedule, nodes| schedule.on(nodes));
                let geometry = choice.geometry(&call, ranks, &schedule);
                let held = model.stage_bytes(ranks);
                assert!(geometry.stage_bytes() <= held, "{collective} {algorithm} {ranks} {nodes}");
            }
        }
    }

    #[test]
    fn on_several_nodes_what_goes_to_several_ranks_of_each_is_hierarchical() {
        let chosen = |collective, bytes, topology: &Topology, by_rank| {
            let policy = Policy { algorithm: None, by_rank };
            Model::default().choose(&call(collective, bytes), topology, policy).unwrap().algorithm
        };
        let (two, apart) = (on_nodes(8, 2), on_nodes(2, 2));
        use Collective as C;
        for collective in [C::AllReduce, C::Reduce, C::ReduceScatter, C::AllGather, C::Broadcast] {
            assert_eq!(chosen(collective, 8, &two, false), Algorithm::Publish, "{collective}");
            assert_eq!(chosen(collective, 8 << 20, &two, false), Algorithm::Hierarchical, "{collective}");
            assert_eq!(chosen(collective, 8 << 20, &apart, false), Algorithm::Direct, "{collective}");
            let by_rank = chosen(collective, 8 << 20, &two, true);
            assert_eq!(by_rank == Algorithm::Direct, collective.reduces(), "{collective}: {by_rank}");
        }
        for collective in [C::Gather, C::Scatter, C::AllToAll, C::Scan] {
            assert_ne!(chosen(collective, 8 << 20, &two, false), Algorithm::Hierarchical, "{collective}");
        }
    }

    #[test]
    fn a_wrong_override_names_what_serves() {
        let topology = Topology { ranks: 3, mapped: false, cores: 2, nodes: None };
        let error =
            Model::default().choose(&call(Collective::AllReduce, 8), &topology, forced(Algorithm::Direct));
        assert!(error.unwrap_err().to_string().contains("ring"));
    }
}
