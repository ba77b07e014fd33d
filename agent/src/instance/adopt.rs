//! What became of a container while no agent watched: the question every record is asked when the
//! agent starts.
//!
//! Invariant: `Lost` and `Idle` are said only after everything that may have run was killed and waited
//! for, so that a container is never started beside itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use mogok_api::id::InstanceId;

use super::cleanup;
use super::state::State;
use crate::ledger::Record;
use crate::node::Ground;
use crate::shim::{self, Process};

/// Shims that run, by the instance they are of.
pub type Shims = BTreeMap<InstanceId, Vec<i32>>;

/// What was found of a container.
#[derive(Debug)]
pub enum Finding {
    /// Nothing of it should run, and nothing does.
    Idle,
    /// Its shim runs, or ran in this boot of the host and left word of the end.
    Alive(Process),
    /// Nothing of it is left, for no fault of its own.
    Lost,
}

/// Looks for what a record is about.
pub async fn examine(ground: &Arc<Ground>, record: &Record, shims: &Shims) -> Finding {
    let id = record.id();
    let others = shims.get(&id).map_or(&[][..], Vec::as_slice);
    if !record.state.may_run() || record.state == State::Removing {
        end_all(ground, id, others).await;
        return Finding::Idle;
    }
    let run = record.run.as_ref().filter(|run| run.boot_id == ground.boot_id);
    let process = run.and_then(|run| {
        Process::open(run.shim_pid, Some(run.shim_start_time))
            .inspect_err(|error| tracing::error!(instance = %id, %error, "cannot look for a shim"))
            .ok()
            .flatten()
    });
    match (run, process) {
        (Some(_), Some(process)) => {
            tracing::info!(instance = %id, shim = process.pid(), "a container is alive");
            Finding::Alive(process)
        }
        // Its shim is gone: the supervision finds `exit.json`, or kills what is left.
        (Some(_), None) if shim::read_exit(&ground.ledger.dir(id)).is_some() => Finding::Idle,
        (Some(_), None) => {
            end_all(ground, id, others).await;
            Finding::Idle
        }
        (None, _) => {
            end_all(ground, id, others).await;
            Finding::Lost
        }
    }
}

/// Ends whatever runs of a container: its shims first, so that none starts a program behind this.
pub async fn end_all(ground: &Arc<Ground>, id: InstanceId, shims: &[i32]) {
    for pid in shims {
        // Whether it is still that shim is asked again, now that a pidfd holds whatever it is.
        let Ok(Some(process)) = Process::open(*pid, None) else { continue };
        let still = shim::shims_below(ground.ledger.instances()).unwrap_or_default();
        if still.iter().any(|(other, name)| other == pid && *name == id.to_string()) {
            tracing::warn!(instance = %id, shim = pid, "ending a shim that has no place");
            super::ending::end_shim(&process).await;
        }
    }
    cleanup::run(ground, id).await;
}
