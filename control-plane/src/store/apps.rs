//! Apps: who owns them and what is wanted of them. Here an app is made, found and finally removed.

use std::fmt;

use chrono::{DateTime, Utc};
use mogok_api::control::{Config, Formation};
use mogok_api::id::{AppId, ReleaseId, UserId};
use mogok_api::name::{AppName, ReleaseNumber};
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, begin, failed, flag, json, now, parsed, parsed_opt, time, to_micros, users};
use crate::plan::OverPlan;

/// Apps of an account that may wait for their removal; more means something is stuck.
const DESTROYING_PER_USER: u64 = 5;

/// An app as it is wanted.
#[derive(Clone, PartialEq, Eq)]
pub struct AppRow {
    pub id: AppId,
    pub name: AppName,
    pub owner: UserId,
    pub created_at: DateTime<Utc>,
    /// Wanted to run?
    pub running: bool,
    pub formation: Formation,
    /// The next release's config vars.
    pub config: Config,
    pub secret_key_base: String,
    pub current_release: Option<ReleaseId>,
    /// The number of `current_release`.
    pub current_number: Option<ReleaseNumber>,
    /// Its instances are being stopped, then everything of it is removed.
    pub destroying: bool,
}

impl fmt::Debug for AppRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppRow").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why an app was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateAppError {
    #[error("the app name {name} is taken")]
    Taken { name: AppName },
    #[error(transparent)]
    OverPlan(#[from] OverPlan),
    #[error("{count} apps of the account still wait for their removal")]
    Removing { count: u64 },
    #[error("the account does not exist")]
    NoAccount,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AppRow {
    pub(super) fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let number: Option<i64> = row.try_get("current_number").map_err(failed("read a release number"))?;
        let current_number = number
            .map(|number| {
                u32::try_from(number).ok().and_then(ReleaseNumber::new).ok_or_else(|| StoreError::Corrupt {
                    column: "current_number",
                    value: number.to_string(),
                })
            })
            .transpose()?;
        Ok(Self {
            id: parsed(row, "id")?,
            name: parsed(row, "name")?,
            owner: parsed(row, "user_id")?,
            created_at: time(row, "created_at")?,
            running: flag(row, "running")?,
            formation: json(row, "formation")?,
            config: json(row, "config")?,
            secret_key_base: row.try_get("secret_key_base").map_err(failed("read a secret"))?,
            current_release: parsed_opt(row, "current_release")?,
            current_number,
            destroying: flag(row, "destroying")?,
        })
    }
}

/// The app, read inside a transaction that holds its row: nobody changes it until the commit.
pub(super) async fn lock(
    tx: &mut Transaction<'static, Any>,
    id: AppId,
) -> Result<Option<AppRow>, StoreError> {
    // An update that changes nothing takes the row's lock in PostgreSQL and the writer's in SQLite.
    sqlx::query("UPDATE apps SET id = id WHERE id = $1")
        .bind(id.to_string())
        .execute(&mut **tx)
        .await
        .map_err(failed("lock an app"))?;
    let row = sqlx::query(
        "SELECT a.*, r.number AS current_number FROM apps a LEFT JOIN releases r ON r.id = a.current_release \
         WHERE a.id = $1",
    )
    .bind(id.to_string())
    .fetch_optional(&mut **tx)
    .await
    .map_err(failed("find an app"))?;
    row.as_ref().map(AppRow::read).transpose()
}

impl Store {
    /// Makes an app within the limit of its owner's plan.
    ///
    /// # Errors
    /// [`CreateAppError`] says which rule it breaks.
    pub async fn create_app(
        &self,
        owner: UserId,
        name: &AppName,
        secret_key_base: &str,
    ) -> Result<AppRow, CreateAppError> {
        let mut tx = begin(self).await?;
        // Two creations of one account go one after the other, so that the limit holds.
        sqlx::query("UPDATE users SET id = id WHERE id = $1")
            .bind(owner.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed("lock an account"))?;
        let user = sqlx::query("SELECT plan FROM users WHERE id = $1")
            .bind(owner.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed("find an account"))?
            .ok_or(CreateAppError::NoAccount)?;
        let plan = users::plan(&user, "plan")?;
        let rows = sqlx::query("SELECT name, destroying FROM apps WHERE user_id = $1 OR name = $2")
            .bind(owner.to_string())
            .bind(name.as_str())
            .fetch_all(&mut *tx)
            .await
            .map_err(failed("count apps"))?;
        let (mut living, mut removing) = (0_u64, 0_u64);
        for row in &rows {
            let other: AppName = parsed(row, "name")?;
            if other == *name {
                return Err(CreateAppError::Taken { name: other });
            }
            if flag(row, "destroying")? { removing += 1 } else { living += 1 }
        }
        let limit = plan.max_apps();
        if living >= u64::from(limit) {
            return Err(OverPlan::Apps { plan, limit }.into());
        }
        if removing >= DESTROYING_PER_USER {
            return Err(CreateAppError::Removing { count: removing });
        }
        let id = AppId::new();
        sqlx::query(
            "INSERT INTO apps (id, name, user_id, created_at, secret_key_base) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.to_string())
        .bind(name.as_str())
        .bind(owner.to_string())
        .bind(to_micros(now()))
        .bind(secret_key_base)
        .execute(&mut *tx)
        .await
        .map_err(|source| match source.as_database_error() {
            Some(error) if error.is_unique_violation() => CreateAppError::Taken { name: name.clone() },
            _ => StoreError::Query { operation: "create an app", source }.into(),
        })?;
        let app = lock(&mut tx, id).await?.ok_or(CreateAppError::NoAccount)?;
        tx.commit().await.map_err(failed("create an app"))?;
        Ok(app)
    }

    /// An app by its id, also while it is being destroyed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn app(&self, id: AppId) -> Result<Option<AppRow>, StoreError> {
        let row = sqlx::query(
            "SELECT a.*, r.number AS current_number FROM apps a \
             LEFT JOIN releases r ON r.id = a.current_release WHERE a.id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find an app"))?;
        row.as_ref().map(AppRow::read).transpose()
    }

    /// An app by its name, also while it is being destroyed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn app_by_name(&self, name: &AppName) -> Result<Option<AppRow>, StoreError> {
        let row = sqlx::query(
            "SELECT a.*, r.number AS current_number FROM apps a \
             LEFT JOIN releases r ON r.id = a.current_release WHERE a.name = $1",
        )
        .bind(name.as_str())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find an app"))?;
        row.as_ref().map(AppRow::read).transpose()
    }

    /// The apps of an account by name, also those that are being destroyed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn apps_of(&self, owner: UserId) -> Result<Vec<AppRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT a.*, r.number AS current_number FROM apps a \
             LEFT JOIN releases r ON r.id = a.current_release \
             WHERE a.user_id = $1 ORDER BY a.name",
        )
        .bind(owner.to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list apps"))?;
        rows.iter().map(AppRow::read).collect()
    }

    /// Every app of the platform, also those that are being destroyed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn all_apps(&self) -> Result<Vec<AppRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT a.*, r.number AS current_number FROM apps a \
             LEFT JOIN releases r ON r.id = a.current_release ORDER BY a.id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list all apps"))?;
        rows.iter().map(AppRow::read).collect()
    }
}
