//! The three kinds of step: Combine, Send/Recv, Signal/Wait.

use std::fmt;

use crate::Rank;

/// The memory a span lies in, seen from the rank that owns it.
///
/// A local peer reaches `Input` and `Output` of another rank through what that rank *lends*: the
/// memory itself when it is registered, its `Stage` when it is heap memory. A rank's own `Input`
/// and `Output` are always the caller's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Role {
    /// The caller's operand.
    Input,
    /// The caller's result. It is the same memory as `Input` when the call is in place.
    Output,
    /// What a small operation publishes to all local peers; it stays readable after the operation
    /// has ended locally, until every peer has ended it too.
    Slot,
    /// The ring of chunks that stands in for heap memory on shared-memory schedules, and in which a rank holds ready what it relays.
    Stage,
    /// A private ring of chunks that a message is received into when a reduction follows.
    Scratch(u8),
    /// A private memory as large as the largest block, for partial sums that have no room in the
    /// output. It is no ring: a partial sum stays until the next rank takes it, which may in turn
    /// wait for the rank after it, so that a ring all around would stand still.
    Partial(u16),
}

/// A set of blocks of a [`crate::Layout`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Blocks {
    /// `first..end`, contiguous, cut into chunks as one range.
    Range {
        /// The first block.
        first: u32,
        /// One past the last block.
        end: u32,
    },
    /// One block; its chunk `c` is its `c`-th piece.
    One(u32),
    /// Every block; chunk `c` is the `c`-th piece of each of them.
    Each,
    /// Every block but one; chunk `c` is the `c`-th piece of each of them.
    Others(u32),
    /// Every block that the executing rank relays for its NUMA node; chunk `c` is the `c`-th piece of each of them.
    Relayed,
    /// Every other block, cut alike.
    Unrelayed,
}

/// Blocks of one rank's memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub struct Span {
    /// Which memory.
    pub role: Role,
    /// Which blocks of it.
    pub blocks: Blocks,
}

/// One side of a reduction.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Operands {
    /// This span of the executing rank.
    Mine(Span),
    /// This span of every rank, in rank order; the executing rank's own part is its own `Input` or
    /// `Output`, never a slot or stage it has just written.
    All(Span),
    /// The same of the ranks below a number.
    First(u32, Span),
    /// This span of one rank, which may be the executing one.
    Of(Rank, Span),
    /// Two spans of the executing rank, the first one counting as the lower operand.
    Pair(Span, Span),
    /// These blocks of the operands of the ranks below a number, in rank order, where messages have brought them: that of rank `q` in
    /// the executing rank's `Partial(q)`, its own in its `Input`.
    Received(Rank, Blocks),
    /// This span of every rank of the executing rank's NUMA node, in rank order; its own part is its own `Input` or `Output`.
    Node(Span),
    /// These blocks where each node's relay holds them ready, in its `Stage`, in the order of the nodes.
    Relays(Blocks),
}

/// Who has a block that is fetched.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Holder {
    /// The rank with the block's number, in what it lends for its `Input`.
    Owner,
    /// The rank of the executing rank's NUMA node that relays it, in its `Stage`.
    Relay,
}

/// Which ranks a signal goes to or a wait is for. The executing rank is never meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Peers {
    /// Every other rank.
    All,
    /// One rank.
    One(Rank),
}

/// Which of a rank's watermarks a signal raises.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Phase {
    /// The rank has entered the operation and its input is readable, its output writable, up to the
    /// signalled chunk. It carries the fingerprint and where the memory is.
    Arrival,
    /// The rank has finished touching its peers' memory up to the signalled chunk.
    Done,
    /// What the rank relays for its NUMA node is ready in its stage up to the signalled chunk.
    Relayed,
}

/// Which of a peer's blocks a [`Action::Gather`] reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Take {
    /// The one with the peer's number.
    Theirs,
    /// The one with the executing rank's number.
    Ours,
}

/// What a step does.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Action {
    /// Combine, 1→1: copy a span of `whose` rank (or of the executing rank) to one's own. In place, a copy
    /// may be from a place to itself; then no byte may be stored, as peers may be reading them.
    Copy {
        /// The rank read from; `None` is the executing rank.
        whose: Option<Rank>,
        /// What is read.
        from: Span,
        /// What is written, in the executing rank's memory.
        to: Span,
    },
    /// Combine, k→m: reduce the inputs in order and store the result to every output.
    Reduce {
        /// What is read.
        inputs: Operands,
        /// What is written.
        outputs: Operands,
        /// Whether the result is final, so that an average is divided now.
        last: bool,
    },
    /// Combine, one copy for each rank `q`: a block of rank `q`'s `from` to block `q` of one's
    /// own `Output`; the executing rank's own block comes from its `Input`, and stays untouched in
    /// place, as with [`Action::Copy`].
    Gather {
        /// The memory read at the peers.
        from: Role,
        /// Which block is read there.
        take: Take,
    },
    /// Combine, one copy for each block: from whoever holds it to the same block of one's own memory. What is there already stays
    /// untouched, as with [`Action::Copy`].
    Fetch {
        /// Who has it.
        from: Holder,
        /// Which blocks.
        blocks: Blocks,
        /// One's own `Stage` or `Output`.
        to: Role,
    },
    /// Combine, one for each rank: block `r` of every rank's scan, where `r` is the executing rank's number. In place, a scan
    /// overwrites an operand of all the later ones, so the last rank's comes first.
    Scan {
        /// Whether a rank's own operand is left out; then rank 0 has no result.
        exclusive: bool,
    },
    /// Send a span to a peer, one message a chunk.
    Send {
        /// The receiver.
        to: Rank,
        /// What is sent.
        from: Span,
        /// Names the message between the two ranks within the operation.
        label: u32,
    },
    /// Receive a span from a peer, one message a chunk.
    Recv {
        /// The sender.
        from: Rank,
        /// Where it goes.
        into: Span,
        /// Names the message between the two ranks within the operation.
        label: u32,
    },
    /// Raise one's watermark.
    Signal {
        /// Which watermark.
        phase: Phase,
    },
    /// Wait for peers' watermarks.
    Wait {
        /// Which watermark.
        phase: Phase,
        /// Whose.
        from: Peers,
    },
}

impl Action {
    /// Whether its end waits for what another rank does.
    pub const fn depends_on_peers(&self) -> bool {
        matches!(self, Self::Wait { .. } | Self::Send { .. } | Self::Recv { .. })
    }
}

/// How the chunks of a step depend on those of another.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Rule {
    /// Chunk `c` needs chunk `c` of the other step.
    Same,
    /// Chunk `c` needs every chunk of the other step.
    All,
    /// Chunk `c` needs chunk `c - depth` of the other step, where `depth` is the number of chunks a
    /// ring of scratch or stage memory holds. The other step may be a later one.
    Reuse,
}

/// A step waits for another.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub struct Dependency {
    /// The index of the step waited for.
    pub step: u32,
    /// Chunk by chunk, or whole.
    pub rule: Rule,
}

/// The most dependencies a step may have.
pub const MAX_DEPENDENCIES: usize = 4;

/// A step of a schedule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Step {
    /// What it does.
    pub action: Action,
    after: [Option<Dependency>; MAX_DEPENDENCIES],
    /// Besides: chunk by chunk on all of these.
    each: Each,
}

/// The steps `first`, `first + stride`… below `end`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Each {
    first: u32,
    end: u32,
    stride: u32,
}

impl Step {
    /// A step that depends on nothing.
    pub const fn new(action: Action) -> Self {
        let each = Each { first: 0, end: 0, stride: 1 };
        Self { action, after: [None; MAX_DEPENDENCIES], each }
    }

    /// The same step, of which chunk `c` waits also for chunk `c` of each of the steps `first`, `first + stride`… below `end`: as many as
    /// there are ranks, perhaps.
    #[must_use]
    pub(crate) const fn after_each(mut self, first: u32, end: u32, stride: u32) -> Self {
        self.each = Each { first, end, stride };
        self
    }

    /// The same step, waiting also for `step`.
    ///
    /// # Panics
    /// With more than [`MAX_DEPENDENCIES`]: the schedule is then wrong.
    #[must_use]
    pub const fn after(mut self, step: u32, rule: Rule) -> Self {
        let mut i = 0;
        while i < MAX_DEPENDENCIES {
            if self.after[i].is_none() {
                self.after[i] = Some(Dependency { step, rule });
                return self;
            }
            i += 1;
        }
        panic!("a step has at most four dependencies");
    }

    /// What the step waits for.
    pub fn dependencies(&self) -> impl Iterator<Item = Dependency> + '_ {
        let Each { first, end, stride } = self.each;
        let each = (first..end).step_by(stride as usize).map(|step| Dependency { step, rule: Rule::Same });
        self.after.iter().map_while(|d| *d).chain(each)
    }
}

impl Span {
    /// One block of `role`.
    pub const fn one(role: Role, block: u32) -> Self {
        Self { role, blocks: Blocks::One(block) }
    }

    /// The blocks `first..end` of `role` as one range.
    pub const fn range(role: Role, first: u32, end: u32) -> Self {
        Self { role, blocks: Blocks::Range { first, end } }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Input => write!(f, "input")?,
            Role::Output => write!(f, "output")?,
            Role::Slot => write!(f, "slot")?,
            Role::Stage => write!(f, "stage")?,
            Role::Scratch(ring) => write!(f, "scratch{ring}")?,
            Role::Partial(nth) => write!(f, "partial{nth}")?,
        }
        match self.blocks {
            Blocks::Range { first, end } => write!(f, "[{first}..{end}]"),
            Blocks::One(block) => write!(f, "[{block}]"),
            Blocks::Each => write!(f, "[each]"),
            Blocks::Others(block) => write!(f, "[all but {block}]"),
            Blocks::Relayed => write!(f, "[relayed]"),
            Blocks::Unrelayed => write!(f, "[not relayed]"),
        }
    }
}

impl fmt::Display for Operands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mine(span) => write!(f, "{span}"),
            Self::All(span) => write!(f, "all {span}"),
            Self::First(ranks, span) => write!(f, "ranks below {ranks} {span}"),
            Self::Of(rank, span) => write!(f, "rank {rank} {span}"),
            Self::Pair(a, b) => write!(f, "{a} + {b}"),
            Self::Received(ranks, blocks) => {
                write!(f, "received from ranks below {ranks} {}", Span { role: Role::Input, blocks: *blocks })
            }
            Self::Node(span) => write!(f, "node {span}"),
            Self::Relays(blocks) => write!(f, "relays {}", Span { role: Role::Stage, blocks: *blocks }),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy { whose: None, from, to } => write!(f, "copy {from} -> {to}"),
            Self::Copy { whose: Some(rank), from, to } => write!(f, "copy rank {rank} {from} -> {to}"),
            Self::Reduce { inputs, outputs, last } => {
                write!(f, "reduce {inputs} -> {outputs}{}", if *last { ", final" } else { "" })
            }
            Self::Gather { from, take: Take::Theirs } => write!(f, "gather {from:?} of each rank -> output"),
            Self::Gather { from, take: Take::Ours } => {
                write!(f, "gather one's own block of {from:?} of each rank -> output")
            }
            Self::Fetch { from, blocks, to } => {
                let (source, whose) = match from {
                    Holder::Owner => (Role::Input, "rank"),
                    Holder::Relay => (Role::Stage, "relay"),
                };
                let (from, to) =
                    (Span { role: source, blocks: *blocks }, Span { role: *to, blocks: *blocks });
                write!(f, "fetch {from} of each block's {whose} -> {to}")
            }
            Self::Scan { exclusive } => {
                let own = if *exclusive { "below it" } else { "up to it" };
                write!(
                    f,
                    "for each rank, the last first, reduce one's own block of input of all {own} -> its output"
                )
            }
            Self::Send { to, from, label } => write!(f, "send {from} to rank {to} as {label}"),
            Self::Recv { from, into, label } => write!(f, "recv {into} from rank {from} as {label}"),
            Self::Signal { phase } => write!(f, "signal {phase:?}"),
            Self::Wait { phase, from: Peers::All } => write!(f, "wait {phase:?} of all"),
            Self::Wait { phase, from: Peers::One(rank) } => write!(f, "wait {phase:?} of rank {rank}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        for (i, d) in self.dependencies().enumerate() {
            let rule = match d.rule {
                Rule::Same => "",
                Rule::All => " whole",
                Rule::Reuse => " freed",
            };
            write!(f, "{} {}{rule}", if i == 0 { "  | after" } else { "," }, d.step)?;
        }
        Ok(())
    }
}
