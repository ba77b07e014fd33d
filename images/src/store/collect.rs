//! Removal: of what nobody keeps, of what dead makers left, and of trees a power loss may have torn.
//! It happens under the exclusive lock, or under that of the one blob that goes, so nothing that is being made is
//! ever removed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mogok_api::name::Digest;
use nix::fcntl::FlockArg;
use tempfile::TempDir;

use super::blob::digest_from_file_name;
use super::{Store, StoreError, lock};
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

/// A blob as a collector looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idle {
    pub digest: Digest,
    pub bytes: u64,
    /// Since it was put here last.
    pub since: Duration,
}

/// What became of a blob that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// There was none.
    Absent,
    /// Somebody uses it.
    Refused,
}

impl Store {
    /// Removes a blob and its trees, if nobody unpacks it and `permit` allows it. The permit is held until the
    /// blob is out of sight: nothing begins to use it in between. What is made of other blobs is not waited for.
    pub fn remove<P>(
        &self,
        digest: &Digest,
        permit: impl FnOnce() -> Option<P>,
    ) -> Result<Removal, StoreError> {
        // Against a sweep of what is being buried.
        let _maker = self.lock_shared()?;
        let path = self.blob_path(digest);
        let _blob = match self.open_blob(digest) {
            Ok(blob) => match lock::lock(blob, FlockArg::LockExclusiveNonblock) {
                Ok(blob) => Some(blob),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Removal::Refused),
                Err(e) => return Err(StoreError::io("lock", &path, e)),
            },
            // Of a removal that was cut short there may be a tree.
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let Some(permit) = permit() else { return Ok(Removal::Refused) };
        let (removed, graves) = self.hide(digest)?;
        drop(permit);
        bury(graves)?;
        Ok(if removed == Collected::default() { Removal::Absent } else { Removal::Removed })
    }

    /// Every blob but those that an image name points to, and how long ago it was put.
    pub fn idle(&self) -> Result<Vec<Idle>, StoreError> {
        let named: BTreeSet<Digest> = self.images()?.into_iter().map(|(_, digest)| digest).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut idle = Vec::new();
        for (digest, bytes) in self.blobs()? {
            // The change time: that of the rename or the last put.
            let Ok(meta) = fs::metadata(self.blob_path(&digest)) else { continue };
            if !named.contains(&digest) {
                let changed = Duration::from_secs(u64::try_from(meta.ctime()).unwrap_or(0));
                idle.push(Idle { digest, bytes, since: now.saturating_sub(changed) });
            }
        }
        Ok(idle)
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
            let (one, graves) = self.hide(&digest)?;
            bury(graves)?;
            total.blobs += one.blobs;
            total.trees += one.trees;
            total.bytes += one.bytes;
        }
        Ok(total)
    }

    /// Takes a blob and its trees out of sight; the trees are still to be buried.
    fn hide(&self, digest: &Digest) -> Result<(Collected, Vec<TempDir>), StoreError> {
        let mut removed = Collected::default();
        let mut graves = Vec::new();
        for dir in [Profile::Image, Profile::Package].map(Profile::directory) {
            graves.extend(self.hide_tree(&self.root.join(dir).join(digest.hex()))?);
        }
        removed.trees = graves.len() as u64;
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
        Ok((removed, graves))
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

/// Removes what was taken out of sight, however many files that is.
fn bury(graves: Vec<TempDir>) -> Result<(), StoreError> {
    for grave in graves {
        let path = grave.path().to_owned();
        grave.close().map_err(|e| StoreError::io("remove", &path, e))?;
    }
    Ok(())
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
