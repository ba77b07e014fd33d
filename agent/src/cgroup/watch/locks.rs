//! Record locks of files (fcntl(2), `F_SETLK`), which the kernel charges to nobody and limits for nobody.
//!
//! Those of open file descriptions (`F_OFD_SETLK`) have no process that could be told; the container's filter of
//! system calls has none. Source: proc_locks(5).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};

/// Of one container: some hundred times what databases take, and 2 MiB of the kernel's.
const MOST: usize = 10_000;
/// Lines of the table that are read: every few of them the kernel begins anew at the first lock.
const LINES: usize = 2 * MOST;
/// Of a longer table, whose owners share what is read of it.
const SHARE: usize = LINES / 64;

/// The cgroups (v2, from the root of the agent's namespace, as `/proc/PID/cgroup` has them) with more than that.
///
/// # Errors
/// When the table cannot be read.
pub(super) fn hoarders() -> io::Result<Vec<String>> {
    let table = BufReader::new(File::open("/proc/locks")?);
    let mut by_process: HashMap<i32, usize> = HashMap::new();
    let mut lines = 0;
    for line in table.lines().take(LINES) {
        lines += 1;
        if let Some(process) = owner(&line?) {
            *by_process.entry(process).or_default() += 1;
        }
    }
    // Fewer are no hoard, whoever has them.
    if lines <= MOST {
        return Ok(Vec::new());
    }
    let most = if lines < LINES { MOST } else { SHARE };
    let mut by_cgroup: HashMap<String, usize> = HashMap::new();
    for (process, locks) in by_process {
        let table = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        if let Some(path) = table.lines().find_map(|line| line.strip_prefix("0::")) {
            *by_cgroup.entry(path.to_owned()).or_default() += locks;
        }
    }
    Ok(by_cgroup.into_iter().filter(|(_, locks)| *locks > most).map(|(path, _)| path).collect())
}

/// `1: POSIX  ADVISORY  WRITE 708 fe:00:25 0 EOF`
fn owner(line: &str) -> Option<i32> {
    let mut words = line.split_whitespace().skip(1);
    (words.next()? == "POSIX").then_some(())?;
    words.nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_lock_is_told() {
        assert_eq!(owner("1: POSIX  ADVISORY  WRITE 708 fe:00:25 0 EOF"), Some(708));
        assert_eq!(owner("2: FLOCK  ADVISORY  WRITE 19 00:1a:75 0 EOF"), None);
        assert_eq!(owner("3: OFDLCK ADVISORY  READ -1 00:2e:7 0 EOF"), None);
        // One that waits.
        assert_eq!(owner("1: -> POSIX  ADVISORY  WRITE 9 fe:00:25 0 EOF"), None);
        assert_eq!(owner(""), None);
    }
}
