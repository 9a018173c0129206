//! Device memory that moves in real processes: the example that reduces under fire, in each mode.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[expect(dead_code, reason = "this test keeps no files")]
mod command;
mod example;

use std::process::Command;

use command::{succeeded, text, windlass};
use example::example;

/// Runs the example on 4 ranks for 2 s; what it says.
fn under_fire(arguments: &[&str]) -> String {
    let example = example("move_under_fire");
    let mut command = windlass(&["run", "-n", "4", "--output", "plain", "--timeout", "60", "--"]);
    let output = command.arg(example).args(["--seconds", "2"]).args(arguments).output().unwrap();
    succeeded(&output);
    text(&output.stdout)
}

/// The number behind a name.
fn figure(told: &str, name: &str) -> u64 {
    let line = told.lines().find_map(|line| line.trim_start().strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no {name}:\n{told}"))
}

#[test]
fn every_mode_is_right_under_fire() {
    for arguments in [
        &["--mode", "cooperative"][..],
        &["--mode", "cooperative", "--announce", "--bytes", "100001"],
        &["--mode", "pinned"],
        &["--mode", "revocable"],
        &["--mode", "transparent"],
    ] {
        let arguments = [arguments, &["--revokes-per-second", "40"]].concat();
        let told = under_fire(&arguments);
        assert_eq!(figure(&told, "elements wrong"), 0, "{told}");
        assert_eq!(figure(&told, "stale accesses"), 0, "{told}");
        assert!(figure(&told, "elements right") > 0, "{told}");
        assert!(figure(&told, "revokes") > 0, "{told}");
        // Small buffers are seldom at work when a revoke strikes.
        assert!(figure(&told, "replays") > 0 || arguments.contains(&"100001"), "{arguments:?}\n{told}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    for (arguments, word) in [
        (["--bytes", "0"], "64M"),
        (["--bytes", "2T"], "512K"),
        (["--seconds", "0"], "86400"),
        (["--moves-per-second", "1e9"], "1000"),
        (["--revokes-per-second", "NaN"], "1000"),
        (["--mode", "opaque"], "pinned"),
        (["--accelerator", "gpu"], "dma-heap"),
    ] {
        let output = Command::new(example("move_under_fire")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(word), "{arguments:?}: {}", text(&output.stderr));
    }
}
