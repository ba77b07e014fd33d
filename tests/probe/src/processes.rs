//! Other processes: pid 1, the runtime's own program behind it, and whatever joins the container.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::getppid;

use crate::check::{Answer, Check, errno, name};
use crate::raw::{self, Arg};

const RUNTIME: &str = "overwrite of the runtime's executable";
const JOIN: &str = "setns, ptrace on others";
const TENANTS: &str = "other tenants";
/// The id of what the namespace does not map (Documentation/admin-guide/sysctl/kernel.rst, overflowuid).
const UNMAPPED: u32 = 65_534;

pub(crate) fn checks() -> Vec<Check> {
    let private =
        ["environ", "maps", "mem", "auxv", "fd", "root", "cwd", "stack", "syscall", "io", "personality"].map(
            |file| Check::new(JOIN, format!("pid_1_{file}"), move || read_of(&format!("/proc/1/{file}"))),
        );
    let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .map(|kind| Check::new(JOIN, format!("setns_{kind}_of_pid_1"), move || join(kind)));
    let more = [
        Check::new(RUNTIME, "pid_1_executable_is_not_opened", || program("/proc/1/exe")),
        Check::new(RUNTIME, "own_executable_is_not_opened", || program("/proc/self/exe")),
        Check::new(JOIN, "ptrace_seize_of_pid_1", || seize(1)),
        Check::new(JOIN, "ptrace_seize_of_own_parent", || seize(getppid().as_raw())),
        Check::new(JOIN, "process_vm_readv_of_own_parent", || vm(libc::SYS_process_vm_readv)),
        Check::new(JOIN, "process_vm_writev_of_own_parent", || vm(libc::SYS_process_vm_writev)),
        Check::new(JOIN, "memory_of_pid_1_is_not_written", || {
            if is_this_program("/proc/1/exe") {
                return Answer::senseless("pid 1 is the tenant's program");
            }
            write_of("/proc/1/mem")
        }),
        Check::new(TENANTS, "only_own_processes_are_visible", strangers),
        Check::new(TENANTS, "cgroup_paths_end_at_the_container", cgroup_paths),
    ];
    private.into_iter().chain(namespaces).chain(more).collect()
}

/// Nothing of pid 1 may be read, where pid 1 is not this very program.
fn read_of(path: &str) -> Answer {
    if is_this_program("/proc/1/exe") {
        return Answer::senseless("pid 1 is the tenant's program");
    }
    let path = Path::new(path);
    if let Ok(target) = fs::read_link(path) {
        return Answer::broken(target.display());
    }
    if path.is_dir() {
        return match fs::read_dir(path) {
            Ok(entries) => Answer::broken(format!("{} entries", entries.count())),
            Err(error) => Answer::held(name(errno(&error))),
        };
    }
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut [0; 64]));
    match read {
        Ok(0) => Answer::held("empty"),
        Ok(bytes) => Answer::broken(format!("{bytes} bytes")),
        Err(error) => Answer::held(name(errno(&error))),
    }
}

fn is_this_program(path: &str) -> bool {
    let file = |path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    file(path).is_some() && file(path) == file("/proc/self/exe")
}

/// `ETXTBSY` means that permission was given and only the running program stands in the way.
fn program(path: &str) -> Answer {
    if path != "/proc/self/exe" && is_this_program(path) {
        return Answer::senseless("pid 1 is the tenant's program");
    }
    write_of(path)
}

fn write_of(path: &str) -> Answer {
    match OpenOptions::new().write(true).open(path) {
        Ok(_) => Answer::broken("opened for writing"),
        Err(error) if errno(&error) == Errno::ETXTBSY => Answer::broken("ETXTBSY: allowed when it ends"),
        Err(error) => Answer::held(name(errno(&error))),
    }
}

/// Joins a namespace that is another one than its own.
fn join(kind: &'static str) -> Answer {
    use std::os::fd::AsRawFd;
    let file = match fs::File::open(format!("/proc/1/ns/{kind}")) {
        Ok(file) => file,
        Err(error) => return Answer::held(name(errno(&error))),
    };
    Answer::refused(raw::call(libc::SYS_setns, &[Arg::Number(file.as_raw_fd().into()), Arg::Number(0)]))
}

/// PTRACE_SEIZE does not stop the other, and ends with this process.
fn seize(pid: i32) -> Answer {
    Answer::fails(raw::call(libc::SYS_ptrace, &[Arg::Number(0x4206), Arg::Number(pid.into())]))
}

fn vm(number: i64) -> Answer {
    let parent = Arg::Number(getppid().as_raw().into());
    // From or to address zero of the other: the right is checked first, then nothing can be moved.
    let nowhere = Arg::Bytes(b"\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0");
    Answer::refused(raw::call(number, &[parent, Arg::Vector, Arg::Number(1), nowhere, Arg::Number(1)]))
}

fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// A process whose owner this user namespace does not map is somebody else's.
fn strangers() -> Answer {
    let pids = pids();
    let found: Vec<String> = pids
        .iter()
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}"))
                .is_ok_and(|meta| meta.uid() == UNMAPPED || meta.gid() == UNMAPPED)
        })
        .map(ToString::to_string)
        .collect();
    if pids.len() > 16 {
        return Answer::broken(format!("{} processes", pids.len()));
    }
    Answer::none_of(&found, format!("{} processes, all of the container", pids.len()))
}

fn cgroup_paths() -> Answer {
    let paths = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let found: Vec<String> =
        paths.lines().filter(|line| !line.ends_with(":/")).map(ToOwned::to_owned).collect();
    Answer::none_of(&found, "/ in every hierarchy")
}

/// Stands still until it is ended: the application that an exec joins.
pub(crate) fn wait() -> ExitCode {
    println!("probe: waits");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Lies in wait for a helper that joins the container, and tries to get hold of every new process before it
/// has become the program: its executable, memory, descriptors and root. Prints what it got; nothing
/// but `probe: met N`, the helpers it saw, when every attempt failed. Watches for ten seconds.
pub(crate) fn watch() -> ExitCode {
    println!("probe: watches");
    let own: BTreeSet<u32> = pids().into_iter().collect();
    let mine = fs::read_link("/proc/self/exe").unwrap_or_default();
    let mut met = BTreeSet::new();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while std::time::Instant::now() < end {
        for pid in pids().into_iter().filter(|pid| !own.contains(pid)) {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            // Once it is a program of the image it is the tenant's own; one that has ended has no executable.
            let is_helper = || match fs::read_link(proc.join("exe")) {
                Ok(path) => path != mine && !path.starts_with("/bin"),
                Err(error) => matches!(errno(&error), Errno::EACCES | Errno::EPERM),
            };
            if !is_helper() {
                continue;
            }
            met.insert(pid);
            let attempts: [(&str, bool); 4] = [
                ("executable", fs::read_link(proc.join("exe")).is_ok()),
                ("memory", OpenOptions::new().write(true).open(proc.join("mem")).is_ok()),
                ("descriptors", fs::read_dir(proc.join("fd")).is_ok_and(|mut fds| fds.next().is_some())),
                (
                    "hold",
                    raw::call(libc::SYS_ptrace, &[Arg::Number(0x4206), Arg::Number(pid.into())]).is_ok(),
                ),
            ];
            for (what, _) in attempts.iter().filter(|(_, got)| *got && is_helper()) {
                println!("probe: got {what} of {pid}");
            }
        }
    }
    println!("probe: met {}", met.len());
    ExitCode::SUCCESS
}
