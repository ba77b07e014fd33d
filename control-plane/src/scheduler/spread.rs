//! Spreading an app over nodes, so that the loss of one takes as little of it as possible. It comes
//! before [`super::rank`]: a fuller node without the app is better than an emptier one with it.

use super::{Ask, Candidate};

/// How many containers of the app the node has already; fewer is better.
#[must_use]
pub fn same_app(node: &Candidate, ask: &Ask) -> u32 {
    node.apps.get(&ask.app).copied().unwrap_or_default()
}
