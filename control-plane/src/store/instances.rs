//! Instances: the containers the control plane wants on nodes. A row is made when its node is chosen
//! and goes when the node says that nothing of the container is left; in between `wanted` only moves
//! forward. The reconciler alone writes here.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use mogok_api::id::{AppId, BuildId, DeployId, InstanceId, NodeId, ReleaseId};
use mogok_api::instance::InstanceSpec;
use mogok_api::name::ProcessName;
use sqlx::any::AnyRow;

use super::{Store, StoreError, failed, json, now, number, parsed, parsed_opt, time, time_opt, to_micros};

/// What is wanted of an instance; the order is that of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wanted {
    /// On the node, routed when it is up.
    Run,
    /// On the node, out of the routing table, until no router sends to it any more.
    Unroute,
    /// Out of the node's wanted set, until the node says that it is removed.
    Stop,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run => "run",
            Self::Unroute => "unroute",
            Self::Stop => "stop",
        })
    }
}

/// A text that is no [`Wanted`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a wanted state of an instance")]
pub struct InvalidWanted;

impl FromStr for Wanted {
    type Err = InvalidWanted;
    fn from_str(text: &str) -> Result<Self, InvalidWanted> {
        match text {
            "run" => Ok(Self::Run),
            "unroute" => Ok(Self::Unroute),
            "stop" => Ok(Self::Stop),
            _ => Err(InvalidWanted),
        }
    }
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRow {
    pub id: InstanceId,
    pub app: AppId,
    pub release: ReleaseId,
    pub deploy: Option<DeployId>,
    /// The time of its deploy, while that is remembered: says whether a restart came after it.
    pub deployed_at: Option<DateTime<Utc>>,
    pub process: ProcessName,
    pub node: NodeId,
    pub wanted: Wanted,
    pub created_at: DateTime<Utc>,
}

impl InstanceRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        let index = number(row, "process_index")?;
        let index = u32::try_from(index)
            .map_err(|_| StoreError::Corrupt { column: "process_index", value: index.to_string() })?;
        Ok(Self {
            id: parsed(row, "id")?,
            app: parsed(row, "app_id")?,
            release: parsed(row, "release_id")?,
            deploy: parsed_opt(row, "deploy_id")?,
            deployed_at: time_opt(row, "deployed_at")?,
            process: ProcessName { kind: parsed(row, "process_type")?, index },
            node: parsed(row, "node_id")?,
            wanted: parsed(row, "wanted")?,
            created_at: time(row, "created_at")?,
        })
    }
}

/// An instance that is about to be wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInstance {
    pub app: AppId,
    pub release: ReleaseId,
    pub deploy: Option<DeployId>,
    pub process: ProcessName,
    pub node: NodeId,
}

impl Store {
    /// Every instance of the platform.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn all_instances(&self) -> Result<Vec<InstanceRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT i.*, d.created_at AS deployed_at FROM instances i \
 LEFT JOIN deploys d ON d.id = i.deploy_id \
 ORDER BY i.id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list all instances"))?;
        rows.iter().map(InstanceRow::read).collect()
    }

    /// The instances of an app, by process type and number, the older first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn instances_of(&self, app: AppId) -> Result<Vec<InstanceRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT i.*, d.created_at AS deployed_at FROM instances i \
 LEFT JOIN deploys d ON d.id = i.deploy_id \
 WHERE i.app_id = $1 ORDER BY i.process_type, i.process_index, i.id",
        )
        .bind(app.to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the instances of an app"))?;
        rows.iter().map(InstanceRow::read).collect()
    }

    /// The instances that belong into a node's wanted set: those not to be stopped.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn instances_on(&self, node: NodeId) -> Result<Vec<InstanceRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT i.*, d.created_at AS deployed_at FROM instances i \
 LEFT JOIN deploys d ON d.id = i.deploy_id \
 WHERE i.node_id = $1 AND i.wanted <> 'stop' ORDER BY i.id",
        )
        .bind(node.to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the instances of a node"))?;
        rows.iter().map(InstanceRow::read).collect()
    }

    /// The containers of the builds that run on a node.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn build_specs_on(&self, node: NodeId) -> Result<Vec<InstanceSpec>, StoreError> {
        let rows = sqlx::query(
            "SELECT spec FROM builds WHERE node_id = $1 AND state = 'running' AND spec IS NOT NULL ORDER BY id",
        )
        .bind(node.to_string())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list the builds of a node"))?;
        rows.iter().map(|row| json(row, "spec")).collect()
    }

    /// Which app's instance it is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn app_of_instance(&self, id: InstanceId) -> Result<Option<AppId>, StoreError> {
        let row = sqlx::query("SELECT app_id FROM instances WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find an instance"))?;
        row.as_ref().map(|row| parsed(row, "app_id")).transpose()
    }

    /// Which build's container it is, and of which app.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn build_of_instance(&self, id: InstanceId) -> Result<Option<(BuildId, AppId)>, StoreError> {
        let row = sqlx::query("SELECT id, app_id FROM builds WHERE instance_id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find the build of an instance"))?;
        row.as_ref().map(|row| Ok((parsed(row, "id")?, parsed(row, "app_id")?))).transpose()
    }

    /// Wants a new instance.
    ///
    /// # Errors
    /// When the store fails, also because the app is gone.
    pub async fn create_instance(&self, new: &NewInstance) -> Result<InstanceId, StoreError> {
        let id = InstanceId::new();
        sqlx::query(
            "INSERT INTO instances (id, app_id, release_id, deploy_id, process_type, process_index, node_id, \
             wanted, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 'run', $8)",
        )
        .bind(id.to_string())
        .bind(new.app.to_string())
        .bind(new.release.to_string())
        .bind(new.deploy.map(|deploy| deploy.to_string()))
        .bind(new.process.kind.as_str())
        .bind(i64::from(new.process.index))
        .bind(new.node.to_string())
        .bind(to_micros(now()))
        .execute(&self.pool)
        .await
        .map_err(failed("want a new instance"))?;
        Ok(id)
    }

    /// Moves an instance forward to `unroute` or `stop`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn set_wanted(&self, id: InstanceId, wanted: Wanted) -> Result<(), StoreError> {
        sqlx::query("UPDATE instances SET wanted = $1 WHERE id = $2")
            .bind(wanted.to_string())
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("change what is wanted of an instance"))?;
        Ok(())
    }

    /// Forgets an instance of which nothing is left.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_instance(&self, id: InstanceId) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM instances WHERE id = $1")
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("forget an instance"))?;
        Ok(())
    }
}
