//! The end of a build: its package becomes a release, or its reason is told.

use std::fs::File;
use std::io::Read;

use mogok_api::control::BuildState;
use mogok_api::id::{AppId, BuildId, NodeId};
use mogok_api::instance::InstanceStatus;
use mogok_api::name::Digest;
use mogok_images::unpack::{self, UnpackLimits};

use super::log::{close, drained, say};
use super::prepare::StepError;
use super::settings::size;
use super::spec::RUN_IMAGE;
use super::step::one_line;
use crate::state::AppState;
use crate::store::StoreError;
use crate::store::builds::{BuildRow, Handed, Success, SuccessError};
use crate::store::releases::{CreateReleaseError, NewRelease};

/// First bytes of a zstd frame (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Fetches the package of a build that ended well, and makes the release.
pub(super) async fn succeed(
    state: &AppState,
    build: &BuildRow,
    handed: &Handed,
    output: &Digest,
    status: &InstanceStatus,
) -> Result<(), StepError> {
    drained(&state.logs, build.id, status).await;
    let bytes = fetch(state, handed.node, output).await?;
    let short: String = build.commit.chars().take(7).collect();
    let success = Success {
        release: NewRelease {
            description: format!("build {short}"),
            commit: Some(build.commit.clone()),
            package: output.clone(),
            image: RUN_IMAGE.parse()?,
            // By name: a node whose image was renewed for a security update still runs it.
            image_digest: None,
            processes: handed.processes.clone(),
        },
        package: output.clone(),
        package_bytes: bytes,
    };
    let _using = state.retention.using().await;
    if !state.images.has(output) {
        return Err(StepError::Collected);
    }
    let release = match state.store.succeed_build(build, &success).await {
        Ok(release) => release,
        // Cancelled meanwhile; whoever cancelled it has said so.
        Err(SuccessError::Ended) => return Ok(()),
        Err(SuccessError::Release(CreateReleaseError::NoApp)) => {
            return Err(StepError::Failed("the app was destroyed".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    tracing::info!(app = %build.app, build = %build.id, release = %release.number, bytes, "build succeeded");
    let (logs, number) = (&state.logs, release.number);
    say(logs, build.id, build.app, &format!("package {}", size(bytes)));
    let running = state.store.app(build.app).await?.is_some_and(|app| app.running);
    let next = if running { "is being deployed" } else { "is ready: mogok start" };
    say(logs, build.id, build.app, &format!("release {number} {next}"));
    ended(state, build.id);
    Ok(())
}

/// Ends a build for a reason. What its container wrote last is waited for.
pub(super) async fn fail(
    state: &AppState,
    build: &BuildRow,
    reason: &str,
    status: Option<&InstanceStatus>,
) -> Result<(), StoreError> {
    if let Some(status) = status {
        drained(&state.logs, build.id, status).await;
    }
    if state.store.end_build(build.id, BuildState::Failed, Some(reason)).await? {
        tracing::info!(app = %build.app, build = %build.id, reason, "build failed");
        say(&state.logs, build.id, build.app, &format!("failed: {reason}"));
        ended(state, build.id);
    }
    Ok(())
}

/// Cancels a build that has not ended.
pub(super) async fn cancel(state: &AppState, id: BuildId, app: AppId) -> Result<(), StoreError> {
    if state.store.end_build(id, BuildState::Cancelled, Some("cancelled")).await? {
        tracing::info!(%app, build = %id, "build cancelled");
        say(&state.logs, id, app, "cancelled");
        ended(state, id);
    }
    Ok(())
}

fn ended(state: &AppState, build: BuildId) {
    close(&state.logs, build);
    // Its container is no longer wanted, and an app that runs has a new release.
    state.wake.nodes.wake();
    state.wake.reconcile.wake();
    state.wake.deploys.wake();
    state.wake.builds.wake();
}

/// Takes the package from the node into the blob store, once; its size in bytes.
async fn fetch(state: &AppState, node: NodeId, package: &Digest) -> Result<u64, StepError> {
    let limit = state.config.builds.package_bytes;
    if !state.images.has(package) {
        let client = state.observed.client(node).ok_or(StepError::Away)?;
        let images = state.images.clone();
        let workshop = tokio::task::spawn_blocking(move || images.workshop()).await??;
        let path = workshop.path().join("package");
        client.get_blob(package, &path, limit).await?;
        let (images, digest) = (state.images.clone(), package.clone());
        tokio::task::spawn_blocking(move || {
            let file = File::open(&path).map_err(StepError::file("read", &path))?;
            Ok::<_, StepError>(images.put_as(&digest, file, limit)?)
        })
        .await??;
        drop(workshop);
    }
    let (images, digest) = (state.images.clone(), package.clone());
    tokio::task::spawn_blocking(move || {
        let path = images.blob_path(&digest);
        let mut magic = [0; 4];
        let mut file = images.open_blob(&digest)?;
        let bytes = file.metadata().map_err(StepError::file("look at", &path))?.len();
        // What a node would refuse to unpack is no release, and above all no cache of the next build.
        let read = file.read_exact(&mut magic);
        if read.is_err() || magic != ZSTD_MAGIC {
            return Err(StepError::Failed("the build wrote something that is no package".to_owned()));
        }
        let file = images.open_blob(&digest)?;
        unpack::judge(file, bytes, &UnpackLimits::package()).map_err(|error| {
            let why = one_line(&error.to_string());
            StepError::Failed(format!(
                "the package cannot be unpacked: {why}; change the repository, or what its build makes"
            ))
        })?;
        Ok(bytes)
    })
    .await?
}
