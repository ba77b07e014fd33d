//! The node listener: a Unix socket for routers, never the public one. Who may open the socket (mode
//! 0660) is a router of this platform; nothing else guards it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt;
use mogok_api::control::LogSource;
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::{AppId, RouterId};
use mogok_api::name::AppName;
use mogok_api::route::{RouteAck, RouteMessage, RouterLog};
use nix::unistd::Group;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::log_store::NewLine;
use crate::state::AppState;

/// Mode of the socket: owner and group, which is how routers are let in.
const SOCKET_MODE: u32 = 0o660;
/// Request lines of one batch.
const MAX_LINES: usize = 1000;
/// Bytes of any request to this listener.
const MAX_BODY: usize = 16 << 20;

/// Why the node listener could not run.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot {operation} the node socket {}", path.display())]
    Socket { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("there is no group {name:?}: create it, or name another with --node-socket-group")]
    Group { name: String },
}

/// Serves routers on the configured socket until `stop` is cancelled.
///
/// # Errors
/// When the socket cannot be made or served.
pub async fn serve(state: AppState, stop: CancellationToken) -> Result<(), ListenError> {
    let path = state.config.node_socket.clone();
    let listener = bind(&path, state.config.node_socket_group.as_deref())?;
    let app = Router::new()
        .route("/v1/routes", get(routes))
        .route("/v1/routes/ack", post(ack))
        .route("/v1/router-logs", post(logs))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(state);
    let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
    served.map_err(|source| ListenError::Socket { operation: "serve", path, source })
}

/// A socket that has its mode from the moment it can be found; one of a dead control plane is replaced.
fn bind(path: &Path, group: Option<&str>) -> Result<UnixListener, ListenError> {
    let failed = |operation| {
        let path = path.to_owned();
        move |source| ListenError::Socket { operation, path, source }
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
    }
    let new = path.with_extension("new");
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove what is left of")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(failed("bind"))?;
    if let Some(name) = group {
        let unknown = || ListenError::Group { name: name.to_owned() };
        let group = Group::from_name(name).ok().flatten().ok_or_else(unknown)?;
        std::os::unix::fs::chown(&new, None, Some(group.gid.as_raw())).map_err(failed("set the group of"))?;
    }
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(failed("set the mode of"))?;
    std::fs::rename(&new, path).map_err(failed("put into place"))?;
    Ok(listener)
}

#[derive(Deserialize)]
struct Who {
    router: RouterId,
}

/// The stream of one router, as NDJSON.
async fn routes(State(state): State<AppState>, Query(who): Query<Who>) -> Response {
    let messages = match state.routes.subscribe(who.router) {
        Ok(messages) => messages,
        Err(error) => return refuse(ErrorCode::Unavailable, error.to_string()),
    };
    tracing::info!(router = %who.router, "a router connected");
    let lines = ReceiverStream::new(messages).map(|message| Ok::<_, Infallible>(line(&message)));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

fn line(message: &RouteMessage) -> Bytes {
    // Ids, names and addresses always have a JSON form.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

async fn ack(State(state): State<AppState>, Json(ack): Json<RouteAck>) -> StatusCode {
    state.routes.acknowledge(ack);
    StatusCode::NO_CONTENT
}

/// Request lines into the apps' logs; those of apps that are gone are dropped.
async fn logs(State(state): State<AppState>, Json(lines): Json<Vec<RouterLog>>) -> Response {
    if lines.len() > MAX_LINES {
        return refuse(ErrorCode::TooLarge, format!("more than {MAX_LINES} lines in one batch"));
    }
    let mut ids: HashMap<AppName, Option<AppId>> = HashMap::new();
    let mut batches: BTreeMap<AppId, Vec<NewLine>> = BTreeMap::new();
    for log in lines {
        let id = match ids.get(&log.app) {
            Some(id) => *id,
            None => match state.store.app_by_name(&log.app).await {
                Ok(app) => *ids.entry(log.app).or_insert(app.map(|app| app.id)),
                Err(error) => {
                    tracing::error!(error = %error, "cannot find the app of a request line");
                    return refuse(ErrorCode::Internal, "cannot find the app of a request line".to_owned());
                }
            },
        };
        let Some(id) = id else { continue };
        let line = NewLine {
            at: log.at,
            source: LogSource::Router,
            process: "router".to_owned(),
            line: log.line.into_bytes(),
        };
        batches.entry(id).or_default().push(line);
    }
    for (app, lines) in batches {
        // Not an answer to the router: it would send the lines of every app again.
        if let Err(error) = state.logs.append_all(app, &lines) {
            tracing::error!(%app, %error, "cannot keep request lines");
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

fn refuse(code: ErrorCode, message: String) -> Response {
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(ApiError::new(code, message))).into_response()
}
