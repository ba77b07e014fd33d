//! Git over smart HTTP (`git.<base domain>`), and the bare repositories behind it.
//!
//! What a tenant pushes is hostile: git's own programs read it, in a clean environment, under limits of
//! time, memory and size, and nothing is ever checked out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio_util::sync::CancellationToken;

use crate::state::AppState;

mod body;
mod commit;
mod maintain;
mod process;
mod read;
mod repository;
mod serve;
mod smart_http;

pub use commit::{Commit, InvalidCommit, InvalidReference, Reference};
pub use repository::{Repositories, Repository};

/// What can go wrong with a repository.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("cannot {operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot run git")]
    Spawn(#[source] std::io::Error),
    #[error("git {operation} failed in {path}: {message}")]
    Failed { operation: &'static str, path: PathBuf, message: String },
    #[error("git {operation} did not end within {} s", limit.as_secs())]
    Timeout { operation: &'static str, limit: Duration },
    #[error("git {operation} gives more than {limit} bytes")]
    TooLarge { operation: &'static str, limit: u64 },
    #[error("{path:?} is no regular file in this commit")]
    NotAFile { path: String },
    #[error("git {operation} gave something unexpected: {text:?}")]
    Unexpected { operation: &'static str, text: String },
}

impl GitError {
    /// Is it that the platform's disk is full? Git itself says so in words only.
    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            }
            Self::Failed { message, .. } => message.contains("No space left on device"),
            _ => false,
        }
    }

    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// The git service. Transfers end when `stop` is cancelled.
pub(crate) fn router(state: AppState, stop: CancellationToken) -> Router {
    Router::new()
        .route("/{app}/info/refs", get(smart_http::advertise))
        .route("/{app}/git-upload-pack", post(smart_http::upload_pack))
        .route("/{app}/git-receive-pack", post(smart_http::receive_pack))
        .fallback(smart_http::unknown)
        .method_not_allowed_fallback(smart_http::unknown)
        .with_state(smart_http::Service { state, stop })
}
