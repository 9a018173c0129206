//! The house rules that a compiler does not keep: who may know whom, and what may stand where.
//!
//! Each rule is a function from sources (or from cargo's metadata) to a list of breaches, so that the canaries below can show
//! each one a planted breach and see it found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who may depend on whom, tests included. A crate that is not here may not exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("windlass-kernels", &[]),
    ("windlass-collectives", &["windlass-kernels"]),
    ("windlass-memory", &["windlass-kernels"]),
    ("windlass-transports", &["windlass-memory"]),
    ("windlass-rdma", &["windlass-memory", "windlass-transports"]),
    (
        "windlass",
        &[
            "windlass-kernels",
            "windlass-collectives",
            "windlass-memory",
            "windlass-transports",
            "windlass-rdma",
        ],
    ),
    ("windlass-launcher", &["windlass", "windlass-benches"]),
    ("windlass-python", &["windlass"]),
    ("windlass-examples", &["windlass"]),
    ("windlass-benches", &["windlass"]),
    ("windlass-c", &["windlass"]),
];

/// What pure code may not even name.
const IMPURE: &[&str] = &[
    "std::net",
    "std::fs",
    "std::thread",
    "std::time",
    "std::process",
    "std::env",
    "std::io",
    "std::os",
    "tokio",
    "rustix",
    "libc",
];

/// What must be pure, and where each forbids unsafe code.
const PURE: &[(&str, &str)] = &[
    ("collectives/src/", "collectives/src/lib.rs"),
    ("runtime/src/scheduler/", "runtime/src/scheduler/mod.rs"),
];

/// Where the transports are named.
const REGISTRY: &str = "runtime/src/registry.rs";

/// What the runtime uses of shared memory outside the registry: not a transport, but the flags and the board that
/// Combine, Signal and Wait are bound to.
const BOUND_TO_MAPPED_PEERS: &[(&str, &str)] = &[
    ("Board", "the communicator's memory, which the job maps and its groups, slots and metrics lie in"),
    ("Shape", "what a board is made for"),
    ("Doorbell", "waiting parks on it"),
    ("Parked", "what parking answers"),
    ("MAX_LOCAL_RANKS", "how many ranks a doorbell serves"),
    ("ArrivalLine", "a Signal of arrival is a store to it"),
    ("Watermark", "a Signal of done is a store to it"),
    ("Lend", "what a rank's arrival says of its memory"),
    ("Progress", "what a line says"),
    ("INLINE_BYTES", "what fits into the arrival line"),
    ("WAYS", "how far a rank may be ahead"),
];

/// The callers of the kernels in the product: the binding of steps, and the engines of accelerators.
const KERNEL_CALLERS: &[&str] =
    &["runtime/src/engine/bind.rs", "transports/memory/src/accelerator/driven/engine.rs"];

/// Where a program's own operator is, and where it is called: without a lock.
const OPERATOR_CALLERS: &[&str] = &["runtime/src/operator.rs", "runtime/src/engine/fold.rs"];

const MOST_LINES: usize = 600;
/// Files that were longer when the rule came, with the length they may not pass. They only shrink.
const RATCHET: &[(&str, usize)] = &[];

#[derive(Debug)]
struct Source {
    /// Relative to the repository, with slashes.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The lines without their comments, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
    }

    fn breach(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn arrows(metadata: &serde_json::Value) -> Vec<String> {
    let mut breaches = Vec::new();
    let empty = Vec::new();
    for package in metadata["packages"].as_array().unwrap_or(&empty) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            breaches.push(format!("{name} has no place in the house: give it one in ARROWS"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap_or(&empty) {
            let on = dependency["name"].as_str().unwrap_or_default();
            if on.starts_with("windlass") && on != name && !allowed.contains(&on) {
                breaches.push(format!("{name} may not depend on {on}"));
            }
        }
    }
    breaches
}

fn purity(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        let Some((_, top)) = PURE.iter().find(|(folder, _)| source.path.starts_with(folder)) else {
            continue;
        };
        if source.path == *top && !source.text.contains("#![forbid(unsafe_code)]") {
            breaches.push(source.breach(1, "must forbid unsafe code"));
        }
        for (number, code) in source.code() {
            for name in IMPURE {
                if code.contains(&format!("{name}::")) || code.trim_end().ends_with(&format!("use {name};")) {
                    breaches.push(source.breach(number, &format!("{name} in the pure floor")));
                }
            }
        }
    }
    breaches
}

fn registry(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    let runtime = |s: &&Source| s.is_rust() && s.path.starts_with("runtime/src/") && s.path != REGISTRY;
    for source in sources.iter().filter(runtime) {
        for (number, code) in source.code() {
            for name in ["tcp", "sim"] {
                if code.contains(&format!("{name}::")) {
                    breaches.push(source.breach(number, &format!("{name} is named outside the registry")));
                }
            }
            for rest in code.split("shm::").skip(1) {
                let items = if rest.starts_with('{') { rest.split('}').next().unwrap_or(rest) } else { rest };
                let count = if rest.starts_with('{') { usize::MAX } else { 1 };
                for item in words(items).take(count) {
                    if !BOUND_TO_MAPPED_PEERS.iter().any(|(known, _)| *known == item) {
                        breaches.push(
                            source.breach(number, &format!("shm::{item} is named outside the registry")),
                        );
                    }
                }
            }
        }
        // A module imported as such would hide what is used of it.
        let all: String = source.code().map(|(_, code)| code).collect();
        for statement in all.split("windlass_transports::{").skip(1) {
            let statement = statement.split(';').next().unwrap_or_default();
            for (name, next) in ["tcp", "sim", "shm"].map(|name| (name, format!("{name}::"))) {
                if words(statement).any(|word| word == name) && !statement.contains(&next) {
                    breaches.push(source.breach(1, &format!("module {name} is imported whole")));
                }
            }
        }
    }
    breaches
}

/// Nobody can call `Combine::run` without naming how results are stored, so that name gives every caller away.
fn kernel_callers(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    let elsewhere = |s: &&Source| {
        s.is_rust()
            && !s.path.starts_with("collectives/kernels/")
            && !KERNEL_CALLERS.contains(&s.path.as_str())
    };
    for source in sources.iter().filter(elsewhere) {
        if !source.text.contains("windlass_kernels") {
            continue;
        }
        for (number, code) in source.code() {
            if words(code).any(|word| word == "Store") {
                breaches
                    .push(source.breach(number, "runs a kernel: only the binding of steps and engines do"));
            }
        }
    }
    breaches
}

/// A program's own operator may take long, and panic: one place knows how to call it.
fn operator_callers(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    let elsewhere =
        |s: &&Source| s.path.starts_with("runtime/src/") && !OPERATOR_CALLERS.contains(&s.path.as_str());
    for source in sources.iter().filter(elsewhere) {
        for (number, code) in source.code() {
            if words(code).any(|word| word == "fold_into") {
                breaches.push(source.breach(number, "calls a program's own operator, perhaps under a lock"));
            }
        }
    }
    breaches
}

fn features(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust() && s.path != REGISTRY) {
        let lines: Vec<&str> = source.code().map(|(_, code)| code.trim()).collect();
        for (i, line) in lines.iter().enumerate() {
            if !line.contains("cfg") || !line.contains("feature =") || line.starts_with("#![cfg(") {
                continue;
            }
            let under = lines[i + 1..].iter().find(|l| !l.is_empty() && !l.starts_with("#["));
            let on_module = under.is_some_and(|l| words(l).any(|word| word == "mod"));
            if !line.starts_with("#[cfg(") || !on_module {
                breaches.push(source.breach(i + 1, "a feature may switch modules, and nothing smaller"));
            }
        }
    }
    breaches
}

fn commented_members(manifest: &str) -> Vec<String> {
    let list =
        manifest.split("\nmembers = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
    let lines: Vec<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut breaches = Vec::new();
    if lines.is_empty() {
        breaches.push("Cargo.toml lists no members, one on a line".to_owned());
    }
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with('"')) {
        if i == 0 || !lines[i - 1].starts_with('#') {
            breaches.push(format!("{line} has no comment above it that says what it is for"));
        }
    }
    breaches
}

fn machine_paths(sources: &[Source]) -> Vec<String> {
    // In two pieces, or this file would name it too.
    let path = concat!("/wo", "rk/");
    let mut breaches = Vec::new();
    for source in sources {
        for (i, line) in source.text.lines().enumerate() {
            if line.contains(path) {
                breaches.push(source.breach(i + 1, "names a path of one machine"));
            }
        }
    }
    breaches
}

fn long_files(sources: &[Source], ratchet: &[(&str, usize)]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        let lines = source.text.lines().count();
        let exception = ratchet.iter().find(|(path, _)| *path == source.path);
        match exception {
            None if lines > MOST_LINES => {
                breaches.push(source.breach(lines, "is too long: one file, one idea"))
            }
            Some((_, most)) if lines > *most => breaches.push(source.breach(lines, "may only shrink")),
            Some(_) if lines <= MOST_LINES => {
                breaches.push(source.breach(lines, "has become short: take it off the list"));
            }
            _ => {}
        }
    }
    breaches
}

fn names(sources: &[Source]) -> Vec<String> {
    let mut breaches = Vec::new();
    for source in sources.iter().filter(|s| s.is_rust()) {
        let stem = Path::new(&source.path).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        if ["util", "utils", "helper", "helpers", "misc"].contains(&stem) {
            breaches.push(source.breach(1, "a file has one idea, and a name for it"));
        }
        for (number, code) in source.code() {
            let mut before = "";
            for word in words(code) {
                let noun = ["struct", "enum", "trait", "type"].contains(&before);
                if noun && ["Manager", "Helper", "Utils"].iter().any(|vague| word.ends_with(vague)) {
                    breaches.push(source.breach(number, &format!("{word} does not say what it is")));
                }
                before = word;
            }
        }
    }
    breaches
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the runtime lies in the workspace").to_owned()
}

/// Every text file of the repository but this one, which is full of planted breaches.
fn sources() -> Vec<Source> {
    let root = root();
    // In a worktree, .git is a file, which names a path of its machine.
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository").flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type().expect("the kind of a file");
            if kind.is_dir() {
                let generated = ["target", ".git", ".tools"].contains(&name.as_str())
                    || path.join("CACHEDIR.TAG").exists();
                if !generated {
                    folders.push(path);
                }
            } else if kind.is_file() && name != "Cargo.lock" && name != ".git" {
                let relative =
                    path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
                if relative == "runtime/tests/house.rs" {
                    continue;
                }
                if let Ok(text) = fs::read_to_string(&path) {
                    found.push(Source { path: relative, text });
                }
            }
        }
    }
    assert!(found.len() > 50, "the repository was not found at {}", root.display());
    found
}

#[track_caller]
fn hold(breaches: &[String]) {
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn crates_know_only_whom_they_may() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    assert_eq!(
        metadata["packages"].as_array().map(Vec::len),
        Some(ARROWS.len()),
        "crates are as many as in ARROWS"
    );
    hold(&arrows(&metadata));
}

#[test]
fn the_pure_floor_is_pure() {
    hold(&purity(&sources()));
}

#[test]
fn the_runtime_names_transports_in_its_registry_only() {
    hold(&registry(&sources()));
}

#[test]
fn only_steps_and_engines_run_the_kernels() {
    hold(&kernel_callers(&sources()));
}

#[test]
fn only_folds_call_a_programs_operator() {
    hold(&operator_callers(&sources()));
}

#[test]
fn features_switch_modules_only() {
    hold(&features(&sources()));
}

#[test]
fn each_member_says_what_it_is_for() {
    hold(&commented_members(
        &fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's manifest"),
    ));
}

#[test]
fn no_file_names_one_machine() {
    hold(&machine_paths(&sources()));
}

#[test]
fn files_are_short() {
    hold(&long_files(&sources(), RATCHET));
}

#[test]
fn nouns_say_what_they_are() {
    hold(&names(&sources()));
}

/// Each rule is shown a breach, and the same without it.
mod canaries {
    use super::*;

    fn at(path: &str, text: &str) -> Vec<Source> {
        vec![Source { path: path.to_owned(), text: text.to_owned() }]
    }

    #[track_caller]
    fn finds(rule: impl Fn(&[Source]) -> Vec<String>, path: &str, bad: &str, good: &str) {
        assert_eq!(rule(&at(path, bad)).len(), 1, "the breach is found: {bad}");
        hold(&rule(&at(path, good)));
    }

    #[test]
    fn a_forbidden_arrow_and_an_unknown_crate() {
        let metadata = |name: &str, on: &str| serde_json::json!({"packages": [{"name": name, "dependencies": [{"name": on}]}]});
        assert_eq!(arrows(&metadata("windlass-collectives", "windlass-transports")).len(), 1);
        assert_eq!(arrows(&metadata("windlass-transports", "windlass-kernels")).len(), 1);
        assert_eq!(arrows(&metadata("windlass-launcher", "windlass-collectives")).len(), 1);
        assert_eq!(arrows(&metadata("windlass-utils", "serde")).len(), 1);
        hold(&arrows(&metadata("windlass-launcher", "windlass")));
        hold(&arrows(&metadata("windlass-transports", "rustix")));
        let all: BTreeMap<_, _> = ARROWS.iter().copied().collect();
        assert_eq!(all.len(), ARROWS.len());
        assert!(all.values().flat_map(|on| on.iter()).all(|on| all.contains_key(on)));
    }

    #[test]
    fn a_clock_on_the_pure_floor() {
        let path = "collectives/src/model.rs";
        finds(purity, path, "use std::time::Instant;", "/// Unlike std::time::Instant.");
        finds(purity, path, "let x = std::env::var(name);", "use std::fmt;");
        finds(purity, "collectives/src/lib.rs", "mod step;", "#![forbid(unsafe_code)]\nmod step;");
        finds(purity, "runtime/src/scheduler/region.rs", "use std::thread::park;", "use std::fmt;");
        finds(purity, "runtime/src/scheduler/mod.rs", "mod region;", "#![forbid(unsafe_code)]\nmod region;");
        hold(&purity(&at("runtime/src/job.rs", "use std::time::Instant;")));
    }

    #[test]
    fn a_transport_named_in_the_engine() {
        let path = "runtime/src/engine/mod.rs";
        finds(registry, path, "use windlass_transports::tcp::Tcp;", "use windlass_transports::Transport;");
        finds(registry, path, "windlass_transports::sim::Network::new()", "// unlike sim::Network");
        finds(
            registry,
            path,
            "use windlass_transports::shm::{Lend, Lanes};",
            "use windlass_transports::shm::{Lend, WAYS};",
        );
        finds(registry, path, "use windlass_transports::shm::Lanes;", "use windlass_transports::shm::Board;");
        finds(
            registry,
            path,
            "use windlass_transports::{Event, shm};",
            "use windlass_transports::{Event, Token};",
        );
        finds(
            registry,
            path,
            "use windlass_transports::{\n    Event,\n    tcp,\n};",
            "use windlass_transports::{\n    Event,\n};",
        );
        hold(&registry(&at(REGISTRY, "use windlass_transports::tcp::Tcp;")));
    }

    #[test]
    fn another_caller_of_the_kernels() {
        let bad = "use windlass_kernels::Combine;\nsum.run(&i, &o, n, 1, windlass_kernels::Store::Cached);";
        finds(kernel_callers, "runtime/src/group.rs", bad, "use windlass_kernels::{Combine, DataType};");
        KERNEL_CALLERS.iter().for_each(|caller| hold(&kernel_callers(&at(caller, bad))));
        hold(&kernel_callers(&at("collectives/kernels/tests/semantics.rs", bad)));
    }

    #[test]
    fn another_caller_of_operators() {
        let bad = "operator.fold_into(acc, x, count)?;";
        finds(
            operator_callers,
            "runtime/src/engine/bind.rs",
            bad,
            "self.folding.push(inputs, outputs, bytes)",
        );
        OPERATOR_CALLERS.iter().for_each(|caller| hold(&operator_callers(&at(caller, bad))));
    }

    #[test]
    fn a_feature_inside_a_function() {
        let path = "runtime/src/fault.rs";
        let good = "#[cfg(feature = \"x\")]\n#[path = \"x.rs\"]\npub(crate) mod planted;";
        finds(features, path, "fn f() {\n    #[cfg(feature = \"x\")]\n    g();\n}", good);
        finds(
            features,
            path,
            "if cfg!(feature = \"x\") {\nmod y {}\n}",
            "#![cfg(feature = \"x\")]\nfn f() {}",
        );
        finds(
            features,
            path,
            "#[cfg(not(feature = \"x\"))]\npub fn f() {}",
            "#[cfg(not(feature = \"x\"))]\nmod planted {}",
        );
        hold(&features(&at(REGISTRY, "#[cfg(feature = \"rdma\")]\nfn rdma() {}")));
    }

    #[test]
    fn a_member_without_a_comment() {
        assert_eq!(
            commented_members("[workspace]\nmembers = [\n    # One.\n    \"one\",\n    \"two\",\n]\n").len(),
            1
        );
        assert_eq!(commented_members("[workspace]\nmembers = [\"one\"]\n").len(), 1);
        hold(&commented_members(
            "[workspace]\nmembers = [\n    # One.\n    \"one\",\n    # Two.\n    \"two\",\n]\n",
        ));
    }

    #[test]
    fn a_path_of_this_machine() {
        finds(
            machine_paths,
            "docs/a.md",
            concat!("see /wo", "rk/notes"),
            "see docs/numerics.md and /usr/bin",
        );
    }

    #[test]
    fn a_long_file_and_one_that_grew() {
        let lines = |n: usize| at("a.rs", &"x\n".repeat(n));
        assert_eq!(long_files(&lines(601), &[]).len(), 1);
        hold(&long_files(&lines(600), &[]));
        assert_eq!(long_files(&lines(701), &[("a.rs", 700)]).len(), 1);
        assert_eq!(long_files(&lines(600), &[("a.rs", 700)]).len(), 1);
        hold(&long_files(&lines(700), &[("a.rs", 700)]));
    }

    #[test]
    fn a_noun_that_says_nothing() {
        finds(names, "runtime/src/group.rs", "pub(crate) struct GroupManager;", "pub(crate) struct Group;");
        assert_eq!(names(&at("runtime/src/utils.rs", "")).len(), 1);
    }
}
