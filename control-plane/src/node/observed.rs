//! What is seen of the nodes and their containers, in memory: the last word of each agent. It
//! survives the loss of a connection, because a node that is away keeps its containers; it is never
//! written to the store, because after a restart the agents say it again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mogok_api::agent::NodeInfo;
use mogok_api::agent::client::AgentClient;
use mogok_api::id::{InstanceId, NodeId};
use mogok_api::instance::InstanceStatus;

use crate::wake::Wake;

/// A node that was silent for so long is lost: nothing new is placed on it. What runs there stays wanted there.
const LOST_AFTER: Duration = Duration::from_secs(15);

/// Handle to what is seen; cheap to clone.
#[derive(Debug, Clone)]
pub struct Observed {
    inner: Arc<Mutex<Inner>>,
    wake: Wake,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: BTreeMap<NodeId, Node>,
    statuses: HashMap<InstanceId, (NodeId, InstanceStatus)>,
}

#[derive(Debug)]
struct Node {
    info: NodeInfo,
    client: AgentClient,
    contact: Instant,
    /// The event stream has said once what there is.
    synced: bool,
    /// The wanted set that the node has taken last.
    acknowledged: Option<HashSet<InstanceId>>,
}

/// A node as others see it.
#[derive(Debug, Clone)]
pub struct NodeView {
    pub info: NodeInfo,
    /// Heard of within the last 15 s.
    pub online: bool,
    /// Its event stream has said what runs there, so what is not known does not exist.
    pub synced: bool,
}

impl Observed {
    /// Nothing seen yet. Changes wake `reconcile` and `builds`.
    #[must_use]
    pub fn new(wake: Wake) -> Self {
        Self { inner: Arc::default(), wake }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is whole when the lock is given back, so a panic elsewhere spoils nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.wake.reconcile.wake();
        self.wake.builds.wake();
    }

    /// The last that was heard of an instance.
    #[must_use]
    pub fn status(&self, id: InstanceId) -> Option<InstanceStatus> {
        self.lock().statuses.get(&id).map(|(_, status)| status.clone())
    }

    /// Is nothing of the instance left on the node? True only when the node has taken a wanted set without it
    /// and its event stream does not know it.
    #[must_use]
    pub fn removed(&self, node: NodeId, id: InstanceId) -> bool {
        let inner = self.lock();
        !inner.statuses.contains_key(&id)
            && inner.nodes.get(&node).is_some_and(|node| {
                node.synced && node.acknowledged.as_ref().is_some_and(|wanted| !wanted.contains(&id))
            })
    }

    /// The client of a node that was met, for blobs.
    #[must_use]
    pub fn client(&self, node: NodeId) -> Option<AgentClient> {
        self.lock().nodes.get(&node).map(|node| node.client.clone())
    }

    /// Every node that was met since the start of this control plane, by id.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        let inner = self.lock();
        let view = |node: &Node| NodeView {
            info: node.info.clone(),
            online: node.contact.elapsed() < LOST_AFTER,
            synced: node.synced,
        };
        inner.nodes.values().map(view).collect()
    }

    /// A connection was made and the node has said what it is.
    pub(crate) fn met(&self, info: NodeInfo, client: AgentClient) {
        let mut inner = self.lock();
        let contact = Instant::now();
        match inner.nodes.get_mut(&info.id) {
            Some(node) => *node = Node { info, client, contact, synced: node.synced, acknowledged: None },
            None => {
                let node = Node { info, client, contact, synced: false, acknowledged: None };
                inner.nodes.insert(node.info.id, node);
            }
        }
        drop(inner);
        self.changed();
    }

    /// The node gave a sign of life.
    pub(crate) fn heard(&self, node: NodeId) {
        let back =
            self.lock().nodes.get_mut(&node).is_some_and(|node| {
                std::mem::replace(&mut node.contact, Instant::now()).elapsed() >= LOST_AFTER
            });
        if back {
            self.changed();
        }
    }

    /// The node holds this wanted set now.
    pub(crate) fn acknowledged(&self, node: NodeId, wanted: HashSet<InstanceId>) {
        let mut inner = self.lock();
        if let Some(node) = inner.nodes.get_mut(&node)
            && node.acknowledged.as_ref() != Some(&wanted)
        {
            node.acknowledged = Some(wanted);
            drop(inner);
            self.changed();
        }
    }

    /// All there is on the node.
    pub(crate) fn snapshot(&self, node: NodeId, statuses: Vec<InstanceStatus>) {
        let mut inner = self.lock();
        inner.statuses.retain(|_, (on, _)| *on != node);
        inner.statuses.extend(statuses.into_iter().map(|status| (status.id, (node, status))));
        if let Some(node) = inner.nodes.get_mut(&node) {
            node.synced = true;
        }
        drop(inner);
        self.changed();
    }

    /// One instance as it is now.
    pub(crate) fn update(&self, node: NodeId, status: InstanceStatus) {
        self.lock().statuses.insert(status.id, (node, status));
        self.changed();
    }

    /// Nothing of the instance is left on the node.
    pub(crate) fn gone(&self, node: NodeId, id: InstanceId) {
        let mut inner = self.lock();
        if inner.statuses.get(&id).is_some_and(|(on, _)| *on == node) {
            inner.statuses.remove(&id);
        }
        drop(inner);
        self.changed();
    }
}
