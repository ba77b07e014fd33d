//! From queued to running: reads the commit, chooses a node, stores the source and hands the container
//! over. Until the last write nothing has happened that is not done again the same way after a crash.

use std::io;
use std::path::Path;

use mogok_api::agent::client::ClientError;
use mogok_api::app::Limits;
use mogok_api::id::NodeId;
use mogok_api::name::{Digest, InvalidName};

use super::check::{SourceFiles, check};
use super::log::say;
use super::settings::size;
use super::spec::{self, BUILD_IMAGE, Wanted};
use crate::git::{Commit, GitError, InvalidCommit, Repository};
use crate::plan::without_web;
use crate::scheduler::{Ask, Cluster, ClusterError, Resources, Unfit};
use crate::state::AppState;
use crate::store::StoreError;
use crate::store::builds::{BuildRow, Handed, SuccessError};
use crate::{lockfile, procfile};

/// Why a step of a build was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// It never will be: the reason, for the developer.
    #[error("{0}")]
    Failed(String),
    /// It will be, when a node has room.
    #[error(transparent)]
    NoNode(Unfit),
    #[error("the node of the build is away")]
    Away,
    /// Nobody had named it yet when blobs were collected; it is made again.
    #[error("a blob was collected before it was used")]
    Collected,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Success(#[from] SuccessError),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Commit(#[from] InvalidCommit),
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Blobs(#[from] mogok_images::StoreError),
    #[error(transparent)]
    Node(#[from] ClientError),
    #[error("cannot {operation} {}", path.display())]
    File { operation: &'static str, path: std::path::PathBuf, source: io::Error },
    #[error("a step of a build ended unexpectedly")]
    Stopped(#[from] tokio::task::JoinError),
}

impl StepError {
    /// Is it that the platform's own disk is full?
    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Git(error) => error.is_disk_full(),
            Self::Blobs(error) => matches!(error, mogok_images::StoreError::DiskFull { .. }),
            Self::File { source, .. } | Self::Node(ClientError::File { source, .. }) => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    pub(super) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { operation, path, source }
    }
}

/// Prepares a queued build and hands it to a node.
pub(super) async fn prepare(state: &AppState, build: &BuildRow) -> Result<(), StepError> {
    let app = state.store.app(build.app).await?.filter(|app| !app.destroying);
    let app = app.ok_or_else(|| StepError::Failed("the app was destroyed".to_owned()))?;
    let commit: Commit = build.commit.parse()?;
    let repository = state.repositories.repository(app.id).await?;
    let checked = check(&files(&repository, &commit).await?).map_err(StepError::Failed)?;
    let mut cluster = Cluster::read(&state.store, &state.observed).await?;
    let ask = Ask { app: app.id, needs: Resources::of(&Limits::build()) };
    let node = cluster.place(&ask).map_err(StepError::NoNode)?;
    let image = image_on(state, node);
    let (source, bytes) = archive(state, &repository, &commit).await?;
    let _using = state.retention.using().await;
    if !state.images.has(&source) {
        return Err(StepError::Collected);
    }
    let last = state.store.last_success(app.id).await?;
    let cache = spec::cache(last.as_ref(), image.as_ref()).filter(|package| state.images.has(package));
    let spec = spec::spec(&Wanted {
        app: &app.name,
        source: &source,
        image: image.as_ref(),
        cache,
        gem_mirror: state.config.gem_mirror.as_deref(),
        settings: &state.config.builds,
    })?;
    let instance = spec.id;
    let handed = Handed { node, spec, processes: checked.processes.commands.clone() };
    let framework = checked.lock.framework().map(|name| format!(", {name}")).unwrap_or_default();
    let mut lines = vec![
        format!("source {} at commit {}{framework}", size(bytes), commit.short()),
        format!("process types: {}", checked.processes.types()),
    ];
    lines.extend(checked.processes.warnings.iter().map(|warning| format!("warning: {warning}")));
    if !checked.processes.commands.keys().any(|kind| kind.is_web() || app.formation.get(kind) > Some(&0))
        && let Some(owner) = state.store.user(app.owner).await?
    {
        lines.push(format!("to run it: {}", without_web(owner.plan, checked.processes.commands.keys())));
    }
    if let (Some(_), Some(release)) = (cache, last.as_ref().and_then(|last| last.release)) {
        lines.push(format!("gems of {release} are at hand"));
    }
    for line in lines {
        say(&state.logs, build.id, app.id, &line);
    }
    // After what was said: from here on the container writes into the same log.
    if !state.store.start_build(build.id, &handed).await? {
        // Cancelled meanwhile.
        return Ok(());
    }
    tracing::info!(app = %app.name, build = %build.id, %instance, %node, bytes, "build started");
    state.wake.nodes.wake();
    Ok(())
}

/// The digest of the build image on the node.
fn image_on(state: &AppState, node: NodeId) -> Option<Digest> {
    let nodes = state.observed.nodes();
    let node = nodes.iter().find(|seen| seen.info.id == node)?;
    node.info.images.iter().find(|image| image.name.as_str() == BUILD_IMAGE).map(|image| image.digest.clone())
}

/// Reads what is checked of the commit.
async fn files(repository: &Repository, commit: &Commit) -> Result<SourceFiles, StepError> {
    let read =
        async |path: &'static str, cap: usize| match repository.read_file(commit, path, cap as u64).await {
            Err(GitError::NotAFile { .. }) => Err(StepError::Failed(format!("{path} is no regular file"))),
            Err(GitError::TooLarge { .. }) => {
                Err(StepError::Failed(format!("{path} is larger than {cap} bytes")))
            }
            other => Ok(other?),
        };
    let cached = repository.read_file(commit, "vendor/cache", 1 << 20).await;
    Ok(SourceFiles {
        cached_gems: matches!(cached, Err(GitError::NotAFile { .. })),
        // Its content is for Bundler, in the sandbox.
        gemfile: read("Gemfile", 1 << 20).await?.is_some(),
        lock: read("Gemfile.lock", lockfile::MAX_BYTES).await?,
        procfile: read("Procfile", procfile::MAX_BYTES).await?,
        config_ru: read("config.ru", 1 << 20).await?.is_some(),
        submodules: read(".gitmodules", 1 << 20).await?.is_some(),
    })
}

/// Stores the archive of the commit; its digest and size in bytes.
async fn archive(
    state: &AppState,
    repository: &Repository,
    commit: &Commit,
) -> Result<(Digest, u64), StepError> {
    let limit = state.config.builds.source_bytes;
    let images = state.images.clone();
    let workshop = tokio::task::spawn_blocking(move || images.workshop()).await??;
    let path = workshop.path().join("source.tar");
    let mut file = tokio::fs::File::create_new(&path).await.map_err(StepError::file("make", &path))?;
    let bytes = match repository.archive(commit, &mut file, limit).await {
        Err(GitError::TooLarge { .. }) => {
            return Err(StepError::Failed(format!("the source is larger than {}", size(limit))));
        }
        other => other?,
    };
    drop(file);
    let images = state.images.clone();
    let stored = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(&path).map_err(StepError::file("read", &path))?;
        Ok::<_, StepError>(images.put(file, limit)?)
    })
    .await??;
    drop(workshop);
    Ok((stored, bytes))
}
