//! Whether a node may and can take a container at all, and if none can, the reason that is nearest
//! to a yes.

use super::{Ask, Candidate};
use crate::store::nodes::NodePolicy;

/// Why a container cannot be placed; later variants are nearer to a yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unfit {
    #[error("the platform has no node")]
    NoNode,
    #[error("no node is online")]
    Lost,
    #[error("every node that is online is cordoned or draining")]
    Closed,
    #[error("no node has room")]
    Full,
}

/// May and can the node take it?
///
/// # Errors
/// The first reason why not.
pub fn check(node: &Candidate, ask: &Ask) -> Result<(), Unfit> {
    if !node.online {
        return Err(Unfit::Lost);
    }
    if node.policy != NodePolicy::Active {
        return Err(Unfit::Closed);
    }
    if !node.used.plus(ask.needs).within(node.capacity) {
        return Err(Unfit::Full);
    }
    Ok(())
}

/// The reason of the node that came nearest.
#[must_use]
pub fn nearest(nodes: &[Candidate], ask: &Ask) -> Unfit {
    nodes.iter().filter_map(|node| check(node, ask).err()).max().unwrap_or(Unfit::NoNode)
}
