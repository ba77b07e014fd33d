//! Accounts and their tokens.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use mogok_api::control::{Account, Credentials, Platform, Session, Token};
use mogok_api::error::{ApiError, ErrorCode};
use mogok_api::id::TokenId;

use super::extract::{Body, Caller, ClientAddress};
use super::reply::Failed;
use crate::auth::{Email, NewToken, Password};
use crate::state::AppState;
use crate::store::users::User;

fn account(user: User) -> Account {
    Account { id: user.id, email: user.email, plan: user.plan, created_at: user.created_at }
}

fn session(new: NewToken) -> Json<Session> {
    Json(Session { account: account(new.user), token: new.secret, token_id: new.id })
}

fn credentials(given: Credentials) -> Result<(Email, Password), Failed> {
    let email = given.email.parse().map_err(|error| Failed::invalid(&error))?;
    let password = Password::parse(given.password).map_err(|error| Failed::invalid(&error))?;
    Ok((email, password))
}

pub(super) async fn platform(State(state): State<AppState>) -> Json<Platform> {
    let config = &state.config;
    Json(Platform {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        base_domain: config.base_domain.to_string(),
        git_url: config.public_url("git"),
        app_url: config.public_url("{app}"),
    })
}

pub(super) async fn signup(
    State(state): State<AppState>,
    Body(given): Body<Credentials>,
) -> Result<(StatusCode, Json<Session>), Failed> {
    let (email, password) = credentials(given)?;
    let new = state.auth.sign_up(&email, password).await?;
    tracing::info!(user = %new.user.id, "account created");
    Ok((StatusCode::CREATED, session(new)))
}

pub(super) async fn login(
    State(state): State<AppState>,
    ClientAddress(from): ClientAddress,
    Body(given): Body<Credentials>,
) -> Result<Json<Session>, Failed> {
    let (email, password) = credentials(given)?;
    Ok(session(state.auth.log_in(&email, password, from).await?))
}

pub(super) async fn logout(State(state): State<AppState>, caller: Caller) -> Result<StatusCode, Failed> {
    state.store.revoke_token(caller.user.id, caller.token).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn whoami(caller: Caller) -> Json<Account> {
    Json(account(caller.user))
}

pub(super) async fn tokens(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Json<Vec<Token>>, Failed> {
    let rows = state.store.tokens(caller.user.id).await?;
    let shown = rows.into_iter().map(|row| Token {
        id: row.id,
        created_at: row.created_at,
        last_used_at: row.last_used_at,
        current: row.id == caller.token,
    });
    Ok(Json(shown.collect()))
}

pub(super) async fn revoke(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failed> {
    let id: TokenId = id.parse().map_err(|error| Failed::invalid(&error))?;
    if state.store.revoke_token(caller.user.id, id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Failed(ApiError::new(ErrorCode::NotFound, format!("you have no token {id}"))))
}
