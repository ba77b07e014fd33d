//! Following what happens on a node into [`super::Observed`]. Each session begins with a snapshot, so
//! nothing that was missed in between stays unseen.

use mogok_api::agent::AgentEvent;
use mogok_api::agent::client::AgentClient;
use mogok_api::id::NodeId;

use super::SessionError;
use crate::state::AppState;

/// Until the stream fails or ends.
pub(super) async fn run(state: &AppState, client: &AgentClient, node: NodeId) -> Result<(), SessionError> {
    let mut events = client.events(None).await?;
    while let Some(event) = events.next().await? {
        state.observed.heard(node);
        match event {
            AgentEvent::Snapshot { instances, .. } => state.observed.snapshot(node, instances),
            AgentEvent::Changed { instance, .. } => state.observed.update(node, instance),
            AgentEvent::Removed { id, .. } => state.observed.gone(node, id),
            // Its developer reads the same in the app's log.
            AgentEvent::Warned { .. } | AgentEvent::Heartbeat { .. } => {}
        }
    }
    Err(SessionError::EventsEnded)
}
