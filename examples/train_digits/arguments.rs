//! What can be typed, and what is refused before anything runs.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use windlass::accelerator::NAMES;

const EXPLAINED: &str = "\
Every rank has the whole model and calculates the gradients of its part of each batch. They are summed layer by layer, the last
layer's first, while the earlier layers' are still being calculated:

  calculate   loss │ layer 4 │ layer 3 │ layer 2 │ layer 1 │               │ new weights
  all-reduce                           └─ bucket 1 ─┴─ bucket 2 ─┴─ bucket 3 ─┘

Examples:
  windlass run -n 4 -- target/release/examples/train_digits
  windlass run -n 4 -- target/release/examples/train_digits --curve curve.svg --save weights.safetensors
  windlass run -n 8 -- target/release/examples/train_digits --reproducible --save 8.safetensors   # the bits of any other -n
  windlass run -n 4 -- target/release/examples/train_digits --accelerator simulated --moves-per-second 200

Exits with 1 when the data cannot be read, the loss stops being a number, or the ranks end with different weights.";

/// Learns to read handwritten digits on all ranks at once.
#[derive(Debug, Clone, Parser)]
#[command(name = "train_digits", after_help = EXPLAINED)]
pub(crate) struct Arguments {
    /// How often every image is looked at.
    #[arg(long, value_name = "N", default_value = "12", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) epochs: u32,
    /// Images between two changes of the weights, on all ranks together.
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch: u32,
    /// How far the weights go at first; the step shrinks to nothing until the end.
    #[arg(long, value_name = "RATE", default_value = "0.05", value_parser = rate)]
    pub(crate) lr: f32,
    /// For the first weights, the order of the images, and which of them are held out.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) seed: u64,
    /// Another file of images, gzipped or plain: 64 pixels from 0 to 16 and the digit on each line, between commas.
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Sum so that the weights are the same to the bit for any number of ranks: each batch in 8 fixed parts, in fixed point.
    #[arg(long)]
    pub(crate) reproducible: bool,
    /// Where the gradients lie while they are summed: in registered host memory, or on an accelerator.
    #[arg(long, value_name = "NAME", default_value = NO_ACCELERATOR, value_parser = accelerators())]
    pub(crate) accelerator: String,
    /// How often each rank's accelerator moves a bucket; it takes away and replaces a tenth as many without asking.
    #[arg(long, value_name = "N", default_value = "0", value_parser = moves)]
    pub(crate) moves_per_second: f64,
    /// Draw loss and accuracy over the steps.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) curve: Option<PathBuf>,
    /// Write the weights, in the safetensors format.
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
}

/// `--accelerator`: registered host memory.
pub(crate) const NO_ACCELERATOR: &str = "none";

fn accelerators() -> PossibleValuesParser {
    PossibleValuesParser::new([NO_ACCELERATOR].into_iter().chain(NAMES))
}

fn rate(text: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().ok().filter(|value| *value > 0.0 && *value <= 100.0);
    value.ok_or_else(|| "it is not a number above 0, up to 100".to_owned())
}

fn moves(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=1000.0).contains(value));
    value.ok_or_else(|| "it is not a number from 0 to 1000".to_owned())
}
