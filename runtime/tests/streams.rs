//! Real TCP streams that break under operations: everything goes on, right to the bit.

#![expect(clippy::unwrap_used, reason = "a test that fails should panic")]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use windlass::{Communicator, Config, ReduceOp, TransportChoice};

/// One test at a time: each breaks whatever streams the process has.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn config() -> Config {
    let mut config = Config::default();
    config.transport = TransportChoice::Tcp;
    config.timeout = Duration::from_secs(60);
    config
}

/// The connected TCP sockets of this process, as duplicates: a number may be another file by the time it is used.
fn streams() -> Vec<OwnedFd> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers: Vec<i32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let duplicate = |number: i32| {
        // SAFETY: only the duplication uses the number, and it fails if that is closed meanwhile.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        let own = file.try_clone_to_owned().ok()?;
        let peer = rustix::net::getpeername(&own).ok()??;
        SocketAddr::try_from(peer).ok().map(|_| own)
    };
    numbers.into_iter().filter_map(duplicate).collect()
}

/// Breaks streams until it is told to stop, one after the other, in every way that a network has. Says how many.
fn saboteur(stop: &AtomicBool, every: Duration) -> u64 {
    let mut broken = 0;
    let mut chance = 0x9e37_79b9_u64;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(every);
        let found = streams();
        if found.is_empty() {
            continue;
        }
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let victim = &found[(chance >> 33) as usize % found.len()];
        assert!(victim.as_raw_fd() > 2);
        let done = match chance >> 60 & 3 {
            0 => rustix::net::shutdown(victim, rustix::net::Shutdown::Both),
            1 => rustix::net::shutdown(victim, rustix::net::Shutdown::Write),
            // A reset: what is on its way in either direction is thrown away.
            _ => rustix::net::connect_unspec(victim),
        };
        broken += u64::from(done.is_ok());
    }
    broken
}

/// What rank `rank` brings to call `call`.
fn operand(rank: u32, call: usize, count: usize) -> Vec<i64> {
    (0..count as i64).map(|i| (i ^ (call as i64) << 40).wrapping_mul(i64::from(rank) * 2 + 3)).collect()
}

fn check_sum(comm: &Communicator, call: usize, count: usize) {
    let mut memory = operand(comm.rank(), call, count);
    comm.blocking().all_reduce(&mut memory[..], ReduceOp::Sum).unwrap();
    let all: Vec<Vec<i64>> = (0..comm.size()).map(|rank| operand(rank, call, count)).collect();
    let right =
        memory.iter().enumerate().all(|(i, sum)| *sum == all.iter().fold(0i64, |a, b| a.wrapping_add(b[i])));
    assert!(right, "rank {}, call {call}: a wrong sum of {count}", comm.rank());
}

/// All-reduces of all sizes while streams break; says how many were broken and opened anew, and how many bytes left once more.
fn under_fire(ranks: u32, every: Duration, calls: &[usize]) -> (u64, u64, u64) {
    let (stop, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
    let (reconnects, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let broken = std::thread::scope(|scope| {
        let saboteur = scope.spawn(|| {
            let broken = saboteur(&stop, every);
            stopped.store(true, Ordering::Relaxed);
            broken
        });
        windlass::threads_with(ranks, &config(), |comm| {
            for (call, count) in calls.iter().enumerate() {
                check_sum(&comm, call, *count);
            }
            let counted = comm.reconnects();
            reconnects.fetch_add(counted.streams, Ordering::Relaxed);
            bytes.fetch_add(counted.bytes, Ordering::Relaxed);
            // A rank that leaves has nothing to send again: the last barrier is over streams that have been mended.
            comm.blocking().barrier().unwrap();
            stop.store(true, Ordering::Relaxed);
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            comm.blocking().barrier().unwrap();
            comm.blocking().barrier().unwrap();
        })
        .unwrap();
        saboteur.join().unwrap()
    });
    println!("{broken} broken, {reconnects:?} opened anew, {bytes:?} bytes sent once more");
    (broken, reconnects.into_inner(), bytes.into_inner())
}

#[test]
fn large_sums_survive_streams_that_break() {
    let _alone = alone();
    let calls = [8 << 20; 6];
    let (broken, reconnects, bytes) = under_fire(2, Duration::from_millis(20), &calls);
    assert!(broken > 5 && reconnects > 5 && bytes > 0);
}

#[test]
fn small_sums_survive_streams_that_break() {
    let _alone = alone();
    let calls: Vec<usize> = (0..30_000).map(|call| [1, 100, 1_000, 9_000][call % 4]).collect();
    let (broken, reconnects, _) = under_fire(3, Duration::from_millis(3), &calls);
    assert!(broken > 50 && reconnects > 50);
}

/// A rank that computes, and calls nothing, opens its streams anew all the same.
#[test]
fn a_rank_that_calls_nothing_answers() {
    let _alone = alone();
    windlass::threads_with(2, &config(), |comm| {
        check_sum(&comm, 0, 10);
        if comm.rank() == 0 {
            let shut = |stream: &OwnedFd| rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
            streams().iter().for_each(|stream| shut(stream).unwrap_or_default());
            let memory = [7i64];
            let begin = Instant::now();
            comm.blocking().send(&memory[..], 1, 3).unwrap();
            assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
            while comm.reconnects().streams == 0 {
                assert!(begin.elapsed() < Duration::from_secs(2), "nobody answers");
                std::thread::sleep(Duration::from_millis(1));
            }
        } else {
            std::thread::sleep(Duration::from_secs(3));
            let mut memory = [0i64];
            comm.blocking().recv(&mut memory[..], 0, 3).unwrap();
            assert_eq!(memory, [7]);
        }
        comm.blocking().barrier().unwrap();
    })
    .unwrap();
}

/// Without replay a broken stream is the peer's failure, at once.
#[test]
fn nothing_is_opened_anew_where_it_is_turned_off() {
    let _alone = alone();
    let mut config = config();
    config.reconnect = Duration::ZERO;
    windlass::threads_with(2, &config, |comm| {
        check_sum(&comm, 0, 10);
        std::thread::sleep(Duration::from_millis(200));
        if comm.rank() == 0 {
            streams().iter().for_each(|stream| rustix::net::connect_unspec(stream).unwrap_or_default());
        }
        let begin = Instant::now();
        let error = comm.blocking().all_reduce(&mut [1i64], ReduceOp::Sum).unwrap_err();
        assert!(matches!(error, windlass::Error::PeerFailed { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(5));
    })
    .unwrap();
}
