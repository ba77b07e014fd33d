//! What holds in a container, found out from inside: the probe's answers in containers of ours (app,
//! build, through exec), of runc and of LXC, side by side.
//!
//! A column is one kind of container, a row one check. Ours must hold in every row; the others are there
//! to compare with.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::platform::bin_dir;

mod bombs;
mod elsewhere;
mod exec;
mod hostile;
mod node;
mod ours;
mod peers;
mod report;

pub use report::{print, write};

/// The last line of a complete run.
const END: &str = "probe: all done";
/// Where the probe is in every image.
const PROBE: &str = "/bin/probe";
/// What the probe calls a path of the host that no file in the container may name.
const HOST_PATHS: &str = "PROBE_HOST_PATHS";

/// One line of the probe's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: String,
    /// The row of the threat model that it belongs to.
    pub threat: String,
    /// Nothing where the question made no sense, or was not asked.
    pub held: Option<bool>,
    /// The system call's answer, or what was found.
    pub answer: String,
}

impl Finding {
    fn new(threat: &str, check: &str, held: Option<bool>, answer: impl Into<String>) -> Self {
        Self { check: check.to_owned(), threat: threat.to_owned(), held, answer: answer.into() }
    }
}

/// What was found in one kind of container.
#[derive(Debug, Clone, Serialize)]
pub struct Column {
    pub name: &'static str,
    /// One of ours, in which every check must hold.
    pub ours: bool,
    pub findings: Vec<Finding>,
}

impl Column {
    /// What did not hold, or was not answered though it is ours.
    #[must_use]
    pub fn holes(&self) -> Vec<&Finding> {
        self.findings.iter().filter(|finding| finding.held != Some(true)).collect()
    }

    fn answers(&self) -> BTreeMap<&str, &Finding> {
        self.findings.iter().map(|finding| (finding.check.as_str(), finding)).collect()
    }
}

/// The columns that are ours.
///
/// # Errors
/// When a container cannot be made that should be.
pub fn ours() -> Result<Vec<Column>> {
    ours::columns()
}

/// The peers' columns.
///
/// # Errors
/// When one of them is not installed or does not run here.
pub fn peers() -> Result<Vec<Column>> {
    let dir = tempfile::Builder::new().prefix("mogok-security-").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    Ok(vec![peers::runc(dir.path())?, peers::lxc(dir.path())?])
}

/// Why the checks cannot run here, if so.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    ["mogok-agent", "mogok-shim", "mogok-probe-static"]
        .map(|name| bin_dir().join(name))
        .iter()
        .find(|path| !path.exists())
        .map(|path| format!("{} is missing: run 'make build'", path.display()))
}

/// The findings among what a container printed.
fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for line in lines {
        if line == END {
            ensure!(!findings.is_empty(), "the probe made no check");
            return Ok(findings);
        }
        if line.starts_with('{') {
            findings.push(serde_json::from_str(line).with_context(|| format!("not a finding: {line}"))?);
        }
    }
    anyhow::bail!("the probe did not come to its end: {} findings", findings.len())
}

/// A root file system of the probe and busybox: the image of every column.
fn make_root(root: &Path) -> Result<()> {
    for name in ["bin", "dev", "proc", "sys", "tmp", "etc", "app", "run", "root"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("install busybox-static")?;
    for applet in ["sh", "nc", "echo", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    for copy in ["bin/probe", "bin/setuid-probe"] {
        fs::copy(bin_dir().join("mogok-probe-static"), root.join(copy)).context("run 'make build'")?;
    }
    set_user_id(root)?;
    // The kernel takes the interpreter while the caller is still the runtime.
    fs::write(root.join("bin/attack"), "#!/proc/self/exe\n")?;
    fs::set_permissions(root.join("bin/attack"), fs::Permissions::from_mode(0o755))?;
    std::os::unix::fs::chown(root.join("app"), Some(1000), Some(1000))?;
    Ok(())
}

/// Gives the copy of the probe the bit that an archive cannot carry.
fn set_user_id(root: &Path) -> Result<()> {
    Ok(fs::set_permissions(root.join("bin/setuid-probe"), fs::Permissions::from_mode(0o4755))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_complete_or_an_error() {
        let line = r#"{"check":"c","threat":"t","held":null,"answer":"EPERM"}"#;
        let findings = parse(["noise", line, END].into_iter()).unwrap();
        assert_eq!(findings, [Finding::new("t", "c", None, "EPERM")]);
        assert!(parse([line].into_iter()).is_err());
        assert!(parse([END].into_iter()).is_err());
        assert!(parse(["{", END].into_iter()).is_err());
    }

    #[test]
    fn what_was_not_asked_is_a_hole() {
        let finding = |held| Finding::new("t", "c", held, "");
        let column = Column {
            name: "x",
            ours: true,
            findings: vec![finding(Some(true)), finding(None), finding(Some(false))],
        };
        assert_eq!(column.holes().len(), 2);
    }
}
