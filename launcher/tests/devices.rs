//! Device memory between real processes: ranks that are killed, stopped or short of descriptors while they share it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "ranks/on_devices.rs"]
mod on_devices;
#[path = "ranks/mod.rs"]
#[expect(dead_code, reason = "other tests of processes use the rest")]
mod ranks;

use std::time::{Duration, Instant};

use ranks::{PROGRAM, Started, job, signal};

/// The rank program, when this process is one.
#[test]
fn rank_main() {
    if let Ok(program) = std::env::var(PROGRAM) {
        on_devices::run(&program);
    }
}

/// The process ids by rank.
fn pids(job: &mut Started, count: usize) -> Vec<i32> {
    let lines = job.await_lines("pid ", count);
    let pair = |line: &String| line.split_once(' ').map(|(r, p)| (r.parse().unwrap(), p.parse().unwrap()));
    let mut pids: Vec<(u32, i32)> = lines.iter().filter_map(pair).collect();
    pids.sort_unstable();
    pids.into_iter().map(|(_, pid)| pid).collect()
}

#[test]
fn a_rank_killed_while_its_memory_moves_is_named_and_the_others_memory_is_theirs() {
    for victim in [0usize, 2] {
        let mut command = job(&["-n", "3", "--grace", "3"], "under_fire");
        command.env("WINDLASS_TIMEOUT", "8");
        let mut job = Started::start(command);
        let pids = pids(&mut job, 3);
        std::thread::sleep(Duration::from_millis(150));
        let begin = Instant::now();
        signal(pids[victim], libc::SIGKILL);
        let named = job.await_lines("peer-failed ", 2);
        assert_eq!(named, vec![victim.to_string(); 2]);
        println!("rank {victim}'s death was known after {:.1?}", begin.elapsed());
        assert_eq!(job.await_lines("memory ", 2), ["usable", "usable"]);
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        drop(job);
    }
}

#[test]
fn memory_that_a_stopped_rank_maps_stays_where_it_is_until_it_is_revoked() {
    let mut command = job(&["-n", "2"], "stopped_in_the_middle");
    command.env("WINDLASS_TIMEOUT", "60");
    let mut job = Started::start(command);
    let pids = pids(&mut job, 2);
    job.await_lines("begun", 1);
    signal(pids[1], libc::SIGSTOP);
    // Rank 0 asks for a move when it sees its peer stopped, and then takes the memory without asking.
    let refused = job.await_lines("refused ", 1);
    assert_eq!(refused, ["1"]);
    job.await_lines("revoked", 1);
    signal(pids[1], libc::SIGCONT);
    assert_eq!(job.await_lines("result ", 2), ["right", "right"]);
    // Own and the peer's buffer, and the scratch: no old place is mapped by anybody.
    assert_eq!(job.await_lines("mapped ", 2), ["3", "3"]);
    assert_eq!(job.await_lines("audit ", 2), ["[]", "[]"]);
    let (status, said) = job.finish();
    assert!(status.success(), "{said}");
}

#[test]
fn a_stopped_rank_that_is_told_much_stops_nobody_else() {
    let mut command = job(&["-n", "3"], "many_buffers");
    command.env("WINDLASS_TIMEOUT", "60");
    let mut job = Started::start(command);
    let pids = pids(&mut job, 3);
    signal(pids[1], libc::SIGSTOP);
    let begin = Instant::now();
    job.await_lines("went on", 2);
    println!("two ranks went on beside a stopped one for {:.1?}", begin.elapsed());
    signal(pids[1], libc::SIGCONT);
    assert_eq!(job.await_lines("result ", 3), ["right"; 3]);
    let (status, said) = job.finish();
    assert!(status.success(), "{said}");
}

#[test]
fn descriptors_that_run_out_are_an_error_on_every_rank() {
    for spare in [0, 1, 2, 4, 9] {
        let mut command = job(&["-n", "3"], "few_descriptors");
        command.env("WINDLASS_TIMEOUT", "20").env("SPARE", spare.to_string());
        let mut job = Started::start(command);
        let begin = Instant::now();
        let ends = job.await_lines("end ", 3);
        assert!(ends.iter().all(|end| end.starts_with("typed")), "{spare}: {ends:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{spare}: {:?}", begin.elapsed());
        drop(job);
    }
}
