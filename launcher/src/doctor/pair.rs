//! What trying an accelerator's memory with a NIC has shown, and what a job makes of it.

use windlass::diagnosis::{AfterMove, Pair, PairFound, PairMode};

use super::report::Finding;

/// What reaches memory that moves, whoever moves it.
const BETTER: &str = "a NIC whose driver follows moves (mlx5 with on-demand paging) or lets the key die (irdma) reaches such memory straight";

pub(super) fn finding(pair: &Pair) -> Finding {
    let of = "pairs.moves";
    let who = format!("{} × {}", pair.accelerator, pair.device);
    match &pair.found {
        PairFound::Still => Finding::ok(
            "pairs.still",
            format!("{who}: direct; registered, written and read back; its memory never moves"),
        ),
        PairFound::Untried { error } => Finding::note(
            "pairs.untried",
            format!(
                "{who}: not found out, so memory that moves without asking goes by way of the host: {error}"
            ),
            &[],
        ),
        PairFound::Moves { mode, shifted, forced, revoked, unasked_is_direct } => {
            let told = format!(
                "moved, {}; moved with force, {}; revoked, {}",
                after(shifted),
                after(forced),
                after(revoked)
            );
            let straight = match unasked_is_direct {
                true => "direct",
                false => {
                    "direct if its owner asks before it moves, and by way of the host otherwise: \
                     a job would read and write memory that is no longer its own, and nobody would hear of it. \
                     Nothing can be promised of a move that is forced, or a revoke, while the NIC holds the memory"
                }
            };
            match mode {
                PairMode::Transparent => Finding::ok(of, format!("{who}: transparent, {straight}; {told}")),
                PairMode::Revocable => Finding::ok(of, format!("{who}: revocable, {straight}; {told}")),
                PairMode::Pinned => {
                    Finding::note(of, format!("{who}: pinned, {straight}; {told}"), &[BETTER])
                }
                PairMode::Unsafe => {
                    Finding::problem(of, format!("{who}: unsafe, {straight}; {told}"), &[BETTER])
                }
            }
        }
    }
}

fn after(after: &AfterMove) -> String {
    match after {
        AfterMove::Follows => "the NIC follows".to_owned(),
        AfterMove::Stays { errno: libc::EBUSY } => "it stays while the NIC holds it (EBUSY)".to_owned(),
        AfterMove::Stays { errno } => format!("it stays (errno {errno})"),
        AfterMove::Dies { status } => format!("the key dies: {status}"),
        AfterMove::Strays => "the NIC goes on with where it was".to_owned(),
    }
}
