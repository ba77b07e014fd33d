//! The routing table of an app: a pure function of what is wanted and of what is seen. New instances
//! wait until all of them are up while old ones serve, so visitors never meet a release that is about
//! to fail; an instance that is not up gets no requests.

use std::net::SocketAddr;

use mogok_api::id::InstanceId;
use mogok_api::instance::{InstanceStatus, Phase};
use mogok_api::route::{AppRoute, RouteState, Upstream};

use crate::deploy::{AppView, Rollout};
use crate::store::instances::{InstanceRow, Wanted};

/// Where an instance answers, as far as is known.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// Its node says so.
    Seen(Box<InstanceStatus>),
    /// Its node was not heard of since the start of this control plane, and it was up before.
    Remembered(SocketAddr),
    /// Nothing is known.
    Unknown,
}

impl Endpoint {
    /// Where requests can go now.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Seen(status) => status.endpoint.filter(|_| status.phase == Phase::Up),
            Self::Remembered(address) => Some(*address),
            Self::Unknown => None,
        }
    }
}

/// The app's route; nothing for an app that is being destroyed.
#[must_use]
pub fn route(view: &AppView<'_>, host: &str, endpoint: impl Fn(InstanceId) -> Endpoint) -> Option<AppRoute> {
    if view.app.destroying {
        return None;
    }
    let rollout = Rollout::of(view);
    let web: Vec<&InstanceRow> =
        view.instances.iter().filter(|row| row.wanted == Wanted::Run && row.process.kind.is_web()).collect();
    let address = |id| endpoint(id).address();
    let old_serves = web.iter().any(|row| rollout.olds.contains(&row.id) && address(row.id).is_some());
    let all_up = rollout.is_up(|id| match endpoint(id) {
        Endpoint::Seen(status) => status.phase == Phase::Up,
        Endpoint::Remembered(_) => true,
        Endpoint::Unknown => false,
    });
    let hold_back = |row: &InstanceRow| old_serves && !all_up && !rollout.olds.contains(&row.id);
    let mut upstreams: Vec<Upstream> = web
        .iter()
        .filter(|row| !hold_back(row))
        .filter_map(|row| {
            let address = address(row.id)?;
            Some(Upstream { instance: row.id, process: row.process.clone(), address })
        })
        .collect();
    upstreams.sort_by(|a, b| (&a.process, a.instance).cmp(&(&b.process, b.instance)));
    let state = if !upstreams.is_empty() {
        RouteState::Running
    } else if view.app.current_release.is_none() {
        RouteState::NoRelease
    } else if !rollout.slots.iter().any(|slot| slot.kind.is_web()) {
        RouteState::NoWeb
    } else {
        without_upstream(&web, endpoint)
    };
    Some(AppRoute { app: view.app.name.clone(), hosts: vec![host.to_owned()], state, upstreams })
}

/// Why an app that should answer has nobody who does.
fn without_upstream(web: &[&InstanceRow], endpoint: impl Fn(InstanceId) -> Endpoint) -> RouteState {
    let statuses: Vec<InstanceStatus> = web
        .iter()
        .filter_map(|row| match endpoint(row.id) {
            Endpoint::Seen(status) => Some(*status),
            _ => None,
        })
        .collect();
    // One that starts again after a crash has crashed, for the visitor who would wait for it.
    let crashed = |status: &InstanceStatus| {
        matches!(status.phase, Phase::Crashed | Phase::Exited) || status.restarts > 0
    };
    if !statuses.is_empty() && statuses.len() == web.len() && statuses.iter().all(crashed) {
        return RouteState::Crashed;
    }
    // From its first moment: the router holds no request back until an instance is up, so the visitor is told
    // at once what is so. How long a boot may take is its node's to say, which then calls it a crash.
    RouteState::Booting
}
