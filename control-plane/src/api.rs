//! The public API (`api.<base domain>`): the routes of [`mogok_api::control`] over the store and the
//! parts. Every reply that is not 2xx is an [`mogok_api::error::ApiError`] that names the input and the
//! remedy; every request has a bound on its body and its time.

use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use mogok_api::error::{ApiError, ErrorCode};
use tokio_util::sync::CancellationToken;

use crate::state::AppState;

mod account;
mod apps;
mod builds;
mod deploys;
mod extract;
mod logs;
mod processes;
pub mod reply;

use reply::Failed;

/// Bytes of a request body; a full config with every byte escaped fits.
const BODY_BYTES: usize = 512 * 1024;
/// How long a request may take until its answer begins; longer than any wait a client can ask for.
const REQUEST_TIME: Duration = Duration::from_secs(45);

/// The API's service. Streams end when `stop` is cancelled.
pub(crate) fn router(state: AppState, stop: CancellationToken) -> Router {
    let routes = Router::new()
        .route("/v1/platform", get(account::platform))
        .route("/v1/signup", post(account::signup))
        .route("/v1/login", post(account::login))
        .route("/v1/logout", post(account::logout))
        .route("/v1/whoami", get(account::whoami))
        .route("/v1/tokens", get(account::tokens))
        .route("/v1/tokens/{id}", delete(account::revoke))
        .route("/v1/apps", get(apps::list).post(apps::create))
        .route("/v1/apps/{app}", get(apps::show).delete(apps::destroy))
        .route("/v1/apps/{app}/config", get(apps::config).patch(apps::configure))
        .route("/v1/apps/{app}/builds", get(builds::list).post(builds::create))
        .route("/v1/apps/{app}/builds/{id}", get(builds::show))
        .route("/v1/apps/{app}/builds/{id}/log", get(logs::build))
        .route("/v1/apps/{app}/builds/{id}/cancel", post(builds::cancel))
        .route("/v1/apps/{app}/releases", get(deploys::releases))
        .route("/v1/apps/{app}/rollback", post(deploys::roll_back))
        .route("/v1/apps/{app}/start", post(deploys::start))
        .route("/v1/apps/{app}/stop", post(deploys::stop))
        .route("/v1/apps/{app}/restart", post(deploys::restart))
        .route("/v1/apps/{app}/formation", get(deploys::formation).patch(deploys::scale))
        .route("/v1/apps/{app}/deploys/{id}", get(deploys::show))
        .route("/v1/apps/{app}/ps", get(processes::list))
        .route("/v1/apps/{app}/logs", get(logs::app))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn(bounded))
        .layer(axum::Extension(logs::Stop(stop)))
        .with_state(state);
    // Around the routes, because what they say about a wrong method comes from outside their layers.
    Router::new().fallback_service(routes).layer(middleware::map_response(reply::dress))
}

async fn bounded(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = REQUEST_TIME.as_secs();
            let message = format!("the request was not done within {seconds} seconds");
            Failed::new(ErrorCode::Unavailable, message, "try again").into_response()
        }
    }
}

async fn unknown(method: Method, uri: Uri) -> Failed {
    let path: String = uri.path().chars().take(200).collect();
    Failed(ApiError::new(ErrorCode::NotFound, format!("no such route: {method} {path}")))
}
