//! A host whose rank is killed in the middle of its traffic: the others are told who it was, and soon.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use windlass::{Communicator, Error, MemoryMut, ReduceOp};

use super::accelerators::Course;
use super::{host, join};

/// Tells the process that is killed which job it belongs to.
const JOB: &str = "WINDLASS_TEST_KILLED";
/// Of each rank's memory, so that most of the time some of it is on its way.
const COUNT: usize = 500_000;
/// What the others may take from the kill to the error, and until they are rid of the job. A NIC that does not answer is given up after a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says so when each all-reduce is over, until one fails.
fn all_reduces<M: MemoryMut<Element = f32> + 'static>(comm: &Communicator, mut memory: M) -> Error {
    loop {
        match comm.all_reduce(memory, ReduceOp::Max).wait() {
            Ok(back) => memory = back,
            Err(failed) => return failed.error,
        }
        println!("all-reduced");
    }
}

/// All-reduces of the host's memory, or an accelerator's.
fn traffic(comm: &Communicator, job: &str) -> Error {
    if job == ON_DEVICE {
        let (_accelerator, device) = Course::still().attach(comm);
        let mut memory = device.alloc::<f32>(COUNT).unwrap();
        memory.write(&vec![1.0; COUNT]).unwrap();
        return all_reduces(comm, memory);
    }
    all_reduces(comm, comm.alloc::<f32>(COUNT).unwrap())
}

const ON_HOST: &str = "killed";
const ON_DEVICE: &str = "killed-on-device";

/// When a job's rank was killed.
fn stamp(job: &str) -> String {
    format!("/tmp/windlass-{job}-at")
}

/// Not a test of its own: the rank that is killed.
#[test]
fn the_killed_rank() {
    let Ok(job) = std::env::var(JOB) else { return };
    let comm = join(&job, host().unwrap()).unwrap();
    panic!("it was to be killed before: {}", traffic(&comm, &job));
}

/// Starts this host's rank as a process, and kills it when it is at work.
fn kill_a_rank(job: &str) {
    let mut rank = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "deaths::the_killed_rank", "--nocapture"])
        .env(JOB, job)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(rank.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(
        lines.filter(|line| line.contains("all-reduced")).take(5).count(),
        5,
        "it has ended by itself"
    );
    // Somewhere in the next ones.
    std::thread::sleep(Duration::from_millis(150));
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    std::fs::write(stamp(job), since.as_nanos().to_string()).unwrap();
    rank.kill().unwrap();
    let status = rank.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
}

fn a_rank_is_killed(job: &str) {
    let Some((rank, ranks)) = host() else { return println!("this needs several hosts") };
    let killed = ranks - 1;
    if rank == killed {
        return kill_a_rank(job);
    }
    let comm = join(job, (rank, ranks)).unwrap();
    let error = traffic(&comm, job);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let at =
        std::fs::read_to_string(stamp(job)).unwrap_or_else(|_| panic!("before anybody was killed: {error}"));
    let after = now.saturating_sub(Duration::from_nanos(at.parse().unwrap()));
    let begin = Instant::now();
    drop(comm);
    println!("rank {rank}, {after:.1?} after the kill: {error}; rid of the job in {:.1?}", begin.elapsed());
    assert!(matches!(error, Error::PeerFailed { rank, .. } if rank == killed), "{error}");
    assert!(after < PATIENCE && begin.elapsed() < PATIENCE);
}

#[test]
fn a_rank_is_killed_at_work_on_the_hosts_memory() {
    a_rank_is_killed(ON_HOST);
}

#[test]
fn a_rank_is_killed_at_work_on_its_accelerators_memory() {
    a_rank_is_killed(ON_DEVICE);
}
