//! Trees: blobs unpacked once. A tree that exists is complete: it was made in `tmp` and renamed.
//! Of concurrent callers, in any process, one unpacks and the others wait for it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mogok_api::name::Digest;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

use super::blob::{digest_of, sync_directory};
use super::{Store, StoreError, lock};
use crate::unpack::{self, Profile, UnpackLimits};

/// A directory on the store's disk to make something in. It is removed with the value, or, if the
/// process dies, by the next sweep.
#[derive(Debug)]
pub struct Workshop {
    // Dropped first: the sweep must not meet a directory that is being removed.
    dir: tempfile::TempDir,
    _maker: Flock<File>,
}

impl Workshop {
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Store {
    /// A new [`Workshop`]. While it lives nothing is collected.
    pub fn workshop(&self) -> Result<Workshop, StoreError> {
        let maker = self.lock_shared()?;
        let tmp = self.tmp();
        let dir = tempfile::Builder::new()
            .prefix("make-")
            .tempdir_in(&tmp)
            .map_err(|e| StoreError::io("make a directory in", &tmp, e))?;
        Ok(Workshop { dir, _maker: maker })
    }

    /// The tree of a blob, unpacked under `limits` if it is not there yet. The blob's digest is
    /// verified while it is unpacked.
    pub fn tree(&self, digest: &Digest, limits: &UnpackLimits) -> Result<PathBuf, StoreError> {
        self.tree_while(digest, limits, &|| true)
    }

    /// The same, but given up as soon as nobody wants it any more.
    pub fn tree_while(
        &self,
        digest: &Digest,
        limits: &UnpackLimits,
        wanted: &dyn Fn() -> bool,
    ) -> Result<PathBuf, StoreError> {
        let path = self.tree_path(digest, limits);
        if path.is_dir() {
            return Ok(path);
        }
        let workshop = self.workshop()?;
        let blob_path = self.blob_path(digest);
        let blob = lock::lock(self.open_blob(digest)?, FlockArg::LockExclusive)
            .map_err(|e| StoreError::io("lock", &blob_path, e))?;
        if path.is_dir() {
            return Ok(path);
        }
        let given_up = || StoreError::GivenUp { digest: digest.clone() };
        if !wanted() {
            return Err(given_up());
        }
        let tree = workshop.path().join("tree");
        fs::create_dir(&tree).map_err(|e| StoreError::io("make directory", &tree, e))?;

        let blob: &File = &blob;
        let meta = blob.metadata().map_err(|e| StoreError::io("look at", &blob_path, e))?;
        if meta.nlink() == 0 {
            // Removed between the two; a tree of it would be nobody's.
            return Err(StoreError::NotFound { digest: digest.clone(), store: self.root.clone() });
        }
        let size = meta.len();
        let mut input = HashingReader { inner: blob, hash: Sha256::new(), wanted };
        let unpacked = unpack::unpack(&mut input, size, &tree, limits);
        // An archive may end before its file does; the digest is that of the file.
        let rest = io::copy(&mut input, &mut io::sink());
        if !wanted() {
            return Err(given_up());
        }
        rest.map_err(|e| StoreError::io("read", &blob_path, e))?;
        let actual = digest_of(input.hash);
        if actual != *digest {
            return Err(StoreError::Damaged { digest: digest.clone(), actual });
        }
        unpacked.map_err(|source| StoreError::Unpack { digest: digest.clone(), source })?;

        if limits.profile == Profile::Image {
            // Images are installed once and started for months: they must survive a power loss.
            // Package trees are on the path of a start and are dropped at the next boot instead.
            File::open(&tree)
                .and_then(|dir| nix::unistd::syncfs(&dir).map_err(io::Error::from))
                .map_err(|e| StoreError::io("sync", &tree, e))?;
        }
        fs::rename(&tree, &path).map_err(|e| StoreError::io("rename a tree to", &path, e))?;
        if limits.profile == Profile::Image {
            sync_directory(&self.root.join(limits.profile.directory()))?;
        }
        Ok(path)
    }

    /// Takes a tree out of sight in one step, into a directory that is to be removed.
    pub(super) fn hide_tree(&self, path: &Path) -> Result<Option<tempfile::TempDir>, StoreError> {
        if !path.exists() {
            return Ok(None);
        }
        let tmp = self.tmp();
        let grave = tempfile::Builder::new()
            .prefix("gone-")
            .tempdir_in(&tmp)
            .map_err(|e| StoreError::io("make a directory in", &tmp, e))?;
        match fs::rename(path, grave.path().join("tree")) {
            Ok(()) => Ok(Some(grave)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("rename", path, e)),
        }
    }
}

struct HashingReader<'a, R> {
    inner: R,
    hash: Sha256,
    wanted: &'a dyn Fn() -> bool,
}

impl<R: Read> Read for HashingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.wanted)() {
            return Err(io::Error::other("it is not wanted any more"));
        }
        let got = self.inner.read(buffer)?;
        self.hash.update(&buffer[..got]);
        Ok(got)
    }
}
