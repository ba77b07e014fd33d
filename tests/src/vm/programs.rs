//! Which test programs there are, and which tests are in each: asked of cargo and of the programs. Or the one that
//! measures.

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

const OLD_SHIM: &str = "target/debug/protocol-1/mogok-shim";

/// A test program and the tests it must report.
#[derive(Debug)]
pub(super) struct Program {
    /// `agent-cgroup`: crate and target.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) tests: Vec<String>,
    /// Each a `NAME=value` for its environment.
    pub(super) variables: Vec<String>,
    /// Only tests whose name contains this.
    pub(super) filter: Option<String>,
}

impl Program {
    /// The words that run it.
    pub(super) fn command(&self) -> Vec<String> {
        let mut words = vec!["env".to_owned()];
        words.extend(self.variables.clone());
        words.extend([self.path.display().to_string(), "--show-output".to_owned()]);
        words.extend(self.filter.clone());
        words.extend(left_out(&self.name).iter().flat_map(|test| ["--skip".to_owned(), (*test).to_owned()]));
        words
    }

    /// The same under another name, with a variable in its environment.
    pub(super) fn with(&self, name: String, variable: String) -> Self {
        let (path, tests, filter) = (self.path.clone(), self.tests.clone(), self.filter.clone());
        Self { name, path, tests, variables: vec![variable], filter }
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
        let built = cargo(workspace, &[&["test"], choice].concat())?;
        let mut programs =
            Self { tests: Vec::new(), started: Vec::new(), old_shim: workspace.join(OLD_SHIM) };
        for Built { manifest, target, path } in built {
            let Some(of) = CRATES.iter().find(|of| manifest == workspace.join(of).join("Cargo.toml")) else {
                continue;
            };
            match target.kind.first().map(String::as_str) {
                Some("test") => {
                    let name = format!("{of}-{}", target.name);
                    if only.is_empty() || only.iter().any(|word| name.contains(word)) {
                        let mut tests = tests_of(&path)?;
                        tests.retain(|test| !left_out(&name).iter().any(|of| test.starts_with(of)));
                        programs.tests.push(Program {
                            name,
                            path,
                            tests,
                            variables: Vec::new(),
                            filter: None,
                        });
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

    /// The benchmark of that name, with the release shim that `make bench-vm` has put there, and a word in the
    /// environment. libtest's arguments mean nothing to it.
    pub(super) fn benchmark(workspace: &Path, name: &str, variable: &str) -> Result<Self> {
        let built = cargo(workspace, &["bench", "-p", "mogok-tests", "--bench", name])?;
        let is_it = |built: &&Built| built.target.name == name && built.target.kind == ["bench"];
        let path = built.iter().find(is_it).context("cargo built no benchmark")?.path.clone();
        let release = workspace.join("target/release");
        let variables = vec![format!("MOGOK_BIN_DIR={}", release.display()), variable.to_owned()];
        let program = Program { name: name.to_owned(), path, tests: Vec::new(), variables, filter: None };
        let old_shim = workspace.join(OLD_SHIM);
        Ok(Self { tests: vec![program], started: vec![release.join("mogok-shim")], old_shim })
    }
}

/// Something that cargo built and that can be executed.
struct Built {
    manifest: PathBuf,
    target: Target,
    path: PathBuf,
}

/// Builds what the words name, without running it.
fn cargo(workspace: &Path, words: &[&str]) -> Result<Vec<Built>> {
    let built = Command::new(env!("CARGO"))
        .current_dir(workspace)
        .args(words)
        .args(["--no-run", "--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(built.status.success(), "cargo {} failed", words.join(" "));
    let mut all = Vec::new();
    for line in text(&built.stdout).lines() {
        let message: Message = serde_json::from_str(line).context("cargo's messages have changed")?;
        if let (Some(manifest), Some(target), Some(path)) =
            (message.manifest_path, message.target, message.executable)
        {
            all.push(Built { manifest, target, path });
        }
    }
    Ok(all)
}

/// Beginnings of names of tests that a machine need not run.
fn left_out(program: &str) -> &'static [&'static str] {
    ELSEWHERE.iter().find(|(name, _)| *name == program).map_or(&[], |(_, tests)| *tests)
}

fn tests_of(program: &Path) -> Result<Vec<String>> {
    let listed = run(&program.to_string_lossy(), &["--list", "--format", "terse"])?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}
