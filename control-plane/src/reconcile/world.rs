//! What is seen, as the plan asks for it: the nodes' last words and the routers' acknowledgements.

use mogok_api::id::InstanceId;
use mogok_api::instance::InstanceStatus;

use super::plan::Seen;
use crate::state::AppState;
use crate::store::instances::InstanceRow;

/// The real one.
#[derive(Debug)]
pub(super) struct World<'a> {
    state: &'a AppState,
}

impl<'a> World<'a> {
    pub(super) fn new(state: &'a AppState) -> Self {
        Self { state }
    }
}

impl Seen for World<'_> {
    fn status(&self, instance: InstanceId) -> Option<InstanceStatus> {
        self.state.observed.status(instance)
    }

    fn removed(&self, instance: &InstanceRow) -> bool {
        self.state.observed.removed(instance.node, instance.id)
    }

    fn carried(&self, instances: &[InstanceId]) -> bool {
        self.state.routes.carried(instances)
    }

    fn released(&self, instance: InstanceId) -> bool {
        self.state.routes.released(instance)
    }
}
