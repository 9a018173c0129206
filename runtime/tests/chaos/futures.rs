//! Operations as futures: dropped, forgotten, moved between threads, and many at once.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use windlass::{
    Collective, DataType, Memory, MemoryMut, Operation, RawRequest, ReduceOp, Span, TransportChoice,
};

use super::watchdog::watch;
use super::{TRANSPORTS, config, shm};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor: it looks again only when woken.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Memory that counts its end.
#[derive(Debug)]
struct Counted {
    values: Vec<f32>,
    dropped: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: the vector's elements stay in place when the value is moved, and it owns them alone.
unsafe impl Memory for Counted {
    type Element = f32;
    fn span(&mut self) -> Span {
        Span::new(self.values.as_mut_ptr(), self.values.len())
    }
}
// SAFETY: as above.
unsafe impl MemoryMut for Counted {}

fn await_count(dropped: &AtomicUsize, count: usize) {
    let begin = Instant::now();
    while dropped.load(Ordering::SeqCst) < count {
        assert!(begin.elapsed() < Duration::from_secs(5), "the memory of a dropped operation is not freed");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_dropped_operation_goes_on_and_frees_its_memory_at_its_end() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for count in [2usize, 50_000] {
            windlass::threads_with(2, &config, |comm| {
                let dropped = Arc::new(AtomicUsize::new(0));
                let memory = Counted { values: vec![1.0; count], dropped: Arc::clone(&dropped) };
                if comm.rank() == 0 {
                    drop(comm.all_reduce(memory, ReduceOp::Sum));
                    std::thread::sleep(Duration::from_millis(30));
                    assert_eq!(dropped.load(Ordering::SeqCst), 0, "the other rank has not even come");
                    comm.blocking().barrier().unwrap();
                    await_count(&dropped, 1);
                } else {
                    std::thread::sleep(Duration::from_millis(60));
                    let memory = comm.all_reduce(memory, ReduceOp::Sum).wait().unwrap();
                    assert!(memory.values.iter().all(|&v| v == 2.0));
                    comm.blocking().barrier().unwrap();
                }
            })
            .unwrap();
        }
    }
}

#[test]
fn the_last_communicator_may_be_dropped_in_flight() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(2, &config, |comm| {
            for count in [2usize, 50_000] {
                let other = comm.duplicate().unwrap();
                let dropped = Arc::new(AtomicUsize::new(0));
                if comm.rank() == 0 {
                    let memory = Counted { values: vec![1.0; count], dropped: Arc::clone(&dropped) };
                    drop(other.all_reduce(memory, ReduceOp::Sum));
                    drop(other.recv(vec![0f32; count], 1, 3));
                    drop(other);
                    comm.blocking().barrier().unwrap();
                    await_count(&dropped, 1);
                } else {
                    std::thread::sleep(Duration::from_millis(30));
                    let mut values = vec![1.0f32; count];
                    other.blocking().all_reduce(&mut values, ReduceOp::Sum).unwrap();
                    assert!(values.iter().all(|&v| v == 2.0));
                    other.blocking().send(&values, 0, 3).unwrap();
                    comm.blocking().barrier().unwrap();
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn a_forgotten_operation_leaks_and_breaks_nothing() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(2, &config, |comm| {
            let dropped = Arc::new(AtomicUsize::new(0));
            for round in 0..20 {
                let memory = Counted { values: vec![1.0; 1 + round * 3000], dropped: Arc::clone(&dropped) };
                std::mem::forget(comm.all_reduce(memory, ReduceOp::Sum));
            }
            let mut one = [1i32];
            comm.blocking().all_reduce(&mut one, ReduceOp::Sum).unwrap();
            assert_eq!(one, [2]);
            assert_eq!(dropped.load(Ordering::SeqCst), 0);
        })
        .unwrap();
    }
}

#[test]
fn a_future_is_polled_on_one_thread_and_finished_on_another() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(2, &config, |comm| {
            for round in 0..50i32 {
                let count = 1 + round as usize * 400;
                if comm.rank() == 1 && round % 5 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
                let mut operation = comm.all_reduce(vec![round; count], ReduceOp::Sum);
                // One look with a waker that does nothing: the next poll's waker counts.
                let mut context = Context::from_waker(Waker::noop());
                let first = std::pin::Pin::new(&mut operation).poll(&mut context);
                let values = match first {
                    Poll::Ready(result) => result.unwrap(),
                    Poll::Pending => std::thread::spawn(move || block_on(operation)).join().unwrap().unwrap(),
                };
                assert!(values.iter().all(|&v| v == 2 * round));
            }
        })
        .unwrap();
    }
}

#[test]
fn a_thousand_operations_are_awaited_in_any_order() {
    let _watchdog = watch(100);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        let begin = Instant::now();
        windlass::threads_with(2, &config, |comm| {
            let mut state = u64::from(comm.rank()) + 99;
            let mut random = move |below: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize % below
            };
            let mut open: Vec<(i32, Operation<Vec<i32>>)> = (0..1000)
                .map(|i| (i, comm.all_reduce(vec![i; 1 + i as usize % 50], ReduceOp::Sum)))
                .collect();
            while !open.is_empty() {
                let (i, operation) = open.swap_remove(random(open.len()));
                let values = match random(3) {
                    0 => operation.wait().unwrap(),
                    1 => block_on(operation).unwrap(),
                    _ => continue, // dropped
                };
                assert!(values.iter().all(|&v| v == 2 * i), "operation {i}: {values:?}");
            }
            comm.blocking().barrier().unwrap();
        })
        .unwrap();
        println!("over {}: {:.1?}", config.transport, begin.elapsed());
    }
}

#[test]
fn the_progress_thread_moves_what_nobody_polls() {
    let _watchdog = watch(60);
    for transport in [TransportChoice::Shm, TransportChoice::Tcp] {
        windlass::threads_with(2, &config(transport, None), |comm| {
            let mut buffer = comm.alloc::<f32>(4 << 20).unwrap();
            buffer.fill(1.0);
            let operation = comm.all_reduce(buffer, ReduceOp::Sum);
            let begin = Instant::now();
            // The main thread never polls: it computes, and looks at a flag.
            let mut sum = 0u64;
            while !operation.is_done() {
                sum = (0..1000u64).fold(sum, |s, i| s.wrapping_mul(31).wrapping_add(i));
                assert!(begin.elapsed() < Duration::from_secs(20), "nobody moves the operation ({sum})");
            }
            assert!(operation.wait().unwrap().iter().all(|&v| v == 2.0));
        })
        .unwrap();
    }
}

#[test]
fn a_finished_message_that_nobody_has_asked_for_does_not_keep_others_awake() {
    let _watchdog = watch(60);
    windlass::threads_with(2, &shm(), |comm| {
        let peer = 1 - comm.rank();
        let held: Vec<_> = (0..10).map(|tag| comm.send(vec![1u8; 8], peer, tag)).collect();
        for tag in 0..10 {
            comm.blocking().recv(&mut [0u8; 8], peer, tag).unwrap();
        }
        comm.blocking().barrier().unwrap();
        if comm.rank() == 0 {
            let before = processor_time();
            comm.blocking().barrier().unwrap();
            let used = processor_time() - before;
            assert!(used < Duration::from_millis(100), "a blocked rank used {used:?} in half a second");
        } else {
            std::thread::sleep(Duration::from_millis(500));
            comm.blocking().barrier().unwrap();
        }
        held.into_iter().for_each(|h| drop(h.wait().unwrap()));
    })
    .unwrap();
}

/// What the calling thread has used.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn scopes_wait_for_what_they_borrow() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        windlass::threads_with(2, &config, |comm| {
            let (mut a, mut b) = (vec![1.0f32; 70_000], vec![2.0f64; 3]);
            comm.scope(|scope| {
                let _unwaited = scope.all_reduce(&mut a, ReduceOp::Sum);
                scope.all_reduce(&mut b, ReduceOp::Sum).wait().unwrap();
            });
            assert!(a.iter().all(|&v| v == 2.0) && b.iter().all(|&v| v == 4.0));
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                comm.scope(|scope| {
                    let _unwaited = scope.all_reduce(&mut a, ReduceOp::Sum);
                    std::panic::resume_unwind(Box::new("on purpose"));
                })
            }));
            assert!(panicked.is_err() && a.iter().all(|&v| v == 4.0));
        })
        .unwrap();
    }
}

#[test]
fn a_wait_of_limited_time_gives_the_operation_back_and_it_goes_on() {
    let _watchdog = watch(60);
    for config in TRANSPORTS.map(|t| config(t, None)) {
        for count in [2usize, 50_000] {
            windlass::threads_with(2, &config, |comm| {
                if comm.rank() == 0 {
                    let late = std::thread::spawn({
                        let comm = comm.clone();
                        move || limited(&comm, count)
                    });
                    let (reduced, received) = late.join().unwrap();
                    assert!(reduced.iter().all(|&x| x == 2.0) && received == [7.0; 3]);
                } else {
                    std::thread::sleep(Duration::from_millis(60));
                    let mut memory = vec![1f32; count];
                    comm.blocking().all_reduce(&mut memory, ReduceOp::Sum)?;
                    std::thread::sleep(Duration::from_millis(60));
                    comm.blocking().send(&[7f32; 3], 0, 1)?;
                }
                comm.finalize()
            })
            .unwrap();
        }
    }
}

/// An all-reduce and a receive, each driven for less time than its peer takes, then left alone, then waited for.
fn limited(comm: &windlass::Communicator, count: usize) -> (Vec<f32>, Vec<f32>) {
    let in_place = |collective, memory: &mut Vec<f32>| {
        let address = memory.span().address();
        let request = RawRequest::new(collective, DataType::F32, memory.len());
        RawRequest { input: address, output: address, root: 1, tag: 1, ..request }
    };
    let run = |collective, mut memory: Vec<f32>| {
        let request = in_place(collective, &mut memory);
        let begin = Instant::now();
        // SAFETY: the vector is the request's memory, and is kept with it.
        let performed = unsafe { comm.perform_for(&request, memory, Duration::from_millis(5)) };
        let operation = performed.expect_err("its peer is not there yet");
        let operation = operation.wait_for(Duration::from_millis(5)).expect_err("nor yet");
        assert!(!operation.is_done() && begin.elapsed() < Duration::from_millis(50));
        // Nobody drives it now but the progress thread.
        while !operation.is_done() {
            std::thread::sleep(Duration::from_millis(1));
        }
        operation.wait_for(Duration::ZERO).expect("it has ended").unwrap()
    };
    (run(Collective::AllReduce, vec![1.0; count]), run(Collective::Recv, vec![0.0; 3]))
}
