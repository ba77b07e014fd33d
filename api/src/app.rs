//! What belongs to an app beside its code: plan, formation, limits and policies.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod limits;

pub use limits::{CpuList, InvalidCpuList, IoLimits, Limits};

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
