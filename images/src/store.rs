//! The store of a node, a build host or a control plane: blobs by their SHA-256, the trees unpacked
//! from them, and the names of images.
//!
//! ```text
//! STORE/blobs/sha256/<hex>   files, synced and renamed into place: what has its name is whole
//! STORE/trees/<hex>/         unpacked images, owned by the ids of the archive
//! STORE/packages/<hex>/      unpacked packages, owned by 1000:1000
//! STORE/images/<name>        digest of an image
//! STORE/tmp/                 what is being made; swept when nobody makes anything
//! STORE/lock                 shared by makers, exclusive for the sweep and for collection
//! ```
//! Every operation is safe against other processes on the same store, and against their death.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mogok_api::name::{Digest, ImageName};

use crate::unpack::{UnpackError, UnpackLimits};

mod blob;
mod collect;
mod image;
mod lock;
mod tree;

pub use collect::{Collected, Idle, Removal};
pub use image::ImageRecord;
pub use tree::Workshop;

/// What the store could not do, with the path it was doing it to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("disk full while writing {path}: free space on its file system or collect unused blobs")]
    DiskFull { path: PathBuf },
    #[error("input is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("cannot read the input of a blob")]
    Input(#[source] io::Error),
    #[error("content has digest {actual}, not {expected}: it was damaged on its way, send it again")]
    Mismatch { expected: Digest, actual: Digest },
    #[error("blob {digest} is not in the store {store}")]
    NotFound { digest: Digest, store: PathBuf },
    #[error("blob {digest} was not unpacked to its end: it is not wanted any more")]
    GivenUp { digest: Digest },
    #[error("blob {digest} is damaged on disk (it now has {actual}): remove it and fetch it again")]
    Damaged { digest: Digest, actual: Digest },
    #[error("cannot unpack {digest}")]
    Unpack { digest: Digest, source: UnpackError },
    #[error("image file {path} does not hold a digest: build the image again")]
    BadImage { path: PathBuf },
    #[error("store {store} stayed in use for {seconds} s: try again when no build or upload runs")]
    Busy { store: PathBuf, seconds: u64 },
}

impl StoreError {
    /// An I/O error of a write, with a full disk told apart.
    fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.to_owned() }
            }
            _ => Self::Io { operation, path: path.to_owned(), source },
        }
    }
}

/// A content-addressed store below one directory. Cheap to clone; every method blocks, so
/// asynchronous callers go through a blocking thread.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, making its directories (mode 0700) where they are missing.
    ///
    /// Removes what makers that died left in `tmp`, and, in the first opening after a boot, package
    /// trees: they are not synced when they are made, so a power loss may have torn them. They are
    /// unpacked again when they are needed.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let mut store = Self { root: root.into() };
        for dir in ["blobs/sha256", "trees", "packages", "images", "tmp"] {
            let dir = store.root.join(dir);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|e| StoreError::io("make directory", &dir, e))?;
        }
        fs::set_permissions(&store.root, fs::Permissions::from_mode(0o700))
            .map_err(|e| StoreError::io("set the mode of", &store.root, e))?;
        // Its paths are handed to programs that refuse links and `..` on the way.
        store.root = store.root.canonicalize().map_err(|e| StoreError::io("resolve", &store.root, e))?;
        store.sweep()?;
        Ok(store)
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a blob, whether or not it exists (for read-only bind mounts).
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Path of the tree that `limits` would unpack a blob into, whether or not it exists.
    #[must_use]
    pub fn tree_path(&self, digest: &Digest, limits: &UnpackLimits) -> PathBuf {
        self.root.join(limits.profile.directory()).join(digest.hex())
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn image_path(&self, name: &ImageName) -> PathBuf {
        self.root.join("images").join(name.as_str())
    }
}

#[cfg(test)]
mod tests;
