//! What old builds leave is removed: rows beyond the newest 50 of an app, and logs of what is gone. Also
//! closes logs that a crash left open. Their blobs are the matter of [`crate::retention`].

use std::collections::HashSet;
use std::time::Duration;

use mogok_api::id::AppId;

use crate::log_store::{LogError, LogKey};
use crate::state::AppState;
use crate::store::StoreError;

/// How often.
const EVERY: Duration = Duration::from_secs(10 * 60);

/// Collects now and every ten minutes, for ever.
pub(super) async fn run(state: AppState) {
    loop {
        if let Err(error) = collect(&state).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "old builds not collected");
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum CollectError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
}

pub(super) async fn collect(state: &AppState) -> Result<(), CollectError> {
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
