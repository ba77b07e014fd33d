//! What a node or a platform may leave on a host and must not: processes, mounts, cgroups of both versions,
//! network links, addresses, routes, firewall elements, loop devices, files, descriptors. Counted before and
//! after; whatever is more than before is a leak.
//!
//! Invariant: what differs from run to run without meaning (pids, instance ids, the numbers in the names of
//! links) is left out, so that a look at the same state is the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::program::run;

/// Below `/sys/fs/cgroup`; a platform's own cgroups lie a few levels down in its unit or container.
const CGROUP_DEPTH: u32 = 8;

/// All of it that bears one of the names or lies in this thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    found: BTreeMap<String, usize>,
}

impl Host {
    /// Looks at the host for what bears one of `names`: the name of a platform, a cgroup, a path.
    ///
    /// # Errors
    /// When `/proc` or one of the tools cannot be read.
    pub fn look(names: &[&str]) -> Result<Self> {
        let mut host = Self { found: BTreeMap::new() };
        let named = |text: &str| names.iter().any(|name| text.contains(name));
        host.processes(&named)?;
        for line in fs::read_to_string("/proc/self/mounts")?.lines().filter(|line| named(line)) {
            host.add("mount", line);
        }
        host.cgroups(Path::new("/sys/fs/cgroup"), &named, false, CGROUP_DEPTH);
        for device in fs::read_dir("/sys/block")?.flatten() {
            let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            if named(&file) {
                host.add("loop device of", file.trim());
            }
        }
        // The namespace is the test's own: whatever is in it counts.
        for (kind, arguments) in [
            ("address", &["-oneline", "address", "show"][..]),
            ("link", &["-oneline", "link", "show"]),
            ("route", &["route", "show", "table", "all"]),
        ] {
            for line in run("ip", arguments)?.lines() {
                // Of a link the index, the state and the counters are of no meaning.
                let line = if kind == "link" { line.split(": ").nth(1).unwrap_or_default() } else { line };
                host.add(kind, line.split('@').next().unwrap_or_default());
            }
        }
        for line in lasting(&run("nft", &["--stateless", "list", "ruleset"])?) {
            host.add("nft", line);
        }
        Ok(host)
    }

    /// Counts the files below a directory as well, those in the directories `but` left out.
    #[must_use]
    pub fn and_files(mut self, dir: &Path, but: &[&str]) -> Self {
        self.files(dir, dir, but);
        self
    }

    /// Counts the descriptors of a process as well.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn and_descriptors(mut self, pid: u32) -> Result<Self> {
        let dir = format!("/proc/{pid}/fd");
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {dir}"))?.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            // `socket:[4711]` and the like: what it is, not which.
            let target = target.to_string_lossy();
            self.add("descriptor", target.split(":[").next().unwrap_or_default());
        }
        Ok(self)
    }

    /// What `after` holds that this does not, one a line; empty when there is no such thing.
    #[must_use]
    pub fn more_in(&self, after: &Self) -> String {
        let mut more = String::new();
        for (line, count) in &after.found {
            let before = self.found.get(line).copied().unwrap_or(0);
            if *count > before {
                more.push_str(&format!("{line} ({before} before, {count} now)\n"));
            }
        }
        more
    }

    /// Fails when `after` holds something that this does not.
    ///
    /// # Errors
    /// All that is new, one a line.
    pub fn compare(&self, after: &Self) -> Result<()> {
        let left = self.more_in(after);
        ensure!(left.is_empty(), "left on the host:\n{left}");
        Ok(())
    }

    fn add(&mut self, kind: &str, text: &str) {
        *self.found.entry(format!("{kind} {}", normal(text))).or_default() += 1;
    }

    /// Processes whose command line or cgroup bears a name.
    fn processes(&mut self, named: &impl Fn(&str) -> bool) -> Result<()> {
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
            if !zombie && (named(&command) || named(&cgroup)) {
                self.add("process", &command);
            }
        }
        Ok(())
    }

    fn cgroups(&mut self, dir: &Path, named: &impl Fn(&str) -> bool, inside: bool, depth: u32) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let path = entry.path();
            let found = inside || named(&entry.file_name().to_string_lossy());
            if found {
                self.add("cgroup", &path.to_string_lossy());
            }
            if depth > 0 {
                self.cgroups(&path, named, found, depth - 1);
            }
        }
    }

    fn files(&mut self, top: &Path, dir: &Path, but: &[&str]) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
            if but.contains(&name.as_str()) {
                continue;
            }
            self.add("file", &name);
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.files(top, &path, but);
            }
        }
    }
}

/// The lines of a ruleset without the elements of the sets that the kernel empties by itself (`timeout`): the rate
/// of an address is forgotten a minute after its last packet, whatever becomes of the container.
fn lasting(ruleset: &str) -> Vec<&str> {
    let (mut expires, mut within) = (false, false);
    let mut lines = Vec::new();
    for line in ruleset.lines().map(str::trim) {
        if line.starts_with("set ") || line.starts_with("map ") {
            expires = false;
        }
        expires |= line.starts_with("timeout ");
        within |= expires && line.starts_with("elements = {");
        if !within {
            lines.push(line);
        }
        within &= !line.ends_with('}');
    }
    lines
}

/// The text with every instance id as `ID`; of what belongs to a container's link only that.
fn normal(text: &str) -> String {
    let mut normal = String::new();
    for word in text.split_inclusive(|byte: char| !byte.is_ascii_alphanumeric() && byte != '-') {
        let bare = word.trim_end_matches(|byte: char| !byte.is_ascii_alphanumeric());
        if bare.len() == 10 && bare.starts_with("mg") && hexadecimal(&bare[2..]) {
            return "a container's link".to_owned();
        }
        if bare.len() == 36
            && bare.split('-').map(str::len).eq([8, 4, 4, 4, 12])
            && hexadecimal(&bare.replace('-', ""))
        {
            normal.push_str("ID");
            normal.push_str(&word[bare.len()..]);
        } else {
            normal.push_str(word);
        }
    }
    normal
}

fn hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_meaning_is_left_out() {
        assert_eq!(normal("a/019ab1c2-0000-7000-8000-0123456789ab.img x"), "a/ID.img x");
        assert_eq!(normal("10.91.0.5 dev mg0a5b0005 scope link src 10.91.0.1"), "a container's link");
        assert_eq!(normal("lo mgmt-1 0a5b0005"), "lo mgmt-1 0a5b0005");
    }

    #[test]
    fn only_elements_that_expire_are_left_out() {
        let ruleset = "table inet t {
            map ports {
                type inet_service : ipv4_addr
                elements = { 1 : 10.0.0.1 }
            }
            set sent {
                type ipv4_addr
                size 65535
                flags dynamic,timeout
                timeout 1m
                elements = { 10.0.0.1 limit rate over 1 bytes/second,
                             10.0.0.2 limit rate over 1 bytes/second }
            }
            set grants {
                type ipv4_addr
                elements = { 10.0.0.3,
                             10.0.0.4 }
            }
        }";
        let lines = lasting(ruleset).join("\n");
        assert!(!lines.contains("limit"), "{lines}");
        for kept in ["timeout 1m", "10.0.0.1 }", "10.0.0.3,", "10.0.0.4 }"] {
            assert!(lines.contains(kept), "{kept}: {lines}");
        }
        assert_eq!(lines.matches('}').count(), 6, "{lines}");
    }

    #[test]
    fn one_more_of_the_same_is_a_leak() {
        let mut before = Host { found: BTreeMap::new() };
        before.add("link", "mg0a5b0005");
        let mut after = before.clone();
        before.compare(&after).unwrap();
        after.add("link", "mg0a5b0006");
        assert_eq!(before.more_in(&after), "link a container's link (1 before, 2 now)\n");
        assert!(before.compare(&after).is_err());
        after.compare(&before).unwrap();
    }
}
