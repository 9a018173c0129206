//! The `windlass` command.

mod cli;
mod run;
mod serving;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, RunArguments};
use crate::serving::Serving;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(arguments) => start(&arguments),
        Command::Warden { control } => run::warden(control),
        Command::Guard { control } => run::guard(control),
    }
}

/// Runs a job with its rendezvous in this process.
fn start(arguments: &RunArguments) -> ExitCode {
    let job = run::JobId::random();
    let serving = match Serving::open(arguments, &job) {
        Ok(serving) => serving,
        Err(error) => {
            eprintln!("windlass: {error}");
            return ExitCode::FAILURE;
        }
    };
    match run::run(arguments, &job, Some(Box::new(serving))) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("windlass: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
