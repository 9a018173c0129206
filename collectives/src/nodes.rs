//! Which ranks of a host share a NUMA node, and which of them relays what between nodes.

use crate::Rank;
use crate::call::Collective;

/// The NUMA nodes of a communicator's ranks, where they are on more than one.
///
/// A rank's *place* is its number among the ranks of its node. Each block has a *lane*, and the rank of a node whose place is the lane's number
/// relays the block for its node; in a node with fewer places than the widest has lanes, they begin again from the first place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nodes {
    /// The ranks of each node.
    members: Vec<Vec<Rank>>,
    /// The node of each rank, and its place there.
    places: Vec<(u32, u32)>,
}

impl Nodes {
    /// From the node of each rank. The numbers' values do not matter: nodes count from the one of rank 0 on, in the order of their first ranks.
    pub fn of(node_of_rank: &[u32]) -> Self {
        let mut names: Vec<u32> = Vec::new();
        let mut nodes = Self { members: Vec::new(), places: Vec::with_capacity(node_of_rank.len()) };
        for (rank, name) in (0..).zip(node_of_rank) {
            let node = names.iter().position(|known| known == name).unwrap_or(names.len());
            if node == names.len() {
                names.push(*name);
                nodes.members.push(Vec::new());
            }
            nodes.places.push((node as u32, nodes.members[node].len() as u32));
            nodes.members[node].push(rank);
        }
        nodes
    }

    /// How many there are.
    pub const fn count(&self) -> u32 {
        self.members.len() as u32
    }

    /// The ranks of the node that has most of them: as many lanes there are.
    pub fn widest(&self) -> u32 {
        self.members.iter().map(Vec::len).max().unwrap_or(1) as u32
    }

    /// That, and the ranks of the node that has most of the others.
    pub fn widest_two(&self) -> (u32, u32) {
        let sizes = self.members.iter().map(|members| members.len() as u32);
        sizes.fold(
            (0, 0),
            |(most, next), size| if size > most { (size, most) } else { (most, next.max(size)) },
        )
    }

    /// The ranks of the node that has fewest.
    pub fn narrowest(&self) -> u32 {
        self.members.iter().map(Vec::len).min().unwrap_or(1) as u32
    }

    /// The node of `rank`.
    #[inline]
    pub fn node_of(&self, rank: Rank) -> u32 {
        self.places[rank as usize].0
    }

    /// The ranks of `node`, in order.
    #[inline]
    pub fn members(&self, node: u32) -> &[Rank] {
        &self.members[node as usize]
    }

    /// The rank of `node` that relays block `block`. The lane of a rank's own block is the rank's place; where blocks are but
    /// parts of a vector, each is a lane.
    #[inline]
    pub fn relay(&self, collective: Collective, node: u32, block: u32) -> Rank {
        let lane = if collective.has_blocks() { self.places[block as usize].1 } else { block };
        let members = self.members(node);
        members[lane as usize % members.len()]
    }

    /// Whether `rank` relays block `block` for its node.
    #[inline]
    pub fn relays(&self, collective: Collective, rank: Rank, block: u32) -> bool {
        self.relay(collective, self.node_of(rank), block) == rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_numbered_by_their_first_ranks() {
        let nodes = Nodes::of(&[7, 3, 7, 7]);
        assert_eq!(nodes, Nodes::of(&[0, 1, 0, 0]));
        assert_eq!((nodes.count(), nodes.widest(), nodes.narrowest()), (2, 3, 1));
        assert_eq!(nodes.widest_two(), (3, 1));
        assert_eq!(Nodes::of(&[0, 1, 1, 2, 2, 2]).widest_two(), (3, 2));
        assert_eq!((nodes.members(0), nodes.members(1)), (&[0, 2, 3][..], &[1][..]));
    }

    #[test]
    fn every_node_has_one_relay_for_each_block_and_every_rank_relays_some() {
        for map in [&[0, 0, 1, 1][..], &[0, 1, 0, 1], &[0, 0, 0, 1], &[0, 1, 1, 2, 2, 2], &[0, 1, 2]] {
            let (nodes, ranks) = (Nodes::of(map), map.len() as u32);
            for (collective, blocks) in
                [(Collective::AllReduce, nodes.widest()), (Collective::AllGather, ranks)]
            {
                let relays = |rank, block| nodes.relays(collective, rank, block);
                for block in 0..blocks {
                    for node in 0..nodes.count() {
                        let many = nodes.members(node).iter().filter(|rank| relays(**rank, block)).count();
                        assert_eq!(many, 1, "{map:?}: block {block} in node {node}");
                    }
                }
                assert!((0..ranks).all(|rank| (0..blocks).any(|block| relays(rank, block))), "{map:?}");
            }
            assert!((0..ranks).all(|rank| nodes.relays(Collective::AllGather, rank, rank)), "{map:?}");
        }
    }
}
