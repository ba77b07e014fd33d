//! Builds: queued, running, then ended for good. Every move names the state it comes from, so whoever
//! loses a race (a cancel against a success, two runners) changes nothing and is told so.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use mogok_api::control::{Build, BuildState};
use mogok_api::id::{AppId, BuildId, InstanceId, NodeId};
use mogok_api::instance::InstanceSpec;
use mogok_api::name::{Digest, ProcessType, ReleaseNumber};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{
    Store, StoreError, apps, begin, failed, flag, json, now, parsed, parsed_opt, time, time_opt, to_micros,
};

mod end;

pub use end::{Success, SuccessError};

/// Ended builds that an app keeps.
pub const KEPT: u32 = 50;

/// A build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRow {
    pub id: BuildId,
    pub app: AppId,
    pub state: BuildState,
    /// Full hash of the commit.
    pub commit: String,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    /// Its app is being destroyed: it is to be cancelled.
    pub cancel_requested: bool,
    pub reason: Option<String>,
    pub release: Option<ReleaseNumber>,
    pub package: Option<Digest>,
    pub package_bytes: Option<u64>,
    /// Absent until it was handed to a node.
    pub handed: Option<Handed>,
}

/// What was handed to which node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    pub node: NodeId,
    pub spec: InstanceSpec,
    /// The process types of the commit.
    pub processes: BTreeMap<ProcessType, String>,
}

/// Why a build was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateBuildError {
    #[error("build {running} of the app is under way")]
    Busy { running: BuildId },
    #[error("the app is gone")]
    NoApp,
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn state_text(state: BuildState) -> &'static str {
    match state {
        BuildState::Queued => "queued",
        BuildState::Running => "running",
        BuildState::Succeeded => "succeeded",
        BuildState::Failed => "failed",
        BuildState::Cancelled => "cancelled",
    }
}

fn state(row: &AnyRow) -> Result<BuildState, StoreError> {
    let text: String = row.try_get("state").map_err(failed("read the state of a build"))?;
    [
        BuildState::Queued,
        BuildState::Running,
        BuildState::Succeeded,
        BuildState::Failed,
        BuildState::Cancelled,
    ]
    .into_iter()
    .find(|state| state_text(*state) == text)
    .ok_or(StoreError::Corrupt { column: "build state", value: text })
}

/// A number column that may be NULL.
fn number_opt(row: &AnyRow, column: &'static str) -> Result<Option<u64>, StoreError> {
    let value: Option<i64> = row.try_get(column).map_err(failed("read a number column"))?;
    let parse = |value: i64| {
        u64::try_from(value).map_err(|_| StoreError::Corrupt { column, value: value.to_string() })
    };
    value.map(parse).transpose()
}

impl BuildRow {
    /// The blobs that it was made of and what it made: source, previous package, package.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let spec = self.handed.as_ref().map(|handed| &handed.spec);
        let sources = spec.into_iter().flat_map(|spec| &spec.blobs).map(|blob| &blob.digest);
        let mounts = spec.into_iter().flat_map(|spec| &spec.package_mounts).map(|mount| &mount.digest);
        sources.chain(mounts).chain(&self.package).cloned()
    }

    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let release = number_opt(row, "release_number")?
            .map(|value| {
                u32::try_from(value)
                    .ok()
                    .and_then(ReleaseNumber::new)
                    .ok_or_else(|| StoreError::Corrupt { column: "release_number", value: value.to_string() })
            })
            .transpose()?;
        let handed = match parsed_opt(row, "node_id")? {
            Some(node) => Some(Handed { node, spec: json(row, "spec")?, processes: json(row, "processes")? }),
            None => None,
        };
        Ok(Self {
            id: parsed(row, "id")?,
            app: parsed(row, "app_id")?,
            state: state(row)?,
            commit: row.try_get("commit_hash").map_err(failed("read a commit"))?,
            created_at: time(row, "created_at")?,
            started_at: time_opt(row, "started_at")?,
            ended_at: time_opt(row, "ended_at")?,
            cancel_requested: flag(row, "cancel_requested")?,
            reason: row.try_get("reason").map_err(failed("read a reason"))?,
            release,
            package: parsed_opt(row, "package")?,
            package_bytes: number_opt(row, "package_bytes")?,
            handed,
        })
    }

    /// The build as the API shows it.
    #[must_use]
    pub fn shown(&self) -> Build {
        Build {
            id: self.id,
            state: self.state,
            commit: self.commit.clone(),
            created_at: self.created_at,
            started_at: self.started_at,
            ended_at: self.ended_at,
            reason: self.reason.clone(),
            release: self.release,
            package: self.package.clone(),
            package_bytes: self.package_bytes,
        }
    }

    /// Its container.
    #[must_use]
    pub fn instance(&self) -> Option<InstanceId> {
        self.handed.as_ref().map(|handed| handed.spec.id)
    }
}

impl Store {
    /// Queues a build of a commit (its full hash). An app has one build under way at most.
    ///
    /// # Errors
    /// [`CreateBuildError`] says which rule it breaks.
    pub async fn create_build(&self, app: AppId, commit: &str) -> Result<BuildRow, CreateBuildError> {
        let mut tx = begin(self).await?;
        // With the app's row held, nothing comes between the look and the insert; the unique index stands behind it.
        match apps::lock(&mut tx, app).await? {
            Some(row) if !row.destroying => {}
            _ => return Err(CreateBuildError::NoApp),
        }
        let under_way =
            sqlx::query("SELECT id FROM builds WHERE app_id = $1 AND state IN ('queued', 'running')")
                .bind(app.to_string())
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed("look for a running build"))?;
        if let Some(row) = under_way {
            return Err(CreateBuildError::Busy { running: parsed(&row, "id")? });
        }
        let id = BuildId::new();
        sqlx::query(
            "INSERT INTO builds (id, app_id, state, commit_hash, created_at) \
             VALUES ($1, $2, 'queued', $3, $4)",
        )
        .bind(id.to_string())
        .bind(app.to_string())
        .bind(commit)
        .bind(to_micros(now()))
        .execute(&mut *tx)
        .await
        .map_err(failed("queue a build"))?;
        let row = sqlx::query("SELECT * FROM builds WHERE id = $1")
            .bind(id.to_string())
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("read the new build"))?;
        tx.commit().await.map_err(failed("queue a build"))?;
        Ok(BuildRow::read(&row)?)
    }

    /// A build by its id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn build(&self, id: BuildId) -> Result<Option<BuildRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM builds WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find a build"))?;
        row.as_ref().map(BuildRow::read).transpose()
    }

    /// The newest builds of an app, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn builds(&self, app: AppId, limit: u32) -> Result<Vec<BuildRow>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM builds WHERE app_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2")
                .bind(app.to_string())
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
                .await
                .map_err(failed("list builds"))?;
        rows.iter().map(BuildRow::read).collect()
    }

    /// The builds that have not ended, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open_builds(&self) -> Result<Vec<BuildRow>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM builds WHERE state IN ('queued', 'running') ORDER BY created_at, id")
                .fetch_all(&self.pool)
                .await
                .map_err(failed("list the builds under way"))?;
        rows.iter().map(BuildRow::read).collect()
    }

    /// The newest build of an app that made a package.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn last_success(&self, app: AppId) -> Result<Option<BuildRow>, StoreError> {
        let row = sqlx::query(
            "SELECT * FROM builds WHERE app_id = $1 AND state = 'succeeded' \
             ORDER BY created_at DESC, id DESC LIMIT 1",
        )
        .bind(app.to_string())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find the last successful build"))?;
        row.as_ref().map(BuildRow::read).transpose()
    }

    /// Moves a queued build to a node: from now on its container is wanted there. False when it is no
    /// longer queued. Wake `nodes` afterwards.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn start_build(&self, id: BuildId, handed: &Handed) -> Result<bool, StoreError> {
        let spec = serde_json::to_string(&handed.spec)
            .map_err(|source| StoreError::Encode { column: "spec", source })?;
        let processes = serde_json::to_string(&handed.processes)
            .map_err(|source| StoreError::Encode { column: "processes", source })?;
        let done = sqlx::query(
            "UPDATE builds SET state = 'running', started_at = $1, node_id = $2, instance_id = $3, spec = $4, \
             processes = $5 WHERE id = $6 AND state = 'queued'",
        )
        .bind(to_micros(now()))
        .bind(handed.node.to_string())
        .bind(handed.spec.id.to_string())
        .bind(spec)
        .bind(processes)
        .bind(id.to_string())
        .execute(&self.pool)
        .await
        .map_err(failed("start a build"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Forgets the ended builds of an app beyond the newest [`KEPT`]; returns their ids.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_builds(&self, app: AppId) -> Result<Vec<BuildId>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM builds WHERE app_id = $1 AND state NOT IN ('queued', 'running') \
             ORDER BY created_at DESC, id DESC LIMIT 1000 OFFSET $2",
        )
        .bind(app.to_string())
        .bind(i64::from(KEPT))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list old builds"))?;
        let mut forgotten = Vec::new();
        for row in &rows {
            let id: BuildId = parsed(row, "id")?;
            sqlx::query("DELETE FROM builds WHERE id = $1")
                .bind(id.to_string())
                .execute(&self.pool)
                .await
                .map_err(failed("forget a build"))?;
            forgotten.push(id);
        }
        Ok(forgotten)
    }

    /// The packages that someone may still need: those of the newest `releases` releases of each app, of its
    /// current release, of every instance, and of its last successful build (the next one's cache).
    ///
    /// # Errors
    /// When the store fails.
    pub async fn packages_in_use(&self, releases: u32) -> Result<Vec<Digest>, StoreError> {
        let rows = sqlx::query(
            "SELECT r.package AS package FROM releases r JOIN apps a ON a.id = r.app_id WHERE \
             (a.destroying = 0 AND \
             (SELECT COUNT(*) FROM releases n WHERE n.app_id = r.app_id AND n.number > r.number) < $1) \
             OR (a.destroying = 0 AND a.current_release = r.id) \
             OR EXISTS (SELECT 1 FROM instances i WHERE i.release_id = r.id) \
             UNION SELECT b.package AS package FROM builds b JOIN apps a ON a.id = b.app_id \
             WHERE a.destroying = 0 AND b.state = 'succeeded' AND NOT EXISTS \
             (SELECT 1 FROM builds n WHERE n.app_id = b.app_id AND n.state = 'succeeded' \
             AND n.created_at > b.created_at)",
        )
        .bind(i64::from(releases))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the packages in use"))?;
        rows.iter().map(|row| parsed(row, "package")).collect()
    }

    /// Every package that a release of the app has.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn packages_of(&self, app: AppId) -> Result<Vec<Digest>, StoreError> {
        let rows = sqlx::query("SELECT DISTINCT package FROM releases WHERE app_id = $1")
            .bind(app.to_string())
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the packages of an app"))?;
        rows.iter().map(|row| parsed(row, "package")).collect()
    }
}

#[cfg(test)]
mod tests;
