//! The wanted set of this node and how messages change it; kept on disk so that the node goes on
//! while the control plane is away and after a power loss.
//!
//! Invariant: a set changes only by a snapshot of another epoch or of no earlier version than the one held, or by
//! a delta that starts at exactly that version; anything else is answered "send the snapshot" and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use mogok_api::agent::DesiredMessage;
use mogok_api::id::{Epoch, InstanceId};
use mogok_api::instance::InstanceSpec;
use serde::{Deserialize, Serialize};

mod ballast;
mod file;

pub use file::DesiredFile;

const VERSION: u32 = 1;

/// What is wanted, at one version of one epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    format: u32,
    pub epoch: Option<Epoch>,
    pub version: u64,
    /// Shared, so that a copy of the set costs little however many there are.
    pub instances: BTreeMap<InstanceId, Arc<InstanceSpec>>,
}

/// What a message did to the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Changed,
    /// The set is as it was: a heartbeat, or a message that came twice.
    Same,
    NeedSnapshot,
}

impl Desired {
    /// Applies one message. An instance never changes: the spec that came first under an id stays.
    pub fn apply(&mut self, message: DesiredMessage) -> Applied {
        match message {
            DesiredMessage::Snapshot { epoch, version, instances } => {
                if self.epoch == Some(epoch) && version < self.version {
                    // It was under way for longer than what came after it.
                    return Applied::NeedSnapshot;
                }
                let mut next = Self { format: VERSION, epoch: Some(epoch), version, ..Self::default() };
                for spec in instances {
                    let kept = self.instances.remove(&spec.id).unwrap_or_else(|| Arc::new(spec));
                    next.instances.entry(kept.id).or_insert(kept);
                }
                *self = next;
                Applied::Changed
            }
            DesiredMessage::Delta { epoch, from, version, upsert, remove } => {
                if self.epoch != Some(epoch) {
                    return Applied::NeedSnapshot;
                }
                if self.version == version {
                    return Applied::Same;
                }
                if self.version != from || version < from {
                    return Applied::NeedSnapshot;
                }
                for spec in upsert {
                    self.instances.entry(spec.id).or_insert_with(|| Arc::new(spec));
                }
                // Last: what is in both goes, for the spec that came first would stay in its place.
                for id in remove {
                    self.instances.remove(&id);
                }
                self.version = version;
                Applied::Changed
            }
            DesiredMessage::Heartbeat { epoch, version } => {
                if self.epoch == Some(epoch) && self.version == version {
                    Applied::Same
                } else {
                    Applied::NeedSnapshot
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::instance::sample_spec;

    fn snapshot(epoch: Epoch, version: u64, instances: Vec<InstanceSpec>) -> DesiredMessage {
        DesiredMessage::Snapshot { epoch, version, instances }
    }

    #[test]
    fn a_gap_or_another_epoch_asks_for_the_snapshot_and_changes_nothing() {
        let epoch = Epoch::new();
        let mut desired = Desired::default();
        let heartbeat = DesiredMessage::Heartbeat { epoch, version: 0 };
        assert_eq!(desired.apply(heartbeat), Applied::NeedSnapshot);
        desired.apply(snapshot(epoch, 3, vec![sample_spec()]));
        let held = desired.clone();
        for (epoch, from, version) in [(epoch, 4, 5), (epoch, 2, 4), (Epoch::new(), 3, 4), (epoch, 3, 2)] {
            let delta = DesiredMessage::Delta { epoch, from, version, upsert: vec![], remove: vec![] };
            assert_eq!(desired.apply(delta), Applied::NeedSnapshot, "{from} -> {version}");
            assert_eq!(desired, held);
        }
        assert_eq!(desired.apply(snapshot(epoch, 2, vec![])), Applied::NeedSnapshot);
        assert_eq!(desired, held);
        assert_eq!(desired.apply(DesiredMessage::Heartbeat { epoch, version: 3 }), Applied::Same);
    }

    #[test]
    fn a_spec_is_never_replaced_under_its_id() {
        let epoch = Epoch::new();
        let mut desired = Desired::default();
        let spec = sample_spec();
        desired.apply(snapshot(epoch, 1, vec![spec.clone()]));
        let other = InstanceSpec { command: vec!["/bin/other".into()], ..spec.clone() };
        desired.apply(snapshot(epoch, 2, vec![other.clone()]));
        assert_eq!(*desired.instances[&spec.id], spec);
        let both =
            DesiredMessage::Delta { epoch, from: 2, version: 3, upsert: vec![other], remove: vec![spec.id] };
        assert_eq!(desired.apply(both), Applied::Changed);
        assert!(desired.instances.is_empty());
    }

    proptest! {
        /// Deltas one by one lead where the snapshot of the end leads.
        #[test]
        fn deltas_and_the_snapshot_agree(steps in prop::collection::vec((any::<bool>(), 0_usize..8), 1..40)) {
            let epoch = Epoch::new();
            let pool: Vec<_> = (0..8).map(|_| sample_spec()).collect();
            let mut model: BTreeMap<InstanceId, Arc<InstanceSpec>> = BTreeMap::new();
            let mut desired = Desired::default();
            desired.apply(snapshot(epoch, 0, vec![]));
            for (version, (add, index)) in (1_u64..).zip(steps) {
                let spec = pool[index].clone();
                let (upsert, remove) = if add { (vec![spec], vec![]) } else { (vec![], vec![spec.id]) };
                for spec in &upsert { model.insert(spec.id, Arc::new(spec.clone())); }
                for id in &remove { model.remove(id); }
                let delta = DesiredMessage::Delta { epoch, from: version - 1, version, upsert, remove };
                prop_assert_eq!(desired.apply(delta), Applied::Changed);
            }
            prop_assert_eq!(desired.instances, model);
        }
    }
}
