//! How far a node's logs were taken, on disk: one small file per node, replaced whole. It is written
//! after the lines are, so a death in between repeats lines (which the reader recognises) and loses none.

use std::io;
use std::path::{Path, PathBuf};

/// A cursor that could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub(super) struct CursorError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The file of one node.
#[derive(Debug)]
pub(super) struct CursorFile {
    path: PathBuf,
    value: Option<String>,
}

impl CursorFile {
    /// Reads it, or begins at the beginning; makes its directory.
    pub(super) fn open(path: &Path) -> Result<Self, CursorError> {
        let failed = |operation| {
            let path = path.to_owned();
            move |source| CursorError { operation, path, source }
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
        }
        let value = match std::fs::read_to_string(path) {
            Ok(value) => Some(value),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read the log cursor")(error)),
        };
        Ok(Self { path: path.to_owned(), value })
    }

    /// Everything up to here was taken.
    pub(super) fn get(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// Notes that everything up to here was taken.
    pub(super) fn set(&mut self, value: String) -> Result<(), CursorError> {
        let new = self.path.with_extension("new");
        let failed =
            |source| CursorError { operation: "write the log cursor", path: self.path.clone(), source };
        std::fs::write(&new, &value).and_then(|()| std::fs::rename(&new, &self.path)).map_err(failed)?;
        self.value = Some(value);
        Ok(())
    }

    /// Begins again at the beginning: the node does not know the cursor.
    pub(super) fn reset(&mut self) {
        self.value = None;
    }
}
