//! The pid of a process that this state directory belongs to, with its start time, so that a pid
//! which the kernel has given to somebody else is never signalled.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process, for good: pid and start time in clock ticks since boot (proc_pid_stat(5), field 22).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    start_time: u64,
}

impl Process {
    /// The process that has this pid now, unless it is gone or a zombie.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is in parentheses and may hold anything; the third follows the last ')'.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, start_time })
    }

    pub(crate) fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal, if the process is still the one it was.
    pub(crate) fn signal(self, signal: Signal) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    pub(crate) fn write(self, path: &Path) -> Result<()> {
        fs::write(path, format!("{} {}\n", self.pid, self.start_time))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The living process that the file names.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, start_time) = text.trim().split_once(' ')?;
        let process = Self { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? };
        process.alive().then_some(process)
    }
}
