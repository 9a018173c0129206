//! Binomial tree: the root's buffer goes down log₂ p levels. Counted from the root, rank v receives from v
//! with its lowest bit cleared, and sends to v + m for every power of two m below that bit.

use crate::schedule::Schedule;
use crate::step::{Action, Role, Rule, Span, Step};

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
    1 + children(s)
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
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
