//! No two accesses race, nothing unwritten is read, and the results are right.
//!
//! Events are executed in one order in which they may happen. Every cell remembers who wrote it and who
//! has read it since; each new access must come after those it conflicts with by strict edges. As that
//! relation is transitive, every pair of conflicting accesses is then ordered in every order.

use super::case::{Case, Operation};
use super::graph::{Event, Graph, Task};
use super::resolve::{INPUT, OUTPUT, PARTIAL, Resolver, Run, SCRATCH, SLOTS, STAGE, Work, sizes};
use super::value::{Sum, Value};

const NONE: u32 = u32::MAX;

/// An element of some memory.
#[derive(Clone, Copy)]
struct Cell {
    value: Option<Value>,
    /// The event at which it was written.
    writer: u32,
    /// The first of those who have read it since.
    readers: u32,
}

/// Proves operations; keeps its memory from one proof to the next.
#[derive(Default)]
pub(crate) struct Prover {
    graph: Graph,
    cells: Vec<Cell>,
    /// Where a memory of a rank begins: `bases[rank * memories + memory]`.
    bases: Vec<usize>,
    memories: usize,
    /// Lists of readers: the event at which the read ended, and the next one.
    readers: Vec<(u32, u32)>,
    /// The content of messages: where that of a task begins.
    letters: Vec<usize>,
    content: Vec<Value>,
    /// What each element of an all_reduce is computed as, on whichever rank.
    trees: Vec<Option<Value>>,
    work: Work,
}

impl Prover {
    /// Proves a case, or tells what is wrong with it.
    pub(crate) fn prove(&mut self, case: &Case) -> Result<(), String> {
        self.prove_all(&[case.operation()])
    }

    /// Proves operations that follow each other in the same memory.
    pub(crate) fn prove_all(&mut self, operations: &[Operation]) -> Result<(), String> {
        self.graph.build(operations)?;
        self.lay_out(operations);
        for i in 0..self.graph.order.len() {
            let event = self.graph.order[i];
            match self.graph.events[event as usize] {
                Event::Passes => {}
                Event::Boundary(turn, rank) => {
                    if turn > 0 {
                        self.leave(&operations[turn - 1], turn - 1, rank)
                            .map_err(|e| format!("operation {} at rank {rank}: {e}", turn - 1))?;
                    }
                    self.enter(operations, turn, rank, event)
                        .map_err(|e| format!("after operation {turn}, memory of rank {rank}: {e}"))?;
                }
                Event::Acts(task) => {
                    let task_of = self.graph.tasks[task as usize];
                    let operation = &operations[task_of.turn];
                    self.act(operation, task, task_of).map_err(|e| {
                        let step = &operation.steps[task_of.rank as usize][task_of.step as usize];
                        format!(
                            "rank {} step {} chunk {}: {step}: {e}",
                            task_of.rank, task_of.step, task_of.chunk
                        )
                    })?;
                }
            }
        }
        self.barriers(operations)
    }

    fn lay_out(&mut self, operations: &[Operation]) {
        let sizes = sizes(operations);
        self.memories = sizes.len();
        self.bases.clear();
        let mut end = 0;
        for _ in 0..operations[0].ranks() {
            for size in &sizes {
                self.bases.push(end);
                end += size;
            }
        }
        self.bases.push(end);
        self.cells.clear();
        self.cells.resize(end, Cell { value: None, writer: NONE, readers: NONE });
        self.readers.clear();
        self.content.clear();
        self.letters.clear();
        self.letters.resize(self.graph.tasks.len(), 0);
        self.trees.clear();
        self.trees.resize(sizes[INPUT] * operations.len(), None);
    }

    fn memory(&self, rank: u32, memory: usize) -> std::ops::Range<usize> {
        let at = rank as usize * self.memories + memory;
        self.bases[at]..self.bases[at + 1]
    }

    /// A rank has ended an operation: its results are right.
    fn leave(&mut self, operation: &Operation, turn: usize, rank: u32) -> Result<(), String> {
        let memory = if operation.is_in_place() { INPUT } else { OUTPUT };
        let base = self.memory(rank, memory).start;
        let reduced = operation.case.collective == windlass_collectives::Collective::AllReduce;
        let (first, end) = operation.output(rank);
        for element in first..end {
            let Some(value) = self.cells[base + element as usize].value else {
                return Err(format!("element {element} of the result was never written"));
            };
            if !operation.is_result(turn, rank, element, value) {
                return Err(format!("element {element} of the result is wrong: {value:?}"));
            }
            if reduced {
                let vector = self.memory(rank, memory).len();
                let same = &mut self.trees[turn * vector + element as usize];
                if same.replace(value).is_some_and(|other| other != value) {
                    return Err(format!("element {element} is not added in the same order everywhere"));
                }
            }
        }
        Ok(())
    }

    /// A rank is about to begin operation `turn`, or to do as it likes with its memory after the last one: all
    /// but the slots, whose reuse is guarded elsewhere.
    fn enter(&mut self, all: &[Operation], turn: usize, rank: u32, event: u32) -> Result<(), String> {
        for memory in [INPUT, OUTPUT, STAGE, SCRATCH, PARTIAL] {
            for cell in self.memory(rank, memory) {
                self.write(cell, None, event, event)?;
            }
        }
        let Some(operation) = all.get(turn) else { return Ok(()) };
        let (first, end) = operation.input(rank);
        let base = self.memory(rank, INPUT).start;
        for element in first..end {
            self.cells[base + element as usize].value = Some(Value::input(turn, rank, element));
        }
        for cell in self.memory(rank, SLOTS + turn) {
            self.write(cell, None, event, event)?;
        }
        Ok(())
    }

    fn act(&mut self, operation: &Operation, number: u32, task: Task) -> Result<(), String> {
        if operation.muted == Some((task.rank, task.step)) {
            return Ok(());
        }
        let step = &operation.steps[task.rank as usize][task.step as usize];
        let mut work = std::mem::take(&mut self.work);
        let resolver = Resolver { operation, turn: task.turn, rank: task.rank, chunk: task.chunk };
        let result =
            resolver.resolve(&step.action, &mut work).and_then(|()| self.perform(&work, number, task));
        self.work = work;
        result
    }

    fn perform(&mut self, work: &Work, number: u32, task: Task) -> Result<(), String> {
        let cell = |prover: &Self, run: &Run, i: u32| {
            prover.memory(run.rank, run.memory).start + (run.first + i) as usize
        };
        self.letters[number as usize] = self.content.len();
        for one in &work.moves {
            let len = work.runs[one.inputs.start.min(one.outputs.start)].len;
            for i in 0..len {
                let mut sum = Sum::default();
                let mut value = None;
                for run in &work.runs[one.inputs.clone()] {
                    let read = self.read(cell(self, run, i), task)?;
                    value = Some(read);
                    if one.reduces.is_some() {
                        sum.add(read)?;
                    }
                }
                let value = match (one.reduces, value) {
                    (Some(last), _) => sum.result(last),
                    (None, Some(read)) => read,
                    (None, None) => {
                        let letter = self.letters[self.graph.sender[number as usize] as usize];
                        self.content[letter + i as usize]
                    }
                };
                if one.outputs.is_empty() {
                    self.content.push(value);
                }
                for run in &work.runs[one.outputs.clone()] {
                    self.write(cell(self, run, i), Some(value), task.begin, task.end)?;
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, cell: usize, task: Task) -> Result<Value, String> {
        let Cell { value, writer, readers } = self.cells[cell];
        if !self.graph.precedes(writer, task.begin) {
            return Err(format!("reads what {} may still write", self.name(writer)));
        }
        let known = readers != NONE && self.readers[readers as usize].0 == task.end;
        if !known {
            self.cells[cell].readers = self.readers.len() as u32;
            self.readers.push((task.end, readers));
        }
        value.ok_or_else(|| "reads what nobody has written".to_owned())
    }

    fn write(&mut self, cell: usize, value: Option<Value>, begin: u32, end: u32) -> Result<(), String> {
        let Cell { writer, mut readers, .. } = self.cells[cell];
        if writer != NONE && !self.graph.precedes(writer, begin) {
            return Err(format!("overwrites what {} may still write", self.name(writer)));
        }
        while readers != NONE {
            let (reader, next) = self.readers[readers as usize];
            // A task that overwrites its own operand does so element by element.
            if reader != end && !self.graph.precedes(reader, begin) {
                return Err(format!("overwrites what {} may still read", self.name(reader)));
            }
            readers = next;
        }
        self.cells[cell] = Cell { value, writer: end, readers: NONE };
        Ok(())
    }

    /// Nobody leaves a barrier before all have entered it.
    fn barriers(&self, operations: &[Operation]) -> Result<(), String> {
        let boundary = |turn, rank| {
            let found = self.graph.events.iter().position(|e| *e == Event::Boundary(turn, rank));
            found.map_or(NONE, |e| e as u32)
        };
        for (turn, operation) in operations.iter().enumerate() {
            if operation.case.collective != windlass_collectives::Collective::Barrier {
                continue;
            }
            let entries: Vec<_> = (0..operation.ranks()).map(|r| boundary(turn, r)).collect();
            for rank in 0..operation.ranks() {
                let left = boundary(turn + 1, rank);
                if let Some(late) = entries.iter().position(|e| !self.graph.precedes(*e, left)) {
                    return Err(format!("rank {rank} leaves before rank {late} has entered"));
                }
            }
        }
        Ok(())
    }

    fn name(&self, event: u32) -> String {
        let task = self.graph.tasks.iter().find(|t| t.begin == event || t.end == event);
        task.map_or_else(
            || format!("{:?}", self.graph.events[event as usize]),
            |t| format!("rank {} step {} chunk {}", t.rank, t.step, t.chunk),
        )
    }
}
