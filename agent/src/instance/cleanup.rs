//! Taking away what a container has on the node. Every step does nothing when there is nothing, so a
//! removal that was cut short anywhere is simply done again.

use std::sync::Arc;
use std::time::Duration;

use mogok_api::id::InstanceId;

use super::output;
use crate::cgroup::CgroupError;
use crate::disk::DiskError;
use crate::fail_point;
use crate::network::NetworkError;
use crate::node::{Ground, Node};

/// Between attempts to remove what cannot be removed yet, which doubles each time.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
pub(super) const AGAIN_AT_MOST: Duration = Duration::from_secs(30);

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
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoint::Injected),
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
    fail_point!(Detached);
    if let Err(error) = output::remove(&node.ground.ledger.dir(id)) {
        tracing::warn!(instance = %id, %error, "cannot remove the output file");
    }
    Ok(())
}

/// Removes what a run of an earlier agent's had, however often that takes.
pub async fn until_done(ground: &Arc<Ground>, id: InstanceId) {
    let mut pause = AGAIN;
    while let Err(error) = processes_and_disk(ground, id).await {
        tracing::error!(instance = %id, error = %crate::chain(&error), "cannot end an earlier run yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_AT_MOST);
    }
}

async fn processes_and_disk(ground: &Arc<Ground>, id: InstanceId) -> Result<(), CleanupError> {
    let ground = Arc::clone(ground);
    tokio::task::spawn_blocking(move || {
        ground.cgroups.open(&id).remove()?;
        fail_point!(CgroupRemoved);
        ground.disks.remove(&id)?;
        fail_point!(DiskRemoved);
        Ok(())
    })
    .await?
}
