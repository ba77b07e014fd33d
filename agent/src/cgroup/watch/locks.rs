//! Record locks of files (fcntl(2), `F_SETLK`), which the kernel charges to nobody and limits for nobody.
//!
//! Sources: fcntl(2), proc_pid_fdinfo(5), `Documentation/ABI/testing/sysfs-kernel-slab`.

use std::fs;
use std::io::{self, ErrorKind};

/// Of one container: a thousand times what databases take, and 20 MB of the kernel's.
pub const MOST: usize = 100_000;
/// All locks of the host that are few: who shares a file with others takes their time with fewer than [`MOST`].
const FEW: usize = 10_000;
/// Of all locks; where their size is also that of other objects, of these too.
const SLAB: &str = "/sys/kernel/slab/file_lock_cache/total_objects";

/// Does the kernel hold so many locks that it may be too many of one container's?
///
/// # Errors
/// When the kernel does not say.
pub(super) fn are_many() -> io::Result<bool> {
    Ok(count()? > FEW)
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

/// Whose, where and of which bytes, of a line of fdinfo: `lock: 1: POSIX  ADVISORY  WRITE 708 fe:00:25 0 EOF`
pub(super) fn record_lock(line: &str) -> Option<&str> {
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
