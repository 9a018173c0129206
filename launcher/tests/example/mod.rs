//! The examples, as programs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An example, built by the test unless it is there as it stands in the sources.
pub(crate) fn example(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_windlass")).parent().unwrap();
    let path = folder.join("examples").join(name);
    // One that was left from before a change would speak another protocol. Of the whole workspace: built for its package alone, what it depends on would
    // have other features than in a run of all tests, and be built once more.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--workspace", "--example", name]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let folder = folder.parent().unwrap();
    assert!(cargo.arg("--target-dir").arg(folder).status().unwrap().success());
    path
}
