//! The results: a table for people, JSON for programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use windlass::Collective;

use super::Plan;

/// One size's result, as the JSON has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) collective: String,
    pub(crate) ranks: usize,
    pub(crate) bytes: u64,
    pub(crate) count: usize,
    pub(crate) dtype: String,
    pub(crate) op: String,
    pub(crate) transport: String,
    pub(crate) memory: String,
    pub(crate) iterations: usize,
    pub(crate) min_us: f64,
    pub(crate) median_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) algbw_gbps: f64,
    pub(crate) busbw_gbps: f64,
    pub(crate) wrong: u64,
    pub(crate) label: String,
    pub(crate) pattern: String,
    /// Of the same over a list of so many buffers.
    pub(crate) tensors: Option<usize>,
    pub(crate) tensors_us: Option<f64>,
    /// Of the limit that this memory and transport has; of heap memory where ranks differ.
    pub(crate) limit_us: Option<f64>,
    /// Medians by name.
    pub(crate) peers: BTreeMap<String, Option<f64>>,
}

/// nccl-tests' factor between the algorithm's and the bus's bandwidth. It has none for prefixes, in which all bytes pass
/// from rank to rank once, as in a broadcast.
pub(super) fn bus_factor(collective: Collective, ranks: usize) -> f64 {
    let n = ranks as f64;
    match collective {
        Collective::AllReduce => 2.0 * (n - 1.0) / n,
        // A rank's own block does not travel.
        _ if collective.has_blocks() => (n - 1.0) / n,
        _ => 1.0,
    }
}

/// What heads the table.
pub(super) fn header(plan: &Plan, transport: &str) -> String {
    let memory = plan.memory_name();
    let mut text = format!(
        "# windlass bench {}: {} ranks, {transport}, {memory} memory, pattern {}; every element of every iteration is \
         checked",
        plan.name(),
        plan.ranks,
        plan.pattern_name(),
    );
    text.push_str(&format!(
        "\n#\n#{}{:>11} {:>11} {:>5} {:>5}  {:>10} {:>8} {:>8} {:>10} {:>10} {:>7}  {:<9}",
        plan.several(|| "collective"),
        "size",
        "count",
        "type",
        "redop",
        "time",
        "algbw",
        "busbw",
        "min",
        "p99",
        "#wrong",
        "label"
    ));
    if let Some(tensors) = plan.tensors {
        let title = format!("{tensors} bufs");
        text.push_str(&format!(" {title:>10} {:>6}", "ratio"));
    }
    for kind in &plan.limits {
        let title = if plan.limits.len() > 1 { kind.name() } else { "limit" };
        text.push_str(&format!(" {title:>10} {:>6}", "ratio"));
    }
    for peer in &plan.peers {
        text.push_str(&format!(" {peer:>10} {:>6}", "×"));
    }
    text.push_str(&format!(
        "\n#{}{:>11} {:>11} {:>5} {:>5}  {:>10} {:>8} {:>8} {:>10} {:>10} {:>7}  {:<9}",
        plan.several(|| ""),
        "(B)",
        "(elements)",
        "",
        "",
        "(us)",
        "(GB/s)",
        "(GB/s)",
        "(us)",
        "(us)",
        "",
        ""
    ));
    for _ in 0..plan.tensors.iter().len() + plan.limits.len() + plan.peers.len() {
        text.push_str(&format!(" {:>10} {:>6}", "(us)", ""));
    }
    text.trim_end().to_owned()
}

/// Three significant digits or more, so that neither 0.13 nor 65000 loses what counts.
fn us(value: f64) -> String {
    let decimals = if value < 10.0 {
        3
    } else if value < 1000.0 {
        2
    } else {
        1
    };
    format!("{value:.decimals$}")
}

/// Medians of what windlass took turns with, in the order of the columns.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) limits: Vec<Option<f64>>,
    pub(super) peers: Vec<Option<PeerTime>>,
}

/// A peer's median.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerTime {
    pub(super) us: f64,
    /// Whether its samples have the label of windlass's; else it is of all of them, and marked.
    pub(super) same_label: bool,
}

/// One line of the table.
pub(super) fn line(plan: &Plan, row: &Row, comparison: &Comparison) -> String {
    let mut text = format!(
        " {}{:>11} {:>11} {:>5} {:>5}  {:>10} {:>8.3} {:>8.3} {:>10} {:>10} {:>7}  {:<9}",
        plan.several(|| &row.collective),
        row.bytes,
        row.count,
        row.dtype,
        row.op,
        us(row.median_us),
        row.algbw_gbps,
        row.busbw_gbps,
        us(row.min_us),
        us(row.p99_us),
        row.wrong,
        row.label
    );
    let none = || ("-".to_owned(), "-".to_owned());
    let mut pair = |(time, ratio): (String, String)| text.push_str(&format!(" {time:>10} {ratio:>6}"));
    if plan.tensors.is_some() {
        let list = row.tensors_us;
        pair(list.map_or_else(none, |list| (us(list), format!("{:.2}", list / row.median_us))));
    }
    for &limit in &comparison.limits {
        pair(limit.map_or_else(none, |limit| (us(limit), format!("{:.2}", row.median_us / limit))));
    }
    for peer in &comparison.peers {
        let told = |peer: PeerTime| {
            let mark = if peer.same_label { "" } else { "~" };
            (us(peer.us), format!("{mark}{:.2}", peer.us / row.median_us))
        };
        pair(peer.map_or_else(none, told));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_nccl_tests() {
        use Collective as C;
        assert_eq!(bus_factor(C::AllReduce, 4), 1.5);
        for blocks in [C::ReduceScatter, C::AllGather, C::AllToAll, C::Gather, C::Scatter] {
            assert_eq!(bus_factor(blocks, 4), 0.75, "{blocks}");
        }
        for whole in [C::Broadcast, C::Reduce, C::Send, C::Scan, C::ExScan] {
            assert_eq!(bus_factor(whole, 4), 1.0, "{whole}");
        }
    }

    #[test]
    fn times_keep_their_digits() {
        assert_eq!([0.1312, 12.345, 65_000.04].map(us), ["0.131", "12.35", "65000.0"]);
    }
}
