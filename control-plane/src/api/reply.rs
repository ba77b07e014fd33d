//! Replies of the API: the error type that every handler returns, and how each refusal and each fault
//! of the platform becomes one. What a fault says in detail goes to the log, never to the client.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mogok_api::error::{ApiError, ErrorCode};

use crate::apps::CreateError;
use crate::auth::{AuthError, PasswordError};
use crate::git::GitError;
use crate::log_store::LogError;
use crate::plan::OverPlan;
use crate::store::StoreError;
use crate::store::apps::CreateAppError;
use crate::store::wanted::WantedError;
use crate::turn::NoTurn;

/// An error on its way to the client.
#[derive(Debug)]
pub struct Failed(pub ApiError);

impl Failed {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(ApiError::new(code, message).remedy(remedy))
    }

    /// An input that breaks its rule; the rule is the remedy.
    pub(crate) fn invalid(error: &impl std::fmt::Display) -> Self {
        Self(ApiError::new(ErrorCode::Invalid, error.to_string()))
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
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
    Failed::new(
        ErrorCode::Internal,
        "the platform failed at this request",
        "try again; if it goes on, tell the operator",
    )
}

macro_rules! faults {
    ($($error:ty),*) => {$(
        impl From<$error> for Failed {
            fn from(error: $error) -> Self {
                fault(&error)
            }
        }
    )*};
}

faults!(StoreError, GitError, LogError);

impl From<AuthError> for Failed {
    fn from(error: AuthError) -> Self {
        let (code, remedy) = match &error {
            AuthError::Wrong => {
                (ErrorCode::Unauthorized, "check both, or make an account: mogok signup".to_owned())
            }
            AuthError::Throttled { wait_minutes, .. } => {
                (ErrorCode::TooMany, format!("try again in {wait_minutes} minutes"))
            }
            AuthError::Taken { .. } => {
                (ErrorCode::Conflict, "log in, or use another email: mogok login".to_owned())
            }
            AuthError::Busy | AuthError::Password(PasswordError::Busy) => {
                (ErrorCode::TooMany, "try again in a moment".to_owned())
            }
            AuthError::Password(_) | AuthError::Random(_) | AuthError::Store(_) => return fault(&error),
        };
        Self::new(code, error.to_string(), remedy)
    }
}

impl From<OverPlan> for Failed {
    fn from(error: OverPlan) -> Self {
        let remedy = match error {
            OverPlan::Apps { .. } => "destroy an app first, or ask the operator for a larger plan",
            OverPlan::Instances { .. } => "ask for less, or ask the operator for a larger plan",
            OverPlan::Workers { .. } => "run web processes, or ask the operator for the paid plan",
        };
        Self::new(ErrorCode::PlanLimit, error.to_string(), remedy)
    }
}

impl From<CreateError> for Failed {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Store(CreateAppError::OverPlan(error)) => error.into(),
            CreateError::Store(CreateAppError::Removing { count }) => Self::new(
                ErrorCode::TooMany,
                format!("{count} of your apps are still being destroyed"),
                "try again when they are gone",
            ),
            CreateError::Store(CreateAppError::Taken { name }) => Self::new(
                ErrorCode::Conflict,
                format!("the app name {:?} is taken", name.as_str()),
                "choose another name; the name of an app that is being destroyed is free when it is gone",
            ),
            error => fault(&error),
        }
    }
}

impl From<WantedError> for Failed {
    fn from(error: WantedError) -> Self {
        let (code, remedy) = match error {
            WantedError::OverPlan(error) => return error.into(),
            WantedError::Store(error) => return fault(&error),
            WantedError::NoApp => (ErrorCode::NotFound, "list your apps: mogok apps"),
            WantedError::NothingBuilt => (ErrorCode::Conflict, "run mogok build"),
            WantedError::NothingToRun { .. } => (
                ErrorCode::Conflict,
                "scale one of them up: mogok scale TYPE=1; or change the Procfile and build",
            ),
            WantedError::Stopped => (ErrorCode::Conflict, "run mogok start"),
            WantedError::ConfigTooLarge { .. } => {
                (ErrorCode::TooLarge, "unset variables, or keep large data elsewhere")
            }
            WantedError::OwnVar(_) => (ErrorCode::Invalid, "read it in the program instead of setting it"),
            WantedError::NulInValue(_) => (ErrorCode::Invalid, "encode binary values, for example as base64"),
            WantedError::NoSuchType { .. } => {
                (ErrorCode::Invalid, "name one of them, or add the type to the Procfile and build")
            }
            WantedError::TooManyTypes => (ErrorCode::Invalid, "use fewer process types"),
            WantedError::NoRelease(_) | WantedError::NoEarlierRelease => {
                (ErrorCode::NotFound, "list the releases: mogok releases")
            }
            WantedError::AlreadyCurrent(_) => {
                (ErrorCode::Conflict, "name an earlier release: mogok releases")
            }
        };
        Self::new(code, error.to_string(), remedy)
    }
}

impl From<NoTurn> for Failed {
    fn from(refused: NoTurn) -> Self {
        let (code, who) = match refused {
            NoTurn::Account => (ErrorCode::TooMany, "your account"),
            NoTurn::Platform => (ErrorCode::Unavailable, "the platform"),
        };
        Self::new(code, format!("{who} follows too many logs at once"), "end one of them, or try again later")
    }
}

/// Errors that the HTTP layer itself answers with become an [`ApiError`] too.
pub(super) async fn dress(response: Response) -> Response {
    let status = response.status();
    let json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let code = match status {
        StatusCode::NOT_FOUND => ErrorCode::NotFound,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::TooLarge,
        _ if status.is_server_error() => ErrorCode::Internal,
        _ => ErrorCode::Invalid,
    };
    let reason = status.canonical_reason().unwrap_or("refused").to_lowercase();
    let allowed = response.headers().get(header::ALLOW).cloned();
    let remedy = match allowed.as_ref().and_then(|methods| methods.to_str().ok()) {
        Some(methods) => format!("this route takes {methods}"),
        None => "see the API's description".to_owned(),
    };
    let error = ApiError::new(code, format!("the request was refused: {reason}")).remedy(remedy);
    let mut dressed = (status, Json(error)).into_response();
    if let Some(allowed) = allowed {
        dressed.headers_mut().insert(header::ALLOW, allowed);
    }
    dressed
}
