//! One run: random events from a seed, then everything that must happen, then the checks at the end.

use windlass::scheduler::Fault;

use crate::rank::{Outcome, Setup};
use crate::world::{Step, World};

/// A small generator of random numbers (splitmix64), so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What a seed stands for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    pub(crate) weights: u64,
    /// Whether stopped ranks wake before the end.
    pub(crate) wakes: bool,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    pub(crate) fn world(&self) -> World {
        let mut weights = Random(self.weights);
        World::new(self.setup.clone(), move || weights.next())
    }
}

/// The kinds of faults, for the tally.
pub(crate) const FAULTS: [&str; 14] = [
    "move",
    "move inside an acknowledgement",
    "announced ahead",
    "revoke, preserved",
    "revoke, lost",
    "moved unasked",
    "free in use",
    "exporter never returns",
    "registration or mapping fails",
    "connection broken",
    "crash",
    "stopped",
    "woken",
    "time passes",
];

pub(crate) type Tally = [u64; FAULTS.len()];

pub(crate) fn count(tally: &mut Tally, step: Step) {
    let kind = match step {
        Step::Ask { again: false, .. } => 0,
        Step::Ask { again: true, .. } => 1,
        Step::Announce { .. } => 2,
        Step::Replace { is_lost: false, .. } => 3,
        Step::Replace { is_lost: true, .. } => 4,
        Step::MoveUnasked { .. } => 5,
        Step::Free { .. } => 6,
        Step::Abandon { .. } => 7,
        Step::Finish { fails: true, .. } => 8,
        Step::BreakLink { .. } => 9,
        Step::Crash { .. } => 10,
        Step::Stop { .. } => 11,
        Step::Wake { .. } => 12,
        Step::Tick => 13,
        _ => return,
    };
    tally[kind] += 1;
}

fn setup(random: &mut Random, fault: Option<Fault>) -> Setup {
    let ranks = match random.below(16) {
        0 => 8 + random.below(9),
        1..4 => 5 + random.below(4),
        _ => 2 + random.below(3),
    };
    let keys = match random.below(3) {
        0 => 0,
        1 => u64::MAX,
        _ => random.next(),
    };
    let most_chunks = if ranks > 4 { 2 } else { 4 };
    let (chunks, slots) = (1 + random.below(most_chunks) as u32, 1 + random.below(3));
    Setup { ranks: ranks as u32, chunks, slots, keys, limits: (60, 2000), fault }
}

fn fault_step(random: &mut Random, world: &World, grave: bool) -> Step {
    let any = |random: &mut Random| random.below(world.setup.ranks as usize) as u32;
    let (owner, other) = (any(random), any(random));
    let patience_ns = 40 + random.below(200) as u64;
    match random.below(if grave { 26 } else { 18 }) {
        0..6 => Step::Ask { owner, again: random.one_in(4), patience_ns },
        6..8 => Step::Announce { owner },
        8..12 => Step::Revoke { owner },
        12 => Step::MoveUnasked { owner },
        13..16 => Step::BreakLink { from: owner, to: other },
        16..18 => Step::Tick,
        18 => Step::Free { owner },
        19 => Step::Abandon { owner },
        20 => Step::Crash { rank: owner },
        21 => Step::Stop { rank: owner },
        22 => Step::Wake { rank: owner },
        23 => Step::Finish { rank: owner, request: 0, fails: true },
        _ => {
            let revoked = world.exporters.iter().position(|exporter| exporter.is_revoked);
            Step::Replace { owner: revoked.map_or(owner, |owner| owner as u32), is_lost: true }
        }
    }
}

/// Runs a seed's random part. What it found is replayable by the plan alone.
pub(crate) fn random(seed: u64, fault: Option<Fault>, tally: &mut Tally) -> (Plan, Option<String>) {
    let mut random = Random(seed);
    let setup = setup(&mut random, fault);
    let (grave, wakes) = (random.one_in(3), random.one_in(2));
    let mut plan = Plan { setup, weights: random.next(), wakes, steps: Vec::new() };
    let mut world = plan.world();
    let mut faults = 1 + random.below(8);
    let rate = 4 + random.below(40);
    loop {
        let step = if faults > 0 && random.one_in(rate) {
            let step = fault_step(&mut random, &world, grave);
            faults -= usize::from(world.is_possible(step));
            step
        } else {
            let enabled = world.enabled();
            if enabled.is_empty() || (faults == 0 && random.one_in(60)) {
                break;
            }
            enabled[random.below(enabled.len())]
        };
        if perform(&mut world, step, tally) {
            plan.steps.push(step);
        }
        if world.violation.is_some() || plan.steps.len() > 20_000 {
            break;
        }
    }
    let found = finish(&mut world, plan.wakes, tally);
    (plan, found)
}

fn perform(world: &mut World, step: Step, tally: &mut Tally) -> bool {
    let done = world.apply(step);
    if done {
        count(tally, step);
        world.observe_pauses();
    }
    done
}

/// Runs a plan again.
pub(crate) fn replay(plan: &Plan) -> Option<String> {
    let (mut world, mut tally) = (plan.world(), Tally::default());
    for step in &plan.steps {
        perform(&mut world, *step, &mut tally);
    }
    finish(&mut world, plan.wakes, &mut tally)
}

/// Lets everything happen that must, without another fault, and checks what is left.
pub(crate) fn finish(world: &mut World, wakes: bool, tally: &mut Tally) -> Option<String> {
    if wakes {
        for rank in 0..world.setup.ranks {
            perform(world, Step::Wake { rank }, tally);
        }
    }
    let mut rounds = 0;
    while world.violation.is_none() {
        let steps = world.enabled();
        for step in steps.iter().filter(|_| world.violation.is_none()).copied().collect::<Vec<_>>() {
            perform(world, step, tally);
        }
        rounds += 1;
        if rounds > 5_000 {
            return Some("everything ends: it goes on and on".to_owned());
        }
        let over = world.ranks.iter().all(|rank| !rank.runs() || rank.outcome.is_some());
        let waiting = |rank: &crate::rank::Rank| rank.runs() && rank.region.deadline_ns().is_some();
        if steps.is_empty() {
            if over && !world.ranks.iter().any(waiting) {
                break;
            }
            world.tick();
        }
    }
    world.violation.clone().or_else(|| at_the_end(world))
}

fn at_the_end(world: &World) -> Option<String> {
    if let Err(violation) = world.checker.finish() {
        return Some(violation.to_string());
    }
    for rank in world.ranks.iter().filter(|rank| rank.runs()) {
        if rank.region.leases() > 0 || rank.imports.iter().flatten().any(|import| import.leases() > 0) {
            return Some(format!("everything ends: rank {} counts leases", rank.id));
        }
        let exporter = &world.exporters[rank.id as usize];
        let cells = &exporter.places[exporter.current].cells;
        let has_result =
            rank.outcome == Some(Outcome::Success) && !exporter.has_ended && !exporter.is_revoked;
        let wrong = (0..cells.len()).find(|cell| has_result && cells[*cell] != world.sums[*cell]);
        if let Some(cell) = wrong {
            return Some(format!("exactly once: cell {cell} of rank {} is not the sum", rank.id));
        }
    }
    None
}

/// A plan with the same finding and as few steps as simple attempts reach.
pub(crate) fn shrink(plan: &Plan) -> Plan {
    let mut small = plan.clone();
    let mut size = small.steps.len().max(1);
    while size > 0 {
        let mut at = 0;
        while at < small.steps.len() {
            let mut fewer = small.clone();
            fewer.steps.drain(at..(at + size).min(small.steps.len()));
            if std::panic::catch_unwind(|| replay(&fewer)).unwrap_or_else(|_| Some(String::new())).is_some() {
                small = fewer;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    small
}

/// The run as text, one event a line.
pub(crate) fn trace(plan: &Plan) -> String {
    let mut text = format!("{:?}\n", plan.setup);
    let mut world = plan.world();
    for (i, step) in plan.steps.iter().enumerate() {
        let done = world.apply(*step);
        let states: Vec<String> = world
            .ranks
            .iter()
            .map(|rank| format!("{:?}({})", rank.region.state(), rank.region.generation().0))
            .collect();
        let note = if done { "" } else { " (not possible)" };
        text += &format!("{i:4} {step:?}{note}   regions: {}\n", states.join(" "));
    }
    text + "then everything that must happen, in turn\n"
}
