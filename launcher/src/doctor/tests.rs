//! The judgement about machines that are not here. `UPDATE=1 cargo test -p windlass-launcher doctor` writes what is told anew.

use std::path::Path;

use windlass::diagnosis::*;

use super::judge;
use super::report::Level;

const GIB: u64 = 1 << 30;

fn limit(soft: Option<u64>, hard: Option<u64>) -> Limit {
    Limit { soft, hard }
}

fn setting(key: &str, value: &str, origin: &str) -> Setting {
    Setting { key: key.into(), value: value.into(), origin: origin.into(), is_default: origin == "default" }
}

fn gid(index: u8, address: &str, here: bool) -> RdmaGid {
    RdmaGid { index, address: address.into(), kind: "RoCE v2".into(), interface: Some("ens1".into()), here }
}

fn nic(name: &str, state: &str, mtu_bytes: u32, gids: Vec<RdmaGid>) -> RdmaDevice {
    let port = RdmaPort { number: 1, state: state.into(), link: "Ethernet".into(), mtu_bytes, gids };
    RdmaDevice {
        name: name.into(),
        error: None,
        ports: vec![port],
        dmabuf: Some(DmaBufImport::Yes),
        register_error: None,
    }
}

fn node(path: &str, what: &'static str, driver: Option<&str>, opening: Opening) -> DeviceNode {
    DeviceNode { path: path.into(), what, driver: driver.map(Into::into), opening }
}

fn pair(accelerator: &'static str, found: PairFound) -> Pair {
    Pair { accelerator, device: "mlx5_0".into(), found }
}

fn moves(mode: PairMode, shifted: AfterMove, forced: AfterMove, revoked: AfterMove) -> PairFound {
    let unasked_is_direct = matches!(mode, PairMode::Transparent | PairMode::Revocable);
    PairFound::Moves { mode, shifted, forced, revoked, unasked_is_direct }
}

fn dies() -> AfterMove {
    AfterMove::Dies { status: "the remote key does not hold, or no longer (IBV_WC_REM_ACCESS_ERR)".into() }
}

/// A server on which nothing is wrong.
fn healthy() -> Facts {
    let rail = RdmaRail {
        device: "mlx5_0".into(),
        port: 1,
        gid_index: 3,
        address: "10.0.0.1".into(),
        reason: "active, with a RoCE v2 GID of an IPv4 address of this host".into(),
    };
    Facts {
        build: Build {
            version: "1.2.3".into(),
            machine: "x86_64".into(),
            rdma: true,
            planted_fault: false,
            debug: false,
        },
        host: Host {
            kernel: "6.12.1".into(),
            cores: 64,
            usable_cores: 64,
            quota_cores: None,
            numa: [0, 1]
                .map(|node| NumaNode {
                    node,
                    cores: format!("{}-{}", 32 * node, 32 * node + 31),
                    memory_bytes: 256 * GIB,
                })
                .into(),
            memory_bytes: 512 * GIB,
            available_bytes: 500 * GIB,
            huge_pages: vec![HugePages { page_bytes: 2 << 20, pages: 1024, free_pages: 1000 }],
            shmem_huge: Some("advise".into()),
            shm: Some(FileSystem { bytes: 256 * GIB, free_bytes: 256 * GIB }),
            open_files: limit(Some(65536), Some(1 << 20)),
            locked_memory: limit(None, None),
            may_lock: false,
            scheduler: Scheduler { policy: "other".into(), nice: 0, has_slices: true },
        },
        settings: Settings {
            values: vec![
                setting("transport", "auto", "default"),
                setting("timeout", "60", "WINDLASS_TIMEOUT"),
            ],
            error: None,
        },
        sharing: Sharing { segment_error: None, wake_us: Some(12.5), pidfd_error: None },
        rdma: Rdma {
            built: true,
            kernel_devices: vec!["mlx5_0".into()],
            library_error: None,
            library_imports_dmabufs: true,
            fork_is_safe: true,
            devices: vec![nic("mlx5_0", "active", 4096, vec![gid(3, "10.0.0.1", true)])],
            choice: RdmaChoice { rails: vec![rail], rejected: Vec::new(), error: None },
        },
        accelerators: vec![
            node("/dev/udmabuf", "host memory as dma-bufs, by the kernel", None, Opening::Opens),
            node("/dev/accel/accel0", "a compute accelerator", Some("habanalabs"), Opening::Permitted),
        ],
        pairs: vec![
            pair("udmabuf", PairFound::Still),
            pair("testbed", moves(PairMode::Transparent, AfterMove::Follows, AfterMove::Follows, dies())),
        ],
    }
}

/// A machine on which nearly everything is.
fn troubled() -> Facts {
    let mut facts = healthy();
    facts.build.planted_fault = true;
    facts.build.debug = true;
    facts.host.usable_cores = 1;
    facts.host.quota_cores = Some(0.5);
    facts.host.shmem_huge = Some("never".into());
    facts.host.shm = None;
    facts.host.open_files = limit(Some(128), Some(1024));
    facts.host.locked_memory = limit(Some(8 << 20), Some(8 << 20));
    facts.host.scheduler = Scheduler { policy: "idle".into(), nice: 19, has_slices: false };
    facts.settings = Settings {
        values: Vec::new(),
        error: Some("WINDLASS_TIMEOUT is \"soon\": must be a number of seconds".into()),
    };
    facts.sharing = Sharing {
        segment_error: None,
        wake_us: None,
        pidfd_error: Some("pidfd_open: Function not implemented".into()),
    };
    let rdma = &mut facts.rdma;
    rdma.kernel_devices = ["bnxt_re0", "mlx5_0", "mlx5_1", "mlx5_2"].map(Into::into).into();
    rdma.fork_is_safe = false;
    rdma.devices = vec![
        nic("mlx5_0", "down", 1024, vec![gid(3, "10.0.0.1", true)]),
        nic("mlx5_1", "active", 1024, vec![gid(3, "10.0.1.1", true)]),
        nic("mlx5_2", "active", 4096, Vec::new()),
    ];
    rdma.devices[0].dmabuf = Some(DmaBufImport::No);
    rdma.devices[1].dmabuf = Some(DmaBufImport::LibraryTooOld);
    rdma.devices[1].register_error = Some("mlx5_1 cannot pin 4096 bytes".into());
    rdma.devices[2].error = Some("ibv_open_device on mlx5_2: Permission denied (os error 13)".into());
    let rejected = |device: &str, reason: &str, elsewhere| RdmaRejected {
        device: device.into(),
        port: Some(1),
        reason: reason.into(),
        elsewhere,
    };
    rdma.choice = RdmaChoice {
        rails: Vec::new(),
        rejected: vec![
            rejected("mlx5_0", "the port is down: `ip link set <interface> up`", false),
            rejected("mlx5_1", "none of its GIDs (10.0.1.1, …) is an address of this host", true),
        ],
        error: Some("no RDMA device can be used: for a reason each".into()),
    };
    facts.accelerators = vec![
        node(
            "/dev/udmabuf",
            "host memory as dma-bufs, by the kernel",
            None,
            Opening::Refused { errno: libc::EACCES },
        ),
        node(
            "/dev/accel/accel0",
            "a compute accelerator",
            Some("habanalabs"),
            Opening::Refused { errno: libc::EBUSY },
        ),
        node("/dev/dri/renderD128", "a GPU", Some("amdgpu"), Opening::Refused { errno: libc::ENODEV }),
    ];
    let stays = || AfterMove::Stays { errno: libc::EBUSY };
    let strays = || AfterMove::Strays;
    facts.pairs = vec![
        pair("testbed", moves(PairMode::Pinned, stays(), strays(), strays())),
        pair("testbed", moves(PairMode::Revocable, stays(), dies(), dies())),
        pair("testbed", moves(PairMode::Unsafe, strays(), strays(), strays())),
        pair("habanalabs", PairFound::Untried { error: "mlx5_0 may not reach this memory (errno 1)".into() }),
    ];
    facts
}

#[track_caller]
fn told(name: &str, facts: &Facts) {
    let text = judge(facts).to_text();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/doctor/tests/{name}.txt"));
    if std::env::var("UPDATE").is_ok() {
        std::fs::write(&path, &text).unwrap();
    }
    let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, reviewed, "run with UPDATE=1 and review the change");
}

#[test]
fn machines_are_told_as_reviewed() {
    told("healthy", &healthy());
    told("troubled", &troubled());
    // The same machine without the library, without a device, and a program built without RDMA.
    let mut facts = healthy();
    facts.rdma.library_error = Some("libibverbs.so.1 cannot be loaded".into());
    facts.pairs.clear();
    told("library", &facts);
    facts.rdma = Rdma {
        built: true,
        choice: RdmaChoice { error: Some("this host has no RDMA device".into()), ..RdmaChoice::default() },
        ..Rdma::default()
    };
    facts.rdma.fork_is_safe = true;
    facts.accelerators.clear();
    told("no_device", &facts);
    facts.build.rdma = false;
    facts.rdma = Rdma { kernel_devices: vec!["mlx5_0".into()], ..Rdma::default() };
    told("without_rdma", &facts);
}

#[test]
fn a_healthy_machine_has_nothing_wrong_and_each_trouble_is_found() {
    let facts = healthy();
    let report = judge(&facts);
    assert_eq!((report.problems, report.notes), (0, 0), "{}", report.to_text());
    // One trouble at a time: what is told of it, and how bad it is.
    let one = |spoil: &dyn Fn(&mut Facts)| {
        let mut facts = healthy();
        spoil(&mut facts);
        let report = judge(&facts);
        let findings = report.sections.iter().flat_map(|s| &s.findings).filter(|f| f.level != Level::Ok);
        findings.map(|f| (f.name, f.level)).collect::<Vec<_>>()
    };
    use Level::{Note, Problem};
    assert_eq!(one(&|f| f.host.open_files.soft = Some(200)), [("host.open_files", Problem)]);
    assert_eq!(one(&|f| f.host.open_files.soft = Some(1024)), [("host.open_files", Note)]);
    assert_eq!(
        one(&|f| f.host.locked_memory = limit(Some(64 << 10), Some(64 << 10))),
        [("rdma.locked_memory", Problem)]
    );
    assert_eq!(one(&|f| f.host.locked_memory.soft = Some(2 << 30)), [("rdma.locked_memory", Note)]);
    let privileged =
        |f: &mut Facts| (f.host.may_lock, f.host.locked_memory) = (true, limit(Some(0), Some(0)));
    assert_eq!(one(&privileged), []);
    assert_eq!(one(&|f| f.sharing.segment_error = Some("no".into())), [("sharing.segment", Problem)]);
    assert_eq!(one(&|f| f.sharing.wake_us = None), [("sharing.futex", Problem)]);
    assert_eq!(one(&|f| f.rdma.kernel_devices.push("efa_0".into())), [("rdma.provider", Problem)]);
    assert_eq!(one(&|f| f.rdma.devices[0].dmabuf = Some(DmaBufImport::No)), [("rdma.dmabuf", Note)]);
    assert_eq!(one(&|f| f.rdma.devices[0].ports[0].mtu_bytes = 1024), [("rdma.port", Note)]);
    assert_eq!(
        one(&|f| f.accelerators[0].opening = Opening::Refused { errno: libc::EACCES }),
        [("accelerators.node", Note)]
    );
    let strays = || AfterMove::Strays;
    let stays = || AfterMove::Stays { errno: libc::EBUSY };
    let spoilt = |found: PairFound| one(&move |f| f.pairs[1].found = found.clone());
    assert_eq!(spoilt(moves(PairMode::Pinned, stays(), strays(), strays())), [("pairs.moves", Note)]);
    assert_eq!(spoilt(moves(PairMode::Unsafe, strays(), strays(), strays())), [("pairs.moves", Problem)]);
    assert_eq!(spoilt(moves(PairMode::Revocable, stays(), dies(), dies())), []);
    assert_eq!(spoilt(PairFound::Untried { error: "why".into() }), [("pairs.untried", Note)]);
    // Where there is no NIC, its limits are nobody's trouble.
    let without = |f: &mut Facts| {
        f.rdma.devices.clear();
        f.rdma.kernel_devices.clear();
        f.pairs.clear();
        f.host.locked_memory = limit(Some(64 << 10), Some(64 << 10));
    };
    assert_eq!(one(&without), []);
}

#[test]
fn json_has_its_documented_shape() {
    let facts = troubled();
    let report = judge(&facts);
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["problems"], report.problems);
    let names: Vec<_> =
        json["sections"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["build", "host", "settings", "sharing", "rdma", "accelerators", "pairs"]);
    for section in json["sections"].as_array().unwrap() {
        for finding in section["findings"].as_array().unwrap() {
            assert!(["ok", "note", "problem"].contains(&finding["level"].as_str().unwrap()), "{finding}");
            assert!(finding["text"].is_string() && finding["fix"].is_array(), "{finding}");
            let prefix = format!("{}.", section["name"].as_str().unwrap());
            assert!(finding["name"].as_str().unwrap().starts_with(&prefix), "{finding}");
        }
    }
    assert_eq!(json["facts"]["rdma"]["devices"][0]["dmabuf"], "no");
    assert_eq!(json["facts"]["accelerators"][0]["opening"]["refused"]["errno"], libc::EACCES);
    assert_eq!(json["facts"]["host"]["open_files"]["soft"], 128);
    let found = &json["facts"]["pairs"][0]["found"]["moves"];
    assert_eq!(
        (&found["mode"], &found["forced"], &found["unasked_is_direct"]),
        (&"pinned".into(), &"strays".into(), &false.into())
    );
    assert_eq!(found["shifted"]["stays"]["errno"], libc::EBUSY);
}
