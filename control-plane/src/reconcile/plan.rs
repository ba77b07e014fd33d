//! What to do next for one app: a pure function of what the store wants and of what is seen. It says
//! the next steps only; the steps after those follow from what is seen then. So it does not matter
//! where a control plane died, and doing nothing but asking again is always safe.
//!
//! ```text
//! (slot is missing) -Start-> run -Unroute-> unroute -Stop-> stop -Forget-> (gone)
//! ```
//! Invariants: an old instance is unrouted only when everything new is up and every router has it; an
//! instance is stopped only when no router sends to it any more; a row goes only when its node says that
//! nothing is left.

use std::collections::BTreeMap;

use mogok_api::control::DeployState;
use mogok_api::id::{DeployId, InstanceId};
use mogok_api::instance::{InstanceStatus, Phase};
use mogok_api::name::ProcessName;

use crate::deploy::{self, AppView, Rollout};
use crate::store::instances::{InstanceRow, Wanted};

/// What is seen, apart from the store.
pub trait Seen {
    /// The last word of the node.
    fn status(&self, instance: InstanceId) -> Option<InstanceStatus>;
    /// Is nothing of it left on its node?
    fn removed(&self, instance: &InstanceRow) -> bool;
    /// Does every live router send requests to all of them?
    fn carried(&self, instances: &[InstanceId]) -> bool;
    /// Does no router send requests to it any more, or has one in flight?
    fn released(&self, instance: InstanceId) -> bool;
}

/// Instances of a process that are on their way in or out, at most, before another is started: a developer who
/// changes their mind faster than instances come and go waits, not the node.
const UNDER_WAY: usize = 3;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Choose a node and want a new instance of the current release there.
    Start(ProcessName),
    /// Take it out of the routing table.
    Unroute(InstanceId),
    /// Take it out of its node's wanted set.
    Stop(InstanceId),
    /// Remove its row.
    Forget(InstanceId),
    /// Say what the deploy waits for.
    Note(DeployId, String),
    /// The deploy is over.
    End(DeployId, DeployState, Option<String>),
    /// Nothing of the app runs any more: remove everything of it.
    FinishDestroy,
}

/// The next steps for an app, in the order in which they are to be done.
#[must_use]
pub fn plan(view: &AppView<'_>, seen: &impl Seen) -> Vec<Action> {
    let rollout = Rollout::of(view);
    let mut actions = leaving(view, seen);
    actions.extend(rollout.surplus.iter().copied().map(Action::Unroute));
    if rollout.slots.is_empty() {
        empty(view, &rollout, &mut actions);
    } else if view.held(&rollout) {
        actions.extend(rollout.news.values().copied().map(Action::Unroute));
    } else {
        roll(view, &rollout, seen, &mut actions);
    }
    actions
}

/// The steps of instances that are on their way out.
fn leaving(view: &AppView<'_>, seen: &impl Seen) -> Vec<Action> {
    let step = |row: &InstanceRow| match row.wanted {
        Wanted::Unroute if !row.process.kind.is_web() || seen.released(row.id) => Some(Action::Stop(row.id)),
        Wanted::Stop if seen.removed(row) => Some(Action::Forget(row.id)),
        _ => None,
    };
    view.instances.iter().filter_map(step).collect()
}

/// Nothing is wanted to run.
fn empty(view: &AppView<'_>, rollout: &Rollout, actions: &mut Vec<Action>) {
    actions.extend(rollout.olds.iter().copied().map(Action::Unroute));
    let left = view.instances.len();
    if let Some(deploy) = running(view) {
        if view.app.running && view.app.current_release.is_none() {
            let message = "nothing was built yet: run `mogok build` first".to_owned();
            actions.push(Action::End(deploy, DeployState::Failed, Some(message)));
        } else if left == 0 {
            actions.push(Action::End(deploy, DeployState::Succeeded, None));
        } else {
            let instances = if left == 1 { "instance" } else { "instances" };
            note(view, deploy, format!("waiting for {left} {instances} to stop"), actions);
        }
    }
    if view.app.destroying && left == 0 {
        actions.push(Action::FinishDestroy);
    }
}

/// Something is wanted: bring it up, and then let the old go.
fn roll(view: &AppView<'_>, rollout: &Rollout, seen: &impl Seen, actions: &mut Vec<Action>) {
    let up = |id| seen.status(id).is_some_and(|status| status.phase == Phase::Up);
    let under_way = |process: &ProcessName| {
        let serves = |row: &InstanceRow| row.wanted == Wanted::Run && up(row.id);
        view.instances.iter().filter(|row| row.process == *process && !serves(row)).count()
    };
    let startable = rollout.missing.iter().filter(|process| under_way(process) < UNDER_WAY);
    actions.extend(startable.cloned().map(Action::Start));
    if rollout.is_up(up) {
        if !seen.carried(&rollout.web()) {
            if let Some(deploy) = running(view) {
                note(view, deploy, "waiting for the routers".to_owned(), actions);
            }
            return;
        }
        actions.extend(rollout.olds.iter().copied().map(Action::Unroute));
        if let Some(deploy) = running(view).filter(|_| rollout.olds.is_empty()) {
            actions.push(Action::End(deploy, DeployState::Succeeded, None));
        }
        return;
    }
    let deploy = running(view);
    let again = failed_before(view, rollout, seen);
    let tried = rollout.news.values().filter(|id| !again.contains(id));
    let mut statuses = tried.filter_map(|id| seen.status(*id));
    let failure = statuses.find_map(|status| deploy::failure(&status)).filter(|_| deploy.is_some());
    actions.extend(again.iter().copied().map(Action::Unroute));
    let leave = if failure.is_some() && !rollout.olds.iter().any(|id| may_serve(seen, *id)) {
        // Neither works. What is wanted stays and is tried again; the old would not be better.
        rollout.olds.clone()
    } else {
        overtaken(view, rollout, seen)
    };
    actions.extend(leave.into_iter().map(Action::Unroute));
    let Some(deploy) = deploy else { return };
    if let Some(reason) = failure {
        actions.push(Action::End(deploy, DeployState::Failed, Some(reason)));
    } else if rollout.missing.is_empty()
        && let Some((name, id)) = rollout.news.iter().find(|(_, id)| !up(**id))
    {
        let phase = seen.status(*id).map_or_else(|| "handed to its node".to_owned(), |s| s.phase.to_string());
        note(view, deploy, format!("waiting for {name} ({phase})"), actions);
    }
}

/// Instances of an earlier deploy that failed and wait for their restart. The deploy under way has new ones made in
/// their place: it answers with how that went and not with how it went before.
fn failed_before(view: &AppView<'_>, rollout: &Rollout, seen: &impl Seen) -> Vec<InstanceId> {
    let Some(latest) = view.latest.filter(|latest| latest.deploy.state == DeployState::Running) else {
        return Vec::new();
    };
    let before = |row: &&InstanceRow| row.deployed_at.is_none_or(|at| at < latest.deploy.created_at);
    let failed = |id: &InstanceId| seen.status(*id).is_some_and(|status| deploy::failure(&status).is_some());
    let of_before = view.instances.iter().filter(before).map(|row| row.id);
    of_before.filter(|id| rollout.news.values().any(|new| new == id)).filter(failed).collect()
}

/// Old instances that need not be waited for: of each process those that are not up beside one that may serve, or
/// else all but the oldest, the likeliest to have served.
fn overtaken(view: &AppView<'_>, rollout: &Rollout, seen: &impl Seen) -> Vec<InstanceId> {
    let mut olds: BTreeMap<&ProcessName, Vec<InstanceId>> = BTreeMap::new();
    for row in view.instances.iter().filter(|row| rollout.olds.contains(&row.id)) {
        olds.entry(&row.process).or_default().push(row.id);
    }
    let mut overtaken = Vec::new();
    for of_process in olds.values() {
        let kept = of_process.iter().position(|id| may_serve(seen, *id)).unwrap_or(0);
        let others = of_process.iter().enumerate().filter(|(place, _)| *place != kept);
        overtaken.extend(others.map(|(_, id)| *id).filter(|id| !may_serve(seen, *id)));
    }
    overtaken
}

/// One that is not known may.
fn may_serve(seen: &impl Seen, id: InstanceId) -> bool {
    seen.status(id).is_none_or(|status| status.phase == Phase::Up)
}

/// The deploy that is under way.
fn running(view: &AppView<'_>) -> Option<DeployId> {
    let deploy = &view.latest?.deploy;
    (deploy.state == DeployState::Running).then_some(deploy.id)
}

/// Says it, unless it was said.
fn note(view: &AppView<'_>, deploy: DeployId, message: String, actions: &mut Vec<Action>) {
    if view.latest.and_then(|latest| latest.deploy.message.as_ref()) != Some(&message) {
        actions.push(Action::Note(deploy, message));
    }
}
