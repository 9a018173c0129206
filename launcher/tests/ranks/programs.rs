//! The rank programs, by name.

use std::time::{Duration, Instant};

use windlass::{Communicator, Error, ReduceOp};

/// Runs the program that the environment names.
pub(crate) fn run(name: &str) {
    let program: fn(Communicator) = match name {
        "sum" => sum,
        "loop" => endless,
        "messages" => messages,
        "lends" => lends,
        "idle" => idle,
        "blocked" => blocked,
        "stopped" => stopped,
        "footprint" => footprint,
        "forks" => forks_then_loops,
        "thousand" => thousand,
        "exits" => |_| std::process::exit(7),
        "too_much" => too_much,
        _ => panic!("there is no program {name}"),
    };
    match windlass::init() {
        Ok(comm) => program(comm),
        Err(error) => {
            println!("join-error {error}");
            std::process::exit(9);
        }
    }
}

fn pid() -> u32 {
    std::process::id()
}

/// One all-reduce, and more of every size.
fn sum(comm: Communicator) {
    let mut one = [1i32];
    let result = comm.blocking().all_reduce(&mut one, ReduceOp::Sum);
    if let Err(error) = result {
        println!("error {error}");
        std::process::exit(8);
    }
    assert_eq!(one[0] as u32, comm.size());
    let since: u128 = std::env::var("STARTED_MS").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    println!("first-ms {}", now.saturating_sub(since));
    for count in [0usize, 10, 30_000] {
        let mut memory = match comm.alloc::<f32>(count) {
            Ok(memory) => memory,
            Err(error) => {
                println!("error {error}");
                std::process::exit(8);
            }
        };
        memory.fill(2.0);
        if let Err(error) = comm.blocking().all_reduce(&mut memory, ReduceOp::Sum) {
            println!("error {error}");
            std::process::exit(8);
        }
        assert!(memory.iter().all(|&v| v == 2.0 * comm.size() as f32));
    }
    comm.finalize().unwrap();
    println!("done");
}

/// All-reduces until something goes wrong, and says what.
fn endless(comm: Communicator) {
    let mut memory = comm.alloc::<f32>(100_000).unwrap();
    let mut said = false;
    loop {
        if let Err(error) = comm.blocking().all_reduce(&mut memory, ReduceOp::Max) {
            match &error {
                Error::PeerFailed { rank, .. } => println!("peer-failed {rank}"),
                _ => println!("other-error {error}"),
            }
            return;
        }
        if !std::mem::replace(&mut said, true) {
            println!("pid {} {}", comm.rank(), pid());
        }
    }
}

/// Large messages in a ring, from registered and from heap memory in turn, until something goes wrong.
fn messages(comm: Communicator) {
    const COUNT: usize = 3 << 20;
    // The launcher ends the others soon after a death; on a busy machine a rank has something to say even then.
    // SAFETY: no handler of this program's is replaced.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    let (next, previous) = ((comm.rank() + 1) % comm.size(), (comm.rank() + comm.size() - 1) % comm.size());
    let (mut registered, mut heap) = (comm.alloc::<u8>(COUNT).unwrap(), vec![0u8; COUNT]);
    let mut said = false;
    for round in 0u32.. {
        let value = (round % 251) as u8;
        let (ours, theirs): (&mut [u8], &mut [u8]) =
            if round % 2 == 0 { (&mut registered, &mut heap) } else { (&mut heap, &mut registered) };
        ours.fill(value);
        let received = comm.scope(|scope| {
            let sent = scope.send(&*ours, next, 0);
            scope.recv(&mut *theirs, previous, 0).wait().and(sent.wait())
        });
        match received {
            Ok(()) => assert!(theirs.iter().all(|&byte| byte == value), "round {round}"),
            Err(Error::PeerFailed { rank, .. }) => return println!("peer-failed {rank}"),
            Err(error) => return println!("other-error {error}"),
        }
        if !std::mem::replace(&mut said, true) {
            println!("pid {} {}", comm.rank(), pid());
        }
    }
}

/// Rank 0 sends registered memory to rank 1, which stops in the middle; takes it back in time, and writes it anew.
fn lends(comm: Communicator) {
    const COUNT: usize = 16 << 20;
    const SENT: i32 = 0x1234_5678;
    let mut memory = comm.alloc::<i32>(COUNT).unwrap();
    memory.fill(if comm.rank() == 0 { SENT } else { 0 });
    comm.blocking().barrier().unwrap();
    println!("pid {} {}", comm.rank(), pid());
    loop {
        if comm.rank() == 0 {
            if let Err(error) = comm.blocking().send(&memory, 1, 0) {
                memory.fill(0x5a5a_5a5a);
                match error {
                    Error::TimedOut { waiting_on, .. } => println!("took-back {waiting_on:?}"),
                    error => println!("other-error {error}"),
                }
                std::thread::sleep(Duration::from_millis(700));
                return;
            }
        } else {
            memory.fill(0);
            let received = comm.blocking().recv(&mut memory, 0, 0);
            let wrong = memory.iter().filter(|&&v| v != SENT).count();
            match received {
                Ok(()) if wrong > 0 => return println!("wrong {wrong}"),
                Ok(()) => {}
                Err(_) => return println!("failed with {wrong} missing"),
            }
        }
    }
}

/// As `endless`, with a child that outlives its parent and holds what it inherited.
fn forks_then_loops(comm: Communicator) {
    // SAFETY: the child does nothing but sleep and end.
    if unsafe { libc::fork() } == 0 {
        std::thread::sleep(Duration::from_secs(3));
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) }
    }
    endless(comm);
}

/// Has communicators and does nothing with them.
fn idle(comm: Communicator) {
    let other = comm.duplicate().unwrap();
    let operation = other.all_reduce(vec![1f32; 100_000], ReduceOp::Sum);
    drop(operation.wait().unwrap());
    comm.blocking().barrier().unwrap();
    println!("pid {} {}", comm.rank(), pid());
    std::thread::sleep(Duration::from_secs(4));
    comm.finalize().unwrap();
}

/// All but rank 0 wait for rank 0.
fn blocked(comm: Communicator) {
    let mut memory = vec![1f32; 1000];
    comm.blocking().all_reduce(&mut memory, ReduceOp::Sum).unwrap();
    println!("pid {} {}", comm.rank(), pid());
    if comm.rank() == 0 {
        std::thread::sleep(Duration::from_secs(4));
    }
    comm.blocking().all_reduce(&mut memory, ReduceOp::Sum).unwrap();
    comm.finalize().unwrap();
}

/// Rank 0 is the survivor: it takes its memory back from an operation that a stopped peer is in, and guards it.
fn stopped(comm: Communicator) {
    const COUNT: usize = 16 << 20;
    let mut memory = comm.alloc::<i32>(COUNT).unwrap();
    memory.fill(1);
    comm.blocking().barrier().unwrap();
    println!("pid {} {}", comm.rank(), pid());
    let error = loop {
        if let Err(error) = comm.blocking().all_reduce(&mut memory, ReduceOp::Max) {
            break error;
        }
    };
    if comm.rank() != 0 {
        return;
    }
    memory.fill(0x5a5a_5a5a);
    let Error::TimedOut { waiting_on, .. } = error else {
        println!("other-error {error}");
        return;
    };
    println!("took-back {waiting_on:?}");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(700) {
        let disturbed = memory.iter().filter(|&&v| v != 0x5a5a_5a5a).count();
        if disturbed > 0 {
            println!("disturbed {disturbed}");
            std::process::exit(3);
        }
    }
    println!("undisturbed");
}

/// After 100 all-reduces of 1 MiB, what a rank needs beside its own memory.
fn footprint(comm: Communicator) {
    let mut memory = vec![1f32; 256 << 10];
    for _ in 0..100 {
        comm.blocking().all_reduce(&mut memory, ReduceOp::Max).unwrap();
    }
    comm.blocking().barrier().unwrap();
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap();
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    println!("pss-kib {}", kib - 1024);
    // Nobody leaves before all have looked: what ranks share is split among those who are there.
    comm.blocking().barrier().unwrap();
    comm.finalize().unwrap();
}

/// A thousand operations for a scrape to count; then waits to be ended.
fn thousand(comm: Communicator) {
    for _ in 0..1000 {
        comm.blocking().all_reduce(&mut [1f32; 256], ReduceOp::Sum).unwrap();
    }
    for _ in 0..7 {
        comm.blocking().broadcast(&mut [1u8; 10], 0).unwrap();
    }
    println!("counted");
    std::thread::sleep(Duration::from_secs(20));
    comm.finalize().unwrap();
}

/// Asks for more memory than the limit on its address space leaves.
fn too_much(comm: Communicator) {
    let limit = libc::rlimit { rlim_cur: 2 << 30, rlim_max: 2 << 30 };
    // SAFETY: the call reads one rlimit, which is ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    let error = comm.alloc::<u8>(3 << 30).unwrap_err();
    assert!(matches!(error, Error::System { .. }) && error.to_string().contains("memory"), "{error}");
    let mut memory = comm.alloc::<u8>(1 << 20).unwrap();
    comm.blocking().all_reduce(&mut memory, ReduceOp::Sum).unwrap();
    comm.finalize().unwrap();
    println!("done");
}
