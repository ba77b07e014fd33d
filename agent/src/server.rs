//! The agent API over HTTP/1.1: on a Unix socket for the uids that are allowed, and over TLS for
//! clients with a certificate. Exactly the routes of `mogok_api::agent`.
//!
//! Invariant: every body, connection count and wait is bounded, and every refusal is an `ApiError`.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mogok_api::linger::Lingering;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::blobs;
use crate::node::Node;
use crate::reconcile::Wanted;

mod exec;
mod hold;
mod routes;

pub use routes::Refusal;

/// Connections at once, on both listeners together.
const CONNECTIONS: usize = 512;
/// A client that does not finish its handshake or its headers by then is dropped.
const HEADERS: Duration = Duration::from_secs(10);
/// Bytes of a desired message: thousands of instances with large environments.
const DESIRED_BYTES: usize = 64 << 20;
/// After an error of accept (no descriptor left, say).
const PAUSE: Duration = Duration::from_millis(100);

/// What the handlers need.
#[derive(Debug)]
pub struct Api {
    pub node: Arc<Node>,
    pub wanted: Arc<Wanted>,
}

/// The routes of the contract.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/node", get(routes::node))
        .route("/v1/desired", post(routes::desired).layer(DefaultBodyLimit::max(DESIRED_BYTES)))
        .route("/v1/instances", get(routes::instances))
        .route("/v1/instances/{id}", get(routes::instance))
        .route("/v1/instances/{id}/logs", get(routes::instance_logs))
        .route("/v1/instances/{id}/exec", post(exec::exec).layer(DefaultBodyLimit::max(exec::REQUEST_BYTES)))
        .route("/v1/instances/{id}/freeze", post(hold::freeze))
        .route("/v1/instances/{id}/thaw", post(hold::thaw))
        .route("/v1/instances/{id}/reclaim", post(hold::reclaim))
        .route("/v1/events", get(routes::events))
        .route("/v1/logs", get(routes::logs))
        .route("/v1/blobs", get(blobs::list))
        .route(
            "/v1/blobs/{digest}",
            get(blobs::get)
                .put(blobs::put)
                // Bounded by the store, which counts as it writes.
                .layer(DefaultBodyLimit::disable())
                .delete(blobs::delete),
        )
        .fallback(routes::unknown)
        .method_not_allowed_fallback(routes::no_method)
        .with_state(api)
}

/// The socket cannot be served on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot {operation} the socket {path}", path = path.display())]
    Socket { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("another agent serves the socket {path}: stop it first", path = .0.display())]
    InUse(PathBuf),
    #[error("{path} is there and is no socket: give --socket another path", path = .0.display())]
    NoSocket(PathBuf),
}

fn socket_failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServerError {
    let path = path.to_owned();
    move |source| ServerError::Socket { operation, path, source }
}

/// A Unix socket that is bound under another name than its own, so that nobody finds it yet.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    beside: Beside,
    path: PathBuf,
}

/// The name it is bound under, which is gone with it.
#[derive(Debug)]
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        // It has got its own name, or is not served.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl UnixSocket {
    /// Mode 0600, or 0666 where other uids are let in: then the credentials of each peer decide.
    ///
    /// # Errors
    /// When the path is served already, is no socket, or cannot be bound.
    pub async fn bind(path: &Path, others: bool) -> Result<Self, ServerError> {
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(ServerError::InUse(path.to_owned()));
        }
        let beside = path.with_added_extension("new");
        for there in [path, &beside] {
            if std::fs::symlink_metadata(there).is_ok_and(|metadata| !metadata.file_type().is_socket()) {
                return Err(ServerError::NoSocket(there.to_owned()));
            }
        }
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(socket_failed("replace", &beside)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&beside).map_err(socket_failed("bind", path))?;
        let socket = Self { listener, beside: Beside(beside), path: path.to_owned() };
        let mode = std::fs::Permissions::from_mode(if others { 0o666 } else { 0o600 });
        std::fs::set_permissions(&socket.beside.0, mode).map_err(socket_failed("set the mode of", path))?;
        Ok(socket)
    }

    /// Puts it where it is found, in place of one that nobody serves any more.
    ///
    /// # Errors
    /// When it cannot be moved there.
    pub fn place(self) -> Result<UnixListener, ServerError> {
        std::fs::rename(&self.beside.0, &self.path).map_err(socket_failed("place", &self.path))?;
        Ok(self.listener)
    }
}

/// Serves connections; made once and shared by the listeners.
#[derive(Debug, Clone)]
pub struct Server {
    router: Router,
    connections: Arc<Semaphore>,
}

impl Server {
    #[must_use]
    pub fn new(api: Arc<Api>) -> Self {
        Self { router: router(api), connections: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    /// Answers peers of uid 0 and `allowed` (`SO_PEERCRED`); hangs up on others.
    pub async fn serve_unix(self, listener: UnixListener, allowed: Vec<u32>) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || allowed.contains(&peer.uid()) => {
                    let router = self.router.clone();
                    tokio::spawn(async move {
                        serve(router, stream).await;
                        drop(permit);
                    });
                }
                Ok(peer) => tracing::warn!(uid = peer.uid(), "a peer is not allowed on the socket"),
                Err(error) => tracing::warn!(%error, "a peer has no credentials"),
            }
        }
    }

    /// Answers clients that the acceptor lets in.
    pub async fn serve_tls(self, listener: TcpListener, acceptor: TlsAcceptor) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (router, acceptor) = (self.router.clone(), acceptor.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HEADERS, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => serve(router, stream).await,
                    Ok(Err(error)) => tracing::warn!(%peer, %error, "a client was not let in"),
                    Err(_) => tracing::warn!(%peer, "a client did not finish its handshake"),
                }
                drop(permit);
            });
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(router: Router, stream: S) {
    let service = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        // Who is still sending gets an early answer as well.
        service.call(request.map(|body| axum::body::Body::new(Lingering::new(body))))
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        // A client that hangs up in the middle of a stream is no fault.
        tracing::debug!(%error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_not_served_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let files = || std::fs::read_dir(dir.path()).unwrap().count();
        drop(UnixSocket::bind(&path, false).await.unwrap());
        assert_eq!(files(), 0);
        let socket = UnixSocket::bind(&path, false).await.unwrap();
        // One whose name differs in its ending has another beside it.
        let other = UnixSocket::bind(&path.with_extension("socket"), false).await.unwrap();
        let _listener = socket.place().unwrap();
        drop(other);
        assert!(path.exists() && files() == 1);
    }
}
