//! What the kernels cost on this machine, next to memcpy: nanoseconds per call, and GB/s of memory read and written.
//!
//! `cargo run --release -p windlass-kernels --example speed [level [types [NAME]]]`; with `types`, every type (whose name
//! has NAME in it) and operator, as its share of the speed, in bytes, of a sum of `f32`.

use std::hint::black_box;
use std::time::Instant;

use windlass_kernels::{Combine, DataType, Level, ReduceOp, Store, level};

const SHAPES: &[(usize, usize)] = &[(2, 2), (2, 1), (1, 1), (4, 4)];
const SIZES: &[usize] = &[8, 56, 4 << 10, 256 << 10, 16 << 20];
/// From here on a result does not stay in the caches, and the stores are streamed.
const STREAMING_BYTES: usize = 1 << 20;
/// Rounds per figure; the median is shown.
const ROUNDS: usize = 15;
/// What one round moves at least, so that the clock's own cost vanishes.
const ROUND_BYTES: usize = 4 << 20;

/// A vector's buffer from the next multiple of 4096 on, as an allocator of large buffers gives it.
fn aligned(buffer: &mut [u8]) -> *mut u8 {
    let start = buffer.as_ptr().align_offset(4096);
    buffer[start..].as_mut_ptr()
}

/// The sizes of `types`: about L1, L2, and beyond the caches.
const TYPE_SIZES: &[usize] = &[8 << 10, 32 << 10, 256 << 10, 16 << 20];

/// The median time of one call, in nanoseconds.
#[allow(clippy::disallowed_methods, reason = "the floor reads no clock, but a benchmark of it must")]
fn median_ns(bytes: usize, mut call: impl FnMut()) -> f64 {
    let calls = (ROUND_BYTES / bytes).clamp(1, 50_000);
    let mut samples: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..calls {
                call();
            }
            start.elapsed().as_nanos() as f64 / calls as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    samples[ROUNDS / 2]
}

fn print(what: &str, bytes: usize, moved: usize, ns: f64) {
    println!("{what:<24} {bytes:>9} {ns:>12.1} {:>8.1}", moved as f64 / ns);
}

fn main() {
    let name = std::env::args().nth(1);
    let wanted = name.map_or(level(), |name| {
        let named = Level::ALL.iter().find(|level| level.name() == name);
        *named.unwrap_or_else(|| panic!("no level is called {name}"))
    });
    let longest = SIZES.iter().copied().max().unwrap_or(0);
    let mut buffers: Vec<Vec<u8>> = (0..8).map(|_| vec![0_u8; longest + 4096]).collect();
    let pointers: Vec<*mut u8> = buffers.iter_mut().map(|buffer| aligned(buffer)).collect();

    if std::env::args().nth(2).is_some_and(|mode| mode == "types") {
        return types(wanted, &pointers);
    }
    println!("{:<24} {:>9} {:>12} {:>8}", format!("level {wanted}"), "bytes", "ns/call", "GB/s");
    for &bytes in SIZES {
        // SAFETY: two different buffers of at least `bytes` bytes each.
        let ns = median_ns(bytes, || unsafe {
            std::ptr::copy_nonoverlapping(black_box(pointers[0]), black_box(pointers[4]), black_box(bytes));
        });
        print("memcpy", bytes, 2 * bytes, ns);
        for &(k, m) in SHAPES {
            let inputs: Vec<*const u8> = pointers[..k].iter().map(|pointer| pointer.cast_const()).collect();
            let outputs = &pointers[4..4 + m];
            for data_type in [DataType::F32, DataType::BF16] {
                let (what, best) = if k == 1 {
                    ("copy", Combine::copy(data_type))
                } else {
                    ("sum", Combine::reduce(data_type, ReduceOp::Sum))
                };
                let Some(combine) = best.with_level(wanted) else {
                    println!("this CPU has no {wanted}");
                    return;
                };
                let store = if bytes < STREAMING_BYTES { Store::Cached } else { Store::Streaming };
                let count = bytes / data_type.size_bytes();
                let combine = black_box(combine);
                // SAFETY: inputs and outputs are different buffers of at least `bytes` bytes each.
                let ns = median_ns(bytes, || unsafe {
                    combine.run(black_box(&inputs), black_box(outputs), black_box(count), 1, store);
                });
                print(&format!("({k},{m}) {data_type} {what}"), bytes, (k + m) * bytes, ns);
            }
        }
    }
}

/// Every type and operator, 2 inputs and 1 output, interleaved with `f32`'s sum.
fn types(wanted: Level, pointers: &[*mut u8]) {
    let time = |combine: Combine, bytes: usize| {
        let inputs = [pointers[0].cast_const(), pointers[1].cast_const()];
        let outputs = [pointers[4]];
        let store = if bytes < STREAMING_BYTES { Store::Cached } else { Store::Streaming };
        let count = bytes / combine.data_type().size_bytes();
        // SAFETY: inputs and outputs are different buffers of at least `bytes` bytes each.
        median_ns(bytes, || unsafe {
            combine.run(black_box(&inputs), black_box(&outputs), black_box(count), 3, store);
        })
    };
    let Some(floats) = Combine::reduce(DataType::F32, ReduceOp::Sum).with_level(wanted) else {
        return println!("this CPU has no {wanted}");
    };
    print!("{:<24}", format!("level {wanted}"));
    TYPE_SIZES.iter().for_each(|bytes| print!(" {bytes:>9}"));
    println!();
    for &data_type in
        DataType::ALL.iter().filter(|t| std::env::args().nth(3).is_none_or(|n| t.name().contains(&n)))
    {
        for op in ReduceOp::ALL.iter().filter(|op| op.supports(data_type)) {
            let Some(combine) = Combine::reduce(data_type, *op).with_level(wanted) else { continue };
            print!("{:<24}", format!("{data_type} {op}"));
            for &bytes in TYPE_SIZES {
                print!(" {:>9.2}", time(floats, bytes) / time(combine, bytes));
            }
            println!();
        }
    }
}
