//! A job over RDMA whose ranks are the testbed's hosts, one on each: they share nothing but a folder and their NICs. On one host, or where there are no
//! such hosts, the ranks are threads.

#![expect(clippy::unwrap_used, reason = "a test that fails should panic")]

mod accelerators;
mod deaths;
#[path = "../matrix/elements.rs"]
mod elements;
mod every_type;
#[path = "../matrix/reference.rs"]
mod reference;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use windlass::{Communicator, Config, Error, Identity, JoinError, ReduceOp, TransportChoice};

/// This host's number, and how many there are.
fn host() -> Option<(u32, u32)> {
    let variable = |name| std::env::var(name).ok();
    let ranks = variable("WINDLASS_TESTBED_HOSTS")?.split(',').count() as u32;
    (ranks > 1).then_some((variable("WINDLASS_TESTBED_HOST")?.parse().ok()?, ranks))
}

fn config() -> Config {
    let mut config = Config::from_environment().unwrap();
    config.transport = TransportChoice::Rdma;
    config.timeout = Duration::from_secs(120);
    config
}

/// As this rank of so many, one on each host.
fn join(job: &str, (rank, ranks): (u32, u32)) -> Result<Communicator, JoinError> {
    let rendezvous = Some(format!("unix:/tmp/windlass-{job}"));
    Communicator::join(&Identity { rank, ranks, rendezvous, serves: rank == 0 }, config())
}

/// Runs `test` on each host, or on threads. False where there is no RDMA.
fn on_hosts(job: &str, test: impl Fn(&Communicator) + Sync) -> bool {
    let joined = match host() {
        Some(place) => join(job, place).map(|comm| {
            test(&comm);
            comm.finalize().unwrap();
        }),
        None => windlass::threads_with(3, &config(), |comm| test(&comm)).map(|_| ()),
    };
    match joined {
        Ok(()) => true,
        Err(why @ JoinError::Configuration { .. }) => {
            println!("skipped: no RDMA ({why})");
            false
        }
        Err(other) => panic!("{other}"),
    }
}

/// Sizes that go inline, by a slot, by several, and to their place, in one piece and in several.
const COUNTS: [usize; 7] = [1, 100, 2049, 10_000, 70_001, 300_000, 1_500_000];

#[test]
fn sums_are_right_on_every_host() {
    on_hosts("sums", |comm| {
        let (rank, ranks) = (comm.rank() as usize, comm.size() as usize);
        for count in COUNTS {
            let value = |rank: usize, at: usize| ((rank + 1) * (at % 1000 + 1)) as f32;
            let mut registered = comm.alloc::<f32>(count).unwrap();
            registered.iter_mut().enumerate().for_each(|(at, x)| *x = value(rank, at));
            let heap = registered.to_vec();
            let registered = comm.all_reduce(registered, ReduceOp::Sum).wait().unwrap();
            let heap = comm.all_reduce(heap, ReduceOp::Sum).wait().unwrap();
            for at in 0..count {
                let sum: f32 = (0..ranks).map(|rank| value(rank, at)).sum();
                assert!(registered[at] == sum && heap[at] == sum, "{count}: {at}");
            }
        }
    });
}

#[test]
fn messages_reach_every_host() {
    on_hosts("messages", |comm| {
        let (rank, ranks) = (comm.rank(), comm.size());
        let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        for count in COUNTS {
            // Registered or not, at either end.
            for mixed in 0..4usize {
                let filled = |rank: u32| (0..count).map(move |at| at as u32 ^ rank << 24);
                let (mut from, mut into) = (comm.alloc::<u32>(count).unwrap(), comm.alloc(count).unwrap());
                from.iter_mut().zip(filled(rank)).for_each(|(x, value)| *x = value);
                let got = match (mixed & 1, mixed & 2) {
                    (0, 0) => {
                        let receive = comm.recv(into, before, count as u32);
                        comm.send(from, next, count as u32).wait().unwrap();
                        receive.wait().unwrap().to_vec()
                    }
                    (0, _) => {
                        let receive = comm.recv(vec![0; count], before, count as u32);
                        comm.send(from, next, count as u32).wait().unwrap();
                        receive.wait().unwrap()
                    }
                    (_, 0) => {
                        let receive = comm.recv(into, before, count as u32);
                        comm.send(from.to_vec(), next, count as u32).wait().unwrap();
                        receive.wait().unwrap().to_vec()
                    }
                    _ => {
                        into.copy_from_slice(&from);
                        let receive = comm.recv(vec![0; count], before, count as u32);
                        comm.send(into.to_vec(), next, count as u32).wait().unwrap();
                        receive.wait().unwrap()
                    }
                };
                assert!(got.iter().copied().eq(filled(before)), "{count} {mixed}");
            }
        }
    });
}

/// Sums, over and over, while commands are carried out on the first host, which loses a connection by them if `breaks`.
fn sums_during(job: &str, commands: &[&str], breaks: bool) {
    let Some((host, _)) = host() else { return println!("this needs several hosts") };
    on_hosts(job, |comm| {
        let carried_out = AtomicBool::new(host != 0);
        std::thread::scope(|scope| {
            if host == 0 {
                scope.spawn(|| {
                    for command in commands {
                        std::thread::sleep(Duration::from_millis(1500));
                        let status = std::process::Command::new("sh").args(["-c", command]).status();
                        println!("{command}: {status:?}");
                    }
                    carried_out.store(true, Ordering::Relaxed);
                });
            }
            let begin = Instant::now();
            let (mut rounds, mut longest) = (0u32, 0);
            // All do as many, however long each has been at it, and some after the last command.
            let mut after = 0;
            loop {
                let since = Instant::now();
                let value = |rank: u32, at: usize| ((rank + 1 + rounds) * (at % 1000 + 1) as u32) as f32;
                let mut memory = comm.alloc::<f32>(100_000).unwrap();
                memory.iter_mut().enumerate().for_each(|(at, x)| *x = value(comm.rank(), at));
                let sums = comm.all_reduce(memory, ReduceOp::Sum).wait().unwrap();
                for at in 0..sums.len() {
                    let sum: f32 = (0..comm.size()).map(|rank| value(rank, at)).sum();
                    assert!(sums[at] == sum, "round {rounds}: {at}");
                }
                longest = longest.max(since.elapsed().as_millis());
                rounds += 1;
                after += u32::from(carried_out.load(Ordering::Relaxed));
                let late = f32::from(u8::from(begin.elapsed().as_secs() >= 8 && after > 2));
                if comm.all_reduce(vec![late], ReduceOp::Min).wait().unwrap()[0] > 0.0 {
                    break;
                }
            }
            println!("{rounds} rounds, the longest {longest} ms, {:?}", comm.reconnects());
            assert!(!breaks || host != 0 || comm.reconnects().streams > 0, "no connection broke");
        });
    });
}

#[test]
fn a_link_goes_down_and_up() {
    sums_during("link", &["ip link set eth0 down", "ip link set eth0 up"], false);
}

/// Whether these are several hosts with two NICs each.
fn two_nics() -> bool {
    let two = std::path::Path::new("/sys/class/infiniband/rxe0_1").exists();
    if !two || host().is_none() {
        println!("this needs hosts with two NICs");
    }
    two && host().is_some()
}

/// The connections go on by the first NICs, as do the control streams.
#[test]
fn one_of_two_nics_goes_for_good() {
    if two_nics() {
        sums_during("nic", &["ip link set eth1 down"], true);
    }
}

/// The kernel's devices are all hosts', so the first can remove the second's. It does not come back.
#[test]
fn another_hosts_second_nic_is_removed() {
    if two_nics() {
        sums_during("removed", &["rdma link delete rxe1_1"], true);
    }
}

/// After all others: it leaves the first host without NICs.
#[test]
fn without_a_nic_the_job_ends_and_says_why() {
    let Some((rank, ranks)) = host().filter(|_| two_nics()) else { return };
    let comm = join("gone", (rank, ranks)).unwrap();
    let sum = || comm.all_reduce(vec![1.0f32; 50_000], ReduceOp::Sum).wait();
    assert_eq!(sum().unwrap()[0], ranks as f32);
    if rank == 0 {
        let status = std::process::Command::new("sh")
            .args(["-c", "rdma link delete rxe0_0; rdma link delete rxe0_1"])
            .status();
        println!("without NICs: {status:?}");
    }
    let begin = Instant::now();
    let failed = loop {
        if let Err(failed) = sum() {
            break failed.error;
        }
    };
    println!("after {:?}: {failed}", begin.elapsed());
    assert!(matches!(failed, Error::PeerFailed { .. }), "{failed:?}");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}
