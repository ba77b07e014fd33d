//! Replies of the API: the error type that every handler returns, and how faults of the platform
//! become one. What a fault says in detail goes to the log, never to the client.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mogok_api::error::{ApiError, ErrorCode};

use crate::store::StoreError;

/// An error on its way to the client.
#[derive(Debug)]
pub struct Failed(pub ApiError);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        fault(&error)
    }
}

/// A fault of the platform: logged with all its causes, told without them.
pub(crate) fn fault(error: &(dyn std::error::Error + 'static)) -> Failed {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    tracing::error!(%error, ?causes, "request failed");
    Failed(
        ApiError::new(ErrorCode::Internal, "the platform failed at this request")
            .remedy("try again; if it goes on, tell the operator"),
    )
}
