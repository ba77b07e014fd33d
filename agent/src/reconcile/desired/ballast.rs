//! Room that is held for the wanted set, so that a full disk can be told to hold less.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::posix_fallocate;

/// A set of some thousand instances.
const BYTES: i64 = 4 << 20;

/// A file of nothing.
#[derive(Debug, Clone)]
pub(super) struct Ballast(PathBuf);

impl Ballast {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Takes the room, where there is as much and it is not taken yet.
    pub(super) fn hold(&self) {
        if fs::metadata(&self.0).is_ok_and(|metadata| metadata.len() == BYTES.unsigned_abs()) {
            return;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.0);
        let held = file.and_then(|file| Ok(posix_fallocate(&file, 0, BYTES)?));
        if let Err(error) = held {
            tracing::warn!(path = %self.0.display(), %error, "no room is held for the wanted set");
            // What it got is what others need.
            let _ = fs::remove_file(&self.0);
        }
    }

    /// Gives the room back; false when there was none.
    pub(super) fn drop(&self) -> io::Result<bool> {
        match fs::remove_file(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
