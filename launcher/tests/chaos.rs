//! Jobs of real processes under bad weather: killed, stopped, short of everything.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "ranks/programs.rs"]
mod programs;
#[path = "ranks/mod.rs"]
mod ranks;

use std::process::Command;
use std::time::{Duration, Instant};

use ranks::{PROGRAM, Started, job, lone_rank, processor_time, signal};

/// The rank program, when this process is one.
#[test]
fn rank_main() {
    if let Ok(program) = std::env::var(PROGRAM) {
        programs::run(&program);
    }
}

/// Rank and process id of every rank that has said `pid`.
fn pids(job: &mut Started, count: usize) -> Vec<i32> {
    let lines = job.await_lines("pid ", count);
    let mut pids: Vec<(u32, i32)> = lines
        .iter()
        .map(|l| l.split_once(' ').map(|(r, p)| (r.parse().unwrap(), p.parse().unwrap())).unwrap())
        .collect();
    pids.sort_unstable();
    pids.into_iter().map(|(_, pid)| pid).collect()
}

fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn ended_well(job: Started, done: usize) {
    let (status, said) = job.finish();
    assert!(status.success(), "{status}\n{said}");
    assert_eq!(said.matches("done\n").count() + usize::from(said.ends_with("done")), done, "{said}");
}

#[test]
fn a_rank_killed_under_the_launcher_is_named_within_a_second() {
    for (program, transport, victim) in [
        ("loop", "shm", 2),
        ("loop", "shm", 0),
        ("loop", "tcp", 1),
        ("messages", "shm", 2),
        ("messages", "shm", 0),
    ] {
        let mut job = Started::start(job(&["-n", "4", "--transport", transport], program));
        let pids = pids(&mut job, 4);
        let begin = Instant::now();
        signal(pids[victim], libc::SIGKILL);
        let named = job.await_lines("peer-failed ", 3);
        let after = begin.elapsed();
        assert_eq!(named, vec![victim.to_string(); 3], "{program} over {transport}");
        assert!(after < Duration::from_secs(1), "{program} over {transport}: {after:?}");
        println!("under the launcher, over {transport}: rank {victim}'s death was known after {after:.1?}");
        let (status, said) = job.finish();
        assert_eq!(status.code(), Some(137), "{said}");
    }
}

#[test]
fn a_rank_killed_without_a_launcher_is_named_within_a_second() {
    for (program, transport, victim) in [
        ("loop", "shm", 2usize),
        ("loop", "shm", 0),
        ("loop", "tcp", 1),
        ("loop", "tcp", 0),
        ("forks", "shm", 1),
    ] {
        let port = port();
        let start = |rank| {
            let mut command = lone_rank(program, rank, 3, port);
            command.env("WINDLASS_TRANSPORT", transport);
            Started::start(command)
        };
        let mut world: Vec<Started> = (0..3).map(start).collect();
        let pids: Vec<i32> = world.iter_mut().map(|rank| pids(rank, 1)[0]).collect();
        let begin = Instant::now();
        signal(pids[victim], libc::SIGKILL);
        for (rank, started) in world.iter_mut().enumerate().filter(|(rank, _)| *rank != victim) {
            let named = started.await_lines("peer-failed ", 1);
            let after = begin.elapsed();
            assert_eq!(named, [victim.to_string()], "{program} over {transport}: rank {rank}");
            assert!(
                after < Duration::from_secs(1),
                "{program} over {transport}: rank {rank} after {after:?}"
            );
        }
        // A socket of rank 0's goes with the last of the world.
        world.into_iter().for_each(drop);
    }
}

#[test]
fn a_stopped_peer_that_wakes_writes_into_nobody_s_memory() {
    let mut took_back = 0;
    for trial in 0..12u64 {
        let mut command = job(&["-n", "2", "--grace", "3"], "stopped");
        command.env("WINDLASS_TIMEOUT", "1");
        let mut job = Started::start(command);
        let pids = pids(&mut job, 2);
        std::thread::sleep(Duration::from_micros(30_000 + trial * 1_700));
        signal(pids[1], libc::SIGSTOP);
        let named = job.await_lines("took-back ", 1);
        assert_eq!(named, ["[1]"]);
        took_back += 1;
        signal(pids[1], libc::SIGCONT);
        let (_, said) = job.finish();
        assert!(said.contains("undisturbed") && !said.contains("disturbed 1"), "trial {trial}:\n{said}");
    }
    println!("memory was taken back from a stopped peer {took_back} times, and never disturbed");
}

#[test]
fn a_stopped_receiver_that_wakes_takes_nothing_that_was_taken_back() {
    for trial in 0..6u64 {
        let mut command = job(&["-n", "2", "--grace", "3"], "lends");
        command.env("WINDLASS_TIMEOUT", "1");
        let mut job = Started::start(command);
        let pids = pids(&mut job, 2);
        std::thread::sleep(Duration::from_micros(30_000 + trial * 2_300));
        signal(pids[1], libc::SIGSTOP);
        let named = job.await_lines("took-back ", 1);
        assert_eq!(named, ["[1]"]);
        signal(pids[1], libc::SIGCONT);
        let (_, said) = job.finish();
        assert!(said.contains("failed with") && !said.contains("wrong"), "trial {trial}:\n{said}");
    }
}

#[test]
fn an_idle_job_and_a_blocked_one_use_no_processor() {
    for (program, ranks) in [("idle", 4), ("blocked", 4)] {
        let mut job = Started::start(job(&["-n", "4"], program));
        let pids = pids(&mut job, ranks);
        std::thread::sleep(Duration::from_millis(500));
        let used = |pid: &i32| processor_time(*pid);
        let before: Duration = pids.iter().map(used).sum();
        std::thread::sleep(Duration::from_secs(2));
        let used = pids.iter().map(used).sum::<Duration>() - before;
        println!("{program}: four ranks used {used:?} in two seconds");
        // Ticks are 10 ms: 1 % of two seconds, on each of four ranks, is eight of them.
        assert!(used <= Duration::from_millis(80), "{program}: {used:?}");
        let (status, said) = job.finish();
        assert!(status.success(), "{said}");
    }
}

#[test]
fn sixty_four_processes_start_in_time_and_stay_small() {
    let mut command = job(&["-n", "64"], "sum");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    command.env("STARTED_MS", now.as_millis().to_string());
    let mut job64 = Started::start(command);
    let slowest = job64.await_lines("first-ms ", 64).iter().map(|l| l.parse::<u64>().unwrap()).max().unwrap();
    println!("64 processes: first all-reduce {slowest} ms after the launch");
    assert!(slowest < 2000, "{slowest} ms");
    ended_well(job64, 64);

    let mut command = job(&["-n", "64"], "footprint");
    command.env("WINDLASS_REPORT_AFTER", "0");
    let mut job = Started::start(command);
    let most = job.await_lines("pss-kib ", 64).iter().map(|l| l.parse::<u64>().unwrap()).max().unwrap();
    println!("64 processes, after 100 all-reduces of 1 MiB: at most {most} KiB a rank beside its own memory");
    assert!(most < 8 << 10, "{most} KiB");
    assert!(job.finish().0.success());
}

/// Runs a shell line with `exec "$@"` at its end as the launcher's start.
fn through_shell(line: &str, inner: &Command) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{line}; exec \"$@\""), "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

#[test]
fn the_smallest_limits_work_or_are_named() {
    for ranks in ["2", "64"] {
        // Nothing is locked, so nothing depends on how much may be.
        let limited = through_shell("ulimit -l 0", &job(&["-n", ranks], "sum"));
        ended_well(Started::start(limited), ranks.parse().unwrap());
        for transport in ["shm", "tcp"] {
            for files in [10, 12, 14, 16, 24, 40, 80] {
                let program = job(&["-n", ranks, "--transport", transport], "sum");
                let mut limited = through_shell(&format!("ulimit -n {files}"), &program);
                limited.env("WINDLASS_JOIN_TIMEOUT", "10").env("WINDLASS_TIMEOUT", "10");
                let begin = Instant::now();
                let (status, said) = Started::start(limited).finish();
                let context = format!(
                    "{ranks} ranks over {transport} with {files} files, {:?}:\n{said}",
                    begin.elapsed()
                );
                let named = said.contains("ulimit -n")
                    || said.contains("Too many open files")
                    || said.contains("os error 24");
                assert!(status.success() || named, "{context}");
                assert!(begin.elapsed() < Duration::from_secs(8), "{context}");
            }
        }
    }
}

#[test]
fn more_memory_than_the_limit_is_an_error() {
    ended_well(Started::start(job(&["-n", "2"], "too_much")), 2);
}

#[test]
fn dev_shm_full_or_absent_is_not_missed() {
    // SAFETY: geteuid takes nothing and returns a number.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: /dev/shm full or absent, because only root makes mount namespaces");
        return;
    }
    let own = job(&["-n", "4"], "sum");
    for mount in [
        "mount -t tmpfs -o size=4k none /dev/shm && head -c 9000 /dev/zero > /dev/shm/full 2>/dev/null; true",
        "mount -t tmpfs none /dev && mkdir -p /dev/pts; mknod -m 666 /dev/null c 1 3; ! test -e /dev/shm",
    ] {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("{{ {mount}; }} || exit 77; exec \"$@\""), "sh"]);
        command.arg(own.get_program()).args(own.get_args()).env(PROGRAM, "sum");
        let started = Started::start(command);
        let (status, said) = started.finish();
        if status.code() == Some(77) || said.contains("unshare:") {
            println!("skipped: {mount}, because the sandbox forbids it: {said}");
            continue;
        }
        assert!(status.success() && said.matches("done").count() == 4, "{mount}: {status}\n{said}");
    }
}

#[test]
fn closed_standard_streams_do_no_harm() {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        // The ranks' own streams, not the launcher's.
        let own = std::env::current_exe().unwrap();
        let script = format!("exec \"$0\" --exact rank_main --nocapture {closed}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
        command.args(["run", "-n", "3", "--", "sh", "-c", &script]).arg(own).env(PROGRAM, "sum");
        let (status, said) = Started::start(command).finish();
        assert!(status.success(), "{closed}: {status}\n{said}");
    }
}

#[test]
fn programs_that_do_not_exist_or_exit_before_joining_end_the_job() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.args(["run", "-n", "2", "--", "/nonexistent/program"]);
    let (status, said) = Started::start(command).finish();
    assert!(!status.success() && said.contains("/nonexistent/program"), "{said}");

    let own = std::env::current_exe().unwrap();
    let script = "test $RANK = 1 && exit 7; exec \"$0\" --exact rank_main --nocapture";
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.args(["run", "-n", "3", "--", "sh", "-c", script]).arg(own).env(PROGRAM, "sum");
    let begin = Instant::now();
    let (status, said) = Started::start(command).finish();
    assert_eq!(status.code(), Some(7), "{said}");
    assert!(
        said.contains("rank 1") && begin.elapsed() < Duration::from_secs(6),
        "{:?}\n{said}",
        begin.elapsed()
    );
}

#[test]
fn a_stale_rendezvous_and_wrong_settings_are_refused_at_once() {
    let refused = |variables: &[(&str, &str)], says: &[&str]| {
        let mut command = lone_rank("sum", 1, 2, 1);
        command.envs(variables.iter().copied());
        let begin = Instant::now();
        let (status, said) = Started::start(command).finish();
        assert_eq!(status.code(), Some(9), "{said}");
        assert!(says.iter().all(|s| said.contains(s)), "{says:?} not in:\n{said}");
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    };
    refused(
        &[("WINDLASS_RENDEZVOUS", "unix:@windlass-of-yesterday")],
        &["windlass-of-yesterday", "WINDLASS_RENDEZVOUS"],
    );
    refused(&[("WINDLASS_ALGORITHM", "rign")], &["WINDLASS_ALGORITHM", "rign", "ring"]);
    refused(&[("WORLD_SIZE", "many")], &["WORLD_SIZE", "many"]);
    refused(&[("RANK", "2")], &["RANK", "WORLD_SIZE"]);
    refused(&[("WINDLASS_JOIN_TIMEOUT", "0.5")], &["no rendezvous", "127.0.0.1-1"]);
    // Different settings on two ranks of one job.
    let own = std::env::current_exe().unwrap();
    let script =
        "test $RANK = 1 && export WINDLASS_ALGORITHM=direct; exec \"$0\" --exact rank_main --nocapture";
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.args(["run", "-n", "2", "--", "sh", "-c", script]).arg(own).env(PROGRAM, "sum");
    let (status, said) = Started::start(command).finish();
    assert!(!status.success() && said.contains("algorithm") && said.contains("direct"), "{said}");
}

#[test]
fn two_jobs_and_two_worlds_run_at_once() {
    let jobs: Vec<Started> = (0..2).map(|_| Started::start(job(&["-n", "4"], "sum"))).collect();
    let ports = [port(), port()];
    let rank = |r: u32, port: u16| Started::start(lone_rank("sum", r, 2, port));
    let mut worlds: Vec<Started> = ports.iter().flat_map(|&p| [rank(0, p), rank(1, p)]).collect();
    for world in &mut worlds {
        world.await_lines("done", 1);
    }
    for mut job in jobs {
        job.await_lines("done", 4);
        let _ = job.child.wait();
    }
}
