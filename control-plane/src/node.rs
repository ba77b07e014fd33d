//! The nodes as the control plane meets them: one task per configured agent keeps what is wanted and
//! what is seen in step, and [`Observed`] holds what is seen.
//!
//! ```text
//! (dial) -> met: the row in `nodes` is made, the node says what it is
//!        -> wanted set: snapshot, deltas, heartbeats; missing blobs are sent      } until one of them
//!        -> events into Observed                                                  } fails, then dial
//!        -> logs into the log store, behind a cursor kept on disk                   again
//! ```
//! A node that is away keeps its containers and its place in [`Observed`]; nothing is started elsewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mogok_api::agent::client::{AgentClient, ClientError, Identity};
use mogok_api::id::NodeId;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::state::AppState;
use crate::store::StoreError;

mod backoff;
mod blobs;
mod cursor;
mod desired;
mod events;
mod logs;
mod observed;
mod sender;
mod spec;

use backoff::Backoff;
pub use observed::{NodeView, Observed};

/// Why a session with a node ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the agent ended its event stream")]
    EventsEnded,
    #[error("the agent asked for a snapshot in answer to a snapshot")]
    SnapshotRefused,
    #[error("the agent acknowledged another version than it was sent")]
    WrongVersion,
    #[error("the task that follows the logs died")]
    Logs(#[source] tokio::task::JoinError),
}

/// Why the nodes cannot be dialled at all: the settings are wrong.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    #[error("cannot read {}", path.display())]
    Identity { path: PathBuf, source: std::io::Error },
    #[error("cannot use an agent of the configuration")]
    Agent(#[source] Box<ClientError>),
}

/// Keeps every configured node in step until `stop` is cancelled.
///
/// # Errors
/// When an agent's address or the certificate for it cannot be used; later failures are tried again.
pub async fn run(state: AppState, stop: CancellationToken) -> Result<(), NodesError> {
    let identity = identity(&state)?;
    let mut nodes = JoinSet::new();
    for address in state.config.agents.clone() {
        let client = AgentClient::new(address, identity.as_ref());
        let client = client.map_err(|error| NodesError::Agent(Box::new(error)))?;
        nodes.spawn(keep(state.clone(), client, stop.clone()));
    }
    stop.cancelled().await;
    while nodes.join_next().await.is_some() {}
    Ok(())
}

/// What `https` agents are shown, where it is configured.
fn identity(state: &AppState) -> Result<Option<Identity>, NodesError> {
    let config = &state.config;
    let (Some(certificate), Some(key), Some(ca)) = (&config.agent_cert, &config.agent_key, &config.agent_ca)
    else {
        return Ok(None);
    };
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| NodesError::Identity { path: path.to_owned(), source })
    };
    Ok(Some(Identity { certificate: read(certificate)?, key: read(key)?, ca: read(ca)? }))
}

/// One node: a session after the other.
async fn keep(state: AppState, client: AgentClient, stop: CancellationToken) {
    let address = client.address().to_string();
    let mut backoff = Backoff::default();
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = session(&state, &client, &mut backoff) => ended,
        };
        if let Err(error) = ended {
            tracing::warn!(%address, error = chain(&error), "the session with a node ended");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = backoff.wait() => {}
        }
    }
}

async fn session(state: &AppState, client: &AgentClient, backoff: &mut Backoff) -> Result<(), SessionError> {
    let info = client.node().await?;
    let node = info.id;
    state.store.meet_node(node, &client.address().to_string()).await?;
    state.observed.met(info, client.clone());
    tracing::info!(%node, address = %client.address(), "met a node");
    backoff.reset();
    // A task of its own, so that a slow disk does not hold up heartbeats; it ends with the set.
    let mut logs = JoinSet::new();
    logs.spawn(logs::run(state.clone(), client.clone(), node));
    tokio::select! {
        ended = desired::run(state, client, node) => ended,
        ended = events::run(state, client, node) => ended,
        Some(Err(error)) = logs.join_next() => Err(SessionError::Logs(error)),
    }
}

/// An error with its causes, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Where a node's own state is kept on disk.
fn cursor_path(state: &AppState, node: NodeId) -> PathBuf {
    state.config.state_dir.join("nodes").join(format!("{node}.cursor"))
}

/// How often a node hears of the control plane at least.
const HEARTBEAT: Duration = Duration::from_secs(2);
