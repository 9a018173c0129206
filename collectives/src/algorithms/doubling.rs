//! Recursive doubling: in round j a rank exchanges all it has with the rank at distance 2^j.
//!
//! For an all-reduce on p ranks that are no power of two, the ranks beyond the largest power of two
//! first hand their operand to a partner and receive the result at the end.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Operands, Role, Rule, Span, Step};

/// Where a rank stands when p is folded to a power of two.
pub(crate) struct Fold {
    /// The largest power of two not above p.
    pub(crate) core: u32,
    /// A rank outside the core hands its operand to this one; a rank inside takes it from this one.
    pub(crate) partner: Option<u32>,
    /// Whether this rank is outside the core.
    pub(crate) outside: bool,
}

pub(crate) const LABEL_FOLD: u32 = 1000;
pub(crate) const LABEL_UNFOLD: u32 = 1001;

pub(crate) const fn core(ranks: u32) -> u32 {
    1 << ranks.ilog2()
}

pub(crate) fn fold(s: &Schedule) -> Fold {
    let core = core(s.ranks);
    let outside = s.rank >= core;
    let partner =
        if outside { Some(s.rank - core) } else { (s.rank + core < s.ranks).then_some(s.rank + core) };
    Fold { core, partner, outside }
}

fn whole(role: Role) -> Span {
    Span::range(role, 0, 1)
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.ranks == 1 {
        return 1;
    }
    if s.collective == Collective::AllGather {
        return 2 * s.ranks.ilog2() + 1;
    }
    let fold = fold(s);
    if fold.outside {
        return 2;
    }
    3 * fold.core.ilog2() + if fold.partner.is_some() { 3 } else { 0 }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return super::pair::alone(s);
    }
    match s.collective {
        Collective::AllGather => gather(s, index),
        _ => reduce(s, index),
    }
}

/// The two steps of a rank outside the core: hand over the operand, take the result.
pub(crate) fn outsider(partner: u32, blocks: u32, index: u32) -> Step {
    let span = |role| Span::range(role, 0, blocks);
    if index == 0 {
        return Step::new(Action::Send { to: partner, from: span(Role::Input), label: LABEL_FOLD });
    }
    // In place, the result overwrites the operand.
    Step::new(Action::Recv { from: partner, into: span(Role::Output), label: LABEL_UNFOLD })
        .after(0, Rule::Same)
}

/// The two steps by which a rank of the core takes in its partner's operand.
pub(crate) fn take_in(partner: u32, blocks: u32, index: u32) -> Step {
    let span = |role| Span::range(role, 0, blocks);
    if index == 0 {
        let action = Action::Recv { from: partner, into: span(Role::Scratch(1)), label: LABEL_FOLD };
        return Step::new(action).after(1, Rule::Reuse);
    }
    Step::new(Action::Reduce {
        inputs: Operands::Pair(span(Role::Input), span(Role::Scratch(1))),
        outputs: Operands::Mine(span(Role::Output)),
        last: false,
    })
    .after(0, Rule::Same)
}

fn reduce(s: &Schedule, index: u32) -> Step {
    let fold = fold(s);
    let folded = fold.partner.is_some();
    if let Some(partner) = fold.partner {
        if fold.outside {
            return outsider(partner, 1, index);
        }
        if index < 2 {
            return take_in(partner, 1, index);
        }
        if index == len(s) - 1 {
            let action = Action::Send { to: partner, from: whole(Role::Output), label: LABEL_UNFOLD };
            return Step::new(action).after(index - 1, Rule::Same);
        }
    }
    let before = if folded { 2 } else { 0 };
    let (round, kind) = ((index - before) / 3, (index - before) % 3);
    let peer = s.rank ^ (1 << round);
    let held = if round == 0 && !folded { Role::Input } else { Role::Output };
    let ring = Role::Scratch(if round % 2 == 0 { 0 } else { 1 });
    match kind {
        0 => {
            let step = Step::new(Action::Send { to: peer, from: whole(held), label: round });
            if index == 0 { step } else { step.after(index - 1, Rule::Same) }
        }
        1 => {
            let step = Step::new(Action::Recv { from: peer, into: whole(ring), label: round });
            let step = step.after(index + 1, Rule::Reuse);
            match round {
                0 => step,
                // Round 1 uses the ring that taking in the partner's operand used.
                1 if folded => step.after(1, Rule::All),
                1 => step,
                _ => step.after(index - 5, Rule::All),
            }
        }
        _ => {
            // Both sides add the lower half's sum first, so that both get the same bits.
            let (own, other) = (whole(held), whole(ring));
            let inputs = if s.rank < peer { Operands::Pair(own, other) } else { Operands::Pair(other, own) };
            let last = 1 << (round + 1) == fold.core;
            let action = Action::Reduce { inputs, outputs: Operands::Mine(whole(Role::Output)), last };
            // What is being sent is overwritten here.
            Step::new(action).after(index - 1, Rule::Same).after(index - 2, Rule::Same)
        }
    }
}

/// All-gather on a power of two: in round j ranks exchange the 2^j blocks they hold.
fn gather(s: &Schedule, index: u32) -> Step {
    let rounds = s.ranks.ilog2();
    if index == 0 {
        let own = |role| Span::range(role, s.rank, s.rank + 1);
        return Step::new(Action::Copy { whose: None, from: own(Role::Input), to: own(Role::Output) });
    }
    let (round, kind) = ((index - 1) / 2, (index - 1) % 2);
    debug_assert!(round < rounds);
    let width = 1 << round;
    let peer = s.rank ^ width;
    let (mine, theirs) = (s.rank & !(width - 1), peer & !(width - 1));
    if kind == 0 {
        let from = Span::range(Role::Output, mine, mine + width);
        let step = Step::new(Action::Send { to: peer, from, label: round }).after(0, Rule::All);
        // What it holds came with all the rounds before, and each waited for its own.
        return if round == 0 { step } else { step.after(index - 1, Rule::All) };
    }
    let into = Span::range(Role::Output, theirs, theirs + width);
    let step = Step::new(Action::Recv { from: peer, into, label: round });
    // Rounds end in order, so that the next send, where there is one, waits for the last one only.
    if round == 0 || round + 1 == rounds { step } else { step.after(index - 2, Rule::All) }
}
