//! `include/windlass.h` is what the library offers: made anew here, and compared. `UPDATE=1` writes it.
//!
//! cbindgen reads the sources. What it cannot see there is given to it as source: the collectives' functions, as the macro that makes them spells
//! them, and the enumerations, from the runtime's own tables.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its sources fails")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use windlass::{Collective, DataType, ReduceOp};
use windlass_c::DECLARATIONS;

/// In the order in which a reader wants the functions. Not lib.rs: cbindgen would follow it to its modules, and find them twice.
const SOURCES: [&str; 11] = [
    "version",
    "error",
    "communicator",
    "memory",
    "device",
    "operator",
    GENERATED,
    "exchange",
    "operation",
    "list",
    "collectives",
];
const GENERATED: &str = "";

fn enumeration(name: &str, what: &str, rows: impl Iterator<Item = (&'static str, u8)>) -> String {
    let mut source = format!("/// {what}\n#[repr(C)]\npub enum {name} {{\n");
    for (row, code) in rows {
        writeln!(source, "    WINDLASS_{} = {code},", row.to_uppercase().replace('-', "_")).unwrap();
    }
    source + "}\n"
}

/// What is in no file.
fn generated() -> String {
    let types = DataType::ALL.iter().map(|row| (row.name(), row.code()));
    let ops = ReduceOp::ALL.iter().map(|row| (row.name(), row.code()));
    let collectives = Collective::ALL.iter().map(|&row| (row.name(), row as u8));
    [
        enumeration("windlass_data_type", "The types of elements.", types),
        enumeration("windlass_reduce_op", "How the elements of several ranks become one.", ops),
        enumeration("windlass_collective", "The collectives, for `windlass_post`.", collectives),
        DECLARATIONS.to_owned(),
    ]
    .concat()
}

fn header(folder: &Path, generated: &str) -> String {
    // Tests may share a process.
    let (process, thread) = (std::process::id(), std::thread::current().id());
    let scratch = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{process}-{thread:?}.rs"));
    std::fs::write(&scratch, generated).unwrap();
    let mut builder = cbindgen::Builder::new()
        .with_config(cbindgen::Config::from_file(folder.join("cbindgen.toml")).unwrap());
    for source in SOURCES {
        let file = || folder.join(format!("src/{source}.rs"));
        builder = builder.with_src(if source == GENERATED { scratch.clone() } else { file() });
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    std::fs::remove_file(scratch).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_what_the_library_offers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (path, made) = (folder.join("include/windlass.h"), header(folder, &generated()));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let declared: Vec<&str> =
        made.lines().filter_map(|line| line.strip_prefix("windlass_result_t ")).collect();
    let distinct: BTreeSet<&str> = declared.iter().copied().collect();
    assert!(declared.len() > 40 && declared.len() == distinct.len(), "each is declared once: {declared:#?}");
    for (number, (made, kept)) in made.lines().zip(kept.lines()).enumerate() {
        assert_eq!(made, kept, "line {}: the header is out of date; UPDATE=1 writes it", number + 1);
    }
    assert_eq!(made.lines().count(), kept.lines().count(), "the header is out of date; UPDATE=1 writes it");
}

/// The comparison sees a function, a type and an argument that the header has not.
#[test]
fn another_function_type_or_argument_shows() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, kept) = (generated(), header(folder, &generated()));
    for (what, planted) in [
        ("a type", source.replacen("WINDLASS_F32 = ", "WINDLASS_F33 = 99,\n    WINDLASS_F32 = ", 1)),
        ("a function", source.replace("windlass_scan", "windlass_scam")),
        ("an argument", source.replace("usize", "u32")),
    ] {
        assert_ne!(planted, source, "{what} was planted");
        assert_ne!(header(folder, &planted), kept, "{what} shows");
    }
}
