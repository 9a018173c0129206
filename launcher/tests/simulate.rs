//! `windlass simulate` as a user meets it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod command;

use command::{Scratch, succeeded, text, windlass};
use serde_json::Value;

/// What a run prints, and its JSON.
fn simulate(name: &str, arguments: &[&str]) -> (String, Value) {
    let json = Scratch::new(name);
    let output = windlass(&["simulate"]).args(arguments).args(["--json", json.path()]).output().unwrap();
    succeeded(&output);
    let found = serde_json::from_str(&std::fs::read_to_string(&json.0).unwrap()).unwrap();
    (text(&output.stdout), found)
}

const COLLECTIVES: [&str; 11] = [
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "barrier",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
    "scan",
    "exscan",
];

fn refused(arguments: &[&str], code: i32, why: &str) {
    let output = windlass(&["simulate"]).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
    assert!(text(&output.stderr).contains(why), "{arguments:?}: {}", text(&output.stderr));
}

#[test]
fn every_collective_is_right_and_no_algorithm_beats_the_bounds() {
    for collective in COLLECTIVES {
        let (table, json) = simulate(collective, &[collective, "--ranks", "48", "--bytes", "96K"]);
        assert!(table.contains("on every rank") || table.contains("no rank left before"), "{table}");
        let rows = json["rows"].as_array().unwrap();
        assert!(rows.iter().any(|row| row["ranks"] == 48) && rows.iter().any(|row| row["ranks"] == 2));
        for row in rows {
            let number = |field: &str| row[field].as_f64().unwrap();
            assert!(number("time_us") * 1.000_001 >= number("bound_us"), "{row}");
            assert!(number("link_bytes_max") >= number("link_bytes_mean"), "{row}");
            assert!(number("messages") > 0.0 && number("links") > 0.0, "{row}");
            assert!(collective == "barrier" || number("checked") > 0.0, "{row}");
        }
    }
}

#[test]
fn the_numbers_are_those_of_the_formula() {
    // A ring of 8 ranks: 14 rounds of 2 µs and 1 MiB/8 at 1 GB/s, 7 reductions of 0.08 ns a byte.
    let arguments = ["all_reduce", "-n", "8", "-b", "1M", "--algorithm", "ring", "--latency", "2000"];
    let (_, json) = simulate("formula", &[&arguments[..], &["--bandwidth", "1", "--chunk", "1M"]].concat());
    let row = json["rows"].as_array().unwrap().iter().find(|row| row["ranks"] == 8).unwrap();
    let block = f64::from(1 << 17);
    let expected = 14.0 * (2.0 + block / 1e3) + 7.0 * block * 0.08 / 1e3;
    let time = row["time_us"].as_f64().unwrap();
    assert!((time / expected - 1.0).abs() < 1e-6, "{time} {expected}");
    assert_eq!(row["messages"], 14 * 8);
    assert_eq!(row["link_bytes_max"], 14 << 17);
}

#[test]
fn a_seed_gives_one_output_and_the_drawing_has_the_bounds() {
    let plot = Scratch::new("plot.svg");
    let arguments = ["barrier", "-n", "100", "--seed", "7", "--plot", plot.path()];
    let first = simulate("seed", &arguments);
    assert_eq!(first, simulate("seed", &arguments));
    let drawn = std::fs::read_to_string(&plot.0).unwrap();
    assert!(drawn.contains("<svg") && drawn.contains("latency bound") && drawn.contains("dissemination"));
}

#[test]
fn mapped_ranks_may_use_shared_memory_and_others_not() {
    let names = |found: &Value| {
        let rows = found["rows"].as_array().unwrap().clone();
        rows.into_iter().map(|row| row["algorithm"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let apart = names(&simulate("apart", &["all_reduce", "-n", "8", "-b", "4K"]).1);
    let mapped = names(&simulate("mapped", &["all_reduce", "-n", "8", "-b", "4K", "--mapped"]).1);
    assert!(!apart.iter().any(|name| name == "publish" || name == "direct"), "{apart:?}");
    assert!(mapped.iter().any(|name| name == "publish"), "{mapped:?}");
    assert!(mapped.iter().any(|name| name == "direct"), "{mapped:?}");
}

#[test]
fn everybody_hears_of_a_loss() {
    let (table, json) = simulate("losses", &["all_reduce", "-n", "16", "-b", "256K", "--losses", "2"]);
    let losses = &json["losses"];
    let number = |field: &str| losses[field].as_u64().unwrap();
    assert_eq!(losses["lost"].as_array().unwrap().len(), 2);
    assert_eq!((number("ended_well") + number("ended_with_error"), number("not_ended")), (14, 0), "{losses}");
    assert!(number("ended_with_error") > 0 && losses["all_knew_us"].as_f64().unwrap() < 1e6, "{losses}");
    assert!(table.contains("was killed by signal 9"), "{table}");
    // Device memory that moves meanwhile changes nothing.
    let (table, json) = simulate("moves", &["all_reduce", "-n", "16", "-b", "256K", "--moves", "40"]);
    let moved = &json["losses"]["moves"];
    assert!(table.contains("device memory:"), "{table}");
    assert_eq!((moved["wrong"].as_u64(), moved["checked"].as_u64()), (Some(0), Some(16 << 16)), "{moved}");
    assert!(moved["made"].as_u64() > Some(10) && moved["longest_pause_us"].as_f64() < Some(1e4), "{moved}");

    // The same without a loss is right on all ranks, so that the errors above are those of the losses.
    assert_eq!(simulate("no-losses", &["all_reduce", "-n", "16", "-b", "256K"]).1["losses"], Value::Null);
}

#[test]
fn one_rank_and_odd_numbers_of_them_are_simulated_too() {
    for collective in COLLECTIVES {
        for ranks in ["1", "3", "13"] {
            let (_, json) = simulate(&format!("{collective}-{ranks}"), &[collective, "-n", ranks, "-b", "1"]);
            let rows = json["rows"].as_array().unwrap();
            assert!(
                rows.iter().any(|row| row["ranks"].as_u64() == ranks.parse().ok()),
                "{collective} {ranks}"
            );
        }
        let losses = format!("{collective}-lost");
        let (_, json) = simulate(&losses, &[collective, "-n", "5", "-b", "1K", "--losses", "1"]);
        assert_eq!(json["losses"]["not_ended"], 0, "{collective}: {}", json["losses"]);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    refused(&["send", "-n", "2"], 2, "between two ranks");
    refused(&["all_reduce", "-n", "2000", "--mapped"], 2, "at most 1024 ranks");
    refused(&["all_reduce", "-n", "8", "--algorithm", "binomial-tree"], 2, "ring");
    refused(&["all_reduce", "-n", "4", "--losses", "4"], 2, "leaves none");
    refused(&["broadcast", "-n", "4", "--moves", "4"], 2, "knows how to");
    refused(&["all_reduce", "-n", "4", "--bandwidth", "0"], 2, "above 0");
    refused(&["all_reduce", "-n", "4", "--json", "/nowhere/x.json"], 2, "cannot be written");
    refused(&["all_reduce"], 2, "--ranks");
}
