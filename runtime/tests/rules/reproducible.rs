//! The reproducible mode: element i of every reduction has the same bits, whatever carries it and however it is cut.

use std::sync::Arc;

use windlass::accelerator::simulated::{Options, SimulatedAccelerator};
use windlass::{
    Algorithm, Association, Collective, Communicator, Config, Element, F8E4M3, ReduceOp, TransportChoice,
    bf16, f16,
};

use super::{TRANSPORTS, config};

const RANKS: u32 = 5;
/// Some of one chunk, some of many; blocks that are even and blocks that are not.
const COUNTS: [usize; 4] = [1, 30, 2_053, 20_000];

/// A float of some width, by its bits.
trait Float: Element + PartialEq + std::fmt::Debug + Default {
    fn of(value: f32) -> Self;
    fn up(self) -> f32;
    fn bits(self) -> u32;
}

macro_rules! float {
    ($($type:ty: $of:expr, $up:expr, $bits:expr;)*) => {
        $(impl Float for $type {
            fn of(value: f32) -> Self { $of(value) }
            fn up(self) -> f32 { $up(self) }
            fn bits(self) -> u32 { $bits(self) }
        })*
    };
}

float! {
    f32: |v| v, |v| v, f32::to_bits;
    f16: f16::from_f32, f16::to_f32, |v: f16| u32::from(v.to_bits());
    bf16: bf16::from_f32, bf16::to_f32, |v: bf16| u32::from(v.to_bits());
    F8E4M3: F8E4M3::from_f32, F8E4M3::to_f32, |v: F8E4M3| u32::from(v.to_bits());
}

/// Element `index` of the operand of `rank`: of many magnitudes and both signs, so that the order shows.
fn operand<T: Float>(rank: u32, index: usize) -> T {
    let mixed = (u64::from(rank) << 40 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let sign = if mixed >> 63 == 0 { 1.0 } else { -1.0 };
    let exponent = (mixed >> 50 & 7) as i32 - 3;
    T::of(sign * (1.0 + (mixed >> 20 & 0xffff) as f32 / 65_536.0) * 2f32.powi(exponent))
}

/// From the left in rank order, in f32, rounded to the type once.
fn folded<T: Float>(ranks: std::ops::Range<u32>, index: usize) -> u32 {
    let first = operand::<T>(ranks.start, index).up();
    let rest = (ranks.start + 1..ranks.end).map(|rank| operand::<T>(rank, index).up());
    T::of(rest.fold(first, |sum, x| sum + x)).bits()
}

fn operands<T: Float>(rank: u32, count: usize) -> Vec<T> {
    (0..count).map(|index| operand(rank, index)).collect()
}

fn hold<T: Float>(what: &str, result: &[T], ranks: std::ops::Range<u32>, first: usize) {
    for (i, value) in result.iter().enumerate() {
        let expected = folded::<T>(ranks.clone(), first + i);
        assert_eq!(value.bits(), expected, "{what}: element {i} of {} of {}", result.len(), T::DATA_TYPE);
    }
}

/// All reductions of so many elements, in slices of heap memory.
fn on_heap<T: Float>(comm: &Communicator, count: usize, what: &str) {
    let (rank, blocking) = (comm.rank(), comm.blocking());
    let mut memory = operands::<T>(rank, count);
    blocking.all_reduce(&mut memory, ReduceOp::Sum).unwrap();
    hold(&format!("all_reduce, {what}"), &memory, 0..RANKS, 0);
    for root in [0, RANKS - 1] {
        let mut memory = operands::<T>(rank, count);
        blocking.reduce(&mut memory, ReduceOp::Sum, root).unwrap();
        if rank == root {
            hold(&format!("reduce, {what}"), &memory, 0..RANKS, 0);
        }
    }
    let input = operands::<T>(rank, count * RANKS as usize);
    let mut block = vec![T::default(); count];
    blocking.reduce_scatter_into(&input, &mut block, ReduceOp::Sum).unwrap();
    hold(&format!("reduce_scatter, {what}"), &block, 0..RANKS, rank as usize * count);
    let lengths: Vec<usize> = (0..RANKS as usize).map(|r| r * count / 2).collect();
    let first: usize = lengths[..rank as usize].iter().sum();
    let input = operands::<T>(rank, lengths.iter().sum());
    let mut block = vec![T::default(); lengths[rank as usize]];
    blocking.reduce_scatter_v_into(&input, &mut block, &lengths, ReduceOp::Sum).unwrap();
    hold(&format!("reduce_scatter_v, {what}"), &block, 0..RANKS, first);
    let mut memory = operands::<T>(rank, count);
    blocking.scan(&mut memory, ReduceOp::Sum).unwrap();
    hold(&format!("scan, {what}"), &memory, 0..rank + 1, 0);
    let mut memory = operands::<T>(rank, count);
    blocking.exscan(&mut memory, ReduceOp::Sum).unwrap();
    if rank > 0 {
        hold(&format!("exscan, {what}"), &memory, 0..rank, 0);
    }
}

/// An all-reduce of registered memory, on some ranks only if `mixed`.
fn on_registered<T: Float>(comm: &Communicator, count: usize, mixed: bool, what: &str) {
    if mixed && comm.rank() == 1 {
        return on_heap_alone::<T>(comm, count, what);
    }
    let mut buffer = comm.alloc::<T>(count).unwrap();
    buffer.copy_from_slice(&operands::<T>(comm.rank(), count));
    let buffer = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap();
    hold(&format!("all_reduce of registered memory, {what}"), &buffer, 0..RANKS, 0);
}

fn on_heap_alone<T: Float>(comm: &Communicator, count: usize, what: &str) {
    let mut memory = operands::<T>(comm.rank(), count);
    comm.blocking().all_reduce(&mut memory, ReduceOp::Sum).unwrap();
    hold(what, &memory, 0..RANKS, 0);
}

fn all_of<T: Float>(comm: &Communicator, what: &str) {
    for count in COUNTS {
        on_heap::<T>(comm, count, what);
        on_registered::<T>(comm, count, false, what);
        on_registered::<T>(comm, count, true, what);
    }
}

fn world(config: &Config, what: &str) {
    windlass::threads_with(RANKS, config, |comm| {
        all_of::<f32>(&comm, what);
        all_of::<f16>(&comm, what);
        all_of::<bf16>(&comm, what);
        all_of::<F8E4M3>(&comm, what);
    })
    .unwrap();
}

#[test]
fn every_reduction_has_the_same_bits() {
    for transport in TRANSPORTS {
        let by_rank = Algorithm::ALL.iter().filter(|a| a.association() == Association::ByRank);
        for algorithm in std::iter::once(None).chain(by_rank.map(|a| Some(*a))) {
            if transport == TransportChoice::Tcp && algorithm.is_some_and(Algorithm::needs_mapped_peers) {
                continue;
            }
            for chunk_bytes in [4_096, 128 << 10] {
                let mut config = config(transport, algorithm);
                config.reproducible = true;
                (config.model.chunk_bytes, config.model.stage_chunk_bytes) = (chunk_bytes, chunk_bytes);
                world(&config, &format!("{transport}, {algorithm:?}, chunks of {chunk_bytes}"));
            }
        }
    }
}

#[test]
fn device_memory_has_the_bits_of_host_memory() {
    let mut config = config(TransportChoice::Shm, None);
    config.reproducible = true;
    windlass::threads_with(RANKS, &config, |comm| {
        let device = comm.attach(Arc::new(SimulatedAccelerator::new(Options::default()))).unwrap();
        for count in COUNTS {
            let content = operands::<f16>(comm.rank(), count);
            let mut memory = device.alloc::<f16>(count).unwrap();
            memory.write(&content).unwrap();
            let memory = comm.all_reduce(memory, ReduceOp::Sum).wait().unwrap();
            let mut result = vec![f16::default(); count];
            memory.read(&mut result).unwrap();
            hold("all_reduce on the device", &result, 0..RANKS, 0);
            let mut memory = device.alloc::<f16>(count).unwrap();
            memory.write(&content).unwrap();
            let memory = comm.scan(memory, ReduceOp::Sum).wait().unwrap();
            memory.read(&mut result).unwrap();
            hold("scan on the device", &result, 0..comm.rank() + 1, 0);
        }
    })
    .unwrap();
}

/// The operands can tell one order from another, and one rounding from several: without the mode they do.
#[test]
fn another_order_would_show() {
    for algorithm in [Algorithm::Ring, Algorithm::RecursiveDoubling, Algorithm::Rabenseifner] {
        let differing =
            windlass::threads_with(RANKS, &config(TransportChoice::Tcp, Some(algorithm)), |comm| {
                let mut wide = operands::<f32>(comm.rank(), 1_000);
                let mut small = operands::<f16>(comm.rank(), 1_000);
                comm.blocking().all_reduce(&mut wide, ReduceOp::Sum).unwrap();
                comm.blocking().all_reduce(&mut small, ReduceOp::Sum).unwrap();
                let wide = (0..1_000).filter(|i| wide[*i].bits() != folded::<f32>(0..RANKS, *i)).count();
                (wide, (0..1_000).filter(|i| small[*i].bits() != folded::<f16>(0..RANKS, *i)).count())
            })
            .unwrap();
        let (wide, small) = differing[0];
        println!("canary: {algorithm}: {wide} of 1000 f32 and {small} of 1000 f16 have other bits");
        assert!(wide > 10 && small > 10, "{algorithm}: {wide}, {small}");
    }
}

#[test]
fn ranks_must_agree_and_an_algorithm_must_fit() {
    let mut wrong = config(TransportChoice::Tcp, Some(Algorithm::Ring));
    wrong.reproducible = true;
    let error = windlass::threads_with(2, &wrong, |_| ()).unwrap_err().to_string();
    assert!(error.contains("ring") && error.contains("WINDLASS_REPRODUCIBLE"), "{error}");
    // What moves data only may be done by whatever algorithm.
    let mut config = config(TransportChoice::Tcp, Some(Algorithm::Pairwise));
    config.reproducible = true;
    let choices = windlass::threads_with(2, &config, |comm| {
        let of = |collective| comm.explain(collective, windlass::DataType::F32, 1 << 20).unwrap().algorithm;
        (of(Collective::AllReduce), of(Collective::AllGather))
    });
    let (reduces, gathers) = choices.unwrap()[0];
    assert_eq!(reduces.association(), Association::ByRank);
    assert!(!gathers.needs_mapped_peers());
}

#[test]
fn ranks_that_disagree_on_the_mode_do_not_join() {
    let (mut one, mut other) = (config(TransportChoice::Shm, None), config(TransportChoice::Shm, None));
    (one.reproducible, other.reproducible) = (true, false);
    let name = format!("rules-disagree-{}", std::process::id());
    let server = windlass::Server::start(2, &name).unwrap();
    let address = server.address().to_owned();
    let join = |rank, config| {
        let identity =
            windlass::Identity { rank, ranks: 2, rendezvous: Some(address.clone()), serves: false };
        Communicator::join(&identity, config).map(|_| ())
    };
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| join(0, one));
        let second = scope.spawn(|| join(1, other));
        (first.join().unwrap(), second.join().unwrap())
    });
    let errors = [first, second].map(|result| result.map_err(|error| error.to_string()));
    assert!(errors.iter().any(|e| e.as_ref().is_err_and(|e| e.contains("reproducible"))), "{errors:?}");
}
