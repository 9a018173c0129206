//! Exchange: each rank collects its part of every operand (a pairwise exchange, after which it has all of them apart), folds
//! them at once in rank order, and hands the result to those who need it. Bandwidth-optimal, 2(p-1) messages a rank.
//!
//! What it costs is memory: the parts of all operands, as large as the vector, wait until they are folded.
//!
//! A scan's part is folded for every rank, the last one first: its result takes the place of the last operand, which no other scan needs.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Blocks, Operands, Role, Rule, Span, Step};

/// Part `block` of the vector.
const fn part(role: Role, block: u32) -> Span {
    Span::range(role, block, block + 1)
}

/// Where the operand of rank `q` waits, and then a result that goes to `q`.
pub(super) const fn place(q: u32) -> Role {
    Role::Partial(q as u16)
}

const fn above(s: &Schedule, round: u32) -> u32 {
    (s.rank + round) % s.ranks
}

const fn below(s: &Schedule, round: u32) -> u32 {
    (s.rank + s.ranks - round) % s.ranks
}

/// How often a rank folds: once, or once for every rank that has a result.
fn folds(s: &Schedule) -> u32 {
    match s.even {
        Collective::Scan => s.ranks,
        Collective::ExScan => s.ranks - 1,
        _ => 1,
    }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    let others = s.ranks - 1;
    if others == 0 {
        return u32::from(s.even != Collective::ExScan);
    }
    let handed_out = match s.even {
        Collective::ReduceScatter => 0,
        Collective::Reduce if s.rank != s.root => 1,
        Collective::Reduce => others,
        // The first rank has no result.
        Collective::ExScan if s.rank == 0 => others,
        Collective::ExScan => 2 * others - 1,
        _ => 2 * others,
    };
    2 * others + folds(s) + handed_out
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return super::pair::alone(s);
    }
    let collected = 2 * (s.ranks - 1);
    let folded = collected + folds(s);
    if index < collected {
        return collect(s, index);
    }
    if index < folded {
        let step = Step::new(fold(s, index - collected));
        return if index == collected {
            step.after_each(0, collected, 2)
        } else {
            step.after(index - 1, Rule::Same)
        };
    }
    hand_out(s, index - folded, collected)
}

/// In round k a rank sends the one k places on its part, and receives its own part from the one k places back.
fn collect(s: &Schedule, index: u32) -> Step {
    let round = 1 + index / 2;
    Step::new(if index.is_multiple_of(2) {
        let from = below(s, round);
        Action::Recv { from, into: part(place(from), s.rank), label: 0 }
    } else {
        let to = above(s, round);
        Action::Send { to, from: part(Role::Input, to), label: 0 }
    })
}

fn fold(s: &Schedule, nth: u32) -> Action {
    let blocks = Blocks::Range { first: s.rank, end: s.rank + 1 };
    let q = s.ranks - 1 - nth;
    let (operands, to) = match s.even {
        Collective::Scan => (q + 1, q),
        Collective::ExScan => (q, q),
        Collective::Reduce => (s.ranks, s.root),
        _ => (s.ranks, s.rank),
    };
    // What goes to another rank waits where this rank's own operand has no need of a place, or where that rank's was.
    let role = match s.even {
        _ if to == s.rank => Role::Output,
        Collective::Reduce => place(s.rank),
        _ => place(to),
    };
    let last = !matches!(s.even, Collective::Scan | Collective::ExScan);
    let outputs = Operands::Mine(Span { role, blocks });
    Action::Reduce { inputs: Operands::Received(operands, blocks), outputs, last }
}

fn hand_out(s: &Schedule, index: u32, collected: u32) -> Step {
    let (even, round) = (index.is_multiple_of(2), 1 + index / 2);
    match s.even {
        Collective::Reduce if s.rank == s.root => take(s, index + 1),
        Collective::Reduce => give(s, s.root, collected),
        Collective::ExScan if s.rank == 0 => give(s, above(s, index + 1), collected),
        _ if even => take(s, round),
        Collective::ExScan => {
            // Nothing goes to the first rank, whose round is left out.
            let first = s.ranks - s.rank;
            give(s, above(s, if round < first { round } else { round + 1 }), collected)
        }
        _ => give(s, above(s, round), collected),
    }
}

fn take(s: &Schedule, round: u32) -> Step {
    let from = below(s, round);
    let step = Step::new(Action::Recv { from, into: part(Role::Output, from), label: 1 });
    // In place, what was sent to that rank was in the same place.
    step.after(2 * (s.ranks - round) - 1, Rule::Same)
}

fn give(s: &Schedule, to: u32, collected: u32) -> Step {
    let (role, fold) = match s.even {
        Collective::Scan | Collective::ExScan => (place(to), s.ranks - 1 - to),
        Collective::Reduce => (place(s.rank), 0),
        _ => (Role::Output, 0),
    };
    Step::new(Action::Send { to, from: part(role, s.rank), label: 1 }).after(collected + fold, Rule::Same)
}
