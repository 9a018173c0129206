//! The rank programs over device memory, by name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::accelerator::Contents;
use windlass::accelerator::simulated::{Options, SimulatedAccelerator};
use windlass::{Communicator, DeviceBuffer, Error, ReduceOp};

/// Runs the program that the environment names.
pub(crate) fn run(name: &str) {
    let program: fn(&Communicator) = match name {
        "under_fire" => under_fire,
        "stopped_in_the_middle" => stopped_in_the_middle,
        "many_buffers" => many_buffers,
        "few_descriptors" => few_descriptors,
        _ => panic!("there is no program {name}"),
    };
    program(&windlass::init().unwrap());
}

fn say_pid(comm: &Communicator) {
    println!("pid {} {}", comm.rank(), std::process::id());
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Rank `rank`'s element `i`.
fn value(rank: u32, i: usize) -> i32 {
    (i as i32).wrapping_mul(rank as i32 + 3) ^ (rank as i32) << 20
}

fn fill(buffer: &mut DeviceBuffer<i32>, rank: u32) {
    buffer.write(&(0..buffer.len()).map(|i| value(rank, i)).collect::<Vec<_>>()).unwrap();
}

fn say_result(comm: &Communicator, buffer: &DeviceBuffer<i32>) {
    let mut values = vec![0; buffer.len()];
    buffer.read(&mut values).unwrap();
    let sum = |i| (0..comm.size()).fold(0i32, |sum, rank| sum.wrapping_add(value(rank, i)));
    let wrong = values.iter().enumerate().filter(|(i, is)| sum(*i) != **is).count();
    println!("result {}", if wrong == 0 { "right".into() } else { format!("{wrong} wrong") });
}

/// All-reduces over memory that moves, until something goes wrong; then uses the memory again.
fn under_fire(comm: &Communicator) {
    // The launcher would have it end with the rank that was killed.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    // It is away for so long that the rank often dies meanwhile.
    let move_time = Duration::from_millis(30);
    let options =
        Options { moves_per_second: 20.0, revokes_per_second: 20.0, move_time, ..Options::default() };
    let device = comm.attach(Arc::new(SimulatedAccelerator::new(options))).unwrap();
    let mut buffer = device.alloc::<i32>(500_000).unwrap();
    let mut said = false;
    let failed = loop {
        match comm.all_reduce(buffer, ReduceOp::Max).wait() {
            Ok(memory) => buffer = memory,
            Err(failed) => break failed,
        }
        if !std::mem::replace(&mut said, true) {
            say_pid(comm);
        }
    };
    match &failed.error {
        Error::PeerFailed { rank, .. } => println!("peer-failed {rank}"),
        error => println!("other-error {error}"),
    }
    let mut memory = failed.memory;
    let mut values = vec![7; memory.len()];
    let used = memory.write(&values).and_then(|()| {
        std::thread::sleep(Duration::from_millis(100));
        memory.read(&mut values)
    });
    match used {
        Ok(()) if values.iter().all(|&is| is == 7) => println!("memory usable"),
        Ok(()) => println!("memory disturbed"),
        Err(error) => println!("memory unusable: {error}"),
    }
}

fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

/// Distinct device memories that this process maps.
fn mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let of = maps.lines().filter(|line| line.contains("windlass-device"));
    of.filter_map(|line| line.split_whitespace().nth(4)).collect::<std::collections::BTreeSet<_>>().len()
}

/// 256 MiB, of which rank 0's move and are taken away while rank 1 is stopped.
fn stopped_in_the_middle(comm: &Communicator) {
    const COUNT: usize = 64 << 20;
    let accelerator = Arc::new(SimulatedAccelerator::new(Options {
        capacity_bytes: 1 << 30,
        patience: Duration::from_millis(500),
        keep: Duration::ZERO,
        fence_delay: Duration::from_millis(1)..=Duration::from_millis(2),
        ..Options::default()
    }));
    let device = comm.attach(accelerator.clone()).unwrap();
    let mut buffer = device.alloc::<i32>(COUNT).unwrap();
    fill(&mut buffer, comm.rank());
    let mut pids = [0i32; 2];
    comm.blocking().all_gather_into(&[std::process::id() as i32], &mut pids).unwrap();
    say_pid(comm);
    let region = buffer.region();
    let operation = comm.all_reduce(buffer, ReduceOp::Sum);
    if comm.rank() == 0 {
        std::thread::sleep(Duration::from_millis(20));
        println!("begun");
        until("the peer is stopped", || is_stopped(pids[1]));
        assert!(!operation.is_done(), "the peer was stopped too late");
        accelerator.move_now(region).unwrap();
        until("the move is refused", || device.movements().refused > 0);
        assert_eq!(accelerator.counters().refused, 1);
        println!("refused {}", device.movements().refused);
        accelerator.revoke_now(region, Contents::Preserved).unwrap();
        until("the revoke is known", || device.movements().revokes > 0);
        println!("revoked");
    }
    let buffer = operation.wait().unwrap();
    say_result(comm, &buffer);
    comm.blocking().barrier().unwrap();
    until("the old places are forgotten", || mapped() <= 3);
    println!("mapped {}", mapped());
    println!("audit {:?}", accelerator.audit());
    comm.blocking().barrier().unwrap();
}

/// Rank 0 makes and drops many buffers, and moves many at once, while rank 1 is stopped.
fn many_buffers(comm: &Communicator) {
    const BUFFERS: usize = 300;
    let options = Options { patience: Duration::from_millis(300), ..Options::default() };
    let accelerator = Arc::new(SimulatedAccelerator::new(options));
    let device = comm.attach(accelerator.clone()).unwrap();
    let pair = comm.split((comm.rank() != 1).then_some(0), 0).unwrap();
    let buffers: Vec<_> = (0..BUFFERS).map(|_| device.alloc::<i32>(1).unwrap()).collect();
    let mut pids = [0i32; 3];
    comm.blocking().all_gather_into(&[std::process::id() as i32], &mut pids).unwrap();
    // All at once, on every rank, while everybody answers.
    for buffer in &buffers {
        accelerator.revoke_now(buffer.region(), Contents::Preserved).unwrap();
    }
    until("all are noticed", || device.movements().revokes == BUFFERS as u64);
    comm.blocking().barrier().unwrap();
    say_pid(comm);
    if let Some(pair) = pair {
        until("the peer is stopped", || is_stopped(pids[1]));
        for _ in 0..BUFFERS {
            drop(device.alloc::<i32>(1).unwrap());
        }
        for buffer in &buffers {
            accelerator.revoke_now(buffer.region(), Contents::Preserved).unwrap();
        }
        let begin = Instant::now();
        let mut buffer = device.alloc::<i32>(100_000).unwrap();
        for _ in 0..3 {
            buffer = pair.all_reduce(buffer, ReduceOp::Max).wait().unwrap();
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        println!("went on");
    }
    let mut buffer = device.alloc::<i32>(100_000).unwrap();
    fill(&mut buffer, comm.rank());
    let buffer = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap();
    say_result(comm, &buffer);
    assert_eq!(accelerator.audit(), []);
    comm.blocking().barrier().unwrap();
}

/// Makes buffers until descriptors run out on rank 1.
fn few_descriptors(comm: &Communicator) {
    // Rank 1 may run out, and abort, before the others have come out of the attach.
    let device = match comm.attach(Arc::new(SimulatedAccelerator::new(Options::default()))) {
        Ok(device) => device,
        Err(error) => {
            let typed = comm.rank() != 1 && matches!(error, Error::Aborted { .. });
            println!("end {} {error}", if typed { "typed" } else { "other" });
            return;
        }
    };
    if comm.rank() == 1 {
        let spare: u64 = std::env::var("SPARE").unwrap().parse().unwrap();
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let highest = open.filter_map(|e| e.file_name().to_str()?.parse::<u64>().ok()).max().unwrap();
        let limit = libc::rlimit { rlim_cur: highest + spare, rlim_max: highest + spare };
        // SAFETY: the call reads one rlimit, which is ours.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    }
    let mut kept = Vec::new();
    loop {
        let buffer = match device.alloc::<i32>(50_000) {
            Ok(buffer) => buffer,
            Err(error) => {
                println!("end typed {error}");
                comm.abort();
                break;
            }
        };
        match comm.all_reduce(buffer, ReduceOp::Sum).wait() {
            Ok(buffer) => kept.push(buffer),
            Err(failed) => {
                let typed = matches!(
                    failed.error,
                    Error::System { .. } | Error::Aborted { .. } | Error::RegionRevoked { .. }
                );
                println!("end {} {}", if typed { "typed" } else { "other" }, failed.error);
                break;
            }
        }
        assert!(kept.len() < 100, "descriptors do not run out");
    }
}
