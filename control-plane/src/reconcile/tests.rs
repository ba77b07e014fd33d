//! The plan against a simulated platform: a node that starts things (or sees them crash), one router
//! that applies tables late, and a developer who changes their mind at any time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use chrono::TimeDelta;
use mogok_api::control::DeployState;
use mogok_api::id::{DeployId, InstanceId, UserId};
use mogok_api::instance::{ContainerKind, ExitStatus, InstanceStatus, Phase};
use mogok_api::name::{ProcessName, ReleaseNumber};
use mogok_api::route::{AppRoute, RouteState};
use proptest::prelude::*;

use super::*;
use crate::deploy::Rollout;
use crate::store::deploys::{DeployAction, DeployRow};
use crate::store::instances::Wanted;
use crate::store::now;

mod live;

/// One app on one node behind one router.
struct Sim {
    app: AppRow,
    release: ReleaseRow,
    /// Releases whose processes end at once.
    broken: HashSet<ReleaseId>,
    latest: Option<LatestDeploy>,
    rows: Vec<InstanceRow>,
    status: HashMap<InstanceId, InstanceStatus>,
    node: NodeId,
    /// Tables on their way to the router, the newest last; then the one it has applied.
    sent: VecDeque<BTreeSet<InstanceId>>,
    applied: BTreeSet<InstanceId>,
    destroyed: bool,
}

/// What may happen.
#[derive(Debug, Clone)]
enum Event {
    Start,
    Stop,
    Restart,
    Scale(u32),
    Release {
        broken: bool,
    },
    Destroy,
    /// The control plane makes a pass.
    Pass,
    /// The node goes on by one step.
    Node,
    /// The router applies the next table.
    Router,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Start),
        1 => Just(Event::Stop),
        2 => Just(Event::Restart),
        2 => (0u32..4).prop_map(Event::Scale),
        3 => any::<bool>().prop_map(|broken| Event::Release { broken }),
        12 => Just(Event::Pass),
        8 => Just(Event::Node),
        8 => Just(Event::Router),
    ]
}

impl Seen for Sim {
    fn status(&self, instance: InstanceId) -> Option<InstanceStatus> {
        self.status.get(&instance).cloned()
    }
    fn removed(&self, instance: &InstanceRow) -> bool {
        !self.status.contains_key(&instance.id)
    }
    fn carried(&self, instances: &[InstanceId]) -> bool {
        instances.iter().all(|id| self.applied.contains(id))
    }
    fn released(&self, instance: InstanceId) -> bool {
        !self.applied.contains(&instance) && self.sent.iter().all(|table| !table.contains(&instance))
    }
}

impl Sim {
    fn new() -> Self {
        let app = AppRow {
            id: AppId::new(),
            name: "fugafuga".parse().unwrap(),
            owner: UserId::new(),
            created_at: now(),
            running: false,
            formation: BTreeMap::from([("web".parse().unwrap(), 1), ("worker".parse().unwrap(), 1)]),
            config: BTreeMap::new(),
            secret_key_base: String::new(),
            current_release: None,
            current_number: None,
            destroying: false,
        };
        let release = ReleaseRow {
            id: ReleaseId::new(),
            app: app.id,
            number: ReleaseNumber::FIRST,
            created_at: now(),
            description: String::new(),
            commit: None,
            package: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            image: "ruby".parse().unwrap(),
            image_digest: None,
            processes: BTreeMap::from([
                ("web".parse().unwrap(), "run".to_owned()),
                ("worker".parse().unwrap(), "work".to_owned()),
            ]),
            config: BTreeMap::new(),
        };
        Self {
            app,
            release,
            broken: HashSet::new(),
            latest: None,
            rows: Vec::new(),
            status: HashMap::new(),
            node: NodeId::new(),
            sent: VecDeque::new(),
            applied: BTreeSet::new(),
            destroyed: false,
        }
    }

    fn view(&self) -> AppView<'_> {
        static NONE: std::sync::LazyLock<HashSet<NodeId>> = std::sync::LazyLock::new(HashSet::new);
        AppView {
            app: &self.app,
            release: self.app.current_release.map(|_| &self.release),
            latest: self.latest.as_ref(),
            instances: &self.rows,
            draining: &NONE,
        }
    }

    fn deploy(&mut self, action: DeployAction) {
        let last = self.latest.as_ref();
        let at = last.map_or_else(now, |last| last.deploy.created_at + TimeDelta::microseconds(1));
        let restarted_at =
            if action == DeployAction::Restart { Some(at) } else { last.and_then(|l| l.restarted_at) };
        let deploy = DeployRow {
            id: DeployId::new(),
            app: self.app.id,
            state: DeployState::Running,
            action,
            release: self.app.current_release,
            number: None,
            created_at: at,
            ended_at: None,
            message: None,
        };
        self.latest = Some(LatestDeploy { deploy, restarted_at });
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Start => {
                self.app.running = true;
                self.deploy(DeployAction::Start);
            }
            Event::Stop => {
                self.app.running = false;
                self.deploy(DeployAction::Stop);
            }
            Event::Restart => self.deploy(DeployAction::Restart),
            Event::Scale(web) => {
                self.app.formation.insert("web".parse().unwrap(), *web);
                self.deploy(DeployAction::Scale);
            }
            Event::Release { broken } => {
                self.release.id = ReleaseId::new();
                if *broken {
                    self.broken.insert(self.release.id);
                }
                self.app.current_release = Some(self.release.id);
                self.deploy(DeployAction::Release);
            }
            Event::Destroy => {
                self.app.destroying = true;
            }
            Event::Pass => self.pass(),
            Event::Node => self.node(),
            Event::Router => {
                if let Some(table) = self.sent.pop_front() {
                    self.applied = table;
                }
            }
        }
    }

    fn pass(&mut self) {
        for action in plan(&self.view(), self) {
            self.act(action);
        }
        let route = self.route();
        let table: BTreeSet<_> =
            route.iter().flat_map(|route| &route.upstreams).map(|upstream| upstream.instance).collect();
        if self.sent.back().unwrap_or(&self.applied) != &table {
            self.sent.push_back(table);
        }
    }

    fn route(&self) -> Option<AppRoute> {
        let endpoint =
            |id| self.status(id).map_or(Endpoint::Unknown, |status| Endpoint::Seen(Box::new(status)));
        table::route(&self.view(), "h", endpoint)
    }

    fn act(&mut self, action: Action) {
        let row = |rows: &mut Vec<InstanceRow>, id| rows.iter_mut().position(|row| row.id == id).unwrap();
        match action {
            Action::Start(process) => {
                let twin = |row: &InstanceRow| {
                    row.process == process
                        && row.wanted == Wanted::Run
                        && Rollout::of(&self.view()).news.get(&process) == Some(&row.id)
                };
                assert!(!self.rows.iter().any(twin), "a slot that is taken");
                self.rows.push(InstanceRow {
                    id: InstanceId::new(),
                    app: self.app.id,
                    release: self.release.id,
                    deploy: self.latest.as_ref().map(|latest| latest.deploy.id),
                    deployed_at: self.latest.as_ref().map(|latest| latest.deploy.created_at),
                    process,
                    node: self.node,
                    wanted: Wanted::Run,
                    created_at: now(),
                });
            }
            Action::Unroute(id) => {
                let at = row(&mut self.rows, id);
                assert_eq!(self.rows[at].wanted, Wanted::Run);
                let rollout = Rollout::of(&self.view());
                let up = |id| self.status(id).is_some_and(|status| status.phase == Phase::Up);
                if rollout.olds.contains(&id) && rollout.is_up(up) {
                    let known = rollout.web().iter().all(|id| self.applied.contains(id));
                    assert!(known, "an old one leaves before the router knows the new");
                }
                self.rows[at].wanted = Wanted::Unroute;
            }
            Action::Stop(id) => {
                let at = row(&mut self.rows, id);
                assert_eq!(self.rows[at].wanted, Wanted::Unroute);
                assert!(!self.applied.contains(&id), "the router still sends requests to {id}");
                assert!(!self.sent.iter().any(|table| table.contains(&id)), "the router is about to");
                self.rows[at].wanted = Wanted::Stop;
            }
            Action::Forget(id) => {
                let at = row(&mut self.rows, id);
                assert_eq!(self.rows[at].wanted, Wanted::Stop);
                assert!(!self.status.contains_key(&id), "it is still on its node");
                self.rows.remove(at);
            }
            Action::Note(id, message) => {
                let deploy = &mut self.latest.as_mut().unwrap().deploy;
                assert_eq!((deploy.id, deploy.state), (id, DeployState::Running));
                deploy.message = Some(message);
            }
            Action::End(id, state, message) => {
                let deploy = &mut self.latest.as_mut().unwrap().deploy;
                assert_eq!((deploy.id, deploy.state), (id, DeployState::Running));
                deploy.state = state;
                deploy.message = message;
            }
            Action::FinishDestroy => {
                assert!(self.rows.is_empty() && self.status.is_empty());
                self.destroyed = true;
            }
        }
    }

    /// Every instance goes on by one step.
    fn node(&mut self) {
        for row in &self.rows {
            if row.wanted == Wanted::Stop {
                self.status.remove(&row.id);
                continue;
            }
            let broken = self.broken.contains(&row.release);
            let (phase, restarts) =
                match self.status.get(&row.id).map(|status| (status.phase, status.restarts)) {
                    None => (Phase::Pending, 0),
                    Some((Phase::Pending, restarts)) => (Phase::Starting, restarts),
                    Some((Phase::Starting, restarts)) => {
                        (if broken { Phase::Crashed } else { Phase::Up }, restarts)
                    }
                    Some((Phase::Crashed, restarts)) => (Phase::Starting, restarts + 1),
                    Some(same) => same,
                };
            self.status.insert(row.id, status(row, phase, restarts));
        }
    }

    /// Until nothing moves any more.
    fn quiesce(&mut self) {
        for _ in 0..60 {
            for event in [Event::Pass, Event::Node, Event::Router] {
                self.happen(&event);
            }
        }
        // The last table is applied too.
        while !self.sent.is_empty() {
            self.happen(&Event::Router);
        }
    }

    fn works(&self) -> bool {
        self.app.current_release.is_some_and(|id| !self.broken.contains(&id))
    }
}

fn status(row: &InstanceRow, phase: Phase, restarts: u32) -> InstanceStatus {
    let crashed = restarts > 0 || phase == Phase::Crashed;
    InstanceStatus {
        id: row.id,
        app: "fugafuga".parse().unwrap(),
        process: row.process.clone(),
        release: None,
        kind: ContainerKind::App,
        phase,
        since: now(),
        endpoint: row.process.kind.is_web().then(|| "10.88.0.1:20000".parse().unwrap()),
        restarts,
        exit: crashed.then_some(ExitStatus { code: Some(1), signal: None, out_of_memory: false }),
        failure: None,
        last_lines: if crashed { vec!["boom\u{1b}".to_owned(), " ".to_owned()] } else { Vec::new() },
        restart_at: None,
        output: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The steps' own rules are asserted where the simulation takes them.
    #[test]
    fn whatever_happens_the_app_ends_as_it_is_wanted(events in prop::collection::vec(event(), 0..60)) {
        let mut sim = Sim::new();
        for event in &events {
            sim.happen(event);
        }
        sim.quiesce();
        let rollout = Rollout::of(&sim.view());
        if let Some(latest) = &sim.latest {
            prop_assert_ne!(latest.deploy.state, DeployState::Running, "{:?}", latest.deploy.message);
        }
        if !sim.app.running || sim.app.current_release.is_none() {
            prop_assert!(sim.rows.is_empty() && sim.applied.is_empty());
        } else if sim.works() {
            prop_assert!(rollout.missing.is_empty() && rollout.olds.is_empty() && rollout.surplus.is_empty());
            prop_assert_eq!(sim.rows.len(), rollout.slots.len(), "nothing else is left");
            prop_assert_eq!(&sim.applied, &rollout.web().into_iter().collect());
            prop_assert_eq!(sim.latest.as_ref().unwrap().deploy.state, DeployState::Succeeded);
        } else if !rollout.slots.is_empty() {
            prop_assert_eq!(sim.latest.as_ref().unwrap().deploy.state, DeployState::Failed);
            prop_assert!(rollout.news.is_empty() || rollout.olds.is_empty(), "either it is held or it is tried");
        }
        // What a visitor can be sent to is up.
        for id in &sim.applied {
            prop_assert_eq!(sim.status[id].phase, Phase::Up);
        }
        sim.happen(&Event::Destroy);
        sim.quiesce();
        prop_assert!(sim.destroyed && sim.rows.is_empty());
    }

    /// From the moment the app serves, as long as nobody stops it or scales its web process to nothing.
    #[test]
    fn an_app_that_serves_goes_on_serving(
        events in prop::collection::vec(
            event().prop_filter("stops it", |event| !matches!(event, Event::Stop | Event::Scale(0))),
            0..60,
        )
    ) {
        let mut sim = Sim::new();
        for event in [Event::Release { broken: false }, Event::Start] {
            sim.happen(&event);
        }
        sim.quiesce();
        for event in &events {
            sim.happen(event);
            let serves = |id: &InstanceId| {
                let wanted = sim.rows.iter().find(|row| row.id == *id).map(|row| row.wanted);
                wanted.is_some_and(|wanted| wanted != Wanted::Stop)
                    && sim.status.get(id).is_some_and(|status| status.phase == Phase::Up)
            };
            prop_assert!(!sim.applied.is_empty(), "after {event:?} the router has nobody");
            prop_assert!(sim.applied.iter().all(serves), "after {event:?} the router has one that is gone");
        }
    }
}

#[test]
fn a_failed_deploy_says_why_and_leaves_the_old_alone() {
    let mut sim = Sim::new();
    for event in [Event::Release { broken: false }, Event::Start] {
        sim.happen(&event);
    }
    sim.quiesce();
    let before: BTreeSet<_> = sim.rows.iter().map(|row| row.id).collect();
    sim.happen(&Event::Release { broken: true });
    sim.quiesce();
    let deploy = &sim.latest.as_ref().unwrap().deploy;
    assert_eq!(deploy.state, DeployState::Failed);
    assert_eq!(
        deploy.message.as_deref(),
        Some("web.1 did not come up: exited with status 1 (last line: boom)")
    );
    assert_eq!(sim.rows.iter().map(|row| row.id).collect::<BTreeSet<_>>(), before);
}

#[test]
fn a_start_is_an_attempt_of_its_own_also_while_a_crashed_process_waits() {
    let mut sim = Sim::new();
    sim.happen(&Event::Release { broken: true });
    sim.happen(&Event::Start);
    sim.quiesce();
    assert_eq!(sim.latest.as_ref().unwrap().deploy.state, DeployState::Failed);
    // What it needs is back.
    sim.broken.clear();
    sim.happen(&Event::Start);
    sim.quiesce();
    let deploy = &sim.latest.as_ref().unwrap().deploy;
    assert_eq!((deploy.state, &deploy.message), (DeployState::Succeeded, &None));
    let again: Vec<_> = sim.rows.iter().filter(|row| row.deploy != Some(deploy.id)).collect();
    assert!(again.is_empty() && sim.rows.len() == 2, "{again:?}");
}

#[test]
fn a_start_without_a_build_says_what_to_do() {
    let mut sim = Sim::new();
    sim.happen(&Event::Start);
    sim.quiesce();
    let deploy = &sim.latest.as_ref().unwrap().deploy;
    assert_eq!(deploy.state, DeployState::Failed);
    assert!(deploy.message.as_ref().unwrap().contains("mogok build"));
}

#[test]
fn who_has_no_upstream_is_stopped_booting_or_crashed() {
    let mut sim = Sim::new();
    let state = |sim: &Sim| sim.route().unwrap().state;
    assert_eq!(state(&sim), RouteState::NoRelease);
    sim.happen(&Event::Release { broken: false });
    assert_eq!(state(&sim), RouteState::NoWeb);
    sim.happen(&Event::Start);
    assert_eq!(state(&sim), RouteState::Booting, "it is started, and nothing was placed yet");
    sim.happen(&Event::Pass);
    for phase in [None, Some(Phase::Pending), Some(Phase::Starting)] {
        assert_eq!(sim.status.get(&sim.rows[0].id).map(|status| status.phase), phase);
        assert_eq!(state(&sim), RouteState::Booting, "{phase:?}");
        sim.happen(&Event::Node);
    }
    assert_eq!(state(&sim), RouteState::Running);
    sim.quiesce();
    sim.happen(&Event::Stop);
    sim.quiesce();
    assert_eq!(state(&sim), RouteState::NoWeb);

    sim.happen(&Event::Release { broken: true });
    sim.happen(&Event::Start);
    sim.happen(&Event::Pass);
    sim.happen(&Event::Node);
    assert_eq!(state(&sim), RouteState::Booting);
    // It crashes, is started again, and crashes again.
    for _ in 0..4 {
        sim.happen(&Event::Node);
        let status = &sim.status[&sim.rows[0].id];
        let tried = status.phase == Phase::Crashed || status.restarts > 0;
        assert_eq!(state(&sim) == RouteState::Crashed, tried, "{status:?}");
    }
    assert_eq!(state(&sim), RouteState::Crashed);
}

#[test]
fn a_stop_says_what_it_waits_for() {
    let mut sim = Sim::new();
    sim.happen(&Event::Release { broken: false });
    sim.happen(&Event::Start);
    sim.quiesce();
    sim.happen(&Event::Stop);
    let mut said = Vec::new();
    for _ in 0..20 {
        // One of the two takes its time.
        sim.happen(&Event::Pass);
        sim.happen(&Event::Router);
        said.extend(sim.latest.as_ref().unwrap().deploy.message.clone());
        if let Some(row) = sim.rows.first().filter(|row| row.wanted == Wanted::Stop) {
            sim.status.remove(&row.id);
        }
    }
    said.dedup();
    assert_eq!(said, ["waiting for 2 instances to stop", "waiting for 1 instance to stop"]);
    assert_eq!(sim.latest.as_ref().unwrap().deploy.state, DeployState::Succeeded);
}

#[test]
fn a_node_that_is_emptied_loses_its_instances_only_when_others_are_up() {
    let mut sim = Sim::new();
    for event in [Event::Release { broken: false }, Event::Start] {
        sim.happen(&event);
    }
    sim.quiesce();
    let draining = HashSet::from([sim.node]);
    let view = AppView { draining: &draining, ..sim.view() };
    let actions = plan(&view, &sim);
    let web: ProcessName = "web.1".parse().unwrap();
    assert_eq!(actions, [Action::Start(web), Action::Start("worker.1".parse().unwrap())]);
}

#[test]
fn who_changes_their_mind_fast_fills_no_node() {
    let mut sim = Sim::new();
    for event in [Event::Release { broken: false }, Event::Start] {
        sim.happen(&event);
    }
    sim.quiesce();
    // One that serves and three under way.
    let most = 4 * sim.rows.len();
    for _ in 0..50 {
        // The node is slower than the developer, and what leaves takes its time.
        for event in [Event::Release { broken: false }, Event::Pass, Event::Router] {
            sim.happen(&event);
        }
        for row in &sim.rows {
            sim.status.entry(row.id).or_insert_with(|| status(row, Phase::Starting, 0));
        }
        assert!(sim.rows.len() <= most, "{} instances", sim.rows.len());
        assert!(sim.rows.iter().any(|row| sim.applied.contains(&row.id)), "nobody serves");
    }
    sim.quiesce();
    assert_eq!(sim.rows.len(), 2);
    assert_eq!(sim.latest.as_ref().unwrap().deploy.state, DeployState::Succeeded);
}
