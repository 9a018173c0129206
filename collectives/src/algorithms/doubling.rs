//! Recursive doubling: in round j a rank exchanges all it has with the rank at distance 2^j.
//!
//! For an all-reduce on p ranks that are no power of two, the ranks beyond the largest power of two
//! first hand their operand to a partner and receive the result at the end.
//!
//! A scan (Hillis and Steele, "Data parallel algorithms", 1986) sends what it has to the rank at distance 2^j above and adds what comes from
//! below, for any p.

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
const LABEL_SHIFT: u32 = 1002;

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
        return u32::from(s.even != Collective::ExScan);
    }
    match s.even {
        Collective::AllGather => return 2 * s.ranks.ilog2() + 1,
        Collective::Scan | Collective::ExScan => return scan_len(s),
        _ => {}
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
    match s.even {
        Collective::AllGather => gather(s, index),
        Collective::Scan | Collective::ExScan => scan(s, index),
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

/// The ranks whose operands are added: an exclusive scan needs the last one's for nothing.
const fn adders(s: &Schedule) -> u32 {
    if matches!(s.even, Collective::ExScan) { s.ranks - 1 } else { s.ranks }
}

/// In how many rounds a rank sends, and in how many it receives: distances 1, 2, 4… up to the last rank, down to the first.
const fn reach(s: &Schedule) -> (u32, u32) {
    (bits(adders(s) - 1 - s.rank), bits(s.rank))
}

/// The number of powers of two that are not above `n`.
const fn bits(n: u32) -> u32 {
    u32::BITS - n.leading_zeros()
}

/// What makes a sum of the operand; then the rounds, of a send where there is a rank above, and of a receive and its sum where there is one below. An exclusive
/// scan ends with a message to the next rank, which makes it one of all before that.
fn scan_len(s: &Schedule) -> u32 {
    let shift = u32::from(s.even == Collective::ExScan);
    if s.rank == adders(s) {
        return shift;
    }
    let (sends, recvs) = reach(s);
    1 + sends + 2 * recvs + shift * (1 + u32::from(s.rank > 0))
}

fn scan(s: &Schedule, index: u32) -> Step {
    let sum = if s.even == Collective::ExScan { Role::Partial(0) } else { Role::Output };
    let take_result =
        || Step::new(Action::Recv { from: s.rank - 1, into: whole(Role::Output), label: LABEL_SHIFT });
    if s.rank == adders(s) {
        return take_result();
    }
    let (sends, recvs) = reach(s);
    if index == 0 {
        // A logical operator makes 1 of all that is not 0, also of a single operand.
        let (inputs, outputs) = (Operands::Mine(whole(Role::Input)), Operands::Mine(whole(sum)));
        return Step::new(Action::Reduce { inputs, outputs, last: false });
    }
    // As long as it does both, a round is three steps; then it sends or receives only.
    let both = sends.min(recvs);
    let rest = if recvs > sends { 2 } else { 1 };
    let begin = |round: u32| 1 + 3 * round.min(both) + rest * round.saturating_sub(both);
    let rounds = sends.max(recvs);
    // The step after which the sum holds what came in the rounds below this one.
    let summed = |round: u32| match round.min(recvs) {
        0 => 0,
        added => begin(added) - 1,
    };
    if index == begin(rounds) {
        let action = Action::Send { to: s.rank + 1, from: whole(sum), label: LABEL_SHIFT };
        return Step::new(action).after(summed(rounds), Rule::Same);
    }
    if index > begin(rounds) {
        // In place, the result overwrites the operand, which was copied first of all.
        return take_result().after(0, Rule::Same);
    }
    let round = if index < begin(both) { (index - 1) / 3 } else { both + (index - begin(both)) / rest };
    let sends_too = round < sends;
    let kind = index - begin(round) + u32::from(!sends_too);
    let (distance, ring) = (1 << round, whole(Role::Scratch((round % 2) as u8)));
    match kind {
        0 => {
            let action = Action::Send { to: s.rank + distance, from: whole(sum), label: round };
            Step::new(action).after(summed(round), Rule::Same)
        }
        1 => {
            let action = Action::Recv { from: s.rank - distance, into: ring, label: round };
            let step = Step::new(action).after(index + 1, Rule::Reuse);
            if round < 2 { step } else { step.after(summed(round - 1), Rule::All) }
        }
        _ => {
            let inputs = Operands::Pair(ring, whole(sum));
            let action = Action::Reduce { inputs, outputs: Operands::Mine(whole(sum)), last: false };
            // What is being sent is overwritten here, and that was complete.
            let sum_so_far = if sends_too { index - 2 } else { summed(round) };
            Step::new(action).after(index - 1, Rule::Same).after(sum_so_far, Rule::Same)
        }
    }
}
