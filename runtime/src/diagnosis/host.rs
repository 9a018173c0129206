//! The machine: cores, memory, limits.

use std::fs::{read_dir, read_to_string};
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

/// The machine, or what this container sees of it.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// Cores that are switched on.
    pub cores: usize,
    /// Those of them that this process may use.
    pub usable_cores: usize,
    /// How much time on cores its control group grants, in cores; `None` when that is not limited.
    pub quota_cores: Option<f64>,
    /// The nodes of memory.
    pub numa: Vec<NumaNode>,
    /// All memory.
    pub memory_bytes: u64,
    /// What programs can still have of it.
    pub available_bytes: u64,
    /// The pools of huge pages.
    pub huge_pages: Vec<HugePages>,
    /// Whether shared memory gets transparent huge pages: the kernel's word.
    pub shmem_huge: Option<String>,
    /// `/dev/shm`.
    pub shm: Option<FileSystem>,
    /// `RLIMIT_NOFILE`.
    pub open_files: Limit,
    /// `RLIMIT_MEMLOCK`.
    pub locked_memory: Limit,
    /// Whether this process may lock memory beyond that limit (`CAP_IPC_LOCK`).
    pub may_lock: bool,
    /// How this process is scheduled.
    pub scheduler: Scheduler,
}

/// A node of memory.
#[derive(Clone, Debug, Serialize)]
pub struct NumaNode {
    /// Its number.
    pub node: u32,
    /// Its cores, as the kernel lists them.
    pub cores: String,
    /// Its memory.
    pub memory_bytes: u64,
}

/// A pool of huge pages.
#[derive(Clone, Debug, Serialize)]
pub struct HugePages {
    /// Of pages of this size.
    pub page_bytes: u64,
    /// How many there are.
    pub pages: u64,
    /// How many nobody uses.
    pub free_pages: u64,
}

/// A file system.
#[derive(Clone, Debug, Serialize)]
pub struct FileSystem {
    /// Its size.
    pub bytes: u64,
    /// What is free of it.
    pub free_bytes: u64,
}

/// A limit of this process.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limit {
    /// What counts; `None`: unlimited.
    pub soft: Option<u64>,
    /// Up to where it may raise that itself.
    pub hard: Option<u64>,
}

/// How this process is scheduled.
#[derive(Clone, Debug, Serialize)]
pub struct Scheduler {
    /// `other`, `batch`, `idle`, `fifo`, `rr`, `deadline`, or `ext`.
    pub policy: String,
    /// Its nice value.
    pub nice: i32,
    /// Whether the kernel lets a thread ask for a short time slice (6.12 and later): then those that others wait for are given a core at once.
    pub has_slices: bool,
}

fn limit(resource: Resource) -> Limit {
    let limit = getrlimit(resource);
    Limit { soft: limit.current, hard: limit.maximum }
}

fn line(path: impl AsRef<Path>) -> Option<String> {
    read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: impl AsRef<Path>) -> Option<u64> {
    line(path)?.parse().ok()
}

impl Host {
    pub(super) fn gather() -> Self {
        let meminfo = read_to_string("/proc/meminfo").unwrap_or_default();
        let online = line("/sys/devices/system/cpu/online").and_then(|list| count(&list));
        let usable = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count() as usize);
        Self {
            kernel: line("/proc/sys/kernel/osrelease").unwrap_or_default(),
            cores: online.unwrap_or(usable),
            usable_cores: usable,
            quota_cores: quota(),
            numa: numa(Path::new("/sys/devices/system/node")),
            memory_bytes: kilobytes(&meminfo, "MemTotal:").unwrap_or(0),
            available_bytes: kilobytes(&meminfo, "MemAvailable:").unwrap_or(0),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            shmem_huge: line("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
                .and_then(|text| chosen(&text)),
            shm: rustix::fs::statvfs("/dev/shm").ok().map(|about| FileSystem {
                bytes: about.f_blocks * about.f_frsize,
                free_bytes: about.f_bavail * about.f_frsize,
            }),
            open_files: limit(Resource::Nofile),
            locked_memory: limit(Resource::Memlock),
            may_lock: may_lock(&read_to_string("/proc/self/status").unwrap_or_default()),
            scheduler: scheduler(),
        }
    }
}

/// How many numbers a list such as `0-3,8` has.
fn count(list: &str) -> Option<usize> {
    let mut sum = 0;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        sum += last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1;
    }
    Some(sum)
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.split_once(key).map(|(_, rest)| rest))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|k| k * 1024)
}

/// `cpu.max` of this process's control group (v2).
fn quota() -> Option<f64> {
    let own = read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?;
    let text = line(format!("/sys/fs/cgroup{path}/cpu.max"))?;
    let (quota, period) = text.split_once(' ')?;
    Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
}

fn numa(folder: &Path) -> Vec<NumaNode> {
    let entries = read_dir(folder).into_iter().flatten().flatten();
    let mut nodes: Vec<NumaNode> = entries
        .filter_map(|entry| {
            let node = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let memory = read_to_string(entry.path().join("meminfo")).unwrap_or_default();
            Some(NumaNode {
                node,
                cores: line(entry.path().join("cpulist")).unwrap_or_default(),
                memory_bytes: kilobytes(&memory, "MemTotal:").unwrap_or(0),
            })
        })
        .collect();
    nodes.sort_by_key(|node| node.node);
    nodes
}

fn huge_pages(folder: &Path) -> Vec<HugePages> {
    let entries = read_dir(folder).into_iter().flatten().flatten();
    let mut pools: Vec<HugePages> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let kilobytes: u64 =
                name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(HugePages {
                page_bytes: kilobytes * 1024,
                pages: number(entry.path().join("nr_hugepages"))?,
                free_pages: number(entry.path().join("free_hugepages"))?,
            })
        })
        .collect();
    pools.sort_by_key(|pool| pool.page_bytes);
    pools
}

/// From `/proc/self/status`: bit 14 of the effective capabilities.
fn may_lock(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits & 1 << 14 != 0)
}

fn scheduler() -> Scheduler {
    // SAFETY: made of integers, for which zero is a value.
    let mut now: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: a plain call for the calling thread; it writes no more than the size that it is told.
    let got =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut now, size_of::<libc::sched_attr>(), 0) };
    let policy = match (got, now.sched_policy) {
        (0, 0) => "other".to_owned(),
        (0, 1) => "fifo".to_owned(),
        (0, 2) => "rr".to_owned(),
        (0, 3) => "batch".to_owned(),
        (0, 5) => "idle".to_owned(),
        (0, 6) => "deadline".to_owned(),
        (0, 7) => "ext".to_owned(),
        _ => "unknown".to_owned(),
    };
    // Since 6.12 the kernel tells an ordinary thread's slice, too.
    Scheduler { policy, nice: now.sched_nice, has_slices: got == 0 && now.sched_runtime > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        assert_eq!((count("0-3,8"), count("0"), count("x"), count("3-1")), (Some(5), Some(1), None, None));
        assert_eq!(chosen("always within_size [advise] never").as_deref(), Some("advise"));
        assert_eq!(chosen("never"), None);
        assert_eq!(kilobytes("Node 0 MemTotal:  12 kB\n", "MemTotal:"), Some(12 << 10));
        assert!(
            may_lock("CapEff:\t0000000000004000\n")
                && !may_lock("CapEff:\t0000000000003fff\n")
                && !may_lock("")
        );
    }

    #[test]
    fn this_machine_is_described() {
        let host = Host::gather();
        assert!(host.usable_cores >= 1 && host.cores >= 1, "{host:?}");
        assert!(host.memory_bytes > host.available_bytes && host.available_bytes > 0, "{host:?}");
        assert!(!host.kernel.is_empty() && host.scheduler.policy != "unknown", "{host:?}");
        assert!(host.open_files.soft.is_none_or(|soft| soft > 2), "{host:?}");
    }
}
