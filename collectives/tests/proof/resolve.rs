//! Which memory a task touches.

use std::ops::Range;

use windlass_collectives::{Action, Blocks, Holder, Operands, Piece, Rank, Role, Span, Take};

use super::case::Operation;

/// The memories of a rank. A slot is one of several that operations use in turn.
pub(crate) const INPUT: usize = 0;
pub(crate) const OUTPUT: usize = 1;
pub(crate) const STAGE: usize = 2;
pub(crate) const SCRATCH: usize = 3;
pub(crate) const PARTIAL: usize = 4;
pub(crate) const SLOTS: usize = 5;

/// The elements of each memory of a rank that performs `operations`.
pub(crate) fn sizes(operations: &[Operation]) -> Vec<usize> {
    let most = |f: &dyn Fn(&Operation) -> u32| operations.iter().map(f).max().unwrap_or(0) as usize;
    let vector = |o: &Operation| (0..o.ranks()).map(|rank| o.elements(rank)).max().unwrap_or(0);
    let mut sizes = vec![most(&vector); SLOTS + operations.len()];
    sizes[STAGE] = most(&|o| o.elements_of(o.geometry(0).stage_bytes()));
    sizes[SCRATCH] = most(&|o| o.elements_of(o.geometry(0).scratch_bytes(o.rings)));
    sizes[PARTIAL] = most(&|o| o.elements_of(o.partial_bytes));
    sizes
}

/// A run of elements of one memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Run {
    pub(crate) rank: Rank,
    pub(crate) memory: usize,
    pub(crate) first: u32,
    pub(crate) len: u32,
}

impl Run {
    fn overlaps(&self, other: &Self) -> bool {
        (self.rank, self.memory) == (other.rank, other.memory)
            && self.first < other.first + other.len
            && other.first < self.first + self.len
    }
}

/// From some runs to others, element by element. A message has one side only.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) inputs: Range<usize>,
    pub(crate) outputs: Range<usize>,
    /// `None` for a copy, else whether the reduction is final.
    pub(crate) reduces: Option<bool>,
}

/// What one chunk of one action touches.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) runs: Vec<Run>,
    pub(crate) moves: Vec<Move>,
}

/// Blocks that are cut as one range, or one block that is cut alone.
#[derive(Clone, Copy)]
enum Cut {
    Range(u32, u32),
    Block(u32),
}

/// One chunk, seen from the rank that performs it.
pub(crate) struct Resolver<'a> {
    pub(crate) operation: &'a Operation,
    /// Which operation of the sequence it is: names the slot.
    pub(crate) turn: usize,
    pub(crate) rank: Rank,
    pub(crate) chunk: u32,
}

impl Resolver<'_> {
    /// Fills `work` with what `action` touches.
    pub(crate) fn resolve(&self, action: &Action, work: &mut Work) -> Result<(), String> {
        work.runs.clear();
        work.moves.clear();
        match *action {
            Action::Signal { .. } | Action::Wait { .. } => {}
            Action::Send { from, .. } => {
                let cut = self.only(from)?;
                work.runs.push(self.run(self.rank, from.role, cut, false)?);
                work.moves.push(Move { inputs: 0..1, outputs: 1..1, reduces: None });
            }
            Action::Recv { into, .. } => {
                let cut = self.only(into)?;
                work.runs.push(self.run(self.rank, into.role, cut, true)?);
                work.moves.push(Move { inputs: 0..0, outputs: 0..1, reduces: None });
            }
            Action::Copy { whose, from, to } => {
                if whose == Some(self.rank) {
                    return Err("copies from itself as from a peer".to_owned());
                }
                let (sources, targets) = (self.cuts(from.blocks), self.cuts(to.blocks));
                if sources.len() != targets.len() {
                    return Err("copies between different numbers of blocks".to_owned());
                }
                for (source, target) in sources.into_iter().zip(targets) {
                    let input = match (whose, source, target) {
                        (Some(q), Cut::Block(block), Cut::Block(into)) if self.is_private() => {
                            self.lent(q, from.role, block, into)?
                        }
                        _ => self.run(whose.unwrap_or(self.rank), from.role, source, false)?,
                    };
                    self.copy(input, self.run(self.rank, to.role, target, true)?, work);
                }
            }
            Action::Gather { from, take } => {
                for q in 0..self.operation.ranks() {
                    let role = if q == self.rank { Role::Input } else { from };
                    let block = if take == Take::Ours { self.rank } else { q };
                    let input = if q != self.rank && self.is_private() {
                        self.lent(q, role, block, q)?
                    } else {
                        self.run(q, role, Cut::Block(block), false)?
                    };
                    self.copy(input, self.run(self.rank, Role::Output, Cut::Block(q), true)?, work);
                }
            }
            Action::Fetch { from, blocks, to } => {
                for cut in self.cuts(blocks) {
                    let Cut::Block(block) = cut else { return Err("fetches no blocks".to_owned()) };
                    let input = match from {
                        // A block of one's own that peers find in the stage is there already.
                        Holder::Owner if block == self.rank && self.operation.staged[block as usize] => {
                            self.run(block, Role::Stage, cut, false)?
                        }
                        Holder::Owner => self.run(block, Role::Input, cut, false)?,
                        Holder::Relay => self.relayed(self.operation.nodes.node_of(self.rank), block)?,
                    };
                    self.copy(input, self.run(self.rank, to, cut, true)?, work);
                }
            }
            Action::Reduce { inputs, outputs, last } => self.reduce(inputs, outputs, last, work)?,
            Action::Scan { exclusive } => {
                let block = |role| Span::one(role, self.rank);
                for q in (u32::from(exclusive)..self.operation.ranks()).rev() {
                    let inputs = Operands::First(q + u32::from(!exclusive), block(Role::Input));
                    self.reduce(inputs, Operands::Of(q, block(Role::Output)), false, work)?;
                }
            }
        }
        self.consistent(work, matches!(action, Action::Scan { .. }))
    }

    /// A copy of something to itself touches nothing.
    fn copy(&self, input: Run, output: Run, work: &mut Work) {
        if input == output {
            return;
        }
        let at = work.runs.len();
        work.runs.extend([input, output]);
        work.moves.push(Move { inputs: at..at + 1, outputs: at + 1..at + 2, reduces: None });
    }

    fn reduce(&self, inputs: Operands, outputs: Operands, last: bool, work: &mut Work) -> Result<(), String> {
        let parts = self.cuts(spans(outputs)[0].blocks).len();
        for part in 0..parts {
            let begin = work.runs.len();
            self.operands(inputs, part, false, work)?;
            let middle = work.runs.len();
            self.operands(outputs, part, true, work)?;
            let (inputs, outputs) = (begin..middle, middle..work.runs.len());
            work.moves.push(Move { inputs, outputs, reduces: Some(last) });
        }
        Ok(())
    }

    fn operands(&self, operands: Operands, part: usize, write: bool, work: &mut Work) -> Result<(), String> {
        for span in spans(operands) {
            let cuts = self.cuts(span.blocks);
            let cut = *cuts.get(part).ok_or("reduces different numbers of blocks")?;
            let ranks = match operands {
                Operands::All(_) => 0..self.operation.ranks(),
                Operands::First(ranks, _) => 0..ranks,
                Operands::Of(rank, _) => rank..rank + 1,
                Operands::Received(ranks, _) => {
                    for q in 0..ranks {
                        let role = if q == self.rank { Role::Input } else { Role::Partial(q as u16) };
                        work.runs.push(self.run(self.rank, role, cut, write)?);
                    }
                    continue;
                }
                Operands::Node(_) => {
                    let nodes = &self.operation.nodes;
                    for &q in nodes.members(nodes.node_of(self.rank)) {
                        work.runs.push(self.run(q, span.role, cut, write)?);
                    }
                    continue;
                }
                Operands::Relays(_) => {
                    let Cut::Block(block) = cut else { return Err("sums no blocks".to_owned()) };
                    for node in 0..self.operation.nodes.count() {
                        work.runs.push(self.relayed(node, block)?);
                    }
                    continue;
                }
                Operands::Mine(_) | Operands::Pair(..) => {
                    work.runs.push(self.run(self.rank, span.role, cut, write)?);
                    continue;
                }
            };
            for q in ranks {
                // One's own part is never what one has just published.
                let own = if span.role == Role::Slot { Role::Input } else { span.role };
                let role = if q == self.rank { own } else { span.role };
                work.runs.push(self.run(q, role, cut, write)?);
            }
        }
        Ok(())
    }

    fn cuts(&self, blocks: Blocks) -> Vec<Cut> {
        let count = self.operation.geometry(self.rank).layout.blocks();
        let relays =
            |block: &u32| self.operation.nodes.relays(self.operation.case.collective, self.rank, *block);
        match blocks {
            Blocks::Relayed => (0..count).filter(relays).map(Cut::Block).collect(),
            Blocks::Unrelayed => (0..count).filter(|b| !relays(b)).map(Cut::Block).collect(),
            Blocks::Range { first, end } => vec![Cut::Range(first, end)],
            Blocks::One(block) => vec![Cut::Block(block)],
            Blocks::Each => (0..count).map(Cut::Block).collect(),
            Blocks::Others(block) => (0..count).filter(|b| *b != block).map(Cut::Block).collect(),
        }
    }

    fn only(&self, span: Span) -> Result<Cut, String> {
        let cuts = self.cuts(span.blocks);
        if cuts.len() == 1 { Ok(cuts[0]) } else { Err("a message has several blocks".to_owned()) }
    }

    /// Whether only a rank itself knows where its blocks lie.
    fn is_private(&self) -> bool {
        self.operation.case.collective.has_private_lengths()
    }

    /// Where `role` of `owner` lies for the executing rank, and which part of it this chunk is.
    fn run(&self, owner: Rank, role: Role, cut: Cut, write: bool) -> Result<Run, String> {
        let role = self.reached(owner, role, write)?;
        let geometry = self.operation.geometry(self.rank);
        let piece = match cut {
            Cut::Range(first, end) => geometry.range_piece(role, first, end, self.chunk),
            Cut::Block(block) => geometry.block_piece(role, block, self.chunk, self.chunk + 1),
        };
        self.bounded(owner, role, piece)
    }

    /// The part of `owner`'s block `block` that becomes this chunk of one's own block `into`. The owner has told where the block begins.
    fn lent(&self, owner: Rank, role: Role, block: u32, into: u32) -> Result<Run, String> {
        let role = self.reached(owner, role, false)?;
        let geometry = self.operation.geometry(self.rank);
        let mut piece = geometry.lent_piece(role, block, into, self.chunk, self.chunk + 1);
        if role != Role::Stage {
            piece.offset += self.operation.geometry(owner).layout.start(block);
        }
        self.bounded(owner, role, piece)
    }

    /// This chunk of `block` where the relay of `node` holds it ready.
    fn relayed(&self, node: u32, block: u32) -> Result<Run, String> {
        let relay = self.operation.nodes.relay(self.operation.case.collective, node, block);
        let geometry = self.operation.geometry(self.rank);
        self.bounded(relay, Role::Stage, geometry.block_piece(Role::Stage, block, self.chunk, self.chunk + 1))
    }

    /// What stands for `role` of `owner`.
    fn reached(&self, owner: Rank, role: Role, write: bool) -> Result<Role, String> {
        let foreign = owner != self.rank;
        match role {
            Role::Input | Role::Output if foreign && self.operation.staged[owner as usize] => Ok(Role::Stage),
            Role::Stage | Role::Scratch(_) | Role::Partial(_) if foreign => {
                Err(format!("reaches {role:?} of rank {owner}"))
            }
            Role::Input if write => Err(format!("writes the input of rank {owner}")),
            role => Ok(role),
        }
    }

    fn bounded(&self, owner: Rank, role: Role, piece: Piece) -> Result<Run, String> {
        let operation = self.operation;
        let geometry = operation.geometry(self.rank);
        let Piece { offset, bytes } = piece;
        let (first, len) = (operation.elements_of(offset), operation.elements_of(bytes));
        let (memory, (lowest, end)) = match role {
            Role::Input => (INPUT, operation.input(owner)),
            Role::Output => (OUTPUT, operation.output(owner)),
            Role::Slot => (SLOTS + self.turn, (0, operation.elements(owner))),
            Role::Stage => (STAGE, (0, operation.elements_of(geometry.stage_bytes()))),
            Role::Scratch(ring) if u32::from(ring) >= operation.rings => {
                return Err(format!("uses scratch ring {ring} of {}", operation.rings));
            }
            Role::Partial(_) => (PARTIAL, (0, operation.elements_of(operation.partial_bytes))),
            Role::Scratch(_) => {
                (SCRATCH, (0, operation.elements_of(geometry.scratch_bytes(operation.rings))))
            }
        };
        if len > 0 && (first < lowest || first + len > end) {
            let last = first + len;
            return Err(format!("{role:?} of rank {owner} is {lowest}..{end}, touched at {first}..{last}"));
        }
        let memory = if memory == OUTPUT && operation.is_in_place() { INPUT } else { memory };
        Ok(Run { rank: owner, memory, first, len })
    }

    /// All runs of a move have one length, and a task does not trample on its own operands; if its moves are made in order, not on
    /// those of later ones.
    fn consistent(&self, work: &Work, in_order: bool) -> Result<(), String> {
        for (m, one) in work.moves.iter().enumerate() {
            let len = work.runs[one.inputs.start.min(one.outputs.start)].len;
            if work.runs[one.inputs.clone()]
                .iter()
                .chain(&work.runs[one.outputs.clone()])
                .any(|r| r.len != len)
            {
                return Err("moves between runs of different lengths".to_owned());
            }
            for output in one.outputs.clone() {
                let written = work.runs[output];
                for (n, other) in work.moves.iter().enumerate() {
                    let clash = |r: &Run| r.overlaps(&written) && !(m == n && *r == written);
                    if !(in_order && n < m) && work.runs[other.inputs.clone()].iter().any(clash) {
                        return Err("overwrites its own operand".to_owned());
                    }
                    if other.outputs.clone().any(|o| o != output && work.runs[o].overlaps(&written)) {
                        return Err("writes twice to the same place".to_owned());
                    }
                }
            }
        }
        Ok(())
    }
}

fn spans(operands: Operands) -> Vec<Span> {
    match operands {
        Operands::Mine(span) | Operands::All(span) | Operands::First(_, span) | Operands::Of(_, span) => {
            vec![span]
        }
        Operands::Pair(first, second) => vec![first, second],
        Operands::Node(span) => vec![span],
        Operands::Received(_, blocks) | Operands::Relays(blocks) => {
            vec![Span { role: Role::Input, blocks }]
        }
    }
}
