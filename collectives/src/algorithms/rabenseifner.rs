//! Rabenseifner's all-reduce (2004): recursive halving, then recursive doubling. Each round of the first
//! half exchanges one half of what is left and reduces the other; the second half undoes it without
//! reducing. 2 log₂ p rounds, 2(p-1)/p of the vector sent.

use crate::schedule::Schedule;
use crate::step::{Action, Operands, Role, Rule, Span, Step};

use super::doubling::{LABEL_UNFOLD, core, fold, outsider, take_in};

/// How many ranks take part in the halving: the largest power of two.
pub(crate) const fn participants(ranks: u32) -> u32 {
    core(ranks)
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.ranks == 1 {
        return 1;
    }
    let fold = fold(s);
    if fold.outside {
        return 2;
    }
    5 * fold.core.ilog2() + if fold.partner.is_some() { 3 } else { 0 }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return super::pair::alone(s);
    }
    let fold = fold(s);
    let mut before = 0;
    if let Some(partner) = fold.partner {
        if fold.outside {
            return outsider(partner, fold.core, index);
        }
        if index < 2 {
            return take_in(partner, fold.core, index);
        }
        if index == len(s) - 1 {
            let whole = Span::range(Role::Output, 0, fold.core);
            let step = Step::new(Action::Send { to: partner, from: whole, label: LABEL_UNFOLD });
            // The result came by the receives of the doubling, in order, and one's own reduction.
            return step.after(index - 1, Rule::All);
        }
        before = 2;
    }
    let rounds = fold.core.ilog2();
    if index < before + 3 * rounds {
        halve(s, index, before, rounds)
    } else {
        double(s, index, before, rounds)
    }
}

/// The blocks a rank still holds after `round` rounds of halving: `rank`'s group of core >> round.
fn held(rank: u32, core: u32, round: u32) -> (u32, u32) {
    let width = core >> round;
    let first = rank & !(width - 1);
    (first, first + width)
}

fn halve(s: &Schedule, index: u32, before: u32, rounds: u32) -> Step {
    let core = 1 << rounds;
    let (round, kind) = ((index - before) / 3, (index - before) % 3);
    let peer = s.rank ^ (core >> (round + 1));
    let (kept, given) = (held(s.rank, core, round + 1), held(peer, core, round + 1));
    let source = if round == 0 && before == 0 { Role::Input } else { Role::Output };
    let ring = Role::Scratch(if round % 2 == 0 { 0 } else { 1 });
    match kind {
        0 => {
            let from = Span::range(source, given.0, given.1);
            let step = Step::new(Action::Send { to: peer, from, label: round });
            if index == 0 { step } else { step.after(index - 1, Rule::All) }
        }
        1 => {
            let into = Span::range(ring, kept.0, kept.1);
            let step =
                Step::new(Action::Recv { from: peer, into, label: round }).after(index + 1, Rule::Reuse);
            match round {
                0 => step,
                1 if before > 0 => step.after(1, Rule::All),
                1 => step,
                _ => step.after(index - 5, Rule::All),
            }
        }
        _ => {
            let (own, other) = (Span::range(source, kept.0, kept.1), Span::range(ring, kept.0, kept.1));
            let inputs = if s.rank < peer { Operands::Pair(own, other) } else { Operands::Pair(other, own) };
            let outputs = Operands::Mine(Span::range(Role::Output, kept.0, kept.1));
            let step = Step::new(Action::Reduce { inputs, outputs, last: round + 1 == rounds });
            let step = step.after(index - 1, Rule::Same);
            // What is reduced was itself reduced in the round before, with other chunk boundaries.
            if index - before < 3 && before == 0 { step } else { step.after(index - 3, Rule::All) }
        }
    }
}

/// Round j undoes round rounds-1-j of the halving.
fn double(s: &Schedule, index: u32, before: u32, rounds: u32) -> Step {
    let core = 1 << rounds;
    let first = before + 3 * rounds;
    let (round, kind) = ((index - first) / 2, (index - first) % 2);
    let undone = rounds - 1 - round;
    let peer = s.rank ^ (core >> (undone + 1));
    let (mine, theirs) = (held(s.rank, core, undone + 1), held(peer, core, undone + 1));
    let label = rounds + round;
    if kind == 0 {
        let from = Span::range(Role::Output, mine.0, mine.1);
        return Step::new(Action::Send { to: peer, from, label }).after(index - 1, Rule::All);
    }
    let into = Span::range(Role::Output, theirs.0, theirs.1);
    let step = Step::new(Action::Recv { from: peer, into, label });
    // The same bytes left in round `undone` of the halving.
    let step = step.after(before + 3 * undone, Rule::All);
    if index + 1 == len(s) {
        return step;
    }
    // Rounds end in order, so that the next send waits for the last one only.
    step.after(if round == 0 { first - 1 } else { index - 2 }, Rule::All)
}
