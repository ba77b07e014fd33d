//! Apps and their config vars.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use mogok_api::control::{App, Config, ConfigChange, Configured, NewApp};

use super::deploys;
use super::extract::{Body, Caller, OwnApp};
use super::reply::Failed;
use crate::apps;
use crate::config;
use crate::state::AppState;
use crate::store::apps::AppRow;

fn shown(config: &config::Config, row: AppRow) -> App {
    App {
        id: row.id,
        url: config.app_url(&row.name),
        git_url: config.git_url(&row.name),
        name: row.name,
        created_at: row.created_at,
        running: row.running,
        release: row.current_number,
        formation: row.formation,
    }
}

pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Body(new): Body<NewApp>,
) -> Result<(StatusCode, Json<App>), Failed> {
    let row = apps::create(&state, caller.user.id, &new.name).await?;
    tracing::info!(app = %row.id, name = %row.name, user = %caller.user.id, "app created");
    state.wake.routes.wake();
    Ok((StatusCode::CREATED, Json(shown(&state.config, row))))
}

pub(super) async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<Vec<App>>, Failed> {
    let rows = state.store.apps_of(caller.user.id).await?;
    Ok(Json(rows.into_iter().map(|row| shown(&state.config, row)).collect()))
}

/// Also while the app is being destroyed: "not found" says that its name is free.
pub(super) async fn show(State(state): State<AppState>, own: OwnApp) -> Json<App> {
    Json(shown(&state.config, own.app))
}

/// 204 when the app is gone, 202 when its processes are still being stopped. Again is no error.
pub(super) async fn destroy(State(state): State<AppState>, own: OwnApp) -> Result<StatusCode, Failed> {
    apps::destroy(&state, own.app.id).await?;
    let there = state.store.app(own.app.id).await?.is_some();
    Ok(if there { StatusCode::ACCEPTED } else { StatusCode::NO_CONTENT })
}

pub(super) async fn config(own: OwnApp) -> Json<Config> {
    Json(own.app.config)
}

pub(super) async fn configure(
    State(state): State<AppState>,
    own: OwnApp,
    Body(change): Body<ConfigChange>,
) -> Result<Json<Configured>, Failed> {
    let (config, deploy) = state.store.configure_app(own.app.id, &change).await?;
    let deploy = deploy.map(|row| deploys::changed(&state, row).0);
    Ok(Json(Configured { config, deploy }))
}
