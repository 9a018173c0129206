//! Which CPUs each rank gets.

use rustix::thread::{CpuSet, sched_getaffinity};

use crate::cli::BindTo;

/// An even share of the launcher's own allowed CPUs for each rank; empty where ranks are not to be bound.
pub(crate) fn shares(bind_to: BindTo, ranks: usize) -> Vec<Vec<usize>> {
    if bind_to == BindTo::None {
        return Vec::new();
    }
    // Fails on hosts with more CPUs than the set holds; the kernel then places the ranks.
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    let mut cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    // Hardware threads of one core become neighbours, so that a share holds whole cores; and cores of one NUMA node.
    let node = |cpu: usize| windlass::numa::node_of_cpu(cpu as u32).unwrap_or(0);
    cpus.sort_by_key(|&cpu| (node(cpu), place(cpu, "physical_package_id"), place(cpu, "core_id"), cpu));
    split(&cpus, ranks, node)
}

fn split(cpus: &[usize], ranks: usize, node: impl Fn(usize) -> u32) -> Vec<Vec<usize>> {
    if ranks == 0 || ranks > cpus.len() && !ranks.is_multiple_of(cpus.len()) {
        // Some CPUs would have more ranks than others: bound, those would wait while the others idle.
        return Vec::new();
    }
    // A rank with cores on two nodes would have its memory on either: each node gets the ranks that its part of the CPUs comes to.
    let nodes: Vec<&[usize]> = cpus.chunk_by(|&a, &b| node(a) == node(b)).collect();
    let mut end = 0;
    let mut last = 0;
    let ranks_of = nodes.iter().map(|cpus_of| {
        end += cpus_of.len();
        let before = std::mem::replace(&mut last, (2 * end * ranks / cpus.len()).div_ceil(2));
        last - before
    });
    let ranks_of: Vec<usize> = ranks_of.collect();
    if ranks_of.contains(&0) {
        return split_evenly(cpus, ranks);
    }
    nodes.iter().zip(ranks_of).flat_map(|(cpus, ranks)| split_evenly(cpus, ranks)).collect()
}

fn split_evenly(cpus: &[usize], ranks: usize) -> Vec<Vec<usize>> {
    // Where every CPU has as many ranks, it keeps them. The kernel leaves ranks that take turns on the CPU where they are, be it that
    // three share one and the fourth has the other to itself.
    let begin = |rank: usize| rank * cpus.len() / ranks;
    (0..ranks).map(|rank| cpus[begin(rank)..begin(rank + 1).max(begin(rank) + 1)].to_vec()).collect()
}

/// A number from the CPU's topology; 0 where the kernel does not tell.
fn place(cpu: usize, what: &str) -> u64 {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/{what}");
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_disjoint_and_cover_every_cpu() {
        let cpus: Vec<usize> = (0..7).map(|cpu| cpu * 3).collect();
        for ranks in 1..=7 {
            let shares = split(&cpus, ranks, |_| 0);
            assert_eq!(shares.concat(), cpus);
            let sizes = shares.iter().map(Vec::len);
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1, "{shares:?}");
        }
    }

    #[test]
    fn an_oversubscribed_host_binds_ranks_where_each_cpu_has_as_many() {
        assert!(split(&[0, 1], 3, |_| 0).is_empty());
        for node in [|_| 0, |cpu: usize| cpu as u32] {
            assert_eq!(split(&[3, 5], 4, node), [[3], [3], [5], [5]]);
        }
        assert_eq!(split(&[7], 3, |_| 0), [[7], [7], [7]]);
        assert!(shares(BindTo::None, 1).is_empty());
    }

    #[test]
    fn no_rank_has_cores_on_two_nodes_where_each_node_has_a_rank() {
        for (cpus, second) in [(8, 4), (8, 2), (7, 3), (96, 48)] {
            let node = |cpu: usize| u32::from(cpu >= second);
            let all: Vec<usize> = (0..cpus).collect();
            for ranks in 1..=cpus {
                let shares = split(&all, ranks, node);
                assert_eq!((shares.len(), shares.concat()), (ranks, all.clone()), "{cpus} {second}");
                let apart = |share: &Vec<usize>| node(share[0]) != node(share[share.len() - 1]);
                let spans = shares.iter().filter(|share| apart(share)).count();
                // With 1 rank, or where its CPUs do not come to half a rank, a node is shared.
                let small = 2 * second.min(cpus - second) * ranks < cpus;
                assert!(spans == 0 || small || ranks == 1, "{ranks} ranks: {shares:?}");
            }
        }
        assert_eq!(split(&[0, 1, 2, 3, 4, 5, 6, 7], 3, |cpu| cpu as u32 / 4).len(), 3);
    }
}
