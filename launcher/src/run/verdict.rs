//! Who failed first, who followed, and what the job's exit code is. Pure: it is told what happened, and when.

use std::time::Duration;

use super::rendezvous::ExitCause;

/// One rank's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// How.
    pub(crate) cause: ExitCause,
    /// How long after the start.
    pub(crate) after: Duration,
    /// Whether the ranks had been told to end before.
    pub(crate) told: bool,
}

/// What ended the job other than a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The launcher was sent this signal and passed it on.
    Asked(i32),
    /// Nobody reads the launcher's output any more.
    OutputLost,
    /// `--timeout` has passed.
    TimedOut,
}

/// The state of a job's end.
#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    exits: Vec<Option<Exit>>,
    culprit: Option<usize>,
    stop: Option<Stop>,
    told: bool,
    /// Ranks that exited with code 0 before everybody had joined.
    left_early: Vec<usize>,
}

impl Verdict {
    /// Nothing has ended yet.
    pub(crate) fn new(ranks: usize) -> Self {
        Self { exits: vec![None; ranks], culprit: None, stop: None, told: false, left_early: Vec::new() }
    }

    /// A rank has ended, when `joined` ranks had joined the rendezvous, where there is one. Returns its cause.
    pub(crate) fn handle_exit(&mut self, rank: usize, mut exit: Exit, joined: Option<usize>) -> ExitCause {
        // Joining completes for nobody before all have joined, so a rank that ends well before that never did.
        let ranks = self.exits.len();
        let early =
            exit.cause == ExitCause::Code(0) && !exit.told && joined.is_some_and(|joined| joined < ranks);
        if early {
            self.left_early.push(rank);
            if joined.is_some_and(|joined| joined > 0) {
                exit.cause = ExitCause::NeverJoined;
            }
        }
        if exit.cause.is_failure() && self.culprit.is_none() {
            self.culprit = Some(rank);
        }
        let cause = exit.cause.clone();
        self.exits[rank] = Some(exit);
        cause
    }

    /// Whether a rank joining would make a failure of an exit with code 0.
    pub(crate) fn awaits_joining(&self) -> bool {
        self.culprit.is_none() && !self.left_early.is_empty()
    }

    /// Ranks have joined. Returns the rank that they will wait for in vain.
    pub(crate) fn handle_joined(&mut self, joined: usize) -> Option<usize> {
        if joined == 0 || !self.awaits_joining() {
            return None;
        }
        let rank = *self.left_early.first()?;
        if let Some(exit) = &mut self.exits[rank] {
            exit.cause = ExitCause::NeverJoined;
        }
        self.culprit = Some(rank);
        Some(rank)
    }

    /// Something other than a rank ends the job. A failure that came first stays the reason.
    pub(crate) fn handle_stop(&mut self, stop: Stop) {
        if self.culprit.is_none() {
            self.stop.get_or_insert(stop);
        }
    }

    /// The launcher has told the ranks to end: what ends from now on are victims.
    pub(crate) fn handle_told(&mut self) {
        self.told = true;
    }

    /// Whether it has.
    pub(crate) fn has_told(&self) -> bool {
        self.told
    }

    /// The first rank that failed.
    pub(crate) fn culprit(&self) -> Option<(usize, &Exit)> {
        let rank = self.culprit?;
        self.exits[rank].as_ref().map(|exit| (rank, exit))
    }

    /// What ended the job other than a rank.
    pub(crate) fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// Each rank's end, in rank order; `None` for one that has not ended, or whose end nobody saw.
    pub(crate) fn exits(&self) -> &[Option<Exit>] {
        &self.exits
    }

    /// What `windlass run` exits with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.stop {
            // As if SIGPIPE had ended it, which is what the shell expects of a writer to a closed pipe.
            Some(Stop::OutputLost) => 141,
            Some(Stop::TimedOut) => 124,
            Some(Stop::Asked(_)) | None => self.culprit().map_or(0, |(_, exit)| exit.cause.exit_code()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_millis(5);
    fn exit(cause: ExitCause, told: bool) -> Exit {
        Exit { cause, after: NOW, told }
    }

    const KILLED: ExitCause = ExitCause::Signal { number: libc::SIGKILL, core_dumped: false };

    #[test]
    fn the_first_failure_is_the_culprit_and_gives_the_code() {
        let mut verdict = Verdict::new(3);
        verdict.handle_exit(1, exit(ExitCause::Code(0), false), None);
        assert_eq!((verdict.culprit(), verdict.exit_code()), (None, 0));
        verdict.handle_exit(2, exit(KILLED, false), None);
        verdict.handle_told();
        verdict.handle_exit(0, exit(ExitCause::Code(3), true), None);
        let (rank, exit) = verdict.culprit().unwrap();
        assert_eq!((rank, &exit.cause, exit.told, verdict.exit_code()), (2, &KILLED, false, 137));
        assert!(verdict.exits()[0].as_ref().unwrap().told);
    }

    #[test]
    fn leaving_before_joining_is_a_failure_once_another_has_joined() {
        let mut verdict = Verdict::new(3);
        let cause = verdict.handle_exit(1, exit(ExitCause::Code(0), false), Some(2));
        assert_eq!((cause, verdict.exit_code()), (ExitCause::NeverJoined, 1));

        let mut verdict = Verdict::new(3);
        assert_eq!(verdict.handle_exit(1, exit(ExitCause::Code(0), false), Some(0)), ExitCause::Code(0));
        assert!(verdict.awaits_joining());
        assert_eq!(verdict.handle_joined(0), None);
        assert_eq!(verdict.handle_joined(1), Some(1));
        assert_eq!(verdict.culprit().unwrap().1.cause, ExitCause::NeverJoined);
        assert_eq!(verdict.handle_joined(2), None, "told once");
    }

    #[test]
    fn leaving_a_complete_job_or_a_program_without_windlass_is_no_failure() {
        let mut verdict = Verdict::new(2);
        verdict.handle_exit(0, exit(ExitCause::Code(0), false), Some(2));
        assert!(!verdict.awaits_joining());
        let mut verdict = Verdict::new(2);
        verdict.handle_exit(0, exit(ExitCause::Code(0), false), Some(0));
        verdict.handle_exit(1, exit(ExitCause::Code(0), false), Some(0));
        assert_eq!((verdict.handle_joined(0), verdict.exit_code()), (None, 0));
    }

    #[test]
    fn a_stop_before_a_failure_names_the_code_and_one_after_it_does_not() {
        let mut verdict = Verdict::new(1);
        verdict.handle_stop(Stop::TimedOut);
        verdict.handle_told();
        verdict.handle_exit(0, exit(KILLED, true), None);
        assert_eq!(verdict.exit_code(), 124);

        let mut verdict = Verdict::new(1);
        verdict.handle_exit(0, exit(ExitCause::Code(7), false), None);
        verdict.handle_stop(Stop::OutputLost);
        assert_eq!((verdict.stop(), verdict.exit_code()), (None, 7));
    }
}
