//! Dissemination barrier (Hensgen, Finkel and Manber 1988): in round j a rank notifies the one at distance
//! 2^j; after ⌈log₂ p⌉ rounds each has heard, directly or not, from all.

use crate::schedule::Schedule;
use crate::step::{Action, Role, Rule, Span, Step};

pub(crate) fn len(s: &Schedule) -> u32 {
    2 * s.ranks.next_power_of_two().ilog2()
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    let (round, kind) = (index / 2, index % 2);
    let distance = 1 << round;
    let nothing = |role| Span::range(role, 0, 0);
    if kind == 0 {
        let to = (s.rank + distance) % s.ranks;
        let step = Step::new(Action::Send { to, from: nothing(Role::Input), label: round });
        return if round == 0 { step } else { step.after(index - 1, Rule::All) };
    }
    let from = (s.rank + s.ranks - distance % s.ranks) % s.ranks;
    let step = Step::new(Action::Recv { from, into: nothing(Role::Output), label: round });
    // A notice says that all earlier ones have been heard too; after the last one, none is sent.
    if round == 0 || index + 1 == len(s) { step } else { step.after(index - 2, Rule::All) }
}
