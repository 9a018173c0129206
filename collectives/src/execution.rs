//! Which step is ready now: a sans-I/O machine over a schedule.
//!
//! The caller polls for tasks, does them in any order and any number at a time, and reports completed
//! chunks. A task covers a run of chunks of one step; chunks of a step are handed out in order, at
//! most [`WINDOW`] at a time, and may complete in any order. A Wait is handed out whole, and its chunks
//! complete in order, as watermarks rise.
//!
//! # States of a step
//! *unloaded* (index ≥ `high`) → *loaded* (some chunks not handed out) → *issued* (all handed out) →
//! *complete*, when it leaves the window as soon as all before it have. At most [`WINDOW`] steps are
//! loaded, so the memory and the cost per task are bounded whatever the number of ranks.
//!
//! `steps[i % WINDOW]` belongs to step `i` while `low <= i < high`. `ready` and `dependents` are bit sets over the
//! same slots. Nothing here is shared: the caller serialises the calls.

use std::ops::Range;

use crate::layout::Geometry;
use crate::schedule::Schedule;
use crate::step::{Action, MAX_DEPENDENCIES, Phase, Rule, Step};

/// How many steps are loaded at a time, and how far apart completions of one step's chunks may be.
pub const WINDOW: u32 = 32;

/// Work that is ready: chunks `first..end` of one step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Task {
    /// The step's index, to be given back on completion.
    pub step: u32,
    /// The first chunk.
    pub first: u32,
    /// One past the last chunk.
    pub end: u32,
    /// What to do.
    pub action: Action,
}

#[derive(Clone, Copy, Debug)]
struct Loaded {
    step: Step,
    chunks: u32,
    /// Chunks below this may be handed out: what [`Execution::allowed`] last said.
    allowed: u32,
    /// What `allowed` was before anything was complete.
    allowed_at_start: u32,
    /// Chunks below this are handed out.
    issued: u32,
    /// Chunks below this are complete.
    done: u32,
    /// Bit `i`: chunk `done + 1 + i` is complete.
    beyond: u32,
    /// Slots of the loaded steps that wait for this one.
    dependents: u32,
    /// Slots of the loaded steps that this one waits for, when every step is one chunk.
    needs: u32,
}

const EMPTY: Loaded = Loaded {
    step: Step::new(Action::Signal { phase: Phase::Arrival }),
    chunks: 0,
    allowed: 0,
    allowed_at_start: 0,
    issued: 0,
    done: 0,
    beyond: 0,
    dependents: 0,
    needs: 0,
};

/// One rank's progress through one schedule.
#[derive(Clone, Debug)]
pub struct Execution {
    schedule: Schedule,
    geometry: Geometry,
    low: u32,
    high: u32,
    /// Slots of steps with chunks that can be handed out now: with `issued < allowed`.
    ready: u32,
    /// What `ready` was before anything was handed out.
    ready_at_start: u32,
    /// Slots of steps that wait for a step not yet loaded.
    forward: u32,
    /// Everything is loaded and every step is one chunk, as in all small operations: then a step is ready when the
    /// steps it needs are finished, and two sets of bits say it all.
    single: bool,
    /// In that case: slots of complete steps.
    finished: u32,
    /// Then, if nothing is lost by taking the steps in their order, one after the other: as in what mapped peers do. `low` and
    /// `taken` are all there is to know.
    straight: bool,
    /// In that case: steps below this are handed out.
    taken: u32,
    steps: [Loaded; WINDOW as usize],
}

const fn slot(step: u32) -> usize {
    (step % WINDOW) as usize
}

const fn bit(step: u32) -> u32 {
    1 << (step % WINDOW)
}

impl Execution {
    /// Begins `schedule` over memory cut by `geometry`.
    pub fn new(schedule: Schedule, geometry: Geometry) -> Self {
        let mut execution = Self {
            schedule,
            geometry,
            low: 0,
            high: 0,
            ready: 0,
            ready_at_start: 0,
            forward: 0,
            single: false,
            finished: 0,
            straight: false,
            taken: 0,
            steps: [EMPTY; WINDOW as usize],
        };
        execution.begin();
        execution
    }

    /// Begins another schedule in the same memory.
    pub fn restart(&mut self, schedule: Schedule, geometry: Geometry) {
        if self.schedule == schedule && self.geometry == geometry {
            return self.rewind();
        }
        (self.schedule, self.geometry) = (schedule, geometry);
        self.begin();
    }

    /// Begins the same schedule again. It costs next to nothing when it fits in the window: its steps are still loaded, and
    /// only their progress is forgotten.
    #[inline]
    pub fn rewind(&mut self) {
        (self.low, self.taken) = (0, 0);
        if self.straight {
            return;
        }
        if self.high > WINDOW {
            return self.begin();
        }
        for loaded in &mut self.steps[..self.high as usize] {
            loaded.rewind();
        }
        (self.ready, self.finished) = (self.ready_at_start, 0);
    }

    fn begin(&mut self) {
        (self.low, self.high, self.ready, self.forward, self.finished) = (0, 0, 0, 0, 0);
        (self.straight, self.taken) = (false, 0);
        self.load();
        self.ready_at_start = self.ready;
        let whole = self.high == self.schedule.len();
        let loaded = &mut self.steps[..self.high as usize];
        self.single = whole && loaded.iter().all(|l| l.chunks == 1);
        for loaded in loaded {
            loaded.allowed_at_start = loaded.allowed;
            // A ring frees chunk 0 for nobody before it is used again, which a single chunk never does.
            let needed = loaded.step.dependencies().filter(|d| d.rule != Rule::Reuse);
            loaded.needs = needed.map(|d| bit(d.step)).fold(0, |a, b| a | b);
        }
        self.straight = self.single && self.is_straight();
    }

    /// Whether each step either needs the one before it or comes after one that ends as soon as it is done, so that another
    /// order could begin nothing sooner.
    fn is_straight(&self) -> bool {
        let needs_one_before = |i: u32| self.steps[slot(i)].needs & bit(i - 1) != 0;
        let ends_at_once = |i: u32| !self.steps[slot(i)].step.action.depends_on_peers();
        let goes_back = |i: u32| self.steps[slot(i)].needs & !(bit(i) - 1) == 0;
        (0..self.high).all(goes_back) && (1..self.high).all(|i| needs_one_before(i) || ends_at_once(i - 1))
    }

    /// The geometry it runs with.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The schedule it runs.
    pub const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Whether every step is complete.
    pub const fn is_done(&self) -> bool {
        self.low == self.schedule.len()
    }

    /// The first step that is not complete, with its completed and its total chunks: what an error or a
    /// stall report shows.
    pub fn position(&self) -> Option<(Action, u32, u32)> {
        let waiting = (self.low..self.high).map(|i| &self.steps[slot(i)]).find(|l| l.done < l.chunks)?;
        Some((waiting.step.action, waiting.done, waiting.chunks))
    }

    /// The messages that are handed out and not complete: (step, chunk).
    pub fn in_flight(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (self.low..self.high).flat_map(|step| {
            let loaded = &self.steps[slot(step)];
            let message = matches!(loaded.step.action, Action::Send { .. } | Action::Recv { .. });
            let issued = if self.straight { u32::from(step < self.taken) } else { loaded.issued };
            let chunks = if message { loaded.done..issued } else { 0..0 };
            chunks
                .filter(|c| *c == loaded.done || loaded.beyond & 1 << (c - loaded.done - 1) == 0)
                .map(move |chunk| (step, chunk))
        })
    }

    /// The next ready work of at most `limit` chunks, or `None` until something completes. What is
    /// furthest along the schedule comes first, so that a pipeline drains before it fills.
    // Inline, so that the task is not copied through memory, which costs more than choosing it.
    #[inline]
    pub fn poll(&mut self, limit: u32) -> Option<Task> {
        if self.straight {
            return self.take();
        }
        if self.ready == 0 {
            return None;
        }
        // Rotated so that the oldest step has bit 0, the furthest one is the highest bit.
        let furthest = WINDOW - 1 - self.ready.rotate_right(self.low % WINDOW).leading_zeros();
        let step = self.low + furthest;
        let loaded = &mut self.steps[slot(step)];
        let (first, allowed) = (loaded.issued, loaded.allowed);
        // A wait costs nothing to hand out, and one open wait serves all its chunks.
        let limit = if matches!(loaded.step.action, Action::Wait { .. }) { u32::MAX } else { limit.max(1) };
        let end = allowed.min(first.saturating_add(limit));
        loaded.issued = end;
        if end == allowed {
            self.ready &= !bit(step);
        }
        Some(Task { step, first, end, action: loaded.step.action })
    }

    /// The next step in order, once the one before it is complete.
    #[inline]
    fn take(&mut self) -> Option<Task> {
        if self.taken > self.low || self.low == self.high {
            return None;
        }
        self.taken = self.low + 1;
        let action = self.steps[slot(self.low)].step.action;
        Some(Task { step: self.low, first: 0, end: 1, action })
    }

    /// Chunks `chunks` of `step` are complete.
    ///
    /// # Panics
    /// When they were not handed out, or were completed before: a chunk that counts twice is the one
    /// error this crate exists to exclude.
    #[inline]
    pub fn complete(&mut self, step: u32, chunks: Range<u32>) {
        assert!(self.low <= step && step < self.high, "step {step} is not under way");
        assert!(chunks.start < chunks.end, "no chunks of step {step} are complete");
        if self.straight {
            assert!(
                step < self.taken && chunks.end == 1,
                "chunks {chunks:?} of step {step} were not handed out"
            );
            self.low += 1;
            return;
        }
        let loaded = &mut self.steps[slot(step)];
        assert!(chunks.end <= loaded.issued, "chunks {chunks:?} of step {step} were not handed out");
        if self.single {
            return self.finish(step);
        }
        if chunks.start == loaded.done {
            loaded.done = chunks.end;
            if loaded.beyond != 0 {
                loaded.absorb(chunks.len());
            }
        } else {
            for chunk in chunks {
                let ahead = chunk.checked_sub(loaded.done + 1).filter(|a| *a < WINDOW);
                let Some(ahead) = ahead else {
                    panic!("chunk {chunk} of step {step} completed again or too early")
                };
                assert!(loaded.beyond & 1 << ahead == 0, "chunk {chunk} of step {step} completed twice");
                loaded.beyond |= 1 << ahead;
            }
            return;
        }
        let (whole, mut dependents) = (loaded.done == loaded.chunks, loaded.dependents);
        if loaded.chunks > WINDOW {
            // More of its own chunks may be under way now.
            dependents |= bit(step);
        }
        while dependents != 0 {
            let slot = dependents.trailing_zeros();
            dependents &= dependents - 1;
            // The loaded step in that slot: the only one in low..low + WINDOW with this remainder.
            self.refresh(self.low + (slot.wrapping_sub(self.low) % WINDOW));
        }
        if whole && step == self.low {
            self.advance();
        }
    }

    /// The only chunk of `step` is complete.
    #[inline]
    fn finish(&mut self, step: u32) {
        let loaded = &mut self.steps[slot(step)];
        assert!(loaded.done == 0, "chunk 0 of step {step} completed twice");
        loaded.done = 1;
        self.finished |= bit(step);
        let mut dependents = loaded.dependents;
        while dependents != 0 {
            let dependent = dependents.trailing_zeros();
            dependents &= dependents - 1;
            if self.steps[dependent as usize].needs & !self.finished == 0
                && self.steps[dependent as usize].issued == 0
            {
                self.steps[dependent as usize].allowed = 1;
                self.ready |= 1 << dependent;
            }
        }
        if self.finished.count_ones() == self.high {
            self.low = self.high;
        }
    }

    fn advance(&mut self) {
        while self.low < self.high {
            let loaded = &self.steps[slot(self.low)];
            if loaded.done < loaded.chunks {
                break;
            }
            self.low += 1;
        }
        if self.high < self.schedule.len() {
            self.load();
        }
    }

    fn load(&mut self) {
        let end = self.schedule.len().min(self.low.saturating_add(WINDOW));
        while self.high < end {
            let index = self.high;
            let step = self.schedule.step(index);
            let chunks = self.geometry.chunks(&step.action);
            let loaded = &mut self.steps[slot(index)];
            *loaded = Loaded { step, chunks, ..EMPTY };
            self.high += 1;
            self.ready &= !bit(index);
            // A bit left from the step that had this slot before would name the wrong step.
            self.forward &= !bit(index);
            self.enrol(index, &step);
            if self.forward & !bit(index) != 0 {
                self.meet_forward(index);
            }
            self.refresh(index);
        }
    }

    /// Tells the steps that `step` waits for to wake it.
    fn enrol(&mut self, index: u32, step: &Step) {
        for dependency in step.dependencies() {
            if dependency.step >= self.high {
                self.forward |= bit(index);
            } else if dependency.step >= self.low {
                self.steps[slot(dependency.step)].dependents |= bit(index);
            }
        }
    }

    /// Step `index` has just been loaded: enrols the earlier steps that wait for it.
    fn meet_forward(&mut self, index: u32) {
        for earlier in self.low..index {
            if self.forward & bit(earlier) != 0
                && self.steps[slot(earlier)].step.dependencies().any(|d| d.step == index)
            {
                self.steps[slot(index)].dependents |= bit(earlier);
            }
        }
    }

    /// How many chunks of a loaded step its dependencies allow.
    fn allowed(&self, step: u32) -> u32 {
        let loaded = &self.steps[slot(step)];
        let mut allowed = loaded.chunks;
        if !matches!(loaded.step.action, Action::Wait { .. }) {
            // Chunks may complete out of order; this bounds how far, and how many are under way.
            allowed = allowed.min(loaded.done.saturating_add(WINDOW));
        }
        for dependency in loaded.step.dependencies() {
            if dependency.step < self.low {
                continue;
            }
            let (done, chunks) = if dependency.step < self.high {
                let other = &self.steps[slot(dependency.step)];
                (other.done, other.chunks)
            } else {
                (0, u32::MAX)
            };
            if done == chunks {
                continue;
            }
            allowed = allowed.min(match dependency.rule {
                Rule::Same => done,
                Rule::All => 0,
                Rule::Reuse => done.saturating_add(self.geometry.depth),
            });
        }
        allowed
    }

    fn refresh(&mut self, step: u32) {
        if step < self.high {
            let allowed = self.allowed(step);
            let loaded = &mut self.steps[slot(step)];
            loaded.allowed = allowed;
            if loaded.issued < allowed {
                self.ready |= bit(step);
            }
        }
    }
}

impl Loaded {
    /// Forgets all progress.
    fn rewind(&mut self) {
        (self.allowed, self.issued, self.done, self.beyond) = (self.allowed_at_start, 0, 0, 0);
    }

    /// `by` chunks became complete in order; those recorded out of order that now join them count too.
    fn absorb(&mut self, by: usize) {
        // Bit i stands for chunk done+1+i with the old `done`; the new one is `by` further on.
        let mut beyond = u64::from(self.beyond);
        let skipped = by - 1;
        assert!(beyond & ((1 << skipped.min(WINDOW as usize)) - 1) == 0, "a chunk completed twice");
        beyond >>= skipped.min(WINDOW as usize);
        while beyond & 1 == 1 {
            self.done += 1;
            beyond >>= 1;
        }
        // Bit 0 now stands for chunk `done` itself, which is missing.
        self.beyond = (beyond >> 1) as u32;
    }
}

const _: () = assert!(MAX_DEPENDENCIES <= WINDOW as usize);
