//! What can be typed, and what is refused before anything runs.

use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Parser, ValueEnum};
use windlass::accelerator::{Movement, NAMES};

const PICTURE: &str = "\
What happens, on every rank at once and hundreds of times a second:

  the accelerator                the runtime                              the peers
  wants the memory  ── asks ──▶  no new leases, work on it drains  ─────▶  drain, unmap, answer
                    ◀── acks ──  nobody can touch it any more      ◀─────
  copies it to another place
  tells the place   ─────────▶  work goes on where it was          ─────▶  map the new place, go on

  revokes it, unasked ───────▶  what was at work is done again     ─────▶  the same

Meanwhile two all-reduces are under way, and every element of every result is compared with what it must be.

Examples:
  windlass run -n 4 -- target/release/examples/move_under_fire --seconds 30
  windlass run -n 2 -- target/release/examples/move_under_fire --mode pinned --moves-per-second 100
  windlass run -n 4 -- target/release/examples/move_under_fire --mode revocable --bytes 1M
  windlass run -n 4 -- target/release/examples/move_under_fire --announce --revokes-per-second 0
  deploy/testbed/run windlass run -n 2 -- move_under_fire --accelerator testbed --mode transparent

Exits with 1 when an element is wrong or the accelerators' audit finds that memory was touched after its end.";

/// All-reduces on device memory that moves all the time, and checks every element of every result.
#[derive(Debug, Clone, Parser)]
#[command(name = "move_under_fire", after_help = PICTURE)]
pub(crate) struct Arguments {
    /// How long.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// The length of each of the two buffers; K and M are powers of 1024.
    #[arg(long, value_name = "BYTES", default_value = "2M", value_parser = bytes)]
    pub(crate) bytes: usize,
    /// Whose memory: that of the accelerator in user space, or of one of the kernel's.
    #[arg(long, value_name = "NAME", default_value = "simulated", value_parser = PossibleValuesParser::new(NAMES))]
    pub(crate) accelerator: String,
    /// Moves that each rank's accelerator makes [default: 60, of the testbed 6, where nothing moves 0].
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) moves_per_second: Option<f64>,
    /// Memory that each rank's accelerator takes without asking, and replaces [default: 10, 1 and 0].
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) revokes_per_second: Option<f64>,
    /// What ordinary moves are like.
    #[arg(long, value_enum, default_value_t = Mode::Cooperative)]
    pub(crate) mode: Mode,
    /// Tell peers the new place before the move, so that they map it meanwhile (cooperative mode).
    #[arg(long)]
    pub(crate) announce: bool,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The accelerator asks, and moves when nobody touches the memory.
    Cooperative,
    /// The same, and whoever has imported the memory holds it in its place.
    Pinned,
    /// The accelerator does not ask: every move is a revoke.
    Revocable,
    /// Nobody is told: whoever reaches the memory waits, and follows it.
    Transparent,
}

impl Arguments {
    /// Moves and revokes a second.
    pub(crate) fn rates(&self) -> (f64, f64) {
        let (moves, revokes) = match self.accelerator.as_str() {
            "simulated" => (60.0, 10.0),
            // Its machine is emulated.
            "testbed" => (6.0, 1.0),
            _ => (0.0, 0.0),
        };
        (self.moves_per_second.unwrap_or(moves), self.revokes_per_second.unwrap_or(revokes))
    }
}

impl Mode {
    pub(crate) const fn movement(self) -> Movement {
        match self {
            Self::Cooperative => Movement::Cooperative,
            Self::Pinned => Movement::Pinned,
            Self::Revocable => Movement::Revocable,
            Self::Transparent => Movement::Transparent,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cooperative => "cooperative",
            Self::Pinned => "pinned",
            Self::Revocable => "revocable",
            Self::Transparent => "transparent",
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.1..=86_400.0).contains(value));
    value.map(Duration::from_secs_f64).ok_or_else(|| "it is not a number from 0.1 to 86400".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=1000.0).contains(value));
    value.ok_or_else(|| "it is not a number from 0 to 1000".to_owned())
}

fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        _ => return Err("it is not a size, such as 4096, 512K or 2M".to_owned()),
    };
    match digits.parse::<usize>().ok().and_then(|value| value.checked_mul(1 << shift)) {
        Some(bytes) if (4..=64 << 20).contains(&bytes) => Ok(bytes),
        _ => Err("it is not a size from 4 to 64M".to_owned()),
    }
}
