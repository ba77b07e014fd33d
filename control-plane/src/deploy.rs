//! What a deploy means: which of an app's instances belong to what is wanted now, which are left of
//! before, and what is missing. Pure, and shared by the reconciler (who starts and stops) and the
//! routing table (who is sent requests), so that the two never disagree.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use mogok_api::control::DeployState;
use mogok_api::id::{InstanceId, NodeId};
use mogok_api::instance::{InstanceStatus, Phase};
use mogok_api::name::{ProcessName, ProcessType};

use crate::store::apps::AppRow;
use crate::store::deploys::LatestDeploy;
use crate::store::instances::{InstanceRow, Wanted};
use crate::store::releases::ReleaseRow;

/// Everything the store says of one app.
#[derive(Debug, Clone, Copy)]
pub struct AppView<'a> {
    pub app: &'a AppRow,
    /// The current release; it is only needed while the app is wanted to run.
    pub release: Option<&'a ReleaseRow>,
    pub latest: Option<&'a LatestDeploy>,
    pub instances: &'a [InstanceRow],
    /// Nodes that are being emptied: what runs there is of before.
    pub draining: &'a HashSet<NodeId>,
}

/// The instances with `wanted = run`, sorted by what they are to what is wanted now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rollout {
    /// What is wanted: `web.1`, `web.2`, `worker.1`.
    pub slots: BTreeSet<ProcessName>,
    /// Of the current release (and after the last restart), in a slot.
    pub news: BTreeMap<ProcessName, InstanceId>,
    /// Slots without one.
    pub missing: Vec<ProcessName>,
    /// Of an earlier release, of before a restart, or on a node that is being emptied.
    pub olds: Vec<InstanceId>,
    /// Of the current release, but no slot is left for them.
    pub surplus: Vec<InstanceId>,
}

/// What the app wants to run now, each process by its name.
fn slots(view: &AppView<'_>) -> BTreeSet<ProcessName> {
    let Some(release) = view.release.filter(|_| view.app.running && !view.app.destroying) else {
        return BTreeSet::new();
    };
    let web = ProcessType::web();
    let mut formation = view.app.formation.clone();
    formation.entry(web).or_insert(1);
    formation
        .into_iter()
        .filter(|(kind, _)| release.processes.contains_key(kind))
        .flat_map(|(kind, count)| (1..=count).map(move |index| ProcessName { kind: kind.clone(), index }))
        .collect()
}

impl Rollout {
    /// Sorts the instances.
    #[must_use]
    pub fn of(view: &AppView<'_>) -> Self {
        let mut rollout = Self { slots: slots(view), ..Self::default() };
        let restarted_at = view.latest.and_then(|latest| latest.restarted_at);
        let current = |row: &InstanceRow| {
            Some(row.release) == view.app.current_release
                && (restarted_at.is_none() || row.deployed_at >= restarted_at)
                && !view.draining.contains(&row.node)
        };
        for row in view.instances.iter().filter(|row| row.wanted == Wanted::Run) {
            if !current(row) {
                rollout.olds.push(row.id);
            } else if rollout.slots.contains(&row.process) && !rollout.news.contains_key(&row.process) {
                rollout.news.insert(row.process.clone(), row.id);
            } else {
                rollout.surplus.push(row.id);
            }
        }
        let empty = rollout.slots.iter().filter(|slot| !rollout.news.contains_key(slot));
        rollout.missing = empty.cloned().collect();
        rollout
    }

    /// Is everything that is wanted up?
    pub fn is_up(&self, is_up: impl Fn(InstanceId) -> bool) -> bool {
        self.missing.is_empty() && self.news.values().all(|id| is_up(*id))
    }

    /// The new web instances.
    #[must_use]
    pub fn web(&self) -> Vec<InstanceId> {
        self.news.iter().filter(|(name, _)| name.kind.is_web()).map(|(_, id)| *id).collect()
    }
}

impl AppView<'_> {
    /// Did the last deploy fail while instances of before go on serving? Then they stay until the next deploy.
    #[must_use]
    pub fn held(&self, rollout: &Rollout) -> bool {
        !rollout.slots.is_empty()
            && !rollout.olds.is_empty()
            && self.latest.is_some_and(|latest| latest.deploy.state == DeployState::Failed)
    }
}

/// Why an instance that should come up will not soon, in one line; nothing while it still may.
#[must_use]
pub fn failure(status: &InstanceStatus) -> Option<String> {
    let ended = matches!(status.phase, Phase::Crashed | Phase::Exited);
    if status.phase == Phase::Up || !(ended || status.restarts > 0 || status.failure.is_some()) {
        return None;
    }
    let why = match (&status.failure, &status.exit) {
        (Some(failure), _) => failure.message.clone(),
        (None, Some(exit)) => exit.to_string(),
        (None, None) => "ended".to_owned(),
    };
    let last = status.last_lines.iter().rev().map(|line| line.trim()).find(|line| !line.is_empty());
    let last = last.map(|line| format!(" (last line: {})", shown(line))).unwrap_or_default();
    Some(format!("{} did not come up: {why}{last}", status.process))
}

/// A tenant's line as it may stand in a message: short, without control characters.
fn shown(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}
