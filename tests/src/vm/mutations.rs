//! What the cgroup tests are worth: each limit is left unwritten once, and the tests that then fail on the machine
//! are its row of a table. A limit that nobody misses, and tests that fail with every limit written, are errors.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::programs::Programs;
use super::verdict::{Reading, Section, Verdict};
use super::{base, disk, on_machine};

/// Files of a unified host's cgroups that the agent writes for a container's sake.
const FILES: [&str; 15] = [
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "memory.oom.group",
    "pids.max",
    "io.max",
    "io.weight",
    "io.bfq.weight",
    "cpuset.cpus",
    "cgroup.freeze",
    "memory.reclaim",
    "cgroup.kill",
];
/// Without it hardly a test would end, for each ends by it.
const KILL: (&str, &str) = ("cgroup.kill", "kill_reaches_every_process");
/// The test program, which also runs once as it is.
const PROGRAM: &str = "agent-cgroup";
/// The variable of the agent's fail points that names the file.
const VARIABLE: &str = "MOGOK_UNWRITTEN";
/// Characters of what a test said.
const WORDS: usize = 160;

/// Puts the table of a suite's machine into a file, in the place of its line "Kernel ..." and what follows.
///
/// # Errors
/// Those of [`table`], or when the file cannot be changed.
pub fn write(assets: &Path, suite: &str, file: &Path) -> Result<()> {
    let before = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let table = table(assets, suite)?;
    let head = before.split("Kernel ").next().unwrap_or_default();
    fs::write(file, format!("{head}{table}")).with_context(|| format!("cannot write {}", file.display()))
}

/// Runs the programs on a suite's machine and returns the table as Markdown.
///
/// # Errors
/// When a machine cannot be made, the tests fail without a mutation, or a mutation survives.
fn table(assets: &Path, suite: &str) -> Result<String> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let choice = ["-p", "mogok-agent", "--features", "failpoints", "--test", "cgroup"];
    let mut programs = Programs::build_of(workspace, &choice, &[PROGRAM.to_owned()])?;
    let plain = programs.tests.pop().context("cargo built no test of cgroups")?;
    let mutated = FILES.map(|file| {
        let mut program = plain.with(format!("{PROGRAM}/{file}"), format!("{VARIABLE}={file}"));
        if file == KILL.0 {
            program.choose(KILL.1);
        }
        program
    });
    programs.tests = std::iter::once(plain).chain(mutated).collect();

    let work = workspace.join("target/vm/mutations");
    fs::create_dir_all(&work)?;
    let disks = disk::make(workspace, &work, &programs)?;
    let reading =
        on_machine(suite, &base(workspace, assets, suite, &[])?, &disks, &work.join(suite), &programs)?;

    let sound = section(&reading, PROGRAM)?;
    ensure!(sound.status == Some(0), "the tests fail without any mutation:\n{}", sound.text);
    let kernel = reading.remarks.iter().find_map(|words| words.strip_prefix("kernel ")).unwrap_or_default();
    let mut table = format!(
        "Kernel {kernel}.\n\n| not written | tests that fail | what the first says |\n|---|---|---|\n"
    );
    let mut survivors = Vec::new();
    for file in FILES {
        let section = section(&reading, &format!("{PROGRAM}/{file}"))?;
        let failed: Vec<&str> = failed(section);
        let Some(first) = failed.first() else {
            survivors.push(file);
            continue;
        };
        let names: Vec<String> = failed.iter().map(|name| format!("`{name}`")).collect();
        writeln!(table, "| `{file}` | {} | {} |", names.join(", "), words_of(&section.text, first))?;
    }
    if !survivors.is_empty() {
        bail!("no test misses {}", survivors.join(", "));
    }
    Ok(table)
}

fn section<'a>(reading: &'a Reading, name: &str) -> Result<&'a Section> {
    let section = reading.sections.get(name).with_context(|| format!("the machine did not run {name}"))?;
    ensure!(section.status.is_some(), "{name} did not end:\n{}", section.text);
    Ok(section)
}

fn failed(section: &Section) -> Vec<&str> {
    let failed = section.verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Failed);
    failed.map(|(test, _)| test.as_str()).collect()
}

/// What a test said when it panicked, fit for a cell.
fn words_of(text: &str, test: &str) -> String {
    let head = format!("---- {test} stdout ----");
    let said = text.lines().skip_while(|line| *line != head).skip(1);
    let words: Vec<&str> = said
        .skip_while(|line| !line.contains(" panicked at "))
        .skip(1)
        .take_while(|line| !line.is_empty() && !line.starts_with("note:") && !line.starts_with("---- "))
        .map(str::trim)
        .collect();
    // Of paths and pids that differ from run to run no more than fits.
    words.join(" ").replace('|', "\\|").replace('<', "&lt;").chars().take(WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_a_panic_are_one_cell() {
        let text = "test a ... FAILED\n---- b stdout ----\nx\n---- a stdout ----\nstarted\n\
                    thread 'a' (7) panicked at agent/tests/cgroup/main.rs:1:2:\nassertion `left == right` failed\n  \
                    left: 1 | 2\nnote: run with\n";
        assert_eq!(words_of(text, "a"), "assertion `left == right` failed left: 1 \\| 2");
        assert_eq!(words_of(text, "c"), "");
    }
}
