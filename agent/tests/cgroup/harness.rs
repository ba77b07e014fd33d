//! A root cgroup of its own for every test, programs in containers' cgroups, and a disk to do I/O on.
//!
//! The programs are those that Debian and busybox both have, so that the tests run as the only program of a
//! virtual machine too. Everything is removed on drop.

use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mogok_agent::cgroup::{Cgroup, Cgroups};
use mogok_api::app::Limits;
use mogok_api::id::InstanceId;

/// How long anything may take on a machine that does other things as well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Root {
    pub(crate) cgroups: Cgroups,
}

impl Root {
    /// `None`, said aloud, where the test cannot run.
    pub(crate) fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: cgroup tests need root");
            return None;
        }
        match Cgroups::detect(&format!("mogok-test-{name}-{}", std::process::id())) {
            Ok(cgroups) => Some(Self { cgroups }),
            Err(error) => {
                eprintln!("SKIP: {error}");
                None
            }
        }
    }

    pub(crate) fn create(&self, limits: &Limits) -> (InstanceId, Cgroup) {
        let id = InstanceId::new();
        let cgroup = self.cgroups.create(&id, limits).unwrap();
        (id, cgroup)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for id in self.cgroups.list().unwrap_or_default() {
            let _ = self.cgroups.open(&id).remove();
        }
        self.cgroups.remove_root();
    }
}

/// A shell that waits for a line, is put into the cgroup, and then runs `script`.
pub(crate) fn run_in(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for dir in cgroup.v1_paths().iter().map(|path| path.as_path()).chain([cgroup.v2_path()]) {
        std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child
}

pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn alive(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_none()
}

pub(crate) fn small() -> Limits {
    Limits { memory_bytes: 32 << 20, pids: 20, cpu_millis: 1000, ..Limits::app() }
}

/// The text of a file in the first of the container's cgroups that has it.
pub(crate) fn file(cgroup: &Cgroup, names: &[&str]) -> String {
    let dirs = || cgroup.v1_paths().iter().map(PathBuf::as_path).chain([cgroup.v2_path()]);
    names
        .iter()
        .flat_map(|name| dirs().map(move |dir| dir.join(name)))
        .find_map(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_else(|| panic!("none of {names:?} in {:?}", dirs().collect::<Vec<_>>()))
}

/// The number behind a key.
pub(crate) fn key(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {key} in {text:?}")).trim().parse().unwrap()
}

/// A loop device over a file: a whole disk that only this test writes to.
pub(crate) struct LoopDisk {
    pub(crate) path: PathBuf,
    _file: tempfile::TempDir,
}

impl LoopDisk {
    pub(crate) fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Somebody else may take the free one in between.
            let free = Command::new("losetup").arg("-f").output().unwrap();
            let path = PathBuf::from(String::from_utf8(free.stdout).unwrap().trim());
            let is_disk = std::fs::metadata(&path).is_ok_and(|found| found.file_type().is_block_device());
            if is_disk && losetup(&[&path, &image]) {
                return Self { path, _file: dir };
            }
            assert!(Instant::now() < deadline, "no loop device to be had, the last one was {path:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A file system of a [`LoopDisk`], unmounted on drop.
pub(crate) struct Mounted(tempfile::TempDir);

impl LoopDisk {
    /// With an ext4 on it, as the disks of containers have one.
    pub(crate) fn mounted(&self) -> Mounted {
        let dir = Mounted(tempfile::tempdir().unwrap());
        let run = |program: &str, arguments: &[&Path]| {
            assert!(Command::new(program).args(arguments).stdout(Stdio::null()).status().unwrap().success());
        };
        run(
            "mke2fs",
            &["-q", "-t", "ext4", "-O", "^has_journal"]
                .map(Path::new)
                .into_iter()
                .chain([&*self.path])
                .collect::<Vec<_>>(),
        );
        run("mount", &[&self.path, dir.path()]);
        dir
    }
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing is mounted when the test has failed before.
        let _ = Command::new("umount").arg(self.path()).stderr(Stdio::null()).status();
    }
}

fn losetup(args: &[&Path]) -> bool {
    Command::new("losetup").args(args).stderr(Stdio::null()).status().unwrap().success()
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        losetup(&[Path::new("-d"), &self.path]);
    }
}
