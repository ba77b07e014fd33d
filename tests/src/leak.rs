//! What a platform may leave on a host and must not: processes, mounts, cgroups, network links,
//! firewall tables, routes, loop devices. Looked at before and after; the difference is a leak.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::program::run;

/// All of it that bears the platform's name or lies in this thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    found: BTreeSet<String>,
}

impl Host {
    /// Looks at the host for things of the platform `name`.
    ///
    /// # Errors
    /// When `/proc` or one of the tools cannot be read.
    pub fn look(name: &str) -> Result<Self> {
        let mut found = BTreeSet::new();
        processes(name, &mut found)?;
        lines("mount", &fs::read_to_string("/proc/self/mounts")?, name, &mut found);
        cgroups(Path::new("/sys/fs/cgroup"), name, 4, &mut found);
        for device in fs::read_dir("/sys/block")?.flatten() {
            let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            if file.contains(name) {
                found.insert(format!("loop device {}: {}", device.file_name().display(), file.trim()));
            }
        }
        // The namespace is the test's own: whatever is in it counts.
        for line in run("ip", &["-oneline", "address", "show"])?.lines() {
            found.insert(format!("address {line}"));
        }
        for line in run("ip", &["-oneline", "link", "show"])?.lines() {
            let name = line.split(": ").nth(1).unwrap_or_default();
            found.insert(format!("link {name}"));
        }
        for line in run("ip", &["route", "show", "table", "all"])?.lines() {
            found.insert(format!("route {line}"));
        }
        for line in run("nft", &["list", "tables"])?.lines() {
            found.insert(format!("nft {line}"));
        }
        Ok(Self { found })
    }

    /// Fails when `after` holds something that this does not.
    ///
    /// # Errors
    /// All that is new, one a line.
    pub fn compare(&self, after: &Self) -> Result<()> {
        let left: Vec<_> = after.found.difference(&self.found).map(String::as_str).collect();
        ensure!(left.is_empty(), "left on the host:\n{}", left.join("\n"));
        Ok(())
    }
}

fn lines(kind: &str, text: &str, name: &str, found: &mut BTreeSet<String>) {
    found.extend(text.lines().filter(|line| line.contains(name)).map(|line| format!("{kind} {line}")));
}

/// Processes whose command line or cgroup names the platform.
fn processes(name: &str, found: &mut BTreeSet<String>) -> Result<()> {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cgroup = String::from_utf8_lossy(&read("cgroup")).into_owned();
        // A zombie is gone but for its status, which its parent has yet to read: an orphan's is pid 1.
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let zombie = stat.rsplit(')').next().is_some_and(|fields| fields.starts_with(" Z"));
        if !zombie && (command.contains(name) || cgroup.contains(name)) {
            found.insert(format!("process {pid}: {command}"));
        }
    }
    Ok(())
}

fn cgroups(dir: &Path, name: &str, depth: u32, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy().contains(name) {
            found.insert(format!("cgroup {}", entry.path().display()));
        } else if depth > 0 {
            cgroups(&entry.path(), name, depth - 1, found);
        }
    }
}
