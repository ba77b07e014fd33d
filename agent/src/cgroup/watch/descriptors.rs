//! What the kernel keeps for the descriptors of a container and charges to nobody: record locks of files, and names of
//! directories.
//!
//! A record lock belongs to a table of descriptors, and ends when that closes the file: so each is found at a descriptor
//! of a living process, once, whichever process it was taken by. (`/proc/locks` names the one that took it, which may
//! have ended.) Those of open file descriptions have no process while they are sent over a socket; the container's
//! filter of system calls has none. A directory that was read keeps the names it had, once for each time that it was opened:
//! of a block (ext4, 20 KiB), or of all that several layers have there, as they were then (overlay).
//!
//! Sources: proc_pid_fdinfo(5), kcmp(2), unix(7); `fs/ext4/dir.c`, `fs/overlayfs/readdir.c`.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use mogok_shim::sys::kcmp;
use nix::time::{ClockId, clock_gettime};

use super::locks::{self, record_lock};
use super::tracker::Hoard;

/// Descriptors of one container that are looked at: all that 20 processes may have. Those beyond are a hoard
/// themselves: they would keep the search from all others.
pub const DESCRIPTORS: usize = 200_000;
/// Open directories, and Unix sockets with descriptors in them, that are told apart. Who has more has the most.
const OPEN_FILES: usize = 10_000;
/// Lines that are read: a lock stands at each of the descriptors for its file, what an epoll or inotify descriptor watches
/// at each for that. More are a hoard as well.
pub const LINES: usize = 20 * locks::MOST;
/// Locks of files without a name, which all of the host share (`anon_inode:`, a namespace): whoever closes one looks
/// through all of its locks. Nobody has any who does not mean to.
pub const SHARED: usize = 100;
/// How often a container is gone through, as long as its processes come and go in the meantime.
const PASSES: usize = 64;
/// CPU time that it may take; whoever makes it longer means to.
pub const LONGEST: Duration = Duration::from_secs(20);

/// What was seen of one container.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    seen: usize,
    lines: usize,
    shared: usize,
    /// Descriptors that wait in sockets and may be directories.
    waiting: usize,
    sockets: OpenFiles,
    directories: OpenFiles,
    /// Tables that were looked at.
    tables: usize,
    /// It took [`LONGEST`].
    too_long: bool,
    /// Hashes of a table's number and the words of a lock: it shows at each of the descriptors that were made of the
    /// same one (dup(2)).
    locks: HashSet<u64>,
    hasher: RandomState,
}

impl Descriptors {
    /// Of all tasks of a cgroup (v2), until there are too many locks; directories where they are asked for. May take
    /// seconds.
    ///
    /// # Errors
    /// When its processes cannot be listed.
    pub(super) fn of(cgroup: &Path, directories: bool) -> io::Result<Self> {
        let mut found = Self::default();
        let end = cpu_time() + LONGEST;
        // Tasks with a table of descriptors each.
        let mut owners: Vec<i32> = Vec::new();
        for _ in 0..PASSES {
            let mut some_ended = false;
            owners.retain(|task| Path::new(&format!("/proc/{task}")).exists());
            for process in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
                let path = format!("/proc/{process}/task");
                for task in numbers(&path) {
                    // Of the same process most likely.
                    if owners.iter().rev().any(|owner| kcmp::same_files(*owner, task) == Ok(true)) {
                        continue;
                    }
                    owners.push(task);
                    found.look_at(task, directories);
                    found.too_long = cpu_time() > end;
                    if found.hoard().is_some() {
                        return Ok(found);
                    }
                }
                some_ended |= !Path::new(&path).exists();
            }
            // What it shared with another is looked for again, and counts again as far as it was seen.
            if !some_ended {
                break;
            }
        }
        Ok(found)
    }

    /// What nobody has so many of who does not mean to.
    pub(super) fn hoard(&self) -> Option<Hoard> {
        if self.locks.len() > locks::MOST {
            Some(Hoard::Locks)
        } else if self.shared > SHARED {
            Some(Hoard::SharedLocks)
        } else {
            let many = self.seen > DESCRIPTORS || self.lines > LINES || self.too_long;
            many.then_some(Hoard::Descriptors)
        }
    }

    /// How many directories are open, each counted once however many descriptors there are for it.
    pub(super) fn directories(&self) -> usize {
        self.directories.0.len() + self.waiting
    }

    /// Adds what a task's table of descriptors has.
    fn look_at(&mut self, task: i32, directories: bool) {
        self.tables += 1;
        let directory = format!("/proc/{task}/fdinfo");
        for descriptor in numbers(&directory) {
            self.seen += 1;
            let Ok(file) = File::open(format!("{directory}/{descriptor}")) else { continue };
            let mut shared = None;
            for line in BufReader::new(file).lines().map_while(Result::ok) {
                self.lines += 1;
                if line.starts_with("lock:") {
                    let shared = *shared.get_or_insert_with(|| is_shared(task, descriptor));
                    self.shared += usize::from(shared);
                }
                if let Some(lock) = record_lock(&line) {
                    self.locks.insert(self.hasher.hash_one((self.tables, lock)));
                } else if let Some(waiting) = waiting(&line).filter(|waiting| *waiting > 0)
                    && directories
                    && self.sockets.add((task, descriptor))
                {
                    self.waiting += waiting;
                }
                if self.hoard().is_some() {
                    return;
                }
            }
            let is_directory =
                || fs::metadata(format!("/proc/{task}/fd/{descriptor}")).is_ok_and(|is| is.is_dir());
            if directories && is_directory() {
                self.directories.add((task, descriptor));
            }
        }
    }
}

/// A descriptor of a task for each of some open files, in the order of kcmp(2).
#[derive(Debug, Default)]
struct OpenFiles(Vec<(i32, i32)>);

impl OpenFiles {
    /// False when the file is among them already, or they are as many as are told apart.
    fn add(&mut self, one: (i32, i32)) -> bool {
        // One that was closed meanwhile is another one than any.
        let order = |known: &(i32, i32)| kcmp::open_files(*known, one).unwrap_or(Ordering::Less);
        let place = self.0.binary_search_by(order);
        match place {
            Err(place) if self.0.len() < OPEN_FILES => {
                self.0.insert(place, one);
                true
            }
            _ => false,
        }
    }
}

/// Of this thread.
fn cpu_time() -> Duration {
    // The clock of the calling thread is always there.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Is it of a file that others on the host have too, whoever made it?
fn is_shared(task: i32, descriptor: i32) -> bool {
    let file = fs::read_link(format!("/proc/{task}/fd/{descriptor}")).unwrap_or_default();
    let file = file.as_os_str().as_encoded_bytes();
    file.starts_with(b"anon_inode:") || file.starts_with(b"time:[")
}

/// Descriptors that wait in a Unix socket, of a line of fdinfo.
fn waiting(line: &str) -> Option<usize> {
    line.strip_prefix("scm_fds:")?.trim().parse().ok()
}

/// The numbers that a directory of proc(5) has for names; none when it is gone.
fn numbers(directory: &str) -> impl Iterator<Item = i32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_directory_that_many_have_from_one_is_one() {
        let mut found = OpenFiles::default();
        let own = nix::unistd::gettid().as_raw();
        let open: Vec<File> = (0..3).map(|_| File::open("/proc").unwrap()).collect();
        let again: Vec<File> = open.iter().cycle().take(60).map(|file| file.try_clone().unwrap()).collect();
        for file in open.iter().chain(&again) {
            found.add((own, file.as_raw_fd()));
        }
        assert_eq!(found.0.len(), 3);
    }

    #[test]
    fn what_waits_in_a_socket_is_told() {
        assert_eq!(waiting("scm_fds: 253"), Some(253));
        assert_eq!(waiting("pos:\t0"), None);
    }
}
