//! Every rank says who it is; the ranks are added up.
//!
//! windlass run -n 4 -- target/release/examples/hello

use windlass::ReduceOp;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let comm = windlass::init()?;
    let mut sum = [comm.rank() as i32];
    comm.blocking().all_reduce(&mut sum, ReduceOp::Sum)?;
    println!("hello from rank {} of {}; the ranks add up to {}", comm.rank(), comm.size(), sum[0]);
    comm.finalize()?;
    Ok(())
}
