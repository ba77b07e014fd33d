//! The disk that I/O limits are about: the one below the containers' writable layers.
//!
//! The block controllers take whole disks by number only ("MAJ:MIN", `Documentation/admin-guide/
//! cgroup-v2.rst`, "IO"), so a partition is followed to its disk in sysfs(5).

use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};

use super::{CgroupError, file};

const SYSFS: &str = "/sys/dev/block";

/// A whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Device {
    major: u64,
    minor: u64,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Device {
    #[cfg(test)]
    pub(super) fn new(major: u64, minor: u64) -> Self {
        Self { major, minor }
    }

    /// The disk that `path` lies on, or is.
    ///
    /// # Errors
    /// When it lies on none that the kernel could limit: tmpfs, overlay, btrfs and other file systems that
    /// have no single disk.
    pub(super) fn below(path: &Path) -> Result<Self, CgroupError> {
        let stat =
            std::fs::metadata(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })?;
        let number = if stat.file_type().is_block_device() { stat.rdev() } else { stat.dev() };
        Self { major: major(number), minor: minor(number) }
            .whole(Path::new(SYSFS))?
            .ok_or_else(|| CgroupError::NoDisk(path.to_owned()))
    }

    fn whole(self, sysfs: &Path) -> Result<Option<Self>, CgroupError> {
        let dir = sysfs.join(self.to_string());
        if !dir.exists() {
            return Ok(None);
        }
        if !dir.join("partition").exists() {
            return Ok(Some(self));
        }
        // The link leads to .../vda/vda1; `..` of what it leads to is the disk.
        let path = dir.join("../dev");
        let number = file::read(&path)?;
        let parts = number.trim().split_once(':');
        let parsed = parts.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) =
            parsed.ok_or_else(|| CgroupError::Malformed { path, content: number.clone() })?;
        Ok(Some(Self { major, minor }))
    }

    /// Does its scheduler (`queue/scheduler` of sysfs, the one in use in brackets) know shares?
    pub(super) fn schedules_by_weight(self) -> bool {
        let path = Path::new(SYSFS).join(self.to_string()).join("queue/scheduler");
        file::read(&path).is_ok_and(|schedulers| schedulers.contains("[bfq]"))
    }

    /// Is the kernel's cost model on for it? `table` is `io.cost.qos` of the root cgroup.
    pub(super) fn has_cost_model(self, table: &str) -> bool {
        table.lines().filter_map(|line| line.split_once(' ')).any(|(disk, settings)| {
            disk == self.to_string() && settings.split(' ').any(|word| word == "enable=1")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_partition_is_followed_to_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("devices/vda/vda1");
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join("partition"), "1\n").unwrap();
        fs::write(part.join("dev"), "254:1\n").unwrap();
        fs::write(dir.path().join("devices/vda/dev"), "254:0\n").unwrap();
        symlink(&part, dir.path().join("254:1")).unwrap();
        symlink(part.parent().unwrap(), dir.path().join("254:0")).unwrap();
        let disk = Device { major: 254, minor: 0 };
        assert_eq!(Device { major: 254, minor: 1 }.whole(dir.path()).unwrap(), Some(disk));
        assert_eq!(disk.whole(dir.path()).unwrap(), Some(disk));
        assert_eq!(Device { major: 0, minor: 40 }.whole(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_cost_model_counts_when_it_is_on() {
        let disk = Device { major: 254, minor: 0 };
        assert!(disk.has_cost_model("7:0 enable=0\n254:0 enable=1 ctrl=auto rpct=0.00\n"));
        assert!(!disk.has_cost_model("254:0 enable=0 ctrl=auto\n254:1 enable=1\n"));
        assert!(!disk.has_cost_model(""));
    }
}
