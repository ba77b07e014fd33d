//! The smart HTTP protocol (gitprotocol-http(5)): who may reach which repository, and the three
//! requests. Refusals are plain text, because that is what git shows to the developer.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mogok_api::name::AppName;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::GitError;
use super::body::Refused;
use super::process::Git;
use super::repository::Repository;
use super::serve::{Input, TransferError, transfer};
use crate::state::AppState;
use crate::store::StoreError;
use crate::store::apps::AppRow;
use crate::store::users::User;
use crate::turn::{NoTurn, Turn};

/// Bytes of what a client says that it wants and has.
const NEGOTIATION: u64 = 16 << 20;
/// Bytes beyond a push's cap that are read so that the client hears git's own refusal of a large pack.
const ROOM: u64 = 1 << 20;
/// How long a push waits for another one to the same repository.
const PUSH_WAIT: Duration = Duration::from_secs(30);

const GIT_PROTOCOL: HeaderName = HeaderName::from_static("git-protocol");

#[derive(Clone)]
pub(super) struct Service {
    pub(super) state: AppState,
    pub(super) stop: CancellationToken,
}

/// A refusal that git shows as `remote: ...`.
pub(super) struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.0, format!("{}\n", self.1)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.0 == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"mogok\", charset=\"UTF-8\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

fn fault(error: &(dyn std::error::Error + 'static)) -> Refusal {
    tracing::error!(%error, source = error.source().map(tracing::field::display), "git request failed");
    Refusal(
        StatusCode::INTERNAL_SERVER_ERROR,
        "mogok: the platform failed at this request: try again; if it goes on, tell the operator".to_owned(),
    )
}

impl From<GitError> for Refusal {
    fn from(error: GitError) -> Self {
        fault(&error)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        fault(&error)
    }
}

impl From<NoTurn> for Refusal {
    fn from(refused: NoTurn) -> Self {
        let (status, who) = match refused {
            NoTurn::Account => (StatusCode::TOO_MANY_REQUESTS, "your account has"),
            NoTurn::Platform => (StatusCode::SERVICE_UNAVAILABLE, "the platform has"),
        };
        Self(status, format!("mogok: {who} too many transfers under way: try again in a moment"))
    }
}

pub(super) async fn unknown() -> Refusal {
    Refusal(
        StatusCode::NOT_FOUND,
        "mogok: no such git route: repositories are at /APP.git, smart HTTP only".to_owned(),
    )
}

/// The token in an `Authorization` header: the password of Basic, with any user name.
fn token(headers: &HeaderMap) -> Option<String> {
    let (scheme, value) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") || value.len() > 1024 {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(_user, password)| password.to_owned())
}

/// Who asks, and which of their apps for.
async fn access(state: &AppState, headers: &HeaderMap, path: &str) -> Result<(User, AppRow), Refusal> {
    let sign_in = |why: &str| Refusal(StatusCode::UNAUTHORIZED, format!("mogok: {why}: run 'mogok login'"));
    let secret = token(headers).ok_or_else(|| sign_in("a token is needed as the password"))?;
    let (user, _) =
        state.auth.account(&secret).await?.ok_or_else(|| sign_in("the token is unknown or revoked"))?;
    let name = path.strip_suffix(".git").unwrap_or(path);
    let name: AppName =
        name.parse().map_err(|error| Refusal(StatusCode::NOT_FOUND, format!("mogok: {error}")))?;
    let app = state.store.app_by_name(&name).await?;
    // Whether somebody else has an app of this name is nobody's business.
    let app = app.filter(|app| app.owner == user.id && !app.destroying).ok_or_else(|| {
        let message = format!(
            "mogok: no app {name} belongs to {}: check the remote's URL, or make it with: mogok create {name}",
            user.email
        );
        Refusal(StatusCode::NOT_FOUND, message)
    })?;
    Ok((user, app))
}

/// The two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Upload,
    Receive,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload-pack",
            Self::Receive => "receive-pack",
        }
    }

    /// `application/x-git-upload-pack-KIND`
    fn content_type(self, kind: &str) -> String {
        format!("application/x-git-{}-{kind}", self.name())
    }
}

/// `Git-Protocol: version=2`, and nothing that is not a plain list of words.
fn protocol(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(GIT_PROTOCOL)?.to_str().ok()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"=:.-_".contains(&b);
    (text.len() <= 100 && text.bytes().all(plain)).then(|| text.to_owned())
}

fn command(state: &AppState, repository: &Repository, program: Program, headers: &HeaderMap) -> Git {
    let repositories = &state.repositories;
    let mut git = Git::new(&repository.path, program.name()).args(["--stateless-rpc"]);
    if let Some(protocol) = protocol(headers) {
        git = git.env("GIT_PROTOCOL", &protocol);
    }
    if program == Program::Receive {
        let cap = repositories.limits().push.to_string();
        git = git
            .setting("receive.maxInputSize", &cap)
            .setting("core.hooksPath", &repositories.hooks().to_string_lossy());
    }
    git
}

fn answer(content_type: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0, must-revalidate"));
    response
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    service: Option<String>,
}

/// `GET /APP.git/info/refs?service=git-...`: what there is.
pub(super) async fn advertise(
    State(Service { state, stop }): State<Service>,
    Path(path): Path<String>,
    wanted: Query<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let program = match wanted.service.as_deref() {
        Some("git-upload-pack") => Program::Upload,
        Some("git-receive-pack") => Program::Receive,
        _ => return Err(unknown().await),
    };
    let (user, app) = access(&state, &headers, &path).await?;
    let turn = state.repositories.turns().take(user.id).await?;
    let repository = state.repositories.repository(app.id).await?;
    if program == Program::Receive {
        check_room(&state, &repository).await?;
    }
    let version_2 = protocol(&headers).is_some_and(|text| text.split(':').any(|word| word == "version=2"));
    // receive-pack knows no version 2 and answers in the first.
    let head = if version_2 && program == Program::Upload {
        Bytes::new()
    } else {
        let line = format!("# service=git-{}\n", program.name());
        Bytes::from(format!("{:04x}{line}0000", line.len() + 4))
    };
    let git = command(&state, &repository, program, &headers).args(["--http-backend-info-refs", "."]);
    let body = transfer(git, None, head, &stop, turn, None).await.map_err(refused)?;
    Ok(answer(&program.content_type("advertisement"), body))
}

/// Refuses a push to a repository that is full, before anything is sent.
async fn check_room(state: &AppState, repository: &Repository) -> Result<(), Refusal> {
    let (bytes, limit) = (repository.clean().await?, state.repositories.limits().repository);
    if bytes < limit {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    Err(Refusal(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!(
            "mogok: the repository has {} MiB and its limit is {} MiB: remove large files from its history, \
             or make the app anew",
            mib(bytes),
            mib(limit)
        ),
    ))
}

fn refused(error: TransferError) -> Refusal {
    match error {
        TransferError::Git(error) => error.into(),
        TransferError::Refused(Refused::TooLarge) => Refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            "mogok: this sends more than a push may have: remove large files from the history".to_owned(),
        ),
        TransferError::Refused(Refused::BadGzip) => {
            Refusal(StatusCode::BAD_REQUEST, "mogok: the request is no valid gzip".to_owned())
        }
        TransferError::Refused(Refused::Broken) => {
            Refusal(StatusCode::BAD_REQUEST, "mogok: the request ended too early".to_owned())
        }
    }
}

/// What a POST carries, when it is one that git sends.
fn input(program: Program, request: Request, cap: u64) -> Result<Input, Refusal> {
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let expected = program.content_type("request");
    if header(header::CONTENT_TYPE) != Some(expected.as_str()) {
        let message = format!("mogok: the content type must be {expected}");
        return Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let gzip = match header(header::CONTENT_ENCODING) {
        None | Some("identity") => false,
        Some("gzip" | "x-gzip") => true,
        Some(_) => {
            let message = "mogok: the content encoding must be gzip or identity".to_owned();
            return Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    };
    Ok(Input { body: request.into_body(), gzip, cap })
}

/// `POST /APP.git/git-upload-pack`: clone and fetch.
pub(super) async fn upload_pack(
    State(Service { state, stop }): State<Service>,
    Path(path): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let program = Program::Upload;
    let (user, app) = access(&state, request.headers(), &path).await?;
    let turn = state.repositories.turns().take(user.id).await?;
    let repository = state.repositories.repository(app.id).await?;
    let git = command(&state, &repository, program, request.headers()).args(["."]);
    let input = input(program, request, NEGOTIATION)?;
    let body = transfer(git, Some(input), Bytes::new(), &stop, turn, None).await.map_err(refused)?;
    Ok(answer(&program.content_type("result"), body))
}

/// `POST /APP.git/git-receive-pack`: push. One at a time to a repository.
pub(super) async fn receive_pack(
    State(Service { state, stop }): State<Service>,
    Path(path): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let program = Program::Receive;
    let (user, app) = access(&state, request.headers(), &path).await?;
    let turn: Turn = state.repositories.turns().take(user.id).await?;
    let lock = state.repositories.lock_of(app.id);
    let held = tokio::time::timeout(PUSH_WAIT, lock.lock_owned()).await.map_err(|_| {
        let message = format!("mogok: another push to {} is under way: try again when it is done", app.name);
        Refusal(StatusCode::CONFLICT, message)
    })?;
    let repository = state.repositories.repository(app.id).await?;
    check_room(&state, &repository).await?;
    let git = command(&state, &repository, program, request.headers()).args(["."]);
    // Git refuses a pack over the cap by itself, in words; this ends one that goes on regardless.
    let cap = state.repositories.limits().push.saturating_mul(4).saturating_add(ROOM);
    let input = input(program, request, cap)?;
    let body = transfer(git, Some(input), Bytes::new(), &stop, (turn, held), Some(repository));
    Ok(answer(&program.content_type("result"), body.await.map_err(refused)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_the_password_of_any_user() {
        let headers = |text: &str| HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]);
        let basic = |text: &str| headers(&format!("Basic {}", STANDARD.encode(text)));
        assert_eq!(token(&basic("mogok:mogok_a:b")), Some("mogok_a:b".to_owned()));
        assert_eq!(token(&basic(":x")), Some("x".to_owned()));
        assert_eq!(token(&headers("bearer x")), Some("x".to_owned()));
        for bad in [headers("Basic %"), basic("nothing"), headers("Digest x"), HeaderMap::new()] {
            assert_eq!(token(&bad), None);
        }
    }

    #[test]
    fn only_plain_words_reach_git_as_protocol() {
        let headers =
            |text: &'static str| HeaderMap::from_iter([(GIT_PROTOCOL, HeaderValue::from_static(text))]);
        assert_eq!(protocol(&headers("version=2")), Some("version=2".to_owned()));
        assert_eq!(protocol(&headers("version=2;x y")), None);
    }
}
