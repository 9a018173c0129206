//! Publish: every rank copies its operand where its local peers can read it, and each computes its
//! result alone. One exchange of flags; a slot is reused only after every peer has ended the
//! operation, which the communicator's watermark of ended operations tells.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Blocks, Operands, Peers, Phase, Role, Rule, Span, Step, Take};

const fn whole(role: Role) -> Span {
    Span { role, blocks: Blocks::Each }
}

fn is_root(s: &Schedule) -> bool {
    s.rank == s.root
}

/// Whether peers need this rank's operand.
fn publishes(s: &Schedule) -> bool {
    match s.even {
        Collective::Barrier => false,
        Collective::Broadcast | Collective::Scatter => is_root(s),
        Collective::Reduce | Collective::Gather => !is_root(s),
        Collective::Scan | Collective::ExScan => s.rank + 1 < s.ranks,
        _ => true,
    }
}

/// Whether this rank needs its peers' operands.
fn waits(s: &Schedule) -> bool {
    match s.even {
        Collective::Broadcast | Collective::Scatter => !is_root(s),
        Collective::Reduce | Collective::Gather => is_root(s),
        Collective::Scan | Collective::ExScan => s.rank > 0,
        _ => true,
    }
}

fn has_result(s: &Schedule) -> bool {
    match s.even {
        Collective::Barrier => false,
        Collective::Reduce | Collective::Gather => is_root(s),
        Collective::ExScan => s.rank > 0,
        _ => true,
    }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.ranks == 1 {
        return u32::from(has_result(s));
    }
    u32::from(publishes(s)) + 1 + u32::from(waits(s)) + u32::from(has_result(s))
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return result(s);
    }
    let copy = u32::from(publishes(s));
    let wait = copy + u32::from(waits(s));
    if index < copy {
        let blocks = match s.even {
            Collective::AllGather | Collective::Gather => Blocks::One(s.rank),
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
        let from = match s.even {
            Collective::Broadcast | Collective::Scatter => Peers::One(s.root),
            _ => Peers::All,
        };
        return Step::new(Action::Wait { phase: Phase::Arrival, from });
    }
    let result = result(s);
    let result = if waits(s) { result.after(wait, Rule::Same) } else { result };
    // In place, a reduction overwrites the operand, so it comes after the copy to the slot, which
    // came before the signal. A root serves its peers before itself.
    if s.even.reduces() && publishes(s) || !waits(s) { result.after(copy, Rule::Same) } else { result }
}

fn result(s: &Schedule) -> Step {
    let role = if s.ranks == 1 { Role::Input } else { Role::Slot };
    let to_output = |inputs, blocks, last| Action::Reduce {
        inputs,
        outputs: Operands::Mine(Span { role: Role::Output, blocks }),
        last,
    };
    Step::new(match s.even {
        Collective::AllGather | Collective::Gather => Action::Gather { from: role, take: Take::Theirs },
        Collective::AllToAll => Action::Gather { from: role, take: Take::Ours },
        Collective::Broadcast => from_root(s, role, Blocks::Each),
        Collective::Scatter => from_root(s, role, Blocks::One(s.rank)),
        Collective::ReduceScatter => {
            let own = Blocks::One(s.rank);
            to_output(Operands::All(Span { role, blocks: own }), own, true)
        }
        Collective::Scan => to_output(Operands::First(s.rank + 1, whole(role)), Blocks::Each, false),
        Collective::ExScan => to_output(Operands::First(s.rank, whole(role)), Blocks::Each, false),
        _ => to_output(Operands::All(whole(role)), Blocks::Each, true),
    })
}

/// A copy of the root's `blocks`, which it reads in its own operand.
pub(super) fn from_root(s: &Schedule, role: Role, blocks: Blocks) -> Action {
    let (whose, role) = if is_root(s) { (None, Role::Input) } else { (Some(s.root), role) };
    Action::Copy { whose, from: Span { role, blocks }, to: Span { role: Role::Output, blocks } }
}
