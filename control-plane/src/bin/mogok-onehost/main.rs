//! `mogok-onehost`: the whole platform on one machine under one state directory.
//!
//! `run` starts agent, control plane, router and nginx in the order in which they need each other,
//! forwards their logs with a prefix, starts again what dies, and on SIGTERM or Ctrl-C stops them
//! cleanly. Containers go on running; `down` stops everything, containers included, and leaves
//! nothing on the host but the state directory.

mod child;
mod down;
mod layout;
mod pidfile;
mod ready;
mod supervisor;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::layout::Layout;

#[derive(Debug, Parser)]
#[command(version, about = "The whole platform on one machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the platform and stay in the foreground
    Run(Layout),
    /// Stop the platform and everything it runs
    Down(Layout),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(layout) => supervisor::run(&layout),
        Command::Down(layout) => down::down(&layout),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mogok-onehost: {error:#}");
            ExitCode::FAILURE
        }
    }
}
