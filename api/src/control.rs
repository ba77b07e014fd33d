//! The public API, version 1: what the `mogok` command, the portal and scripts use.
//!
//! HTTP + JSON on `api.<base domain>`, `Authorization: Bearer TOKEN` everywhere but signup and login.
//!
//! | method and path | body -> reply | |
//! |---|---|---|
//! | `GET /v1/platform` | -> [`Platform`] | base domain, URLs (no token needed) |
//! | `POST /v1/signup` | [`Credentials`] -> [`Session`] | new account |
//! | `POST /v1/login` | [`Credentials`] -> [`Session`] | new token |
//! | `POST /v1/logout` | -> | revokes the token in use |
//! | `GET /v1/whoami` | -> [`Account`] | |
//! | `GET /v1/tokens`, `DELETE /v1/tokens/{id}` | -> `[Token]` | |
//! | `POST /v1/apps`, `GET /v1/apps` | [`NewApp`] -> [`App`], -> `[App]` | |
//! | `GET, DELETE /v1/apps/{app}` | -> [`App`] | |
//! | `GET, PATCH /v1/apps/{app}/config` | [`ConfigChange`] -> [`Configured`]; -> [`Config`] | a change makes a release |
//! | `POST, GET /v1/apps/{app}/builds` | [`NewBuild`] -> [`Build`], -> `[Build]` | |
//! | `GET /v1/apps/{app}/builds/{id}` | -> [`Build`] | |
//! | `GET /v1/apps/{app}/builds/{id}/log?after=N&follow=BOOL` | -> NDJSON of [`LogLine`] | ends with the build |
//! | `POST /v1/apps/{app}/builds/{id}/cancel` | -> [`Build`] | |
//! | `GET /v1/apps/{app}/releases` | -> `[Release]` | newest first |
//! | `POST /v1/apps/{app}/rollback` | [`Rollback`] -> [`Deploy`] | |
//! | `POST /v1/apps/{app}/start`, `/stop`, `/restart` | -> [`Deploy`] | |
//! | `GET /v1/apps/{app}/formation`, `PATCH` | [`Formation`] -> [`Deploy`] | how many of each type |
//! | `GET /v1/apps/{app}/deploys/{id}?wait=SECONDS` | -> [`Deploy`] | waits up to 30 s for its end |
//! | `GET /v1/apps/{app}/ps` | -> `[Process]` | |
//! | `GET /v1/apps/{app}/logs?lines=N&follow=BOOL&source=&process=` | -> NDJSON of [`LogLine`] | |
//!
//! Git is at `git.<base domain>/{app}.git` with the token as the password of HTTP basic authentication.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::Plan;
use crate::id::{AppId, BuildId, DeployId, InstanceId, NodeId, TokenId, UserId};
use crate::instance::{ExitStatus, Failure, Phase};
use crate::name::{AppName, ConfigVar, Digest, ImageName, ProcessName, ProcessType, ReleaseNumber};

#[cfg(feature = "control-client")]
pub mod client;

/// Where the parts of this platform are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Platform {
    pub version: String,
    pub base_domain: String,
    /// `http://git.mogok.localhost:8080`
    pub git_url: String,
    /// `http://{app}.mogok.localhost:8080`, with the placeholder.
    pub app_url: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Credentials {
    pub email: String,
    /// 8 to 256 bytes.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("email", &self.email).finish_non_exhaustive()
    }
}

/// The answer to signup and login: the only time the token's secret is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    pub account: Account,
    pub token: String,
    pub token_id: TokenId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    pub id: UserId,
    pub email: String,
    pub plan: Plan,
    pub created_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    pub id: TokenId,
    pub created_at: DateTime<Utc>,
    pub last_used_at: Option<DateTime<Utc>>,
    /// The one this request came with.
    pub current: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewApp {
    pub name: AppName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct App {
    pub id: AppId,
    pub name: AppName,
    pub created_at: DateTime<Utc>,
    pub url: String,
    pub git_url: String,
    /// Wanted to run?
    pub running: bool,
    pub release: Option<ReleaseNumber>,
    pub formation: Formation,
}

/// How many instances of each process type are wanted.
pub type Formation = BTreeMap<ProcessType, u32>;

/// An app's config vars.
pub type Config = BTreeMap<ConfigVar, String>;

/// `null` unsets a variable.
pub type ConfigChange = BTreeMap<ConfigVar, Option<String>>;

/// What a change of config vars led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Configured {
    pub config: Config,
    /// Of the release that was made of it, when the app runs and there was a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy: Option<Deploy>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewBuild {
    /// Branch, tag or commit; the repository's pushed branch where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl BuildState {
    #[must_use]
    pub fn ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Build {
    pub id: BuildId,
    pub state: BuildState,
    /// Full hash of the commit.
    pub commit: String,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    /// The reason of a failure, in one line.
    pub reason: Option<String>,
    /// The release a success made.
    pub release: Option<ReleaseNumber>,
    pub package: Option<Digest>,
    pub package_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    pub number: ReleaseNumber,
    pub created_at: DateTime<Utc>,
    /// `build 4f2a91c`, `set RAILS_LOG_LEVEL`, `rollback to v3`.
    pub description: String,
    pub commit: Option<String>,
    pub package: Digest,
    pub image: ImageName,
    pub processes: BTreeMap<ProcessType, String>,
    pub current: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollback {
    /// The release before the current one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<ReleaseNumber>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeployState {
    Running,
    Succeeded,
    Failed,
    /// A newer deploy took over.
    Superseded,
}

/// One attempt to bring an app to what is wanted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deploy {
    pub id: DeployId,
    pub state: DeployState,
    /// `start`, `stop`, `restart`, `scale`, `config`, `rollback`, `release`.
    pub action: String,
    pub release: Option<ReleaseNumber>,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    /// What is being waited for, or why it failed.
    pub message: Option<String>,
}

/// One line of `mogok ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Process {
    pub name: ProcessName,
    pub instance: InstanceId,
    pub release: ReleaseNumber,
    pub phase: Phase,
    pub since: DateTime<Utc>,
    pub restarts: u32,
    pub node: NodeId,
    pub command: String,
    pub exit: Option<ExitStatus>,
    pub failure: Option<Failure>,
    pub last_lines: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    App,
    Build,
    Router,
    Mogok,
}

impl std::fmt::Display for LogSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::App => "app",
            Self::Build => "build",
            Self::Router => "router",
            Self::Mogok => "mogok",
        })
    }
}

/// One line of an app's log, shown as `2026-11-22T10:00:00.123456Z app[web.1]: line`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// Counts up within the app (or the build); `after` takes it.
    pub seq: u64,
    pub at: DateTime<Utc>,
    pub source: LogSource,
    /// `web.1`, `build`, `router`, `api`.
    pub process: String,
    pub line: String,
}

impl std::fmt::Display for LogLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = self.at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        write!(f, "{at} {}[{}]: {}", self.source, self.process, self.line)
    }
}
