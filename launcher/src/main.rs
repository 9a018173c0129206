//! The `windlass` command.

mod bench;
mod cli;
mod doctor;
mod explain;
mod run;
mod serving;
mod simulate;
mod tune;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, RunArguments};
use crate::serving::Serving;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(arguments) => ExitCode::from(run_job(&arguments)),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Tune(arguments) => tune::tune(&arguments),
        Command::Explain(arguments) => explain::explain(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Simulate(arguments) => simulate::simulate(&arguments),
        Command::BenchRank { plan } => bench::rank(&plan),
        Command::Warden { control } => run::warden(control),
        Command::Guard { control } => run::guard(control),
    }
}

/// Runs a job with its rendezvous in this process; its exit code.
fn run_job(arguments: &RunArguments) -> u8 {
    let job = run::JobId::random();
    let serving = match Serving::open(arguments, &job) {
        Ok(serving) => serving,
        Err(error) => {
            eprintln!("windlass: {error}");
            return 1;
        }
    };
    match run::run(arguments, &job, Some(Box::new(serving))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("windlass: {error}");
            error.exit_code()
        }
    }
}
