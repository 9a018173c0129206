//! Hierarchical: between NUMA nodes a byte goes once for each node that needs it, not once for each rank.
//!
//! A *relay* is the rank of a node that does a block's work for all of that node ([`crate::Nodes`]). In a reduction each node's relay first
//! sums its node's operands, in rank order; then whoever has the result to make sums what the nodes' relays have, in the order of the nodes,
//! which is the same on every rank that computes an element. In a movement each node's relay fetches the block from its owner, and
//! the ranks of the node read it there.
//!
//! What a relay holds ready lies in its stage, as chunks of a ring: it stays in its cache, whatever memory the caller has. A rank that
//! lends its stage in the place of heap memory lends other blocks than it relays, or the same bytes.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Blocks, Holder, Operands, Peers, Phase, Role, Rule, Span, Step};

use super::publish::from_root;

/// What a rank does for its node, if anything.
fn relay(s: &Schedule) -> Option<Action> {
    let relayed = |role| Span { role, blocks: Blocks::Relayed };
    match s.even {
        // On the root's node its own memory is as near as a relay's.
        Collective::Broadcast if s.near_root => None,
        Collective::Broadcast => {
            let (from, to) = (relayed(Role::Input), relayed(Role::Stage));
            Some(Action::Copy { whose: Some(s.root), from, to })
        }
        Collective::AllGather => {
            Some(Action::Fetch { from: Holder::Owner, blocks: Blocks::Relayed, to: Role::Stage })
        }
        _ => {
            let (inputs, outputs) = (relayed(Role::Input), relayed(Role::Stage));
            Some(Action::Reduce {
                inputs: Operands::Node(inputs),
                outputs: Operands::Mine(outputs),
                last: false,
            })
        }
    }
}

/// What it does with what the relays hold ready, if anything.
fn work(s: &Schedule) -> Option<Action> {
    let fetch = Action::Fetch { from: Holder::Relay, blocks: Blocks::Each, to: Role::Output };
    let sum = |blocks, outputs: fn(Span, &Schedule) -> Operands| Action::Reduce {
        inputs: Operands::Relays(blocks),
        outputs: outputs(Span { role: Role::Output, blocks }, s),
        last: true,
    };
    match s.even {
        Collective::Broadcast if s.near_root => Some(from_root(s, Role::Input, Blocks::Each)),
        Collective::Broadcast | Collective::AllGather => Some(fetch),
        Collective::ReduceScatter => Some(sum(Blocks::One(s.rank), |span, _| Operands::Mine(span))),
        Collective::Reduce if !s.near_root => None,
        Collective::Reduce => Some(sum(Blocks::Relayed, |span, s| Operands::Of(s.root, span))),
        _ => Some(sum(Blocks::Relayed, |span, _| Operands::Node(span))),
    }
}

/// The blocks of its memory that its peers read, if any.
fn lends(s: &Schedule) -> Option<Blocks> {
    match s.even {
        Collective::Broadcast => (s.rank == s.root).then_some(Blocks::Each),
        Collective::AllGather => Some(Blocks::One(s.rank)),
        _ => Some(Blocks::Unrelayed),
    }
}

/// Whether peers write its result.
fn is_written(s: &Schedule) -> bool {
    match s.even {
        Collective::AllReduce => true,
        Collective::Reduce => s.rank == s.root,
        _ => false,
    }
}

/// The indices of a rank's steps; `None` where it has no such step.
struct Plan {
    copy_in: Option<u32>,
    arrive: Option<u32>,
    await_arrival: Option<u32>,
    relay: Option<u32>,
    relayed: Option<u32>,
    await_relayed: Option<u32>,
    work: Option<u32>,
    done: Option<u32>,
    await_done: Option<u32>,
    copy_out: Option<u32>,
    len: u32,
}

fn plan(s: &Schedule) -> Plan {
    let mut len = 0;
    let mut take = |present: bool| {
        let index = len;
        len += u32::from(present);
        present.then_some(index)
    };
    let (relays, works, lends) = (relay(s).is_some(), work(s).is_some(), lends(s).is_some());
    let only_gives = s.even == Collective::Broadcast && s.rank == s.root;
    Plan {
        copy_in: take(s.staged && lends),
        arrive: take(true),
        await_arrival: take(!only_gives),
        relay: take(relays),
        relayed: take(true),
        await_relayed: take(relays && works),
        work: take(works),
        done: take(true),
        await_done: take(relays || lends),
        copy_out: take(s.staged && is_written(s)),
        len,
    }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.ranks == 1 { 1 } else { plan(s).len }
}

/// The same step, after others where there are such.
fn after(step: Step, others: impl IntoIterator<Item = Option<u32>>, rule: Rule) -> Step {
    others.into_iter().flatten().fold(step, |step, other| step.after(other, rule))
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return super::pair::alone(s);
    }
    let plan = plan(s);
    let at = Some(index);
    let staged = |role| Span { role, blocks: lends(s).unwrap_or(Blocks::Each) };
    let signal = |phase| Step::new(Action::Signal { phase });
    let wait = |phase| Step::new(Action::Wait { phase, from: Peers::All });
    let copy = |from, to| Step::new(Action::Copy { whose: None, from: staged(from), to: staged(to) });
    if at == plan.copy_in {
        return after(copy(Role::Input, Role::Stage), [plan.copy_out.or(plan.await_done)], Rule::Reuse);
    }
    if at == plan.arrive {
        return after(signal(Phase::Arrival), [plan.copy_in], Rule::Same);
    }
    if at == plan.await_arrival {
        return wait(Phase::Arrival);
    }
    if at == plan.relay
        && let Some(action) = relay(s)
    {
        let step = after(Step::new(action), [plan.await_arrival], Rule::Same);
        return after(step, [plan.await_done], Rule::Reuse);
    }
    if at == plan.relayed {
        return after(signal(Phase::Relayed), [plan.relay], Rule::Same);
    }
    if at == plan.await_relayed {
        return wait(Phase::Relayed);
    }
    if at == plan.work
        && let Some(action) = work(s)
    {
        let needs = match plan.await_relayed {
            None => [plan.await_arrival.or(plan.arrive), None],
            relayed => [plan.relay, relayed],
        };
        return after(Step::new(action), needs, Rule::Same);
    }
    if at == plan.done {
        // A root that gives touches its own memory only.
        let touches = if plan.await_arrival.is_some() { plan.work.or(plan.relay) } else { None };
        return after(signal(Phase::Done), [touches], Rule::Same);
    }
    if at == plan.await_done {
        // Only others' signals are waited for, and this rank reads what it relays, too.
        let reads = plan.await_relayed.and(plan.done);
        return after(wait(Phase::Done), [reads], Rule::Same);
    }
    after(copy(Role::Stage, Role::Output), [plan.await_done], Rule::Same)
}
