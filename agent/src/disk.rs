//! The writable disks of containers: one sparse file each that holds a fresh ext4 file system, so that
//! size and number of files are capped by the file system itself (`docs/adr/0012-container-disks.md`).
//!
//! A file system is formatted once per size and copied from then on, holes as holes. Invariant: a file
//! `<instance>.img` is always whole; it appears by rename. All calls block, for milliseconds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mogok_api::id::InstanceId;

use crate::debris;
use crate::ledger::instance_named;

mod ext4;
mod sparse;
mod template;

/// Why a disk could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("no space in {}: a disk of {needed} bytes was asked for and {available} are free; remove containers or images, or give the node a larger disk", dir.display())]
    Full { dir: PathBuf, needed: u64, available: u64 },
    #[error(
        "a disk of {bytes} bytes and {inodes} files: give 1 MiB to 16 TiB and 1 to {} files",
        template::MAX_INODES
    )]
    InvalidSize { bytes: u64, inodes: u64 },
    #[error("{operation} {}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("mkfs.ext4 on {}: {message}", path.display())]
    Format { path: PathBuf, message: String },
    #[error("{} is not the ext4 file system that was made: {problem}", path.display())]
    NotOurs { path: PathBuf, problem: &'static str },
}

impl DiskError {
    /// For `map_err`: what was done to which file.
    fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { operation, path: path.to_owned(), source }
    }
}

/// The directory of the disks.
#[derive(Debug)]
pub struct Disks {
    dir: PathBuf,
    templates: PathBuf,
    /// One formats at a time, the others find its work done.
    formatting: Mutex<()>,
}

impl Disks {
    /// Makes the directory where it is missing, for root's eyes only, and clears what an earlier agent
    /// left half done.
    pub fn open(dir: &Path) -> Result<Self, DiskError> {
        let templates = dir.join("templates");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&templates)
            .map_err(DiskError::file("create directory", &templates))?;
        for place in [dir, &templates] {
            for entry in fs::read_dir(place).map_err(DiskError::file("list", place))? {
                let path = entry.map_err(DiskError::file("list", place))?.path();
                if path.extension().is_some_and(|extension| extension == "new") {
                    remove(&path)?;
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), templates, formatting: Mutex::new(()) })
    }

    /// A fresh disk with room for `bytes` of content and `inodes` files, whose root directory belongs to
    /// host user and group `owner`. Replaces an earlier one of the same instance.
    ///
    /// The file is sparse. It is refused where the host's disk could not hold it full now; what other
    /// disks may still grow by is not counted.
    pub fn create(
        &self,
        id: &InstanceId,
        bytes: u64,
        inodes: u64,
        owner: (u32, u32),
    ) -> Result<PathBuf, DiskError> {
        let size = template::Size::new(bytes, inodes)?;
        let available = self.available()?;
        let full = || DiskError::Full { dir: self.dir.clone(), needed: size.image_bytes(), available };
        if available < size.image_bytes() {
            return Err(full());
        }
        let path = self.path(id);
        let fresh = path.with_extension("new");
        let made = self
            .make(size, &fresh, owner)
            .and_then(|()| fs::rename(&fresh, &path).map_err(DiskError::file("rename", &fresh)));
        match made {
            Ok(()) => Ok(path),
            Err(error) => {
                // Nobody but the next `open` would.
                let _ = fs::remove_file(&fresh);
                match error {
                    DiskError::File { source, .. } if source.kind() == ErrorKind::StorageFull => Err(full()),
                    error => Err(error),
                }
            }
        }
    }

    fn make(&self, size: template::Size, fresh: &Path, owner: (u32, u32)) -> Result<(), DiskError> {
        let template = {
            let _one = self.formatting.lock().unwrap_or_else(PoisonError::into_inner);
            template::open(&self.templates, size)?
        };
        let image = create_new(fresh)?;
        sparse::copy(&template, &image).map_err(DiskError::file("copy a file system to", fresh))?;
        ext4::set_root_owner(&image, fresh, owner)
    }

    /// Where the disk of an instance is, if it has one.
    #[must_use]
    pub fn path(&self, id: &InstanceId) -> PathBuf {
        self.dir.join(format!("{id}.img"))
    }

    /// Removes a disk. Its space is free when the last mount of it is gone. Does nothing when there is none.
    pub fn remove(&self, id: &InstanceId) -> Result<(), DiskError> {
        remove(&self.path(id))
    }

    /// Every instance that has a disk, in no order.
    pub fn list(&self) -> Result<Vec<InstanceId>, DiskError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(DiskError::file("list", &self.dir))? {
            let name = entry.map_err(DiskError::file("list", &self.dir))?.file_name();
            found.extend(name.to_str().and_then(|name| instance_named(name.strip_suffix(".img")?)));
        }
        Ok(found)
    }

    /// Bytes of the host's disk that are free.
    fn available(&self) -> Result<u64, DiskError> {
        let stat = nix::sys::statvfs::statvfs(&self.dir)
            .map_err(|errno| DiskError::file("statvfs", &self.dir)(errno.into()))?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }
}

fn create_new(path: &Path) -> Result<File, DiskError> {
    remove(path)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(DiskError::file("create", path))
}

fn remove(path: &Path) -> Result<(), DiskError> {
    debris::remove(path).map_err(DiskError::file("remove", path))
}
