//! Which of several nodes that are equally good for the app: the one that would be least full, so
//! that all nodes fill alike and a burst on one hurts few.

use super::{Ask, Candidate};

/// How full the node would be with it, in thousandths of its scarcest resource; less is better.
#[must_use]
pub fn fullness(node: &Candidate, ask: &Ask) -> u64 {
    let would = node.used.plus(ask.needs);
    let part = |used: u64, of: u64| {
        let thousandths = u128::from(used) * 1000 / u128::from(of.max(1));
        u64::try_from(thousandths).unwrap_or(u64::MAX)
    };
    part(would.memory_bytes, node.capacity.memory_bytes)
        .max(part(would.containers.into(), node.capacity.containers.into()))
}
