//! The loop that brings what is to what is wanted. It takes a wake-up and no data: each pass reads the
//! store and what is seen afresh, asks [`plan()`] for the next steps of every app, does them, and
//! publishes the routing table that follows. One task does all of it, so that a table is never made of
//! rows that are older than the steps taken on them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use mogok_api::id::{AppId, NodeId, ReleaseId};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::deploy::AppView;
use crate::routes::table::{self, Endpoint};
use crate::routes::{Endpoints, EndpointsError};
use crate::state::AppState;
use crate::store::StoreError;
use crate::store::apps::AppRow;
use crate::store::deploys::LatestDeploy;
use crate::store::instances::InstanceRow;
use crate::store::nodes::NodePolicy;
use crate::store::releases::ReleaseRow;

mod act;
mod plan;
#[cfg(test)]
mod tests;
mod verdict;
mod world;

pub use plan::{Action, Seen, plan};
use world::World;

/// A pass is made so often without a wake-up: for what only time changes.
const TICK: Duration = Duration::from_secs(2);
/// Longest pause after a pass. It lasts as long as the pass did: a small platform acts at once, and on a large
/// one, where wake-ups come faster than passes end, half of the time is left to the others.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How long the first table waits for nodes that were not heard of.
const FIRST_TABLE: Duration = Duration::from_secs(10);

/// Runs until `stop` is cancelled.
///
/// # Errors
/// When the last known endpoints cannot be read at the start.
pub async fn run(state: AppState, stop: CancellationToken) -> Result<(), EndpointsError> {
    let endpoints = Endpoints::open(&state.config.state_dir.join("endpoints.json"))?;
    let mut wanted = state.wake.reconcile.listen();
    let mut routes = state.wake.routes.listen();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reconciler =
        Reconciler { state, endpoints, releases: HashMap::new(), started: Instant::now(), published: false };
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = wanted.woken() => {}
            () = routes.woken() => {}
            _ = tick.tick() => {}
        }
        let began = Instant::now();
        if let Err(error) = reconciler.pass().await {
            tracing::error!(%error, cause = ?std::error::Error::source(&error), "a reconcile pass failed");
        }
        tokio::time::sleep(began.elapsed().min(LONGEST_PAUSE)).await;
    }
}

struct Reconciler {
    state: AppState,
    endpoints: Endpoints,
    /// Current releases; a release never changes.
    releases: HashMap<ReleaseId, ReleaseRow>,
    started: Instant,
    published: bool,
}

/// What the store says, read in an order that makes each app at least as new as its deploy.
struct Stored {
    latest: HashMap<AppId, LatestDeploy>,
    instances: HashMap<AppId, Vec<InstanceRow>>,
    apps: Vec<AppRow>,
    draining: HashSet<NodeId>,
}

impl Stored {
    async fn read(state: &AppState) -> Result<Self, StoreError> {
        let latest = state.store.latest_deploys().await?;
        let mut instances: HashMap<AppId, Vec<InstanceRow>> = HashMap::new();
        for row in state.store.all_instances().await? {
            instances.entry(row.app).or_default().push(row);
        }
        let apps = state.store.all_apps().await?;
        let nodes = state.store.nodes().await?;
        let draining = nodes
            .into_iter()
            .filter(|node| node.policy == NodePolicy::Draining)
            .map(|node| node.id)
            .collect();
        Ok(Self { latest, instances, apps, draining })
    }

    fn view<'a>(&'a self, app: &'a AppRow, releases: &'a HashMap<ReleaseId, ReleaseRow>) -> AppView<'a> {
        AppView {
            app,
            release: app.current_release.and_then(|id| releases.get(&id)),
            latest: self.latest.get(&app.id),
            instances: self.instances.get(&app.id).map_or(&[], Vec::as_slice),
            draining: &self.draining,
        }
    }
}

impl Reconciler {
    async fn pass(&mut self) -> Result<(), StoreError> {
        let mut stored = Stored::read(&self.state).await?;
        self.read_releases(&stored.apps).await?;
        let mut steps = act::Steps::new(&self.state);
        for app in &stored.apps {
            let view = stored.view(app, &self.releases);
            for action in plan(&view, &World::new(&self.state)) {
                if let Err(error) = steps.take(&view, action).await {
                    // The other apps go on; this one is planned anew in the next pass.
                    tracing::error!(app = %app.name, %error, cause = ?std::error::Error::source(&error), "cannot take a step");
                    break;
                }
            }
        }
        if steps.finish() {
            stored = Stored::read(&self.state).await?;
            self.read_releases(&stored.apps).await?;
        }
        self.publish(&stored);
        Ok(())
    }

    /// The current releases of the apps that run, each read once.
    async fn read_releases(&mut self, apps: &[AppRow]) -> Result<(), StoreError> {
        let current: HashSet<ReleaseId> =
            apps.iter().filter(|app| app.running).filter_map(|app| app.current_release).collect();
        self.releases.retain(|id, _| current.contains(id));
        for id in current {
            if !self.releases.contains_key(&id)
                && let Some(release) = self.state.store.release(id).await?
            {
                self.releases.insert(id, release);
            }
        }
        Ok(())
    }

    /// Publishes the table of what is wanted and seen now; the first one when every configured node has said
    /// what runs there, or after 10 s with the last known endpoints of those that have not.
    fn publish(&mut self, stored: &Stored) {
        let nodes = self.state.observed.nodes();
        let synced: HashSet<NodeId> =
            nodes.into_iter().filter(|node| node.synced).map(|node| node.info.id).collect();
        let ready = synced.len() >= self.state.config.agents.len() || self.started.elapsed() >= FIRST_TABLE;
        if !self.published && !ready {
            return;
        }
        self.published = true;
        let (mut routed, mut routes) = (BTreeMap::new(), BTreeMap::new());
        for app in &stored.apps {
            let view = stored.view(app, &self.releases);
            let on: HashMap<_, _> = view.instances.iter().map(|row| (row.id, row.node)).collect();
            let endpoint = |id| match self.state.observed.status(id) {
                Some(status) => Endpoint::Seen(Box::new(status)),
                None if on.get(&id).is_some_and(|node| synced.contains(node)) => Endpoint::Unknown,
                None => self.endpoints.get(id).map_or(Endpoint::Unknown, Endpoint::Remembered),
            };
            if let Some(route) = table::route(&view, &self.state.config.app_host(&app.name), endpoint) {
                routed.extend(route.upstreams.iter().map(|upstream| (upstream.instance, upstream.address)));
                routes.insert(app.name.clone(), route);
            }
        }
        if let Err(error) = self.endpoints.keep(routed) {
            tracing::warn!(%error, "cannot keep the last known endpoints");
        }
        self.state.routes.publish(routes);
    }
}
