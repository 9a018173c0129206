//! `windlass bench`, `tune` and `explain` as a user meets them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod command;

use std::process::Stdio;

use command::{Scratch, succeeded, text, windlass};
use serde_json::Value;

/// The JSON's fields, all of them.
const FIELDS: [&str; 21] = [
    "algbw_gbps",
    "busbw_gbps",
    "bytes",
    "collective",
    "count",
    "dtype",
    "iterations",
    "label",
    "limit_us",
    "median_us",
    "memory",
    "min_us",
    "op",
    "p99_us",
    "pattern",
    "peers",
    "ranks",
    "tensors",
    "tensors_us",
    "transport",
    "wrong",
];

/// What can be benched; `the_help_and_the_errors_name_every_collective` knows of a new one.
const COLLECTIVES: [&str; 17] = [
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "barrier",
    "send",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
    "scan",
    "exscan",
    "all_gather_v",
    "reduce_scatter_v",
    "all_to_all_v",
    "gather_v",
    "scatter_v",
];

/// A short bench; its rows, all of which must be right.
fn rows(name: &str, arguments: &[&str]) -> Vec<Value> {
    let json = Scratch::new(name);
    let mut command = windlass(&["bench"]);
    command.args(arguments).args(["-w", "1", "-i", "6", "--json", json.path()]);
    let output = command.output().unwrap();
    succeeded(&output);
    let rows: Value = serde_json::from_str(&std::fs::read_to_string(&json.0).unwrap()).unwrap();
    let rows = rows.as_array().unwrap().clone();
    assert!(!rows.is_empty());
    for row in &rows {
        let mut fields: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, FIELDS);
        assert_eq!(row["wrong"], 0, "{arguments:?}: {row}");
        assert!(row["iterations"].as_u64().unwrap() > 0);
        let order = ["min_us", "median_us", "p99_us"].map(|field| row[field].as_f64().unwrap());
        assert!(0.0 <= order[0] && order[0] <= order[1] && order[1] <= order[2], "{row}");
    }
    rows
}

#[test]
fn every_collective_is_right_on_every_transport_from_every_memory() {
    for collective in COLLECTIVES {
        for transport in ["shm", "tcp"] {
            for memory in ["registered", "heap", "device"] {
                if (collective, memory) == ("send", "device") {
                    continue;
                }
                let arguments = [
                    collective,
                    "-n",
                    "2",
                    "-b",
                    "8",
                    "-e",
                    "256K",
                    "-f",
                    "32",
                    "--transport",
                    transport,
                    "--memory",
                    memory,
                ];
                let rows = rows(&format!("{collective}-{transport}-{memory}"), &arguments);
                let sizes = if collective == "barrier" { 1 } else { 4 };
                assert_eq!(rows.len(), sizes);
                assert_eq!((&rows[0]["transport"], &rows[0]["memory"]), (&transport.into(), &memory.into()));
            }
        }
    }
}

#[test]
fn lists_take_turns_with_one_buffer() {
    let mut timed = 0;
    for (collective, memory, transport) in [
        ("all_reduce", "registered", "shm"),
        ("all_reduce", "heap", "shm"),
        ("all_reduce", "device", "shm"),
        ("all_gather", "registered", "shm"),
        ("reduce_scatter", "registered", "tcp"),
    ] {
        let arguments = ["-n", "2", "-b", "8", "-e", "300K", "-f", "200", "--tensors", "7"];
        let of = [collective, "--memory", memory, "--transport", transport];
        for row in rows(&format!("tensors-{collective}-{memory}"), &[&of[..], &arguments].concat()) {
            assert_eq!(row["tensors"], 7);
            // A time is of one label alone, and the few rounds of a test may have none of both.
            let time = row["tensors_us"].as_f64();
            assert!(time.is_none_or(|time| time > 0.0), "{row}");
            timed += usize::from(time.is_some());
        }
    }
    assert!(timed > 0);
}

#[test]
fn more_ranks_than_cores_and_every_type_and_operator() {
    for collective in COLLECTIVES {
        let arguments = [collective, "-n", "3", "-b", "1000", "-e", "100000", "-f", "10"];
        rows(&format!("three-{collective}"), &arguments);
    }
    for collective in ["reduce", "gather", "scatter", "broadcast"] {
        let arguments = [collective, "-n", "3", "-b", "8", "-e", "64K", "-f", "64", "--root", "2"];
        rows(&format!("root-{collective}"), &arguments);
    }
    // Every type, and between them every operator.
    for (dtype, op) in [
        ("u8", "sum"),
        ("i8", "avg"),
        ("i16", "min"),
        ("u16", "bxor"),
        ("i32", "prod"),
        ("u32", "band"),
        ("i64", "lxor"),
        ("u64", "bor"),
        ("f16", "sum"),
        ("bf16", "avg"),
        ("bf16", "max"),
        ("f32", "scaled_sum"),
        ("f64", "prod"),
        ("e4m3", "max"),
        ("e5m2", "avg"),
        ("bool", "land"),
        ("bool", "lor"),
        ("complex64", "prod"),
        ("complex128", "scaled_sum"),
        ("f32i32", "minloc"),
        ("f64i32", "maxloc"),
        ("i32i32", "minloc"),
        ("f64i64", "maxloc"),
        ("i64i64", "minloc"),
    ] {
        let arguments =
            ["all_reduce", "-n", "3", "-b", "8", "-e", "64K", "-f", "64", "--dtype", dtype, "--op", op];
        let rows = rows(&format!("{op}-{dtype}"), &arguments);
        assert_eq!((&rows[0]["dtype"], &rows[0]["op"]), (&dtype.into(), &op.into()));
    }
    for op in ["sum", "prod", "min", "max", "avg"] {
        for dtype in ["bf16", "i32"] {
            for collective in ["all_reduce", "reduce", "scan", "exscan"] {
                if op == "avg" && collective.ends_with("scan") {
                    continue;
                }
                let arguments = ["-n", "2", "-e", "32K", "-f", "64", "--op", op, "--dtype", dtype];
                rows(&format!("{op}-{dtype}-{collective}"), &[&[collective][..], &arguments].concat());
            }
        }
    }
    rows("moved-pairs", &["all_gather", "-n", "2", "-e", "4K", "-f", "64", "--dtype", "f64i32"]);
}

#[test]
fn device_memory_is_right_while_it_moves() {
    for collective in ["all_reduce", "reduce_scatter"] {
        let arguments = [collective, "-n", "3", "-b", "64K", "-e", "1M", "-f", "16", "--memory", "device"];
        let rows =
            rows(&format!("moving-{collective}"), &[&arguments[..], &["--moves-per-second", "100"]].concat());
        assert_eq!(rows[0]["memory"], "device");
    }
}

#[test]
fn training_is_right_and_limits_take_turns() {
    for collective in COLLECTIVES {
        if ["barrier", "send"].contains(&collective) {
            continue;
        }
        let arguments = [collective, "-n", "2", "-b", "4K", "-e", "64K", "-f", "16", "--pattern", "training"];
        let rows = rows(&format!("training-{collective}"), &arguments);
        assert_eq!((&rows[0]["pattern"], &rows[0]["memory"]), (&"training".into(), &"mixed".into()));
    }
    let json = Scratch::new("limit");
    let plot = Scratch::new("plot");
    let arguments =
        ["bench", "all_reduce", "-e", "64K", "--limit", "--json", json.path(), "--plot", plot.path()];
    let output = windlass(&arguments).output().unwrap();
    succeeded(&output);
    assert!(text(&output.stdout).contains("ratio"));
    let rows: Value = serde_json::from_str(&std::fs::read_to_string(&json.0).unwrap()).unwrap();
    // The machine may move the cores from one block to the next, so not every size need have both.
    assert!(rows.as_array().unwrap().iter().any(|row| row["limit_us"].as_f64().is_some_and(|us| us > 0.0)));
    let svg = std::fs::read_to_string(&plot.0).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("windlass") && svg.contains("limit"));
}

#[test]
fn all_of_them_make_one_table() {
    let json = Scratch::new("all");
    let arguments = ["bench", "all", "-n", "2", "-e", "4K", "-i", "4", "-w", "1", "--json", json.path()];
    let output = windlass(&arguments).output().unwrap();
    succeeded(&output);
    let rows: Value = serde_json::from_str(&std::fs::read_to_string(&json.0).unwrap()).unwrap();
    let table = text(&output.stdout);
    for collective in COLLECTIVES {
        let of = |row: &&Value| row["collective"] == collective;
        let sizes: Vec<u64> =
            rows.as_array().unwrap().iter().filter(of).map(|row| row["bytes"].as_u64().unwrap()).collect();
        assert_eq!(sizes, if collective == "barrier" { vec![0] } else { vec![8, 4096] }, "{collective}");
        assert!(table.contains(&format!("\n {collective} ")), "{table}");
    }
}

#[test]
fn the_help_and_the_errors_name_every_collective() {
    for command in ["bench", "explain", "simulate"] {
        let help = windlass(&[command, "--help"]).output().unwrap();
        let error = windlass(&[command, "all_redcue", "-n", "2"]).output().unwrap();
        assert_eq!(error.status.code(), Some(2));
        for collective in COLLECTIVES {
            // Only a bench knows what their lengths are.
            let uneven = collective.ends_with("_v") && command != "bench";
            if uneven || (command, collective) == ("simulate", "send") {
                continue;
            }
            for told in [text(&help.stdout), text(&error.stderr)] {
                assert!(
                    told.contains(&format!("{collective},")) || told.contains(&format!(" {collective}")),
                    "{told}"
                );
            }
        }
    }
}

#[test]
fn a_peer_without_the_collective_is_named() {
    let arguments = ["bench", "scan", "-e", "8", "-i", "2", "--compare", "gloo"];
    let output = windlass(&arguments).output().unwrap();
    succeeded(&output);
    assert!(text(&output.stderr).contains("gloo has no scan of f32 by sum"), "{}", text(&output.stderr));
}

#[test]
fn the_overlap_is_told_and_right() {
    let arguments = ["bench", "overlap", "-n", "2", "-e", "1M", "--compute", "500us", "-i", "3"];
    let output = windlass(&arguments).output().unwrap();
    succeeded(&output);
    let told = text(&output.stdout);
    assert!(["issue", "wait after", "blocking"].iter().all(|word| told.contains(word)), "{told}");
}

#[test]
fn what_is_wrong_is_said_before_anything_runs() {
    for (arguments, word) in [
        (&["all_reduce", "-b", "1M", "-e", "8"][..], "-b"),
        (&["all_reduce", "-f", "1"], "--factor"),
        (&["all_reduce", "-b", "8X"], "64K"),
        (&["all_reduce", "-e", "0"], "at least 1"),
        (&["all_reduce", "-e", "99G"], "16G"),
        (&["all_redcue"], "reduce_scatter"),
        (&["recv"], "send"),
        (&["all_reduce", "--dtype", "f23"], "bf16"),
        (&["all_reduce", "--dtype", "complex64", "--op", "max"], "use one of: sum, prod, avg, scaled_sum"),
        (&["reduce_scatter", "--op", "scaled_sum"], "scaled_sum is for all_reduce"),
        (&["all_reduce", "--op", "mean"], "avg"),
        (&["all_reduce", "-i", "0"], "number"),
        (&["all_reduce", "-n", "0"], "--ranks"),
        (&["all_reduce", "-n", "1000"], "--ranks"),
        (&["all_reduce", "--compare", "nccl"], "openmpi"),
        (&["all_reduce", "--json", "/nonexistent/x"], "/nonexistent/x"),
        (&["all_reduce", "--plot", "/nonexistent/x"], "/nonexistent/x"),
        (&["send", "-n", "1"], "send"),
        (&["barrier", "--pattern", "training"], "training"),
        (&["all_reduce", "--tensors", "0"], "100000"),
        (&["send", "--tensors", "3"], "all_gather"),
        (&["all", "--tensors", "3"], "--tensors"),
        (&["scan", "--op", "avg"], "prefixes"),
        (&["reduce", "--root", "2"], "2 ranks"),
        (&["scan", "--root", "1"], "gather"),
        (&["all", "-b", "16", "-e", "1K"], "none of the sizes"),
        (&["all", "--plot", "x.svg"], "name it"),
        (&["all", "--memory", "device"], "name a collective"),
        (&["overlap", "--compute", "5"], "5ms"),
        (&["overlap", "--memory", "device"], "heap"),
        (&["send", "--memory", "device"], "heap"),
        (&["all_reduce", "--memory", "device", "--pattern", "training"], "training"),
        (&["all_reduce", "--moves-per-second", "5"], "device"),
        (&["all_reduce", "--memory", "device", "--moves-per-second", "NaN"], "1000"),
    ] {
        let output = windlass(&["bench"]).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(word), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_rank_that_dies_ends_the_bench() {
    use std::io::{BufRead, BufReader};
    let arguments = ["bench", "all_reduce", "-e", "8", "-i", "1000000000"];
    let mut command = windlass(&arguments);
    let mut bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The header comes when all ranks have joined.
    let mut first = String::new();
    BufReader::new(bench.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    let rank = ranks_below(bench.id()).pop().unwrap();
    // SAFETY: a signal to a process below our own child.
    unsafe { libc::kill(rank, libc::SIGKILL) };
    let output = bench.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("SIGKILL"), "{}", text(&output.stderr));
}

/// The ranks' processes of a launcher.
fn ranks_below(launcher: u32) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let is_rank = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        text(&line).contains("__bench-rank")
    };
    let below = |mut pid: i32| {
        while let Some(above) = parent(pid) {
            if above == launcher as i32 {
                return true;
            }
            pid = above;
        }
        false
    };
    pids.into_iter().filter(|&pid| is_rank(pid) && below(pid)).collect()
}

#[test]
fn explain_marks_what_is_chosen_and_says_why() {
    let told = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = windlass(&["explain"]).args(arguments).envs(variables.iter().copied()).output().unwrap();
        succeeded(&output);
        text(&output.stdout)
    };
    let plain = told(&["all_reduce", "-n", "4", "-b", "1M"], &[]);
    assert!(plain.contains("* direct") && plain.contains("chosen: the cheapest"), "{plain}");
    assert!(plain.contains("more than a slot holds") && plain.contains("publish\n"), "{plain}");
    let forced = told(&["all_reduce", "-n", "4"], &[("WINDLASS_ALGORITHM", "ring")]);
    assert!(forced.contains("* ring") && forced.contains("the configuration asks for it"), "{forced}");
    let tcp = told(&["all_reduce", "--transport", "tcp"], &[]);
    assert!(tcp.contains("needs memory that all ranks map") && !tcp.contains("* direct"), "{tcp}");
    let by_rank = told(&["all_reduce", "-n", "4", "-b", "1M", "--transport", "tcp", "--reproducible"], &[]);
    assert!(
        by_rank.contains("* exchange") && by_rank.contains("reproducible: true (--reproducible)"),
        "{by_rank}"
    );
    assert!(by_rank.contains("adds in an order of its own") && !by_rank.contains("* ring"), "{by_rank}");
    assert!(plain.contains("needs memory that ranks on several NUMA nodes map"), "{plain}");
    let nodes = told(&["all_reduce", "-n", "8", "-b", "16M", "--nodes", "2"], &[]);
    assert!(nodes.contains("on 2 NUMA nodes") && nodes.contains("* hierarchical"), "{nodes}");
    let set = told(&["all_reduce", "-n", "8", "-b", "16M"], &[("WINDLASS_NODES", "0,1,0,1,0,1,0,1")]);
    assert!(set.contains("* hierarchical"), "{set}");
    let over = told(&["all_reduce", "-n", "8", "-b", "16M", "--nodes", "2", "--transport", "tcp"], &[]);
    assert!(!over.contains("* hierarchical") && !over.contains("NUMA nodes\n"), "{over}");
    let by_rank = told(&["all_reduce", "-n", "8", "-b", "16M", "--nodes", "2", "--reproducible"], &[]);
    assert!(by_rank.contains("* direct"), "{by_rank}");
    for wrong in ["0", "9", "0,1", "x"] {
        let refused = windlass(&["explain", "all_reduce", "-n", "8", "--nodes", wrong]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{wrong}");
        assert!(text(&refused.stderr).contains("nodes"), "{}", text(&refused.stderr));
    }
    let refused = windlass(&["explain", "all_reduce", "--reproducible"])
        .env("WINDLASS_ALGORITHM", "ring")
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("exchange"), "{}", text(&refused.stderr));
    for wrong in [&["all_redcue"][..], &["all_reduce", "-b", "2M", "-e", "1M"], &["send", "-n", "1"]] {
        assert_eq!(windlass(&["explain"]).args(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn tune_refuses_a_path_that_it_cannot_write() {
    let output = windlass(&["tune", "-o", "/proc/nowhere/model.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/proc/nowhere/model.toml"));
}
