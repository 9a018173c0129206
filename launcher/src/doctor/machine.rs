//! What the build, the host, the settings and shared memory mean.

use windlass::diagnosis::{Build, Host, Limit, Settings, Sharing};

use super::report::Finding;

/// Ranks with TCP need two descriptors a peer, and programs have files of their own.
const FEW_FILES: u64 = 256;
const ENOUGH_FILES: u64 = 4096;

/// What containers get of /dev/shm when nobody asks: data loaders need more.
const SMALL_SHM_BYTES: u64 = 64 << 20;

pub(super) fn build(build: &Build) -> Vec<Finding> {
    let with = if build.rdma { "with" } else { "without" };
    let mut found = vec![Finding::ok(
        "build.version",
        format!("windlass {} for {}, {with} RDMA", build.version, build.machine),
    )];
    if build.debug {
        found.push(Finding::note(
            "build.debug",
            "built without optimisation: everything is several times as slow",
            &["cargo build --release"],
        ));
    }
    if build.planted_fault {
        found.push(Finding::problem(
            "build.planted_fault",
            "built with a fault for a test: results can be wrong when WINDLASS_PLANT_SKIP_COMBINE is set",
            &["build without the feature planted-fault"],
        ));
    }
    found
}

pub(super) fn host(host: &Host) -> Vec<Finding> {
    let mut found = vec![Finding::ok("host.kernel", format!("Linux {}", host.kernel))];
    found.push(cores(host));
    if let Some(quota) = host.quota_cores.filter(|quota| *quota < host.usable_cores as f64) {
        found.push(Finding::note(
            "host.quota",
            format!("the control group grants the time of {quota:.1} cores: more ranks than that stand still now and then"),
            &["start no more ranks, or raise cpu.max of the control group (docker run --cpus, resources.limits.cpu)"],
        ));
    }
    let nodes: Vec<String> = host
        .numa
        .iter()
        .map(|n| format!("node {}: cores {}, {}", n.node, n.cores, size(n.memory_bytes)))
        .collect();
    if !nodes.is_empty() {
        found.push(Finding::ok("host.numa", format!("memory in {}", nodes.join("; "))));
    }
    found.push(Finding::ok(
        "host.memory",
        format!("{} of {} memory are available", size(host.available_bytes), size(host.memory_bytes)),
    ));
    found.push(huge_pages(host));
    found.push(shm(host));
    found.push(open_files(host.open_files));
    found.push(Finding::ok(
        "host.locked_memory",
        format!("locked memory: {}", limit(host.locked_memory, size)),
    ));
    found.push(scheduler(host));
    found
}

fn cores(host: &Host) -> Finding {
    let (usable, all) = (host.usable_cores, host.cores);
    let text =
        if usable < all { format!("{usable} of {all} cores may be used") } else { format!("{all} cores") };
    if usable > 1 {
        return Finding::ok("host.cores", text);
    }
    Finding::note("host.cores", format!("{text}: ranks of this host wait for each other's time slices"), &[])
}

fn huge_pages(host: &Host) -> Finding {
    let reserved: Vec<String> = host
        .huge_pages
        .iter()
        .filter(|pool| pool.pages > 0)
        .map(|pool| {
            format!("{} of {} pages of {} are free", pool.free_pages, pool.pages, size(pool.page_bytes))
        })
        .collect();
    let reserved = if reserved.is_empty() { "none reserved".to_owned() } else { reserved.join(", ") };
    let of = "host.huge_pages";
    match host.shmem_huge.as_deref() {
        Some(word @ ("never" | "deny")) => Finding::note(
            of,
            format!(
                "huge pages: {reserved}; transparent ones for shared memory: {word}, so buffers are of small pages"
            ),
            &["echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled"],
        ),
        Some(word) => {
            Finding::ok(of, format!("huge pages: {reserved}; transparent ones for shared memory: {word}"))
        }
        None => Finding::ok(of, format!("huge pages: {reserved}")),
    }
}

fn shm(host: &Host) -> Finding {
    let Some(shm) = &host.shm else {
        return Finding::note(
            "host.shm",
            "/dev/shm is not mounted: windlass does not need it, but data loaders and other libraries do",
            &["sudo mount -t tmpfs shm /dev/shm"],
        );
    };
    let text = format!("/dev/shm: {} of {} are free", size(shm.free_bytes), size(shm.bytes));
    if shm.bytes > SMALL_SHM_BYTES {
        return Finding::ok("host.shm", text);
    }
    Finding::note(
        "host.shm",
        format!("{text}: windlass does not need it, but data loaders and other libraries do"),
        &["docker run --shm-size=1g, or a volume with emptyDir: {medium: Memory} at /dev/shm"],
    )
}

fn open_files(files: Limit) -> Finding {
    let text = format!("open files: {}", limit(files, |n| n.to_string()));
    let fix = match files.hard {
        Some(hard) if hard < ENOUGH_FILES => "raise the hard limit: `* - nofile 65536` in /etc/security/limits.conf, or docker run --ulimit nofile=65536".to_owned(),
        Some(hard) => format!("ulimit -n {}", hard.min(65536)),
        None => "ulimit -n 65536".to_owned(),
    };
    match files.soft {
        Some(soft) if soft < FEW_FILES => {
            Finding::problem("host.open_files", format!("{text}: too few for a job of any size"), &[&fix])
        }
        Some(soft) if soft < ENOUGH_FILES => Finding::note(
            "host.open_files",
            format!("{text}: a rank needs two for each peer that it reaches by TCP"),
            &[&fix],
        ),
        _ => Finding::ok("host.open_files", text),
    }
}

fn scheduler(host: &Host) -> Finding {
    let about = &host.scheduler;
    let slices = if about.has_slices {
        "short time slices for threads that serve"
    } else {
        "no short time slices (before Linux 6.12)"
    };
    let text = format!("scheduled as {}, nice {}; {slices}", about.policy, about.nice);
    if matches!(about.policy.as_str(), "batch" | "idle") {
        return Finding::note(
            "host.scheduler",
            format!("{text}: ranks that are woken wait for others' time slices"),
            &["chrt --other 0 windlass run …"],
        );
    }
    Finding::ok("host.scheduler", text)
}

pub(super) fn settings(settings: &Settings) -> Vec<Finding> {
    if let Some(error) = &settings.error {
        return vec![Finding::problem("settings.error", error.clone(), &["correct it, or leave it out"])];
    }
    let width = settings.values.iter().map(|s| s.key.len()).max().unwrap_or(0);
    let line = |s: &windlass::diagnosis::Setting| {
        Finding::ok("settings.value", format!("{:<width$} {} ({})", s.key, s.value, s.origin))
    };
    settings.values.iter().map(line).collect()
}

pub(super) fn sharing(sharing: &Sharing) -> Vec<Finding> {
    let mut found = Vec::new();
    match &sharing.segment_error {
        Some(error) => found.push(Finding::problem(
            "sharing.segment",
            format!("ranks of this host cannot share memory: {error}"),
            &[],
        )),
        None => found.push(Finding::ok("sharing.segment", "memory is made, sealed, and mapped twice")),
    }
    match sharing.wake_us {
        // The figure differs each time, so it is among the facts.
        Some(_) => found.push(Finding::ok("sharing.futex", "a thread that sleeps on a word in it is woken through the other mapping")),
        None if sharing.segment_error.is_some() => {}
        None => found.push(Finding::problem(
            "sharing.futex",
            "a thread that sleeps on a word in shared memory is not woken: ranks of this host would wait for ever",
            &["let the sandbox permit futex(2) on shared memory, or use --transport tcp"],
        )),
    }
    match &sharing.pidfd_error {
        None => found.push(Finding::ok("sharing.pidfd", "the death of a process is known at once (pidfd)")),
        Some(error) => found.push(Finding::note(
            "sharing.pidfd",
            format!("whether a silent process is dead is not known for certain: {error}"),
            &["Linux 5.4 or later is needed, and a sandbox must permit pidfd_open(2)"],
        )),
    }
    found
}

/// As people write it.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() < 0.05 || unit == 0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

fn limit(limit: Limit, show: impl Fn(u64) -> String) -> String {
    let shown = |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), &show);
    match (limit.soft, limit.hard) {
        (soft, hard) if soft == hard => shown(soft),
        (soft, hard) => format!("{}, which a process may raise to {}", shown(soft), shown(hard)),
    }
}
