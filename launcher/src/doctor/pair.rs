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
            format!(
                "{who}: still. Registered, written and read back; its memory never moves. It goes straight"
            ),
        ),
        PairFound::Untried { error } => Finding::note(
            "pairs.untried",
            format!(
                "{who}: not found out, so memory that moves without asking goes by way of the host: {error}"
            ),
            &[],
        ),
        PairFound::Moves { mode, shifted, forced, revoked, unasked_is_direct } => {
            let tried = format!(
                "When moved, {}; when moved with force, {}; when revoked, {}",
                after(shifted),
                after(forced),
                after(revoked)
            );
            let staged = "So memory whose owner asks before it moves goes straight, and other memory by way of the host. \
                          While the NIC holds it, nothing can be promised of a forced move or a revoke: \
                          nobody would hear that bytes went to memory that is somebody else's";
            let straight = "Memory goes straight";
            let text = |mode: &str| {
                let end = if *unasked_is_direct { straight } else { staged };
                format!("{who}: {mode}. {tried}. {end}")
            };
            match mode {
                PairMode::Transparent => Finding::ok(of, text("transparent")),
                PairMode::Revocable => Finding::ok(of, text("revocable")),
                PairMode::Pinned => Finding::note(of, text("pinned"), &[BETTER]),
                PairMode::Unsafe => Finding::problem(of, text("unsafe"), &[BETTER]),
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
