//! The choice contradicts itself nowhere: what does less is not predicted to take longer than what does more, nor a collective than others
//! that would have the same effect (performance guidelines: Träff, Gropp and Thakur, "Self-consistent MPI performance requirements", 2010).
//!
//! Of the shipped constants, and of links ten times quicker and slower, for all sizes and numbers of ranks: with memory that ranks map, on a core for each
//! and where they share cores, on one NUMA node and on several, and over messages. What does not hold is in `guidelines.txt`, for all to see: a gap that closes or opens
//! changes that file. `UPDATE=1 cargo test -p windlass-collectives --test guidelines` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use windlass_collectives::{Call, Collective, Model, Nodes, Policy, Topology};
use windlass_kernels::{DataType, ReduceOp};

use Collective as C;

/// On the left what must not take longer than the parts on the right, one after the other.
const GUIDELINES: &[(Collective, &[Collective])] = &[
    (C::AllReduce, &[C::Reduce, C::Broadcast]),
    (C::AllReduce, &[C::ReduceScatter, C::AllGather]),
    (C::AllGather, &[C::Gather, C::Broadcast]),
    (C::AllGather, &[C::AllToAll]),
    (C::ReduceScatter, &[C::AllReduce]),
    (C::ReduceScatter, &[C::Reduce, C::Scatter]),
    (C::Broadcast, &[C::Scatter, C::AllGather]),
    (C::Reduce, &[C::AllReduce]),
    (C::Reduce, &[C::ReduceScatter, C::Gather]),
    (C::Gather, &[C::AllGather]),
    (C::Scatter, &[C::Broadcast]),
    (C::Scatter, &[C::AllToAll]),
    (C::ExScan, &[C::Scan]),
    (C::Barrier, &[C::AllReduce]),
];

/// What a copy out of the larger result would take, which the one that does less saves: a difference below is none.
const TOLERANCE: f64 = 1.001;

const RANKS: [u32; 20] = [2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 24, 31, 32, 33, 64, 100, 128, 256, 1024];

/// The bytes of the whole vector, `share` of which each rank has where it is of blocks.
fn call(collective: Collective, share: u64, ranks: u32) -> Call {
    let elements = share / 4;
    let count = match collective {
        C::Barrier => 0,
        _ if collective.has_blocks() => elements,
        _ => elements * u64::from(ranks),
    };
    Call { collective, data_type: DataType::F32, op: ReduceOp::Sum, count, root: 0 }
}

/// A class of links, by name.
fn classes(ranks: u32) -> Vec<(&'static str, Model, Topology)> {
    let shipped = Model::default();
    let quick = Model { flag_ns: shipped.flag_ns / 10.0, message_ns: shipped.message_ns / 10.0, ..shipped };
    let wide = Model {
        cached_byte_ns: shipped.cached_byte_ns / 10.0,
        message_byte_ns: shipped.message_byte_ns / 10.0,
        ..shipped
    };
    let near = Model {
        node_flag_ns: shipped.node_flag_ns / 10.0,
        node_byte_ns: shipped.node_byte_ns / 10.0,
        ..shipped
    };
    let far = Model {
        node_flag_ns: shipped.node_flag_ns * 10.0,
        node_byte_ns: shipped.node_byte_ns * 10.0,
        ..shipped
    };
    let narrow = Model {
        cached_byte_ns: shipped.cached_byte_ns * 10.0,
        message_byte_ns: shipped.message_byte_ns * 10.0,
        ..shipped
    };
    let mut classes = Vec::new();
    for (name, mapped, cores) in
        [("mapped", true, ranks), ("mapped, shared cores", true, 2), ("messages", false, ranks)]
    {
        for model in [shipped, quick, wide, narrow] {
            classes.push((name, model, Topology { ranks, mapped, cores, nodes: None }));
        }
    }
    let maps: [(_, &dyn Fn(u32) -> u32); 4] = [
        ("mapped, two nodes", &|rank| rank * 2 / ranks),
        ("mapped, four nodes", &|rank| rank * 4 / ranks),
        ("mapped, uneven nodes", &|rank| u32::from(rank > ranks / 4)),
        ("mapped, a node for each rank", &|rank| rank),
    ];
    for (name, node) in maps {
        let map: Vec<u32> = (0..ranks).map(node).collect();
        let nodes = Some(Arc::new(Nodes::of(&map))).filter(|nodes| nodes.count() > 1);
        for model in [shipped, quick, wide, narrow, near, far] {
            classes.push((name, model, Topology { ranks, mapped: true, cores: ranks, nodes: nodes.clone() }));
        }
    }
    classes
}

/// What the chosen algorithm is predicted to take.
fn predicted(model: &Model, topology: &Topology, call: &Call) -> f64 {
    let choice = model.choose(call, topology, Policy::default()).expect("every collective has a choice");
    choice.predicted_ns
}

/// The guidelines that do not hold, each with the fewest ranks and the share of a rank at which that begins, and by how much at worst.
fn violations(guidelines: &[(Collective, &[Collective])]) -> BTreeMap<String, (u32, u64, f64)> {
    let mut found = BTreeMap::new();
    for ranks in RANKS {
        for (class, model, topology) in classes(ranks) {
            for share in (2..=30).map(|shift| 1u64 << shift) {
                let time =
                    |collective: &Collective| predicted(&model, &topology, &call(*collective, share, ranks));
                for (one, others) in guidelines {
                    let (time, allowed) = (time(one), others.iter().map(time).sum::<f64>());
                    if time <= allowed * TOLERANCE {
                        continue;
                    }
                    let names: Vec<_> = others.iter().map(|c| c.name()).collect();
                    let name = format!("{class}: {one} <= {}", names.join(" + "));
                    let worst: &mut (u32, u64, f64) = found.entry(name).or_insert((ranks, share, 1.0));
                    worst.2 = worst.2.max(time / allowed);
                }
            }
        }
    }
    found
}

fn text(violations: &BTreeMap<String, (u32, u64, f64)>) -> String {
    let mut text = String::new();
    for (name, (ranks, share, worst)) in violations {
        writeln!(text, "{name}: from {ranks} ranks and {share} bytes of each on, {worst:.1} times at worst")
            .expect("a string takes everything");
    }
    text
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may be told to rewrite what it compares with")]
fn the_choice_keeps_the_guidelines_but_for_known_gaps() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guidelines.txt");
    let found = text(&violations(GUIDELINES));
    if std::env::var("UPDATE").is_ok() {
        std::fs::write(&path, &found).expect("the folder of the tests can be written");
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, known, "run with UPDATE=1 and review the change");
}

/// Where ranks of one NUMA node map each other's memory there is no gap before looking at all their lines takes as long as a message.
#[test]
fn mapped_ranks_have_no_gaps() {
    let mut gaps = violations(GUIDELINES);
    gaps.retain(|name, (ranks, ..)| {
        (name.starts_with("mapped:") || name.starts_with("mapped, shared")) && *ranks <= 128
    });
    assert!(gaps.is_empty(), "{gaps:#?}");
}

/// A guideline that cannot hold is seen not to.
#[test]
fn a_guideline_that_is_none_is_caught() {
    let impossible: &[(Collective, &[Collective])] =
        &[(C::AllToAll, &[C::Barrier]), (C::AllReduce, &[C::Barrier])];
    let found = violations(impossible);
    for class in ["mapped", "mapped, shared cores", "messages"] {
        for (one, _) in impossible {
            assert!(found.contains_key(&format!("{class}: {one} <= barrier")), "{found:?}");
        }
    }
}

/// More bytes are never predicted to take less.
#[test]
fn more_takes_no_less() {
    for ranks in RANKS {
        for (class, model, topology) in classes(ranks) {
            for &collective in Collective::ALL.iter().filter(|c| !c.is_uneven() && **c != C::Barrier) {
                let times =
                    (2..=32).map(|shift| predicted(&model, &topology, &call(collective, 1 << shift, ranks)));
                let times: Vec<_> = times.collect();
                assert!(times.is_sorted(), "{class}, {collective} on {ranks} ranks: {times:?}");
            }
        }
    }
}
