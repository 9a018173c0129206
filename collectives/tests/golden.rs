//! The schedules as reviewable text. `UPDATE=1 cargo test -p windlass-collectives --test golden` rewrites them.

use std::fmt::Write;
use std::path::Path;

use windlass_collectives::{Algorithm, Collective, Nodes, Schedule};

/// The schedules of one algorithm that are worth reading.
fn text(collective: Collective, algorithm: Algorithm) -> String {
    if algorithm == Algorithm::Hierarchical {
        return on_nodes(collective);
    }
    let mut text = String::new();
    for ranks in [1, 2, 3, 4, 5, 8] {
        if !Schedule::supports(collective, algorithm, ranks) {
            continue;
        }
        let last = ranks - 1;
        let mut shown = vec![];
        for root in if collective.rooted() && ranks > 1 { vec![0, 1] } else { vec![0] } {
            for rank in [0, last] {
                for staged in [false, true] {
                    let schedule = Schedule::new(collective, algorithm, rank, ranks, root, staged);
                    let schedule = schedule.expect("supported").to_string();
                    if !shown.contains(&schedule) {
                        writeln!(text, "{schedule}").expect("a string takes everything");
                        shown.push(schedule);
                    }
                }
            }
        }
    }
    text
}

/// The hierarchical schedules of some ranks on some nodes, with the blocks that each relays.
fn on_nodes(collective: Collective) -> String {
    let mut text = String::new();
    if !Schedule::supports(collective, Algorithm::Hierarchical, 1) {
        return text;
    }
    for map in [&[0, 0, 1, 1][..], &[0, 1, 0, 1], &[0, 0, 0, 1], &[0, 0, 0, 0, 1, 1, 1, 1]] {
        let (nodes, ranks) = (Nodes::of(map), map.len() as u32);
        for (rank, staged) in [(0, false), (0, true), (1, false), (ranks - 1, false), (ranks - 1, true)] {
            let schedule = Schedule::new(collective, Algorithm::Hierarchical, rank, ranks, 0, staged);
            let schedule = schedule.expect("supported").on(&nodes);
            let blocks = 0..schedule.blocks();
            let relayed: Vec<_> = blocks.filter(|block| nodes.relays(collective, rank, *block)).collect();
            writeln!(text, "nodes {map:?}, relays {relayed:?}\n{schedule}")
                .expect("a string takes everything");
        }
    }
    text
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may be told to rewrite what it compares with")]
fn schedules_are_as_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var("UPDATE").is_ok();
    let mut expected = Vec::new();
    for &collective in Collective::ALL {
        for &algorithm in Algorithm::ALL {
            // The others' steps are those of equal blocks.
            if collective.is_uneven() && collective != Collective::ReduceScatterV {
                continue;
            }
            let text = text(collective, algorithm);
            if text.is_empty() {
                continue;
            }
            let name = format!("{collective}.{algorithm}.txt");
            let path = folder.join(&name);
            if update {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, &text).unwrap();
            }
            let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
            let differs = reviewed.lines().zip(text.lines()).position(|(a, b)| a != b);
            assert_eq!(
                differs, None,
                "{name} differs, first in that line; run with UPDATE=1 and review the change"
            );
            assert_eq!(reviewed.len(), text.len(), "{name}: run with UPDATE=1 and review the change");
            expected.push(name);
        }
    }
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(expected.contains(&name), "{name} is nobody's");
    }
}
