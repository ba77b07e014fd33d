//! Nodes: the app servers the platform knows, with what the operator wants of each. A row is made at
//! the first contact and keeps its policy whatever the node does later.

use std::fmt;
use std::str::FromStr;

use mogok_api::id::NodeId;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Store, StoreError, failed, now, parsed, to_micros};

/// What the operator wants of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodePolicy {
    /// Takes new instances.
    Active,
    /// Keeps what it has, takes nothing new.
    Cordoned,
    /// Is being emptied: its instances are replaced by new ones elsewhere.
    Draining,
}

impl fmt::Display for NodePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        })
    }
}

/// A text that is no [`NodePolicy`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a node policy: expected active, cordoned or draining")]
pub struct InvalidPolicy;

impl FromStr for NodePolicy {
    type Err = InvalidPolicy;
    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        match text {
            "active" => Ok(Self::Active),
            "cordoned" => Ok(Self::Cordoned),
            "draining" => Ok(Self::Draining),
            _ => Err(InvalidPolicy),
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    pub id: NodeId,
    /// `unix:/path` or `https://host:port`
    pub address: String,
    pub policy: NodePolicy,
}

impl NodeRow {
    fn read(row: &AnyRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            address: row.try_get("address").map_err(failed("read the address of a node"))?,
            policy: parsed(row, "policy")?,
        })
    }
}

impl Store {
    /// Notes where a node is; one that is new starts as active.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn meet_node(&self, id: NodeId, address: &str) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO nodes (id, address, policy, created_at) VALUES ($1, $2, 'active', $3) \
             ON CONFLICT (id) DO UPDATE SET address = excluded.address",
        )
        .bind(id.to_string())
        .bind(address)
        .bind(to_micros(now()))
        .execute(&self.pool)
        .await
        .map_err(failed("note a node"))?;
        Ok(())
    }

    /// Every node that was ever met.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM nodes ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list the nodes"))?;
        rows.iter().map(NodeRow::read).collect()
    }

    /// Changes what is wanted of a node; false when there is no such node. Wake `reconcile` afterwards.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn set_node_policy(&self, id: NodeId, policy: NodePolicy) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE nodes SET policy = $1 WHERE id = $2")
            .bind(policy.to_string())
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(failed("change the policy of a node"))?;
        Ok(done.rows_affected() > 0)
    }
}
