//! `mogok-vm ASSETS [--suite SUITE] [--test WORD] [PROGRAM...]`: the kernel tests in virtual machines, or those whose
//! name contains a word. Ends with status 1 when a test failed.
//! `mogok-vm ASSETS --suite SUITE --mutations FILE`: which of them miss a limit that is not written, as a table
//! in the place of the last one of a Markdown file.
//! `mogok-vm ASSETS --suite SUITE --bench`: the container benchmark, beside crun and runc.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use mogok_tests::vm;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let assets =
        arguments.next().map(PathBuf::from).context("usage: mogok-vm ASSETS [--suite SUITE] [PROGRAM...]")?;
    let mut suites = Vec::new();
    let mut only = Vec::new();
    let mut mutations = None;
    let mut filter = None;
    let mut bench = false;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--suite" => suites.push(arguments.next().context("--suite needs one of bookworm, trixie")?),
            "--test" => filter = Some(arguments.next().context("--test needs a word")?),
            "--mutations" => mutations = Some(arguments.next().context("--mutations needs a file")?),
            "--bench" => bench = true,
            _ => only.push(argument),
        }
    }
    if suites.is_empty() {
        suites = vm::SUITES.map(str::to_owned).to_vec();
    }
    if bench {
        vm::bench::write(&assets, &suites[0])?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(file) = mutations {
        vm::mutations::write(&assets, &suites[0], Path::new(&file))?;
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = vm::test(&assets, &suites, &only, filter.as_deref())?;
    let word = if outcome.failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {} passed; {} failed", outcome.passed, outcome.failed);
    Ok(if outcome.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
