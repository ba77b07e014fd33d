//! Builds: of a commit that was pushed. The runner does the work; here they are asked for and shown.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mogok_api::control::{Build, NewBuild};
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::BuildId;

use super::extract::{Body, OwnApp};
use super::reply::Failed;
use crate::git::Reference;
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
    let repository = state.repositories.repository(own.app.id).await?;
    let push = "push first: git push mogok master";
    let commit = match new.reference {
        None => repository.default_commit().await?.ok_or_else(|| {
            let message =
                format!("nothing was pushed to {} yet, or several branches and no master", own.app.name);
            Failed::new(
                ErrorCode::Conflict,
                message,
                format!("{push}; or name one: mogok build --ref BRANCH"),
            )
        })?,
        Some(text) => {
            let reference: Reference = text.parse().map_err(|error| Failed::invalid(&error))?;
            repository.resolve(&reference).await?.ok_or_else(|| {
                let message = format!("{} has no branch, tag or commit {reference}", own.app.name);
                Failed::new(ErrorCode::NotFound, message, push)
            })?
        }
    };
    // Before the build exists, so that a push with force cannot take its source away.
    repository.keep(&commit).await?;
    let build = state.store.create_build(own.app.id, commit.as_str()).await?;
    tracing::info!(app = %own.app.id, build = %build.id, commit = %commit, "build requested");
    state.wake.builds.wake();
    Ok((StatusCode::CREATED, Json(build.shown())))
}

pub(super) async fn cancel(
    State(state): State<AppState>,
    own: OwnApp,
    Path((_, id)): Path<(String, String)>,
) -> Result<Json<Build>, Failed> {
    let build = find(&state, &own.app, &id).await?;
    if build.state.ended() {
        let message = format!("build {} has ended already", build.id);
        return Err(Failed(ApiError::new(ErrorCode::Conflict, message)));
    }
    state.store.ask_to_cancel(build.id).await?;
    state.wake.builds.wake();
    Ok(Json(find(&state, &own.app, &id).await?.shown()))
}
