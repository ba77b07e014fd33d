//! Blobs: files named by their SHA-256. A blob that exists is whole and on the disk: it was written
//! to a temporary file, hashed on the way, synced, and renamed.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

use mogok_api::name::Digest;
use sha2::{Digest as _, Sha256};

use super::{Store, StoreError};

const CHUNK_BYTES: usize = 128 * 1024;

impl Store {
    /// Stores what `reader` yields, at most `limit` bytes, and returns its digest.
    pub fn put(&self, reader: impl Read, limit: u64) -> Result<Digest, StoreError> {
        self.store_blob(reader, limit, None)
    }

    /// As [`Self::put`], for content whose digest is known; content that differs is not stored.
    pub fn put_as(&self, digest: &Digest, reader: impl Read, limit: u64) -> Result<(), StoreError> {
        self.store_blob(reader, limit, Some(digest)).map(drop)
    }

    fn store_blob(
        &self,
        mut reader: impl Read,
        limit: u64,
        expected: Option<&Digest>,
    ) -> Result<Digest, StoreError> {
        let _maker = self.lock_shared()?;
        let tmp = self.tmp();
        let mut file =
            tempfile::NamedTempFile::new_in(&tmp).map_err(|e| StoreError::io("make a file in", &tmp, e))?;
        let mut hash = Sha256::new();
        let mut left = limit;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let got = match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(StoreError::Input(e)),
            };
            left = left.checked_sub(got as u64).ok_or(StoreError::TooLarge { limit })?;
            hash.update(&chunk[..got]);
            file.write_all(&chunk[..got]).map_err(|e| StoreError::io("write", file.path(), e))?;
        }
        let actual = digest_of(hash);
        if let Some(expected) = expected.filter(|expected| **expected != actual) {
            return Err(StoreError::Mismatch { expected: expected.clone(), actual });
        }
        let path = self.blob_path(&actual);
        if touch(&path) {
            return Ok(actual);
        }
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| file.as_file().sync_all())
            .map_err(|e| StoreError::io("sync", file.path(), e))?;
        file.persist(&path).map_err(|e| StoreError::io("rename a file to", &path, e.error))?;
        sync_directory(&self.root.join("blobs/sha256"))?;
        Ok(actual)
    }

    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Opens a blob for reading; its size is that of the file.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                StoreError::NotFound { digest: digest.clone(), store: self.root.clone() }
            }
            _ => StoreError::io("open", &path, e),
        })
    }

    /// Digests and sizes in bytes of all blobs, in order.
    pub fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let dir = self.root.join("blobs/sha256");
        let mut blobs = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|e| StoreError::io("list", &dir, e))? {
            let entry = entry.map_err(|e| StoreError::io("list", &dir, e))?;
            let Some(digest) = digest_from_file_name(&entry.file_name()) else { continue };
            match entry.metadata() {
                Ok(meta) => blobs.push((digest, meta.len())),
                // Removed since the listing.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(StoreError::io("look at", &entry.path(), e)),
            }
        }
        blobs.sort();
        Ok(blobs)
    }
}

/// Marks an existing blob as wanted now, for collection; false when there is none.
fn touch(path: &Path) -> bool {
    File::open(path).and_then(|file| file.set_modified(SystemTime::now())).is_ok()
}

/// Makes renames in a directory survive a power loss.
pub(super) fn sync_directory(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| StoreError::io("sync", dir, e))
}

pub(super) fn digest_from_file_name(name: &std::ffi::OsStr) -> Option<Digest> {
    format!("sha256:{}", name.to_str()?).parse().ok()
}

pub(super) fn digest_of(hash: Sha256) -> Digest {
    // 64 lower-case hexadecimal digits are a digest by definition.
    format!("sha256:{}", hex::encode(hash.finalize())).parse().unwrap_or_else(|_| unreachable!())
}
