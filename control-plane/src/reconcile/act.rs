//! Doing the steps of a plan. Each is one write to the store (or one call that may be repeated), so a
//! death between two of them leaves a state that the next plan starts from.

use chrono::{TimeDelta, Utc};
use mogok_api::app::Limits;
use mogok_api::control::DeployState;
use mogok_api::id::DeployId;
use mogok_api::name::ProcessName;

use super::plan::Action;
use super::verdict;
use crate::apps::{self, DestroyError};
use crate::deploy::{AppView, failure};
use crate::scheduler::{Ask, Cluster, ClusterError, Resources, Unfit};
use crate::state::AppState;
use crate::store::StoreError;
use crate::store::instances::{InstanceRow, NewInstance, Wanted};

/// A deploy that found no room for so long has failed; what it wanted is still tried.
const ROOM_PATIENCE: TimeDelta = TimeDelta::minutes(5);

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("cannot finish the removal of an app")]
    Destroy(#[from] DestroyError),
}

/// The steps of one pass.
pub(super) struct Steps<'a> {
    state: &'a AppState,
    /// What is booked on the nodes, read when it is first asked for.
    cluster: Option<Cluster>,
    instances_changed: bool,
    deploys_changed: bool,
    apps_changed: bool,
}

impl<'a> Steps<'a> {
    pub(super) fn new(state: &'a AppState) -> Self {
        Self { state, cluster: None, instances_changed: false, deploys_changed: false, apps_changed: false }
    }

    /// Takes one step.
    pub(super) async fn take(&mut self, view: &AppView<'_>, action: Action) -> Result<(), StepError> {
        let store = &self.state.store;
        match action {
            Action::Start(process) => self.start(view, process).await?,
            Action::Unroute(id) => {
                store.set_wanted(id, Wanted::Unroute).await?;
                self.instances_changed = true;
            }
            Action::Stop(id) => {
                store.set_wanted(id, Wanted::Stop).await?;
                self.instances_changed = true;
            }
            Action::Forget(id) => {
                store.forget_instance(id).await?;
                self.instances_changed = true;
            }
            Action::Note(deploy, message) => {
                store.note_deploy(deploy, &message).await?;
                self.deploys_changed = true;
            }
            Action::End(deploy, ended, message) => self.end(view, deploy, ended, message).await?,
            Action::FinishDestroy => {
                self.apps_changed |= apps::finish_destroy(self.state, view.app.id).await?;
            }
        }
        Ok(())
    }

    /// Tells those who act on what was changed; false when nothing was.
    pub(super) fn finish(self) -> bool {
        let wake = &self.state.wake;
        if self.instances_changed {
            wake.nodes.wake();
        }
        if self.deploys_changed {
            wake.deploys.wake();
        }
        let changed = self.instances_changed || self.deploys_changed || self.apps_changed;
        if changed {
            // There may be a next step.
            wake.reconcile.wake();
        }
        changed
    }

    async fn start(&mut self, view: &AppView<'_>, process: ProcessName) -> Result<(), StepError> {
        let Some(release) = view.app.current_release else { return Ok(()) };
        let cluster = match &mut self.cluster {
            Some(cluster) => cluster,
            none => none.insert(Cluster::read(&self.state.store, &self.state.observed).await?),
        };
        let ask = Ask { app: view.app.id, needs: Resources::of(&Limits::app()) };
        match cluster.place(&ask) {
            Ok(node) => {
                let deploy = view.latest.map(|latest| latest.deploy.id);
                let new = NewInstance { app: view.app.id, release, deploy, process, node };
                let id = self.state.store.create_instance(&new).await?;
                tracing::info!(app = %view.app.name, process = %new.process, instance = %id, %node, "placed an instance");
                self.instances_changed = true;
                Ok(())
            }
            Err(unfit) => self.unplaced(view, &process, unfit).await,
        }
    }

    /// Says that there is no node for it.
    async fn unplaced(
        &mut self,
        view: &AppView<'_>,
        process: &ProcessName,
        unfit: Unfit,
    ) -> Result<(), StepError> {
        let deploy = view.latest.map(|latest| &latest.deploy);
        let Some(deploy) = deploy.filter(|deploy| deploy.state == DeployState::Running) else {
            return Ok(());
        };
        let message = format!("no node for {process}: {unfit}");
        if Utc::now() - deploy.created_at > ROOM_PATIENCE {
            return self.end(view, deploy.id, DeployState::Failed, Some(message)).await;
        }
        if deploy.message.as_ref() != Some(&message) {
            tracing::warn!(app = %view.app.name, %process, reason = %unfit, "no node for an instance");
            self.state.store.note_deploy(deploy.id, &message).await?;
            self.deploys_changed = true;
        }
        Ok(())
    }

    async fn end(
        &mut self,
        view: &AppView<'_>,
        deploy: DeployId,
        ended: DeployState,
        message: Option<String>,
    ) -> Result<(), StepError> {
        self.state.store.end_deploy(deploy, ended, message.as_deref()).await?;
        self.deploys_changed = true;
        let action = view.latest.map(|latest| latest.deploy.action.to_string()).unwrap_or_default();
        let line = match (ended, &message) {
            (DeployState::Failed, Some(message)) => format!("{action} failed: {message}"),
            _ => format!("{action} done"),
        };
        let failed =
            |row: &InstanceRow| self.state.observed.status(row.id).filter(|status| failure(status).is_some());
        let cause = view.instances.iter().filter(|_| ended == DeployState::Failed).find_map(failed);
        let begun = view.latest.map_or_else(Utc::now, |latest| latest.deploy.created_at);
        verdict::tell(&self.state.logs, view.app.id, line, cause, begun);
        Ok(())
    }
}
