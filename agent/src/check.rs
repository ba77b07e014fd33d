//! `mogok-agent check`: what this host lacks to be an app server, each with its remedy. The agent
//! itself does not ask this at its start; there the failing step says it.

use std::path::Path;

use crate::cgroup::Cgroups;

/// One thing that is needed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Requirement {
    pub name: &'static str,
    /// What is wrong and what to do; absent when all is well.
    pub missing: Option<String>,
}

/// Every requirement, those that are met too.
#[must_use]
pub fn requirements(shim: &Path, cgroup: &str) -> Vec<Requirement> {
    let root = nix::unistd::geteuid().is_root();
    let mut found = vec![
        met("root", root, "run the agent as root"),
        met(
            "overlay",
            file_systems().contains(&"overlay".to_owned()),
            "the kernel has no overlay file system",
        ),
        met("ext4", file_systems().contains(&"ext4".to_owned()), "the kernel has no ext4 file system"),
        met(
            "loop devices",
            Path::new("/dev/loop-control").exists(),
            "there is no /dev/loop-control: load the loop module",
        ),
        met("mkfs.ext4", in_path("mkfs.ext4"), "install e2fsprogs"),
        met("nft", in_path("nft"), "install nftables"),
        met("shim", shim.is_file(), "mogok-shim is not beside this program: give --shim"),
        met("pidfd", pidfd(), "the kernel has no pidfd_open: Linux 5.3 or later is needed"),
    ];
    for (name, file) in [
        ("user namespaces", "user"),
        ("pid namespaces", "pid"),
        ("network namespaces", "net"),
        ("mount namespaces", "mnt"),
        ("cgroup namespaces", "cgroup"),
        ("ipc namespaces", "ipc"),
        ("uts namespaces", "uts"),
    ] {
        found.push(met(
            name,
            Path::new("/proc/self/ns").join(file).exists(),
            "the kernel was built without them",
        ));
    }
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    found.push(met("user namespaces allowed", limit.trim() != "0", "sysctl user.max_user_namespaces is 0"));
    let cgroups = if root {
        Cgroups::detect(cgroup).err().map(|error| crate::chain(&error))
    } else {
        Some("cannot be told without root".to_owned())
    };
    found.push(Requirement { name: "cgroups", missing: cgroups });
    found
}

fn met(name: &'static str, met: bool, remedy: &str) -> Requirement {
    Requirement { name, missing: (!met).then(|| remedy.to_owned()) }
}

fn file_systems() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    text.lines().filter_map(|line| line.split_ascii_whitespace().last()).map(str::to_owned).collect()
}

/// In `PATH`, or where Debian keeps what root uses.
fn in_path(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| Path::new(dir).join(program).is_file())
}

fn pidfd() -> bool {
    let own = rustix::process::getpid();
    rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).is_ok()
}
