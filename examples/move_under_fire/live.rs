//! What is shown while it runs: a line that renews itself on a terminal, else a line every few seconds.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use windlass::Movements;

use crate::report::Totals;

/// How often the line is renewed on a terminal, and how often one is printed elsewhere.
const RENEW: Duration = Duration::from_millis(250);
const PRINT: Duration = Duration::from_secs(3);
/// So many of the last renewals are in the chart.
const BARS: usize = 20;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

#[derive(Debug)]
pub(crate) struct Live {
    terminal: Option<File>,
    begin: Instant,
    shown: Instant,
    /// Moves and revokes until the last look, and between the looks before.
    moved: u64,
    bars: Vec<u64>,
}

impl Live {
    /// The launcher's terminal, whose ranks write to pipes; without a launcher the process's own.
    pub(crate) fn new() -> Self {
        let own = || std::io::stderr().is_terminal().then_some("/dev/stderr".into());
        let path = std::env::var_os("WINDLASS_TERMINAL").or_else(own);
        let terminal = path.and_then(|path| File::options().append(true).open(path).ok());
        let begin = Instant::now();
        Self { terminal, begin, shown: begin, moved: 0, bars: Vec::new() }
    }

    pub(crate) fn show(&mut self, totals: &Totals, own: &Movements) {
        let every = if self.terminal.is_some() { RENEW } else { PRINT };
        let since = self.shown.elapsed();
        if since < every {
            return;
        }
        let moved = totals.moves + totals.revokes;
        let rate = (moved - self.moved) as f64 / since.as_secs_f64();
        (self.shown, self.moved) = (Instant::now(), moved);
        self.bars.push(rate as u64);
        let line = format!(
            "{:>4.0} s  {moved} moves ({rate:.0}/s)  drain {} pause {} return {}  {} replays  {} M right  {} wrong",
            self.begin.elapsed().as_secs_f64(),
            median(&own.drains),
            median(&own.pauses),
            median(&own.returns),
            totals.replays,
            (totals.checked - totals.wrong) / 1_000_000,
            totals.wrong
        );
        match &mut self.terminal {
            // A terminal that has gone takes nothing else with it.
            Some(terminal) => drop(write!(terminal, "\r\x1b[2K{} {line}", chart(&self.bars))),
            None => eprintln!("{line}"),
        }
    }

    /// Takes the line away.
    pub(crate) fn end(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            let _ = terminal.write_all(b"\r\x1b[2K");
        }
    }
}

/// Of one rank's times; all ranks' are told at the end.
fn median(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).map_or_else(|| "-".to_owned(), |time| format!("{:.1?}", time))
}

fn chart(bars: &[u64]) -> String {
    let bars = &bars[bars.len().saturating_sub(BARS)..];
    let most = bars.iter().copied().max().unwrap_or(0).max(1);
    bars.iter().map(|bar| LEVELS[(bar * (LEVELS.len() as u64 - 1) / most) as usize]).collect()
}
