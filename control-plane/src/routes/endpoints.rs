//! The last known addresses of instances that were up, on disk, so that a control plane that starts
//! while a node is away does not send routers a table without that node's instances.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mogok_api::id::InstanceId;

/// Addresses that could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError {
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the last known endpoints are not readable: remove {}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
}

/// The file, and what it holds.
#[derive(Debug)]
pub struct Endpoints {
    path: PathBuf,
    known: BTreeMap<InstanceId, SocketAddr>,
}

impl Endpoints {
    /// Reads the file, or begins with nothing known.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn open(path: &Path) -> Result<Self, EndpointsError> {
        let known = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|source| EndpointsError::Json { path: path.to_owned(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => {
                return Err(EndpointsError::Io { operation: "read", path: path.to_owned(), source });
            }
        };
        Ok(Self { path: path.to_owned(), known })
    }

    /// Where the instance was reached last.
    #[must_use]
    pub fn get(&self, instance: InstanceId) -> Option<SocketAddr> {
        self.known.get(&instance).copied()
    }

    /// These are reached now; the file is replaced when that is news.
    ///
    /// # Errors
    /// When it cannot be written; what was kept before stays.
    pub fn keep(&mut self, now: BTreeMap<InstanceId, SocketAddr>) -> Result<(), EndpointsError> {
        if now == self.known {
            return Ok(());
        }
        let json = |source| EndpointsError::Json { path: self.path.clone(), source };
        let bytes = serde_json::to_vec(&now).map_err(json)?;
        let new = self.path.with_extension("new");
        std::fs::write(&new, bytes)
            .and_then(|()| std::fs::rename(&new, &self.path))
            .map_err(|source| EndpointsError::Io { operation: "replace", path: self.path.clone(), source })?;
        self.known = now;
        Ok(())
    }
}
