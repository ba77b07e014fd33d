//! Record locks of files (fcntl(2), `F_SETLK`), which the kernel charges to nobody and limits for nobody.
//!
//! Such a lock belongs to a table of descriptors, and ends when that closes the file: so each is found at a descriptor
//! of a living process, once, whichever process it was taken by. (`/proc/locks` names the one that took it, which may
//! have ended.) Those of open file descriptions have no process while they are sent over a socket; the container's
//! filter of system calls has none. Invariant: nobody is looked at while all locks of the host are no hoard.
//!
//! Sources: fcntl(2), `proc_pid_fdinfo(5)`, kcmp(2), `Documentation/ABI/testing/sysfs-kernel-slab`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::Path;

use mogok_shim::sys::kcmp;

/// Of one container: a thousand times what databases take, and 20 MB of the kernel's.
pub const MOST: usize = 100_000;
/// Descriptors of one container that are looked at: all that 256 processes may have. Those beyond are a hoard
/// themselves.
const DESCRIPTORS: usize = 4_000_000;
/// Of all locks; where their size is also that of other objects, of these too.
const SLAB: &str = "/sys/kernel/slab/file_lock_cache/total_objects";

/// Does the kernel hold so many locks that a container may have too many?
///
/// # Errors
/// When the kernel does not say.
pub(super) fn are_many() -> io::Result<bool> {
    Ok(count()? > MOST)
}

fn count() -> io::Result<usize> {
    let text = fs::read_to_string(SLAB)?;
    // `42 N0=42`: all, and those of each memory node.
    let count = text.split_whitespace().next().and_then(|word| word.parse().ok());
    count.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("{SLAB} says {text:?}")))
}

/// Can the kernel say how many locks there are?
///
/// # Errors
/// When not.
pub fn check() -> io::Result<()> {
    count().map(drop)
}

/// Does a container, whose cgroup this is (v2), have more locks than [`MOST`]? May take seconds.
///
/// # Errors
/// When its processes cannot be listed.
pub(super) fn hoarded_in(cgroup: &Path) -> io::Result<bool> {
    let mut found = Found::default();
    // Tasks with a table of descriptors each.
    let mut owners: Vec<i32> = Vec::new();
    for process in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
        // One that has ended meanwhile has no locks.
        for task in numbers(&format!("/proc/{process}/task")) {
            // Of the same process most likely.
            if owners.iter().rev().any(|owner| kcmp::same_files(*owner, task) == Ok(true)) {
                continue;
            }
            owners.push(task);
            if found.look_at(task, owners.len()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What was seen of one container.
#[derive(Debug, Default)]
struct Found {
    descriptors: usize,
    /// Hashes of a table's number and the words of a lock: it shows at each of the descriptors that were made of the
    /// same one (dup(2)).
    locks: HashSet<u64>,
    hasher: RandomState,
}

impl Found {
    /// Adds what a task's table of descriptors has, the `table`th; true when it is enough.
    fn look_at(&mut self, task: i32, table: usize) -> bool {
        let directory = format!("/proc/{task}/fdinfo");
        for descriptor in numbers(&directory) {
            self.descriptors += 1;
            if self.descriptors > DESCRIPTORS {
                return true;
            }
            let Ok(file) = File::open(format!("{directory}/{descriptor}")) else { continue };
            for line in BufReader::new(file).lines().map_while(Result::ok) {
                let Some(lock) = record_lock(&line) else { continue };
                self.locks.insert(self.hasher.hash_one((table, lock)));
                if self.locks.len() > MOST {
                    return true;
                }
            }
        }
        false
    }
}

/// The numbers that a directory of proc(5) has for names; none when it is gone.
fn numbers(directory: &str) -> impl Iterator<Item = i32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whose, where and of which bytes: `lock: 1: POSIX  ADVISORY  WRITE 708 fe:00:25 0 EOF`
fn record_lock(line: &str) -> Option<&str> {
    let (_, lock) = line.strip_prefix("lock:")?.split_once(": ")?;
    lock.starts_with("POSIX").then_some(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_locks_are_told_from_others() {
        let lock = "POSIX  ADVISORY  WRITE 708 fe:00:25 0 EOF";
        assert_eq!(record_lock(&format!("lock:\t1: {lock}")), Some(lock));
        assert_eq!(record_lock("lock:\t2: FLOCK  ADVISORY  WRITE 19 00:1a:75 0 EOF"), None);
        assert_eq!(record_lock("lock:\t3: OFDLCK ADVISORY  READ -1 00:2e:7 0 EOF"), None);
        assert_eq!(record_lock("flags:\t02100000"), None);
        assert_eq!(record_lock(""), None);
    }
}
