//! Messages of 1 MiB from rank 0 to rank 1, several under way: how fast they go, and what a revoke of the memory that they go to costs.
//!
//! ```text
//! windlass run -n 2 --transport rdma -- stream host 1          registered host memory, a second
//! windlass run -n 2 --transport rdma -- stream testbed 20      the testbed's device memory, twenty revokes
//! ```
//!
//! Prints `stream KIND GB/s`, and of device memory `recovery KIND µs`. Messages go in blocks. Every other block of device memory loses the memory of
//! one receive while it is under way; what such a block takes more than those before and after it is what the revoke has cost until all is as fast as before.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::accelerator::kernel::KernelAccelerator;
use windlass::accelerator::{Contents, Movement, OpenError, Options};
use windlass::{Communicator, MemoryMut};

const BYTES: usize = 1 << 20;
/// Messages under way.
const WINDOW: usize = 4;
/// Messages of a block.
const BLOCK: usize = 12;
const USAGE: &str =
    "usage: stream host SECONDS | stream ACCELERATOR REVOKES   (two ranks, under windlass run)";

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("{USAGE}")]
    Usage,
    #[error("two ranks, not {0}")]
    Ranks(u32),
    #[error(transparent)]
    Join(#[from] windlass::JoinError),
    #[error(transparent)]
    Windlass(#[from] windlass::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the accelerator: {0}")]
    Accelerator(#[from] windlass::accelerator::AcceleratorError),
    #[error("a message came with other bytes than it was sent with")]
    Wrong,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(StreamError::Usage) => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("stream: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), StreamError> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [kind, amount] = &words[..] else { return Err(StreamError::Usage) };
    let comm = windlass::init()?;
    if comm.size() != 2 {
        return Err(StreamError::Ranks(comm.size()));
    }
    if kind == "host" {
        let seconds = amount.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        over_host(&comm, seconds.ok_or(StreamError::Usage)?)?;
    } else {
        over_device(&comm, kind, amount.parse().map_err(|_| StreamError::Usage)?)?;
    }
    comm.finalize()?;
    Ok(())
}

/// A block of messages; `memory` is the next to be used, and comes back in this order. `meanwhile` is called when half of them have gone.
fn block<M: MemoryMut>(
    comm: &Communicator,
    memory: &mut VecDeque<M>,
    meanwhile: impl FnOnce() -> Result<(), StreamError>,
) -> Result<Duration, StreamError> {
    let start = |memory: M| {
        if comm.rank() == 0 { comm.send(memory, 1, 0) } else { comm.recv(memory, 0, 0) }
    };
    let mut meanwhile = Some(meanwhile);
    comm.blocking().barrier()?;
    let begin = Instant::now();
    let mut under_way: VecDeque<_> = memory.drain(..).map(start).collect();
    for left in (0..BLOCK).rev() {
        let Some(first) = under_way.pop_front() else { break };
        let ended = first.wait().map_err(|failed| failed.error)?;
        if left >= WINDOW {
            under_way.push_back(start(ended));
        } else {
            memory.push_back(ended);
        }
        if left == BLOCK / 2
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile()?;
        }
    }
    // Until both have all.
    comm.blocking().barrier()?;
    Ok(begin.elapsed())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What is told of blocks that nothing disturbed.
fn tell(comm: &Communicator, kind: &str, times: Vec<f64>) {
    if comm.rank() == 1 {
        println!("stream {kind} {:.4}", (BLOCK * BYTES) as f64 / median(times) / 1e9);
    }
}

fn over_host(comm: &Communicator, time: Duration) -> Result<(), StreamError> {
    let mut memory = VecDeque::new();
    for _ in 0..WINDOW {
        let mut buffer = comm.alloc::<u8>(BYTES)?;
        buffer.fill(comm.rank() as u8 + 1);
        memory.push_back(buffer);
    }
    // The first registers all memory.
    block(comm, &mut memory, || Ok(()))?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    loop {
        times.push(block(comm, &mut memory, || Ok(()))?.as_secs_f64());
        let mut over = [u8::from(begin.elapsed() >= time)];
        comm.blocking().all_reduce(&mut over, windlass::ReduceOp::Max)?;
        if over[0] > 0 {
            break;
        }
    }
    if memory.iter().any(|buffer| buffer.iter().any(|&byte| byte != 1)) {
        return Err(StreamError::Wrong);
    }
    tell(comm, "host", times);
    Ok(())
}

fn over_device(comm: &Communicator, kind: &str, revokes: usize) -> Result<(), StreamError> {
    let options = Options { movement: Movement::Revocable, keep_bytes: 64 << 20, ..Options::default() };
    let accelerator = Arc::new(KernelAccelerator::open(kind, options)?);
    let device = comm.attach(accelerator.clone())?;
    let mut memory = VecDeque::new();
    for _ in 0..WINDOW {
        let mut buffer = device.alloc::<u8>(BYTES)?;
        buffer.write(&vec![comm.rank() as u8 + 1; BYTES])?;
        memory.push_back(buffer);
    }
    let regions: Vec<_> = memory.iter().map(|buffer| buffer.region()).collect();
    block(comm, &mut memory, || Ok(()))?;
    let (mut quiet, mut disturbed) = (Vec::new(), Vec::new());
    for number in 0..=2 * revokes {
        let revokes = number % 2 == 1;
        let revoke = || {
            if revokes && comm.rank() == 1 {
                accelerator.revoke_now(regions[number % WINDOW], Contents::Preserved)?;
            }
            Ok(())
        };
        let taken = block(comm, &mut memory, revoke)?.as_secs_f64();
        if revokes { &mut disturbed } else { &mut quiet }.push(taken);
    }
    let mut bytes = vec![0; BYTES];
    for buffer in &memory {
        buffer.read(&mut bytes)?;
        if bytes.iter().any(|&byte| byte != 1) {
            return Err(StreamError::Wrong);
        }
    }
    let lost =
        disturbed.iter().zip(quiet.windows(2)).map(|(taken, quiet)| taken - (quiet[0] + quiet[1]) / 2.0);
    let lost: Vec<_> = lost.map(|seconds| seconds * 1e6).collect();
    tell(comm, kind, quiet);
    if comm.rank() == 1 {
        println!("recovery {kind} {:.0}", median(lost));
    }
    Ok(())
}
