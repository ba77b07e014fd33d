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

pub mod bench;
mod disk;
mod machine;
pub mod mutations;
mod programs;
mod verdict;

use disk::Disks;
use machine::Machine;
use programs::Programs;
use verdict::{Line, Reading, Verdict};

use crate::program::run;

/// The machines: Debian's suites, each with its kernel. bookworm has 6.1, trixie 6.12.
pub const SUITES: [&str; 2] = ["bookworm", "trixie"];
/// A whole machine, with all its programs, or so much for each of them: six times what two cores take that do much
/// else. Only a machine that hangs takes as long; each wait of a test has a bound of its own.
const LONGEST: Duration = Duration::from_secs(3000);
const LONGEST_EACH: Duration = Duration::from_secs(180);
/// One program on it.
const LONGEST_PROGRAM: Duration = Duration::from_secs(1500);
/// How often a machine is started whose kernel dies under its tests: an emulated processor that runs code which the
/// kernel is just patching probably ended so once (`docs/adr/0005`). Told aloud; a test that fails is not
/// run again, nor a machine that hangs.
const LIVES: u32 = 2;

/// What the machines said, all together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub passed: usize,
    pub failed: usize,
}

/// Runs the programs (all, or those named) on each of the suites at the same time, and prints every verdict
/// as it comes; with a `filter` only tests whose name contains it. `assets` keeps the machines.
///
/// # Errors
/// When a machine or its disk cannot be made. Tests that fail are no error but counted.
pub fn test(assets: &Path, suites: &[String], only: &[String], filter: Option<&str>) -> Result<Outcome> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let mut programs = Programs::build(workspace, only)?;
    if let Some(filter) = filter {
        programs.tests.iter_mut().for_each(|program| program.choose(filter));
    }
    ensure!(!programs.tests.is_empty(), "no test program is called {}", only.join(" or "));
    let work = workspace.join("target/vm");
    let disks = disk::make(workspace, &work, &programs)?;
    let mut bases = Vec::new();
    for suite in suites {
        bases.push((suite.clone(), base(workspace, assets, suite, &[])?));
    }
    thread::scope(|scope| {
        let programs = &programs;
        let started: Vec<_> = bases
            .into_iter()
            .map(|(suite, base)| {
                let (disks, dir) = (disks.clone(), work.join(&suite));
                scope.spawn(move || -> Result<Outcome> {
                    let begun = Instant::now();
                    let reading = on_machine(&suite, &base, &disks, &dir, programs)?;
                    let (outcome, told) = judge(&suite, programs, &reading);
                    print!("{told}");
                    let (passed, failed) = (outcome.passed, outcome.failed);
                    println!(
                        "machine {suite}: {} s, {passed} passed, {failed} failed",
                        begun.elapsed().as_secs()
                    );
                    Ok(outcome)
                })
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

/// The suite's kernel and root file system, made unless they are there; a machine of its own for each choice of
/// packages besides.
fn base(workspace: &Path, assets: &Path, suite: &str, packages: &[&str]) -> Result<PathBuf> {
    let name = [&[suite], packages].concat().join("-");
    let dir = assets.join("vm").join(name);
    let script = workspace.join("tests/vm/base.sh");
    run(&script.to_string_lossy(), &[&[suite, &dir.to_string_lossy()], packages].concat())?;
    Ok(dir)
}

/// Runs the programs on a new machine, or on another one should that die; all that the last one said.
fn on_machine(suite: &str, base: &Path, disks: &Disks, dir: &Path, programs: &Programs) -> Result<Reading> {
    let mut life = 1;
    loop {
        let (reading, end) = one_life(suite, base, disks, dir, programs)?;
        match end {
            Some(End::Died) if life < LIVES => {
                println!("machine {suite}: its kernel died; all is run once more")
            }
            _ => return Ok(reading),
        }
        life += 1;
    }
}

/// Why a machine did not come to the end of its tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Died,
    Hung,
}

/// Runs the programs on a new machine, telling verdicts as they come; all that it said.
fn one_life(
    suite: &str,
    base: &Path,
    disks: &Disks,
    dir: &Path,
    programs: &Programs,
) -> Result<(Reading, Option<End>)> {
    let begun = Instant::now();
    let longest = LONGEST.max(LONGEST_EACH * u32::try_from(programs.tests.len())?);
    let mut machine = Machine::start(suite, base, disks, dir)?;
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
            break Some((End::Died, "it ended before its tests did".to_owned()));
        }
        if begun.elapsed() > longest {
            break Some((End::Hung, format!("it was not done within {} s", longest.as_secs())));
        }
        thread::sleep(Duration::from_millis(200));
    };
    drop(machine);
    if let Some((_, reason)) = &end {
        println!("machine {suite}: {reason}; its console ends:\n{}", machine::console_end(dir));
    }
    Ok((reading, end.map(|(end, _)| end)))
}

/// Holds what the machine said against what the programs contain, and what it said of failures.
fn judge(suite: &str, programs: &Programs, reading: &Reading) -> (Outcome, String) {
    let (mut outcome, mut told) = (Outcome::default(), String::new());
    for program in &programs.tests {
        let said = reading.sections.get(&program.name);
        let mut bad = false;
        for test in &program.tests {
            match said.and_then(|section| section.verdicts.get(test)) {
                Some(Verdict::Passed) => outcome.passed += 1,
                Some(Verdict::Ignored) => {
                    told += &format!(
                        "test {suite} {} {test} ... ignored, but every test has to run\n",
                        program.name
                    );
                    (bad, outcome.failed) = (true, outcome.failed + 1);
                }
                Some(Verdict::Failed) => (bad, outcome.failed) = (true, outcome.failed + 1),
                None => {
                    told += &format!("test {suite} {} {test} ... no verdict\n", program.name);
                    (bad, outcome.failed) = (true, outcome.failed + 1);
                }
            }
        }
        let status = said.and_then(|section| section.status);
        if status != Some(0) && !bad {
            told += &format!("test {suite} {} ... ended with status {status:?}\n", program.name);
            (bad, outcome.failed) = (true, outcome.failed + 1);
        }
        if bad && let Some(section) = said {
            let (name, text) = (&program.name, &section.text);
            told += &format!("---- {suite} {name} ended with status {status:?} ----\n{text}\n");
        }
    }
    outcome.failed += reading.skips;
    (outcome, told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::programs::Program;

    fn outcome_of(said: &str) -> Outcome {
        let tests = ["a", "b"].map(str::to_owned).to_vec();
        let program =
            Program { name: "p".into(), path: "/p".into(), tests, variables: Vec::new(), filter: None };
        let programs = Programs { tests: vec![program], started: Vec::new(), old_shim: "/s".into() };
        let mut reading = Reading::default();
        reading.read(said);
        judge("trixie", &programs, &reading).0
    }

    #[test]
    fn whatever_was_not_said_to_be_good_has_failed() {
        let good = "@@ begin p\ntest a ... ok\ntest b ... ok\n@@ end p 0\n@@ done\n";
        assert_eq!(outcome_of(good), Outcome { passed: 2, failed: 0 });
        for (bad, failed) in [
            (String::new(), 2),
            (good.replace("test b ... ok\n", ""), 1),
            (good.replace("b ... ok", "b ... FAILED"), 1),
            (good.replace("b ... ok", "b ... ignored"), 1),
            // Its exit status never came, or is another.
            (good.replace("@@ end p 0\n", ""), 1),
            (good.replace("end p 0", "end p 124"), 1),
            (good.replace("@@ end", "SKIP: no such thing\n@@ end"), 1),
            (good.replace("@@ end", "words before SKIP: no such thing\n@@ end"), 1),
        ] {
            assert_eq!(outcome_of(&bad).failed, failed, "{bad}");
        }
    }
}
