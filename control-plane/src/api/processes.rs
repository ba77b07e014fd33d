//! What runs of an app: the instances that are wanted, each with the last that was heard of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use axum::Json;
use axum::extract::State;
use mogok_api::control::Process;
use mogok_api::instance::Phase;

use super::extract::OwnApp;
use super::reply::Failed;
use crate::state::AppState;
use crate::store::instances::{InstanceRow, Wanted};
use crate::store::releases::ReleaseRow;

fn process(state: &AppState, row: InstanceRow, release: &ReleaseRow) -> Process {
    let command = release.processes.get(&row.process.kind).cloned().unwrap_or_default();
    let mut process = Process {
        instance: row.id,
        release: release.number,
        phase: Phase::Pending,
        since: row.created_at,
        restarts: 0,
        node: row.node,
        command,
        name: row.process,
        exit: None,
        failure: None,
        last_lines: Vec::new(),
    };
    if let Some(status) = state.observed.status(row.id) {
        process.phase = status.phase;
        process.since = status.since;
        process.restarts = status.restarts;
        process.exit = status.exit;
        process.failure = status.failure;
        process.last_lines = status.last_lines;
    }
    // Its node may not have been told yet.
    if row.wanted != Wanted::Run && process.phase != Phase::Exited {
        process.phase = Phase::Stopping;
    }
    process
}

pub(super) async fn list(State(state): State<AppState>, own: OwnApp) -> Result<Json<Vec<Process>>, Failed> {
    let mut releases = HashMap::new();
    let mut processes = Vec::new();
    for row in state.store.instances_of(own.app.id).await? {
        let release = match releases.entry(row.release) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(slot) => match state.store.release(row.release).await? {
                Some(release) => slot.insert(release),
                // Removed between the two reads, and with it the instance.
                None => continue,
            },
        };
        processes.push(process(&state, row, release));
    }
    processes.sort_by(|one, two| one.name.cmp(&two.name).then(one.instance.cmp(&two.instance)));
    Ok(Json(processes))
}
