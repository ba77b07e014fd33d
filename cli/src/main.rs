//! `mogok`, the developer's command: every action of the platform, for people and for scripts.
//!
//! Exit status 0 done, 1 failed, 2 usage. Results go to stdout, everything else to stderr.

mod command;
mod context;
mod credentials;
mod git;
mod output;
mod password;
mod progress;

use std::process::ExitCode;

use clap::Parser;

use crate::command::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json();
    match command::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error, json);
            ExitCode::FAILURE
        }
    }
}
