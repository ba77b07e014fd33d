//! Replacing a small file whole: write beside it, then rename over it. A reader sees the old file or
//! the new one, never a part. What must survive `kill -9` needs no fsync (the page cache survives);
//! what must survive a power loss gets one for the file and one for its directory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;

use super::LedgerError;

/// What the new content has to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of this process.
    Kill,
    /// The death of the machine.
    PowerLoss,
}

/// Replaces `path` by `value` as JSON, mode 0600. Only one writer per path at a time.
///
/// # Errors
/// When the new file cannot be written; the old one is then unchanged.
pub fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), LedgerError> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| LedgerError::Parse { path: path.to_owned(), source })?;
    write(path, &bytes, durability).map_err(|source| LedgerError::Write { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8], durability: Durability) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    if durability == Durability::PowerLoss {
        file.sync_all()?;
    }
    std::fs::rename(&beside, path)?;
    if durability == Durability::PowerLoss
        && let Some(parent) = path.parent()
    {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}
