//! Removal: of what nobody keeps, of what dead makers left, and of trees a power loss may have torn.
//! All of it happens under the exclusive lock, so nothing that is being made is ever removed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mogok_api::name::Digest;

use super::blob::digest_from_file_name;
use super::{Store, StoreError};
use crate::unpack::Profile;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub blobs: u64,
    pub trees: u64,
    /// Of the blobs.
    pub bytes: u64,
}

impl Store {
    /// Removes a blob and its trees. False when there was none of them. The caller knows that
    /// nothing runs on them.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let _alone = self.lock_exclusive()?;
        self.remove_locked(digest).map(|removed| removed != Collected::default())
    }

    /// Removes every blob and tree that is not in `keep`, not an image by name, and older than
    /// `min_age` (so that what was put and is not yet anybody's stays).
    pub fn collect(&self, keep: &BTreeSet<Digest>, min_age: Duration) -> Result<Collected, StoreError> {
        let _alone = self.lock_exclusive()?;
        let named: BTreeSet<Digest> = self.images()?.into_iter().map(|(_, digest)| digest).collect();
        let youngest = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_sub(min_age)
            .as_secs();
        let mut candidates = BTreeSet::new();
        let trees = [Profile::Image, Profile::Package].map(Profile::directory);
        for dir in ["blobs/sha256"].iter().chain(&trees).map(|dir| self.root.join(dir)) {
            for entry in fs::read_dir(&dir).map_err(|e| StoreError::io("list", &dir, e))? {
                let entry = entry.map_err(|e| StoreError::io("list", &dir, e))?;
                let Some(digest) = digest_from_file_name(&entry.file_name()) else { continue };
                if keep.contains(&digest) || named.contains(&digest) {
                    continue;
                }
                let meta = entry.metadata().map_err(|e| StoreError::io("look at", &entry.path(), e))?;
                // The change time: that of the rename or the last put; no archive can set it.
                if u64::try_from(meta.ctime()).unwrap_or(0) <= youngest {
                    candidates.insert(digest);
                }
            }
        }
        let mut total = Collected::default();
        for digest in candidates {
            let one = self.remove_locked(&digest)?;
            total.blobs += one.blobs;
            total.trees += one.trees;
            total.bytes += one.bytes;
        }
        Ok(total)
    }

    fn remove_locked(&self, digest: &Digest) -> Result<Collected, StoreError> {
        let mut removed = Collected::default();
        for dir in [Profile::Image, Profile::Package].map(Profile::directory) {
            removed.trees += u64::from(self.discard_tree(&self.root.join(dir).join(digest.hex()))?);
        }
        let path = self.blob_path(digest);
        let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
        match fs::remove_file(&path) {
            Ok(()) => {
                removed.blobs = 1;
                removed.bytes = bytes;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::io("remove", &path, e)),
        }
        Ok(removed)
    }

    /// Cleans up after the dead. Skipped while somebody makes something: the next opening does it.
    pub(super) fn sweep(&self) -> Result<(), StoreError> {
        let Some(_alone) = self.try_lock_exclusive()? else { return Ok(()) };
        empty_directory(&self.tmp())?;
        let marker = self.root.join("boot");
        let boot = fs::read(BOOT_ID).map_err(|e| StoreError::io("read", Path::new(BOOT_ID), e))?;
        if fs::read(&marker).is_ok_and(|last| last == boot) {
            return Ok(());
        }
        empty_directory(&self.root.join(Profile::Package.directory()))?;
        self.replace_file(&marker, &boot)
    }
}

fn empty_directory(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(|e| StoreError::io("list", dir, e))? {
        let entry = entry.map_err(|e| StoreError::io("list", dir, e))?;
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| StoreError::io("remove", &path, e))?;
    }
    Ok(())
}
