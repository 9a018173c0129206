//! Ring: chunks travel from each rank to the next (Patarasuk and Yuan, "Bandwidth optimal all-reduce
//! algorithms", 2009). Reduce-scatter in p-1 rounds, all-gather in p-1 rounds; each round a rank sends
//! one block and receives one, chunk by chunk, so that rounds overlap.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Blocks, Operands, Role, Rule, Span, Step};

pub(crate) fn len(s: &Schedule) -> u32 {
    let rounds = s.ranks - 1;
    match s.even {
        _ if s.ranks == 1 => 1,
        Collective::AllReduce => 5 * rounds,
        Collective::ReduceScatter => 3 * rounds,
        // The last step puts one's own block in place.
        _ => 2 * rounds + 1,
    }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    let rounds = s.ranks - 1;
    if s.ranks == 1 {
        return super::pair::alone(s);
    }
    match s.even {
        Collective::AllReduce if index < 3 * rounds => reduce(s, index, 0),
        Collective::AllReduce => gather(s, index - 3 * rounds, 3 * rounds),
        Collective::ReduceScatter => reduce(s, index, 1),
        _ if index == 2 * rounds => {
            let copy = |role| Span::range(role, s.rank, s.rank + 1);
            Step::new(Action::Copy { whose: None, from: copy(Role::Input), to: copy(Role::Output) })
        }
        _ => gather(s, index, 0),
    }
}

/// The block `back` places behind rank `r` on the ring.
fn behind(s: &Schedule, back: u32) -> u32 {
    (s.rank + 2 * s.ranks - back % s.ranks) % s.ranks
}

fn next(s: &Schedule) -> u32 {
    (s.rank + 1) % s.ranks
}

fn span(role: Role, block: u32) -> Span {
    Span { role, blocks: Blocks::Range { first: block, end: block + 1 } }
}

/// Round k sends block r-shift-k and receives block r-shift-k-1, adding one's own operand to it. After p-1
/// rounds rank r holds block r+1-shift. An all-reduce keeps partial sums in the output, which the
/// all-gather overwrites; a reduce-scatter has no room there and keeps one block of them apart, or two of different lengths.
fn reduce(s: &Schedule, index: u32, shift: u32) -> Step {
    let (round, kind) = (index / 3, index % 3);
    let partial = |round: u32| match shift {
        0 => Role::Output,
        _ if s.is_uneven() => Role::Partial((round % 2) as u16),
        _ => Role::Partial(0),
    };
    let receiving = Role::Scratch(if round % 2 == 0 { 0 } else { 1 });
    let (sent, received) = (behind(s, shift + round), behind(s, shift + round + 1));
    let last = round == s.ranks - 2;
    match kind {
        0 => {
            let role = if round == 0 { Role::Input } else { partial(round - 1) };
            let step = Step::new(Action::Send { to: next(s), from: span(role, sent), label: round });
            if round == 0 { step } else { step.after(index - 1, Rule::Same) }
        }
        1 => {
            let action = Action::Recv { from: behind(s, 1), into: span(receiving, received), label: round };
            let step = Step::new(action).after(index + 1, Rule::Reuse);
            if round < 2 { step } else { step.after(index - 5, Rule::All) }
        }
        _ => {
            let result = if last { Role::Output } else { partial(round) };
            let action = Action::Reduce {
                inputs: Operands::Pair(span(receiving, received), span(Role::Input, received)),
                outputs: Operands::Mine(span(result, received)),
                last,
            };
            let step = Step::new(action).after(index - 1, Rule::Same);
            match round {
                _ if shift == 0 || last => step,
                // The partial sum that this one replaces left in the round before, cut into chunks of its own: had it to leave in this one
                // before, every rank would wait for the next, all around.
                2.. if s.is_uneven() => step.after(index - 5, Rule::All),
                // It leaves in this round's send; blocks are alike here.
                1.. if !s.is_uneven() => step.after(index - 2, Rule::Same),
                _ => step,
            }
        }
    }
}

/// Round k sends block r+first-k and receives the one before it; `first` is 1 after a reduce-scatter
/// (whose steps begin at 0 and end at `base`), 0 when gathering inputs.
fn gather(s: &Schedule, index: u32, base: u32) -> Step {
    let (round, kind) = (index / 2, index % 2);
    let reduced = base > 0;
    let sent = if reduced { behind(s, s.ranks - 1 + round) } else { behind(s, round) };
    let received = (sent + s.ranks - 1) % s.ranks;
    let label = s.ranks + round;
    if kind == 0 {
        let role = if round == 0 && !reduced { Role::Input } else { Role::Output };
        let step = Step::new(Action::Send { to: next(s), from: span(role, sent), label });
        return match (round, reduced) {
            (0, true) => step.after(base - 1, Rule::Same),
            (0, false) => step,
            _ => step.after(base + index - 1, Rule::Same),
        };
    }
    let step = Step::new(Action::Recv { from: behind(s, 1), into: span(Role::Output, received), label });
    // The block's partial sum left from the same memory in round `round` of the reduction; in place,
    // so did the operand.
    if reduced { step.after(3 * round, Rule::Same) } else { step }
}
