//! A job over RDMA whose ranks are the testbed's hosts, one on each: they share nothing but a folder and their NICs. On one host, or where there are no
//! such hosts, the ranks are threads.

#![expect(clippy::unwrap_used, reason = "a test that fails should panic")]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::accelerator::kernel::testbed;
use windlass::accelerator::{self, Movement, Options};
use windlass::{Communicator, Config, DeviceBuffer, Error, Identity, JoinError, ReduceOp, TransportChoice};

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

/// Runs `test` on each host, or on threads. False where there is no RDMA.
fn on_hosts(job: &str, test: impl Fn(&Communicator) + Sync) -> bool {
    let joined = match host() {
        Some((rank, ranks)) => {
            let rendezvous = Some(format!("unix:/tmp/windlass-{job}"));
            let identity = Identity { rank, ranks, rendezvous, serves: rank == 0 };
            Communicator::join(&identity, config()).map(|comm| {
                test(&comm);
                comm.finalize().unwrap();
            })
        }
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
        std::thread::scope(|scope| {
            if host == 0 {
                scope.spawn(|| {
                    for command in commands {
                        std::thread::sleep(Duration::from_millis(1500));
                        let status = std::process::Command::new("sh").args(["-c", command]).status();
                        println!("{command}: {status:?}");
                    }
                });
            }
            let begin = Instant::now();
            let (mut rounds, mut longest) = (0u32, 0);
            // All do as many, however long each has been at it.
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
                let late = f32::from(u8::from(begin.elapsed().as_secs() >= 8));
                if comm.all_reduce(vec![late], ReduceOp::Max).wait().unwrap()[0] > 0.0 {
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
    let identity =
        Identity { rank, ranks, rendezvous: Some("unix:/tmp/windlass-gone".into()), serves: rank == 0 };
    let comm = Communicator::join(&identity, config()).unwrap();
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

/// How the testbed's NICs import memory, as it was started.
fn importer() -> Option<String> {
    let mode = std::fs::read_to_string("/sys/module/rdma_rxe/parameters/dmabuf_mode").ok()?;
    Some(mode.trim().to_owned())
}

/// Sums of an accelerator's memory, and messages from it and to it, while it moves in this way.
fn on_accelerators(job: &str, movement: Movement, moves: f64, revokes: f64) {
    on_hosts(job, |comm| {
        let (rank, ranks) = (comm.rank(), comm.size());
        let patience = Duration::from_secs(5);
        let (moves_per_second, revokes_per_second) = (moves, revokes);
        let options =
            Options { movement, moves_per_second, revokes_per_second, patience, ..Options::default() };
        let options = Options { device: options.device ^ u64::from(rank), seed: u64::from(rank), ..options };
        let accelerator = accelerator::open("testbed", options).unwrap();
        let device = comm.attach(Arc::clone(&accelerator)).unwrap();
        let value = |rank: u32, round: u32, at: usize| ((rank + 1 + round) * (at % 1000 + 1) as u32) as f32;
        let write = |buffer: &mut DeviceBuffer<f32>, round| {
            let values: Vec<_> = (0..buffer.len()).map(|at| value(rank, round, at)).collect();
            buffer.write(&values).unwrap();
        };
        let read = |buffer: &DeviceBuffer<f32>| {
            let mut values = vec![0.0; buffer.len()];
            buffer.read(&mut values).unwrap();
            values
        };
        let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let begin = Instant::now();
        let mut rounds = 0;
        loop {
            for count in [1000, 50_001, 400_000] {
                let mut memory = device.alloc::<f32>(count).unwrap();
                write(&mut memory, rounds);
                let memory = comm.all_reduce(memory, ReduceOp::Sum).wait().unwrap();
                for (at, is) in read(&memory).into_iter().enumerate() {
                    let sum: f32 = (0..ranks).map(|rank| value(rank, rounds, at)).sum();
                    assert!(is == sum, "sum of {count} in round {rounds}: {at} is {is}, not {sum}");
                }
                let mut from = device.alloc::<f32>(count).unwrap();
                write(&mut from, rounds);
                let into = device.alloc::<f32>(count).unwrap();
                let (_, into) = comm.sendrecv(from, next, into, before, 0).wait().unwrap();
                for (at, is) in read(&into).into_iter().enumerate() {
                    let sent = value(before, rounds, at);
                    assert!(is == sent, "message of {count} in round {rounds}: {at} is {is}, not {sent}");
                }
            }
            rounds += 1;
            let late = f32::from(u8::from(begin.elapsed() >= Duration::from_secs(10)));
            if comm.all_reduce(vec![late], ReduceOp::Max).wait().unwrap()[0] > 0.0 {
                break;
            }
        }
        println!(
            "{movement:?}, rank {rank}: {rounds} rounds; {:?}; {:?}",
            device.movements(),
            comm.reconnects()
        );
        assert_eq!(accelerator.stale_stores(), Some(0), "memory was written after it had moved");
    });
}

#[test]
fn accelerators_memory_that_nobody_moves() {
    let movement =
        if importer().as_deref() == Some("dynamic") { Movement::Transparent } else { Movement::Pinned };
    on_accelerators("still", movement, 0.0, 0.0);
}

#[test]
fn accelerators_memory_that_moves_by_itself() {
    if importer().as_deref() == Some("dynamic") {
        on_accelerators("transparent", Movement::Transparent, 30.0, 0.0);
    }
}

#[test]
fn accelerators_memory_whose_owner_asks() {
    on_accelerators("cooperative", Movement::Cooperative, 30.0, 0.0);
    on_accelerators("pinned", Movement::Pinned, 30.0, 0.0);
}

#[test]
fn accelerators_memory_that_is_revoked() {
    // Memory that moves under a key that dies by it.
    if importer().as_deref() == Some("revocable") {
        on_accelerators("forced", Movement::Revocable, 10.0, 0.0);
    }
    // Who pins without a callback keeps what was revoked.
    if importer().is_some_and(|mode| mode != "pinned") {
        on_accelerators("revocable", Movement::Revocable, 0.0, 10.0);
    }
}

/// Straight, it would be written where it has been: the NICs hear of nothing.
#[test]
fn accelerators_memory_that_nics_would_lose_goes_by_way_of_the_host() {
    if importer().as_deref() == Some("pinned") {
        on_accelerators("staged-moves", Movement::Revocable, 3.0, 0.0);
        on_accelerators("staged-revokes", Movement::Revocable, 0.0, 3.0);
        on_accelerators("staged-transparent", Movement::Transparent, 10.0, 0.0);
    }
}

/// Neither its exporter nor the NIC says so, and nothing is sent.
#[test]
fn accelerators_memory_that_is_revoked_without_a_word() {
    // Who pins without a callback reaches what was revoked as before, and a look finds nothing.
    if importer().is_none_or(|mode| mode == "pinned") {
        return println!("this needs NICs that hear of revokes");
    }
    on_hosts("unsaid", |comm| {
        let (rank, ranks) = (comm.rank(), comm.size());
        let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let owner = testbed::Device::open().unwrap();
        let memory = owner.allocate(1 << 20).unwrap();
        // It has made none of this, and hears nothing of it.
        let device = comm.attach(accelerator::open("dma-heap", Options::default()).unwrap()).unwrap();
        let count = 100_000;
        let mut from = device.adopt::<f32>(memory.as_fd(), 4096, count).unwrap();
        from.write(&vec![rank as f32; count]).unwrap();
        let into = device.alloc::<f32>(count).unwrap();
        let (from, into) = comm.sendrecv(from, next, into, before, 0).wait().unwrap();
        let mut values = vec![0.0; count];
        into.read(&mut values).unwrap();
        assert!(values.iter().all(|value| *value == before as f32));
        let counted = || owner.stat(Some(memory.as_fd())).unwrap();
        assert!(counted().maps > 0, "no NIC was given the memory");
        comm.barrier().wait().unwrap();
        if rank == 0 {
            let begin = Instant::now();
            owner.revoke(memory.as_fd()).unwrap();
            while device.movements().revokes == 0 {
                assert!(begin.elapsed() < Duration::from_secs(30), "the revoke was not found");
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("found after {:?}", begin.elapsed());
            let error = from.read(&mut values).unwrap_err();
            assert!(matches!(error, Error::RegionRevoked { rank: 0, .. }), "{error}");
            println!("{error}");
        } else {
            // Nothing is missed that is still there.
            std::thread::sleep(Duration::from_secs(2));
            assert_eq!(device.movements().revokes, 0);
        }
        assert_eq!((counted().stale_bytes, counted().maps == 0), (0, rank == 0));
        // All else goes on.
        let sum = comm.all_reduce(vec![1.0_f32; 50_000], ReduceOp::Sum).wait().unwrap();
        assert!(sum.iter().all(|value| *value == ranks as f32));
    });
}
