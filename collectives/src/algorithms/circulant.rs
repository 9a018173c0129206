//! Circulant: halving and doubling for any number of ranks (Träff, "Optimal, non-pipelined reduce-scatter and allreduce algorithms", 2024;
//! the all-gather is that of Bruck, Ho, Kipnis, Upfal and Weathersby, 1997).
//!
//! Counted from the rank's own block, a rank works on blocks `0..w`, `w` = p at first. In each round of the halving, w' = ⌈w/2⌉: it sends its blocks
//! `w'..w` to the rank w' places on, for which they are blocks `0..w - w'`, and adds what comes from w' places back. At the end it holds
//! the reduction of block 0, its own. The doubling takes the same rounds backwards without adding. Counted absolutely, a run of
//! blocks may pass the end of the vector; it is then two messages, and for both sides the same two.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Operands, Role, Rule, Span, Step};

/// A round of the halving: blocks `upper..width` leave, `0..width - upper` are added to.
#[derive(Clone, Copy)]
struct Round {
    number: u32,
    width: u32,
    upper: u32,
}

impl Round {
    fn many(self) -> u32 {
        self.width - self.upper
    }
}

const fn rounds(s: &Schedule) -> u32 {
    s.ranks.next_power_of_two().ilog2()
}

/// Round `number` of the halving. ⌈⌈p/a⌉/b⌉ = ⌈p/ab⌉.
fn round(s: &Schedule, number: u32) -> Round {
    let width = |k: u32| s.ranks.div_ceil(1 << k);
    Round { number, width: width(number), upper: width(number + 1) }
}

/// The `many` blocks that begin `first` places after this rank's own, in absolute numbers: as one run or as two.
fn runs(s: &Schedule, first: u32, many: u32) -> ((u32, u32), Option<(u32, u32)>) {
    let begin = (s.rank + first) % s.ranks;
    let end = begin + many;
    if end <= s.ranks { ((begin, end), None) } else { ((begin, s.ranks), Some((0, end - s.ranks))) }
}

fn run(s: &Schedule, first: u32, many: u32, second: bool) -> (u32, u32) {
    let (one, other) = runs(s, first, many);
    if second { other.unwrap_or(one) } else { one }
}

fn parts(s: &Schedule, first: u32, many: u32) -> u32 {
    1 + u32::from(runs(s, first, many).1.is_some())
}

/// Steps of a round: sends, and receives, each with its sum in the halving.
fn sends(s: &Schedule, r: Round, halving: bool) -> u32 {
    if halving { parts(s, r.upper, r.many()) } else { parts(s, 0, r.many()) }
}

fn recvs(s: &Schedule, r: Round, halving: bool) -> u32 {
    if halving { parts(s, 0, r.many()) } else { parts(s, r.upper, r.many()) }
}

fn len_of(s: &Schedule, r: Round, halving: bool) -> u32 {
    sends(s, r, halving) + recvs(s, r, halving) * if halving { 2 } else { 1 }
}

/// The one step before the rounds: the all-gather puts the rank's own block in place; with an odd number of ranks the all-reduce has a block
/// that the second round sends and the first does not add to.
fn prologue(s: &Schedule) -> u32 {
    u32::from(s.even == Collective::AllGather || s.ranks % 2 == 1)
}

fn halvings(s: &Schedule) -> u32 {
    if s.even == Collective::AllReduce { rounds(s) } else { 0 }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.ranks == 1 {
        return 1;
    }
    let halving: u32 = (0..halvings(s)).map(|k| len_of(s, round(s, k), true)).sum();
    let doubling: u32 = (0..rounds(s)).map(|k| len_of(s, round(s, k), false)).sum();
    prologue(s) + halving + doubling
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return super::pair::alone(s);
    }
    let mut begin = prologue(s);
    if index < begin {
        let first = if s.even == Collective::AllGather { 0 } else { s.ranks / 2 };
        let (first, end) = run(s, first, 1, false);
        let span = |role| Span::range(role, first, end);
        return Step::new(Action::Copy { whose: None, from: span(Role::Input), to: span(Role::Output) });
    }
    // Where the round before begins, for those that wait for it.
    let mut before = 0;
    for k in 0..halvings(s) {
        let round = round(s, k);
        let len = len_of(s, round, true);
        if index < begin + len {
            return halve(s, round, index - begin, begin, before);
        }
        (before, begin) = (begin, begin + len);
    }
    for k in (0..rounds(s)).rev() {
        let round = round(s, k);
        let len = len_of(s, round, false);
        if index < begin + len {
            return double(s, round, index - begin, begin, before);
        }
        (before, begin) = (begin, begin + len);
    }
    unreachable!("the index lies below len")
}

/// The steps of a round of the halving: its sends, then for each receive that and its sum.
fn halve(s: &Schedule, r: Round, at: u32, begin: u32, before: u32) -> Step {
    let sends = sends(s, r, true);
    let first_round = r.number == 0;
    let label = |part: u32| 2 * r.number + part;
    if at < sends {
        let (first, end) = run(s, r.upper, r.many(), at == 1);
        let role = if first_round { Role::Input } else { Role::Output };
        let to = (s.rank + r.upper) % s.ranks;
        let step = Step::new(Action::Send { to, from: Span::range(role, first, end), label: label(at) });
        // With an odd number of ranks the second round sends the block that the prologue has put in place.
        let copied = r.number == 1 && prologue(s) == 1;
        let step = if copied { step.after(0, Rule::All) } else { step };
        return if first_round { step } else { after_sums(s, step, r.number - 1, before) };
    }
    let (part, adds) = ((at - sends) / 2, (at - sends) % 2 == 1);
    let (first, end) = run(s, 0, r.many(), part == 1);
    let span = |role| Span::range(role, first, end);
    // A run of blocks has its own ring, since both are under way together.
    let ring = Role::Scratch(part as u8);
    let index = begin + at;
    if adds {
        let own = if first_round { Role::Input } else { Role::Output };
        let inputs = Operands::Pair(span(ring), span(own));
        let last = r.number + 1 == rounds(s);
        let action = Action::Reduce { inputs, outputs: Operands::Mine(span(Role::Output)), last };
        return Step::new(action).after(index - 1, Rule::Same);
    }
    let from = (s.rank + s.ranks - r.upper) % s.ranks;
    let step = Step::new(Action::Recv { from, into: span(ring), label: label(part) });
    let step = step.after(index + 1, Rule::Reuse);
    if first_round { step } else { after_sums(s, step, r.number - 1, before) }
}

/// Waits for the sums of the halving's round `number`, which begins at `begin`: they are cut into other chunks.
fn after_sums(s: &Schedule, mut step: Step, number: u32, begin: u32) -> Step {
    let round = round(s, number);
    let first = begin + sends(s, round, true);
    for part in 0..recvs(s, round, true) {
        step = step.after(first + 2 * part + 1, Rule::All);
    }
    step
}

/// The steps of a round of the doubling: its sends, then its receives.
fn double(s: &Schedule, r: Round, at: u32, begin: u32, before: u32) -> Step {
    let (sends, label) = (sends(s, r, false), |part: u32| 64 + 2 * r.number + part);
    debug_assert!(begin > before);
    // What is sent came with all the rounds before, of which each waited for its own.
    let first_round = r.number + 1 == rounds(s);
    let after_round_before = |step: Step| match first_round {
        true if halvings(s) > 0 => after_sums(s, step, r.number, before),
        true => step.after(0, Rule::All),
        false => {
            let earlier = round(s, r.number + 1);
            let first = before + self::sends(s, earlier, false);
            (0..recvs(s, earlier, false)).fold(step, |step, part| step.after(first + part, Rule::All))
        }
    };
    if at < sends {
        let (first, end) = run(s, 0, r.many(), at == 1);
        let to = (s.rank + s.ranks - r.upper) % s.ranks;
        let from = Span::range(Role::Output, first, end);
        return after_round_before(Step::new(Action::Send { to, from, label: label(at) }));
    }
    let part = at - sends;
    let (first, end) = run(s, r.upper, r.many(), part == 1);
    let from = (s.rank + r.upper) % s.ranks;
    let into = Span::range(Role::Output, first, end);
    let step = Step::new(Action::Recv { from, into, label: label(part) });
    // The same blocks left in this round of the halving.
    let step = if halvings(s) > 0 { step.after(sent_at(s, r.number) + part, Rule::All) } else { step };
    // The last round's receives are waited for by nobody, so they need not wait to be the last.
    if r.number == 0 { step } else { after_round_before(step) }
}

/// The first step of the halving's round `number`.
fn sent_at(s: &Schedule, number: u32) -> u32 {
    prologue(s) + (0..number).map(|k| len_of(s, round(s, k), true)).sum::<u32>()
}
