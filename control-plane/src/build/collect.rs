//! What old builds leave is removed: rows beyond the newest 50 of an app, logs of what is gone, and
//! sources and packages that nobody can need any more. Also closes logs that a crash left open.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use mogok_api::id::AppId;
use mogok_images::store::Collected;

use super::prepare::StepError;
use crate::log_store::{LogError, LogKey};
use crate::state::AppState;

/// How often.
const EVERY: Duration = Duration::from_secs(10 * 60);
/// Releases of an app whose packages are kept: a rollback reaches so far.
const RELEASES: u32 = 10;
/// Blobs that were put since then may be about to be used.
const MIN_AGE: Duration = Duration::from_secs(60 * 60);

/// Collects now and every ten minutes, for ever.
pub(super) async fn run(state: AppState) {
    loop {
        match collect(&state, MIN_AGE).await {
            Ok(found) if found != Collected::default() => {
                tracing::info!(blobs = found.blobs, bytes = found.bytes, "old blobs removed");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "old builds not collected");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum CollectError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl From<crate::store::StoreError> for CollectError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Step(error.into())
    }
}

pub(super) async fn collect(state: &AppState, min_age: Duration) -> Result<Collected, CollectError> {
    logs(state).await?;
    let mut keep: BTreeSet<_> = state.store.packages_in_use(RELEASES).await?.into_iter().collect();
    for build in state.store.open_builds().await? {
        let Some(spec) = build.handed.map(|handed| handed.spec) else { continue };
        keep.extend(spec.blobs.into_iter().map(|blob| blob.digest));
        keep.extend(spec.package_mounts.into_iter().map(|mount| mount.digest));
    }
    let images = state.images.clone();
    let collected = tokio::task::spawn_blocking(move || images.collect(&keep, min_age)).await;
    Ok(collected.map_err(StepError::from)?.map_err(StepError::from)?)
}

async fn logs(state: &AppState) -> Result<(), CollectError> {
    // The logs first: an app that is made between the two looks is then not taken for one that is gone.
    let keys = state.logs.keys()?;
    let apps: HashSet<AppId> = state.store.all_apps().await?.into_iter().map(|app| app.id).collect();
    for app in &apps {
        state.store.forget_builds(*app).await?;
    }
    for key in keys {
        match key {
            LogKey::App(id) if !apps.contains(&id) => state.logs.remove(id)?,
            LogKey::App(_) => {}
            LogKey::Build(id) => match state.store.build(id).await? {
                None => state.logs.remove(id)?,
                Some(build) if build.state.ended() && !state.logs.is_closed(id) => state.logs.close(id)?,
                Some(_) => {}
            },
        }
    }
    Ok(())
}
