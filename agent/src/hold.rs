//! The operator's hold on a running container: it can be made to stand still, to go on, and to give back memory.
//!
//! Invariant: only what runs and is to go on is frozen. A stop thaws it, because what stands still hears no SIGTERM;
//! a kill needs no thaw.

use mogok_api::agent::{ReclaimRequest, Reclaimed};
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::InstanceId;

use crate::cgroup::{Cgroup, CgroupError};
use crate::exec::joinable;
use crate::instance::state::State;
use crate::ledger::LedgerError;
use crate::node::Node;

/// Why a container was not taken hold of.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    #[error("instance {0} is not on this node")]
    NoInstance(InstanceId),
    #[error("instance {id} {reason}")]
    State { id: InstanceId, reason: &'static str },
    #[error("cannot read the record of the instance")]
    Ledger(#[source] LedgerError),
    #[error("instance {id}")]
    Cgroup { id: InstanceId, source: CgroupError },
}

impl HoldError {
    /// In the words of the API.
    #[must_use]
    pub fn into_api(self) -> ApiError {
        let code = match &self {
            Self::NoInstance(_) => ErrorCode::NotFound,
            Self::State { .. } => ErrorCode::Conflict,
            // The host's kind, or a program that sleeps in the kernel: nothing that this agent does wrong.
            Self::Cgroup { source: CgroupError::NoReclaim(_) | CgroupError::NotFrozen { .. }, .. } => {
                ErrorCode::Conflict
            }
            Self::Ledger(_) | Self::Cgroup { .. } => ErrorCode::Internal,
        };
        ApiError::new(code, crate::chain(&self))
    }
}

/// Makes every process of the container stand still. Blocks, for 10 s at most; one that cannot be frozen as a whole
/// by then goes on. It stays frozen over restarts of the agent.
///
/// # Errors
/// When the container is not up, or the kernel does not freeze it.
pub fn freeze(node: &Node, id: InstanceId) -> Result<(), HoldError> {
    let up = || match state(node, id)? {
        State::Booting => Err(HoldError::State { id, reason: "has not come up yet" }),
        state => joinable(state).map_err(|reason| HoldError::State { id, reason }),
    };
    up()?;
    let cgroup = node.ground.cgroups.open(&id);
    // A stop that has come in between did not find it frozen.
    if let Err(error) = cgroup.freeze().map_err(failed(id)).and_then(|()| up()) {
        // The first error is the one that matters.
        let _ = cgroup.thaw();
        return Err(error);
    }
    node.logs.say(id, "frozen by the operator");
    Ok(())
}

/// Lets it go on. One that is not frozen is no error.
///
/// # Errors
/// When it does not run, or the kernel does not thaw it.
pub fn thaw(node: &Node, id: InstanceId) -> Result<(), HoldError> {
    let cgroup = running(node, id)?;
    let frozen = cgroup.is_frozen();
    cgroup.thaw().map_err(failed(id))?;
    if frozen {
        node.logs.say(id, "thawed by the operator");
    }
    Ok(())
}

/// Has the kernel take memory back from the container. Blocks.
///
/// # Errors
/// When it does not run, or the host has no such way (cgroup v1, Linux before 5.19).
pub fn reclaim(node: &Node, id: InstanceId, request: ReclaimRequest) -> Result<Reclaimed, HoldError> {
    let cgroup = running(node, id)?;
    let whole = cgroup.reclaim(request.bytes).map_err(failed(id))?;
    let memory_bytes = cgroup.usage().map_err(failed(id))?.memory_bytes;
    Ok(Reclaimed { whole, memory_bytes })
}

fn running(node: &Node, id: InstanceId) -> Result<Cgroup, HoldError> {
    joinable(state(node, id)?).map_err(|reason| HoldError::State { id, reason })?;
    Ok(node.ground.cgroups.open(&id))
}

fn state(node: &Node, id: InstanceId) -> Result<State, HoldError> {
    let ledger = &node.ground.ledger;
    if ledger.find(id).is_none() || node.events.status(id).is_none() {
        return Err(HoldError::NoInstance(id));
    }
    Ok(ledger.load(id).map_err(HoldError::Ledger)?.state)
}

fn failed(id: InstanceId) -> impl Fn(CgroupError) -> HoldError {
    move |source| HoldError::Cgroup { id, source }
}
