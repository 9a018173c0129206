//! What a call through C costs more than the same call from Rust: one communicator, blocks of both in turn.
//!
//! `windlass run -n 2 -- target/release/examples/overhead`, or alone for the path without waiting.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::time::Instant;

use windlass::{Collective, DataType, Error, RawRequest, ReduceOp};
use windlass_c::{windlass_all_reduce, windlass_comm_t, windlass_init};

const BLOCKS: usize = 400;
const CALLS: usize = 2000;

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let comm = windlass::init()?;
    let mut handle: windlass_comm_t = std::ptr::null_mut();
    // SAFETY: the handle is ours.
    assert_eq!(unsafe { windlass_init(&raw mut handle) }, 0);
    let mut value = comm.alloc::<f32>(2)?;
    let address = value.as_mut_ptr().cast::<u8>();
    let mut request = RawRequest::new(Collective::AllReduce, DataType::F32, 2);
    (request.op, request.input, request.output) = (ReduceOp::Max, address, address);
    let (float, max) = (i32::from(DataType::F32.code()), i32::from(ReduceOp::Max.code()));

    // SAFETY: the memory is the buffer's, which outlives the call and is not touched during it.
    let rust = || -> Result<(), Error> { unsafe { comm.blocking().perform(&request) } };
    let c = || {
        // SAFETY: as above.
        let result = unsafe { windlass_all_reduce(address.cast(), address.cast(), 2, float, max, handle) };
        assert_eq!(result, 0);
        Ok(())
    };
    let block = |call: &dyn Fn() -> Result<(), Error>| -> Result<f64, Error> {
        let begin = Instant::now();
        for _ in 0..CALLS {
            call()?;
        }
        Ok(begin.elapsed().as_secs_f64() * 1e9 / CALLS as f64)
    };
    let (mut of_rust, mut of_c, mut more) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        let (r, c) = (block(&rust)?, block(&c)?);
        of_rust.push(r);
        of_c.push(c);
        more.push(c - r);
    }
    println!(
        "rank {} of {}: all_reduce of 8 B, ns, medians of {BLOCKS} blocks: Rust {:.1}, C {:.1}, difference {:.1}",
        comm.rank(),
        comm.size(),
        median(of_rust),
        median(of_c),
        median(more)
    );
    Ok(())
}
