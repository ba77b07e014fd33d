//! The agent API, version 1: HTTP + JSON over a Unix socket or mutual TLS.
//!
//! | method and path | body -> reply | |
//! |---|---|---|
//! | `GET /v1/node` | -> [`NodeInfo`] | what the node is |
//! | `POST /v1/desired` | [`DesiredMessage`] -> [`DesiredAck`] | the wanted set: snapshot, deltas, heartbeats |
//! | `GET /v1/instances` | -> `[InstanceStatus]` | what is |
//! | `GET /v1/instances/{id}` | -> [`InstanceDetail`] | one of them in full |
//! | `GET /v1/events?after=SEQ&follow=BOOL` | -> NDJSON of [`AgentEvent`] | a status snapshot, then every change |
//! | `GET /v1/instances/{id}/logs?after=CURSOR&follow=BOOL` | -> NDJSON of [`LogRecord`] | its output |
//! | `POST /v1/instances/{id}/exec` | [`exec::ExecRequest`] -> 101, then frames of [`exec`] | a program in a running one |
//! | `POST /v1/instances/{id}/freeze`, `thaw` | | makes a running one stand still, lets it go on |
//! | `POST /v1/instances/{id}/reclaim` | [`ReclaimRequest`] -> [`Reclaimed`] | takes memory back from a running one |
//! | `GET /v1/logs?after=CURSOR&follow=BOOL` | -> NDJSON of [`LogRecord`] | the output of all instances |
//! | `GET /v1/blobs` | -> `[BlobInfo]` | what of the node's blob store could be dropped |
//! | `HEAD, GET, PUT /v1/blobs/{digest}` | bytes | the node's blob store |
//! | `DELETE /v1/blobs/{digest}` | | drop a blob that nothing uses |
//!
//! Every reply that is not 2xx carries an [`crate::error::ApiError`].

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{Epoch, InstanceId, NodeId};
use crate::instance::{InstanceSpec, InstanceStatus, Warning};
use crate::name::{AppName, Digest, ImageName, ProcessName};

#[cfg(feature = "agent-client")]
pub mod client;
pub mod exec;
mod usage;

pub use usage::{CpuUsage, DiskUsage, IoUsage, MemoryUsage, NetworkUsage, Pressure, Pressures, Stall, Usage};

/// How the node limits containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CgroupMode {
    /// Every controller on cgroup v2.
    Unified,
    /// Tracked and killed through v2, limited through v1 controllers.
    Hybrid,
}

/// An image the node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageInfo {
    pub name: ImageName,
    pub digest: Digest,
}

/// What a node is and can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeInfo {
    pub id: NodeId,
    pub agent_version: String,
    pub kernel: String,
    pub cgroup_mode: CgroupMode,
    /// Cores in thousandths.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub images: Vec<ImageInfo>,
    /// Ids of the addresses and ports the node can hand out at once.
    pub max_instances: u32,
}

/// The wanted set, from the control plane: a snapshot, then deltas, then heartbeats.
///
/// Versions count up within an epoch. A receiver that misses one answers `need_snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DesiredMessage {
    /// The whole set: what is not in it is to be stopped and removed.
    Snapshot { epoch: Epoch, version: u64, instances: Vec<InstanceSpec> },
    /// The change from one version to the next.
    Delta { epoch: Epoch, from: u64, version: u64, upsert: Vec<InstanceSpec>, remove: Vec<InstanceId> },
    /// Nothing changed; the sender lives.
    Heartbeat { epoch: Epoch, version: u64 },
}

/// The receiver's answer: what it holds now, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DesiredAck {
    /// Absent before the first snapshot.
    pub epoch: Option<Epoch>,
    pub version: u64,
    /// The message did not follow on what the receiver holds: send the snapshot.
    pub need_snapshot: bool,
    /// Blobs that wanted instances need and the node lacks: `PUT` them.
    pub missing_blobs: Vec<Digest>,
}

/// One line of the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "most events are the large variant, and none is kept")]
pub enum AgentEvent {
    /// First line of every stream that could not be resumed: all there is.
    Snapshot { seq: u64, instances: Vec<InstanceStatus> },
    /// One instance as it is now.
    Changed { seq: u64, instance: InstanceStatus },
    /// An instance has run into a limit. Says nothing about its state, and no snapshot has it.
    Warned { seq: u64, id: InstanceId, warning: Warning },
    /// The instance and everything of it is gone from the node; its host port may be used again.
    Removed { seq: u64, id: InstanceId },
    /// Nothing happened for a while (every 5 s).
    Heartbeat { seq: u64 },
}

/// A blob of the node's store; base images are not listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobInfo {
    pub digest: Digest,
    pub bytes: u64,
    /// Seconds since it was put there last.
    pub idle_s: u64,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    Stdout,
    Stderr,
    /// The platform's own words about the instance: started, exited with status N, killed: memory.
    Platform,
}

/// One line of a container's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogRecord {
    /// Hand it back as `after` to go on behind this record. Opaque.
    pub cursor: String,
    pub at: DateTime<Utc>,
    pub instance: InstanceId,
    pub app: AppName,
    pub process: ProcessName,
    pub stream: LogStream,
    /// At most 10,000 bytes, without the newline; bytes that are not UTF-8 are replaced.
    pub line: String,
}

/// One container in full, for the operator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceDetail {
    pub spec: InstanceSpec,
    pub status: InstanceStatus,
    /// Process id of its init on the host, while it runs.
    pub pid: Option<i32>,
    /// Process id of its shim, while it runs.
    pub shim_pid: Option<i32>,
    /// First of its 65,536 user ids on the host.
    pub uid_base: Option<u32>,
    #[schema(value_type = Option<String>)]
    pub address: Option<std::net::Ipv4Addr>,
    /// Its directory on the node.
    pub state_dir: String,
    pub usage: Option<Usage>,
    /// Does it stand still because the operator has frozen it?
    #[serde(default)]
    pub frozen: bool,
}

/// How much memory the kernel is to take back from a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReclaimRequest {
    pub bytes: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reclaimed {
    /// Was there so much to take?
    pub whole: bool,
    /// What the container uses now.
    pub memory_bytes: u64,
}
