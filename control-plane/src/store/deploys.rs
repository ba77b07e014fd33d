//! Deploys: each attempt to bring an app to what is wanted of it. A new one supersedes the one under
//! way in the same transaction that writes what is wanted, so at most one deploy of an app runs, and
//! whoever reads a deploy reads an app that is at least as new. Within an app their times only grow,
//! also when the clock is set back: "later" is decided by them.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Duration, Utc};
use mogok_api::control::DeployState;
use mogok_api::id::{AppId, DeployId, ReleaseId};
use mogok_api::name::ReleaseNumber;
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, failed, from_micros, now, parsed, parsed_opt, time, time_opt, to_micros};

/// Ended deploys that an app keeps.
const KEPT: i64 = 200;

/// What the developer (or a build) did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeployAction {
    Start,
    Stop,
    /// Every instance is replaced by a new one of the same release.
    Restart,
    Scale,
    Config,
    Rollback,
    /// A build made a release.
    Release,
}

impl fmt::Display for DeployAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Scale => "scale",
            Self::Config => "config",
            Self::Rollback => "rollback",
            Self::Release => "release",
        })
    }
}

/// A text that is no [`DeployAction`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a deploy action")]
pub struct InvalidAction;

impl FromStr for DeployAction {
    type Err = InvalidAction;
    fn from_str(text: &str) -> Result<Self, InvalidAction> {
        Ok(match text {
            "start" => Self::Start,
            "stop" => Self::Stop,
            "restart" => Self::Restart,
            "scale" => Self::Scale,
            "config" => Self::Config,
            "rollback" => Self::Rollback,
            "release" => Self::Release,
            _ => return Err(InvalidAction),
        })
    }
}

/// A deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeployRow {
    pub id: DeployId,
    pub app: AppId,
    pub state: DeployState,
    pub action: DeployAction,
    pub release: Option<ReleaseId>,
    /// The number of `release`.
    pub number: Option<ReleaseNumber>,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    /// What is being waited for, or why it failed.
    pub message: Option<String>,
}

fn state_text(state: DeployState) -> &'static str {
    match state {
        DeployState::Running => "running",
        DeployState::Succeeded => "succeeded",
        DeployState::Failed => "failed",
        DeployState::Superseded => "superseded",
    }
}

fn state(row: &AnyRow) -> Result<DeployState, StoreError> {
    let text: String = row.try_get("state").map_err(failed("read the state of a deploy"))?;
    [DeployState::Running, DeployState::Succeeded, DeployState::Failed, DeployState::Superseded]
        .into_iter()
        .find(|state| state_text(*state) == text)
        .ok_or(StoreError::Corrupt { column: "deploy state", value: text })
}

impl DeployRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let number: Option<i64> = row.try_get("number").map_err(failed("read a release number"))?;
        Ok(Self {
            id: parsed(row, "id")?,
            app: parsed(row, "app_id")?,
            state: state(row)?,
            action: parsed(row, "action")?,
            release: parsed_opt(row, "release_id")?,
            number: number.and_then(|number| u32::try_from(number).ok()).and_then(ReleaseNumber::new),
            created_at: time(row, "created_at")?,
            ended_at: time_opt(row, "ended_at")?,
            message: row.try_get("message").map_err(failed("read the message of a deploy"))?,
        })
    }
}

/// Begins a deploy of the app's current release, and supersedes the one that runs. Belongs into the
/// transaction that changes what is wanted; the app's row must be locked in it ([`super::apps::lock`]).
/// After the commit wake `reconcile` and `deploys`.
pub async fn insert(
    tx: &mut Transaction<'static, Any>,
    app: AppId,
    action: DeployAction,
) -> Result<DeployRow, StoreError> {
    let last: Option<i64> = sqlx::query_scalar("SELECT MAX(created_at) FROM deploys WHERE app_id = $1")
        .bind(app.to_string())
        .fetch_one(&mut **tx)
        .await
        .map_err(failed("find the last deploy"))?;
    let mut at = now();
    if let Some(last) = last {
        at = at.max(from_micros("created_at", last)? + Duration::microseconds(1));
    }
    sqlx::query(
        "UPDATE deploys SET state = 'superseded', ended_at = $1, message = NULL \
         WHERE app_id = $2 AND state = 'running'",
    )
    .bind(to_micros(at))
    .bind(app.to_string())
    .execute(&mut **tx)
    .await
    .map_err(failed("supersede a deploy"))?;
    let id = DeployId::new();
    sqlx::query(
        "INSERT INTO deploys (id, app_id, state, action, release_id, created_at) \
         SELECT $1, a.id, 'running', $2, a.current_release, $3 FROM apps a WHERE a.id = $4",
    )
    .bind(id.to_string())
    .bind(action.to_string())
    .bind(to_micros(at))
    .bind(app.to_string())
    .execute(&mut **tx)
    .await
    .map_err(failed("begin a deploy"))?;
    sqlx::query(
        "DELETE FROM deploys WHERE app_id = $1 AND created_at < (SELECT MIN(created_at) FROM \
         (SELECT created_at FROM deploys WHERE app_id = $1 ORDER BY created_at DESC LIMIT $2) kept)",
    )
    .bind(app.to_string())
    .bind(KEPT)
    .execute(&mut **tx)
    .await
    .map_err(failed("forget old deploys"))?;
    let row = sqlx::query(
        "SELECT d.*, r.number AS number FROM deploys d \
 LEFT JOIN releases r ON r.id = d.release_id \
 WHERE d.id = $1",
    )
    .bind(id.to_string())
    .fetch_one(&mut **tx)
    .await
    .map_err(failed("read the new deploy"))?;
    DeployRow::read(&row)
}

/// The newest deploy of an app, and since when its instances have to be new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatestDeploy {
    pub deploy: DeployRow,
    /// The time of the last `restart`: an instance of an earlier deploy is an old one.
    pub restarted_at: Option<DateTime<Utc>>,
}

impl Store {
    /// A deploy by its id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn deploy(&self, id: DeployId) -> Result<Option<DeployRow>, StoreError> {
        let row = sqlx::query(
            "SELECT d.*, r.number AS number FROM deploys d \
 LEFT JOIN releases r ON r.id = d.release_id \
 WHERE d.id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find a deploy"))?;
        row.as_ref().map(DeployRow::read).transpose()
    }

    /// The newest deploys of an app, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn deploys(&self, app: AppId, limit: u32) -> Result<Vec<DeployRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT d.*, r.number AS number FROM deploys d \
 LEFT JOIN releases r ON r.id = d.release_id \
 WHERE d.app_id = $1 ORDER BY d.created_at DESC LIMIT $2",
        )
        .bind(app.to_string())
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list deploys"))?;
        rows.iter().map(DeployRow::read).collect()
    }

    /// The newest deploy of every app. Read this before the apps: then each app is at least as new.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn latest_deploys(&self) -> Result<HashMap<AppId, LatestDeploy>, StoreError> {
        let rows = sqlx::query(
            "SELECT d.*, r.number AS number, restart.at AS restarted_at FROM deploys d \
             JOIN (SELECT app_id, MAX(created_at) AS at FROM deploys GROUP BY app_id) latest \
             ON latest.app_id = d.app_id AND latest.at = d.created_at \
             LEFT JOIN (SELECT app_id, MAX(created_at) AS at FROM deploys WHERE action = 'restart' \
             GROUP BY app_id) restart ON restart.app_id = d.app_id \
             LEFT JOIN releases r ON r.id = d.release_id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the latest deploys"))?;
        rows.iter()
            .map(|row| {
                let deploy = DeployRow::read(row)?;
                Ok((deploy.app, LatestDeploy { deploy, restarted_at: time_opt(row, "restarted_at")? }))
            })
            .collect()
    }

    /// Ends a deploy that still runs; one that has ended stays as it is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn end_deploy(
        &self,
        id: DeployId,
        state: DeployState,
        message: Option<&str>,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE deploys SET state = $1, ended_at = $2, message = $3 WHERE id = $4 AND state = 'running'",
        )
        .bind(state_text(state))
        .bind(to_micros(now()))
        .bind(message)
        .bind(id.to_string())
        .execute(&self.pool)
        .await
        .map_err(failed("end a deploy"))?;
        Ok(())
    }

    /// Says what a running deploy waits for.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn note_deploy(&self, id: DeployId, message: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE deploys SET message = $1 WHERE id = $2 AND state = 'running'")
            .bind(message)
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("note what a deploy waits for"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::begin;
    use super::*;

    #[tokio::test]
    async fn a_new_deploy_supersedes_and_comes_later_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Store::sqlite_url(&dir.path().join("mogok.db"))).await.unwrap();
        let user = store.create_user("a@example.com", "hash").await.unwrap();
        let app = store.create_app(user.id, &"fugafuga".parse().unwrap(), "secret").await.unwrap();
        let begin_deploy = async |action| {
            let mut tx = begin(&store).await.unwrap();
            let deploy = insert(&mut tx, app.id, action).await.unwrap();
            tx.commit().await.unwrap();
            deploy
        };
        let restart = begin_deploy(DeployAction::Restart).await;
        let future = to_micros(now()) + 3_600_000_000;
        sqlx::query("UPDATE deploys SET created_at = $1").bind(future).execute(&store.pool).await.unwrap();
        let scale = begin_deploy(DeployAction::Scale).await;
        let latest = store.latest_deploys().await.unwrap().remove(&app.id).unwrap();
        assert_eq!(latest.deploy, scale);
        assert!(latest.restarted_at.unwrap() < scale.created_at);
        let restart = store.deploy(restart.id).await.unwrap().unwrap();
        assert_eq!(restart.state, DeployState::Superseded);
        store.end_deploy(restart.id, DeployState::Succeeded, None).await.unwrap();
        assert_eq!(store.deploy(restart.id).await.unwrap().unwrap().state, DeployState::Superseded);
        store.end_deploy(scale.id, DeployState::Failed, Some("no")).await.unwrap();
        assert_eq!(store.deploys(app.id, 1).await.unwrap()[0].message.as_deref(), Some("no"));
        for _ in 0..KEPT + 5 {
            begin_deploy(DeployAction::Scale).await;
        }
        assert_eq!(store.deploys(app.id, 1000).await.unwrap().len(), usize::try_from(KEPT).unwrap());
    }
}
