//! Which test programs there are, and which tests are in each: asked of cargo and of the programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::program::{run, text};

/// The crates whose tests need the kernel.
pub(super) const CRATES: [&str; 2] = ["agent", "shim"];

/// Tests that have nothing to do with the kernel or with cgroups, by program and the beginning of their names:
/// this host's run of them is enough. Those of agent-node are about requests, records and streams; a figure of an
/// emulated machine says nothing.
const ELSEWHERE: [(&str, &[&str]); 4] = [
    ("agent-cgroup", &["figures"]),
    ("agent-disk", &["figures"]),
    ("agent-network", &["figures"]),
    (
        "agent-node",
        &[
            "adopt::a_clock_that_was_moved",
            "api::",
            "exec::much_output",
            "exec::what_cannot_be",
            "hold::what_cannot_be",
            "soak::",
        ],
    ),
];

/// A test program and the tests it must report.
#[derive(Debug)]
pub(super) struct Program {
    /// `agent-cgroup`: crate and target.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) tests: Vec<String>,
    /// `NAME=value` for its environment.
    pub(super) variable: Option<String>,
    /// Only tests whose name contains this.
    pub(super) filter: Option<String>,
}

impl Program {
    /// The words that run it.
    pub(super) fn command(&self) -> Vec<String> {
        let mut words = vec!["env".to_owned()];
        words.extend(self.variable.clone());
        words.extend([self.path.display().to_string(), "--show-output".to_owned()]);
        words.extend(self.filter.clone());
        words.extend(left_out(&self.name).iter().flat_map(|test| ["--skip".to_owned(), (*test).to_owned()]));
        words
    }

    /// The same under another name, with a variable in its environment.
    pub(super) fn with(&self, name: String, variable: String) -> Self {
        let (path, tests, filter) = (self.path.clone(), self.tests.clone(), self.filter.clone());
        Self { name, path, tests, variable: Some(variable), filter }
    }

    /// Only tests whose name contains the word.
    pub(super) fn choose(&mut self, word: &str) {
        self.tests.retain(|test| test.contains(word));
        self.filter = Some(word.to_owned());
    }
}

/// Everything that goes to the machines.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) tests: Vec<Program>,
    /// The programs that the tests start.
    pub(super) started: Vec<PathBuf>,
    /// `make build` has put it there.
    pub(super) old_shim: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Programs {
    /// Builds the programs as `make test` does (with any other choice of crates cargo would build them once
    /// more, with other features) and takes those whose name contains one of `only`.
    pub(super) fn build(workspace: &Path, only: &[String]) -> Result<Self> {
        Self::build_of(workspace, &["--workspace", "--exclude", "mogok-tests"], only)
    }

    /// Builds what `choice` names to cargo, and takes the programs whose name contains one of `only`.
    pub(super) fn build_of(workspace: &Path, choice: &[&str], only: &[String]) -> Result<Self> {
        let built = Command::new(env!("CARGO"))
            .current_dir(workspace)
            .args(["test", "--no-run"])
            .args(choice)
            .args(["--message-format", "json-render-diagnostics"])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        ensure!(built.status.success(), "the test programs do not build");
        let mut programs = Self {
            tests: Vec::new(),
            started: Vec::new(),
            old_shim: workspace.join("target/debug/protocol-1/mogok-shim"),
        };
        for line in text(&built.stdout).lines() {
            let message: Message = serde_json::from_str(line).context("cargo's messages have changed")?;
            let (Some(manifest), Some(target), Some(path)) =
                (message.manifest_path, message.target, message.executable)
            else {
                continue;
            };
            let Some(of) = CRATES.iter().find(|of| manifest == workspace.join(of).join("Cargo.toml")) else {
                continue;
            };
            match target.kind.first().map(String::as_str) {
                Some("test") => {
                    let name = format!("{of}-{}", target.name);
                    if only.is_empty() || only.iter().any(|word| name.contains(word)) {
                        let mut tests = tests_of(&path)?;
                        tests.retain(|test| !left_out(&name).iter().any(|of| test.starts_with(of)));
                        programs.tests.push(Program { name, path, tests, variable: None, filter: None });
                    }
                }
                // Once as a program, and once as a program of its unit tests.
                Some("bin") if path.file_name().is_some_and(|name| name == &*target.name) => {
                    programs.started.push(path);
                }
                _ => {}
            }
        }
        if programs.started.is_empty() {
            bail!("cargo built no program of {}", CRATES.join(" and "));
        }
        programs.tests.sort_by(|one, two| one.name.cmp(&two.name));
        Ok(programs)
    }
}

/// Beginnings of names of tests that a machine need not run.
fn left_out(program: &str) -> &'static [&'static str] {
    ELSEWHERE.iter().find(|(name, _)| *name == program).map_or(&[], |(_, tests)| *tests)
}

fn tests_of(program: &Path) -> Result<Vec<String>> {
    let listed = run(&program.to_string_lossy(), &["--list", "--format", "terse"])?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}
