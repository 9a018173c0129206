//! Direct: ranks reach into each other's memory. All arrive, each does its part in one pass from
//! all inputs to all outputs, all are told, and nobody leaves while another may still touch its memory.
//!
//! A staged rank lends a ring of chunks instead of its heap memory; it copies in before it signals
//! and copies out after everybody is done, chunk by chunk. Its peers see no difference.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Blocks, Operands, Peers, Phase, Role, Rule, Span, Step};

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

fn plan(s: &Schedule) -> Plan {
    let broadcast = s.collective == Collective::Broadcast;
    let root = broadcast && s.rank == s.root;
    let mut len = 0;
    let mut take = |present: bool| {
        let index = len;
        len += u32::from(present);
        present.then_some(index)
    };
    // A broadcast's leaves lend nothing: they copy from the root to their own memory.
    let copy_in = take(s.staged && (!broadcast || root));
    let arrive = take(true).unwrap_or(0);
    let await_arrival = take(!root);
    let work = take(true);
    let done = take(!root);
    let await_done = take(!broadcast || root);
    let copy_out = take(s.staged && s.collective == Collective::AllReduce);
    Plan { copy_in, arrive, await_arrival, work, done, await_done, copy_out, len }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.ranks == 1 { 1 } else { plan(s).len }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return Step::new(work(s));
    }
    let plan = plan(s);
    let at = Some(index);
    let mine = lent(s);
    if at == plan.copy_in {
        let (from, to) = (Span { role: Role::Input, blocks: mine }, Span { role: Role::Stage, blocks: mine });
        let step = Step::new(Action::Copy { whose: None, from, to });
        return match plan.copy_out.or(plan.await_done) {
            Some(free) => step.after(free, Rule::Reuse),
            None => step,
        };
    }
    if index == plan.arrive {
        let step = Step::new(Action::Signal { phase: Phase::Arrival });
        return match plan.copy_in {
            Some(copy) => step.after(copy, Rule::Same),
            None => step,
        };
    }
    if at == plan.await_arrival {
        let from = if s.collective == Collective::Broadcast { Peers::One(s.root) } else { Peers::All };
        return Step::new(Action::Wait { phase: Phase::Arrival, from });
    }
    if at == plan.work {
        let step = Step::new(work(s));
        return match plan.await_arrival {
            Some(wait) => step.after(wait, Rule::Same),
            // A root serves its peers before itself.
            None => step.after(plan.arrive, Rule::Same),
        };
    }
    if at == plan.done {
        let step = Step::new(Action::Signal { phase: Phase::Done });
        return step.after(plan.work.unwrap_or(0), Rule::Same);
    }
    if at == plan.await_done {
        return Step::new(Action::Wait { phase: Phase::Done, from: Peers::All });
    }
    let (from, to) = (Span { role: Role::Stage, blocks: mine }, Span { role: Role::Output, blocks: mine });
    Step::new(Action::Copy { whose: None, from, to }).after(plan.await_done.unwrap_or(0), Rule::Same)
}

/// The blocks of this rank's memory that its peers touch.
fn lent(s: &Schedule) -> Blocks {
    match s.collective {
        Collective::AllGather => Blocks::One(s.rank),
        Collective::Broadcast => Blocks::Each,
        _ => Blocks::Others(s.rank),
    }
}

fn work(s: &Schedule) -> Action {
    let inputs = Operands::All(Span::one(Role::Input, s.rank));
    let own = Span::one(Role::Output, s.rank);
    match s.collective {
        Collective::AllGather => Action::Gather { from: Role::Input },
        Collective::Broadcast => Action::Copy {
            whose: if s.rank == s.root { None } else { Some(s.root) },
            from: Span { role: Role::Input, blocks: Blocks::Each },
            to: Span { role: Role::Output, blocks: Blocks::Each },
        },
        Collective::ReduceScatter => Action::Reduce { inputs, outputs: Operands::Mine(own), last: true },
        _ => Action::Reduce { inputs, outputs: Operands::All(own), last: true },
    }
}
