//! What an exporter says of its memory.

use super::{Descriptor, Ticket};

/// What became of memory that was moved or revoked.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Replacement {
    /// Its contents are here now.
    Preserved(Descriptor),
    /// They are gone.
    Lost,
}

/// What an exporter says, from any thread and in any state: a plain copy of a fixed size, which a callback puts into a ring without a
/// lock or an allocation, for the engine to hand on.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Notice {
    /// It asks for the memory, by this time. Answered once.
    Move {
        /// Its name for that.
        ticket: Ticket,
        /// When it needs the answer.
        deadline_ns: u64,
    },
    /// Where the memory will be next, so that peers may map it while it is still being copied.
    Announce(Descriptor),
    /// It has taken the memory without asking.
    Revoke,
    /// It has placed the memory anew: after the move of this ticket, or after a revoke.
    Replaced {
        /// The acknowledged ticket; none after a revoke.
        ticket: Option<Ticket>,
        /// What became of the contents.
        outcome: Replacement,
    },
    /// The memory is to be freed. Answered once, as soon as nobody can touch it; operations that use it fail.
    Free {
        /// Its name for that.
        ticket: Ticket,
        /// When it needs the answer. The region is freed later if need be.
        deadline_ns: u64,
    },
}
