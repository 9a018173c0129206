//! Linear: the root exchanges one message with every other rank. Nothing is sent twice, and the messages are under way together.

use crate::call::Collective;
use crate::schedule::Schedule;
use crate::step::{Action, Role, Span, Step};

pub(crate) fn len(s: &Schedule) -> u32 {
    if s.rank == s.root { s.ranks } else { 1 }
}

pub(crate) fn step(s: &Schedule, index: u32) -> Step {
    let block = |role, rank| Span::range(role, rank, rank + 1);
    let gathers = s.even == Collective::Gather;
    if s.rank != s.root {
        return Step::new(if gathers {
            Action::Send { to: s.root, from: block(Role::Input, s.rank), label: 0 }
        } else {
            Action::Recv { from: s.root, into: block(Role::Output, s.rank), label: 0 }
        });
    }
    // The root's own block last: the others wait for theirs.
    let peer = (s.root + 1 + index) % s.ranks;
    Step::new(if peer == s.root {
        Action::Copy { whose: None, from: block(Role::Input, peer), to: block(Role::Output, peer) }
    } else if gathers {
        Action::Recv { from: peer, into: block(Role::Output, peer), label: 0 }
    } else {
        Action::Send { to: peer, from: block(Role::Input, peer), label: 0 }
    })
}
