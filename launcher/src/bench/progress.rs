//! The progress bar, drawn by rank 0 on the launcher's terminal: rank 0 knows how far it is, and what it prints beside
//! the bar must not tear it.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// How often the bar may be drawn, a second.
const RATE: u8 = 8;

/// A terminal opened by its path.
#[derive(Debug)]
struct Terminal(File);

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        rustix::termios::tcgetwinsize(&self.0).map_or(80, |size| size.ws_col.max(20))
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        if n == 0 { Ok(()) } else { write!(&self.0, "\x1b[{n}A") }
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        if n == 0 { Ok(()) } else { write!(&self.0, "\x1b[{n}B") }
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        if n == 0 { Ok(()) } else { write!(&self.0, "\x1b[{n}C") }
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        if n == 0 { Ok(()) } else { write!(&self.0, "\x1b[{n}D") }
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        writeln!(&self.0, "{text}")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        (&self.0).write_all(text.as_bytes())
    }

    fn clear_line(&self) -> io::Result<()> {
        (&self.0).write_all(b"\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        (&self.0).flush()
    }
}

/// A bar, and where lines go while it stands.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    /// Whether lines go to the bar's terminal as well: above the bar.
    shared: bool,
}

impl Progress {
    /// On the terminal of that path, if there is one; `shared` tells that standard output is the same.
    pub(super) fn new(terminal: Option<&str>, shared: bool, sizes: usize) -> Self {
        let file = terminal.and_then(|path| File::options().write(true).open(path).ok());
        let target = match file {
            Some(file) => ProgressDrawTarget::term_like_with_hz(Box::new(Terminal(file)), RATE),
            None => ProgressDrawTarget::hidden(),
        };
        let shared = shared && !target.is_hidden();
        let bar = ProgressBar::with_draw_target(Some(1000 * sizes as u64), target);
        // The one template is known to be right; a bar without style still counts.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}") {
            bar.set_style(style);
        }
        Self { bar, shared }
    }

    /// Size number `done` is so far through its time.
    pub(super) fn at(&self, done: usize, bytes: u64, spent: Duration, budget: Duration) {
        let part = (1000.0 * spent.as_secs_f64() / budget.as_secs_f64().max(1e-9)).min(1000.0) as u64;
        self.bar.set_message(format!("{bytes} bytes"));
        self.bar.set_position(1000 * done as u64 + part);
    }

    /// Prints a line on standard output.
    pub(super) fn line(&self, text: &str) {
        if self.shared {
            self.bar.println(text);
        } else {
            println!("{text}");
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
