//! The nodes with what is booked on them, as store and agents say now. Booked is what is wanted,
//! whether or not it runs yet, and what is being stopped but may still be there.

use std::collections::HashMap;

use mogok_api::app::Limits;
use mogok_api::id::NodeId;

use super::{Ask, Candidate, Resources, Unfit, place_one};
use crate::node::Observed;
use crate::store::instances::InstanceRow;
use crate::store::nodes::NodePolicy;
use crate::store::{Store, StoreError};

/// Memory is promised so many times: most apps use a fraction of their limit, and one that reaches its
/// limit is killed alone.
const MEMORY_OVERCOMMIT: u64 = 2;

/// The nodes and what is booked on them.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    nodes: Vec<Candidate>,
}

/// Why the cluster could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot see what is booked on the nodes")]
pub struct ClusterError(#[from] StoreError);

impl Cluster {
    /// Reads it. Nodes that were not met since the start of this control plane take nothing.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn read(store: &Store, observed: &Observed) -> Result<Self, ClusterError> {
        let instances = store.all_instances().await?;
        Self::with(store, observed, &instances).await
    }

    /// As [`Self::read`], for a caller that has the instances already.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn with(
        store: &Store,
        observed: &Observed,
        instances: &[InstanceRow],
    ) -> Result<Self, ClusterError> {
        let policies: HashMap<NodeId, NodePolicy> =
            store.nodes().await?.into_iter().map(|node| (node.id, node.policy)).collect();
        let mut nodes = Vec::new();
        for seen in observed.nodes() {
            let Some(policy) = policies.get(&seen.info.id) else { continue };
            let mut node = Candidate {
                id: seen.info.id,
                policy: *policy,
                online: seen.online,
                capacity: Resources {
                    memory_bytes: seen.info.memory_bytes.saturating_mul(MEMORY_OVERCOMMIT),
                    containers: seen.info.max_instances,
                },
                used: Resources::default(),
                apps: HashMap::new(),
            };
            for instance in instances.iter().filter(|instance| instance.node == node.id) {
                node.used = node.used.plus(Resources::of(&Limits::app()));
                *node.apps.entry(instance.app).or_default() += 1;
            }
            for build in store.build_specs_on(node.id).await? {
                node.used = node.used.plus(Resources::of(&build.limits));
            }
            nodes.push(node);
        }
        Ok(Self { nodes })
    }

    /// Chooses a node and books it.
    ///
    /// # Errors
    /// Why none can take it.
    pub fn place(&mut self, ask: &Ask) -> Result<NodeId, Unfit> {
        place_one(&mut self.nodes, ask)
    }
}
