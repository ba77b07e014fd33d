//! One transfer: a git process between the request and the response. It ends with its client, at its
//! time limit, or when the control plane stops; what it holds (turn, lock) is freed when it is gone.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;

use super::GitError;
use super::body::{Refused, pump};
use super::process::{Git, message};
use super::repository::Repository;

/// How long a transfer may take.
const TRANSFER_TIME: Duration = Duration::from_secs(10 * 60);

/// What goes into git.
pub(super) struct Input {
    pub(super) body: Body,
    pub(super) gzip: bool,
    /// Bytes after which the transfer is refused.
    pub(super) cap: u64,
}

/// Why there is no transfer.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error("the request was not taken to its end: {0:?}")]
    Refused(Refused),
}

/// Runs git; the answer is `head` and then its output, once the whole input was read. `hold` is dropped
/// when the process is gone; `tidy` is cared for before that, when it ended well.
pub(super) async fn transfer(
    git: Git,
    input: Option<Input>,
    head: Bytes,
    stop: &CancellationToken,
    hold: impl Send + 'static,
    tidy: Option<Repository>,
) -> Result<Body, TransferError> {
    let git = if input.is_some() { git.stdin() } else { git };
    let mut running = git.spawn()?;
    let (stdin, stdout, stderr) = (running.take_stdin(), running.take_stdout(), running.take_stderr());
    let cancel = stop.child_token();
    // Dropped with this future, and later with the answer's body: the client went away.
    let guard = cancel.clone().drop_guard();
    tokio::spawn(async move {
        let messages = tokio::spawn(message(stderr));
        let status = tokio::select! {
            status = running.wait() => Some(status),
            () = cancel.cancelled() => None,
            () = tokio::time::sleep(TRANSFER_TIME) => None,
        };
        match status {
            Some(Ok(status)) if status.success() => {
                if let Some(repository) = tidy
                    && let Err(error) = repository.tidy().await
                {
                    tracing::warn!(%error, "cannot tidy a repository");
                }
            }
            Some(Ok(status)) => {
                let message = messages.await.unwrap_or_default();
                tracing::info!(%status, message, "git refused a transfer");
            }
            Some(Err(error)) => tracing::warn!(%error, "lost a git process"),
            None => running.end().await,
        }
        drop(hold);
    });
    if let (Some(Input { body, gzip, cap }), Some(stdin)) = (input, stdin) {
        let pumped = tokio::time::timeout(TRANSFER_TIME, pump(body, gzip, stdin, cap)).await;
        pumped.unwrap_or(Err(Refused::Broken)).map_err(TransferError::Refused)?;
    }
    let Some(stdout) = stdout else { return Ok(Body::empty()) };
    let output = stream::unfold((ReaderStream::new(stdout), guard), |(mut output, guard)| async move {
        let Some(chunk) = output.next().await else {
            // All was said: git is about to leave by itself.
            guard.disarm();
            return None;
        };
        Some((chunk, (output, guard)))
    });
    let head = stream::iter((!head.is_empty()).then_some(Ok(head)));
    Ok(Body::from_stream(head.chain(output)))
}
