//! The kernel tests in virtual machines: the programs that `cargo test` built for the agent and the shim, on
//! Debian's own kernels with a unified cgroup v2 tree.
//!
//! QEMU emulates in software, so no KVM is needed; a machine boots in seconds and runs all programs.
//! Invariant: a test counts as passed only when the machine said so. One that says nothing has failed,
//! whether its program hung, the kernel panicked or the machine never came up.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

mod disk;
mod machine;
mod programs;
mod verdict;

use machine::Machine;
use programs::Programs;
use verdict::{Line, Reading, Verdict};

use crate::program::run;

/// The machines: Debian's suites, each with its kernel. bookworm has 6.1, trixie 6.12.
pub const SUITES: [&str; 2] = ["bookworm", "trixie"];
/// A whole machine, with all its programs.
const LONGEST: Duration = Duration::from_secs(900);
/// One program on it.
const LONGEST_PROGRAM: Duration = Duration::from_secs(600);

/// What the machines said, all together.
#[derive(Debug, Default)]
pub struct Outcome {
    pub passed: usize,
    pub failed: usize,
}

/// Runs the programs (all, or those named) on each of the suites at the same time, and prints every verdict
/// as it comes. `assets` keeps the machines.
///
/// # Errors
/// When a machine or its disk cannot be made. Tests that fail are no error but counted.
pub fn test(assets: &Path, suites: &[String], only: &[String]) -> Result<Outcome> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let programs = Programs::build(workspace, only)?;
    ensure!(!programs.tests.is_empty(), "no test program is called {}", only.join(" or "));
    let work = workspace.join("target/vm");
    let disk = disk::make(workspace, &work, &programs)?;
    let mut bases = Vec::new();
    for suite in suites {
        bases.push((suite.clone(), base(workspace, assets, suite)?));
    }
    thread::scope(|scope| {
        let programs = &programs;
        let started: Vec<_> = bases
            .into_iter()
            .map(|(suite, base)| {
                let (disk, dir) = (disk.clone(), work.join(&suite));
                scope.spawn(move || on_machine(&suite, &base, &disk, &dir, programs))
            })
            .collect();
        let mut all = Outcome::default();
        for machine in started {
            let outcome = machine.join().expect("a machine's thread does not panic")?;
            all.passed += outcome.passed;
            all.failed += outcome.failed;
        }
        Ok(all)
    })
}

/// The suite's kernel and root file system, made unless they are there.
fn base(workspace: &Path, assets: &Path, suite: &str) -> Result<PathBuf> {
    let dir = assets.join("vm").join(suite);
    let script = workspace.join("tests/vm/base.sh");
    run(&script.to_string_lossy(), &[suite, &dir.to_string_lossy()])?;
    Ok(dir)
}

fn on_machine(suite: &str, base: &Path, disk: &Path, dir: &Path, programs: &Programs) -> Result<Outcome> {
    let begun = Instant::now();
    let mut machine = Machine::start(suite, base, disk, dir)?;
    let mut reading = Reading::default();
    let mut since = begun;
    let end = loop {
        let running = machine.is_running()?;
        for line in reading.read(&machine.said()?) {
            match line {
                Line::Verdict { program, test, verdict } => {
                    println!("test {suite} {program} {test} ... {verdict}");
                }
                Line::End(program) => {
                    println!("machine {suite}: {program} took {} s", since.elapsed().as_secs());
                    since = Instant::now();
                }
                Line::Skip(words) => println!("{words} ({suite})"),
                Line::Remark(words) => println!("machine {suite}: {words}"),
            }
        }
        if reading.done {
            break None;
        }
        if !running {
            break Some("it ended before its tests did".to_owned());
        }
        if begun.elapsed() > LONGEST {
            break Some(format!("it was not done within {} s", LONGEST.as_secs()));
        }
        thread::sleep(Duration::from_millis(200));
    };
    drop(machine);
    let outcome = judge(suite, programs, &reading);
    if let Some(reason) = &end {
        println!("machine {suite}: {reason}; its console ends:\n{}", machine::console_end(dir));
    }
    println!(
        "machine {suite}: {} s, {} passed, {} failed",
        begun.elapsed().as_secs(),
        outcome.passed,
        outcome.failed
    );
    Ok(outcome)
}

/// Holds what the machine said against what the programs contain, and prints what it said of failures.
fn judge(suite: &str, programs: &Programs, reading: &Reading) -> Outcome {
    let mut outcome = Outcome::default();
    for program in &programs.tests {
        let said = reading.sections.get(&program.name);
        let mut bad = false;
        for test in &program.tests {
            match said.and_then(|section| section.verdicts.get(test)) {
                Some(Verdict::Passed) => outcome.passed += 1,
                Some(Verdict::Ignored) => {}
                Some(Verdict::Failed) => (bad, outcome.failed) = (true, outcome.failed + 1),
                None => {
                    println!("test {suite} {} {test} ... no verdict", program.name);
                    (bad, outcome.failed) = (true, outcome.failed + 1);
                }
            }
        }
        let status = said.and_then(|section| section.status);
        if status != Some(0) && !bad {
            println!("test {suite} {} ... ended with status {status:?}", program.name);
            (bad, outcome.failed) = (true, outcome.failed + 1);
        }
        if bad && let Some(section) = said {
            println!("---- {suite} {} ended with status {status:?} ----\n{}", program.name, section.text);
        }
    }
    outcome.failed += reading.skips;
    outcome
}
