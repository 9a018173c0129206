//! Pair: one message between two ranks; and what a rank alone does.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Operands, Role, Span, Step};

pub(crate) fn len(_: &Schedule) -> u32 {
    1
}

pub(crate) fn step(s: &Schedule, _: u32) -> Step {
    let whole = |role| Span::range(role, 0, 1);
    Step::new(match s.even {
        Collective::Send => Action::Send { to: s.root, from: whole(Role::Input), label: 0 },
        _ => Action::Recv { from: s.root, into: whole(Role::Output), label: 0 },
    })
}

/// A rank alone: the result is its operand, reduced with nothing.
pub(crate) fn alone(s: &Schedule) -> Step {
    let whole = |role| Span::range(role, 0, 1);
    let (from, to) = (whole(Role::Input), whole(Role::Output));
    Step::new(if s.even.reduces() {
        Action::Reduce {
            inputs: Operands::Mine(from),
            outputs: Operands::Mine(to),
            last: s.even != Collective::Scan,
        }
    } else {
        Action::Copy { whose: None, from, to }
    })
}
