//! Double binary tree (Sanders, Speck and Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan", 2009).
//!
//! A binary tree leaves the outgoing links of its leaves unused, half of all. Here two trees each reduce one half of the vector to
//! their root and hand the result down; the leaves of the first are inner ranks of the second. Chunks follow each other, so the rounds overlap.
//!
//! The first tree is the binary tree over the ranks in order, without rank 0, which hangs above its root: rank v has height tz(v), its children are v ± 2^(tz(v)-1).
//! The second tree is the first one seen from the other end, or, with an odd number of ranks, one place on.

use crate::schedule::Schedule;
use crate::step::{Action, Operands, Role, Rule, Span, Step};

pub(crate) const TREES: u32 = 2;
/// One ring for each child in each tree.
pub(crate) const RINGS: u32 = 2 * TREES;

/// A rank's neighbours in one tree.
struct Place {
    parent: Option<u32>,
    children: [Option<u32>; 2],
}

impl Place {
    fn children(&self) -> u32 {
        self.children.iter().flatten().count() as u32
    }

    fn child(&self, nth: u32) -> u32 {
        // There are as many as `children` says.
        self.children.iter().flatten().nth(nth as usize).copied().unwrap_or(0)
    }

    /// A receive and a sum for each child, one send up and one receive down, and a send to each child.
    fn len(&self) -> u32 {
        3 * self.children() + if self.parent.is_some() { 2 } else { 0 }
    }
}

/// The place of `v` in the first tree of `ranks` ranks.
fn first_tree(v: u32, ranks: u32) -> Place {
    if v == 0 {
        let top = if ranks > 1 { Some(1 << (ranks - 1).ilog2()) } else { None };
        return Place { parent: None, children: [top, None] };
    }
    let bit = 1 << v.trailing_zeros();
    // Upwards the next higher bit is set in place of this one; where no such rank is, the tree leans the other way.
    let up = (v ^ bit) | bit << 1;
    let parent = if up < ranks { up } else { v ^ bit };
    let below = bit >> 1;
    let lower = (below > 0).then(|| v - below);
    // The upper half may be incomplete: its root is the highest that exists.
    let mut step = below;
    while step > 0 && v + step >= ranks {
        step >>= 1;
    }
    let upper = (step > 0).then(|| v + step);
    Place { parent: Some(parent), children: [lower, upper] }
}

fn place(s: &Schedule, tree: u32) -> Place {
    let p = s.ranks;
    let to = |v: u32| match (tree, p % 2) {
        (0, _) => v,
        (_, 0) => p - 1 - v,
        _ => (v + 1) % p,
    };
    let back = |rank: u32| match (tree, p % 2) {
        (0, _) => rank,
        (_, 0) => p - 1 - rank,
        _ => (rank + p - 1) % p,
    };
    let place = first_tree(back(s.rank), p);
    Place { parent: place.parent.map(to), children: place.children.map(|child| child.map(to)) }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.ranks == 1 { 1 } else { (0..TREES).map(|tree| place(s, tree).len()).sum() }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return super::pair::alone(s);
    }
    let first = place(s, 0);
    match index.checked_sub(first.len()) {
        None => of_tree(&first, 0, index, 0),
        Some(index) => of_tree(&place(s, 1), 1, index, first.len()),
    }
}

/// Step `at` of a tree whose steps begin at `begin`.
fn of_tree(place: &Place, tree: u32, at: u32, begin: u32) -> Step {
    let span = |role| Span::range(role, tree, tree + 1);
    let children = place.children();
    let up = 2 * children;
    let root = place.parent.is_none();
    let (climb, descend) = (tree, TREES + tree);
    if at < up {
        let nth = at / 2;
        let ring = span(Role::Scratch((2 * tree + nth) as u8));
        if at.is_multiple_of(2) {
            let action = Action::Recv { from: place.child(nth), into: ring, label: climb };
            return Step::new(action).after(begin + at + 1, Rule::Reuse);
        }
        let own = span(if nth == 0 { Role::Input } else { Role::Output });
        let action = Action::Reduce {
            inputs: Operands::Pair(own, ring),
            outputs: Operands::Mine(span(Role::Output)),
            last: root && nth + 1 == children,
        };
        let step = Step::new(action).after(begin + at - 1, Rule::Same);
        return if nth == 0 { step } else { step.after(begin + at - 2, Rule::Same) };
    }
    let handed_down = |step: Step, from| step.after(from, Rule::Same);
    if let Some(parent) = place.parent {
        if at == up {
            let from = span(if children == 0 { Role::Input } else { Role::Output });
            let step = Step::new(Action::Send { to: parent, from, label: climb });
            return if children == 0 { step } else { handed_down(step, begin + up - 1) };
        }
        if at == up + 1 {
            // The result overwrites the partial sum, and in place the operand, that has just left.
            let step = Step::new(Action::Recv { from: parent, into: span(Role::Output), label: descend });
            return handed_down(step, begin + up);
        }
    }
    let nth = at - up - if root { 0 } else { 2 };
    let action = Action::Send { to: place.child(nth), from: span(Role::Output), label: descend };
    handed_down(Step::new(action), begin + if root { up - 1 } else { up + 1 })
}
