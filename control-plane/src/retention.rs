//! Which blobs are kept, here and on the nodes, and the removal of all others: packages of releases that
//! nobody can go back to any more, sources of builds that have ended, everything of destroyed apps.
//!
//! Invariant: a blob that a row names, or is about to name, is never removed from this store. Who relies on
//! one holds [`Retention::using`] from the look whether it is there until the row is written; a removal is
//! alone from the look at the rows to its end. A node is only a cache: it refuses to drop what it uses, and
//! asks again for what it lacks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mogok_api::agent::client::{AgentClient, ClientError};
use mogok_api::id::AppId;
use mogok_api::name::Digest;
use mogok_images::store::Collected;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::state::AppState;
use crate::store::StoreError;

/// How often what nobody needs is removed.
const EVERY: Duration = Duration::from_secs(10 * 60);
/// Releases of an app whose packages are kept: a rollback reaches so far.
const RELEASES: u32 = 10;
/// What was put since then may be about to be used.
const MIN_AGE: Duration = Duration::from_secs(10 * 60);
/// How often a node is asked to drop what the last containers of a destroyed app still use.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps blobs from being removed between the look at them and the row that names them.
#[derive(Debug, Clone, Default)]
pub struct Retention(Arc<RwLock<()>>);

impl Retention {
    /// While it is held nothing is removed.
    pub(crate) async fn using(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.0).read_owned().await
    }

    async fn alone(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.0).write_owned().await
    }
}

/// Why blobs were not removed; they are at the next time.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] mogok_images::StoreError),
    #[error("a removal ended unexpectedly")]
    Stopped(#[from] tokio::task::JoinError),
}

/// Collects now and every ten minutes, for ever.
pub(crate) async fn run(state: AppState) {
    loop {
        match collect(&state, MIN_AGE).await {
            Ok(Collected { blobs: 0, .. }) => {}
            Ok(found) => tracing::info!(blobs = found.blobs, bytes = found.bytes, "old blobs removed"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "old blobs not removed");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Removes what nobody needs and what was put at least `min_age` ago, here and on every node that answers.
pub(crate) async fn collect(state: &AppState, min_age: Duration) -> Result<Collected, RetentionError> {
    let alone = state.retention.alone().await;
    let needed = needed(state).await?;
    let (images, keep) = (state.images.clone(), needed.clone());
    let mut found = tokio::task::spawn_blocking(move || images.collect(&keep, min_age)).await??;
    drop(alone);
    for client in clients(state) {
        match collect_on(&client, &needed, min_age).await {
            Ok(dropped) => {
                found.blobs += dropped.blobs;
                found.bytes += dropped.bytes;
            }
            // The other nodes have nothing to do with it.
            Err(error) => {
                tracing::warn!(node = %client.address(), error = &error as &dyn std::error::Error, "blobs not dropped");
            }
        }
    }
    Ok(found)
}

async fn collect_on(
    client: &AgentClient,
    needed: &BTreeSet<Digest>,
    min_age: Duration,
) -> Result<Collected, ClientError> {
    let mut found = Collected::default();
    for blob in client.blobs().await? {
        let old = blob.idle_s >= min_age.as_secs() && !needed.contains(&blob.digest);
        if old && client.drop_blob(&blob.digest).await? {
            found.blobs += 1;
            found.bytes += blob.bytes;
        }
    }
    Ok(found)
}

fn clients(state: &AppState) -> Vec<AgentClient> {
    let online = state.observed.nodes().into_iter().filter(|node| node.online);
    online.filter_map(|node| state.observed.client(node.info.id)).collect()
}

/// The blobs that rows name: of releases that can be gone back to, of instances, of builds under way.
async fn needed(state: &AppState) -> Result<BTreeSet<Digest>, StoreError> {
    let mut needed: BTreeSet<_> = state.store.packages_in_use(RELEASES).await?.into_iter().collect();
    for build in state.store.open_builds().await? {
        needed.extend(build.blobs());
    }
    Ok(needed)
}

/// What an app that is being destroyed has in the stores; to be asked before its rows go.
pub(crate) async fn of_app(state: &AppState, app: AppId) -> Result<BTreeSet<Digest>, StoreError> {
    let mut blobs: BTreeSet<_> = state.store.packages_of(app).await?.into_iter().collect();
    for build in state.store.builds(app, u32::MAX).await? {
        blobs.extend(build.blobs());
    }
    Ok(blobs)
}

/// Removes what a destroyed app has left, without anybody waiting for it. Should the control plane die
/// before it is done, the next collection does it.
pub(crate) fn forget(state: &AppState, blobs: BTreeSet<Digest>) {
    let state = state.clone();
    tokio::spawn(async move {
        if let Err(error) = drop_all(&state, blobs).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "blobs of a destroyed app are left until the next collection");
        }
    });
}

async fn drop_all(state: &AppState, mut blobs: BTreeSet<Digest>) -> Result<(), RetentionError> {
    let alone = state.retention.alone().await;
    // Another app may have the same package, to the byte.
    let needed = needed(state).await?;
    blobs.retain(|digest| !needed.contains(digest));
    let (images, here) = (state.images.clone(), blobs.clone());
    let removed = tokio::task::spawn_blocking(move || {
        here.iter().try_for_each(|digest| images.remove(digest, || Some(())).map(drop))
    });
    removed.await??;
    drop(alone);
    for client in clients(state) {
        let mut left = blobs.clone();
        for _ in 0..TRIES {
            for digest in left.clone() {
                match client.drop_blob(&digest).await {
                    Ok(true) => drop(left.remove(&digest)),
                    // A container of a build that was cancelled is still being removed.
                    Ok(false) => {}
                    Err(error) => {
                        let (node, error) = (client.address(), &error as &dyn std::error::Error);
                        tracing::warn!(%node, blob = %digest, error, "blob of a destroyed app not dropped yet");
                    }
                }
            }
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}
