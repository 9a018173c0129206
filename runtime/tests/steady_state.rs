//! After a warm-up the hot path allocates nothing, on any thread of any rank.
//!
//! A test binary of its own, with one test: every allocation of the process is counted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use windlass::{Algorithm, Communicator, Config, List, ReduceOp, TransportChoice};

struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if COUNTS.load(Ordering::Relaxed) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: hands everything on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the same.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one rank does again and again.
type Round<'a> = Box<dyn FnMut() + 'a>;

fn reduces<'a>(comm: &'a Communicator, count: usize, registered: bool) -> Round<'a> {
    let mut heap = vec![1f32; count];
    let mut buffer = registered.then(|| comm.alloc::<f32>(count).unwrap());
    Box::new(move || {
        let memory = buffer.as_deref_mut().unwrap_or(&mut heap);
        comm.blocking().all_reduce(memory, ReduceOp::Max).unwrap();
    })
}

fn reduces_a_list(comm: &Communicator) -> Round<'_> {
    let members = (0..20).map(|member| comm.alloc::<f32>(member * 100).unwrap()).collect();
    let mut list = List::new(members);
    Box::new(move || comm.blocking().lists().all_reduce(&mut list, ReduceOp::Max).unwrap())
}

fn exchanges_both_ways(comm: &Communicator) -> Round<'_> {
    let peer = 1 - comm.rank();
    Box::new(move || comm.blocking().sendrecv(&[5i64], peer, &mut [0i64], peer, 3).unwrap())
}

fn exchanges(comm: &Communicator) -> Round<'_> {
    let peer = 1 - comm.rank();
    Box::new(move || {
        let mut got = [0i64];
        if comm.rank() == 0 {
            comm.blocking().send(&[5i64], peer, 3).unwrap();
            comm.blocking().recv(&mut got, peer, 3).unwrap();
        } else {
            comm.blocking().recv(&mut got, peer, 3).unwrap();
            comm.blocking().send(&[5i64], peer, 3).unwrap();
        }
    })
}

#[test]
fn a_thousand_operations_allocate_nothing() {
    type Make = fn(&Communicator) -> Round<'_>;
    let (shm, tcp) = (TransportChoice::Shm, TransportChoice::Tcp);
    let cases: [(&str, TransportChoice, Option<Algorithm>, Make); 8] = [
        ("published, 8 B", shm, None, |c| reduces(c, 2, false)),
        ("direct, registered, 64 KiB", shm, Some(Algorithm::Direct), |c| reduces(c, 16 << 10, true)),
        ("staged, heap, 256 KiB", shm, Some(Algorithm::Direct), |c| reduces(c, 64 << 10, false)),
        ("ring over TCP, 64 KiB", tcp, Some(Algorithm::Ring), |c| reduces(c, 16 << 10, false)),
        ("messages of 8 B through shared memory", shm, None, exchanges),
        ("messages of 8 B over TCP", tcp, None, exchanges),
        ("a list of 20 buffers, registered", shm, Some(Algorithm::Direct), reduces_a_list),
        ("messages of 8 B both ways at once", shm, None, exchanges_both_ways),
    ];
    let mut wrong = Vec::new();
    for (name, transport, algorithm, make) in cases {
        let mut config = Config::default();
        (config.transport, config.algorithm) = (transport, algorithm);
        let together = Barrier::new(2);
        let fewest = AtomicUsize::new(usize::MAX);
        windlass::threads_with(2, &config, |comm| {
            let mut round = make(&comm);
            (0..2000).for_each(|_| round());
            // On a busy machine a rank may wait for so long that it looks whom it waits for, and lists them.
            for _ in 0..10 {
                together.wait();
                COUNTS.store(true, Ordering::SeqCst);
                together.wait();
                (0..1000).for_each(|_| round());
                if together.wait().is_leader() {
                    COUNTS.store(false, Ordering::SeqCst);
                    fewest.fetch_min(ALLOCATIONS.swap(0, Ordering::SeqCst), Ordering::SeqCst);
                }
                together.wait();
            }
        })
        .unwrap();
        let allocations = fewest.into_inner();
        println!("{name}: {allocations} allocations in the best 1000 operations of 10");
        if allocations > 0 {
            wrong.push((name, allocations));
        }
    }
    assert!(wrong.is_empty(), "the steady state allocates: {wrong:?}");
}
