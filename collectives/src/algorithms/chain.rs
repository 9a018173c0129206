//! Chain: chunks travel from each rank to the next. A vector's p-1 hops overlap, so that a long one takes hardly longer than a single hop.
//!
//! A broadcast begins at the root and goes up in rank; a reduction comes back down to it, each rank adding its operand as the lower one. A
//! scan begins at rank 0, and what arrives at a rank is the reduction of all before it.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Operands, Role, Rule, Span, Step};

const RECEIVED: Role = Role::Scratch(0);
const SUM: Role = Role::Scratch(1);

fn whole(role: Role) -> Span {
    Span::range(role, 0, 1)
}

/// This rank's place, the first one being the end at which the root is, or rank 0.
fn place(s: &Schedule) -> u32 {
    let first = if s.even.rooted() { s.root } else { 0 };
    (s.rank + s.ranks - first) % s.ranks
}

fn next(s: &Schedule) -> u32 {
    (s.rank + 1) % s.ranks
}

fn before(s: &Schedule) -> u32 {
    (s.rank + s.ranks - 1) % s.ranks
}

fn send(to: u32, from: Role) -> Step {
    Step::new(Action::Send { to, from: whole(from), label: 0 })
}

fn recv(from: u32, into: Role) -> Step {
    Step::new(Action::Recv { from, into: whole(into), label: 0 })
}

fn copy(from: Role, to: Role) -> Step {
    Step::new(Action::Copy { whose: None, from: whole(from), to: whole(to) })
}

/// What an operator makes of one operand: a logical one makes 1 of all that is not 0.
fn one(from: Role, to: Role) -> Step {
    let inputs = Operands::Mine(whole(from));
    Step::new(Action::Reduce { inputs, outputs: Operands::Mine(whole(to)), last: false })
}

fn sum(first: Role, second: Role, to: Role, last: bool) -> Step {
    let inputs = Operands::Pair(whole(first), whole(second));
    Step::new(Action::Reduce { inputs, outputs: Operands::Mine(whole(to)), last })
}

pub(crate) fn len(s: &Schedule) -> u32 {
    let (first, last) = (place(s) == 0, place(s) == s.ranks - 1);
    match s.even {
        Collective::ExScan if s.ranks == 1 => 0,
        _ if s.ranks == 1 => 1,
        Collective::Broadcast => 1 + u32::from(!last),
        Collective::Reduce => match (first, last) {
            (_, true) => 1,
            (true, _) => 2,
            _ => 3,
        },
        Collective::Scan => 1 + u32::from(!first) + u32::from(!last),
        _ => match (first, last) {
            (_, true) => 1,
            (true, _) => 2,
            _ => 4,
        },
    }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    match s.even {
        _ if s.ranks == 1 => super::pair::alone(s),
        Collective::Broadcast => broadcast(s, index),
        Collective::Reduce => reduce(s, index),
        Collective::Scan => scan(s, index),
        _ => exscan(s, index),
    }
}

fn broadcast(s: &Schedule, index: u32) -> Step {
    match (index, place(s)) {
        (0, 0) => copy(Role::Input, Role::Output),
        (0, _) => recv(before(s), Role::Output),
        _ => send(next(s), Role::Output).after(0, Rule::Same),
    }
}

fn reduce(s: &Schedule, index: u32) -> Step {
    let root = place(s) == 0;
    match index {
        0 if place(s) == s.ranks - 1 => send(before(s), Role::Input),
        0 => recv(next(s), RECEIVED).after(1, Rule::Reuse),
        1 if root => sum(Role::Input, RECEIVED, Role::Output, true).after(0, Rule::Same),
        1 => sum(Role::Input, RECEIVED, SUM, false).after(0, Rule::Same).after(2, Rule::Reuse),
        _ => send(before(s), SUM).after(1, Rule::Same),
    }
}

/// An operator that divides serves no scan, so no sum need be the last.
fn scan(s: &Schedule, index: u32) -> Step {
    match (index, place(s)) {
        (0, 0) => one(Role::Input, Role::Output),
        (0, _) => recv(before(s), RECEIVED).after(1, Rule::Reuse),
        (1, 1..) => sum(RECEIVED, Role::Input, Role::Output, false).after(0, Rule::Same),
        _ => send(next(s), Role::Output).after(index - 1, Rule::Same),
    }
}

fn exscan(s: &Schedule, index: u32) -> Step {
    match index {
        0 if place(s) == 0 => one(Role::Input, SUM).after(1, Rule::Reuse),
        1 if place(s) == 0 => send(next(s), SUM).after(0, Rule::Same),
        // In place, the result overwrites the operand, which nobody needs any more.
        0 if place(s) == s.ranks - 1 => recv(before(s), Role::Output),
        0 => recv(before(s), RECEIVED).after(3, Rule::Reuse),
        1 => sum(RECEIVED, Role::Input, SUM, false).after(0, Rule::Same).after(2, Rule::Reuse),
        2 => send(next(s), SUM).after(1, Rule::Same),
        // In place, the result overwrites the operand: after the sum.
        _ => copy(RECEIVED, Role::Output).after(1, Rule::Same),
    }
}
