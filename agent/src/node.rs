//! What all instances of a node share: configuration, ledger, cgroups, network, disks, blob store,
//! events and logs. Parts that guard themselves, so the whole is shared without a lock.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mogok_api::agent::{ImageInfo, NodeInfo};
use mogok_api::id::NodeId;
use mogok_api::instance::InstanceSpec;
use mogok_api::name::Digest;
use mogok_images::{Store, StoreError};
use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{Notify, Semaphore};

use crate::cgroup::{Cgroups, Watcher};
use crate::config::Config;
use crate::disk::Disks;
use crate::events::Events;
use crate::exec::Execs;
use crate::host::Facts;
use crate::ledger::Ledger;
use crate::ledger::atomic::{self, Durability};
use crate::ledger::uids::{NoUidRange, UidRanges};
use crate::logs::Logs;
use crate::network::Network;
use crate::shim::Spawner;

/// Containers that are made at once: more would only wait for each other's disks.
pub const STARTS: usize = 8;

/// What containers are found and cleaned up by: all that is needed before the network stands, which is
/// made with the living ones in it.
#[derive(Debug)]
pub struct Ground {
    /// This boot of the host.
    pub boot_id: String,
    pub ledger: Ledger,
    pub cgroups: Cgroups,
    pub watcher: Watcher,
    pub disks: Disks,
}

/// One app server.
#[derive(Debug)]
pub struct Node {
    pub config: Config,
    pub id: NodeId,
    pub facts: Facts,
    pub ground: Arc<Ground>,
    pub network: Network,
    /// Blobs and the trees of packages.
    pub store: Store,
    /// Base images; may be the same store, and is only read.
    pub images: Store,
    pub events: Events,
    pub logs: Arc<Logs>,
    pub uids: Mutex<UidRanges>,
    pub starts: Semaphore,
    /// A blob has come.
    pub arrivals: Notify,
    pub execs: Execs,
    pub spawner: Spawner,
}

impl Node {
    /// Blobs that these instances need and the node lacks, each once.
    #[must_use]
    pub fn missing_blobs<'a>(&self, specs: impl IntoIterator<Item = &'a InstanceSpec>) -> Vec<Digest> {
        let needed: BTreeSet<&Digest> = specs.into_iter().flat_map(blobs_of).collect();
        needed.into_iter().filter(|digest| !self.store.has(digest)).cloned().collect()
    }

    /// # Errors
    /// When every range is taken.
    pub fn take_uids(&self) -> Result<u32, NoUidRange> {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub fn give_uids(&self, first: u32) {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner).give(first);
    }

    /// What the node is. Blocks.
    ///
    /// # Errors
    /// When the images cannot be listed.
    pub fn info(&self) -> Result<NodeInfo, StoreError> {
        let images = self.images.images()?;
        Ok(NodeInfo {
            id: self.id,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.facts.kernel.clone(),
            cgroup_mode: self.ground.cgroups.mode(),
            cpu_millis: self.facts.cpu_millis,
            memory_bytes: self.facts.memory_bytes,
            images: images.into_iter().map(|(name, digest)| ImageInfo { name, digest }).collect(),
            max_instances: self
                .config
                .max_instances(getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)),
        })
    }
}

/// The blobs that an instance is made of.
pub fn blobs_of(spec: &InstanceSpec) -> impl Iterator<Item = &Digest> {
    spec.blobs
        .iter()
        .map(|mount| &mount.digest)
        .chain(&spec.package)
        .chain(spec.package_mounts.iter().map(|mount| &mount.digest))
}

/// The file that keeps the node's id is no good.
#[derive(Debug, thiserror::Error)]
pub enum NodeIdError {
    #[error("cannot {operation} {path}", path = path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{path} holds no id of a node: give --node-id with the one that the control plane knows this node by, or remove the file to be a new node",
        path = .0.display()
    )]
    Malformed(PathBuf),
}

/// The node's id: the given one, which is kept then, or the one that was made at the first start.
///
/// # Errors
/// When the file that keeps it cannot be read or written, or holds no id and none is given.
pub fn node_id(state_dir: &Path, given: Option<NodeId>) -> Result<NodeId, NodeIdError> {
    let path = state_dir.join("node-id");
    let failed = |operation| {
        let path = path.clone();
        move |source| NodeIdError::File { operation, path, source }
    };
    let kept = match std::fs::read(&path) {
        Ok(bytes) => {
            let id = str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse::<NodeId>().ok());
            if id.or(given).is_none() {
                return Err(NodeIdError::Malformed(path));
            }
            id
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("read")(error)),
    };
    let id = given.or(kept).unwrap_or_else(NodeId::new);
    if kept != Some(id) {
        atomic::write(&path, format!("{id}\n").as_bytes(), Durability::PowerLoss).map_err(failed("write"))?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_id_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let id = node_id(dir.path(), None).unwrap();
        assert_eq!(node_id(dir.path(), None).unwrap(), id);
        for damage in [&b"zz"[..], b"\xff", b""] {
            std::fs::write(dir.path().join("node-id"), damage).unwrap();
            let refused = node_id(dir.path(), None).unwrap_err().to_string();
            assert!(refused.contains("/node-id holds no id") && refused.contains("--node-id"), "{refused}");
        }
        assert_eq!(node_id(dir.path(), Some(id)).unwrap(), id);
        assert_eq!(node_id(dir.path(), None).unwrap(), id);
    }
}
