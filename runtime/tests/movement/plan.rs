//! What a seed decides.

use std::fmt;

use windlass::accelerator::{Contents, Movement};

/// Chance from a seed (splitmix64).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// One all-reduce of sums, in place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) count: usize,
    /// Ranks whose memory is the host's, as bits.
    pub(crate) on_host: u32,
}

/// Something that happens from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The device of a rank moves the buffer of a call.
    Move {
        rank: u32,
        call: usize,
    },
    /// It takes it away.
    Revoke {
        rank: u32,
        call: usize,
        lost: bool,
    },
    Stop {
        rank: u32,
    },
    Continue {
        rank: u32,
    },
    Kill {
        rank: u32,
    },
}

impl Event {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Move { .. } => "move",
            Self::Revoke { lost: false, .. } => "revoke",
            Self::Revoke { lost: true, .. } => "loss of contents",
            Self::Stop { .. } => "stop",
            Self::Continue { .. } => "continue",
            Self::Kill { .. } => "kill",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) ranks: u32,
    pub(crate) movement: Movement,
    pub(crate) announce: bool,
    pub(crate) reorder: bool,
    /// Most microseconds from a work's last store to its fence.
    pub(crate) fence_delay: u64,
    pub(crate) calls: Vec<Call>,
    /// When each rank makes each call, in microseconds.
    pub(crate) times: Vec<Vec<u64>>,
    /// In the order of their times, in microseconds.
    pub(crate) events: Vec<(u64, Event)>,
    /// Engines do not look whether memory is still there.
    pub(crate) lies: bool,
}

/// How long a question for a move waits, and how long an operation may take, in microseconds.
pub(crate) const PATIENCE: u64 = 5_000;
pub(crate) const TIMEOUT: u64 = 2_000_000;

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed ^ 0x6d6f_7665);
        let more = random.pick(&[1, 3, 7]);
        let ranks = 2 + random.below(more) as u32;
        let most = random.pick(&[1, 100, 3_000, 40_000]);
        let call = |random: &mut Random| Call {
            count: random.below(most + 1) as usize,
            on_host: if random.below(4) == 0 { random.next() as u32 } else { 0 },
        };
        let calls: Vec<_> = (0..1 + random.below(3)).map(|_| call(&mut random)).collect();
        let gap = random.pick(&[1, 20, 300]);
        let mut times: Vec<Vec<u64>> = Vec::new();
        for _ in 0..ranks {
            let mut time = 0;
            let mut later = || {
                time += random.below(gap);
                time
            };
            times.push(calls.iter().map(|_| later()).collect());
        }
        let scale = random.pick(&[20, 100, 1_000]);
        let mut events = Vec::new();
        for _ in 0..random.below(8) {
            let (time, rank) = (random.below(scale), random.below(u64::from(ranks)) as u32);
            let call = random.below(calls.len() as u64) as usize;
            match random.below(20) {
                0..9 => events.push((time, Event::Move { rank, call })),
                9..16 => events.push((time, Event::Revoke { rank, call, lost: false })),
                16 => events.push((time, Event::Revoke { rank, call, lost: true })),
                17 | 18 => {
                    let lasts = random.pick(&[50, 2_000, 20_000]);
                    events.extend([(time, Event::Stop { rank }), (time + lasts, Event::Continue { rank })]);
                }
                _ => events.push((time, Event::Kill { rank })),
            }
        }
        events.sort_by_key(|(time, _)| *time);
        let modes = [Movement::Cooperative, Movement::Cooperative, Movement::Pinned, Movement::Revocable];
        Self {
            seed,
            ranks,
            movement: random.pick(&modes),
            announce: random.below(2) == 0,
            reorder: random.below(2) == 0,
            fence_delay: random.pick(&[0, 5, 200]),
            calls,
            times,
            events,
            lies: false,
        }
    }

    /// Whether nothing happens that an operation may fail of.
    pub(crate) fn must_succeed(&self) -> bool {
        !self
            .events
            .iter()
            .any(|(_, event)| matches!(event, Event::Revoke { lost: true, .. } | Event::Kill { .. }))
    }

    pub(crate) fn contents(lost: bool) -> Contents {
        if lost { Contents::Lost } else { Contents::Preserved }
    }

    /// What a rank gives to a call.
    pub(crate) fn operand(&self, call: usize, rank: u32) -> Vec<i64> {
        let mut random = Random(self.seed ^ (call as u64) << 32 ^ u64::from(rank) << 48);
        (0..self.calls[call].count).map(|_| random.next() as i64).collect()
    }

    /// What every rank has afterwards.
    pub(crate) fn expected(&self, call: usize, _rank: u32) -> Vec<i64> {
        let mut sum = vec![0i64; self.calls[call].count];
        for rank in 0..self.ranks {
            for (total, value) in sum.iter_mut().zip(self.operand(call, rank)) {
                *total = total.wrapping_add(value);
            }
        }
        sum
    }

    pub(crate) fn last(&self) -> u64 {
        let events = self.events.iter().map(|(time, _)| *time);
        events.chain(self.times.iter().flatten().copied()).max().unwrap_or(0)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} ranks, {:?}, announced ahead: {}, reordered: {}, fences up to {} us late",
            self.ranks, self.movement, self.announce, self.reorder, self.fence_delay
        )?;
        for (index, call) in self.calls.iter().enumerate() {
            let times: Vec<_> = self.times.iter().map(|times| times[index]).collect();
            writeln!(
                f,
                "  call {index}: all_reduce of {} elements, host memory on ranks {:#b}, at {times:?} us",
                call.count, call.on_host
            )?;
        }
        for (time, event) in &self.events {
            writeln!(f, "  at {time} us: {event:?}")?;
        }
        Ok(())
    }
}
