//! What an accelerator that windlass drives is like, and what it counts.
//!
//! All of it is the simulated one's to choose. One of the kernel's is as its memory is, and takes from here its number, the seed, the clock, the rates, the
//! engine's settings, and, where its memory moves, how.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::accelerator::Movement;

/// Who makes an accelerator go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drive {
    /// A thread of its own, by the machine's clock.
    Thread,
    /// Its user, by [`step`](super::simulated::SimulatedAccelerator::step), on the user's thread and clock: the same seed and calls give the same run.
    Stepped,
}

/// What an accelerator is like: see [`open`](super::open) for what each takes. Rates are per second of the device's clock; everything random comes from the seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its number, unique in a job. By default random.
    pub device: u64,
    /// Its memory, of which each region takes whole pages and up to two more. 256 MiB.
    pub capacity_bytes: u64,
    /// How its memory moves. `Cooperative`.
    pub movement: Movement,
    /// Who drives it. `Thread`.
    pub drive: Drive,
    /// For all that is random.
    pub seed: u64,
    /// How long a question for a move waits. 1 s.
    pub patience: Duration,
    /// Whether a cooperative device exports the next memory before the move. No.
    pub announce_ahead: bool,
    /// From leaving to arriving. 0.
    pub move_time: Duration,
    /// From a revoke to the replacement. 1 ms.
    pub replacement_time: Duration,
    /// From a work's last store to its fence. 0.
    pub fence_delay: RangeInclusive<Duration>,
    /// Whether independent work runs and ends in random order rather than as submitted. No.
    pub reorder: bool,
    /// Bytes of each operand that the engine works on at a time. 256 KiB.
    pub chunk_bytes: u64,
    /// Random moves. 0.
    pub moves_per_second: f64,
    /// Random revokes. 0.
    pub revokes_per_second: f64,
    /// The part of random revokes that lose the contents, in 0..=1. 0.
    pub lost_share: f64,
    /// How long vacated pages are watched. 10 s.
    pub keep: Duration,
    /// How much vacated memory is watched at most; the host pays for it. 256 MiB.
    pub keep_bytes: u64,
    /// Whether its engine looks at life words. Without, it works on whatever it once had, also after the acknowledgement: the
    /// liar that other parts' tests need. Yes.
    pub guarded: bool,
}

impl Default for Options {
    fn default() -> Self {
        let mut device = [0; 8];
        // Early in boot there may be no randomness; the process id and the clock are then as unique as it gets.
        if rustix::rand::getrandom(&mut device, rustix::rand::GetRandomFlags::NONBLOCK) != Ok(8) {
            let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64;
            device = (since ^ u64::from(std::process::id()) << 40).to_ne_bytes();
        }
        Self {
            device: u64::from_ne_bytes(device),
            capacity_bytes: 256 << 20,
            movement: Movement::Cooperative,
            drive: Drive::Thread,
            seed: 0,
            patience: Duration::from_secs(1),
            announce_ahead: false,
            move_time: Duration::ZERO,
            replacement_time: Duration::from_millis(1),
            fence_delay: Duration::ZERO..=Duration::ZERO,
            reorder: false,
            chunk_bytes: 256 << 10,
            moves_per_second: 0.0,
            revokes_per_second: 0.0,
            lost_share: 0.0,
            keep: Duration::from_secs(10),
            keep_bytes: 256 << 20,
            guarded: true,
        }
    }
}

/// What an accelerator has done since it began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Regions that arrived with their bytes: cooperative, pinned and transparent moves.
    pub moves: u64,
    /// Generations that ended by a revoke, evictions in revocable mode included.
    pub revokes: u64,
    /// Moves given up: refused, unanswered, or without resources.
    pub refused: u64,
    /// Regions chosen to leave the device for want of memory.
    pub evictions: u64,
    /// Times that memory was moved together.
    pub compactions: u64,
    /// Bytes that moves and preserved revokes carried on.
    pub bytes_copied: u64,
    /// Broken rules found: stale and early stores, engines at work through a move.
    pub breaches: u64,
    /// Vacated generations that could not be checked, because an engine (of a process that died) never left.
    pub unchecked: u64,
}
