//! The examples, as programs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An example, built by the test where only this crate was.
pub(crate) fn example(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_windlass")).parent().unwrap();
    let path = folder.join("examples").join(name);
    if !path.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "-p", "windlass-examples", "--example", name]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        let folder = folder.parent().unwrap();
        assert!(cargo.arg("--target-dir").arg(folder).status().unwrap().success());
    }
    path
}
