//! Learns to read handwritten digits: data-parallel training, whose gradients are summed while others are still being calculated.
//!
//! windlass run -n 4 -- target/release/examples/train_digits
//!
//! | module | one idea |
//! |---|---|
//! | [`arguments`] | what can be typed |
//! | [`digits`] | the images, and who calculates which |
//! | [`model`] | the network, and gradients layer by layer |
//! | [`bucket`] | gradients on their way, and how time is split |
//! | [`train`] | the steps |
//! | [`report`] | what is told, meanwhile and at the end |
//! | [`curve`] | loss and accuracy as a picture |
//!
//! # The same weights for any number of ranks
//!
//! The gradient is the mean over the batch, whoever calculates which images, so that any number of ranks learns the same but for rounding. Rounding
//! depends on the number of ranks in two places: in how a rank's images are added up within its matrix products, and in the
//! order in which the ranks' sums are added. No order of the sum over ranks mends the first. So `--reproducible` cuts a batch into eight
//! parts, however many ranks share them, and sums the parts' gradients in fixed point, as whole numbers, for which every order gives the same. That costs
//! twice the bytes and smaller matrix products; of more than eight ranks, the rest calculate nothing.

mod arguments;
mod bucket;
mod curve;
mod digits;
mod model;
mod report;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use windlass::accelerator::{OpenError, Options, open};
use windlass::{Communicator, Device};

use arguments::{Arguments, NO_ACCELERATOR};
use bucket::Number;
use digits::{DataError, Digits};
use report::{Live, Report};
use train::Training;

#[derive(Debug, thiserror::Error)]
enum TrainError {
    #[error(transparent)]
    Join(#[from] windlass::JoinError),
    #[error(transparent)]
    Windlass(#[from] windlass::Error),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("the calculation: {0}")]
    Candle(#[from] candle_core::Error),
    #[error("{}: {error}", path.display())]
    Write { path: PathBuf, error: std::io::Error },
    #[error("{}: {error}", path.display())]
    Save { path: PathBuf, error: candle_core::Error },
    #[error("the curve: {0}")]
    Curve(#[from] Box<dyn std::error::Error>),
    #[error(
        "in step {step} the loss or a gradient is too large or no number: try a smaller --lr than {rate}"
    )]
    Diverged { step: usize, rate: f32 },
    #[error("the ranks end with different weights: do all of them run the same program on the same data?")]
    Different,
}

fn main() -> ExitCode {
    // Ranks share the cores; more threads in each would only be in each other's way. candle asks the environment.
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // SAFETY: the process has no other thread yet that could read the environment meanwhile.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", "1") };
    }
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("train_digits: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), TrainError> {
    // Before it joins: a rank that cannot read keeps nobody waiting.
    let digits = Digits::read(arguments.data.as_deref())?;
    let comm = windlass::init()?;
    let device = match arguments.accelerator.as_str() {
        NO_ACCELERATOR => None,
        name => Some(attach(arguments, &comm, name)?),
    };
    if arguments.reproducible {
        train::<i64>(arguments, &comm, device.as_ref(), &digits)?;
    } else {
        train::<f32>(arguments, &comm, device.as_ref(), &digits)?;
    }
    comm.finalize()?;
    Ok(())
}

fn attach(arguments: &Arguments, comm: &Communicator, name: &str) -> Result<Device, TrainError> {
    let options = Options {
        seed: u64::from(comm.rank()),
        moves_per_second: arguments.moves_per_second,
        revokes_per_second: arguments.moves_per_second / 10.0,
        keep_bytes: 64 << 20,
        ..Options::default()
    };
    Ok(comm.attach(open(name, options)?)?)
}

fn train<E: Number>(
    arguments: &Arguments,
    comm: &Communicator,
    device: Option<&Device>,
    digits: &Digits,
) -> Result<(), TrainError> {
    let mut training = Training::<E>::new(arguments, comm, device, digits)?;
    let sizes = training.sizes();
    let mut live = (comm.rank() == 0).then(|| Live::new(arguments, comm.size(), &sizes));
    // Not the start of the processes, but what training takes.
    comm.blocking().barrier()?;
    for _ in 0..arguments.epochs {
        training.epoch(|history| live.iter().for_each(|live| live.step(history)))?;
        live.iter_mut().for_each(|live| live.epoch(&training.history));
    }
    live.iter().for_each(Live::end);
    let report = Report::gather(comm, device, training.elapsed, &training.spent)?;
    let (model, digest) = training.finish()?;
    if comm.rank() > 0 {
        return Ok(());
    }
    report.print(&training.history, sizes.2, digest);
    if let Some(path) = &arguments.save {
        model.save(path).map_err(|error| TrainError::Save { path: path.clone(), error })?;
    }
    if let Some(path) = &arguments.curve {
        let title = format!("Handwritten digits on {} ranks, batches of {}", comm.size(), arguments.batch);
        let svg = curve::draw(&title, &training.history)?;
        std::fs::write(path, svg).map_err(|error| TrainError::Write { path: path.clone(), error })?;
    }
    Ok(())
}
