//! `POST /v1/instances/{id}/freeze`, `thaw` and `reclaim`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mogok_api::agent::{ReclaimRequest, Reclaimed};
use mogok_api::id::InstanceId;

use super::Api;
use super::routes::{Refusal, instance_id};
use crate::hold::{self, HoldError};
use crate::node::Node;

pub(super) async fn freeze(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    held(api, instance_id(&id)?, hold::freeze).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn thaw(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    held(api, instance_id(&id)?, hold::thaw).await.map(|()| StatusCode::NO_CONTENT)
}

pub(super) async fn reclaim(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    request: Result<Json<ReclaimRequest>, JsonRejection>,
) -> Result<Json<Reclaimed>, Refusal> {
    let Json(request) = request.map_err(|error| Refusal::invalid(error.body_text()))?;
    held(api, instance_id(&id)?, move |node, id| hold::reclaim(node, id, request)).await.map(Json)
}

/// Away from the threads that serve others: the kernel takes its time.
async fn held<T: Send + 'static>(
    api: Arc<Api>,
    id: InstanceId,
    act: impl FnOnce(&Node, InstanceId) -> Result<T, HoldError> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || act(&api.node, id)).await;
    let done = done.map_err(|error| Refusal::internal(&error))?;
    done.map_err(|error| {
        tracing::info!(instance = %id, error = %crate::chain(&error), "an instance was not taken hold of");
        Refusal(error.into_api())
    })
}
