//! The end of a cgroup: wait until it is empty, then remove its directories. Every wait is bounded;
//! what is already gone is done.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{CgroupError, file};

/// Between two tries of a directory that the kernel still calls busy.
const RETRY: Duration = Duration::from_millis(2);
/// A container cannot make cgroups; whoever did by hand did not nest them deeper.
const MAX_DEPTH: usize = 16;

/// A cgroup's file does not open without its directory, and reads ENODEV when it went while open.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

/// Waits until no process is left in the v2 cgroup `dir` or below. True at once when it does not exist.
pub(super) fn wait_empty(dir: &Path, wait: Duration) -> Result<(), CgroupError> {
    if wait_event(dir, "populated", 0, wait)? {
        Ok(())
    } else {
        Err(CgroupError::Busy { path: dir.to_owned(), after: wait })
    }
}

/// Waits until `cgroup.events` of the v2 cgroup `dir` has `value` behind `key`, or the cgroup is gone; the
/// kernel wakes us (the file is pollable). False when `wait` was not long enough.
pub(super) fn wait_event(dir: &Path, key: &str, value: u64, wait: Duration) -> Result<bool, CgroupError> {
    let path = dir.join("cgroup.events");
    let failed = |source| CgroupError::Read { path: path.clone(), source };
    let deadline = Instant::now() + wait;
    let mut events = match File::open(&path) {
        Ok(events) => events,
        Err(error) if is_gone(&error) => return Ok(true),
        Err(error) => return Err(failed(error)),
    };
    loop {
        // By the descriptor that is polled: the kernel wakes for what has changed since that was read, and at once
        // when it never was (kernfs_generic_poll in fs/kernfs/file.c).
        let mut content = String::new();
        match events.rewind().and_then(|()| events.read_to_string(&mut content)) {
            Ok(_) => {}
            Err(error) if is_gone(&error) => return Ok(true),
            Err(error) => return Err(failed(error)),
        }
        let found = file::find(&content, key).ok_or_else(|| file::malformed(&path, &content))?;
        if found == value {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// Removes `dir` and the cgroups below it. `rmdir` says EBUSY for a moment after the last process
/// has exited, so it is tried until `wait` is over.
pub(super) fn remove_tree(dir: &Path, wait: Duration) -> Result<(), CgroupError> {
    remove_below(dir, Instant::now() + wait, wait, MAX_DEPTH)
}

fn remove_below(dir: &Path, deadline: Instant, wait: Duration, depth: usize) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Remove { path: dir.to_owned(), source };
    let busy = || CgroupError::Busy { path: dir.to_owned(), after: wait };
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {}
            Err(error) => return Err(failed(error)),
        }
        if Instant::now() >= deadline || depth == 0 {
            return Err(busy());
        }
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                remove_below(&entry.path(), deadline, wait, depth - 1)?;
            }
        }
        std::thread::sleep(RETRY);
    }
}
