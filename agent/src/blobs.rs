//! The node's blob store over HTTP: what the control plane puts here before instances need it, and
//! what builds leave here for it. Bytes are streamed both ways and never held whole.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;
use mogok_api::agent::BlobInfo;
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::name::Digest;
use mogok_images::StoreError;
use mogok_images::store::{Idle, Removal};
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use crate::server::{Api, Refusal};

/// Bytes of the largest blob: a base image, or the source of an app.
const MAX_BYTES: u64 = 4 << 30;

fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error: mogok_api::name::InvalidName| {
        Refusal(ApiError::new(ErrorCode::Invalid, error.to_string()))
    })
}

fn missing(digest: &Digest) -> Refusal {
    Refusal(ApiError::new(ErrorCode::NotFound, format!("blob {digest} is not on this node")))
}

/// Whether a bad blob is the sender's fault decides how it is told.
fn refused(error: &StoreError) -> Refusal {
    let code = match error {
        StoreError::TooLarge { .. } => ErrorCode::TooLarge,
        StoreError::Mismatch { .. } | StoreError::Input(_) => ErrorCode::Invalid,
        StoreError::NotFound { .. } => ErrorCode::NotFound,
        StoreError::Busy { .. } => ErrorCode::Unavailable,
        _ => ErrorCode::Internal,
    };
    Refusal(ApiError::new(code, crate::chain(error)))
}

/// `GET /v1/blobs/{digest}`, and `HEAD` with its headers only.
///
/// # Errors
/// When there is no such blob.
pub async fn get(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Result<Response, Refusal> {
    let digest = digest(&name)?;
    let store = api.node.store.clone();
    let wanted = digest.clone();
    let opened = tokio::task::spawn_blocking(move || store.open_blob(&wanted)).await;
    let file = match opened.map_err(|error| Refusal::internal(&error))? {
        Ok(file) => file,
        Err(StoreError::NotFound { .. }) => return Err(missing(&digest)),
        Err(error) => return Err(refused(&error)),
    };
    let length = file.metadata().map_err(|error| Refusal::internal(&error))?.len();
    let body = Body::from_stream(ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 * 1024));
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, body).into_response())
}

/// `PUT /v1/blobs/{digest}`: stored when the bytes have this digest, and already there is stored too.
///
/// # Errors
/// When the bytes are others, too many, or cannot be stored.
pub async fn put(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    body: Body,
) -> Result<StatusCode, Refusal> {
    let digest = digest(&name)?;
    let store = api.node.store.clone();
    if store.has(&digest) {
        return Ok(StatusCode::NO_CONTENT);
    }
    let reader = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    let bridge = SyncIoBridge::new(reader);
    let stored = tokio::task::spawn_blocking(move || store.put_as(&digest, bridge, MAX_BYTES)).await;
    stored.map_err(|error| Refusal::internal(&error))?.map_err(|error| refused(&error))?;
    api.node.arrivals.notify_waiters();
    Ok(StatusCode::CREATED)
}

/// `GET /v1/blobs`: what could be dropped.
///
/// # Errors
/// When the store cannot be read.
pub async fn list(State(api): State<Arc<Api>>) -> Result<Json<Vec<BlobInfo>>, Refusal> {
    let store = api.node.store.clone();
    let idle = tokio::task::spawn_blocking(move || store.idle()).await;
    let idle = idle.map_err(|error| Refusal::internal(&error))?.map_err(|error| refused(&error))?;
    let shown =
        |blob: Idle| BlobInfo { digest: blob.digest, bytes: blob.bytes, idle_s: blob.since.as_secs() };
    Ok(Json(idle.into_iter().map(shown).collect()))
}

/// `DELETE /v1/blobs/{digest}`, with what was unpacked from it; refused as long as a wanted instance or one
/// that is on its way out needs it. The wanted set does not change between that look and the removal, and an
/// instance that comes later asks for the blob anew.
///
/// # Errors
/// When it is in use or cannot be removed.
pub async fn delete(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    let digest = digest(&name)?;
    let wanted = digest.clone();
    let removed = tokio::task::spawn_blocking(move || {
        api.node.store.remove(&wanted, || {
            let held = api.wanted.without(&wanted)?;
            (!in_use(&api, &wanted)).then_some(held)
        })
    });
    match removed.await.map_err(|error| Refusal::internal(&error))?.map_err(|error| refused(&error))? {
        Removal::Removed => Ok(StatusCode::NO_CONTENT),
        Removal::Absent => Err(missing(&digest)),
        Removal::Refused => {
            let message = format!("blob {digest} is in use by an instance or an image of this node");
            let error = ApiError::new(ErrorCode::Conflict, message);
            Err(Refusal(error.remedy("wait until the instance is removed")))
        }
    }
}

/// Is it an image, or does an instance that is still there, wanted or not, have it mounted or left it?
fn in_use(api: &Api, digest: &Digest) -> bool {
    let node = &api.node;
    // One that cannot be asked about is not removed.
    if node.store.images().map_or(true, |images| images.iter().any(|(_, image)| image == digest)) {
        return true;
    }
    node.events.statuses().iter().any(|status| {
        let record = node.ground.ledger.load(status.id);
        status.output.as_ref() == Some(digest)
            || record.is_ok_and(|record| crate::node::blobs_of(&record.spec).any(|used| used == digest))
    })
}
