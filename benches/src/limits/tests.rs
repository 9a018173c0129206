//! Every limit against the sum worked out by hand, with threads for ranks over one mapping.

use core::ptr::NonNull;

use super::*;

/// A zeroed shared mapping that lasts as long as the value.
struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping where the kernel likes; it overlaps nothing.
        let base = unsafe { mmap_anonymous(core::ptr::null_mut(), length, protection, MapFlags::SHARED) };
        Self { base: NonNull::new(base.unwrap().cast()).unwrap(), length }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the threads that used it have been joined.
        unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) }.unwrap();
    }
}

const BUFFERS: usize = 3;
const COUNTS: [usize; 13] = [1, 2, 10, 11, 15, 16, 17, 1000, 1023, 1024, 5001, 40_000, 120_001];

fn element(rank: usize, index: usize, iteration: usize) -> f32 {
    ((rank + 1) * ((index * 7 + iteration * 13) % 64 + 1)) as f32
}

fn expected(ranks: usize, index: usize, iteration: usize) -> f32 {
    (0..ranks).map(|rank| element(rank, index, iteration)).sum()
}

/// Runs `body` as every rank, on a thread each.
fn as_ranks(ranks: usize, body: impl Fn(Arena, usize) + Sync) {
    let shape = Shape { ranks, buffers: BUFFERS, bytes: 120_001 * size_of::<f32>() };
    let mapping = Mapping::new(shape.arena_bytes());
    // SAFETY: the mapping is shared, zeroed, and outlives the scope.
    let arena = unsafe { Arena::new(mapping.base, mapping.length, shape) }.unwrap();
    let body = &body;
    std::thread::scope(|scope| {
        for rank in 0..ranks {
            scope.spawn(move || body(arena, rank));
        }
    });
}

fn check_direct(ranks: usize, way: Option<Way>, stream_bytes: usize) {
    as_ranks(ranks, |arena, rank| {
        let mut limit = Limit::direct(arena, rank);
        limit.way = way;
        limit.stream_bytes = stream_bytes;
        for (iteration, &count) in COUNTS.iter().chain(COUNTS.iter().rev()).enumerate() {
            let index = iteration % BUFFERS;
            // SAFETY: the buffer is this rank's, large enough, and no operation is under way on it.
            let own = unsafe { core::slice::from_raw_parts_mut(arena.buffer(rank, index), count) };
            (0..count).for_each(|i| own[i] = element(rank, i, iteration));
            limit.run(index, count);
            for (i, sum) in own.iter().enumerate() {
                assert_eq!(*sum, expected(ranks, i, iteration), "rank {rank} of {ranks}: {count} at {i}");
            }
        }
    });
}

#[test]
fn direct_sums() {
    for ranks in 1..=4 {
        check_direct(ranks, None, STREAM_BYTES);
    }
}

#[test]
fn direct_sums_in_every_way() {
    for ranks in 2..=4 {
        check_direct(ranks, Some(Way::Publish), STREAM_BYTES);
        check_direct(ranks, Some(Way::Slices), STREAM_BYTES);
        check_direct(ranks, Some(Way::Slices), 0);
    }
}

fn check_heap(ranks: usize, way: impl Fn(usize) -> Option<HeapWay> + Sync, chunk_bytes: Option<usize>) {
    as_ranks(ranks, |arena, rank| {
        let mut limit = Limit::heap(arena, rank);
        limit.chunk_bytes = chunk_bytes;
        for (iteration, &count) in COUNTS.iter().chain(COUNTS.iter().rev()).enumerate() {
            limit.way = way(iteration);
            let mut own: Vec<f32> = (0..count).map(|i| element(rank, i, iteration)).collect();
            limit.run(&mut own);
            for (i, sum) in own.iter().enumerate() {
                assert_eq!(*sum, expected(ranks, i, iteration), "rank {rank} of {ranks}: {count} at {i}");
            }
        }
    });
}

#[test]
fn heap_sums() {
    for ranks in 1..=4 {
        check_heap(ranks, |_| None, None);
    }
}

#[test]
fn heap_sums_in_every_way_and_when_ways_alternate() {
    for ranks in 2..=4 {
        check_heap(ranks, |_| Some(HeapWay::Whole), Some(4096));
        check_heap(ranks, |_| Some(HeapWay::Parts), Some(4096));
        check_heap(
            ranks,
            |iteration| Some(if iteration % 2 == 0 { HeapWay::Whole } else { HeapWay::Parts }),
            Some(16 << 10),
        );
    }
}

#[test]
fn a_limit_made_later_goes_on_where_the_arena_stands() {
    as_ranks(3, |arena, rank| {
        for iteration in 0..6 {
            let mut values = vec![element(rank, 0, iteration); 40_000];
            let mut few = [element(rank, 0, iteration)];
            let mut limit = Limit::heap(arena, rank);
            limit.run(&mut values);
            limit.run(&mut few);
            assert!(values.iter().chain(&few).all(|sum| *sum == expected(3, 0, iteration)));
            arena.barrier(rank, Wait::for_ranks(3));
        }
    });
}

#[test]
fn both_kinds_live_on_one_arena() {
    as_ranks(2, |arena, rank| {
        let (mut direct, mut heap) = (Limit::direct(arena, rank), Limit::heap(arena, rank));
        for iteration in 0..60 {
            let count = [2, 500, 3000][iteration % 3];
            for _ in 0..iteration % 4 {
                // SAFETY: the buffer is this rank's, large enough, and no operation is under way on it.
                let own = unsafe { core::slice::from_raw_parts_mut(arena.buffer(rank, 0), count) };
                own.fill(element(rank, 0, iteration));
                direct.run(0, count);
                assert!(own.iter().all(|sum| *sum == expected(2, 0, iteration)));
            }
            let mut values = vec![element(rank, 0, iteration); count];
            heap.run(&mut values);
            assert!(values.iter().all(|sum| *sum == expected(2, 0, iteration)));
        }
    });
}

#[test]
fn tcp_exchanges_and_sums() {
    let (left, right) = tcp_pair().unwrap();
    std::thread::scope(|scope| {
        for (rank, stream) in [left, right].into_iter().enumerate() {
            scope.spawn(move || {
                let mut limit = Limit::tcp(stream).unwrap();
                for (iteration, &count) in COUNTS.iter().chain(COUNTS.iter().rev()).enumerate() {
                    let mut own: Vec<f32> = (0..count).map(|i| element(rank, i, iteration)).collect();
                    limit.exchange(&own).unwrap();
                    limit.run(&mut own).unwrap();
                    for (i, sum) in own.iter().enumerate() {
                        assert_eq!(*sum, expected(2, i, iteration), "rank {rank}: {count} at {i}");
                    }
                }
            });
        }
    });
}

#[test]
fn tcp_reports_that_the_other_rank_is_gone() {
    let (left, right) = tcp_pair().unwrap();
    let mut limit = Limit::tcp(left).unwrap();
    drop(right);
    assert!(limit.run(&mut [1.0]).is_err());
}

#[test]
fn all_ranks_get_the_same_probe() {
    use std::sync::Mutex;
    for ranks in [2, 3] {
        let answers = Mutex::new(Vec::new());
        as_ranks(ranks, |arena, rank| {
            for _ in 0..3 {
                let answer = probe_near_far(&arena, rank, Wait::for_ranks(ranks));
                arena.barrier(rank, Wait::for_ranks(ranks));
                answers.lock().unwrap().push(answer);
                arena.barrier(rank, Wait::for_ranks(ranks));
            }
        });
        let answers = answers.into_inner().unwrap();
        assert!(answers.chunks(ranks).all(|round| round.iter().all(|answer| *answer == round[0])));
    }
}

#[test]
fn a_region_that_does_not_fit_is_refused() {
    let shape = Shape { ranks: 2, buffers: 1, bytes: 4096 };
    let mapping = Mapping::new(shape.arena_bytes());
    // SAFETY: the mapping is shared, zeroed, and outlives every arena here.
    let make = |length, shape| unsafe { Arena::new(mapping.base, length, shape) };
    assert!(matches!(make(mapping.length - 1, shape), Err(ArenaError::TooShort { .. })));
    assert!(matches!(make(mapping.length, Shape { ranks: 0, ..shape }), Err(ArenaError::Shape { .. })));
    assert!(matches!(make(mapping.length, Shape { ranks: 129, ..shape }), Err(ArenaError::Shape { .. })));
    assert!(make(mapping.length, shape).is_ok());
}
