//! What became of a container while no agent watched: the question every record is asked when the
//! agent starts.
//!
//! Invariant: what was found idle or lost is killed and waited for, however long that takes, before its
//! instance goes on, so that a container is never started beside itself.

use std::collections::BTreeMap;
use std::io;
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
    /// Its shim runs.
    Alive(Process),
    /// Its shim is gone and left word of the end.
    Ended,
    /// It ended without a word, or nothing of it should run: what does is ended first.
    Idle { shims: Vec<i32> },
    /// It should run and does not, for no fault of its own: what is left of it is ended first.
    Lost { shims: Vec<i32> },
}

/// Looks for what a record is about. It only looks, and speaks to no shim, so that none makes the others wait.
///
/// # Errors
/// When the kernel does not say whether the shim runs: no reason to take a container for dead.
pub fn examine(ground: &Ground, record: &Record, shims: &Shims) -> io::Result<Finding> {
    let id = record.id();
    let shims = shims.get(&id).cloned().unwrap_or_default();
    if !record.state.may_run() || record.state == State::Removing {
        return Ok(Finding::Idle { shims });
    }
    let Some(run) = record.run.as_ref().filter(|run| run.boot_id == ground.boot_id) else {
        return Ok(Finding::Lost { shims });
    };
    Ok(match Process::open(run.shim_pid, Some(run.shim_start_time))? {
        Some(process) if !process.has_ended() => {
            tracing::info!(instance = %id, shim = process.pid(), "a container is alive");
            Finding::Alive(process)
        }
        _ if shim::read_exit(&ground.ledger.dir(id)).is_some() => Finding::Ended,
        _ => Finding::Idle { shims },
    })
}

/// Ends whatever runs of a container, however long that takes: its shims first, so that none starts a
/// program behind this.
pub async fn end_all(ground: &Arc<Ground>, id: InstanceId, shims: &[i32]) {
    for pid in shims {
        // Whether it is still that shim is asked again, now that a pidfd holds whatever it is.
        let Ok(Some(process)) = Process::open(*pid, None) else { continue };
        if shim::name_of(*pid, ground.ledger.instances()).is_some_and(|name| name == id.to_string()) {
            tracing::warn!(instance = %id, shim = pid, "ending a shim that has no place");
            super::ending::end_shim(&process).await;
        }
    }
    cleanup::until_done(ground, id).await;
}
