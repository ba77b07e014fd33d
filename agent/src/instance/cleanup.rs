//! Taking away what a container has on the node. Every step does nothing when there is nothing, so a
//! removal that was cut short anywhere is simply done again.

use std::sync::Arc;

use mogok_api::id::InstanceId;

use super::output;
use crate::cgroup::CgroupError;
use crate::disk::DiskError;
use crate::network::NetworkError;
use crate::node::{Ground, Node};

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("cannot remove the cgroup")]
    Cgroup(#[from] CgroupError),
    #[error("cannot remove the disk")]
    Disk(#[from] DiskError),
    #[error("cannot remove the network")]
    Network(#[from] NetworkError),
    #[error("a removal did not finish")]
    Join(#[from] tokio::task::JoinError),
}

/// Removes what one run of the program had: processes, cgroup, disk. What stays behind is tried again
/// with the next start or the removal.
pub async fn run(ground: &Arc<Ground>, id: InstanceId) {
    if let Err(error) = processes_and_disk(ground, id).await {
        tracing::error!(instance = %id, error = %crate::chain(&error), "a run left something behind");
    }
}

/// Removes all a container has but its directory.
///
/// # Errors
/// When something is still there; call it again.
pub async fn everything(node: &Node, id: InstanceId) -> Result<(), CleanupError> {
    processes_and_disk(&node.ground, id).await?;
    node.network.detach(id).await?;
    if let Err(error) = output::remove(&node.ground.ledger.dir(id)) {
        tracing::warn!(instance = %id, %error, "cannot remove the output file");
    }
    Ok(())
}

async fn processes_and_disk(ground: &Arc<Ground>, id: InstanceId) -> Result<(), CleanupError> {
    let ground = Arc::clone(ground);
    tokio::task::spawn_blocking(move || {
        ground.cgroups.open(&id).remove()?;
        Ok(ground.disks.remove(&id)?)
    })
    .await?
}
