//! Collect: every rank that has a result gets the whole operands it needs, and folds them alone, at once and in rank order. One round
//! of messages, which are under way together: for small messages.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Blocks, Operands, Role, Span, Step};

use super::exchange::place;

const WHOLE: Blocks = Blocks::Range { first: 0, end: 1 };

/// How many operands come to this rank, from one, two… places back, and to how many its own goes, one, two… places on.
fn messages(s: &Schedule) -> (u32, u32) {
    let others = s.ranks - 1;
    match s.even {
        Collective::Reduce if s.rank == s.root => (others, 0),
        Collective::Reduce => (0, 1),
        Collective::Scan | Collective::ExScan => (s.rank, others - s.rank),
        _ => (others, others),
    }
}

/// The operands of the ranks below this number make the result, if there is one.
fn operands(s: &Schedule) -> u32 {
    match s.even {
        Collective::Reduce if s.rank != s.root => 0,
        Collective::Scan => s.rank + 1,
        Collective::ExScan => s.rank,
        _ => s.ranks,
    }
}

pub(crate) fn len(s: &Schedule) -> u32 {
    let (received, sent) = messages(s);
    received + sent + u32::from(operands(s) > 0)
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    if s.ranks == 1 {
        return super::pair::alone(s);
    }
    let (received, sent) = messages(s);
    if index == received + sent {
        let outputs = Operands::Mine(Span { role: Role::Output, blocks: WHOLE });
        let last = !matches!(s.even, Collective::Scan | Collective::ExScan);
        let action = Action::Reduce { inputs: Operands::Received(operands(s), WHOLE), outputs, last };
        // In place, the result overwrites the operand: after it has left.
        return Step::new(action).after_each(0, index, 1);
    }
    // One of each as long as there are both, so that no rank has only receipts before it.
    let both = received.min(sent);
    let (receives, round) = if index < 2 * both {
        (index.is_multiple_of(2), 1 + index / 2)
    } else {
        (received > sent, 1 + index - both)
    };
    Step::new(if receives {
        let from = (s.rank + s.ranks - round) % s.ranks;
        Action::Recv { from, into: Span { role: place(from), blocks: WHOLE }, label: 0 }
    } else {
        let to = if s.even == Collective::Reduce { s.root } else { (s.rank + round) % s.ranks };
        Action::Send { to, from: Span { role: Role::Input, blocks: WHOLE }, label: 0 }
    })
}
