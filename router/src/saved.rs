//! The last table on disk, used at the start while the control plane is away. Replaced atomically
//! (write beside, rename), so that a kill at any moment leaves the one or the other, whole. Not
//! synced: after a power loss every container is gone, and with it what the table points to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mogok_api::id::Epoch;
use mogok_api::route::AppRoute;
use serde::{Deserialize, Serialize};

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedTable {
    pub epoch: Epoch,
    pub version: u64,
    pub routes: Vec<AppRoute>,
}

#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("cannot read the saved table {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the saved table {} is malformed", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("cannot write the saved table {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// `STATE/routes.json`.
#[derive(Debug, Clone)]
pub struct TableFile {
    path: PathBuf,
}

impl TableFile {
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { path: state.join("routes.json") }
    }

    /// The table, or `None` when none was ever saved.
    ///
    /// # Errors
    /// The file cannot be read or is no table; the start can go on without it.
    pub fn load(&self) -> Result<Option<SavedTable>, SavedError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SavedError::Read { path: self.path.clone(), source }),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| SavedError::Malformed { path: self.path.clone(), source })
    }

    /// Replaces the file. When that fails the old one is removed: an outdated table could send
    /// requests to an address that belongs to another app by now, and none at all is better.
    ///
    /// # Errors
    /// Names the path; the router goes on with the table in memory.
    pub fn save(&self, content: &[u8]) -> Result<(), SavedError> {
        let new = self.path.with_extension("json.new");
        fs::write(&new, content).and_then(|()| fs::rename(&new, &self.path)).map_err(|source| {
            let _ = fs::remove_file(&new);
            let _ = fs::remove_file(&self.path);
            SavedError::Write { path: self.path.clone(), source }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_as_it_was_saved() {
        let state = tempfile::tempdir().unwrap();
        let file = TableFile::new(state.path());
        assert!(file.load().unwrap().is_none());
        let table = SavedTable { epoch: Epoch::new(), version: 7, routes: vec![] };
        file.save(&serde_json::to_vec(&table).unwrap()).unwrap();
        let found = file.load().unwrap().unwrap();
        assert_eq!((found.epoch, found.version), (table.epoch, 7));
        file.save(b"{").unwrap();
        assert!(matches!(file.load(), Err(SavedError::Malformed { .. })));
    }

    #[test]
    fn a_table_that_cannot_be_replaced_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let file = TableFile::new(state.path());
        file.save(b"{}").unwrap();
        fs::create_dir(state.path().join("routes.json.new")).unwrap();
        assert!(matches!(file.save(b"{}"), Err(SavedError::Write { .. })));
        assert!(file.load().unwrap().is_none());
    }
}
