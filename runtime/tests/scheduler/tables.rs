//! The declared transitions as reviewable text, and the diagrams of `docs/scheduler.md`, which are printed from them.
//! `UPDATE=1 cargo test -p windlass --test scheduler tables` writes both anew.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use windlass::scheduler::Notice;
use windlass::scheduler::table::{Row, connection, diagram, importer, owner, text};

fn reviewed(path: &str, now: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var("UPDATE").is_ok() {
        fs::write(&path, now).unwrap();
    }
    let before = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(before, now, "{} differs: run with UPDATE=1 and review the change", path.display());
}

/// The document with the diagram put between its marks.
fn with_diagram(document: &str, name: &str, diagram: &str) -> String {
    let (begin, end) =
        (format!("<!-- {name}: printed from the table -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = document.split_once(&begin).expect("the document has the mark");
    let (_, after) = rest.split_once(&end).expect("the mark has an end");
    format!("{before}{begin}```mermaid\n{diagram}```\n{end}{after}")
}

fn has_one_row_each<S: Copy + Ord + Debug, E: Copy + Ord + Debug, F>(table: &[Row<S, E, F>]) {
    let pairs: BTreeSet<_> = table.iter().map(|row| (row.from, row.event)).collect();
    assert_eq!(pairs.len(), table.len(), "one row for a state and an event");
    let reached: BTreeSet<S> = table.iter().map(|row| row.to).collect();
    let left: BTreeSet<S> = table.iter().map(|row| row.from).collect();
    assert!(reached.is_subset(&left), "every state says what it does with what comes late");
}

#[test]
fn tables_are_as_reviewed() {
    has_one_row_each(owner::TABLE);
    has_one_row_each(importer::TABLE);
    has_one_row_each(connection::TABLE);
    reviewed("tests/scheduler/golden/owner.txt", &text(owner::TABLE));
    reviewed("tests/scheduler/golden/importer.txt", &text(importer::TABLE));
    reviewed("tests/scheduler/golden/connection.txt", &text(connection::TABLE));
}

#[test]
fn diagrams_in_the_document_are_the_tables() {
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scheduler.md")).unwrap();
    let document = with_diagram(&document, "owner", &diagram(owner::TABLE));
    reviewed("../docs/scheduler.md", &with_diagram(&document, "importer", &diagram(importer::TABLE)));
}

/// A callback copies it into a ring, without a lock or an allocation.
#[test]
fn a_notice_is_small_and_plain() {
    const fn is_plain<T: Copy + Send + 'static>() -> usize {
        size_of::<T>()
    }
    const { assert!(is_plain::<Notice>() <= 48) };
}
