//! One process by its identity: boot, pid and start time to find it, a pidfd to hold it. A pid alone
//! names whoever has it now; a pidfd names this process for good, so a signal can never reach another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::net::unix::pipe;

/// A process that was there when this value was made.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    start_time: u64,
    /// A pidfd, not a pipe: nothing is read from it. tokio's general way to wait for a descriptor is unsafe
    /// code, and this type waits for readiness just the same.
    pidfd: pipe::Receiver,
}

impl Process {
    /// The process with this pid, if it is still the one that started at `start_time` (clock ticks since
    /// boot; `None` takes whichever has the pid now, for a child that was not waited for).
    ///
    /// # Errors
    /// When the kernel refuses a pidfd for another reason than that there is no such process.
    pub fn open(pid: i32, start_time: Option<u64>) -> io::Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read behind pidfd_open: as long as the start time is the expected one, the pidfd is of that process.
        let Some(found) = start_time_of(pid)? else { return Ok(None) };
        if start_time.is_some_and(|expected| expected != found) {
            return Ok(None);
        }
        Ok(Some(Self { pid, start_time: found, pidfd: pipe::Receiver::from_owned_fd_unchecked(pidfd)? }))
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Returns when the process has ended (pidfd_open(2): readable then), and reaps it if it is a child.
    pub async fn ended(&self) {
        if self.pidfd.readable().await.is_ok() {
            self.reap();
        }
    }

    /// Has it ended already (pidfd_open(2): readable then), whoever has still to reap it?
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Its pidfd.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// SIGKILL. A process that has ended is none to kill.
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the zombie of a child away; a process that is no child of this one has another parent for that.
    fn reap(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        if let Err(error) = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
            && error != rustix::io::Errno::CHILD
        {
            tracing::warn!(pid = self.pid, %error, "cannot reap a shim");
        }
    }
}

/// Field 22 of `/proc/PID/stat` (proc_pid_stat(5)): clock ticks between boot and the start; nothing when
/// there is no such process.
fn start_time_of(pid: i32) -> io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Ok(parse_start_time(&stat))
}

/// The name of the program may hold blanks and parentheses, so the fields are counted from its end.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The network namespace of a process, as long as it is the one that started at `start_time`.
#[must_use]
pub fn network_namespace_of(pid: i32, start_time: u64) -> Option<OwnedFd> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).ok()?;
    // Asked behind the opening: a process of this pid and start time now had them then.
    (start_time_of(pid).ok()? == Some(start_time)).then(|| namespace.into())
}

/// `/proc/sys/kernel/random/boot_id`: differs from boot to boot.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Every process whose command line is `... run --state-dir DIR ...` with a `DIR` below `instances`, and
/// that directory's name: the shims of one agent, also those it has no record of.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn shims_below(instances: &Path) -> io::Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some(name) = name_of(pid, instances) {
            found.push((pid, name));
        }
    }
    Ok(found)
}

/// The name of the directory below `instances` that a process is the shim of.
#[must_use]
pub fn name_of(pid: i32, instances: &Path) -> Option<String> {
    state_dir_argument(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?, instances)
}

fn state_dir_argument(command_line: &[u8], instances: &Path) -> Option<String> {
    let arguments: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    // Wherever they stand: the shim may run below a tracer or another wrapper.
    let dir = arguments.windows(3).find(|three| three[0] == b"run" && three[1] == b"--state-dir")?[2];
    let dir = Path::new(std::str::from_utf8(dir).ok()?);
    // It may have been started by another name of the same directory.
    let below = |parent: &Path| {
        parent == instances
            || (parent.file_name() == instances.file_name()
                && std::fs::canonicalize(parent).is_ok_and(|parent| parent == instances))
    };
    below(dir.parent()?).then(|| dir.file_name()?.to_str().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_start_time(&format!("12 (a) b (c)) {rest}")), Some(4711));
        assert_eq!(parse_start_time("12 (short) S 1"), None);
    }

    #[test]
    fn only_a_shim_of_this_directory_is_one() {
        let below = Path::new("/var/lib/m/instances");
        let line = |text: &str| text.replace(' ', "\0").into_bytes();
        let of = |text: &str| state_dir_argument(&line(text), below);
        assert_eq!(of("mogok-shim run --state-dir /var/lib/m/instances/x --netns-fd 3"), Some("x".into()));
        assert_eq!(of("strace mogok-shim run --state-dir /var/lib/m/instances/x"), Some("x".into()));
        for other in [
            "mogok-shim run --state-dir /var/lib/other/instances/x",
            "mogok-shim run --state-dir /var/lib/m/instances/x/y",
            "mogok-shim run --state-dir /var/lib/m/instances",
            "grep run --state-dir",
            "mogok-agent run --socket /var/lib/m/instances/x",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_shim_is_known_by_any_name_of_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let instances = dir.path().canonicalize().unwrap().join("moved/instances");
        std::fs::create_dir_all(&instances).unwrap();
        std::os::unix::fs::symlink(dir.path().join("moved"), dir.path().join("once")).unwrap();
        let of = |below: &str| {
            let line = format!("mogok-shim\0run\0--state-dir\0{}/{below}", dir.path().display());
            state_dir_argument(line.as_bytes(), &instances)
        };
        assert_eq!(of("once/instances/x"), Some("x".into()));
        assert_eq!(of("other/instances/x"), None);
    }

    #[tokio::test]
    async fn a_child_is_known_by_its_start_time_killed_and_reaped() {
        // Waited for by the pidfd, which is what is tested.
        #[allow(clippy::zombie_processes, reason = "the process under test reaps it")]
        let child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = Process::open(pid, None).unwrap().unwrap();
        assert!(Process::open(pid, Some(process.start_time() + 1)).unwrap().is_none());
        assert!(Process::open(pid, Some(process.start_time())).unwrap().is_some());
        assert!(!process.has_ended());
        process.kill().unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), process.ended()).await.unwrap();
        assert!(process.has_ended());
        assert!(Process::open(pid, None).unwrap().is_none(), "reaped");
        process.kill().unwrap();
    }
}
