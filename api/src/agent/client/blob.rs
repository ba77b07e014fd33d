//! Blobs to and from a node, as files. Never more than a chunk is in memory, a transfer never passes
//! its size cap, and its time is bounded by its size. The digest is checked by the store that takes
//! the bytes, not here.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Method, StatusCode};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::RequestBody;
use super::{AgentClient, ClientError, Exchange};
use crate::agent::BlobInfo;
use crate::error::ErrorCode;
use crate::name::Digest;

const CHUNK: usize = 64 * 1024;
/// How long a transfer may stand still.
const STALL: Duration = Duration::from_secs(30);
/// The agent removes all files of a tree, on a busy disk.
const REMOVAL: Duration = Duration::from_secs(60);

/// A minute, and a second for every MiB: slower than that is a broken link.
fn time_for(bytes: u64) -> Duration {
    Duration::from_secs(60 + bytes / (1 << 20))
}

impl AgentClient {
    /// Does the node's blob store hold it?
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, ClientError> {
        let exchange = Exchange::new("ask for a blob", Method::HEAD, format!("/v1/blobs/{digest}"));
        match self.unary(&exchange, super::REPLY_LIMIT).await {
            Ok(_) => Ok(true),
            // The reply to a HEAD has no body to say why.
            Err(ClientError::Unexplained { status, .. }) if status == StatusCode::NOT_FOUND.as_u16() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What the node's blob store holds, but for base images.
    ///
    /// # Errors
    /// When the agent cannot be reached or refuses.
    pub async fn blobs(&self) -> Result<Vec<BlobInfo>, ClientError> {
        let exchange = Exchange::new("list the blobs", Method::GET, "/v1/blobs".into());
        super::decode(exchange.operation, &self.unary(&exchange, super::LIST_LIMIT).await?)
    }

    /// Has the node drop a blob and what was unpacked from it. False when something on the node uses it.
    ///
    /// # Errors
    /// When the agent cannot be reached, or cannot remove it now.
    pub async fn drop_blob(&self, digest: &Digest) -> Result<bool, ClientError> {
        let exchange = Exchange {
            timeout: REMOVAL,
            ..Exchange::new("drop a blob", Method::DELETE, format!("/v1/blobs/{digest}"))
        };
        // On a connection of its own: many files may go, and others are not to wait for that.
        let dropped = self.bounded(&exchange, async {
            let (_connection, reply) = self.open(&exchange, super::empty()).await?;
            super::collect(exchange.operation, reply, super::REPLY_LIMIT).await
        });
        match dropped.await {
            Ok(_) => Ok(true),
            Err(ClientError::Refused { source, .. }) if source.code == ErrorCode::NotFound => Ok(true),
            Err(ClientError::Refused { source, .. }) if source.code == ErrorCode::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a file as the blob `digest`. The agent verifies the digest; a blob that it holds is taken again
    /// without harm.
    ///
    /// # Errors
    /// When the file cannot be read, or the agent cannot be reached or refuses it.
    pub async fn put_blob(&self, digest: &Digest, from: &Path) -> Result<(), ClientError> {
        const OPERATION: &str = "send a blob";
        let io = |source| ClientError::File { operation: OPERATION, path: from.to_owned(), source };
        let file = File::open(from).await.map_err(io)?;
        let bytes = file.metadata().await.map_err(io)?.len();
        let exchange = Exchange {
            length: Some(bytes),
            timeout: time_for(bytes),
            ..Exchange::new(OPERATION, Method::PUT, format!("/v1/blobs/{digest}"))
        };
        let transfer = async {
            let (_connection, reply) = self.open(&exchange, file_body(file, bytes)).await?;
            super::collect(OPERATION, reply, super::REPLY_LIMIT).await.map(drop)
        };
        self.bounded(&exchange, transfer).await
    }

    /// Writes the blob into a new file and returns its size in bytes; the file is removed again on an error.
    ///
    /// # Errors
    /// When the file exists or cannot be written, the agent lacks the blob, or it is larger than `limit` bytes.
    pub async fn get_blob(&self, digest: &Digest, to: &Path, limit: u64) -> Result<u64, ClientError> {
        const OPERATION: &str = "fetch a blob";
        let io = |source| ClientError::File { operation: OPERATION, path: to.to_owned(), source };
        let mut file = File::create_new(to).await.map_err(io)?;
        let exchange = Exchange {
            timeout: time_for(limit),
            ..Exchange::new(OPERATION, Method::GET, format!("/v1/blobs/{digest}"))
        };
        let transfer = async {
            let (_connection, reply) = self.open(&exchange, super::empty()).await?;
            let mut body = reply.into_body();
            let mut written = 0u64;
            loop {
                let frame = tokio::time::timeout(STALL, body.frame()).await;
                let frame = frame.map_err(|_| self.timed_out(OPERATION))?;
                let Some(frame) = frame else { break };
                let frame = frame.map_err(|source| ClientError::Http { operation: OPERATION, source })?;
                let Ok(chunk) = frame.into_data() else { continue };
                written += chunk.len() as u64;
                if written > limit {
                    return Err(ClientError::TooLarge { operation: OPERATION, limit });
                }
                file.write_all(&chunk).await.map_err(io)?;
            }
            file.flush().await.map_err(io)?;
            Ok(written)
        };
        let result = self.bounded(&exchange, transfer).await;
        if result.is_err() {
            // The error that is being returned says more than one of the clean-up.
            let _ = tokio::fs::remove_file(to).await;
        }
        result
    }
}

/// The file as it is read, exactly `bytes` of it: one that grows meanwhile must not break the framing.
fn file_body(file: File, bytes: u64) -> RequestBody {
    let chunks = stream::try_unfold(file.take(bytes), |mut file| async move {
        let mut chunk = vec![0; CHUNK];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        Ok::<_, io::Error>((read > 0).then(|| (Frame::data(Bytes::from(chunk)), file)))
    });
    StreamBody::new(chunks).boxed_unsync()
}
