//! Builds: of a commit that was pushed. The runner does the work; here they are asked for and shown.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mogok_api::control::{Build, NewBuild};
use mogok_api::error::ErrorCode;
use mogok_api::id::BuildId;

use super::extract::{Body, OwnApp};
use super::reply::Failed;
use crate::build;
use crate::state::AppState;
use crate::store::apps::AppRow;
use crate::store::builds::{BuildRow, KEPT};
use crate::store::wanted::WantedError;

/// The build of this app that a path names.
pub(super) async fn find(state: &AppState, app: &AppRow, id: &str) -> Result<BuildRow, Failed> {
    let id: BuildId = id.parse().map_err(|error| Failed::invalid(&error))?;
    let found = state.store.build(id).await?.filter(|build| build.app == app.id);
    found.ok_or_else(|| {
        Failed::new(ErrorCode::NotFound, format!("{} has no build {id}", app.name), "list them: mogok builds")
    })
}

pub(super) async fn list(State(state): State<AppState>, own: OwnApp) -> Result<Json<Vec<Build>>, Failed> {
    // The one under way is not among those kept.
    let rows = state.store.builds(own.app.id, KEPT + 1).await?;
    Ok(Json(rows.iter().map(BuildRow::shown).collect()))
}

pub(super) async fn show(
    State(state): State<AppState>,
    own: OwnApp,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<Build>, Failed> {
    Ok(Json(find(&state, &own.app, &id).await?.shown()))
}

pub(super) async fn create(
    State(state): State<AppState>,
    own: OwnApp,
    Body(new): Body<NewBuild>,
) -> Result<(StatusCode, Json<Build>), Failed> {
    if own.app.destroying {
        return Err(WantedError::NoApp.into());
    }
    let build = build::request(&state, &own.app, new.reference.as_deref()).await?;
    Ok((StatusCode::CREATED, Json(build)))
}

pub(super) async fn cancel(
    State(state): State<AppState>,
    own: OwnApp,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<Build>, Failed> {
    let build = find(&state, &own.app, &id).await?;
    Ok(Json(build::cancel(&state, own.app.id, build.id).await?))
}
