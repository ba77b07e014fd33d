//! Releases, and every change of what of an app is wanted to run. A change is written and answered at
//! once with its deploy; the reconciler makes it so.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use mogok_api::control::{Deploy, Formation, Release, Rollback};
use mogok_api::error::ErrorCode;
use mogok_api::id::DeployId;
use mogok_api::name::ProcessType;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::extract::{Body, OwnApp, Params};
use super::reply::Failed;
use crate::plan::without_web;
use crate::state::AppState;
use crate::store::apps::AppRow;
use crate::store::deploys::DeployRow;
use crate::store::wanted::WantedError;

/// Releases that a listing shows.
const LISTED: u32 = 100;
/// Longest wait for the end of a deploy.
const LONGEST_WAIT: u64 = 30;
/// How often the store is read while one waits, also without a wake-up.
const LOOK: Duration = Duration::from_secs(1);

fn shown(row: DeployRow) -> Deploy {
    Deploy {
        id: row.id,
        state: row.state,
        action: row.action.to_string(),
        release: row.number,
        created_at: row.created_at,
        ended_at: row.ended_at,
        message: row.message,
    }
}

/// The answer to a change of what is wanted.
pub(super) fn changed(state: &AppState, row: DeployRow) -> Json<Deploy> {
    tracing::info!(app = %row.app, deploy = %row.id, action = %row.action, "deploy requested");
    state.wake.reconcile.wake();
    state.wake.deploys.wake();
    state.wake.routes.wake();
    Json(shown(row))
}

pub(super) async fn releases(
    State(state): State<AppState>,
    own: OwnApp,
) -> Result<Json<Vec<Release>>, Failed> {
    let rows = state.store.releases(own.app.id, LISTED).await?;
    let shown = rows.into_iter().map(|row| Release {
        current: own.app.current_release == Some(row.id),
        number: row.number,
        created_at: row.created_at,
        description: row.description,
        commit: row.commit,
        package: row.package,
        image: row.image,
        processes: row.processes,
    });
    Ok(Json(shown.collect()))
}

pub(super) async fn roll_back(
    State(state): State<AppState>,
    own: OwnApp,
    Body(rollback): Body<Rollback>,
) -> Result<Json<Deploy>, Failed> {
    let target = state.store.rollback_target(&own.app, rollback.to).await?;
    let _using = state.retention.using().await;
    if !state.images.has(&target.package) {
        let commit = target.commit.as_deref().unwrap_or("COMMIT");
        return Err(Failed::new(
            ErrorCode::Conflict,
            format!("the package of release {} is no longer kept", target.number),
            format!("build its commit again: mogok build --ref {commit}"),
        ));
    }
    Ok(changed(&state, state.store.roll_back_app(own.app.id, target.number).await?))
}

pub(super) async fn start(State(state): State<AppState>, own: OwnApp) -> Result<Json<Deploy>, Failed> {
    let deploy = state.store.start_app(own.app.id).await.map_err(|error| match &error {
        WantedError::NothingToRun { has, .. } if !has.iter().any(ProcessType::is_web) => {
            let remedy = without_web(own.caller.user.plan, has);
            Failed::new(ErrorCode::Conflict, error.to_string(), remedy)
        }
        _ => error.into(),
    })?;
    Ok(changed(&state, deploy))
}

pub(super) async fn stop(State(state): State<AppState>, own: OwnApp) -> Result<Json<Deploy>, Failed> {
    Ok(changed(&state, state.store.stop_app(own.app.id).await?))
}

pub(super) async fn restart(State(state): State<AppState>, own: OwnApp) -> Result<Json<Deploy>, Failed> {
    Ok(changed(&state, state.store.restart_app(own.app.id).await?))
}

pub(super) async fn formation(own: OwnApp) -> Json<Formation> {
    Json(own.app.formation)
}

pub(super) async fn scale(
    State(state): State<AppState>,
    own: OwnApp,
    Body(change): Body<Formation>,
) -> Result<Json<Deploy>, Failed> {
    if change.is_empty() {
        return Err(Failed::new(
            ErrorCode::Invalid,
            "the formation names no process type",
            "for example {\"web\": 2}",
        ));
    }
    Ok(changed(&state, state.store.scale_app(own.app.id, own.caller.user.plan, &change).await?))
}

#[derive(Deserialize)]
pub(super) struct Wait {
    /// Seconds.
    wait: Option<u64>,
}

/// One deploy; with `wait`, as soon as it has ended, at the latest after that many seconds.
pub(super) async fn show(
    State(state): State<AppState>,
    own: OwnApp,
    Path((_, id)): Path<(String, String)>,
    Params(params): Params<Wait>,
) -> Result<Json<Deploy>, Failed> {
    let id: DeployId = id.parse().map_err(|error| Failed::invalid(&error))?;
    let until = Instant::now() + Duration::from_secs(params.wait.unwrap_or(0).min(LONGEST_WAIT));
    // Before the first look, so that an end between look and wait is not missed.
    let mut changes = state.wake.deploys.listen();
    loop {
        let deploy = find(&state, &own.app, id).await?;
        if deploy.ended_at.is_some() || Instant::now() >= until {
            return Ok(Json(shown(deploy)));
        }
        let _ = timeout_at(until.min(Instant::now() + LOOK), changes.woken()).await;
    }
}

async fn find(state: &AppState, app: &AppRow, id: DeployId) -> Result<DeployRow, Failed> {
    let found = state.store.deploy(id).await?.filter(|deploy| deploy.app == app.id);
    let message = || format!("{} has no deploy {id}", app.name);
    if app.destroying {
        return found.ok_or_else(|| WantedError::NoApp.into());
    }
    found.ok_or_else(|| Failed::new(ErrorCode::NotFound, message(), "see what runs: mogok ps"))
}
