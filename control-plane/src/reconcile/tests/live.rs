//! The loops together, over the real wire: a control plane on a temporary directory, an agent and a
//! router that are not real but speak the contracts, and the developer's writes to the store.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use mogok_api::app::Plan;
use mogok_api::control::LogSource;
use mogok_api::id::DeployId;
use mogok_api::route::RouteState;

use super::*;
use crate::config::Config;
use crate::log_store::Filter;
use crate::node;
use crate::routes::{self, Routes, Timing};
use crate::store::Store;
use crate::store::apps::AppRow;
use crate::store::releases::NewRelease;

mod agent;
mod router;

use agent::FakeAgent;
use router::FakeRouter;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    config: Config,
}

/// A running control plane.
struct Plane {
    state: AppState,
    stop: CancellationToken,
    parts: tokio::task::JoinSet<()>,
}

impl Plane {
    async fn start(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name).display().to_string();
        let agent = format!("unix:{}", path("agent.sock"));
        let line =
            ["x", "--state-dir", &path("state"), "--node-socket", &path("node.sock"), "--agent", &agent];
        let config = Line::try_parse_from(line).unwrap().config;
        let mut state = AppState::open(config).await.unwrap();
        let timing = Timing {
            router_lost: Duration::from_secs(10),
            settle: Duration::from_millis(300),
            release_bound: Duration::from_secs(60),
        };
        state.routes = Routes::new(state.wake.clone(), timing);
        let stop = CancellationToken::new();
        let mut parts = tokio::task::JoinSet::new();
        let (one, two) = (state.clone(), stop.clone());
        parts.spawn(async move { node::run(one, two).await.unwrap() });
        parts.spawn(state.routes.clone().run(stop.clone()));
        let (one, two) = (state.clone(), stop.clone());
        parts.spawn(async move { run(one, two).await.unwrap() });
        let (one, two) = (state.clone(), stop.clone());
        parts.spawn(async move { routes::serve(one, two).await.unwrap() });
        Self { state, stop, parts }
    }

    /// Ends it in the middle of whatever it does.
    async fn kill(mut self) {
        self.parts.shutdown().await;
        drop(self.stop);
        // The kernel would do this.
        self.state.routes.close();
        self.state.store.pool.close().await;
    }

    fn wake(&self) {
        self.state.wake.reconcile.wake();
    }

    async fn deployed(&self, id: DeployId) -> DeployRow {
        self.wake();
        let deploy = async || self.state.store.deploy(id).await.unwrap().unwrap();
        eventually("the deploy ends", async || deploy().await.state != DeployState::Running).await;
        deploy().await
    }

    async fn release(&self, app: &AppRow, command: &str) -> ReleaseRow {
        let package = self.state.images.put(command.as_bytes(), 1000).unwrap();
        let new = NewRelease {
            description: "build".to_owned(),
            commit: None,
            package,
            image: "ruby".parse().unwrap(),
            image_digest: None,
            processes: BTreeMap::from([("web".parse().unwrap(), command.to_owned())]),
        };
        let release = self.state.store.create_release(app.id, &new).await.unwrap();
        self.wake();
        release
    }

    async fn latest(&self, app: &AppRow) -> DeployId {
        self.state.store.latest_deploys().await.unwrap()[&app.id].deploy.id
    }

    async fn rows(&self, app: &AppRow) -> BTreeSet<InstanceId> {
        self.state.store.instances_of(app.id).await.unwrap().into_iter().map(|row| row.id).collect()
    }

    async fn log(&self, app: &AppRow, source: LogSource) -> Vec<String> {
        let lines = self.state.logs.read_last(app.id, 1000, Filter::default()).await.unwrap();
        lines.into_iter().filter(|line| line.source == source).map(|line| line.line).collect()
    }
}

/// Polls until it is true; fails after 20 s.
async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn new_app(store: &Store) -> AppRow {
    let user = store.create_user("a@example.com", "hash").await.unwrap();
    store.create_app(user.id, &"fugafuga".parse().unwrap(), "secret").await.unwrap()
}

#[tokio::test]
async fn deploy_scale_restart_fail_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let router = FakeRouter::start(&dir.path().join("node.sock"));
    let agent = FakeAgent::start(&dir.path().join("agent.sock"), router.applied());
    let plane = Plane::start(dir.path()).await;
    let store = &plane.state.store;
    let app = new_app(store).await;
    plane.wake();
    eventually("the router knows the app", async || router.state("fugafuga") == Some(RouteState::NoRelease))
        .await;

    plane.release(&app, "puma").await;
    let deploy = store.start_app(app.id).await.unwrap();
    let deploy = plane.deployed(deploy.id).await;
    assert_eq!(deploy.state, DeployState::Succeeded, "{:?}", deploy.message);
    let first = router.applied_now();
    assert_eq!(first, plane.rows(&app).await);
    assert_eq!(first.len(), 1, "it is routed when the deploy is done");
    assert_eq!(agent.blobs(), 1, "the package was sent");
    eventually("its output is in the log", async || plane.log(&app, LogSource::App).await == ["hello"]).await;

    let two = BTreeMap::from([("web".parse().unwrap(), 2)]);
    let deploy = store.scale_app(app.id, Plan::Paid, &two).await.unwrap();
    assert_eq!(plane.deployed(deploy.id).await.state, DeployState::Succeeded);
    let scaled = router.applied_now();
    assert!(scaled.is_superset(&first) && scaled.len() == 2);

    let deploy = store.restart_app(app.id).await.unwrap();
    assert_eq!(plane.deployed(deploy.id).await.state, DeployState::Succeeded);
    eventually("the old are gone", async || agent.instances() == plane.rows(&app).await).await;
    let restarted = router.applied_now();
    assert!(restarted.is_disjoint(&scaled) && restarted.len() == 2);

    plane.release(&app, "broken").await;
    let deploy = plane.deployed(plane.latest(&app).await).await;
    assert_eq!(deploy.state, DeployState::Failed);
    assert!(deploy.message.unwrap().contains("exited with status 1"));
    eventually("the new are gone", async || plane.rows(&app).await == restarted).await;
    assert_eq!(router.applied_now(), restarted, "the old go on");

    router.drain(true);
    let deploy = store.stop_app(app.id).await.unwrap();
    plane.wake();
    eventually("the app is unrouted", async || router.state("fugafuga") == Some(RouteState::NoWeb)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(agent.instances(), restarted, "a request is in flight");
    router.drain(false);
    assert_eq!(plane.deployed(deploy.id).await.state, DeployState::Succeeded);
    assert!(agent.instances().is_empty() && plane.rows(&app).await.is_empty());

    store.destroy_app(app.id).await.unwrap();
    plane.wake();
    eventually("the app is removed", async || store.app(app.id).await.unwrap().is_none()).await;
    eventually("its route is gone", async || router.state("fugafuga").is_none()).await;
    assert_eq!(agent.violations(), Vec::<String>::new());
    assert!(!router.was_empty_while_running(), "visitors always had somebody to go to");
    plane.stop.cancel();
}

#[tokio::test]
async fn a_control_plane_that_dies_in_the_middle_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let router = FakeRouter::start(&dir.path().join("node.sock"));
    let agent = FakeAgent::start(&dir.path().join("agent.sock"), router.applied());
    let plane = Plane::start(dir.path()).await;
    let app = new_app(&plane.state.store).await;
    plane.release(&app, "puma").await;
    let deploy = plane.state.store.start_app(app.id).await.unwrap();
    assert_eq!(plane.deployed(deploy.id).await.state, DeployState::Succeeded);
    eventually("its output is in the log", async || plane.log(&app, LogSource::App).await == ["hello"]).await;
    let before = router.applied_now();

    // In the middle: the new one is up and routed, the old one waits for the router.
    router.drain(true);
    let deploy = plane.state.store.restart_app(app.id).await.unwrap();
    plane.wake();
    eventually("the old one is unrouted", async || {
        router.applied_now().is_disjoint(&before) && !router.applied_now().is_empty()
    })
    .await;
    plane.kill().await;
    assert_eq!(agent.instances().len(), 2, "both go on without a control plane");
    let routed = router.applied_now();

    let plane = Plane::start(dir.path()).await;
    eventually("the router is back", async || router.snapshots() >= 2).await;
    assert_eq!(router.applied_now(), routed, "the first table drops nobody");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(agent.instances().len(), 2, "the router still drains");
    router.drain(false);
    assert_eq!(plane.deployed(deploy.id).await.state, DeployState::Succeeded);
    eventually("the old one is gone", async || agent.instances() == routed).await;
    eventually("its row is gone", async || plane.rows(&app).await == routed).await;
    eventually("each line is in the log once", async || {
        plane.log(&app, LogSource::App).await == ["hello", "hello"]
    })
    .await;

    // The node is away while the next one starts: what it runs stays in the table.
    plane.kill().await;
    agent.silence(true);
    let seen = router.snapshots();
    let plane = Plane::start(dir.path()).await;
    eventually("the first table is sent without the node", async || router.snapshots() > seen).await;
    assert_eq!(router.applied_now(), routed);
    agent.silence(false);
    let state = &plane.state;
    eventually("the node is met", async || state.observed.nodes().iter().any(|node| node.synced)).await;
    assert_eq!(router.applied_now(), routed);
    assert_eq!(agent.violations(), Vec::<String>::new());
    assert!(!router.was_empty_while_running());
    plane.stop.cancel();
}
