//! Housekeeping of a repository, done while its lock is held: what a killed git left behind goes, and
//! many packs become one. References under `refs/mogok/` keep what a release was built from.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::GitError;
use super::process::Git;
use super::repository::Repository;

/// No git process of ours lives longer, so older lock files and quarantines belong to nobody.
const STALE: Duration = Duration::from_secs(30 * 60);
/// Packs from which on they are made into one.
const PACKS: usize = 30;
/// How long that may take.
const REPACK_TIME: Duration = Duration::from_secs(5 * 60);
/// Entries that one look at a repository takes at most.
const ENTRIES: usize = 100_000;

/// What a look at the repository's files gives.
#[derive(Debug, Default)]
struct Survey {
    bytes: u64,
    packs: usize,
    stale: Vec<PathBuf>,
}

impl Repository {
    /// Bytes of the repository on disk, after what a killed push left was removed.
    pub(super) async fn clean(&self) -> Result<u64, GitError> {
        let path = self.path.clone();
        run(&self.path, move || {
            let survey = survey(&path)?;
            for stale in survey.stale {
                tracing::info!(path = %stale.display(), "removing what a killed git left");
                let removed = if stale.is_dir() {
                    std::fs::remove_dir_all(&stale)
                } else {
                    std::fs::remove_file(&stale)
                };
                removed.map_err(GitError::io("remove", &stale))?;
            }
            Ok(survey.bytes)
        })
        .await
    }

    /// Makes many packs one and loose references a file.
    pub(super) async fn tidy(&self) -> Result<(), GitError> {
        let path = self.path.clone();
        let packs = run(&self.path, move || Ok(survey(&path)?.packs)).await?;
        if packs < PACKS {
            return Ok(());
        }
        for git in [
            Git::new(&self.path, "pack-refs").args(["--all", "--prune"]),
            Git::new(&self.path, "repack").args(["-a", "-d", "-q"]),
        ] {
            let done = git.output(64 * 1024, REPACK_TIME).await?;
            if !done.status.success() {
                let (path, message) = (self.path.clone(), done.message);
                return Err(GitError::Failed { operation: "housekeeping", path, message });
            }
        }
        Ok(())
    }
}

async fn run<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    let stopped = |error| GitError::io("look through", path)(std::io::Error::other(error));
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}

fn survey(root: &Path) -> Result<Survey, GitError> {
    let mut survey = Survey::default();
    let mut folders = vec![root.to_owned()];
    let mut seen = 0_usize;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(GitError::io("list", &folder))? {
            let entry = entry.map_err(GitError::io("list", &folder))?;
            let path = entry.path();
            // Gone meanwhile: a reader's git tidies its own temporary files.
            let Ok(metadata) = entry.metadata() else { continue };
            seen += 1;
            if seen > ENTRIES {
                return Ok(survey);
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let temporary = name.ends_with(".lock") || name.starts_with("tmp_") || name.starts_with(".tmp-");
            let age = metadata.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            if temporary && age.is_some_and(|age| age > STALE) {
                survey.stale.push(path);
                continue;
            }
            if metadata.is_dir() {
                folders.push(path);
                continue;
            }
            survey.bytes += metadata.len();
            survey.packs += usize::from(name.ends_with(".pack"));
        }
    }
    Ok(survey)
}

/// Removes a directory with all it holds; what is not there is no error. A git that still wrote into it
/// may put a file into a directory that was just emptied, so it is tried a few times.
pub(super) async fn remove_tree(path: PathBuf) -> Result<(), GitError> {
    let at = path.clone();
    run(&at, move || {
        let mut result = Ok(());
        for _ in 0..5 {
            result = match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
            if result.is_ok() {
                break;
            }
        }
        result.map_err(GitError::io("remove", &path))
    })
    .await
}
