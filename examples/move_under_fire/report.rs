//! All ranks' counters, and what is told of them.

use std::time::Duration;

use windlass::{Communicator, Error, Movements, ReduceOp};

use crate::arguments::Arguments;

/// What is counted, of one rank or of all.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// Elements compared, and those that were wrong.
    pub(crate) checked: u64,
    pub(crate) wrong: u64,
    pub(crate) moves: u64,
    pub(crate) revokes: u64,
    pub(crate) refused: u64,
    pub(crate) replays: u64,
    /// What the audit found.
    pub(crate) stale: u64,
}

impl Totals {
    pub(crate) fn count(&mut self, movements: &Movements) {
        self.moves = movements.moves;
        self.revokes = movements.revokes;
        self.refused = movements.refused;
        self.replays = movements.replays;
    }

    /// Of all ranks, and whether rank 0 says that it is over.
    pub(crate) fn of_all(&self, comm: &Communicator, over: bool) -> Result<(Self, bool), Error> {
        let Self { checked, wrong, moves, revokes, refused, replays, stale } = *self;
        let over = u64::from(over && comm.rank() == 0);
        let counts = [checked, wrong, moves, revokes, refused, replays, stale, over];
        let mut counts = counts.map(u64::cast_signed);
        comm.blocking().all_reduce(&mut counts, ReduceOp::Sum)?;
        let [checked, wrong, moves, revokes, refused, replays, stale, over] = counts.map(i64::cast_unsigned);
        Ok((Self { checked, wrong, moves, revokes, refused, replays, stale }, over > 0))
    }
}

/// All ranks' times, sorted, in µs.
pub(crate) fn gather(comm: &Communicator, times: &[Duration]) -> Result<Vec<f64>, Error> {
    let mut counts = vec![0i64; comm.size() as usize];
    comm.blocking().all_gather_into(&[times.len() as i64], &mut counts)?;
    let most = counts.iter().copied().max().unwrap_or(0) as usize;
    let mut own: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    own.resize(most, f64::NAN);
    let mut all = vec![0.0; most * comm.size() as usize];
    comm.blocking().all_gather_into(&own, &mut all)?;
    all.retain(|time| !time.is_nan());
    all.sort_unstable_by(f64::total_cmp);
    Ok(all)
}

/// Everything about a run.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) ranks: u32,
    pub(crate) elapsed: Duration,
    pub(crate) iterations: u64,
    pub(crate) totals: Totals,
    /// In µs, sorted: drains, pauses, returns, what of them the engine worked, and tasks of the engines when nothing moves.
    pub(crate) drains: Vec<f64>,
    pub(crate) pauses: Vec<f64>,
    pub(crate) returns: Vec<f64>,
    pub(crate) first_pieces: Vec<f64>,
    pub(crate) chunks: Vec<f64>,
}

impl Report<'_> {
    pub(crate) fn print(&self) {
        let Self { arguments, totals, .. } = self;
        let seconds = self.elapsed.as_secs_f64();
        let announced = if arguments.announce { ", announced" } else { "" };
        println!(
            "{} ranks, 2 buffers of {} bytes each on {}, {} moves{announced}, {seconds:.1} s",
            self.ranks,
            arguments.bytes,
            arguments.accelerator,
            arguments.mode.name()
        );
        // What all ranks read as results.
        let gigabytes = (totals.checked * size_of::<f32>() as u64) as f64 / 1e9;
        println!(
            "  iterations      {:>12}   of 2 all-reduces, {gigabytes:.2} GB of results",
            self.iterations
        );
        println!("  elements right  {:>12}", totals.checked - totals.wrong);
        println!("  elements wrong  {:>12}", totals.wrong);
        let moved = totals.moves + totals.revokes;
        println!(
            "  moves           {:>12}   {:.0} a second with revokes",
            totals.moves,
            moved as f64 / seconds
        );
        println!("  revokes         {:>12}", totals.revokes);
        println!("  refused         {:>12}", totals.refused);
        println!("  replays         {:>12}   tasks done again", totals.replays);
        println!("  stale accesses  {:>12}   found by the accelerators", totals.stale);
        let chunk = at(&self.chunks, 0.5).unwrap_or(f64::NAN);
        println!("                           p50        p99        max");
        let line = |name, times: &[f64], unit: f64, suffix| {
            let quantile =
                |part| at(times, part).map_or_else(|| "-".to_owned(), |t| format!("{:.1}", t / unit));
            println!(
                "  {name:<16}{:>10} {:>10} {:>10}  {suffix}",
                quantile(0.5),
                quantile(0.99),
                quantile(1.0)
            );
        };
        line("a chunk", &self.chunks, 1.0, "µs: a task of the engine, when nothing moves");
        line("drains", &self.drains, 1.0, "µs: from the question until nobody touches the memory");
        line("", &self.drains, chunk, "chunk times");
        line("pauses", &self.pauses, 1.0, "µs: until work goes on, the accelerator's copy included");
        line("returns", &self.returns, 1.0, "µs: from the copy's end until the first piece is done");
        line("", &self.first_pieces, 1.0, "µs of that the engine worked, faulting pages anew");
    }
}

fn at(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((part * last as f64).round() as usize).copied()
}
