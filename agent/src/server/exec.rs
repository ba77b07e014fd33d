//! `POST /v1/instances/{id}/exec`: starts the program, then answers, then hands the connection to it.
//!
//! Invariant: whatever becomes of the request, a program that was started has somebody who ends it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use mogok_api::agent::exec::{ExecRequest, PROTOCOL};
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::InstanceId;
use tokio::sync::oneshot;

use super::Api;
use super::routes::{Refusal, instance_id};
use crate::exec::{self, ExecError};
use crate::fail_point;

/// Bytes of a request; what the helper is sent is bounded by its frames.
pub(super) const REQUEST_BYTES: usize = 60 << 10;
/// From the reply to the upgraded connection.
const UPGRADE: Duration = Duration::from_secs(10);

pub(super) async fn exec(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let id = instance_id(&id)?;
    if request.headers().get(header::UPGRADE) != Some(&HeaderValue::from_static(PROTOCOL)) {
        return Err(Refusal::invalid(format!("this path needs the header Upgrade: {PROTOCOL}")));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let asked = Json::<ExecRequest>::from_request(request, &()).await;
    let Json(asked) = asked.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal(ApiError::new(
            ErrorCode::TooLarge,
            format!("command and environment take more than the {REQUEST_BYTES} bytes of a request: put them into a file of the container"),
        )),
        _ => Refusal::invalid(error.body_text()),
    })?;
    let (tell, told) = oneshot::channel();
    // Not a part of this request, which a client that hangs up takes along.
    tokio::spawn(run(api, id, asked, upgrade, tell));
    match told.await {
        Ok(Ok(())) => {
            let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
            Ok((StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response())
        }
        Ok(Err(error)) => Err(Refusal(error.into_api())),
        Err(error) => Err(Refusal::internal(&error)),
    }
}

async fn run(
    api: Arc<Api>,
    id: InstanceId,
    asked: ExecRequest,
    upgrade: OnUpgrade,
    tell: oneshot::Sender<Result<(), ExecError>>,
) {
    let program = asked.command.first().cloned().unwrap_or_default();
    let started = tokio::task::spawn_blocking(move || exec::start(&api.node, id, &asked)).await;
    let running = match started {
        Ok(Ok(running)) => running,
        Ok(Err(error)) => {
            tracing::info!(instance = %id, ?program, error = %crate::chain(&error), "no program joins");
            // A client that is gone need not know.
            return drop(tell.send(Err(error)));
        }
        // A panic, or the agent is leaving; its caller hears of it by the channel.
        Err(_) => return,
    };
    tracing::info!(instance = %id, ?program, "a program joins");
    let client = match tell.send(Ok(())) {
        Ok(()) => tokio::time::timeout(UPGRADE, upgrade).await.ok().and_then(Result::ok),
        Err(_) => None,
    };
    fail_point!(ExecAnswered, ignored);
    match client {
        Some(client) => running.serve(TokioIo::new(client)).await,
        None => running.abandon().await,
    }
    tracing::info!(instance = %id, ?program, "a program that joined has ended");
}
