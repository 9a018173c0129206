//! What is said when a job has failed: the culprit, what it died of, the victims, and what to do next.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::rendezvous::ExitCause;
use super::signals;
use super::verdict::{Exit, Stop, Verdict};

/// What the report knows besides the verdict.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    /// The ranks' process ids.
    pub(crate) pids: &'a [i32],
    /// Where they ran.
    pub(crate) host: &'a str,
    /// What each rank was doing when the culprit failed; empty where unknown.
    pub(crate) states: &'a [String],
    /// Each rank's last lines on standard error.
    pub(crate) tails: &'a [Vec<String>],
}

/// The text for standard error: empty when there is nothing to tell.
pub(crate) fn report(verdict: &Verdict, evidence: &Evidence<'_>) -> String {
    match (verdict.stop(), verdict.culprit()) {
        (Some(Stop::OutputLost), _) => String::new(),
        (Some(Stop::TimedOut), _) => {
            let mut text = "windlass: the job was ended: its --timeout has passed\n".to_owned();
            others(&mut text, verdict, evidence, None);
            text
        }
        (Some(Stop::Asked(signal)), culprit) => match culprit {
            Some((rank, exit)) if !exit.told && !is_answer(&exit.cause, signal) => {
                failure(rank, exit, verdict, evidence)
            }
            _ => format!("windlass: the job was ended by {}\n", signals::name(signal)),
        },
        (None, Some((rank, exit))) => failure(rank, exit, verdict, evidence),
        (None, None) => String::new(),
    }
}

/// Whether a rank did what the signal asked for: died of it, or exited with the shell's code for that.
fn is_answer(cause: &ExitCause, signal: i32) -> bool {
    matches!(*cause, ExitCause::Signal { number, .. } if number == signal)
        || *cause == ExitCause::Code(128 + signal)
}

fn failure(rank: usize, exit: &Exit, verdict: &Verdict, evidence: &Evidence<'_>) -> String {
    let mut text = format!(
        "windlass: rank {rank} (pid {}, host {}) {}, {:.3} s after the start\n",
        evidence.pids.get(rank).copied().unwrap_or_default(),
        evidence.host,
        exit.cause,
        exit.after.as_secs_f64()
    );
    line(&mut text, "it was", evidence.states.get(rank).filter(|state| !state.is_empty()));
    match evidence.tails.get(rank).filter(|tail| !tail.is_empty()) {
        Some(tail) => {
            text.push_str("  its last lines on standard error:\n");
            for line in tail {
                // A culprit's escape sequences must not repaint the report.
                let visible = line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c });
                let _ = writeln!(text, "    | {}", visible.collect::<String>());
            }
        }
        None => text.push_str("  it wrote nothing to standard error\n"),
    }
    others(&mut text, verdict, evidence, Some((rank, exit)));
    let _ = writeln!(text, "  what to do: {}", advice(rank, &exit.cause));
    text
}

fn line(text: &mut String, what: &str, value: Option<&String>) {
    if let Some(value) = value {
        let _ = writeln!(text, "  {what}: {value}");
    }
}

/// The ranks besides the culprit, those with the same fate in one line.
fn others(text: &mut String, verdict: &Verdict, evidence: &Evidence<'_>, culprit: Option<(usize, &Exit)>) {
    let mut fates: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (rank, exit) in verdict.exits().iter().enumerate() {
        if culprit.is_some_and(|(culprit, _)| culprit == rank) {
            continue;
        }
        let mut fate = fate(exit.as_ref(), culprit.map(|(_, exit)| exit));
        if let Some(state) = evidence.states.get(rank).filter(|state| !state.is_empty()) {
            let _ = write!(fate, "; it was: {state}");
        }
        fates.entry(fate).or_default().push(rank);
    }
    if fates.is_empty() {
        return;
    }
    text.push_str("  the other ranks:\n");
    let mut lines: Vec<(Vec<usize>, String)> = fates.into_iter().map(|(fate, ranks)| (ranks, fate)).collect();
    lines.sort();
    for (ranks, fate) in lines {
        let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
        let _ = writeln!(text, "    {noun} {}: {fate}", ranges(&ranks));
    }
}

fn fate(exit: Option<&Exit>, culprit: Option<&Exit>) -> String {
    let Some(exit) = exit else { return "killed by windlass".to_owned() };
    match exit.cause {
        ExitCause::Signal { number: number @ (libc::SIGTERM | libc::SIGKILL), .. } if exit.told => {
            format!("ended by windlass ({})", signals::name(number))
        }
        ExitCause::Code(0) if exit.told => "exited with code 0 when told to end".to_owned(),
        ExitCause::Code(0) => "had exited with code 0".to_owned(),
        ref cause if exit.told => format!("{} when told to end", participle(cause)),
        ref cause => match culprit {
            Some(culprit) => {
                let later = exit.after.saturating_sub(culprit.after);
                format!("{}, {} ms after the first failure", participle(cause), later.as_millis())
            }
            None => participle(cause),
        },
    }
}

/// Fits one rank and several.
fn participle(cause: &ExitCause) -> String {
    cause.to_string().trim_start_matches("was ").to_owned()
}

/// `0-2,5` for 0, 1, 2 and 5.
fn ranges(ranks: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = ranks;
    while let Some(&first) = rest.first() {
        let length = rest.iter().zip(first..).take_while(|&(&rank, expected)| rank == expected).count();
        let separator = if text.is_empty() { "" } else { "," };
        let _ = match length {
            1 => write!(text, "{separator}{first}"),
            _ => write!(text, "{separator}{first}-{}", rest[length - 1]),
        };
        rest = &rest[length..];
    }
    text
}

fn advice(rank: usize, cause: &ExitCause) -> String {
    match *cause {
        ExitCause::Signal { number: libc::SIGKILL, .. } => {
            "a program is killed so by the kernel when memory runs out (`dmesg | grep -i 'out of memory'`, or the \
             container's memory limit), or by somebody's kill -9"
                .to_owned()
        }
        ExitCause::Signal { number: libc::SIGBUS, .. } => {
            "memory behind a mapping was missing: look for a full /dev/shm or disk (`df -h`), a truncated file, or \
             exhausted huge pages"
                .to_owned()
        }
        ExitCause::Signal { core_dumped: true, .. } => {
            "open the core dump (`coredumpctl debug`, or gdb PROGRAM core): its backtrace names the crash".to_owned()
        }
        ExitCause::Signal {
            number: libc::SIGSEGV | libc::SIGABRT | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP, ..
        } => "run `ulimit -c unlimited` and start again for a core dump, or run the rank under a debugger".to_owned(),
        ExitCause::Signal { number: number @ (libc::SIGUSR1 | libc::SIGUSR2), .. } => {
            let name = signals::name(number);
            format!("a program without a handler for {name} dies of it: do not send it, or install a handler")
        }
        ExitCause::Signal { number: libc::SIGXCPU | libc::SIGXFSZ, .. } => {
            "a resource limit was passed: see `ulimit -a`".to_owned()
        }
        ExitCause::Signal { .. } => "windlass did not send this signal: find out who did".to_owned(),
        ExitCause::NeverJoined => {
            "every rank must create the communicator: look for a branch on RANK, or an early return, before it".to_owned()
        }
        ExitCause::Code(126 | 127) => {
            "a shell exits so when a command cannot be found or executed: check the script's commands and PATH".to_owned()
        }
        ExitCause::Code(_) => format!("rank {rank} ended by its own decision: its last lines say why"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ranges_are_short() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn the_culprit_comes_first_and_the_victims_are_told_apart() {
        let mut verdict = Verdict::new(4);
        let killed = |number| ExitCause::Signal { number, core_dumped: number == libc::SIGSEGV };
        let exit = |cause, after_ms, told| Exit { cause, after: Duration::from_millis(after_ms), told };
        verdict.handle_exit(2, exit(killed(libc::SIGSEGV), 1500, false), None);
        verdict.handle_exit(3, exit(ExitCause::Code(1), 1512, false), None);
        verdict.handle_told();
        verdict.handle_exit(0, exit(killed(libc::SIGTERM), 1520, true), None);
        verdict.handle_exit(1, exit(killed(libc::SIGTERM), 1521, true), None);
        let waiting = "all_reduce, sequence 7, waiting for rank 2".to_owned();
        let evidence = Evidence {
            pids: &[10, 11, 12, 13],
            host: "h",
            states: &[waiting.clone(), waiting.clone(), String::new(), waiting],
            tails: &[vec![], vec![], vec!["boom \x1b[31m".to_owned()], vec![]],
        };
        let expected = "\
windlass: rank 2 (pid 12, host h) was killed by signal 11 (SIGSEGV) and dumped core, 1.500 s after the start
  its last lines on standard error:
    | boom \u{fffd}[31m
  the other ranks:
    ranks 0-1: ended by windlass (SIGTERM); it was: all_reduce, sequence 7, waiting for rank 2
    rank 3: exited with code 1, 12 ms after the first failure; it was: all_reduce, sequence 7, waiting for rank 2
  what to do: open the core dump (`coredumpctl debug`, or gdb PROGRAM core): its backtrace names the crash
";
        assert_eq!(report(&verdict, &evidence), expected);
    }
}
