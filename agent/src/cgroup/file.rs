//! Reading and writing single cgroup files. A write is one `write(2)` to a file that exists: the
//! kernel takes each write as one command, and nothing is ever created by writing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::CgroupError;

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    #[cfg(feature = "failpoints")]
    if crate::failpoint::is_unwritten(path) {
        return Ok(());
    }
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

pub(super) fn malformed(path: &Path, content: &str) -> CgroupError {
    CgroupError::Malformed { path: path.to_owned(), content: content.chars().take(200).collect() }
}

/// A file of one number.
pub(super) fn number(path: &Path) -> Result<u64, CgroupError> {
    let content = read(path)?;
    content.trim().parse().map_err(|_| malformed(path, &content))
}

/// The number behind `key` in a file of `key number` lines.
pub(super) fn key(path: &Path, key: &str) -> Result<u64, CgroupError> {
    keys(path, [key]).map(|[value]| value)
}

/// The same for several keys of one file.
pub(super) fn keys<const N: usize>(path: &Path, keys: [&str; N]) -> Result<[u64; N], CgroupError> {
    let content = read(path)?;
    let mut values = [0; N];
    for (value, key) in values.iter_mut().zip(keys) {
        *value = find(&content, key).ok_or_else(|| malformed(path, &content))?;
    }
    Ok(values)
}

/// The number behind `key` in a text of `key number` lines.
pub(super) fn find(content: &str, key: &str) -> Option<u64> {
    let mut pairs = content.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == key).and_then(|(_, value)| value.trim().parse().ok())
}

/// A file of one process id per line.
pub(super) fn pids(path: &Path) -> Result<Vec<i32>, CgroupError> {
    let content = read(path)?;
    content.lines().map(|line| line.trim().parse().map_err(|_| malformed(path, &content))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_flat_keyed_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.events");
        fs::write(&path, "low 0\noom 3\noom_kill 2\n").unwrap();
        assert_eq!(key(&path, "oom_kill").unwrap(), 2);
        assert_eq!(key(&path, "oom").unwrap(), 3);
        assert!(matches!(key(&path, "max"), Err(CgroupError::Malformed { .. })));
        assert_eq!(keys(&path, ["oom_kill", "low"]).unwrap(), [2, 0]);
        assert!(matches!(keys(&path, ["oom", "max"]), Err(CgroupError::Malformed { .. })));
        fs::write(&path, "12\n-x\n").unwrap();
        assert!(matches!(pids(&path), Err(CgroupError::Malformed { .. })));
    }

    #[test]
    fn never_creates_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pids.max");
        assert!(matches!(write(&path, "5"), Err(CgroupError::Write { .. })));
        assert!(!path.exists());
    }
}
