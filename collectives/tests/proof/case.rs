//! What is proved: a collective with all its parameters, as the steps of all its ranks.

use windlass_collectives::{
    Action, Algorithm, Association, Collective, Geometry, Layout, Nodes, Rank, Schedule, Step,
};

use super::value::{Sum, Value, mix};

/// The parameters of one proof.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Case {
    pub(crate) collective: Collective,
    pub(crate) algorithm: Algorithm,
    pub(crate) ranks: u32,
    /// The root of a broadcast, the receiver of a message, which the rank after it sends.
    pub(crate) root: Rank,
    /// As in a call: of the vector, or of a block for all_gather and reduce_scatter.
    pub(crate) count: u64,
    pub(crate) element_bytes: u64,
    pub(crate) chunk_bytes: u64,
    pub(crate) piece_bytes: u64,
    pub(crate) depth: u32,
    /// Bit `r`: rank `r` has heap memory.
    pub(crate) staged: u64,
    pub(crate) in_place: bool,
    /// The NUMA node of each rank; empty: all are on one.
    pub(crate) nodes: &'static [u32],
}

/// The ways in which so many ranks are put on NUMA nodes in the proofs of hierarchical schedules: even and uneven, alone, in blocks, by turns and
/// any other way.
pub(crate) fn node_maps(ranks: u32) -> Vec<&'static [u32]> {
    let mut maps: Vec<&'static [u32]> = vec![&[]];
    let mut add = |node: &dyn Fn(u32) -> u32| {
        let map: Vec<u32> = (0..ranks).map(node).collect();
        if map.iter().any(|node| *node != map[0]) && !maps.contains(&&*map) {
            maps.push(map.leak());
        }
    };
    add(&|rank| rank * 2 / ranks);
    add(&|rank| mix(u64::from(rank * 31 + ranks)) as u32 % 3);
    if ranks <= 9 {
        add(&|rank| rank % 2);
        add(&|rank| rank * 3 / ranks);
        add(&|rank| rank);
        add(&|rank| u32::from(rank + 1 == ranks));
    }
    maps
}

/// Every way to put so many ranks on nodes.
pub(crate) fn every_node_map(ranks: u32) -> Vec<&'static [u32]> {
    let mut maps: Vec<Vec<u32>> = vec![vec![]];
    for _ in 0..ranks {
        let longer = |map: &Vec<u32>| {
            let nodes = map.iter().max().map_or(0, |last| last + 1);
            let longer = |node| map.iter().copied().chain([node]).collect();
            (0..=nodes).map(longer).collect::<Vec<_>>()
        };
        maps = maps.iter().flat_map(longer).collect();
    }
    maps.into_iter().map(|map| &*map.leak()).collect()
}

impl Case {
    /// A case whose elements fill a cache line and whose chunks are one element.
    pub(crate) const fn new(collective: Collective, algorithm: Algorithm, ranks: u32, count: u64) -> Self {
        Self {
            collective,
            algorithm,
            ranks,
            root: 0,
            count,
            element_bytes: 64,
            chunk_bytes: 64,
            piece_bytes: 64,
            depth: 2,
            staged: 0,
            in_place: false,
            nodes: &[],
        }
    }

    /// The ranks' nodes.
    pub(crate) fn nodes(&self) -> Nodes {
        if self.nodes.is_empty() { Nodes::of(&vec![0; self.ranks as usize]) } else { Nodes::of(self.nodes) }
    }

    /// The schedule of `rank`, or `None` where it takes no part.
    pub(crate) fn schedule(&self, rank: Rank) -> Option<Schedule> {
        let (collective, root) = match self.collective {
            Collective::Send | Collective::Recv => {
                if rank == self.root {
                    (Collective::Recv, self.sender())
                } else if rank == self.sender() {
                    (Collective::Send, self.root)
                } else {
                    return None;
                }
            }
            collective => (collective, self.root),
        };
        let staged = self.staged >> (rank % 64) & 1 == 1;
        let schedule = Schedule::new(collective, self.algorithm, rank, self.ranks, root, staged);
        let schedule = schedule.expect("only supported cases are made");
        Some(if self.nodes.is_empty() { schedule } else { schedule.on(&self.nodes()) })
    }

    fn sender(&self) -> Rank {
        (self.root + 1) % self.ranks
    }

    /// The layout of what `rank` has, where all its blocks have one rule.
    pub(crate) fn layout(&self) -> Layout {
        let blocks = self.schedule(self.root).map_or(1, |s| s.blocks());
        if self.collective.has_blocks() {
            Layout::uniform(self.count, self.element_bytes, self.ranks)
        } else {
            Layout::parts(self.count, self.element_bytes, blocks)
        }
    }

    /// Of blocks of different lengths, the elements that one rank has for another: up to twice the count, and at times none.
    fn length(&self, from: Rank, to: Rank) -> u64 {
        let chance = mix(mix(self.count << 20 | u64::from(from)) ^ u64::from(to));
        chance % (2 * self.count + 1)
    }

    /// The elements of the blocks of `rank`'s operand, and of those of its result.
    fn lengths(&self, rank: Rank) -> (Vec<u64>, Vec<u64>) {
        let of = |length: &dyn Fn(Rank) -> u64| (0..self.ranks).map(length).collect::<Vec<u64>>();
        let own = |block: Rank, length: u64| if block == rank || rank == self.root { length } else { 0 };
        match self.collective {
            // All know all lengths; block b has one, whoever has it.
            Collective::AllGatherV | Collective::ReduceScatterV => {
                let all = of(&|b| self.length(b, b));
                (all.clone(), all)
            }
            Collective::GatherV => {
                let known = of(&|b| own(b, self.length(b, self.root)));
                (known.clone(), known)
            }
            Collective::ScatterV => {
                let known = of(&|b| own(b, self.length(self.root, b)));
                (known.clone(), known)
            }
            _ => (of(&|to| self.length(rank, to)), of(&|from| self.length(from, rank))),
        }
    }

    pub(crate) fn geometry(&self, rank: Rank) -> Geometry {
        let of = |layout| Geometry::new(layout, self.chunk_bytes, self.piece_bytes, self.depth);
        if !self.collective.is_uneven() {
            return of(self.layout());
        }
        let (input, output) = self.lengths(rank);
        let [input, output] = [input, output].map(|lengths| Layout::uneven(&lengths, self.element_bytes));
        if input == output { of(input) } else { of(input).with_output(output) }
    }

    pub(crate) fn operation(&self) -> Operation {
        let schedules: Vec<_> = (0..self.ranks).map(|r| self.schedule(r)).collect();
        let steps =
            schedules.iter().map(|s| s.map_or_else(Vec::new, |s| (0..s.len()).map(|i| s.step(i)).collect()));
        let stages = self.algorithm.lends_memory() && self.ranks > 1;
        Operation {
            case: *self,
            nodes: self.nodes(),
            geometries: (0..self.ranks).map(|rank| self.geometry(rank)).collect(),
            rings: schedules.iter().flatten().map(|s| s.scratch_rings()).max().unwrap_or(0),
            partial_bytes: schedules
                .iter()
                .flatten()
                .map(|s| self.geometry(self.root).partial_bytes(s.partials()))
                .max()
                .unwrap_or(0),
            staged: (0..self.ranks).map(|r| stages && self.staged >> (r % 64) & 1 == 1).collect(),
            steps: steps.collect(),
            by_rank: self.algorithm.association() == Association::ByRank,
            muted: None,
            dropped: None,
            doubled: None,
        }
    }
}

/// One operation as all ranks perform it; a canary plants its fault here.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) case: Case,
    pub(crate) nodes: Nodes,
    pub(crate) geometries: Vec<Geometry>,
    pub(crate) rings: u32,
    pub(crate) partial_bytes: u64,
    pub(crate) staged: Vec<bool>,
    pub(crate) steps: Vec<Vec<Step>>,
    /// Whether reductions must be one fold in rank order.
    pub(crate) by_rank: bool,
    /// A step of a rank that is reported complete without having done anything.
    pub(crate) muted: Option<(Rank, u32)>,
    /// A step of a rank that does not wait for one of its dependencies, named by its position.
    pub(crate) dropped: Option<(Rank, u32, usize)>,
    /// A chunk of a step of a rank whose message is sent twice.
    pub(crate) doubled: Option<(Rank, u32, u32)>,
}

impl Operation {
    pub(crate) const fn ranks(&self) -> u32 {
        self.case.ranks
    }

    /// Whether operand and result are one memory. Where they must not be, a case that asks for it means the other.
    pub(crate) fn is_in_place(&self) -> bool {
        self.case.in_place && self.case.collective.may_be_in_place()
    }

    pub(crate) fn geometry(&self, rank: Rank) -> &Geometry {
        &self.geometries[rank as usize]
    }

    /// The elements of the whole vector, as `rank` knows it: of its operand, or of its result if that is longer.
    pub(crate) fn elements(&self, rank: Rank) -> u32 {
        let Geometry { layout, output, .. } = self.geometry(rank);
        self.elements_of(layout.bytes().max(output.as_ref().map_or(0, Layout::bytes)))
    }

    pub(crate) fn elements_of(&self, bytes: u64) -> u32 {
        let size = self.case.element_bytes;
        assert_eq!(bytes % size, 0, "{bytes} bytes are no whole number of elements");
        u32::try_from(bytes / size).expect("a case is small")
    }

    fn block_of_layout(&self, layout: &Layout, block: u32) -> (u32, u32) {
        (self.elements_of(layout.start(block)), self.elements_of(layout.start(block + 1)))
    }

    fn input_block(&self, rank: Rank, block: u32) -> (u32, u32) {
        self.block_of_layout(&self.geometry(rank).layout, block)
    }

    fn output_block(&self, rank: Rank, block: u32) -> (u32, u32) {
        let Geometry { layout, output, .. } = self.geometry(rank);
        self.block_of_layout(output.as_ref().unwrap_or(layout), block)
    }

    /// The elements of the vector that the caller's operand holds on `rank`.
    pub(crate) fn input(&self, rank: Rank) -> (u32, u32) {
        use Collective as C;
        let root = rank == self.case.root;
        let all = (0, self.elements_of(self.geometry(rank).layout.bytes()));
        match self.case.collective.even() {
            C::AllReduce | C::ReduceScatter | C::Reduce | C::AllToAll | C::Scan | C::ExScan => all,
            C::AllGather | C::Gather => self.input_block(rank, rank),
            C::Broadcast | C::Scatter if root => all,
            C::Send if rank == self.case.sender() => all,
            _ => (0, 0),
        }
    }

    /// The elements of the vector that the caller's result holds on `rank`.
    pub(crate) fn output(&self, rank: Rank) -> (u32, u32) {
        use Collective as C;
        let root = rank == self.case.root;
        let Geometry { layout, output, .. } = self.geometry(rank);
        let all = (0, self.elements_of(output.as_ref().unwrap_or(layout).bytes()));
        match self.case.collective.even() {
            C::AllReduce | C::AllGather | C::Broadcast | C::AllToAll | C::Scan => all,
            C::ExScan if rank > 0 => all,
            C::ReduceScatter | C::Scatter => self.output_block(rank, rank),
            C::Send | C::Reduce | C::Gather if root => all,
            _ => (0, 0),
        }
    }

    /// The block of `rank`'s result in which an element lies.
    fn block_of(&self, rank: Rank, element: u32) -> u32 {
        let blocks = self.geometry(rank).layout.blocks();
        let holds = |b: &u32| {
            let (first, end) = self.output_block(rank, *b);
            (first..end).contains(&element)
        };
        (0..blocks).find(holds).expect("every element lies in a block")
    }

    /// Whether `value` is the reduction of `ranks`' elements `element`: of each exactly once, and folded by rank where that is promised. The tree of
    /// a value is a hash of its expression, so another order, another grouping or a rounding in between is another tree.
    fn is_reduction(
        &self,
        turn: usize,
        ranks: std::ops::Range<Rank>,
        element: u32,
        last: bool,
        value: Value,
    ) -> bool {
        let mut sum = Sum::default();
        for rank in ranks {
            sum.add(Value::input(turn, rank, element)).expect("an input is not final");
        }
        let expected = sum.result(last);
        let tree = if self.by_rank { expected.tree } else { value.tree };
        value == Value { tree, ..expected }
    }

    /// Whether `value` is what element `element` of `rank`'s result must be in the `turn`-th operation.
    pub(crate) fn is_result(&self, turn: usize, rank: Rank, element: u32, value: Value) -> bool {
        use Collective as C;
        let reduces = |ranks, last| self.is_reduction(turn, ranks, element, last, value);
        // Where an element of block `to` of the result lies in block `from` of its owner's operand.
        let moved = |to: u32, owner: Rank, from: u32| {
            (owner, element - self.output_block(rank, to).0 + self.input_block(owner, from).0)
        };
        let (owner, source) = match self.case.collective.even() {
            C::AllReduce | C::ReduceScatter | C::Reduce => {
                return reduces(0..self.ranks(), true);
            }
            // An average over another number of ranks on each would be none: nothing is divided.
            C::Scan => return reduces(0..rank + 1, false),
            C::ExScan => return reduces(0..rank, false),
            C::AllGather | C::Gather => {
                let q = self.block_of(rank, element);
                moved(q, q, q)
            }
            // Block q is what rank q has for this rank.
            C::AllToAll => {
                let q = self.block_of(rank, element);
                moved(q, q, rank)
            }
            C::Scatter => moved(rank, self.case.root, rank),
            C::Broadcast => (self.case.root, element),
            _ => (self.case.sender(), element),
        };
        value == Value::input(turn, owner, source)
    }

    /// Gives a step another action and leaves its dependencies.
    pub(crate) fn replace_action(&mut self, rank: Rank, step: u32, action: Action) {
        self.steps[rank as usize][step as usize].action = action;
    }
}
