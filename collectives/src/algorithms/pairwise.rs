//! Pairwise exchange: in round k a rank sends a block to the one k places on and receives one from the one k places back. In
//! every round each rank sends once and receives once, so no receiver is crowded.

use crate::schedule::Schedule;
use crate::step::{Action, Role, Span, Step};

pub(crate) fn len(s: &Schedule) -> u32 {
    2 * (s.ranks - 1) + 1
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    let block = |role, rank| Span::range(role, rank, rank + 1);
    let (round, kind) = (1 + index / 2, index % 2);
    if round == s.ranks {
        let (from, to) = (block(Role::Input, s.rank), block(Role::Output, s.rank));
        return Step::new(Action::Copy { whose: None, from, to });
    }
    Step::new(if kind == 0 {
        let from = (s.rank + s.ranks - round) % s.ranks;
        Action::Recv { from, into: block(Role::Output, from), label: 0 }
    } else {
        let to = (s.rank + round) % s.ranks;
        Action::Send { to, from: block(Role::Input, to), label: 0 }
    })
}
