//! What belongs to an app beside its code: plan, formation, limits and policies.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What an account may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    /// 1 app, 1 web instance, no workers.
    Free,
    /// 20 apps, 5 instances of each process type, workers and jobs.
    Paid,
}

impl Plan {
    /// How many apps an account may own.
    #[must_use]
    pub fn max_apps(self) -> u32 {
        match self {
            Self::Free => 1,
            Self::Paid => 20,
        }
    }

    /// How many instances of one process type an app may run.
    #[must_use]
    pub fn max_instances(self) -> u32 {
        match self {
            Self::Free => 1,
            Self::Paid => 5,
        }
    }

    /// May process types other than `web` run?
    #[must_use]
    pub fn workers(self) -> bool {
        matches!(self, Self::Paid)
    }
}

/// What the kernel enforces on one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    /// Bytes; at the limit the whole container is killed as one.
    pub memory_bytes: u64,
    /// Relative share under contention, 1 to 10,000 (cgroup v2 `cpu.weight`).
    pub cpu_weight: u32,
    /// Thousandths of a core that may be used at most (cgroup v2 `cpu.max`).
    pub cpu_millis: u32,
    /// Processes and threads (cgroup `pids.max`).
    pub pids: u32,
    /// Bytes that the container may write to its file system.
    pub disk_bytes: u64,
    /// Files it may create there.
    pub disk_inodes: u64,
    /// Open files per process (`RLIMIT_NOFILE`).
    pub open_files: u64,
}

const MIB: u64 = 1 << 20;

impl Limits {
    /// An app's web or worker instance.
    #[must_use]
    pub fn app() -> Self {
        Self {
            memory_bytes: 512 * MIB,
            cpu_weight: 100,
            cpu_millis: 2000,
            pids: 256,
            disk_bytes: 1024 * MIB,
            disk_inodes: 65_536,
            open_files: 10_000,
        }
    }

    /// A build: more of everything, for at most 15 minutes.
    #[must_use]
    pub fn build() -> Self {
        Self {
            memory_bytes: 2048 * MIB,
            cpu_weight: 50,
            cpu_millis: 2000,
            pids: 512,
            disk_bytes: 4096 * MIB,
            disk_inodes: 500_000,
            open_files: 10_000,
        }
    }
}

/// How the platform decides that an instance is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthCheck {
    /// `GET` this path and expect 2xx or 3xx; without a path an accepted connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds after which an instance that never got up is killed (R10).
    pub boot_timeout_s: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { path: None, boot_timeout_s: 60 }
    }
}

/// What happens when the program ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Web and workers: at once, then 10 s, 20 s, 40 s ... at most 5 min, jittered; reset by a stable 5 min.
    Always,
    /// Builds, one-off commands and jobs.
    Never,
}
