//! What is told: a bar and a line for each epoch meanwhile, and where the time has gone at the end.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use windlass::{Communicator, Device, Error, ReduceOp};

use crate::arguments::Arguments;
use crate::bucket::Spent;
use crate::train::History;

/// At most so many lines of epochs.
const LINES: usize = 12;

/// Rank 0's view.
#[derive(Debug)]
pub(crate) struct Live {
    bar: ProgressBar,
    /// While the bar stands: what the launcher prints of the ranks' output would tear it.
    held_back: Vec<String>,
    /// A line is told for every so many epochs.
    every: usize,
    epochs: usize,
}

impl Live {
    pub(crate) fn new(
        arguments: &Arguments,
        ranks: u32,
        (steps, images, held_out, buckets): &(usize, usize, usize, Vec<usize>),
    ) -> Self {
        let kib = |bytes: &usize| format!("{}", bytes.div_ceil(1024));
        let buckets = buckets.iter().map(kib).collect::<Vec<_>>().join(" + ");
        // The launcher's terminal, whose ranks write to pipes; without a launcher the process's own.
        let own = || io::stderr().is_terminal().then(|| "/dev/stderr".into());
        let path = std::env::var_os("WINDLASS_TERMINAL").or_else(own);
        let open = |path| {
            Some(Term::read_write_pair(
                File::open(&path).ok()?,
                File::options().append(true).open(&path).ok()?,
            ))
        };
        let target = path
            .and_then(open)
            .map_or_else(ProgressDrawTarget::hidden, |term| ProgressDrawTarget::term(term, 8));
        let bar = ProgressBar::with_draw_target(Some(*steps as u64), target);
        // The one template is known to be right; a bar without style still counts.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}") {
            bar.set_style(style);
        }
        let epochs = arguments.epochs as usize;
        let mut live = Self { bar, held_back: Vec::new(), every: epochs.div_ceil(LINES), epochs };
        live.tell(format!(
            "{images} images to learn from and {held_out} held out, in batches of {} over {ranks} ranks; gradients in {buckets} KiB",
            arguments.batch
        ));
        live.tell("epoch      loss  recognised    held out  recognised".to_owned());
        live
    }

    pub(crate) fn step(&self, history: &History) {
        let loss = history.steps.last().map_or(0.0, |score| score.loss);
        self.bar.set_message(format!(
            "epoch {} of {}, loss {loss:.3}",
            history.epochs.len() + 1,
            self.epochs
        ));
        self.bar.inc(1);
    }

    pub(crate) fn epoch(&mut self, history: &History) {
        let number = history.epochs.len();
        let Some((learned, held_out)) = history.epochs.last() else { return };
        if !number.is_multiple_of(self.every) && number < self.epochs {
            return;
        }
        let percent = |part: f32| format!("{:.1} %", 100.0 * part);
        self.tell(format!(
            "{number:>5}{:>10.4}{:>12}{:>12.4}{:>12}",
            learned.loss,
            percent(learned.right),
            held_out.loss,
            percent(held_out.right)
        ));
    }

    fn tell(&mut self, line: String) {
        if self.bar.is_hidden() {
            println!("{line}");
        } else {
            self.held_back.push(line);
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
        self.held_back.iter().for_each(|line| println!("{line}"));
    }
}

/// What all ranks have spent, and how often their memory has moved.
#[derive(Debug)]
pub(crate) struct Report {
    ranks: u32,
    /// Seconds, the mean over the ranks.
    elapsed: f64,
    exposed: f64,
    hidden: f64,
    copies: f64,
    /// Moves, revokes, and tasks done again: of all ranks.
    moved: Option<[i64; 3]>,
}

impl Report {
    pub(crate) fn gather(
        comm: &Communicator,
        device: Option<&Device>,
        elapsed: Duration,
        spent: &Spent,
    ) -> Result<Self, Error> {
        let mut seconds = [elapsed, spent.exposed, spent.hidden, spent.copies].map(|time| time.as_secs_f64());
        comm.blocking().all_reduce(&mut seconds, ReduceOp::Avg)?;
        let [elapsed, exposed, hidden, copies] = seconds;
        let moved = match device {
            Some(device) => {
                let movements = device.movements();
                let mut counts =
                    [movements.moves, movements.revokes, movements.replays].map(u64::cast_signed);
                comm.blocking().all_reduce(&mut counts, ReduceOp::Sum)?;
                Some(counts)
            }
            None => None,
        };
        Ok(Self { ranks: comm.size(), elapsed, exposed, hidden, copies, moved })
    }

    pub(crate) fn print(&self, history: &History, held_out: usize, digest: u64) {
        let right = history.epochs.last().map_or(0.0, |(_, score)| score.right);
        println!("held out: {:.0} of {held_out} recognised, {:.1} %", right * held_out as f32, 100.0 * right);
        println!("weights: {digest:016x} on every rank");
        if let Some([moves, revokes, replays]) = self.moved {
            println!("device memory: {moves} moves, {revokes} revokes, {replays} tasks done again");
        }
        let Self { ranks, elapsed, exposed, hidden, copies, .. } = *self;
        println!("time of a rank, the mean of {ranks}: {elapsed:.2} s");
        let line = |name: &str, seconds: f64, what: &str| {
            println!("  {name:<22}{seconds:>6.2} s {:>3.0} %{what}", 100.0 * seconds / elapsed);
        };
        line("compute", elapsed - exposed - copies, "");
        if self.moved.is_some() {
            line("copies to the device", copies, "  and from it, waiting for memory that moves");
        }
        line("exposed communication", exposed, "  in calls, waiting for slower ranks too");
        let hid = format!(
            "  under way during the rest: {:.0} % of communication",
            100.0 * hidden / (hidden + exposed)
        );
        line("hidden communication", hidden, &hid);
    }
}
