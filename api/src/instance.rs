//! One container: what is wanted of it ([`InstanceSpec`]) and what is seen of it ([`InstanceStatus`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{SocketAddr, SocketAddrV4};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::{HealthCheck, Limits, RestartPolicy};
use crate::id::InstanceId;
use crate::name::{AppName, Digest, ImageName, ProcessName, ReleaseNumber};

/// What a container is for; decides its egress policy and what is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerKind {
    /// A web or worker instance.
    App,
    /// `mogok build`.
    Build,
}

/// A file of the node's blob store that the container sees read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobMount {
    pub digest: Digest,
    /// Absolute path inside the container.
    pub path: String,
}

/// An unpacked package that the container sees read-only at a path of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PackageMount {
    pub digest: Digest,
    /// Absolute path inside the container.
    pub path: String,
}

/// A file that the container may write and that the node keeps when the container has exited with
/// status 0: the result of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputFile {
    /// Absolute path inside the container.
    pub path: String,
    /// Bytes it may hold at most.
    pub max_bytes: u64,
}

/// Everything an agent needs to run one container. It never changes: another release is another instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceSpec {
    pub id: InstanceId,
    pub app: AppName,
    pub process: ProcessName,
    /// Absent for a build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
    pub kind: ContainerKind,
    /// The base image; the node has it by name, and its digest must be this one where one is given.
    pub image: ImageName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Digest>,
    /// The package laid over the image (it holds `app/...`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Digest>,
    #[serde(default)]
    pub package_mounts: Vec<PackageMount>,
    #[serde(default)]
    pub blobs: Vec<BlobMount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputFile>,
    /// Program and arguments; the program is an absolute path inside the container.
    pub command: Vec<String>,
    /// The whole environment but `PORT`, which the agent adds where `listens`.
    pub env: BTreeMap<String, String>,
    pub limits: Limits,
    /// `ADDRESS:PORT` of services that it alone may reach by TCP, whatever the node's egress policy is; IPv4, at most
    /// 16.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<String>, example = json!(["10.0.0.5:5432"]))]
    pub grants: BTreeSet<SocketAddrV4>,
    /// Does it listen on `0.0.0.0:$PORT`? Then it gets a host port and a health check.
    pub listens: bool,
    #[serde(default)]
    pub health: HealthCheck,
    pub restart: RestartPolicy,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_grace_s: u32,
    /// Seconds it may run in all (builds: 900); then killed as timed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_runtime_s: Option<u32>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitStatus {
    /// Exit code, when it left by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Signal number, when one killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Killed by the kernel for want of memory within its limit (R15).
    #[serde(default)]
    pub out_of_memory: bool,
}

impl ExitStatus {
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.out_of_memory, self.code, self.signal) {
            (true, _, _) => f.write_str("killed: memory (R15)"),
            (_, Some(code), _) => write!(f, "exited with status {code}"),
            (_, _, Some(signal)) => match signal_name(signal) {
                Some(name) => write!(f, "killed by signal {signal} (SIG{name})"),
                None => write!(f, "killed by signal {signal}"),
            },
            _ => f.write_str("ended, status unknown"),
        }
    }
}

/// The name of a standard signal by its number on x86-64 (signal(7)), without `SIG`.
fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    NAMES.get(usize::try_from(signal).ok()?.checked_sub(1)?).copied()
}

/// Why the agent itself ended or refused a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// R10: did not listen or pass its health check in time.
    BootTimeout,
    /// R12: did not end within its grace and was killed.
    StopTimeout,
    /// Ran longer than `max_runtime_s`.
    RunTimeout,
    /// R15: over its memory limit.
    Memory,
    /// A build that was stuck at its limit of processes and threads.
    Processes,
    /// Wrote more than its output file may hold.
    OutputTooLarge,
    /// The node could not make the container: image or package missing, a kernel feature, a full disk.
    CannotStart,
    /// Any other exit of a program that should go on.
    Crashed,
}

/// A failure in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    pub code: FailureCode,
    /// One sentence; for `cannot_start` it names the step and the error.
    pub message: String,
}

/// A limit that a container has run into and lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarningCode {
    /// R14: its program needs nearly all of its memory (cgroup v2 `memory.high`).
    MemoryHigh,
    /// The kernel killed one of its processes for want of memory, and its limits say that the others go on.
    MemoryKill,
    /// Held back by its CPU quota for 10 s at a stretch.
    Throttled,
    /// At its limit of processes and threads: it could not start another one.
    Processes,
}

/// A warning in words: once for each time it begins to hold, and not again within 5 minutes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    pub code: WarningCode,
    /// One sentence, which the log of the app has too.
    pub message: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Known, waiting for its layers or its turn.
    Pending,
    /// The sandbox is being made, or the program runs and is not up yet.
    Starting,
    /// Runs; and, where it listens, answers.
    Up,
    /// Ended by itself and waits for its restart.
    Crashed,
    /// SIGTERM sent.
    Stopping,
    /// Ended for good: exit status kept, everything else removed.
    Exited,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Crashed => "crashed",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
        })
    }
}

/// What the agent sees of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceStatus {
    pub id: InstanceId,
    pub app: AppName,
    pub process: ProcessName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
    pub kind: ContainerKind,
    pub phase: Phase,
    /// When it entered this phase.
    pub since: DateTime<Utc>,
    /// Where routers reach it; present from the moment it has a host port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.88.0.1:20001")]
    pub endpoint: Option<SocketAddr>,
    /// How often it was started again.
    pub restarts: u32,
    /// How its last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The last lines it wrote before its last end, at most 20.
    #[serde(default)]
    pub last_lines: Vec<String>,
    /// When the next restart is due, in phase `crashed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_at: Option<DateTime<Utc>>,
    /// The digest of the output file, once it is in the node's blob store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Digest>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_by_a_signal_has_its_number_and_its_name() {
        let killed =
            |signal| ExitStatus { code: None, signal: Some(signal), out_of_memory: false }.to_string();
        for (signal, name) in [(1, "HUP"), (9, "KILL"), (11, "SEGV"), (15, "TERM"), (25, "XFSZ"), (31, "SYS")]
        {
            assert_eq!(killed(signal), format!("killed by signal {signal} (SIG{name})"));
        }
        // Real-time signals have none, and what is no signal has none either.
        for signal in [-1, 0, 32, 64] {
            assert_eq!(killed(signal), format!("killed by signal {signal}"));
        }
    }
}
