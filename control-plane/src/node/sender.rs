//! What to say to a node: pure. The first word of a session is a snapshot in a new epoch; then a delta
//! from what the node has taken last, or a heartbeat. The same instance never travels twice unless its
//! node asks for everything again.

use std::collections::{BTreeMap, HashSet};

use mogok_api::agent::DesiredMessage;
use mogok_api::id::{Epoch, InstanceId};
use mogok_api::instance::InstanceSpec;

pub(super) type Set = BTreeMap<InstanceId, InstanceSpec>;

/// One session's side of the conversation.
#[derive(Debug)]
pub(super) struct Sender {
    epoch: Epoch,
    version: u64,
    /// What the node has acknowledged; nothing before the first snapshot.
    held: Option<Set>,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self { epoch: Epoch::new(), version: 0, held: None }
    }

    /// The next message for a node that is to hold `wanted`.
    pub(super) fn message(&self, wanted: &Set) -> DesiredMessage {
        let (epoch, version) = (self.epoch, self.version);
        let Some(held) = &self.held else { return self.snapshot(wanted) };
        let upsert: Vec<_> = wanted
            .iter()
            .filter(|(id, spec)| held.get(id) != Some(spec))
            .map(|(_, spec)| spec.clone())
            .collect();
        let remove: Vec<_> = held.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        if upsert.is_empty() && remove.is_empty() {
            return DesiredMessage::Heartbeat { epoch, version };
        }
        DesiredMessage::Delta { epoch, from: version, version: version + 1, upsert, remove }
    }

    /// Everything, for a node that is new or asks for it.
    pub(super) fn snapshot(&self, wanted: &Set) -> DesiredMessage {
        let instances = wanted.values().cloned().collect();
        DesiredMessage::Snapshot { epoch: self.epoch, version: self.version + 1, instances }
    }

    /// The node has taken `message`, made for `wanted`, and answered with this epoch and version.
    /// False when that is not what it was sent.
    pub(super) fn taken(
        &mut self,
        message: &DesiredMessage,
        wanted: &Set,
        epoch: Option<Epoch>,
        version: u64,
    ) -> bool {
        let (DesiredMessage::Snapshot { version: sent, .. }
        | DesiredMessage::Delta { version: sent, .. }
        | DesiredMessage::Heartbeat { version: sent, .. }) = message;
        if epoch != Some(self.epoch) || version != *sent {
            return false;
        }
        self.version = version;
        if !matches!(message, DesiredMessage::Heartbeat { .. }) {
            self.held = Some(wanted.clone());
        }
        true
    }

    /// The ids that the node has acknowledged.
    pub(super) fn held(&self) -> HashSet<InstanceId> {
        self.held.iter().flat_map(BTreeMap::keys).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mogok_api::app::{HealthCheck, Limits, RestartPolicy};
    use mogok_api::instance::ContainerKind;
    use proptest::prelude::*;

    use super::*;

    fn spec(id: InstanceId, cpu: u32) -> InstanceSpec {
        InstanceSpec {
            id,
            app: "fugafuga".parse().unwrap(),
            process: "web.1".parse().unwrap(),
            release: None,
            kind: ContainerKind::App,
            image: "ruby".parse().unwrap(),
            image_digest: None,
            package: None,
            package_mounts: Vec::new(),
            blobs: Vec::new(),
            output: None,
            command: vec!["/bin/true".into()],
            env: BTreeMap::new(),
            limits: Limits { cpu_millis: cpu, ..Limits::app() },
            grants: Default::default(),
            listens: true,
            health: HealthCheck::default(),
            restart: RestartPolicy::Always,
            stop_grace_s: 30,
            max_runtime_s: None,
        }
    }

    /// The node's side, as the contract says it.
    #[derive(Default)]
    struct Node {
        epoch: Option<Epoch>,
        version: u64,
        set: Set,
    }

    impl Node {
        /// Applies a message; false when it needs the snapshot.
        fn take(&mut self, message: DesiredMessage) -> bool {
            match message {
                DesiredMessage::Snapshot { epoch, version, instances } => {
                    self.epoch = Some(epoch);
                    self.version = version;
                    self.set = instances.into_iter().map(|spec| (spec.id, spec)).collect();
                }
                DesiredMessage::Delta { epoch, from, version, upsert, remove } => {
                    if self.epoch != Some(epoch) || self.version != from {
                        return false;
                    }
                    self.version = version;
                    self.set.retain(|id, _| !remove.contains(id));
                    self.set.extend(upsert.into_iter().map(|spec| (spec.id, spec)));
                }
                DesiredMessage::Heartbeat { epoch, version } => {
                    return self.epoch == Some(epoch) && self.version == version;
                }
            }
            true
        }
    }

    proptest! {
        /// Each step: what is wanted (bits over eight ids, and a spec that may differ), and whether the node
        /// forgot everything before it.
        #[test]
        fn the_node_always_ends_with_what_is_wanted(
            steps in prop::collection::vec((any::<u8>(), 0u32..2, prop::bool::weighted(0.2)), 1..20)
        ) {
            let ids: Vec<_> = (0..8).map(|_| InstanceId::new()).collect();
            let (mut sender, mut node) = (Sender::new(), Node::default());
            for (bits, cpu, forgot) in steps {
                if forgot {
                    node = Node::default();
                }
                let chosen = ids.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
                let wanted: Set = chosen.map(|(_, id)| (*id, spec(*id, cpu))).collect();
                let mut message = sender.message(&wanted);
                if !node.take(message.clone()) {
                    message = sender.snapshot(&wanted);
                    prop_assert!(node.take(message.clone()), "a snapshot is always taken");
                }
                prop_assert!(sender.taken(&message, &wanted, node.epoch, node.version));
                prop_assert_eq!(&node.set, &wanted);
                prop_assert_eq!(sender.held(), wanted.keys().copied().collect());
                let next = sender.message(&wanted);
                prop_assert!(matches!(next, DesiredMessage::Heartbeat { .. }), "{:?}", next);
            }
        }
    }

    #[test]
    fn an_acknowledgement_of_something_else_is_not_believed() {
        let mut sender = Sender::new();
        let wanted = Set::new();
        let message = sender.message(&wanted);
        assert!(!sender.taken(&message, &wanted, Some(Epoch::new()), 1));
        assert!(!sender.taken(&message, &wanted, None, 0));
        let DesiredMessage::Snapshot { epoch, version, .. } = message else { panic!("no snapshot first") };
        assert!(!sender.taken(&message, &wanted, Some(epoch), version + 1));
        assert!(sender.taken(&message, &wanted, Some(epoch), version));
    }
}
