//! The bare repositories, one per app at `STATE/repos/<app id>.git`, made at the first use and moved
//! into place whole. What counts is in git's settings (`process`), not in the repository's own.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mogok_api::id::AppId;

use super::process::Git;
use super::{GitError, maintain};
use crate::turn::Turns;

/// How long a short git operation may take.
pub(super) const QUICK: Duration = Duration::from_secs(30);

/// Transfers at once, in all and of one account.
const TRANSFERS: usize = 24;
const TRANSFERS_PER_USER: usize = 4;

/// The programs git runs at a push: which references it may change, and what the developer reads.
const HOOKS: &[(&str, &str)] = &[
    ("pre-receive", include_str!("hooks/pre-receive")),
    ("post-receive", include_str!("hooks/post-receive")),
];

/// How large things may get, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// One push.
    pub(super) push: u64,
    /// A repository, before a push to it.
    pub(super) repository: u64,
}

/// All repositories; cheap to clone.
#[derive(Debug, Clone)]
pub struct Repositories {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    hooks: PathBuf,
    limits: Limits,
    turns: Arc<Turns>,
    /// Who changes a repository holds its lock: a push, housekeeping, making and removing it.
    locks: Mutex<HashMap<AppId, Arc<tokio::sync::Mutex<()>>>>,
}

/// One app's repository.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(super) path: PathBuf,
}

impl Repositories {
    /// The repositories below `state_dir`; a push may have `push_limit` bytes.
    ///
    /// # Errors
    /// When the directories cannot be made or cleaned.
    pub fn open(state_dir: &Path, push_limit: u64) -> Result<Self, GitError> {
        // GIT_DIR and core.hooksPath are read from other directories than ours.
        let state_dir =
            std::path::absolute(state_dir).map_err(GitError::io("find the state directory", state_dir))?;
        let (root, hooks) = (state_dir.join("repos"), state_dir.join("git-hooks"));
        for dir in [&root, &hooks] {
            std::fs::create_dir_all(dir).map_err(GitError::io("make the directory", dir))?;
        }
        for (name, script) in HOOKS {
            let (path, new) = (hooks.join(name), hooks.join(format!(".{name}.new")));
            std::fs::write(&new, script).map_err(GitError::io("write the hook", &new))?;
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))
                .map_err(GitError::io("make executable the hook", &new))?;
            std::fs::rename(&new, &path).map_err(GitError::io("place the hook", &path))?;
        }
        // Half-made and half-removed repositories of an earlier life.
        let entries = std::fs::read_dir(&root).map_err(GitError::io("list", &root))?;
        for entry in entries {
            let entry = entry.map_err(GitError::io("list", &root))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                let path = entry.path();
                std::fs::remove_dir_all(&path).map_err(GitError::io("remove", &path))?;
            }
        }
        let limits = Limits { push: push_limit, repository: push_limit.saturating_mul(2) };
        let turns = Arc::new(Turns::new(TRANSFERS, TRANSFERS_PER_USER));
        let inner = Inner { root, hooks, limits, turns, locks: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(super) fn limits(&self) -> Limits {
        self.inner.limits
    }

    pub(super) fn hooks(&self) -> &Path {
        &self.inner.hooks
    }

    pub(super) fn turns(&self) -> &Arc<Turns> {
        &self.inner.turns
    }

    /// The lock that changes of this app's repository hold.
    pub(super) fn lock_of(&self, app: AppId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.inner.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(app).or_default())
    }

    fn path(&self, app: AppId) -> PathBuf {
        self.inner.root.join(format!("{app}.git"))
    }

    /// The app's repository, made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn repository(&self, app: AppId) -> Result<Repository, GitError> {
        let path = self.path(app);
        if path.is_dir() {
            return Ok(Repository { path });
        }
        let new = self.inner.root.join(format!(".new-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&new).map_err(GitError::io("make the directory", &new))?;
        let made = Git::new(&new, "init")
            .args(["--quiet", "--bare", "--template=", "--initial-branch=master", "."])
            .output(1024, QUICK)
            .await?;
        if !made.status.success() {
            let (operation, message) = ("init", made.message);
            return Err(GitError::Failed { operation, path: new, message });
        }
        if let Err(error) = std::fs::rename(&new, &path) {
            std::fs::remove_dir_all(&new).map_err(GitError::io("remove", &new))?;
            // Somebody else was faster: theirs is as empty as ours.
            if !path.is_dir() {
                return Err(GitError::io("place the repository", &path)(error));
            }
        }
        Ok(Repository { path })
    }

    /// Removes the app's repository, after a push under way; nothing to remove is no error.
    ///
    /// # Errors
    /// When files of it stay.
    pub async fn remove(&self, app: AppId) -> Result<(), GitError> {
        let lock = self.lock_of(app);
        let _held = lock.lock().await;
        let (path, trash) = (self.path(app), self.inner.root.join(format!(".old-{app}")));
        match std::fs::rename(&path, &trash) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.map_err(GitError::io("remove the repository", &path))?,
        }
        maintain::remove_tree(trash).await
    }
}
