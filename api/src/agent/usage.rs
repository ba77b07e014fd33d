//! What a container uses, as the kernel counts it. Figures that a node cannot give are absent.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a container uses now, and has used since its program was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Bytes of memory, page cache included.
    pub memory_bytes: u64,
    /// Microseconds of CPU time.
    pub cpu_usec: u64,
    /// Processes and threads.
    pub pids: u64,
    #[serde(default)]
    pub cpu: CpuUsage,
    #[serde(default)]
    pub memory: MemoryUsage,
    /// How often a process or thread could not be started for the limit of them.
    #[serde(default)]
    pub pids_limit_hits: u64,
    /// On a node with cgroup v1 only where the container's I/O is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoUsage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkUsage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskUsage>,
    /// Absent where the kernel does not measure it (`psi=0`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressures>,
}

/// CPU time by kind, and how the quota held it back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpuUsage {
    /// Microseconds.
    pub user_usec: u64,
    /// Microseconds.
    pub system_usec: u64,
    /// Periods of 100 ms in which it ran.
    pub periods: u64,
    /// Those of them in which it used up its quota.
    pub throttled_periods: u64,
    /// Microseconds that its run queues were held back, summed over the CPUs.
    pub throttled_usec: u64,
}

/// Memory by kind, and run-ins with the limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryUsage {
    /// The most bytes it ever used at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// What its programs hold themselves.
    pub anon_bytes: u64,
    /// Page cache, tmpfs included.
    pub file_bytes: u64,
    /// What the kernel holds on its behalf.
    pub kernel_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<u64>,
    /// Times it was held back above `memory.high`; cgroup v2 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_events: Option<u64>,
    /// Times it reached its limit; cgroup v2 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_events: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

/// Reads and writes of the node's disk below the containers' file systems.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IoUsage {
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_ops: u64,
    pub write_ops: u64,
}

/// Traffic of its network interface, as the container sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkUsage {
    pub received_bytes: u64,
    pub received_packets: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
    /// TCP connections that are open now, those within the container included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
}

/// What is taken of its writable layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUsage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Time lost for want of each resource (`Documentation/accounting/psi.rst`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pressures {
    pub cpu: Pressure,
    pub memory: Pressure,
    pub io: Pressure,
}

/// Time lost for want of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks that had something to do waited.
    pub full: Stall,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stall {
    /// Per cent of the last 10 s.
    pub avg10: f64,
    /// Microseconds in all.
    pub total_usec: u64,
}
