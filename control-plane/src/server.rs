//! The life of the process: opens the state, starts every part, serves the public listener, and ends
//! them all when it is asked to stop. A part is a task that runs until the token is cancelled.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::build;
use crate::config::Config;
use crate::state::{AppState, OpenError};
use crate::{node, reconcile, routes};

mod listener;

/// How long parts may take to end once they were asked to.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Why the control plane could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("a part of the control plane ended unexpectedly")]
    Part(#[source] tokio::task::JoinError),
    #[error("a part of the control plane ended before it was asked to; the log says which")]
    Ended,
}

/// Runs the control plane until `stop` is cancelled.
///
/// # Errors
/// When it cannot start, or a part dies.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), RunError> {
    let address = config.listen;
    let state = AppState::open(config).await?;
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    serve(state, listener, stop).await
}

/// Runs the control plane on an open listener (port 0 serves tests).
///
/// # Errors
/// When a part dies.
pub async fn serve(state: AppState, listener: TcpListener, stop: CancellationToken) -> Result<(), RunError> {
    // Leaving this function in any way ends every part.
    let _ends_with_us = stop.clone().drop_guard();
    let mut parts = JoinSet::new();
    parts.spawn(listener::run(state.clone(), listener, stop.clone()));
    parts.spawn(build::run(state.clone(), stop.clone()));
    parts.spawn(fallible("nodes", node::run(state.clone(), stop.clone())));
    parts.spawn(state.routes.clone().run(stop.clone()));
    parts.spawn(fallible("reconciler", reconcile::run(state.clone(), stop.clone())));
    parts.spawn(fallible("node listener", routes::serve(state.clone(), stop.clone())));

    let first = parts.join_next().await;
    let asked = stop.is_cancelled();
    stop.cancel();
    let rest = tokio::time::timeout(STOP_GRACE, async { while parts.join_next().await.is_some() {} }).await;
    if rest.is_err() {
        tracing::warn!("parts did not end in time");
    }
    first.transpose().map_err(RunError::Part)?;
    // A supervisor restarts what fails, so an end that nobody wanted must not look like a success.
    if asked { Ok(()) } else { Err(RunError::Ended) }
}

/// A part that can fail; its end, for whatever reason, ends the process.
async fn fallible<E: std::error::Error>(part: &'static str, work: impl Future<Output = Result<(), E>>) {
    if let Err(error) = work.await {
        tracing::error!(part, %error, cause = ?error.source(), "a part of the control plane failed");
    }
}
