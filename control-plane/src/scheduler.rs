//! Which node gets a new container. [`place`] is a pure function of the nodes and of what is asked:
//! the same input gives the same placement, no node goes over its capacity, none that is cordoned,
//! draining or lost gets anything. [`Cluster`] is that input as it is now.
//!
//! The steps are a file each: what is possible at all ([`feasible`]), on how few nodes an app would
//! die ([`spread`]), and which of equals ([`rank`]).

use std::collections::HashMap;

use mogok_api::app::Limits;
use mogok_api::id::{AppId, NodeId};

use crate::store::nodes::NodePolicy;

mod cluster;
pub mod feasible;
pub mod rank;
pub mod spread;
#[cfg(test)]
mod tests;

pub use cluster::{Cluster, ClusterError};
pub use feasible::Unfit;

/// What containers take and nodes have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    pub memory_bytes: u64,
    /// Containers at once: addresses, ports and user id ranges.
    pub containers: u32,
}

impl Resources {
    /// What one container with these limits takes.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        Self { memory_bytes: limits.memory_bytes, containers: 1 }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            containers: self.containers.saturating_add(other.containers),
        }
    }

    /// Does it fit into the other?
    #[must_use]
    pub fn within(self, other: Self) -> bool {
        self.memory_bytes <= other.memory_bytes && self.containers <= other.containers
    }
}

/// A node as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: NodeId,
    pub policy: NodePolicy,
    pub online: bool,
    pub capacity: Resources,
    pub used: Resources,
    /// How many containers of each app are there.
    pub apps: HashMap<AppId, u32>,
}

/// One container to place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub app: AppId,
    pub needs: Resources,
}

/// Chooses a node for each ask, in their order; every choice counts as used for the next.
/// Where no node can take one, the answer says why not.
#[must_use]
pub fn place(nodes: &[Candidate], asks: &[Ask]) -> Vec<Result<NodeId, Unfit>> {
    let mut nodes = nodes.to_vec();
    asks.iter().map(|ask| place_one(&mut nodes, ask)).collect()
}

/// Chooses a node for one container and books it there.
fn place_one(nodes: &mut [Candidate], ask: &Ask) -> Result<NodeId, Unfit> {
    let best = nodes
        .iter_mut()
        .filter(|node| feasible::check(node, ask).is_ok())
        .min_by_key(|node| (spread::same_app(node, ask), rank::fullness(node, ask), node.id));
    match best {
        Some(node) => {
            node.used = node.used.plus(ask.needs);
            *node.apps.entry(ask.app).or_default() += 1;
            Ok(node.id)
        }
        None => Err(feasible::nearest(nodes, ask)),
    }
}
