//! The public listener: HTTP/1.1 and HTTP/2 behind the front proxy, with bounds on connections and on
//! the time a client may take for its headers. Each request goes to the API or to git by its host.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::linger::Lingering;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::api::reply::Failed;
use crate::state::AppState;
use crate::{api, git};

/// Connections at once; more wait in the kernel's backlog.
const CONNECTIONS: usize = 1024;
/// How long a client may take for the header of a request.
const HEADER_TIME: Duration = Duration::from_secs(15);
/// How long requests under way may go on after the stop was asked for.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Pause after an `accept` that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Which service a host name means.
#[derive(Clone)]
struct Hosts {
    api_host: Arc<str>,
    git_host: Arc<str>,
    api: Router,
    git: Router,
}

impl Hosts {
    async fn answer(self, request: Request) -> Response {
        let host = host(&request);
        let service = match host.as_deref() {
            Some(host) if *host == *self.api_host => self.api,
            Some(host) if *host == *self.git_host => self.git,
            _ => {
                let host = host.unwrap_or_default();
                let error =
                    ApiError::new(ErrorCode::NotFound, format!("nothing is served for host {host:?}"))
                        .remedy(format!("use {} or {}", self.api_host, self.git_host));
                return Failed(error).into_response();
            }
        };
        match service.oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// The host a request is for, lower case and without port.
fn host(request: &Request) -> Option<String> {
    let text = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(header::HOST)?.to_str().ok()?,
    };
    let name = text.rsplit_once(':').map_or(text, |(name, _port)| name);
    (name.len() <= 255).then(|| name.to_ascii_lowercase())
}

/// Serves until `stop` is cancelled, then lets requests under way end.
pub(super) async fn run(state: AppState, listener: TcpListener, stop: CancellationToken) {
    let hosts = Hosts {
        api_host: format!("api.{}", state.config.base_domain).into(),
        git_host: format!("git.{}", state.config.base_domain).into(),
        api: api::router(state.clone(), stop.clone()),
        git: git::router(state, stop.clone()),
    };
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let hosts = hosts.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let hosts = hosts.clone();
            async move {
                let mut request = request.map(|body| axum::body::Body::new(Lingering::new(body)));
                request.extensions_mut().insert(ConnectInfo(peer));
                Ok::<_, std::convert::Infallible>(hosts.answer(request).await)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(64);
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_TIME, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections did not drain in time");
    }
}
