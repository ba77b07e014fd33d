//! The wire error of both APIs: a stable code for programs, a message and a remedy for people.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, for programs. The HTTP status follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or a value breaks its rule (400).
    Invalid,
    /// No token, a revoked token, or a wrong password (401).
    Unauthorized,
    /// The account may not do this (403).
    Forbidden,
    /// No such thing, or not one of yours (404).
    NotFound,
    /// The state forbids it now: name taken, build running, nothing built yet (409).
    Conflict,
    /// Over a size limit (413).
    TooLarge,
    /// Over a limit of the plan (422).
    PlanLimit,
    /// Too many requests or too much under way (429).
    TooMany,
    /// A fault of the platform (500).
    Internal,
    /// A part of the platform is away; try again (503).
    Unavailable,
}

impl ErrorCode {
    /// The HTTP status code that carries this error.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::PlanLimit => 422,
            Self::TooMany => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }
}

/// The body of every reply that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}{}", self.remedy.as_deref().map(|r| format!(" ({r})")).unwrap_or_default())]
pub struct ApiError {
    pub code: ErrorCode,
    /// One sentence that names the input or the operation.
    pub message: String,
    /// What to do next, where there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl ApiError {
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: None }
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}
