//! Publish: every rank copies its operand where its local peers can read it, and each computes the
//! whole result alone. One exchange of flags; a slot is reused only after every peer has ended the
//! operation, which the communicator's watermark of ended operations tells.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Blocks, Operands, Peers, Phase, Role, Rule, Span, Step};

const fn whole(role: Role) -> Span {
    Span { role, blocks: Blocks::Each }
}

fn publishes(s: &Schedule) -> bool {
    s.collective != Collective::Barrier && (s.collective != Collective::Broadcast || s.rank == s.root)
}

fn waits(s: &Schedule) -> bool {
    s.collective != Collective::Broadcast || s.rank != s.root
}

fn alone(s: &Schedule) -> bool {
    s.ranks == 1
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if alone(s) {
        return u32::from(s.collective != Collective::Barrier);
    }
    let result = waits(s) && s.collective != Collective::Barrier || s.collective == Collective::Broadcast;
    u32::from(publishes(s)) + 1 + u32::from(waits(s)) + u32::from(result)
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if alone(s) {
        return result(s);
    }
    let copy = u32::from(publishes(s));
    let wait = copy + u32::from(waits(s));
    if index < copy {
        let blocks = match s.collective {
            Collective::AllGather => Blocks::One(s.rank),
            _ => Blocks::Each,
        };
        return Step::new(Action::Copy {
            whose: None,
            from: Span { role: Role::Input, blocks },
            to: Span { role: Role::Slot, blocks },
        });
    }
    if index == copy {
        let signal = Step::new(Action::Signal { phase: Phase::Arrival });
        return if copy == 1 { signal.after(0, Rule::Same) } else { signal };
    }
    if index == wait && waits(s) {
        let from = if s.collective == Collective::Broadcast { Peers::One(s.root) } else { Peers::All };
        return Step::new(Action::Wait { phase: Phase::Arrival, from });
    }
    let result = result(s);
    let result = if waits(s) { result.after(wait, Rule::Same) } else { result };
    // In place, a reduction overwrites the operand, so it comes after the copy to the slot, which
    // came before the signal. A root serves its peers before itself.
    if s.collective.reduces() || !waits(s) { result.after(copy, Rule::Same) } else { result }
}

fn result(s: &Schedule) -> Step {
    let role = if alone(s) { Role::Input } else { Role::Slot };
    Step::new(match s.collective {
        Collective::AllGather => Action::Gather { from: role },
        Collective::Broadcast => {
            let own = s.rank == s.root;
            Action::Copy {
                whose: if own { None } else { Some(s.root) },
                from: whole(if own { Role::Input } else { Role::Slot }),
                to: whole(Role::Output),
            }
        }
        Collective::ReduceScatter => Action::Reduce {
            inputs: Operands::All(Span::one(role, s.rank)),
            outputs: Operands::Mine(Span::one(Role::Output, s.rank)),
            last: true,
        },
        _ => Action::Reduce {
            inputs: Operands::All(whole(role)),
            outputs: Operands::Mine(whole(Role::Output)),
            last: true,
        },
    })
}
