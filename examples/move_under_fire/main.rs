//! All-reduces on device memory that moves all the time, and checks every element of every result.
//!
//! windlass run -n 4 -- target/release/examples/move_under_fire --seconds 30
//!
//! | module | one idea |
//! |---|---|
//! | [`arguments`] | what can be typed |
//! | [`values`] | what goes in and must come out |
//! | [`live`] | what is shown meanwhile |
//! | [`report`] | what is told at the end |

mod arguments;
mod live;
mod report;
mod values;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use windlass::accelerator::{AcceleratorError, OpenError, Operand, Options, Place, Work, open};
use windlass::{Combine, Communicator, DataType, DeviceBuffer, ReduceOp};

use arguments::Arguments;
use live::Live;
use report::{Report, Totals, gather};
use values::Values;

/// What a task of an engine covers of each operand, and how many are timed.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS: usize = 50;

#[derive(Debug, thiserror::Error)]
enum FireError {
    #[error(transparent)]
    Join(#[from] windlass::JoinError),
    #[error(transparent)]
    Windlass(#[from] windlass::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the accelerator: {0}")]
    Accelerator(#[from] AcceleratorError),
    #[error("{wrong} elements are wrong, and memory was touched {stale} times after its end")]
    Wrong { wrong: u64, stale: u64 },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match fire(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("move_under_fire: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fire(arguments: &Arguments) -> Result<(), FireError> {
    let comm = windlass::init()?;
    let chunks = chunk_times(&comm, &arguments.accelerator, arguments.bytes.max(CHUNK_BYTES))?;
    let (moves_per_second, revokes_per_second) = arguments.rates();
    let options = Options {
        movement: arguments.mode.movement(),
        seed: u64::from(comm.rank()),
        announce_ahead: arguments.announce,
        moves_per_second,
        revokes_per_second,
        keep_bytes: 64 << 20,
        ..Options::default()
    };
    let accelerator = open(&arguments.accelerator, options)?;
    let device = comm.attach(Arc::clone(&accelerator))?;
    // Operations of one communicator follow one another; those of two run at the same time.
    let second = comm.duplicate()?;
    let count = arguments.bytes / size_of::<f32>();
    let mut buffers = [device.alloc::<f32>(count)?, device.alloc::<f32>(count)?];
    let values = Values::new(comm.rank(), comm.size());
    let mut host = vec![0.0; count];
    let mut live = (comm.rank() == 0).then(Live::new);
    let (mut own, begin, mut iterations) = (Totals::default(), Instant::now(), 0u64);
    let totals = loop {
        let [mut a, mut b] = buffers;
        let round = 2 * iterations as usize;
        fill(&mut a, &values, &mut host, round)?;
        fill(&mut b, &values, &mut host, round + 1)?;
        let (first, other) = (comm.all_reduce(a, ReduceOp::Sum), second.all_reduce(b, ReduceOp::Sum));
        let (a, b) = (first.wait(), other.wait());
        buffers = [a.map_err(|failed| failed.error)?, b.map_err(|failed| failed.error)?];
        for (buffer, round) in buffers.iter().zip(round..) {
            buffer.read(&mut host)?;
            own.checked += count as u64;
            own.wrong += values.wrong(&host, round);
        }
        iterations += 1;
        own.count(&device.movements());
        let (totals, over) = own.of_all(&comm, begin.elapsed() >= arguments.seconds)?;
        if let Some(live) = &mut live {
            live.show(&totals, &device.movements());
        }
        if over {
            break totals;
        }
    };
    let elapsed = begin.elapsed();
    if let Some(live) = &mut live {
        live.end();
    }
    // Before the buffers go: what their last move left behind is looked at, too.
    own.stale = accelerator.stale_stores().unwrap_or(0);
    let stale = own.of_all(&comm, true)?.0.stale;
    drop(buffers);
    let movements = device.movements();
    let report = Report {
        arguments,
        ranks: comm.size(),
        elapsed,
        iterations,
        totals: Totals { stale, ..totals },
        drains: gather(&comm, &movements.drains)?,
        pauses: gather(&comm, &movements.pauses)?,
        returns: gather(&comm, &movements.returns)?,
        first_pieces: gather(&comm, &movements.first_pieces)?,
        chunks: gather(&comm, &chunks)?,
    };
    let rank = comm.rank();
    comm.finalize()?;
    if rank > 0 {
        return Ok(());
    }
    report.print();
    let Totals { wrong, stale, .. } = report.totals;
    if wrong + stale > 0 { Err(FireError::Wrong { wrong, stale }) } else { Ok(()) }
}

fn fill(
    buffer: &mut DeviceBuffer<f32>,
    values: &Values,
    host: &mut [f32],
    round: usize,
) -> Result<(), FireError> {
    values.fill(host, round);
    Ok(buffer.write(host)?)
}

/// What an engine takes for one task of an all-reduce of so many bytes, all ranks' engines at once: the sum of all ranks' chunks, and its store to
/// all. One chunk after the other, so that they come from where an operation's would.
fn chunk_times(comm: &Communicator, accelerator: &str, bytes: usize) -> Result<Vec<Duration>, FireError> {
    let ranks = comm.size() as usize;
    let quiet = open(accelerator, Options { capacity_bytes: 1 << 40, ..Options::default() })?;
    let operand = |bytes: usize| -> Result<Operand, FireError> {
        let region = quiet.allocate(bytes as u64)?;
        let operand = Operand { place: Place::Own(region, 0), offset: 0 };
        quiet.write(operand, &vec![0; bytes])?;
        Ok(operand)
    };
    // This process has its own pages for each rank's part: no more than it will have mapped later.
    let sum = operand(CHUNK_BYTES)?;
    let all = (0..ranks).map(|_| operand(bytes)).collect::<Result<Vec<_>, _>>()?;
    let run = |combine: Combine, inputs: &[Operand], outputs: &[Operand]| -> Result<(), FireError> {
        let count = (CHUNK_BYTES / combine.data_type().size_bytes()) as u64;
        let fence = quiet.submit(&Work { combine, divisor: 1, count, inputs, outputs, after: None })?;
        while !fence.is_done() {
            std::thread::yield_now();
        }
        Ok(())
    };
    let mut times = Vec::new();
    comm.blocking().barrier()?;
    for chunk in 0..CHUNKS {
        let offset = (chunk * CHUNK_BYTES % (bytes + 1 - CHUNK_BYTES)) as u64;
        let here: Vec<_> = all.iter().map(|&operand| Operand { offset, ..operand }).collect();
        let begin = Instant::now();
        run(Combine::reduce(DataType::F32, ReduceOp::Sum), &here, &[sum])?;
        run(Combine::copy(DataType::U8), &[sum], &here)?;
        times.push(begin.elapsed());
    }
    comm.blocking().barrier()?;
    Ok(times)
}
