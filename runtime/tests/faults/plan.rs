//! What a seed decides: the job, its calls, and what goes wrong when.

use std::fmt;
use std::time::Duration;

use windlass::{Algorithm, Fault, Planted, ReduceOp, Wire};

/// Chance from a seed (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What can go wrong. A further kind is a row of [`KINDS`] and an arm of [`Injury::new`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    Loss,
    Stop,
    Slowness,
    Partition,
    Delay,
    PartialWrites,
    FullQueue,
    ErroredWrite,
    Break,
}

/// How often each kind is drawn, of their sum.
pub(crate) const KINDS: &[(Kind, u64)] = &[
    (Kind::Loss, 3),
    (Kind::Stop, 3),
    (Kind::Slowness, 2),
    (Kind::Partition, 3),
    (Kind::Delay, 3),
    (Kind::PartialWrites, 3),
    (Kind::FullQueue, 2),
    (Kind::ErroredWrite, 2),
    (Kind::Break, 3),
];

/// One thing that goes wrong, and how it ends.
#[derive(Clone, Debug)]
pub(crate) struct Injury {
    pub(crate) kind: Kind,
    /// What is done to the network, at which microsecond.
    pub(crate) faults: Vec<(u64, Fault)>,
}

/// How long an operation may take, in microseconds; cut wires last half as long.
pub(crate) const TIMEOUT: u64 = 2_000_000;
pub(crate) const PATIENCE: u64 = TIMEOUT / 2;

impl Injury {
    fn new(kind: Kind, ranks: u64, random: &mut Random) -> Self {
        // Operations take some tens or hundreds of microseconds; stalls are compared after 200 ms and end after the timeout.
        let scale = random.pick(&[200, 2_000, 20_000]);
        let at = random.below(scale);
        let lasts = random.pick(&[50, 1_000, 50_000, 300_000, 1_500_000, 2 * TIMEOUT]);
        let (one, other) = (random.below(ranks) as u32, random.below(ranks - 1) as u32);
        let other = if other >= one { other + 1 } else { other };
        let rewired = |wire: Wire| {
            vec![
                (at, Fault::Rewire(one, other, wire)),
                (at + lasts, Fault::Rewire(one, other, Wire::default())),
            ]
        };
        let faults = match kind {
            Kind::Loss => vec![(at, Fault::Lose(one))],
            Kind::Stop => vec![(at, Fault::Stop(one)), (at + lasts, Fault::Continue(one))],
            Kind::Slowness => {
                let pause = random.pick(&[1_000, 30_000, 400_000]);
                vec![(at, Fault::Slow(one, pause)), (at + lasts, Fault::Slow(one, 0))]
            }
            Kind::Partition => {
                let side = (0..ranks as u32).filter(|rank| *rank == one || random.below(2) == 0).collect();
                vec![(at, Fault::Partition(side)), (at + lasts, Fault::Heal)]
            }
            Kind::Delay => {
                let late = random.pick(&[100_000, 5_000_000, 100_000_000]);
                rewired(Wire { latency: late / 2..late, ..Wire::default() })
            }
            Kind::PartialWrites => rewired(Wire { packet: 1 + random.below(90) as usize, ..Wire::default() }),
            Kind::FullQueue => rewired(Wire { window: 1 + random.below(200) as usize, ..Wire::default() }),
            Kind::ErroredWrite => vec![(at, Fault::ErrorWrite(one, other))],
            Kind::Break => {
                let apart = random.pick(&[1, 20, 300]);
                (0..1 + random.below(4)).map(|n| (at + n * apart, Fault::Break(one, other))).collect()
            }
        };
        Self { kind, faults }
    }

    /// Whether operations may fail of it: a rank or a wire is gone, or something lasts too long.
    pub(crate) fn may_fail(&self) -> bool {
        let lasted = self.faults.last().map_or(0, |(end, _)| end - self.faults[0].0);
        match self.kind {
            Kind::Loss => true,
            Kind::Partition => lasted >= PATIENCE,
            Kind::Stop => lasted >= TIMEOUT / 2,
            // Many small packets, or rests, in a row: how long they take together is nobody's promise.
            Kind::Slowness | Kind::Delay => lasted >= 50_000,
            // The stream is opened anew.
            Kind::PartialWrites | Kind::FullQueue | Kind::ErroredWrite | Kind::Break => false,
        }
    }
}

/// What all ranks call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    AllReduce {
        count: usize,
        op: ReduceOp,
    },
    ReduceScatter {
        count: usize,
        op: ReduceOp,
    },
    AllGather {
        count: usize,
    },
    Broadcast {
        count: usize,
        root: u32,
    },
    Barrier,
    /// Everyone sends to the rank so many places on, and receives.
    Shift {
        count: usize,
        by: u32,
    },
}

/// Everything a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) ranks: u32,
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) chunk_bytes: u64,
    pub(crate) eager_bytes: u32,
    pub(crate) calls: Vec<Call>,
    /// When each rank makes each call, in microseconds, by rank.
    pub(crate) times: Vec<Vec<u64>>,
    pub(crate) injuries: Vec<Injury>,
    /// What replay does wrong, for the canaries.
    pub(crate) planted: Option<Planted>,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5bf0_3635);
        let ranks = 4 + random.below(13) as u32;
        let calls: Vec<Call> = (0..1 + random.below(6)).map(|_| call(ranks, &mut random)).collect();
        let gap = random.pick(&[1, 100, 3_000]);
        let times = (0..ranks).map(|_| {
            let mut time = 0;
            let mut later = || {
                time += random.below(gap);
                time
            };
            calls.iter().map(|_| later()).collect()
        });
        let times = times.collect();
        let total: u64 = KINDS.iter().map(|(_, weight)| weight).sum();
        let injuries = (0..random.below(5)).map(|_| {
            let mut drawn = random.below(total);
            let kind = KINDS.iter().find(|(_, weight)| {
                let found = drawn < *weight;
                drawn = drawn.saturating_sub(*weight);
                found
            });
            Injury::new(kind.map_or(Kind::Loss, |(kind, _)| *kind), u64::from(ranks), &mut random)
        });
        let injuries = injuries.collect();
        let algorithms = [
            None,
            None,
            Some(Algorithm::Ring),
            Some(Algorithm::RecursiveDoubling),
            Some(Algorithm::Rabenseifner),
        ];
        Self {
            seed,
            ranks,
            algorithm: random.pick(&algorithms),
            chunk_bytes: random.pick(&[64, 256, 4096]),
            eager_bytes: random.pick(&[0, 100, 1_000, 64 << 10]),
            calls,
            times,
            injuries,
            planted: None,
        }
    }

    /// A job to which nothing happens but that streams break, many of them and again and again.
    pub(crate) fn breaking(seed: u64) -> Self {
        let mut plan = Self::new(seed);
        let mut random = Random(seed ^ 0x7e57_b4ea_4b4e_a4b0);
        let breaks = 1 + random.below(12);
        let kinds = [Kind::Break, Kind::Break, Kind::ErroredWrite, Kind::PartialWrites];
        plan.injuries = (0..breaks)
            .map(|_| Injury::new(random.pick(&kinds), u64::from(plan.ranks), &mut random))
            .collect();
        plan
    }

    /// Whether every operation must end well.
    pub(crate) fn must_succeed(&self) -> bool {
        // Short ones may add up to a long one, but not beyond this.
        !self.injuries.iter().any(Injury::may_fail)
    }

    /// The last moment at which anything is done from outside.
    pub(crate) fn last(&self) -> u64 {
        let faults = self.injuries.iter().flat_map(|i| i.faults.iter().map(|(time, _)| *time));
        faults.chain(self.times.iter().flatten().copied()).max().unwrap_or(0)
    }
}

fn call(ranks: u32, random: &mut Random) -> Call {
    let most = random.pick(&[1, 20, 200, 1_500]);
    let count = random.below(most + 1) as usize;
    let op = random.pick(&[ReduceOp::Sum, ReduceOp::Min, ReduceOp::Max]);
    match random.below(6) {
        0 => Call::AllReduce { count, op },
        1 => Call::ReduceScatter { count: count / 4, op },
        2 => Call::AllGather { count: count / 4 },
        3 => Call::Broadcast { count, root: random.below(u64::from(ranks)) as u32 },
        4 => Call::Barrier,
        _ => Call::Shift { count, by: 1 + random.below(u64::from(ranks - 1)) as u32 },
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithm = self.algorithm.map_or("auto", Algorithm::name);
        writeln!(
            f,
            "seed {}: {} ranks, algorithm {algorithm}, chunks of {} bytes, eager up to {} bytes",
            self.seed, self.ranks, self.chunk_bytes, self.eager_bytes
        )?;
        for (index, call) in self.calls.iter().enumerate() {
            let times: Vec<u64> = self.times.iter().map(|times| times[index]).collect();
            writeln!(f, "  call {index}: {call:?}, made at µs {times:?}")?;
        }
        for Injury { kind, faults } in &self.injuries {
            writeln!(f, "  {kind:?}")?;
            for (time, fault) in faults {
                writeln!(f, "    {:>10?} {fault:?}", Duration::from_micros(*time))?;
            }
        }
        Ok(())
    }
}
