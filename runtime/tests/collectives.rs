//! Every collective against a naive reference: transports, kinds of memory, algorithms, counts and numbers of ranks.

#![expect(clippy::unwrap_used, reason = "a test that fails should panic")]

use windlass::{Algorithm, Communicator, Config, Element, ReduceOp, TransportChoice};

/// What a rank's input holds at an index: small whole numbers, so that sums are exact in every type.
fn value(rank: u32, index: usize, salt: u32) -> i64 {
    i64::from((rank + 1) * (salt + 1) + (index as u32 % 5)) % 7
}

trait Number: Element + PartialEq + std::fmt::Debug {
    fn of(value: i64) -> Self;
}

macro_rules! numbers {
    ($($t:ty: $f:expr;)*) => { $(impl Number for $t { fn of(value: i64) -> Self { $f(value) } })* };
}

numbers! {
    f32: |v| v as f32;
    f64: |v| v as f64;
    i32: |v| v as i32;
    i64: |v| v;
    u8: |v| v as u8;
    windlass::f16: |v| windlass::f16::from_f32(v as f32);
    windlass::bf16: |v| windlass::bf16::from_f32(v as f32);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Registered,
    Heap,
    /// Even ranks registered, odd ones heap.
    Mixed,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Registered, Self::Heap, Self::Mixed];

    fn make<T: Number>(self, comm: &Communicator, values: Vec<T>) -> Memory<T> {
        if self == Self::Registered || self == Self::Mixed && comm.rank().is_multiple_of(2) {
            let mut buffer = comm.alloc(values.len()).unwrap();
            buffer.copy_from_slice(&values);
            Memory::Registered(buffer)
        } else {
            Memory::Heap(values)
        }
    }
}

enum Memory<T: Element> {
    Registered(windlass::Buffer<T>),
    Heap(Vec<T>),
}

impl<T: Element> Memory<T> {
    fn slice(&mut self) -> &mut [T] {
        match self {
            Self::Registered(b) => b,
            Self::Heap(v) => v,
        }
    }
}

fn inputs<T: Number>(rank: u32, count: usize, salt: u32) -> Vec<T> {
    (0..count).map(|i| T::of(value(rank, i, salt))).collect()
}

fn sum<T: Number>(ranks: u32, index: usize, salt: u32) -> T {
    T::of((0..ranks).map(|r| value(r, index, salt)).sum())
}

fn check<T: Number>(comm: &Communicator, kind: Kind, count: usize, salt: u32) {
    let (rank, ranks) = (comm.rank(), comm.size());
    let blocking = comm.blocking();
    let whole = count * ranks as usize;

    let mut memory = kind.make(comm, inputs::<T>(rank, count, salt));
    blocking.all_reduce(memory.slice(), ReduceOp::Sum).unwrap();
    assert!(
        memory.slice().iter().enumerate().all(|(i, v)| *v == sum(ranks, i, salt)),
        "all_reduce {kind:?} {count}"
    );

    let (mut input, mut output) =
        (kind.make(comm, inputs::<T>(rank, count, salt)), kind.make(comm, vec![T::of(0); count]));
    blocking.all_reduce_into(input.slice(), output.slice(), ReduceOp::Sum).unwrap();
    assert!(
        output.slice().iter().enumerate().all(|(i, v)| *v == sum(ranks, i, salt)),
        "all_reduce_into {kind:?} {count}"
    );
    assert_eq!(input.slice(), inputs::<T>(rank, count, salt), "the input is left alone");

    let (mut input, mut output) =
        (kind.make(comm, inputs::<T>(rank, whole, salt)), kind.make(comm, vec![T::of(0); count]));
    blocking.reduce_scatter_into(input.slice(), output.slice(), ReduceOp::Sum).unwrap();
    let first = rank as usize * count;
    assert!(
        output.slice().iter().enumerate().all(|(i, v)| *v == sum(ranks, first + i, salt)),
        "reduce_scatter {kind:?} {count}"
    );

    let (mut input, mut output) =
        (kind.make(comm, inputs::<T>(rank, count, salt)), kind.make(comm, vec![T::of(0); whole]));
    blocking.all_gather_into(input.slice(), output.slice()).unwrap();
    for (q, block) in output.slice().chunks(count.max(1)).enumerate() {
        assert_eq!(block, inputs::<T>(q as u32, count, salt), "all_gather {kind:?} {count}");
    }

    for root in [0, ranks - 1] {
        let mut memory = kind.make(comm, inputs::<T>(rank, count, salt));
        blocking.broadcast(memory.slice(), root).unwrap();
        assert_eq!(memory.slice(), inputs::<T>(root, count, salt), "broadcast {kind:?} {count}");
    }
    blocking.barrier().unwrap();
}

fn config(transport: TransportChoice, algorithm: Option<Algorithm>) -> Config {
    let mut config = Config::default();
    (config.transport, config.algorithm) = (transport, algorithm);
    // Small chunks, so that modest counts have many.
    (config.model.chunk_bytes, config.model.stage_chunk_bytes) = (4096, 4096);
    config.timeout = std::time::Duration::from_secs(60);
    config
}

fn sweep(transport: TransportChoice, algorithm: Option<Algorithm>, ranks: impl Iterator<Item = u32>) {
    for ranks in ranks {
        windlass::threads_with(ranks, &config(transport, algorithm), |comm| {
            for (salt, count) in [0, 1, 2, 7, 10, 11, 1000, 5003, 40_000].into_iter().enumerate() {
                for kind in Kind::ALL {
                    check::<f32>(&comm, kind, count, salt as u32);
                    check::<u8>(&comm, kind, count, salt as u32);
                }
            }
            for kind in Kind::ALL {
                check::<f64>(&comm, kind, 333, 1);
                check::<i32>(&comm, kind, 333, 2);
                check::<i64>(&comm, kind, 333, 3);
                check::<windlass::f16>(&comm, kind, 333, 4);
                check::<windlass::bf16>(&comm, kind, 333, 5);
            }
        })
        .unwrap();
    }
}

#[test]
fn shared_memory() {
    sweep(TransportChoice::Shm, None, 1..=5);
}

#[test]
fn shared_memory_direct_only() {
    sweep(TransportChoice::Shm, Some(Algorithm::Direct), [2, 3, 7].into_iter());
}

#[test]
fn shared_memory_by_messages() {
    for algorithm in [Algorithm::Ring, Algorithm::RecursiveDoubling, Algorithm::Rabenseifner] {
        sweep(TransportChoice::Shm, Some(algorithm), [2, 3].into_iter());
    }
}

#[test]
fn tcp() {
    sweep(TransportChoice::Tcp, None, [2, 3, 4].into_iter());
}

#[test]
fn tcp_with_every_algorithm() {
    for algorithm in [Algorithm::Ring, Algorithm::RecursiveDoubling, Algorithm::Rabenseifner] {
        sweep(TransportChoice::Tcp, Some(algorithm), [3, 4].into_iter());
    }
}

/// A rank that only publishes runs ahead of those that read; what it publishes must stay until they have.
#[test]
fn a_root_that_runs_ahead_overwrites_nothing() {
    for count in [2usize, 200] {
        windlass::threads_with(3, &config(TransportChoice::Shm, None), |comm| {
            for round in 0..2000i64 {
                let mut memory = vec![if comm.rank() == 0 { round } else { -1 }; count];
                if comm.rank() == 2 && round % 64 == 0 {
                    std::thread::sleep(std::time::Duration::from_micros(300));
                }
                comm.blocking().broadcast(&mut memory, 0).unwrap();
                assert!(memory.iter().all(|v| *v == round), "round {round}: {:?}", &memory[..2]);
            }
        })
        .unwrap();
    }
}
