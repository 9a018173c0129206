//! What NUMA nodes do once for all their ranks: whose memory a relay's Combine takes, and what is fetched from whom.

use windlass_collectives::{Blocks, Collective, Holder, Nodes, Role, Span};

use crate::group::Group;

use super::Stream;
use super::bind::runs;

/// The nodes. Without several of them no algorithm is chosen that asks.
fn nodes(group: &Group) -> &Nodes {
    match &group.topology.nodes {
        Some(nodes) => nodes,
        None => unreachable!("ranks of one NUMA node relay nothing for each other"),
    }
}

/// Whether this rank relays block `block` for its node.
pub(super) fn relays(group: &Group, collective: Collective, block: u32) -> bool {
    nodes(group).relays(collective, group.rank, block)
}

impl Stream {
    /// Where block 0 of the stage of rank `q` would begin.
    fn stage(group: &Group, q: u32) -> *mut u8 {
        group.board.as_ref().map_or(std::ptr::null_mut(), |board| board.stage(q as usize).as_ptr())
    }

    /// The operands of the ranks of this rank's node, in their order; how many they are.
    pub(super) fn operands_of_node(
        &mut self,
        group: &Group,
        span: Span,
        at: impl Fn(Role) -> usize,
    ) -> usize {
        let members = nodes(group).members(nodes(group).node_of(group.rank));
        for (nth, &q) in members.iter().enumerate() {
            let (origin, role) = self.of_node(group, q, span.role);
            self.inputs[nth] = origin.wrapping_add(at(role));
        }
        members.len()
    }

    /// Their results; how many they are.
    pub(super) fn results_of_node(&mut self, group: &Group, span: Span, at: impl Fn(Role) -> usize) -> usize {
        let members = nodes(group).members(nodes(group).node_of(group.rank));
        for (nth, &q) in members.iter().enumerate() {
            let (origin, role) = self.of_node(group, q, span.role);
            self.outputs[nth] = origin.wrapping_add(at(role));
        }
        members.len()
    }

    fn of_node(&mut self, group: &Group, q: u32, role: Role) -> (*mut u8, Role) {
        if q == group.rank { (self.own(group, role), role) } else { self.of_peer(group, q, role) }
    }

    /// A block's sums where the relays of all nodes hold them ready, in the order of the nodes; how many they are.
    pub(super) fn sums_of_relays(&mut self, group: &Group, blocks: Blocks, at: usize) -> usize {
        let (Blocks::One(block), Some(active)) = (blocks, self.active()) else { return 0 };
        let (nodes, collective) = (nodes(group), active.plan.call.collective);
        for node in 0..nodes.count() {
            let relay = nodes.relay(collective, node, block);
            self.inputs[node as usize] = Self::stage(group, relay).wrapping_add(at);
        }
        nodes.count() as usize
    }

    /// Copies blocks from those that hold them to one's own memory.
    pub(super) fn fetch(
        &mut self,
        group: &Group,
        from: Holder,
        blocks: Blocks,
        to: Role,
        (first, end): (u32, u32),
    ) {
        let (Some(plan), Some(active)) = (self.plan(), self.active()) else { return };
        let (nodes, collective) = (nodes(group), plan.call.collective);
        let (staged, node, target) = (active.lends_stage(), nodes.node_of(group.rank), self.own(group, to));
        for block in (0..plan.geometry.layout.blocks())
            .filter(|block| blocks == Blocks::Each || nodes.relays(collective, group.rank, *block))
        {
            let (source, role) = match from {
                // A block of one's own that peers find in the stage is there already.
                Holder::Owner if block == group.rank && staged => (Self::stage(group, block), Role::Stage),
                Holder::Owner => self.of_node(group, block, Role::Input),
                Holder::Relay => (Self::stage(group, nodes.relay(collective, node, block)), Role::Stage),
            };
            runs(true, first, end, |a, b| {
                let (s, t) = (
                    plan.geometry.block_piece(role, block, a, b),
                    plan.geometry.block_piece(to, block, a, b),
                );
                let source = source.wrapping_add(s.offset as usize);
                self.copy_bytes(group, source, target.wrapping_add(t.offset as usize), s.bytes as usize, to);
            });
        }
    }
}
