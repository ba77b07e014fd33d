//! The handlers of the agent API, but for the blobs.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mogok_api::agent::{DesiredAck, DesiredMessage, InstanceDetail, NodeInfo};
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::InstanceId;
use mogok_api::instance::InstanceStatus;
use serde::Deserialize;

use super::Api;
use crate::instance::usage;
use crate::ledger::LedgerError;
use crate::logs::journal::Cursor;

/// An error on its way to the client.
#[derive(Debug)]
pub struct Refusal(pub ApiError);

impl Refusal {
    /// A fault of the node.
    #[must_use]
    pub fn internal(error: &dyn std::error::Error) -> Self {
        let message = crate::chain(error);
        tracing::error!(error = %message, "a request failed");
        Self(ApiError::new(ErrorCode::Internal, message))
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorCode::Invalid, message))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// `?after=&follow=` of the streams.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stream {
    after: Option<String>,
    #[serde(default)]
    follow: bool,
}

type Streamed = Result<Query<Stream>, axum::extract::rejection::QueryRejection>;

fn stream(query: Streamed) -> Result<Stream, Refusal> {
    query.map(|Query(stream)| stream).map_err(|error| Refusal::invalid(error.body_text()))
}

fn cursor(after: Option<String>) -> Result<Option<Cursor>, Refusal> {
    after
        .map(|after| after.parse())
        .transpose()
        .map_err(|error: crate::logs::journal::InvalidCursor| Refusal::invalid(error.to_string()))
}

pub(super) fn instance_id(text: &str) -> Result<InstanceId, Refusal> {
    text.parse().map_err(|error: mogok_api::id::InvalidId| Refusal::invalid(error.to_string()))
}

pub(super) fn no_instance(id: InstanceId) -> Refusal {
    Refusal(ApiError::new(ErrorCode::NotFound, format!("instance {id} is not on this node")))
}

fn ndjson(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

pub(super) async fn node(State(api): State<Arc<Api>>) -> Result<Json<NodeInfo>, Refusal> {
    let info = tokio::task::spawn_blocking(move || api.node.info()).await;
    let info = info.map_err(|error| Refusal::internal(&error))?;
    info.map(Json).map_err(|error| Refusal::internal(&error))
}

pub(super) async fn desired(
    State(api): State<Arc<Api>>,
    message: Result<Json<DesiredMessage>, JsonRejection>,
) -> Result<Json<DesiredAck>, Refusal> {
    let Json(message) = message.map_err(|error| {
        let code = if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ErrorCode::TooLarge
        } else {
            ErrorCode::Invalid
        };
        Refusal(ApiError::new(code, error.body_text()))
    })?;
    let ack = api.wanted.apply(message, &api.node).await;
    ack.map(Json).map_err(|error| Refusal::internal(&error))
}

pub(super) async fn instances(State(api): State<Arc<Api>>) -> Json<Vec<InstanceStatus>> {
    Json(api.node.events.statuses())
}

pub(super) async fn instance(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
) -> Result<Json<InstanceDetail>, Refusal> {
    let id = instance_id(&id)?;
    let found = tokio::task::spawn_blocking(move || {
        let node = &api.node;
        let status = node.events.status(id)?;
        Some(node.ground.ledger.load(id).map(|record| InstanceDetail {
            pid: record.run.as_ref().and_then(|run| run.init_pid),
            shim_pid: record.run.as_ref().map(|run| run.shim_pid),
            uid_base: Some(record.uid_base),
            address: record.allocation.as_ref().map(|held| held.address),
            state_dir: node.ground.ledger.dir(id).display().to_string(),
            usage: usage::of(&node.ground, &record),
            frozen: node.ground.cgroups.open(&id).is_frozen(),
            spec: record.spec,
            status,
        }))
    });
    match found.await.map_err(|error| Refusal::internal(&error))? {
        Some(Ok(detail)) => Ok(Json(detail)),
        None => Err(no_instance(id)),
        // Gone between the two looks.
        Some(Err(LedgerError::Read { source, .. })) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(no_instance(id))
        }
        Some(Err(error)) => Err(Refusal::internal(&error)),
    }
}

pub(super) async fn instance_logs(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    query: Streamed,
) -> Result<Response, Refusal> {
    let (id, query) = (instance_id(&id)?, stream(query)?);
    if api.node.ground.ledger.find(id).is_none() {
        return Err(no_instance(id));
    }
    Ok(ndjson(Body::from_stream(api.node.logs.stream(cursor(query.after)?, Some(id), query.follow))))
}

pub(super) async fn logs(State(api): State<Arc<Api>>, query: Streamed) -> Result<Response, Refusal> {
    let query = stream(query)?;
    Ok(ndjson(Body::from_stream(api.node.logs.stream(cursor(query.after)?, None, query.follow))))
}

pub(super) async fn events(State(api): State<Arc<Api>>, query: Streamed) -> Result<Response, Refusal> {
    let query = stream(query)?;
    let after = query
        .after
        .map(|after| after.parse::<u64>())
        .transpose()
        .map_err(|_| Refusal::invalid("after is not the number of an event"))?;
    Ok(ndjson(Body::from_stream(api.node.events.stream(after, query.follow))))
}

pub(super) async fn unknown() -> Refusal {
    Refusal(ApiError::new(ErrorCode::NotFound, "there is nothing at this path"))
}

pub(super) async fn no_method() -> Refusal {
    Refusal::invalid("this path does not answer that method")
}
