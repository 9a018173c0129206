//! A fork in the middle: the child's calls return `Forked`, its drops are inert, and the parent notices nothing.

use std::time::{Duration, Instant};

use windlass::{Error, Operation, ReduceOp};

use super::watchdog::watch;
use super::{TRANSPORTS, config};

/// Runs `child` in a fork and returns its exit code; 99 when it had to be killed.
fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs on with one thread. It allocates, which glibc allows after a fork, and ends by _exit.
    match unsafe { libc::fork() } {
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(98);
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        pid => {
            assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
            let begin = Instant::now();
            let mut status = 0;
            // SAFETY: waits for our own child; status is ours.
            while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
                if begin.elapsed() > Duration::from_secs(10) {
                    // SAFETY: kills our own child, which has not been waited for.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                    // SAFETY: as above.
                    unsafe { libc::waitpid(pid, &raw mut status, 0) };
                    return 99;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 100 + libc::WTERMSIG(status) }
        }
    }
}

/// What a child may see: the number of the first expectation that fails, or 0.
fn look_around(
    comm: windlass::Communicator,
    operation: Operation<Vec<f32>>,
    message: Operation<Vec<u8>>,
) -> i32 {
    let forked = |error: &Error| matches!(error, Error::Forked { .. });
    let expectations = [
        comm.blocking().barrier().is_err_and(|e| forked(&e)),
        comm.blocking().all_reduce(&mut [1f32], ReduceOp::Sum).is_err_and(|e| forked(&e)),
        comm.blocking().send(&[1u8], 1, 0).is_err_and(|e| forked(&e)),
        comm.alloc::<f32>(10).is_err_and(|e| forked(&e)),
        comm.split(Some(1), 0).is_err_and(|e| forked(&e)),
        comm.duplicate().is_err_and(|e| forked(&e)),
        comm.all_reduce(vec![1f32], ReduceOp::Sum)
            .wait()
            .is_err_and(|f| forked(&f.error) && f.memory == [1.0]),
        operation.is_done(),
        operation.wait().is_err_and(|f| forked(&f.error)),
        super::futures::block_on(message).is_err_and(|f| forked(&f.error)),
        comm.clone().finalize().is_err_and(|e| forked(&e)),
    ];
    comm.abort();
    comm.scope(|scope| drop(scope.send(&[1u8], 1, 0)));
    drop(comm);
    expectations.iter().position(|held| !held).map_or(0, |at| at as i32 + 1)
}

#[test]
fn a_child_is_inert_and_the_parent_goes_on() {
    let _watchdog = watch(100);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for round in 0..5 {
            windlass::threads_with(2, &config, |comm| {
                let other = comm.duplicate().unwrap();
                if comm.rank() == 0 {
                    let mut buffer = comm.alloc::<f32>(1000).unwrap();
                    buffer.fill(3.0);
                    let held = comm.all_reduce(buffer, ReduceOp::Sum);
                    let mut operation = Some(other.all_reduce(vec![1f32; 50_000], ReduceOp::Sum));
                    let mut message = Some(other.recv(vec![0u8; 9], 1, 0));
                    let mut parts = Some((comm.clone(), other.clone()));
                    let code = fork(|| {
                        let (Some(operation), Some(message), Some((comm, other))) =
                            (operation.take(), message.take(), parts.take())
                        else {
                            return 97;
                        };
                        let code = look_around(comm, operation, message);
                        drop(other);
                        code
                    });
                    assert_eq!(code, 0, "round {round}: the child's expectation of this number failed");
                    // A child that ends with everything in its hands.
                    let code = fork(|| {
                        drop((operation.take(), message.take(), parts.take()));
                        0
                    });
                    assert_eq!(code, 0, "round {round}: the child that drops everything");
                    comm.blocking().barrier().unwrap();
                    let values = operation.take().map(|o| o.wait().unwrap()).unwrap_or_default();
                    assert!(values.len() == 50_000 && values.iter().all(|&v| v == 2.0));
                    let text = message.take().map(|m| m.wait().unwrap()).unwrap_or_default();
                    assert_eq!(text, b"to parent");
                    assert!(held.wait().unwrap().iter().all(|&v| v == 6.0));
                } else {
                    // The order on `comm` is the same as on rank 0.
                    std::thread::sleep(Duration::from_millis(30));
                    let mut buffer = comm.alloc::<f32>(1000).unwrap();
                    buffer.fill(3.0);
                    comm.blocking().all_reduce(&mut buffer, ReduceOp::Sum).unwrap();
                    comm.blocking().barrier().unwrap();
                    other.blocking().all_reduce(&mut vec![1f32; 50_000], ReduceOp::Sum).unwrap();
                    other.blocking().send(b"to parent", 0, 0).unwrap();
                }
                comm.finalize().unwrap();
            })
            .unwrap();
        }
    }
}

#[test]
fn a_child_that_drops_the_job_touches_nothing_of_the_parent_s() {
    let _watchdog = watch(60);
    // The last handle on the job is dropped in the child: nothing may be joined, closed for the parent or unmapped.
    windlass::threads_with(2, &super::shm(), |comm| {
        let mut comm = Some(comm);
        if comm.as_ref().is_some_and(|c| c.rank() == 0) {
            let code = fork(|| {
                let before = mappings();
                drop(comm.take());
                let lost = before.iter().filter(|m| !mappings().contains(m)).count();
                i32::from(lost > 0)
            });
            assert_eq!(code, 0);
        }
        let Some(comm) = comm else { return };
        for _ in 0..10 {
            comm.blocking().all_reduce(&mut [1f32; 3000], ReduceOp::Sum).unwrap();
        }
    })
    .unwrap();
}

/// The address ranges of shared files and devices that are mapped.
fn mappings() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let shared = maps.lines().filter(|l| l.contains("memfd"));
    shared.filter_map(|l| l.split(' ').next().map(str::to_owned)).collect()
}
