//! The routing table as the control plane injects it into routers, and their acknowledgements.
//!
//! | method and path | body -> reply | |
//! |---|---|---|
//! | `GET /v1/routes?router=ID` | -> NDJSON of [`RouteMessage`] | first a snapshot, then deltas, heartbeats every 2 s |
//! | `POST /v1/routes/ack` | [`RouteAck`] | sent for every applied version, and every 2 s |
//! | `POST /v1/router-logs` | `[RouterLog]` | request lines for the apps' logs, at most 1,000 a batch |
//!
//! Served by the control plane on its node listener (Unix socket or mutual TLS), never on the public one.

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{Epoch, InstanceId, RouterId};
use crate::name::{AppName, ProcessName};

/// Where a request for the app can go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Upstream {
    pub instance: InstanceId,
    pub process: ProcessName,
    #[schema(value_type = String, example = "10.88.0.1:20001")]
    pub address: SocketAddr,
}

/// Why an app without upstreams has none; decides the error page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteState {
    /// It runs, or is about to.
    Running,
    /// H81: nothing was built or started yet.
    NoRelease,
    /// H14: stopped, or no web process.
    NoWeb,
    /// H10: every web instance crashed.
    Crashed,
    /// H20: it was started, and no web instance is up yet.
    Booting,
    /// H80.
    Maintenance,
}

/// All the router knows of one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppRoute {
    pub app: AppName,
    /// Full host names, lower case, without port: `fugafuga.mogok.localhost`.
    pub hosts: Vec<String>,
    pub state: RouteState,
    pub upstreams: Vec<Upstream>,
}

/// One line of the stream. The table is keyed by app; an upsert replaces the app's whole route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RouteMessage {
    Snapshot { epoch: Epoch, version: u64, routes: Vec<AppRoute> },
    Delta { epoch: Epoch, from: u64, version: u64, upsert: Vec<AppRoute>, remove: Vec<AppName> },
    Heartbeat { epoch: Epoch, version: u64 },
}

/// What a router has applied: no request that it starts after this uses an older table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteAck {
    pub router: RouterId,
    pub epoch: Epoch,
    pub version: u64,
    /// Instances out of the table that still have requests in flight here.
    pub draining: Vec<InstanceId>,
}

/// One request, for the app's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouterLog {
    pub at: DateTime<Utc>,
    pub app: AppName,
    /// `at=info method=GET path="/" ...`
    pub line: String,
}
