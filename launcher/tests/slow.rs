//! What takes too long for every run: the slow lane runs it by name, `cargo test -p windlass-launcher --test slow`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod command;

use std::path::{Path, PathBuf};
use std::process::Command;

use command::{Scratch, succeeded, text, windlass};
use serde_json::Value;

/// The slow lane: about half a minute of real measuring.
#[test]
fn what_tune_writes_can_be_used() {
    let model = Scratch::new("model");
    succeeded(&windlass(&["tune", "-o", model.path()]).output().unwrap());
    let output = windlass(&["explain", "all_reduce"]).env("WINDLASS_MODEL", model.path()).output().unwrap();
    succeeded(&output);
    assert!(text(&output.stdout).contains("WINDLASS_MODEL"));
}

/// More elements than 32 bits count go where they belong: blocks of a mebibyte, no two of which that are a power of two apart have the same values.
#[test]
fn counts_beyond_32_bits() {
    const BLOCK: usize = 1 << 20;
    const COUNT: usize = (1 << 32) + 300 * BLOCK + 12_345;
    let free = std::fs::read_to_string("/proc/meminfo").unwrap();
    let free = free.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    let free: usize = free.unwrap().parse().unwrap();
    if free < 10 << 20 {
        println!("skipped: needs 10 GiB of free memory, and there are {} MiB", free >> 10);
        return;
    }
    let value = |block: usize, rank: usize| (block % 251) as u8 ^ (rank * 85) as u8;
    let counted = windlass::threads(2, |comm| {
        let rank = comm.rank() as usize;
        let mut vector = comm.alloc::<u8>(COUNT).unwrap();
        let is = |vector: &[u8], expected: &dyn Fn(usize) -> u8| {
            let blocks = vector.chunks(BLOCK).enumerate();
            let wrong = blocks.filter(|(at, block)| block.iter().any(|byte| *byte != expected(*at)));
            wrong.map(|(at, _)| at).take(9).collect::<Vec<_>>()
        };
        vector.chunks_mut(BLOCK).enumerate().for_each(|(at, block)| block.fill(value(at, rank)));
        comm.blocking().all_reduce(&mut vector, windlass::ReduceOp::Sum).unwrap();
        assert_eq!(is(&vector, &|at| value(at, 0).wrapping_add(value(at, 1))), [0; 0], "all_reduce");
        vector.chunks_mut(BLOCK).enumerate().for_each(|(at, block)| block.fill(value(at, rank)));
        comm.blocking().broadcast(&mut vector, 1).unwrap();
        assert_eq!(is(&vector, &|at| value(at, 1)), [0; 0], "broadcast");
        // And what the checks look for is there to be found.
        vector[(1 << 32) + 5] ^= 1;
        assert_eq!(is(&vector, &|at| value(at, 1)), [1 << 12], "a wrong byte");
        vector.len()
    });
    assert_eq!(counted.unwrap(), [COUNT, COUNT]);
}

/// With a Combine left out, no result may be right: everything that the bench times goes through the one path.
///
/// The slow lane, since it builds the command a second time, with the fault:
/// `cargo test -p windlass-launcher --test slow`
#[test]
fn a_planted_fault_shows_at_every_size() {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("planted-fault");
    let build = Command::new(env!("CARGO"))
        .args(["build", "-p", "windlass-launcher", "--features", "planted-fault", "--target-dir"])
        .arg(&target)
        .output()
        .unwrap();
    succeeded(&build);
    let faulty = target.join("debug/windlass");
    let variants: [&[(&str, &str)]; 3] = [
        &[("WINDLASS_TRANSPORT", "shm")],
        &[("WINDLASS_TRANSPORT", "shm"), ("WINDLASS_ALGORITHM", "ring")],
        &[("WINDLASS_TRANSPORT", "tcp")],
    ];
    for collective in ["all_reduce", "reduce_scatter", "reduce", "scan", "exscan"] {
        for variables in variants {
            // The ring is the all-reduce's and the reduce-scatter's.
            if variables.len() > 1 && !["all_reduce", "reduce_scatter"].contains(&collective) {
                continue;
            }
            for memory in ["registered", "heap"] {
                shows(&faulty, collective, memory, variables);
            }
        }
    }
    // Over shared memory also what only moves is moved by Combines; uneven blocks are checked as they lie.
    let even = ["all_gather", "broadcast", "gather", "scatter", "all_to_all"];
    let uneven = ["all_gather_v", "reduce_scatter_v", "gather_v", "scatter_v", "all_to_all_v"];
    for collective in even.into_iter().chain(uneven) {
        for memory in ["registered", "heap"] {
            shows(&faulty, collective, memory, variants[0]);
        }
    }
}

/// Every size has wrong elements when each seventh Combine is left out: a number that divides those of no operation here, so that it does
/// not hit the same harmless one each time, such as a copy in place.
fn shows(faulty: &Path, collective: &str, memory: &str, variables: &[(&str, &str)]) {
    let json = Scratch::new("fault");
    // Of two ranks the second one's exclusive prefix is what it receives: nothing is combined.
    let ranks = if collective == "exscan" { "3" } else { "2" };
    let output = Command::new(faulty)
        .args(["bench", collective, "-n", ranks, "-b", "8", "-e", "2M", "-f", "8", "-i", "20"])
        .args(["--memory", memory, "--json", json.path()])
        .env("WINDLASS_PLANT_SKIP_COMBINE", "7")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let context =
        format!("{collective} {variables:?} {memory}: {}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{context}");
    let rows: Value = serde_json::from_str(&std::fs::read_to_string(&json.0).unwrap()).unwrap();
    for row in rows.as_array().unwrap() {
        assert!(row["wrong"].as_u64().unwrap() > 0, "{context}");
    }
}
