//! Binomial tree: the root's buffer goes down log₂ p levels, or the sum of all comes up to it. Counted from the root, the parent of rank v is v
//! with its lowest bit cleared, and its children are v + m for every power of two m below that bit.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Operands, Role, Rule, Span, Step};

fn relative(s: &Schedule) -> u32 {
    (s.rank + s.ranks - s.root) % s.ranks
}

fn absolute(s: &Schedule, v: u32) -> u32 {
    (v + s.root) % s.ranks
}

/// The power of two below which this rank's children lie.
fn reach(s: &Schedule) -> u32 {
    match relative(s) {
        0 => s.ranks.next_power_of_two(),
        v => 1 << v.trailing_zeros(),
    }
}

/// Children are v + 1, v + 2, v + 4… below both the reach and p; the farthest, whose subtree is the
/// deepest, is served first.
fn children(s: &Schedule) -> u32 {
    let v = relative(s);
    let limit = reach(s).min(s.ranks - v);
    if limit <= 1 { 0 } else { (limit - 1).ilog2() + 1 }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    match s.even {
        Collective::Broadcast => 1 + children(s),
        _ if s.ranks == 1 => 1,
        _ => 2 * children(s) + u32::from(relative(s) > 0),
    }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    match s.even {
        Collective::Broadcast => broadcast(s, index),
        _ if s.ranks == 1 => super::pair::alone(s),
        _ => reduce(s, index),
    }
}

/// A rank adds what its children send, the nearest first, and sends the sum to its parent. As a child's subtree holds the ranks right after
/// those that are in the sum already, it adds in the order of the ranks from the root on.
fn reduce(s: &Schedule, index: u32) -> Step {
    let (v, children) = (relative(s), children(s));
    let whole = |role| Span::range(role, 0, 1);
    let sum = if v == 0 { Role::Output } else { Role::Partial(0) };
    if index == 2 * children {
        let from = if children == 0 { Role::Input } else { sum };
        let step = Step::new(Action::Send { to: absolute(s, v & (v - 1)), from: whole(from), label: 0 });
        return if children == 0 { step } else { step.after(index - 1, Rule::Same) };
    }
    let (nth, adds) = (index / 2, index % 2 == 1);
    let ring = whole(Role::Scratch((nth % 2) as u8));
    if !adds {
        let step = Step::new(Action::Recv { from: absolute(s, v + (1 << nth)), into: ring, label: 0 });
        let step = step.after(index + 1, Rule::Reuse);
        // The ring's last chunks may still hold what the child before the last one sent.
        return if nth < 2 { step } else { step.after(index - 3, Rule::All) };
    }
    let own = whole(if nth == 0 { Role::Input } else { sum });
    let action = Action::Reduce {
        inputs: Operands::Pair(own, ring),
        outputs: Operands::Mine(whole(sum)),
        last: v == 0 && nth + 1 == children,
    };
    let step = Step::new(action).after(index - 1, Rule::Same);
    if nth == 0 { step } else { step.after(index - 2, Rule::Same) }
}

fn broadcast(s: &Schedule, index: u32) -> Step {
    let v = relative(s);
    let whole = |role| Span::range(role, 0, 1);
    if index == 0 {
        if v == 0 {
            let (from, to) = (whole(Role::Input), whole(Role::Output));
            return Step::new(Action::Copy { whose: None, from, to });
        }
        let parent = absolute(s, v & (v - 1));
        return Step::new(Action::Recv { from: parent, into: whole(Role::Output), label: 0 });
    }
    let child = absolute(s, v + (1 << (children(s) - index)));
    Step::new(Action::Send { to: child, from: whole(Role::Output), label: 0 }).after(0, Rule::Same)
}
