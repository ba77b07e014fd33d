//! The public API (`api.<base domain>`): the routes of [`mogok_api::control`] over the store and the
//! parts. Every reply that is not 2xx is an [`ApiError`] that names the input and the remedy.

use axum::Router;
use axum::http::{Method, Uri};
use mogok_api::error::{ApiError, ErrorCode};
use tokio_util::sync::CancellationToken;

use crate::state::AppState;

pub mod reply;

use reply::Failed;

/// The API's service. Streams end when `stop` is cancelled.
pub(crate) fn router(_state: AppState, _stop: CancellationToken) -> Router {
    Router::new().fallback(unknown)
}

async fn unknown(method: Method, uri: Uri) -> Failed {
    Failed(ApiError::new(ErrorCode::NotFound, format!("no such route: {method} {}", uri.path())))
}
