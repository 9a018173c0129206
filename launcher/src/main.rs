//! The `windlass` command.

mod cli;
mod run;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(arguments) => {
            let job = run::JobId::random();
            match run::run(&arguments, &job, None) {
                Ok(code) => ExitCode::from(code),
                Err(error) => {
                    eprintln!("windlass: {error}");
                    ExitCode::from(error.exit_code())
                }
            }
        }
        Command::Warden { control } => run::warden(control),
        Command::Guard { control } => run::guard(control),
    }
}
