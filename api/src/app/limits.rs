//! What the kernel enforces on one container: memory, CPU, processes, disk, files.
//!
//! The fields that an older spec lacks have defaults under which it means what it meant before.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const MIB: u64 = 1 << 20;
/// As many CPUs as Linux can be built for on x86_64 (`CONFIG_NR_CPUS`).
const CPUS: u16 = 8192;

/// What the kernel enforces on one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    /// Bytes; at the limit the whole container is killed as one.
    pub memory_bytes: u64,
    /// Bytes above which the kernel reclaims memory and slows the container down (cgroup v2 `memory.high`);
    /// 15/16 of `memory_bytes` when absent. A node without cgroup v2 memory refuses a container that asks
    /// for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_high_bytes: Option<u64>,
    /// Bytes of swap on top of `memory_bytes` (cgroup v2 `memory.swap.max`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub memory_swap_bytes: u64,
    /// Want of memory ends the whole container (cgroup v2 `memory.oom.group`); when false, only the
    /// process that the kernel chooses.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub oom_group: bool,
    /// Relative share under contention, 1 to 10,000 (cgroup v2 `cpu.weight`).
    pub cpu_weight: u32,
    /// Thousandths of a core that may be used at most (cgroup v2 `cpu.max`).
    pub cpu_millis: u32,
    /// Microseconds of CPU time that quiet periods of 100 ms save up for busy ones (cgroup v2
    /// `cpu.max.burst`); at most what `cpu_millis` gives in one period.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cpu_burst_usec: u32,
    /// CPUs it may run on (cgroup v2 `cpuset.cpus`); all of the node's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuList>,
    /// Processes and threads (cgroup `pids.max`).
    pub pids: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    pub io: IoLimits,
    /// Bytes that the container may write to its file system.
    pub disk_bytes: u64,
    /// Files it may create there.
    pub disk_inodes: u64,
    /// Open files per process (`RLIMIT_NOFILE`).
    pub open_files: u64,
}

/// Use of the node's disk below the containers' file systems (cgroup v2 `io.max`, `io.weight`); without
/// limit where absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IoLimits {
    /// Bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes: Option<u64>,
    /// Operations per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_ops: Option<u64>,
    /// Operations per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_ops: Option<u64>,
    /// Relative share under contention, 1 to 10,000, where 100 is everybody's. A node whose disk's scheduler
    /// knows no shares refuses a container that asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

impl Limits {
    /// An app's web or worker instance.
    #[must_use]
    pub fn app() -> Self {
        Self {
            memory_bytes: 512 * MIB,
            memory_high_bytes: None,
            memory_swap_bytes: 0,
            oom_group: true,
            cpu_weight: 100,
            cpu_millis: 2000,
            cpu_burst_usec: 0,
            cpus: None,
            pids: 256,
            io: IoLimits::default(),
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
            pids: 512,
            disk_bytes: 4096 * MIB,
            disk_inodes: 500_000,
            ..Self::app()
        }
    }

    /// The bytes of memory from which the container counts as short of it.
    #[must_use]
    pub fn memory_high(&self) -> u64 {
        self.memory_high_bytes.unwrap_or(self.memory_bytes / 16 * 15)
    }
}

/// A set of CPUs, never empty; written as in cpuset(7), "List format": `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "0-3,8")]
pub struct CpuList(BTreeSet<u16>);

/// A text that is no set of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid list of CPUs {0:?}: use numbers below {CPUS} and ranges of them, for example 0-3,8")]
pub struct InvalidCpuList(String);

impl FromStr for CpuList {
    type Err = InvalidCpuList;

    fn from_str(text: &str) -> Result<Self, InvalidCpuList> {
        let number = |text: &str| text.parse::<u16>().ok().filter(|cpu| *cpu < CPUS);
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
                _ => return Err(InvalidCpuList(text.chars().take(80).collect())),
            }
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

impl TryFrom<String> for CpuList {
    type Error = InvalidCpuList;

    fn try_from(text: String) -> Result<Self, InvalidCpuList> {
        text.parse()
    }
}

impl From<CpuList> for String {
    fn from(cpus: CpuList) -> Self {
        cpus.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_spec_means_what_it_meant() {
        let old = r#"{"memory_bytes":536870912,"cpu_weight":100,"cpu_millis":2000,"pids":256,
            "disk_bytes":1073741824,"disk_inodes":65536,"open_files":10000}"#;
        let limits: Limits = serde_json::from_str(old).unwrap();
        assert_eq!(limits, Limits::app());
        // And an older agent reads a newer spec that asks for nothing new.
        let written = serde_json::to_value(&limits).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(old).unwrap());
    }

    #[test]
    fn every_limit_survives_the_wire() {
        let limits = Limits {
            memory_high_bytes: Some(1 << 20),
            memory_swap_bytes: 5,
            oom_group: false,
            cpu_burst_usec: 7,
            cpus: Some("0-1,3".parse().unwrap()),
            io: IoLimits { read_bytes: Some(1), write_ops: Some(2), weight: Some(3), ..IoLimits::default() },
            ..Limits::build()
        };
        let text = serde_json::to_string(&limits).unwrap();
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), limits);
    }

    #[test]
    fn lists_of_cpus_have_one_form() {
        for (text, shown) in [("0", "0"), ("3,1,2", "1-3"), ("0-0,2-4,3", "0,2-4"), ("8191,0-1", "0-1,8191")]
        {
            assert_eq!(text.parse::<CpuList>().unwrap().to_string(), shown);
        }
        for text in ["", ",", "1-", "-1", "2-1", "8192", "1 ", "a", "0-3:1/2"] {
            let parsed = text.parse::<CpuList>();
            assert!(parsed.is_err(), "{text:?}: {parsed:?}");
        }
    }
}
