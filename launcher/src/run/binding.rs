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
    // Hardware threads of one core become neighbours, so that a share holds whole cores.
    cpus.sort_by_key(|&cpu| (place(cpu, "physical_package_id"), place(cpu, "core_id"), cpu));
    split(&cpus, ranks)
}

fn split(cpus: &[usize], ranks: usize) -> Vec<Vec<usize>> {
    if ranks == 0 || ranks > cpus.len() && !ranks.is_multiple_of(cpus.len()) {
        // Some CPUs would have more ranks than others: bound, those would wait while the others idle.
        return Vec::new();
    }
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
            let shares = split(&cpus, ranks);
            assert_eq!(shares.concat(), cpus);
            let sizes = shares.iter().map(Vec::len);
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1, "{shares:?}");
        }
    }

    #[test]
    fn an_oversubscribed_host_binds_ranks_where_each_cpu_has_as_many() {
        assert!(split(&[0, 1], 3).is_empty());
        assert_eq!(split(&[3, 5], 4), [[3], [3], [5], [5]]);
        assert_eq!(split(&[7], 3), [[7], [7], [7]]);
        assert!(shares(BindTo::None, 1).is_empty());
    }
}
