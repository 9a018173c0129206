//! What an accelerator that windlass drives is like, and what it counts.
//!
//! All of it is the simulated one's to choose. One of the kernel's is as its memory is, and takes from here its number, the seed, the clock, the rates, the
//! engine's settings, and, where its memory moves, how.

use std::ops::RangeInclusive;
use std::str::FromStr;
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

/// Text that is no option.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadOption {
    /// Not of the form `name=value`.
    #[error("{0:?} is no option: write name=value, with commas between options")]
    NoValue(String),
    /// There is none of that name.
    #[error("there is no option {0:?}: it is one of {names}", names = Options::NAMES.join(", "))]
    Unknown(String),
    /// Not a value that the option may have.
    #[error("{option} is {value:?} but must be {valid}")]
    Value {
        /// Which.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it may be.
        valid: &'static str,
    },
}

type Setter = fn(&mut Options, &str) -> Option<()>;

/// What can be set by text: name, what it may be, and how it is set.
const ROWS: [(&str, &str, Setter); 12] = [
    ("device", "a number", |o, text| number(text, &mut o.device)),
    ("capacity_bytes", "a number above 0", |o, text| above_zero(text, &mut o.capacity_bytes)),
    ("movement", "transparent, pinned, revocable or cooperative", |o, text| {
        o.movement = match text {
            "transparent" => Movement::Transparent,
            "pinned" => Movement::Pinned,
            "revocable" => Movement::Revocable,
            "cooperative" => Movement::Cooperative,
            _ => return None,
        };
        Some(())
    }),
    ("seed", "a number", |o, text| number(text, &mut o.seed)),
    ("patience", "seconds", |o, text| seconds(text, &mut o.patience)),
    ("announce_ahead", "true or false", |o, text| number(text, &mut o.announce_ahead)),
    ("move_time", "seconds", |o, text| seconds(text, &mut o.move_time)),
    ("replacement_time", "seconds", |o, text| seconds(text, &mut o.replacement_time)),
    ("chunk_bytes", "a number above 0", |o, text| above_zero(text, &mut o.chunk_bytes)),
    ("moves_per_second", "0 or more", |o, text| within(text, f64::MAX, &mut o.moves_per_second)),
    ("revokes_per_second", "0 or more", |o, text| within(text, f64::MAX, &mut o.revokes_per_second)),
    ("lost_share", "0 to 1", |o, text| within(text, 1.0, &mut o.lost_share)),
];

fn number<T: FromStr>(text: &str, to: &mut T) -> Option<()> {
    *to = text.parse().ok()?;
    Some(())
}

fn above_zero(text: &str, to: &mut u64) -> Option<()> {
    *to = text.parse().ok().filter(|number| *number > 0)?;
    Some(())
}

fn within(text: &str, most: f64, to: &mut f64) -> Option<()> {
    *to = text.parse().ok().filter(|number| (0.0..=most).contains(number))?;
    Some(())
}

fn seconds(text: &str, to: &mut Duration) -> Option<()> {
    *to = Duration::try_from_secs_f64(text.parse().ok()?).ok()?;
    Some(())
}

impl Options {
    const NAMES: [&str; ROWS.len()] = {
        let mut names = [""; ROWS.len()];
        let mut row = 0;
        while row < ROWS.len() {
            names[row] = ROWS[row].0;
            row += 1;
        }
        names
    };
}

/// Options by their names, for whoever is no Rust: `movement=revocable, moves_per_second=20`. Times are in seconds. What is not named is as by default.
impl FromStr for Options {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Self, BadOption> {
        let mut options = Self::default();
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let (name, value) =
                option.split_once('=').ok_or_else(|| BadOption::NoValue(option.to_owned()))?;
            let (name, value) = (name.trim(), value.trim());
            let row = ROWS.iter().find(|(known, ..)| *known == name);
            let (option, valid, set) = row.ok_or_else(|| BadOption::Unknown(name.to_owned()))?;
            let wrong = || BadOption::Value { option, value: value.to_owned(), valid };
            set(&mut options, value).ok_or_else(wrong)?;
        }
        Ok(options)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_from_text_and_what_is_none_is_told() {
        let text = "movement=revocable, moves_per_second=2.5,seed=7 , move_time=0.001,announce_ahead=true,";
        let options: Options = text.parse().unwrap();
        assert_eq!((options.movement, options.seed, options.announce_ahead), (Movement::Revocable, 7, true));
        assert_eq!((options.moves_per_second, options.move_time), (2.5, Duration::from_millis(1)));
        assert_eq!(options.capacity_bytes, Options::default().capacity_bytes);
        assert!("".parse::<Options>().is_ok());
        for (text, said) in [
            ("seed", "\"seed\" is no option: write name=value"),
            ("moves=3", "there is no option \"moves\": it is one of device, capacity_bytes, movement, seed"),
            (
                "movement=fast",
                "movement is \"fast\" but must be transparent, pinned, revocable or cooperative",
            ),
            ("seed=-1", "must be a number"),
            ("capacity_bytes=0", "above 0"),
            ("chunk_bytes=", "above 0"),
            ("moves_per_second=nan", "0 or more"),
            ("revokes_per_second=inf", "0 or more"),
            ("lost_share=1.5", "0 to 1"),
            ("move_time=-1", "seconds"),
            ("patience=1e300", "seconds"),
            ("announce_ahead=1", "true or false"),
        ] {
            let refused = text.parse::<Options>().unwrap_err().to_string();
            assert!(refused.contains(said), "{text}: {refused}");
        }
    }
}
