//! An algorithm's steps for one rank, computed one at a time.

use std::fmt;
use std::str::FromStr;

use crate::Rank;
use crate::algorithms::{
    binomial, chain, circulant, collect, direct, dissemination, double_tree, doubling, exchange,
    hierarchical, linear, pair, pairwise, publish, rabenseifner, ring,
};
use crate::call::Collective;
use crate::nodes::Nodes;
use crate::step::Step;

/// In which order the reductions of an algorithm take the operands: what bits a sum of floats has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Association {
    /// Every element is folded by one Combine over all operands, in rank order, from the left; small floats are rounded once. So its
    /// bits depend on the operands and nothing else: not on the algorithm, the size, the chunks or the place.
    ByRank,
    /// Along a tree of the algorithm's own, of which the block in which an element lies may be a part.
    Own,
    /// It reduces nothing.
    Nothing,
}

macro_rules! algorithms {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $association:ident, $module:ident;)*) => {
        /// The algorithms: one table, of which a row gives the name, in which order reductions take the operands, and the module.
        #[derive(Clone, Copy, Debug, Eq, PartialEq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Algorithm { $($(#[$doc])* $variant = $code,)* }

        impl Algorithm {
            /// Every algorithm.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in `WINDLASS_ALGORITHM` and in `windlass explain`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// In which order its reductions take the operands.
            pub const fn association(self) -> Association {
                match self { $(Self::$variant => Association::$association,)* }
            }
        }

        fn len(s: &Schedule) -> u32 {
            match s.algorithm { $(Algorithm::$variant => $module::len(s),)* }
        }

        fn step(s: &Schedule, index: u32) -> Step {
            match s.algorithm { $(Algorithm::$variant => $module::step(s, index),)* }
        }
    };
}

algorithms! {
    /// Each rank publishes its operand to its local peers and computes the result alone: one
    /// exchange of flags. For small messages on shared memory.
    Publish = 0, "publish", ByRank, publish;
    /// Each rank reduces its part straight from all inputs to all outputs: two exchanges of flags,
    /// every byte read and written once. Shared memory.
    Direct = 1, "direct", ByRank, direct;
    /// Chunks travel around a ring (Patarasuk and Yuan 2009): bandwidth-optimal, 2(p-1) rounds.
    Ring = 2, "ring", Own, ring;
    /// Whole vectors are exchanged with ranks at distance 1, 2, 4…: log₂ p rounds. A scan is that of Hillis and Steele (1986).
    RecursiveDoubling = 3, "recursive-doubling", Own, doubling;
    /// Recursive halving, then recursive doubling (Rabenseifner 2004): bandwidth-optimal, 2 log₂ p rounds.
    Rabenseifner = 4, "rabenseifner", Own, rabenseifner;
    /// A binomial tree from or to the root: log₂ p rounds.
    BinomialTree = 5, "binomial-tree", Own, binomial;
    /// Notices at distance 1, 2, 4… (Hensgen, Finkel and Manber 1988): a barrier in log₂ p rounds.
    Dissemination = 6, "dissemination", Nothing, dissemination;
    /// One message between two ranks.
    Pair = 7, "pair", Nothing, pair;
    /// One message between the root and every other rank.
    Linear = 8, "linear", Nothing, linear;
    /// In round k a rank sends to the one k places on and receives from the one k places back: p-1 messages.
    Pairwise = 9, "pairwise", Nothing, pairwise;
    /// Chunks travel from each rank to the next, once: bandwidth-optimal, p-1 rounds that overlap.
    Chain = 10, "chain", Own, chain;
    /// Halving and doubling on a circulant graph (Träff 2024; the all-gather is that of Bruck et al. 1997): bandwidth-optimal, and
    /// ⌈log₂ p⌉ rounds each way for any p.
    Circulant = 11, "circulant", Own, circulant;
    /// Two binary trees, each for one half of the vector, whose inner ranks are the other's leaves (Sanders, Speck and Träff 2009): full
    /// bandwidth in 2 log₂ p rounds.
    DoubleTree = 12, "double-tree", Own, double_tree;
    /// Each rank collects its part of every operand, folds them at once, and hands out the result: bandwidth-optimal, 2(p-1) messages.
    Exchange = 13, "exchange", ByRank, exchange;
    /// Each rank collects the operands whole, and folds them at once: one round of p-1 messages. For small messages.
    Collect = 14, "collect", ByRank, collect;
    /// Each NUMA node reduces, or fetches, within itself what then crosses between nodes once. Shared memory, on several nodes.
    Hierarchical = 15, "hierarchical", Own, hierarchical;
}

impl Algorithm {
    /// Whether its steps reach peers' memory instead of sending messages.
    pub const fn needs_mapped_peers(self) -> bool {
        matches!(self, Self::Publish | Self::Direct | Self::Hierarchical)
    }

    /// Whether its ranks lend each other their memory, or a stage in its place.
    pub const fn lends_memory(self) -> bool {
        matches!(self, Self::Direct | Self::Hierarchical)
    }

    /// Whether what it makes of a collective has the bits that every other such algorithm makes.
    pub const fn is_reproducible(self, collective: Collective) -> bool {
        !collective.reduces() || matches!(self.association(), Association::ByRank)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is none of the algorithms.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnknownAlgorithm(pub String);

impl fmt::Display for UnknownAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no algorithm; there are", self.0)?;
        for (i, a) in Algorithm::ALL.iter().enumerate() {
            write!(f, "{} {a}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownAlgorithm {}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;
    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        let found = Self::ALL.iter().copied().find(|a| a.name() == name);
        found.ok_or_else(|| UnknownAlgorithm(name.to_owned()))
    }
}

/// The algorithm does not serve the collective on that many ranks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unsupported {
    /// What was asked for.
    pub algorithm: Algorithm,
    /// For this.
    pub collective: Collective,
    /// On so many ranks.
    pub ranks: u32,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "algorithm {} does not serve {} on {} ranks; it can be served by",
            self.algorithm, self.collective, self.ranks
        )?;
        let mut any = false;
        for &a in Algorithm::ALL {
            if a != self.algorithm && Schedule::supports(self.collective, a, self.ranks) {
                write!(f, "{} {a}", if any { "," } else { "" })?;
                any = true;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Unsupported {}

/// Of how many ranks a rank can hold the operands apart.
const MOST_APART: u32 = 1 << 16;

/// What one rank does for one collective: a pure function of a few numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Schedule {
    collective: Collective,
    /// That, with blocks of one length: the steps are the same.
    pub(crate) even: Collective,
    pub(crate) algorithm: Algorithm,
    pub(crate) rank: Rank,
    pub(crate) ranks: u32,
    pub(crate) root: Rank,
    pub(crate) staged: bool,
    /// Of a hierarchical one: into how many parts a vector is cut that has no blocks, and whether this rank's node is the root's.
    lanes: u32,
    pub(crate) near_root: bool,
    len: u32,
}

impl Schedule {
    /// Whether `algorithm` serves `collective` on `ranks` ranks.
    pub const fn supports(collective: Collective, algorithm: Algorithm, ranks: u32) -> bool {
        use Algorithm as A;
        use Collective as C;
        match (collective.even(), algorithm) {
            // The ranks do not know whether what each of them would publish fits into a slot.
            (_, A::Publish) if collective.has_private_lengths() => false,
            (C::Send | C::Recv, A::Pair) => true,
            (C::Send | C::Recv, _) => false,
            (C::Barrier, A::Publish | A::Dissemination) => ranks > 0,
            (C::Barrier, _) => false,
            (_, A::Publish | A::Direct)
            | (
                C::AllReduce,
                A::Ring | A::RecursiveDoubling | A::Rabenseifner | A::Circulant | A::DoubleTree,
            )
            | (C::AllReduce | C::ReduceScatter | C::AllGather | C::Broadcast | C::Reduce, A::Hierarchical)
            | (C::ReduceScatter | C::AllGather, A::Ring)
            | (C::AllGather, A::Circulant)
            | (C::Broadcast | C::Reduce, A::BinomialTree | A::Chain)
            | (C::Gather | C::Scatter, A::Linear)
            | (C::AllToAll, A::Pairwise)
            | (C::Scan | C::ExScan, A::Chain | A::RecursiveDoubling) => ranks > 0,
            (C::AllReduce | C::Reduce | C::ReduceScatter | C::Scan | C::ExScan, A::Exchange)
            | (C::AllReduce | C::Reduce | C::Scan | C::ExScan, A::Collect) => {
                ranks > 0 && ranks <= MOST_APART
            }
            (C::AllGather, A::RecursiveDoubling) => ranks.is_power_of_two(),
            _ => false,
        }
    }

    /// The schedule of `rank` among `ranks`. `staged` says that this rank's memory is heap memory,
    /// which it lends through its stage; it changes nothing that its peers see.
    ///
    /// # Panics
    /// When `rank` or `root` is not below `ranks`: the caller has checked its user's arguments.
    pub fn new(
        collective: Collective,
        algorithm: Algorithm,
        rank: Rank,
        ranks: u32,
        root: Rank,
        staged: bool,
    ) -> Result<Self, Unsupported> {
        assert!(rank < ranks && root < ranks, "rank {rank} and root {root} lie below {ranks}");
        if !Self::supports(collective, algorithm, ranks) {
            return Err(Unsupported { algorithm, collective, ranks });
        }
        let staged = staged && algorithm.lends_memory() && ranks > 1;
        let even = collective.even();
        let (lanes, near_root) = (ranks, true);
        let mut schedule =
            Self { collective, even, algorithm, rank, ranks, root, staged, lanes, near_root, len: 0 };
        schedule.len = len(&schedule);
        Ok(schedule)
    }

    /// The same on these NUMA nodes; without, a hierarchical schedule has its ranks on one.
    #[must_use]
    pub fn on(mut self, nodes: &Nodes) -> Self {
        self.lanes = nodes.widest();
        self.near_root = nodes.node_of(self.rank) == nodes.node_of(self.root);
        self.len = len(&self);
        self
    }

    /// The algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The collective.
    pub const fn collective(&self) -> Collective {
        self.collective
    }

    /// Whether blocks may have different lengths, and so different numbers of chunks.
    pub(crate) const fn is_uneven(&self) -> bool {
        self.collective.is_uneven()
    }

    /// How many steps this rank has. O(1).
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether this rank has nothing to do.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Step `index`, for `index < len()`. O(1) or O(log p).
    pub fn step(&self, index: u32) -> Step {
        debug_assert!(index < self.len);
        step(self, index)
    }

    /// How many blocks the algorithm cuts the vector into.
    pub const fn blocks(&self) -> u32 {
        use Algorithm as A;
        use Collective as C;
        match (self.even, self.algorithm) {
            _ if self.even.has_blocks() => self.ranks,
            (C::AllReduce, A::Direct | A::Ring | A::Circulant | A::Exchange)
            | (C::Reduce | C::Scan | C::ExScan, A::Direct | A::Exchange) => self.ranks,
            (_, A::Hierarchical) => self.lanes,
            (C::AllReduce, A::Rabenseifner) => rabenseifner::participants(self.ranks),
            (C::AllReduce, A::DoubleTree) if self.ranks > 1 => double_tree::TREES,
            _ => 1,
        }
    }

    /// How many memories for partial sums its steps use.
    pub const fn partials(&self) -> u32 {
        use Algorithm as A;
        use Collective as C;
        match (self.even, self.algorithm) {
            _ if self.ranks == 1 => 0,
            (_, A::Exchange | A::Collect) => self.ranks,
            (C::ReduceScatter, A::Ring) if self.is_uneven() => 2,
            (C::ReduceScatter, A::Ring)
            | (C::Reduce, A::BinomialTree)
            | (C::ExScan, A::RecursiveDoubling) => 1,
            _ => 0,
        }
    }

    /// How many scratch rings its steps use.
    pub const fn scratch_rings(&self) -> u32 {
        match self.algorithm {
            _ if !self.even.reduces() => 0,
            Algorithm::Ring | Algorithm::Rabenseifner | Algorithm::RecursiveDoubling => 2,
            Algorithm::BinomialTree | Algorithm::Chain | Algorithm::Circulant => 2,
            Algorithm::DoubleTree => double_tree::RINGS,
            _ => 0,
        }
    }
}

/// A schedule as text, one step a line: what the golden tests review.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} rank {} of {}", self.collective, self.algorithm, self.rank, self.ranks)?;
        if self.collective.rooted() {
            write!(f, " root {}", self.root)?;
        }
        writeln!(f, "{}", if self.staged { " staged" } else { "" })?;
        for i in 0..self.len {
            writeln!(f, "{i:4}  {}", self.step(i))?;
        }
        Ok(())
    }
}
