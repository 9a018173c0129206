//! `windlass doctor` as a user meets it, on this machine and in the testbed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod command;

use command::{Scratch, succeeded, text, windlass};
use serde_json::Value;

fn doctor(variables: &[(&str, &str)]) -> (Value, i32) {
    let output = windlass(&["doctor", "--json"]).envs(variables.iter().copied()).output().unwrap();
    assert_eq!(text(&output.stderr), "");
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code().unwrap())
}

fn findings<'a>(json: &'a Value, name: &'a str) -> impl Iterator<Item = &'a Value> {
    let sections = json["sections"].as_array().unwrap().iter();
    sections.flat_map(|s| s["findings"].as_array().unwrap()).filter(move |f| f["name"] == name)
}

#[test]
fn this_machine_is_told_and_counted() {
    let (json, code) = doctor(&[]);
    assert_eq!(code, i32::from(json["problems"].as_u64().unwrap() > 0));
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    // What every test here depends on.
    for name in ["sharing.segment", "sharing.futex", "sharing.pidfd"] {
        assert_eq!(findings(&json, name).next().unwrap()["level"], "ok", "{json:#}");
    }
    let output = windlass(&["doctor"]).output().unwrap();
    assert_eq!(output.status.code(), Some(code));
    let told = text(&output.stdout);
    for title in ["This build", "This host", "Settings", "Shared memory", "RDMA", "Accelerators"] {
        assert!(told.lines().any(|line| line == title), "{told}");
    }
    assert!(told.lines().all(|line| line.chars().count() <= 116), "{told}");
}

#[test]
fn each_setting_is_told_with_where_it_came_from() {
    let file = Scratch::new("doctor.toml");
    std::fs::write(&file.0, "timeout = 5\nreconnect = 3\n").unwrap();
    let (json, _) = doctor(&[("WINDLASS_CONFIG", file.path()), ("WINDLASS_RECONNECT", "4")]);
    let told: Vec<_> = findings(&json, "settings.value").map(|f| f["text"].as_str().unwrap()).collect();
    let line = |key: &str| *told.iter().find(|line| line.starts_with(key)).unwrap();
    assert!(line("timeout").ends_with(&format!(" 5 ({})", file.path())), "{told:?}");
    assert!(line("reconnect").ends_with(" 4 (WINDLASS_RECONNECT)"), "{told:?}");
    assert!(line("transport").ends_with(" auto (default)"), "{told:?}");
}

#[test]
fn a_wrong_setting_is_a_problem() {
    let (json, code) = doctor(&[("WINDLASS_TIMEOUT", "soon")]);
    let found = findings(&json, "settings.error").next().unwrap();
    assert_eq!((code, found["level"].as_str()), (1, Some("problem")));
    assert!(found["text"].as_str().unwrap().contains("WINDLASS_TIMEOUT"), "{found}");
    let help = windlass(&["doctor", "--help"]).output().unwrap();
    succeeded(&help);
    assert!(text(&help.stdout).contains("Examples:") && text(&help.stdout).contains("Exit status"));
    assert_eq!(windlass(&["doctor", "--fast"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = windlass(&["doctor"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
}

/// One call of an extern function would be enough to link it.
#[test]
fn the_program_is_not_linked_with_libibverbs() {
    // The loader lists what it would load, and runs nothing.
    let listed = windlass(&[]).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
    let listed = text(&listed.stdout);
    assert!(listed.contains("libc.so"), "the loader has not listed anything: {listed}");
    assert!(!listed.contains("ibverbs") && !listed.contains("rdmacm"), "{listed}");
}

/// In the testbed, what is told is known.
#[test]
fn the_testbed_s_nics_are_found_and_chosen() {
    let Ok(host) = std::env::var("WINDLASS_TESTBED_HOST") else {
        println!("skipped: doctor on RDMA devices, because this is not the testbed");
        return;
    };
    let (json, _) = doctor(&[]);
    let rails = json["facts"]["rdma"]["choice"]["rails"].as_array().unwrap();
    assert!(
        !rails.is_empty()
            && rails.iter().all(|r| r["device"].as_str().unwrap().starts_with(&format!("rxe{host}_"))),
        "{json:#}"
    );
    assert!(findings(&json, "rdma.dmabuf").all(|f| f["level"] == "ok"));
    let nodes: Vec<_> = json["facts"]["accelerators"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["path"].as_str().unwrap())
        .collect();
    let there = ["/dev/udmabuf", "/dev/dma_heap/system", "/dev/windlass_accelerator", "/dev/accel/accel0"];
    assert_eq!(nodes, there);
    assert!(findings(&json, "accelerators.node").all(|f| f["level"] == "ok"));
    assert_eq!(json["facts"]["build"]["rdma"], true);
    // A name that nobody has, and a place where there is no GID.
    for (variable, value, said) in
        [("WINDLASS_RDMA_DEVICES", "mlx5_9", "mlx5_9"), ("WINDLASS_RDMA_GID_INDEX", "77", "place 77")]
    {
        let (json, code) = doctor(&[(variable, value)]);
        let found = findings(&json, "rdma.choice").next().unwrap();
        assert_eq!((code, found["level"].as_str()), (1, Some("problem")));
        assert!(found["text"].as_str().unwrap().contains(said), "{found}");
    }
    let ip = |arguments: &[&str]| {
        assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success())
    };
    ip(&["link", "set", "eth0", "mtu", "1500"]);
    let (json, _) = doctor(&[]);
    let noted = findings(&json, "rdma.port").find(|f| f["level"] == "note").unwrap();
    assert_eq!(noted["fix"][0], "ip link set eth0 mtu 4200");
    ip(&["link", "set", "eth0", "mtu", "4200"]);
    ip(&["link", "set", "eth0", "down"]);
    let (json, _) = doctor(&[]);
    assert!(
        findings(&json, "rdma.rejected")
            .any(|f| f["level"] == "note" && f["text"].as_str().unwrap().contains("the port is down")),
        "{json:#}"
    );
    ip(&["link", "set", "eth0", "up"]);
}

/// In the testbed, how its NICs take memory that moves is what it was started with.
#[test]
fn each_accelerator_is_tried_with_each_nic() {
    if std::env::var("WINDLASS_TESTBED_HOST").is_err() {
        println!("skipped: accelerators and NICs, because this is not the testbed");
        return;
    }
    let mode = std::fs::read_to_string("/sys/module/rdma_rxe/parameters/dmabuf_mode").unwrap();
    let (wanted, level, said) = match mode.trim() {
        "dynamic" => ("transparent", "ok", "moved, the NIC follows"),
        "revocable" => ("revocable", "ok", "when moved with force, the key dies"),
        _ => ("pinned", "note", "when moved with force, the NIC goes on with where it was"),
    };
    let (json, _) = doctor(&[]);
    let pairs = json["facts"]["pairs"].as_array().unwrap();
    let rails = json["facts"]["rdma"]["choice"]["rails"].as_array().unwrap();
    assert_eq!(pairs.len(), 4 * rails.len(), "{json:#}");
    let alone = std::env::var("WINDLASS_TESTBED_HOSTS").is_ok_and(|hosts| !hosts.contains(','));
    for pair in pairs {
        match pair["accelerator"].as_str().unwrap() {
            "testbed" => {
                let moves = &pair["found"]["moves"];
                assert_eq!(
                    (&moves["mode"], &moves["unasked_is_direct"]),
                    (&wanted.into(), &(level == "ok").into())
                );
            }
            // One process alone can have it: another host's doctor, perhaps.
            "habanalabs" if !alone => {}
            _ => assert_eq!(pair["found"], "still", "{pair}"),
        }
    }
    for found in findings(&json, "pairs.moves") {
        assert_eq!(found["level"], level, "{found}");
        assert!(found["text"].as_str().unwrap().contains(said), "{found}");
    }
    let told = windlass(&["doctor"]).output().unwrap();
    println!("{}", text(&told.stdout).split_once("Accelerator × NIC").unwrap().1);
}
