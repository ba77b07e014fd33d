//! Git over smart HTTP (`git.<base domain>`), and the bare repositories behind it.

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::state::AppState;

/// The git service. Transfers end when `stop` is cancelled.
pub(crate) fn router(_state: AppState, _stop: CancellationToken) -> Router {
    Router::new()
}
