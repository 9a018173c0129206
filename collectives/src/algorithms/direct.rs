//! Direct: ranks reach into each other's memory. All arrive, each does its part in one pass from
//! all inputs to all outputs, all are told, and nobody leaves while another may still touch its memory.
//!
//! A staged rank lends a ring of chunks instead of its heap memory; it copies in before it signals
//! and copies out after everybody is done, chunk by chunk. Its peers see no difference.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Blocks, Operands, Peers, Phase, Role, Rule, Span, Step, Take};

use super::publish::from_root;

/// Who touches whose memory in a collective, as one rank sees it.
struct Part {
    /// The blocks of this rank's memory that its peers read or write, if any.
    lends: Option<Blocks>,
    /// Whose memory this rank reaches.
    reaches: Option<Peers>,
    /// Who reaches this rank's memory.
    reached_by: Option<Peers>,
    /// Peers write this rank's result.
    is_written: bool,
}

fn part(s: &Schedule) -> Part {
    let (root, other) = (s.rank == s.root, Peers::One(s.root));
    let others = Some(Blocks::Others(s.rank));
    let lent = |lends, is_written| Part {
        lends,
        reaches: Some(Peers::All),
        reached_by: Some(Peers::All),
        is_written,
    };
    let given =
        |lends| Part { lends: Some(lends), reaches: None, reached_by: Some(Peers::All), is_written: false };
    let taken = Part { lends: None, reaches: Some(other), reached_by: None, is_written: false };
    match s.even {
        Collective::AllReduce | Collective::Scan => lent(others, true),
        Collective::ExScan => lent(others, s.rank > 0),
        Collective::Reduce => lent(others, root),
        Collective::AllGather => lent(Some(Blocks::One(s.rank)), false),
        // A root's leaves lend nothing: they copy from the root to their own memory.
        Collective::Broadcast if root => given(Blocks::Each),
        Collective::Scatter if root => given(Blocks::Others(s.rank)),
        Collective::Broadcast | Collective::Scatter => taken,
        Collective::Gather if root => {
            Part { lends: None, reaches: Some(Peers::All), reached_by: None, is_written: false }
        }
        Collective::Gather => {
            let lends = Some(Blocks::One(s.rank));
            Part { lends, reaches: None, reached_by: Some(other), is_written: false }
        }
        _ => lent(others, false),
    }
}

/// The indices of a rank's steps; `None` where it has no such step.
struct Plan {
    copy_in: Option<u32>,
    arrive: u32,
    await_arrival: Option<u32>,
    work: Option<u32>,
    done: Option<u32>,
    await_done: Option<u32>,
    copy_out: Option<u32>,
    len: u32,
}

fn plan(s: &Schedule, part: &Part) -> Plan {
    let mut len = 0;
    let mut take = |present: bool| {
        let index = len;
        len += u32::from(present);
        present.then_some(index)
    };
    // The last operand is in no exclusive scan.
    let is_read = part.lends.is_some() && (s.even != Collective::ExScan || s.rank + 1 < s.ranks);
    let copy_in = take(s.staged && is_read);
    let arrive = take(true).unwrap_or(0);
    let await_arrival = take(part.reaches.is_some());
    let work = take(works(s));
    let done = take(part.reaches.is_some());
    let await_done = take(part.reached_by.is_some());
    let copy_out = take(s.staged && part.is_written);
    Plan { copy_in, arrive, await_arrival, work, done, await_done, copy_out, len }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.ranks == 1 { u32::from(works(s)) } else { plan(s, &part(s)).len }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return Step::new(work(s));
    }
    let part = part(s);
    let plan = plan(s, &part);
    let at = Some(index);
    let lent = part.lends.unwrap_or(Blocks::Each);
    let staged = |role| Span { role, blocks: lent };
    if at == plan.copy_in {
        let (from, to) = (staged(Role::Input), staged(Role::Stage));
        let step = Step::new(Action::Copy { whose: None, from, to });
        return match plan.copy_out.or(plan.await_done) {
            Some(free) => step.after(free, Rule::Reuse),
            None => step,
        };
    }
    if index == plan.arrive {
        let step = Step::new(Action::Signal { phase: Phase::Arrival });
        return match (plan.copy_in, plan.copy_out) {
            (Some(copy), _) => step.after(copy, Rule::Same),
            (None, Some(free)) => step.after(free, Rule::Reuse),
            (None, None) => step,
        };
    }
    if at == plan.await_arrival {
        return Step::new(Action::Wait { phase: Phase::Arrival, from: part.reaches.unwrap_or(Peers::All) });
    }
    if at == plan.work {
        // A root serves its peers before itself.
        return Step::new(work(s)).after(plan.await_arrival.unwrap_or(plan.arrive), Rule::Same);
    }
    if at == plan.done {
        return Step::new(Action::Signal { phase: Phase::Done }).after(plan.work.unwrap_or(0), Rule::Same);
    }
    if at == plan.await_done {
        return Step::new(Action::Wait { phase: Phase::Done, from: part.reached_by.unwrap_or(Peers::All) });
    }
    let (from, to) = (staged(Role::Stage), staged(Role::Output));
    Step::new(Action::Copy { whose: None, from, to }).after(plan.await_done.unwrap_or(0), Rule::Same)
}

/// Whether a rank has a Combine to do.
fn works(s: &Schedule) -> bool {
    match s.even {
        Collective::Gather => s.rank == s.root,
        Collective::ExScan => s.ranks > 1,
        _ => true,
    }
}

fn work(s: &Schedule) -> Action {
    let own = Span::one(Role::Output, s.rank);
    let inputs = Operands::All(Span::one(Role::Input, s.rank));
    let sum = |outputs| Action::Reduce { inputs, outputs, last: true };
    match s.even {
        Collective::AllGather | Collective::Gather => {
            Action::Gather { from: Role::Input, take: Take::Theirs }
        }
        Collective::AllToAll => Action::Gather { from: Role::Input, take: Take::Ours },
        Collective::Broadcast => from_root(s, Role::Input, Blocks::Each),
        Collective::Scatter => from_root(s, Role::Input, Blocks::One(s.rank)),
        Collective::ReduceScatter => sum(Operands::Mine(own)),
        Collective::Reduce => sum(Operands::Of(s.root, own)),
        Collective::Scan => Action::Scan { exclusive: false },
        Collective::ExScan => Action::Scan { exclusive: true },
        _ => sum(Operands::All(own)),
    }
}
