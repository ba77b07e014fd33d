//! Hostile images: links where the sandbox mounts, and a program whose interpreter is the runtime itself.
//!
//! Either the start fails and names the step, or what the probe says of `/proc` and the masks holds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Result;
use mogok_api::instance::{ContainerKind, FailureCode, InstanceSpec};

use super::node::{Ended, Node};
use super::{Finding, PROBE, parse};
use crate::platform::bin_dir;

const MASKS: &str = "masks and /proc of a hostile image";
const RUNTIME: &str = "overwrite of the runtime's executable";
/// Image, what is made a link in it, and where that leads.
const LINKS: [(&str, &str, &str); 8] = [
    ("proc-to-tmp", "proc", "/tmp"),
    ("proc-to-sys", "proc", "sys"),
    ("dev-to-etc", "dev", "/etc"),
    ("dev-null", "dev/null", "/proc/sys/kernel/core_pattern"),
    ("dev-console", "dev/console", "/proc/sys/kernel/core_pattern"),
    ("dev-pts-0", "dev/pts/0", "/proc/sysrq-trigger"),
    ("tmp-to-proc", "tmp", "/proc/self/fd"),
    ("resolv-to-host", "etc/resolv.conf", "/proc/sys/kernel/core_pattern"),
];

pub(super) fn findings(node: &mut Node, kind: ContainerKind) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (image, link, target) in LINKS {
        if kind == ContainerKind::App {
            node.image(image, |tree| replace(tree, link, target))?;
        }
        let spec = InstanceSpec { image: image.parse()?, ..node.spec(kind, &[PROBE, "run"]) };
        let check = format!("image_with_{}_a_link", link.replace(['/', '.'], "_"));
        findings.push(judge(&check, node.run(&spec)?)?);
    }
    findings.push(interpreter(node, kind)?);
    Ok(findings)
}

/// Puts a link in the place of a file or directory of the unpacked image.
fn replace(tree: &Path, link: &str, target: &str) -> Result<()> {
    let place = tree.join(link);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    if place.is_dir() {
        fs::remove_dir_all(&place)?;
    }
    Ok(symlink(target, place)?)
}

fn judge(check: &str, ended: Ended) -> Result<Finding> {
    let failure = ended.status.failure.as_ref();
    if let Some(failure) = failure.filter(|failure| failure.code == FailureCode::CannotStart) {
        return Ok(Finding::new(MASKS, check, Some(true), format!("refused: {}", failure.message)));
    }
    let found = parse(ended.lines.iter().map(String::as_str))?;
    // What was not asked here was asked of a decent image.
    let holes: Vec<_> = found
        .iter()
        .filter(|finding| finding.held == Some(false))
        .map(|finding| format!("{}: {}", finding.check, finding.answer))
        .collect();
    let answer = if holes.is_empty() { format!("{} checks hold", found.len()) } else { holes.join("; ") };
    Ok(Finding::new(MASKS, check, Some(holes.is_empty()), answer))
}

/// The kernel starts the interpreter while the caller still is the shim: it may run, and must stay what it is.
fn interpreter(node: &mut Node, kind: ContainerKind) -> Result<Finding> {
    let shim = bin_dir().join("mogok-shim");
    let before = fs::read(&shim)?;
    let ended = node.run(&node.spec(kind, &["/bin/attack"]))?;
    let same = fs::read(&shim)? == before;
    let end = match (&ended.status.failure, ended.status.exit) {
        (Some(failure), _) => failure.message.clone(),
        (None, Some(exit)) => exit.to_string(),
        (None, None) => "no end".to_owned(),
    };
    let answer = format!("{end}; the program on the host is {}", if same { "the same" } else { "another" });
    Ok(Finding::new(RUNTIME, "interpreter_is_the_runtime", Some(same), answer))
}
