//! The life of an app beyond its row: made with a secret of its own, and at its end removed from the
//! disk before it is removed from the store, so that a crash in between is gone on with.

use mogok_api::id::{AppId, UserId};
use mogok_api::name::AppName;

use crate::auth::random_text;
use crate::git::GitError;
use crate::log_store::LogError;
use crate::retention;
use crate::state::AppState;
use crate::store::StoreError;
use crate::store::apps::{AppRow, CreateAppError};

/// Why an app was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("cannot get random bytes")]
    Random(#[source] getrandom::Error),
    #[error(transparent)]
    Store(#[from] CreateAppError),
}

/// Why an app could not be removed yet; it is tried again at the next wake-up.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    #[error(transparent)]
    Repository(#[from] GitError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes an app with a random, lasting `SECRET_KEY_BASE`. Its repository is made at the first use.
///
/// # Errors
/// [`CreateError`] says which rule it breaks.
pub async fn create(state: &AppState, owner: UserId, name: &AppName) -> Result<AppRow, CreateError> {
    let secret = random_text::<64>().map_err(CreateError::Random)?;
    Ok(state.store.create_app(owner, name, &secret).await?)
}

/// Marks the app as to be destroyed, and ends it at once where nothing of it runs.
///
/// # Errors
/// When the mark cannot be made; what comes after it is done again by the reconciler.
pub async fn destroy(state: &AppState, app: AppId) -> Result<(), StoreError> {
    state.store.destroy_app(app).await?;
    state.wake.reconcile.wake();
    state.wake.builds.wake();
    state.wake.routes.wake();
    if let Err(error) = finish_destroy(state, app).await {
        tracing::warn!(%app, %error, "app is not removed yet");
    }
    Ok(())
}

/// Removes everything of an app that is being destroyed: repository, logs, rows, blobs. Does nothing and
/// answers false while an instance or a build of it is left. Idempotent.
///
/// # Errors
/// [`DestroyError`]; calling it again goes on where it stopped.
pub async fn finish_destroy(state: &AppState, app: AppId) -> Result<bool, DestroyError> {
    match state.store.app(app).await? {
        None => return Ok(true),
        Some(row) if !row.destroying => return Ok(false),
        Some(_) => {}
    }
    if state.store.app_is_busy(app).await? {
        return Ok(false);
    }
    state.repositories.remove(app).await?;
    for build in state.store.build_ids(app).await? {
        state.logs.remove(build)?;
    }
    state.logs.remove(app)?;
    let blobs = retention::of_app(state, app).await?;
    state.store.remove_app(app).await?;
    retention::forget(state, blobs);
    tracing::info!(%app, "app destroyed");
    Ok(true)
}
