//! Builds: from a commit to a release. A build is a resource with a state and a log; whoever asked for
//! it may go away, and the control plane may be killed at any instant, because each step is decided from
//! the rows alone (see [`step`]).
//!
//! The platform reads the commit as data, hands a node the container that runs the app's code, and takes
//! one file from it: the package.

use mogok_api::control::{Build, BuildState};
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::{AppId, BuildId};
use tokio_util::sync::CancellationToken;

use crate::api::reply::{Failed, fault};
use crate::git::{GitError, InvalidReference, Reference};
use crate::retention;
use crate::state::AppState;
use crate::store::StoreError;
use crate::store::apps::AppRow;
use crate::store::builds::CreateBuildError;

mod check;
mod collect;
mod finish;
mod log;
mod prepare;
mod runner;
mod settings;
mod spec;
mod step;
#[cfg(test)]
mod tests;

pub use settings::BuildSettings;

/// Why no build was begun.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("nothing was pushed to the app {app} yet")]
    NothingPushed { app: String },
    #[error(transparent)]
    InvalidReference(#[from] InvalidReference),
    #[error("there is no branch, tag or commit {reference} in the app's repository")]
    UnknownReference { reference: Reference },
    #[error(transparent)]
    Create(#[from] CreateBuildError),
    #[error(transparent)]
    Git(#[from] GitError),
}

impl From<RequestError> for Failed {
    fn from(error: RequestError) -> Self {
        let code = match &error {
            RequestError::NothingPushed { .. } => {
                let error = ApiError::new(ErrorCode::Conflict, error.to_string());
                return Self(error.remedy("push first: git push mogok master, or the branch that you have"));
            }
            RequestError::Create(CreateBuildError::Busy { .. }) => {
                let error = ApiError::new(ErrorCode::Conflict, error.to_string());
                return Self(error.remedy("wait for its end, or cancel it"));
            }
            RequestError::Create(CreateBuildError::Store(_)) | RequestError::Git(_) => return fault(&error),
            RequestError::UnknownReference { .. } => {
                let error = ApiError::new(ErrorCode::NotFound, error.to_string());
                return Self(error.remedy("push it first: git push mogok BRANCH"));
            }
            RequestError::InvalidReference(_) => ErrorCode::Invalid,
            RequestError::Create(CreateBuildError::NoApp) => ErrorCode::NotFound,
        };
        Self(ApiError::new(code, error.to_string()))
    }
}

/// Why a build was not cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    #[error("the app has no build {0}")]
    NoBuild(BuildId),
    #[error("build {build} has ended already")]
    Ended { build: BuildId },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<CancelError> for Failed {
    fn from(error: CancelError) -> Self {
        let code = match &error {
            CancelError::NoBuild(_) => ErrorCode::NotFound,
            CancelError::Ended { .. } => ErrorCode::Conflict,
            CancelError::Store(_) => return fault(&error),
        };
        Self(ApiError::new(code, error.to_string()).remedy("list them: mogok builds"))
    }
}

/// Begins a build of what `reference` (a branch, tag or hash) means now, or of the pushed branch.
///
/// # Errors
/// [`RequestError`]; when a build of the app is under way, it names that one.
pub async fn request(state: &AppState, app: &AppRow, reference: Option<&str>) -> Result<Build, RequestError> {
    let repository = state.repositories.repository(app.id).await?;
    let pushed = repository.default_commit().await?;
    let commit = match reference {
        None => pushed,
        Some(text) => {
            let reference: Reference = text.parse()?;
            match repository.resolve(&reference).await? {
                None if pushed.is_some() => return Err(RequestError::UnknownReference { reference }),
                found => found,
            }
        }
    };
    let commit = commit.ok_or_else(|| RequestError::NothingPushed { app: app.name.to_string() })?;
    // A push over the branch must not take the commit away from the build.
    repository.keep(&commit).await?;
    let build = state.store.create_build(app.id, commit.as_str()).await?;
    tracing::info!(app = %app.name, build = %build.id, %commit, "build queued");
    log::say(&state.logs, build.id, app.id, &format!("build of commit {} queued", commit.short()));
    state.wake.builds.wake();
    Ok(build.shown())
}

/// Cancels a build that has not ended; its container is stopped and removed. Cancelling twice is no error.
///
/// # Errors
/// [`CancelError`]
pub async fn cancel(state: &AppState, app: AppId, id: BuildId) -> Result<Build, CancelError> {
    state.store.build(id).await?.filter(|row| row.app == app).ok_or(CancelError::NoBuild(id))?;
    finish::cancel(state, id, app).await?;
    let row = state.store.build(id).await?.ok_or(CancelError::NoBuild(id))?;
    if row.state == BuildState::Cancelled { Ok(row.shown()) } else { Err(CancelError::Ended { build: id }) }
}

/// Runs builds, and collects what old ones and old releases left, until `stop` is cancelled.
pub(crate) async fn run(state: AppState, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = runner::run(state.clone()) => {}
        () = collect::run(state.clone()) => {}
        () = retention::run(state) => {}
    }
}
