//! The file that a build hands over: made before the start, outside the container's disk, and taken
//! into the node's blob store after a success.
//!
//! Invariant: what the store takes is at most `max_bytes`, whatever the container wrote.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use mogok_api::instance::OutputFile;
use mogok_api::name::Digest;
use mogok_images::{Store, StoreError};

use super::sandbox::APP_ID;

/// The output cannot be made or taken.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("the program wrote more than {max_bytes} bytes of output")]
    TooLarge { max_bytes: u64 },
    #[error("cannot {operation} the output file {path}", path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot store the output")]
    Store(#[source] StoreError),
}

#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join("output")
}

/// Makes the empty file that the container's user may write.
///
/// # Errors
/// When it cannot be made.
pub fn make(dir: &Path, id_base: u32) -> Result<PathBuf, OutputError> {
    let path = path(dir);
    let failed = |operation, source| OutputError::Io { operation, path: path.clone(), source };
    remove(dir).map_err(|source| failed("remove", source))?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| failed("make", source))?;
    let owner = Some(id_base + APP_ID);
    fchown(&file, owner, owner).map_err(|source| failed("give away", source))?;
    Ok(path)
}

/// Did the container write more than it may?
#[must_use]
pub fn too_large(dir: &Path, output: &OutputFile) -> bool {
    std::fs::symlink_metadata(path(dir)).is_ok_and(|metadata| metadata.len() > output.max_bytes)
}

/// Takes the file into the store and away from here. Blocks.
///
/// # Errors
/// When it is too large, or cannot be read or stored.
pub fn take(dir: &Path, output: &OutputFile, store: &Store) -> Result<Digest, OutputError> {
    let path = path(dir);
    let failed = |operation, source| OutputError::Io { operation, path: path.clone(), source };
    let file = File::open(&path).map_err(|source| failed("open", source))?;
    let digest = store.put(file, output.max_bytes).map_err(|error| match error {
        StoreError::TooLarge { .. } => OutputError::TooLarge { max_bytes: output.max_bytes },
        error => OutputError::Store(error),
    })?;
    remove(dir).map_err(|source| failed("remove", source))?;
    Ok(digest)
}

/// Removes the file where there is one.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_stored_under_its_digest_unless_it_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let output = OutputFile { path: "/output".into(), max_bytes: 5 };
        std::fs::write(path(dir.path()), b"12345").unwrap();
        assert!(!too_large(dir.path(), &output));
        let digest = take(dir.path(), &output, &store).unwrap();
        assert!(store.has(&digest) && !path(dir.path()).exists());
        std::fs::write(path(dir.path()), b"123456").unwrap();
        assert!(too_large(dir.path(), &output));
        assert!(matches!(take(dir.path(), &output, &store), Err(OutputError::TooLarge { .. })));
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
    }
}
