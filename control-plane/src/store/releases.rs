//! Releases: package, base image, config and process types, numbered within their app. A row never
//! changes after it was written; a rollback is a new one.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use mogok_api::control::Config;
use mogok_api::id::{AppId, ReleaseId};
use mogok_api::name::{Digest, ImageName, ProcessType, ReleaseNumber};
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, begin, failed, json, now, number, parsed, parsed_opt, time, to_micros};

/// Releases that an app keeps; their packages go earlier.
const KEPT: i64 = 500;

/// A release.
#[derive(Clone, PartialEq, Eq)]
pub struct ReleaseRow {
    pub id: ReleaseId,
    pub app: AppId,
    pub number: ReleaseNumber,
    pub created_at: DateTime<Utc>,
    pub description: String,
    /// Full hash of the commit it was built from.
    pub commit: Option<String>,
    pub package: Digest,
    pub image: ImageName,
    pub image_digest: Option<Digest>,
    /// Process type -> command line.
    pub processes: BTreeMap<ProcessType, String>,
    pub config: Config,
}

impl fmt::Debug for ReleaseRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReleaseRow")
            .field("id", &self.id)
            .field("app", &self.app)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// What a new release is made of; number, time and (for a build) config come from the store.
#[derive(Clone, PartialEq, Eq)]
pub struct NewRelease {
    /// `build 4f2a91c`, `set RAILS_LOG_LEVEL`, `rollback to v3`.
    pub description: String,
    pub commit: Option<String>,
    pub package: Digest,
    pub image: ImageName,
    pub image_digest: Option<Digest>,
    pub processes: BTreeMap<ProcessType, String>,
}

impl NewRelease {
    /// The same package, image and processes as an earlier release.
    pub(crate) fn like(release: &ReleaseRow) -> Self {
        Self {
            description: release.description.clone(),
            commit: release.commit.clone(),
            package: release.package.clone(),
            image: release.image.clone(),
            image_digest: release.image_digest.clone(),
            processes: release.processes.clone(),
        }
    }
}

/// Why no release was made.
#[derive(Debug, thiserror::Error)]
pub enum CreateReleaseError {
    #[error("the app is gone")]
    NoApp,
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn release_number(row: &AnyRow) -> Result<ReleaseNumber, StoreError> {
    let value = number(row, "number")?;
    u32::try_from(value)
        .ok()
        .and_then(ReleaseNumber::new)
        .ok_or_else(|| StoreError::Corrupt { column: "number", value: value.to_string() })
}

impl ReleaseRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            app: parsed(row, "app_id")?,
            number: release_number(row)?,
            created_at: time(row, "created_at")?,
            description: row.try_get("description").map_err(failed("read a description"))?,
            commit: row.try_get("commit_hash").map_err(failed("read a commit"))?,
            package: parsed(row, "package")?,
            image: parsed(row, "image")?,
            image_digest: parsed_opt(row, "image_digest")?,
            processes: json(row, "processes")?,
            config: json(row, "config")?,
        })
    }
}

/// Writes the app's next release, makes it the current one, and returns it. The app's row must be
/// locked in this transaction ([`super::apps::lock`]).
pub(crate) async fn insert(
    tx: &mut Transaction<'static, Any>,
    app: AppId,
    new: &NewRelease,
    config: &Config,
) -> Result<ReleaseRow, StoreError> {
    let last: Option<i64> = sqlx::query_scalar("SELECT MAX(number) FROM releases WHERE app_id = $1")
        .bind(app.to_string())
        .fetch_one(&mut **tx)
        .await
        .map_err(failed("number a release"))?;
    let number = match last {
        None => ReleaseNumber::FIRST,
        Some(last) => u32::try_from(last)
            .ok()
            .and_then(ReleaseNumber::new)
            .ok_or_else(|| StoreError::Corrupt { column: "number", value: last.to_string() })?
            .next(),
    };
    let release = ReleaseRow {
        id: ReleaseId::new(),
        app,
        number,
        created_at: now(),
        description: new.description.clone(),
        commit: new.commit.clone(),
        package: new.package.clone(),
        image: new.image.clone(),
        image_digest: new.image_digest.clone(),
        processes: new.processes.clone(),
        config: config.clone(),
    };
    let text = |source| StoreError::Encode { column: "a release", source };
    sqlx::query(
        "INSERT INTO releases (id, app_id, number, created_at, description, commit_hash, package, image, \
         image_digest, processes, config) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(release.id.to_string())
    .bind(app.to_string())
    .bind(i64::from(number.get()))
    .bind(to_micros(release.created_at))
    .bind(&release.description)
    .bind(&release.commit)
    .bind(release.package.as_str())
    .bind(release.image.as_str())
    .bind(release.image_digest.as_ref().map(|digest| digest.as_str()))
    .bind(serde_json::to_string(&release.processes).map_err(text)?)
    .bind(serde_json::to_string(&release.config).map_err(text)?)
    .execute(&mut **tx)
    .await
    .map_err(failed("write a release"))?;
    sqlx::query("UPDATE apps SET current_release = $1 WHERE id = $2")
        .bind(release.id.to_string())
        .bind(app.to_string())
        .execute(&mut **tx)
        .await
        .map_err(failed("make a release current"))?;
    sqlx::query(
        "DELETE FROM releases WHERE app_id = $1 AND number <= $2 \
         AND id NOT IN (SELECT release_id FROM instances WHERE app_id = $1)",
    )
    .bind(app.to_string())
    .bind(i64::from(number.get()) - KEPT)
    .execute(&mut **tx)
    .await
    .map_err(failed("forget old releases"))?;
    Ok(release)
}

/// What a build does when it succeeds: writes the release with the app's config as it is now, and the
/// deploy of it when the app runs (the caller wakes the reconciler after the commit). In the caller's
/// transaction, so that the build's end is written with it or not at all.
///
/// # Errors
/// [`CreateReleaseError::NoApp`] when the app is gone or being destroyed.
pub(crate) async fn create_in(
    tx: &mut Transaction<'static, Any>,
    app: AppId,
    new: &NewRelease,
) -> Result<ReleaseRow, CreateReleaseError> {
    let row = super::apps::lock(tx, app).await?.ok_or(CreateReleaseError::NoApp)?;
    if row.destroying {
        return Err(CreateReleaseError::NoApp);
    }
    let release = insert(tx, app, new, &row.config).await?;
    if row.running {
        super::deploys::insert(tx, app, super::deploys::DeployAction::Release).await?;
    }
    Ok(release)
}

impl Store {
    /// Makes the app's next release with its config as it is now, in a transaction of its own.
    ///
    /// # Errors
    /// [`CreateReleaseError::NoApp`] when the app is gone or being destroyed.
    pub async fn create_release(
        &self,
        app: AppId,
        new: &NewRelease,
    ) -> Result<ReleaseRow, CreateReleaseError> {
        let mut tx = begin(self).await?;
        let release = create_in(&mut tx, app, new).await?;
        tx.commit().await.map_err(failed("make a release"))?;
        Ok(release)
    }

    /// A release by its id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn release(&self, id: ReleaseId) -> Result<Option<ReleaseRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM releases WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find a release"))?;
        row.as_ref().map(ReleaseRow::read).transpose()
    }

    /// The newest releases of an app, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn releases(&self, app: AppId, limit: u32) -> Result<Vec<ReleaseRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM releases WHERE app_id = $1 ORDER BY number DESC LIMIT $2")
            .bind(app.to_string())
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list releases"))?;
        rows.iter().map(ReleaseRow::read).collect()
    }
}

/// A release of the app by its number, inside a transaction.
pub(super) async fn by_number(
    tx: &mut Transaction<'static, Any>,
    app: AppId,
    number: ReleaseNumber,
) -> Result<Option<ReleaseRow>, StoreError> {
    let row = sqlx::query("SELECT * FROM releases WHERE app_id = $1 AND number = $2")
        .bind(app.to_string())
        .bind(i64::from(number.get()))
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed("find a release"))?;
    row.as_ref().map(ReleaseRow::read).transpose()
}
