//! Formatted file systems to copy from, one per size. Sizes come from plans, so there are few; should
//! there be many, the oldest templates go.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::{DiskError, create_new};

const MIB: u64 = 1 << 20;
/// Bytes of an inode on disk.
const INODE_BYTES: u64 = 256;
/// Of a file system that fits one container; mke2fs(8) takes up to 2^32.
pub(super) const MAX_INODES: u64 = 100_000_000;
const MAX_TEMPLATES: usize = 16;
/// Formatting takes tens of milliseconds; a host that needs longer than this has a broken disk.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(60);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A size that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    bytes: u64,
    inodes: u64,
}

impl Size {
    pub(super) fn new(bytes: u64, inodes: u64) -> Result<Self, DiskError> {
        if !(MIB..=(16 << 40)).contains(&bytes) || !(1..=MAX_INODES).contains(&inodes) {
            return Err(DiskError::InvalidSize { bytes, inodes });
        }
        // The file system's own directories and reserved inodes come on top.
        Ok(Self { bytes, inodes: inodes + 16 })
    }

    /// Content, inode tables, what the kernel keeps back (2 %, 16 MiB at most) and the rest of the
    /// metadata: the container gets what was promised.
    pub(super) fn image_bytes(self) -> u64 {
        let tables = self.inodes * INODE_BYTES;
        let kept_back = ((self.bytes + tables) / 49).min(16 * MIB);
        (self.bytes + tables + kept_back + self.bytes / 2048 + MIB).next_multiple_of(MIB)
    }
}

/// The template of a size, made where it is missing.
pub(super) fn open(dir: &Path, size: Size) -> Result<File, DiskError> {
    let path = dir.join(format!("{}-{}.img", size.bytes, size.inodes));
    if !path.exists() {
        drop_oldest(dir)?;
        let fresh = path.with_extension("new");
        if let Err(error) = format(&fresh, size) {
            // The format's error is the one to tell.
            let _ = fs::remove_file(&fresh);
            return Err(error);
        }
        fs::rename(&fresh, &path).map_err(DiskError::file("rename", &fresh))?;
    }
    File::open(&path).map_err(DiskError::file("open", &path))
}

/// - no journal: a disk does not outlive its container's host, so there is nothing to recover;
/// - no checksums of metadata: the root inode is edited in each copy ([`super::ext4`]);
/// - no resize space, no backup superblocks: fewer blocks to copy;
/// - inode tables are holes, which read as zeros: declared so, or the kernel would fill them after the
///   first mount, and the sparse file with them.
fn format(path: &Path, size: Size) -> Result<(), DiskError> {
    create_new(path)?.set_len(size.image_bytes()).map_err(DiskError::file("size", path))?;
    let failed = |message: String| DiskError::Format { path: path.to_owned(), message };
    let mut child = Command::new("mkfs.ext4")
        .env_clear()
        .env("PATH", PATH)
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-I", &INODE_BYTES.to_string()])
        .args(["-N", &size.inodes.to_string()])
        .args(["-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg,sparse_super2"])
        .args([
            "-E",
            "nodiscard,lazy_itable_init=1,assume_storage_prezeroed=1,num_backup_sb=0,root_owner=0:0",
        ])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("does not start: {error}; install e2fsprogs 1.47 or later")))?;
    let deadline = Instant::now() + FORMAT_TIMEOUT;
    while child.try_wait().map_err(|error| failed(error.to_string()))?.is_none() {
        if Instant::now() > deadline {
            // It is ours and unwaited: the id cannot mean another process.
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("not done within {} s", FORMAT_TIMEOUT.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // Its few words fit the pipe, so it never waited for us to read them.
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("failed").to_owned()))
}

/// Makes room for one more.
fn drop_oldest(dir: &Path) -> Result<(), DiskError> {
    let mut templates: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir).map_err(DiskError::file("list", dir))? {
        let entry = entry.map_err(DiskError::file("list", dir))?;
        let path = entry.path();
        let made =
            entry.metadata().and_then(|data| data.modified()).map_err(DiskError::file("stat", &path))?;
        templates.push((made, path));
    }
    templates.sort();
    let surplus = (templates.len() + 1).saturating_sub(MAX_TEMPLATES);
    for (_, path) in templates.drain(..surplus) {
        fs::remove_file(&path).map_err(DiskError::file("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bounded_and_leave_room_for_metadata() {
        assert!(Size::new(0, 10).is_err());
        assert!(Size::new(1 << 50, 10).is_err());
        assert!(Size::new(MIB, 0).is_err());
        assert!(Size::new(u64::MAX, u64::MAX).is_err());
        let size = Size::new(64 * MIB, 1024).unwrap();
        assert_eq!(size.image_bytes(), 67 * MIB);
    }

    #[test]
    fn the_oldest_templates_go() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..MAX_TEMPLATES as u64 + 3 {
            let file = File::create(dir.path().join(number.to_string())).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number)).unwrap();
        }
        drop_oldest(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MAX_TEMPLATES - 1);
        assert!(!dir.path().join("3").exists() && dir.path().join("4").exists());
    }
}
