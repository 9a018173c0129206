//! What the kernels cost on this machine, next to memcpy: nanoseconds per call, and GB/s of memory read and written.
//!
//! `cargo run --release -p windlass-kernels --example speed [level]`

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
