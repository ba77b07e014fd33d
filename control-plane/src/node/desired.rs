//! Telling a node what is wanted of it: at every wake-up, and every 2 s, the set is read afresh from
//! the store and sent as what is new in it. Specs are made once per session; they never change.

use std::collections::HashMap;

use mogok_api::agent::client::AgentClient;
use mogok_api::id::{InstanceId, NodeId, ReleaseId};
use tokio::time::MissedTickBehavior;

use super::blobs::Blobs;
use super::sender::{Sender, Set};
use super::{HEARTBEAT, SessionError, chain, spec};
use crate::state::AppState;
use crate::store::StoreError;

/// Until the connection fails.
pub(super) async fn run(state: &AppState, client: &AgentClient, node: NodeId) -> Result<(), SessionError> {
    let mut wake = state.wake.nodes.listen();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sender = Sender::new();
    let mut blobs = Blobs::new(state.images.clone(), client.clone());
    let mut wanted = Set::new();
    let mut read = false;
    loop {
        tokio::select! {
            () = wake.woken() => {}
            _ = heartbeat.tick() => {}
            () = blobs.finished() => {}
        }
        match read_wanted(state, node, &wanted).await {
            Ok(set) => {
                wanted = set;
                read = true;
            }
            // The node hears that the control plane lives, and keeps what it has.
            Err(error) => {
                tracing::warn!(%node, error = chain(&error), "cannot read what is wanted of a node")
            }
        }
        if !read {
            // An empty snapshot would stop everything.
            continue;
        }
        let mut message = sender.message(&wanted);
        let mut ack = client.desired(&message).await?;
        if ack.need_snapshot {
            message = sender.snapshot(&wanted);
            ack = client.desired(&message).await?;
            if ack.need_snapshot {
                return Err(SessionError::SnapshotRefused);
            }
        }
        if !sender.taken(&message, &wanted, ack.epoch, ack.version) {
            return Err(SessionError::WrongVersion);
        }
        state.observed.heard(node);
        state.observed.acknowledged(node, sender.held());
        blobs.send(ack.missing_blobs);
    }
}

/// The wanted set of a node; specs that are in `known` are taken from there.
async fn read_wanted(state: &AppState, node: NodeId, known: &Set) -> Result<Set, StoreError> {
    let mut wanted = Set::new();
    let mut releases = HashMap::new();
    for row in state.store.instances_on(node).await? {
        if let Some(spec) = known.get(&row.id) {
            wanted.insert(row.id, spec.clone());
            continue;
        }
        let release = match releases.get(&row.release) {
            Some(release) => release,
            None => {
                let Some(release) = state.store.release(row.release).await? else {
                    missing(row.id, row.release);
                    continue;
                };
                &*releases.entry(row.release).or_insert(release)
            }
        };
        let Some(app) = state.store.app(row.app).await? else { continue };
        match spec::of(&app, release, &row) {
            Some(spec) => {
                wanted.insert(row.id, spec);
            }
            None => missing(row.id, row.release),
        }
    }
    let builds = state.store.build_specs_on(node).await?;
    wanted.extend(builds.into_iter().map(|spec| (spec.id, spec)));
    Ok(wanted)
}

fn missing(instance: InstanceId, release: ReleaseId) {
    tracing::error!(%instance, %release, "an instance's release or process type is gone");
}
