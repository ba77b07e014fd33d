//! What handlers take from a request, each parsed once: who asks ([`Caller`]), which app ([`OwnApp`]),
//! the body ([`Body`]) and the query ([`Params`]). A refusal names the input.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use bytes::Bytes;
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::TokenId;
use mogok_api::name::AppName;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::reply::Failed;
use crate::state::AppState;
use crate::store::apps::AppRow;
use crate::store::users::User;

/// The account that asks, and the token it came with.
pub(super) struct Caller {
    pub(super) user: User,
    pub(super) token: TokenId,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Failed> {
        let sign_in = |message: &str| Failed::new(ErrorCode::Unauthorized, message, "run mogok login");
        let value = parts
            .headers
            .get(header::AUTHORIZATION)
            .ok_or_else(|| sign_in("this needs a token: Authorization: Bearer TOKEN"))?;
        let secret = value
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, secret)| secret.trim())
            .ok_or_else(|| sign_in("the authorization is not of the form: Bearer TOKEN"))?;
        let known = state.auth.account(secret).await?;
        let (user, token) = known.ok_or_else(|| sign_in("the token is unknown or revoked"))?;
        Ok(Self { user, token })
    }
}

/// The app that the path names, when it is the caller's.
pub(super) struct OwnApp {
    pub(super) caller: Caller,
    pub(super) app: AppRow,
}

/// The part of every app's path; other parts are the handlers' own.
#[derive(Deserialize)]
struct AppPath {
    app: String,
}

impl FromRequestParts<AppState> for OwnApp {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Failed> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let Path(AppPath { app }) = Path::from_request_parts(parts, state)
            .await
            .map_err(|error| Failed::invalid(&error.body_text()))?;
        let name: AppName = app.parse().map_err(|error| Failed::invalid(&error))?;
        // Whether somebody else has an app of this name is nobody's business.
        let app = state.store.app_by_name(&name).await?.filter(|app| app.owner == caller.user.id);
        let app = app.ok_or_else(|| {
            Failed::new(
                ErrorCode::NotFound,
                format!("you have no app {:?}", name.as_str()),
                format!("list your apps: mogok apps; or make it: mogok create {name}"),
            )
        })?;
        Ok(Self { caller, app })
    }
}

/// The address of who asks. The front proxy says it, and only a proxy on this host is believed: what is connected from
/// elsewhere speaks for itself alone.
pub(super) struct ClientAddress(pub(super) IpAddr);

impl FromRequestParts<AppState> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip());
        let told = parts.headers.get("x-forwarded-for").filter(|_| peer.is_loopback());
        let told = told.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
        Ok(Self(told.unwrap_or(peer)))
    }
}

/// A JSON body, whatever its content type says.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<AppState> for Body<T> {
    type Rejection = Failed;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Failed> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| match error {
            BytesRejection::FailedToBufferBody(error) if error.status().as_u16() == 413 => Failed::new(
                ErrorCode::TooLarge,
                format!("the request body is over the limit of {} bytes", super::BODY_BYTES),
                "send less",
            ),
            error => Failed(ApiError::new(ErrorCode::Invalid, error.body_text())),
        })?;
        // An empty body means no choices where all of them have defaults.
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Self).map_err(|error| Failed::invalid(&told(&error)))
    }
}

/// What is wrong with a body; a value that breaks its rule is told without its place in the text.
fn told(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if error.is_data() {
        let place = format!(" at line {} column {}", error.line(), error.column());
        return text.strip_suffix(&place).unwrap_or(&text).to_owned();
    }
    format!("the request body is not JSON: {text}")
}

/// The parameters behind `?`.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Params<T> {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Failed> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(Failed::invalid(&error.body_text())),
        }
    }
}
