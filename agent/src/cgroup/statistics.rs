//! What a container's cgroups count, for both versions, in the words of the API.
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/{memory,blkio-controller}.rst`,
//! `Documentation/accounting/psi.rst`. Parsing is pure; a figure that the kernel does not give is absent or
//! zero, never an error.

use std::path::Path;

use mogok_api::agent::{CpuUsage, IoUsage, MemoryUsage, Pressure, Pressures, Stall, Usage};

use super::device::Device;
use super::hierarchy::{Place, Version};
use super::{CgroupError, file};

/// Where the counters of one container lie.
#[derive(Debug)]
pub(super) struct Places<'a> {
    pub(super) v2: &'a Path,
    pub(super) cpu: &'a Place,
    pub(super) memory: &'a Place,
    pub(super) pids: &'a Place,
    pub(super) io: Option<&'a Place>,
    pub(super) disk: &'a Path,
}

impl Places<'_> {
    pub(super) fn read(&self) -> Result<Usage, CgroupError> {
        // Counted in every v2 cgroup, with or without the cpu controller.
        let times = file::read(&self.v2.join("cpu.stat"))?;
        let quota = file::read(&self.cpu.dir.join("cpu.stat")).unwrap_or_default();
        let device = Device::below(self.disk).ok();
        Ok(Usage {
            memory_bytes: file::number(&self.memory.dir.join(self.memory.usage_file()))?,
            cpu_usec: file::key(&self.v2.join("cpu.stat"), "usage_usec")?,
            pids: file::number(&self.pids.dir.join("pids.current"))?,
            cpu: cpu(&times, &quota),
            memory: self.memory(),
            pids_limit_hits: file::key(&self.pids.dir.join("pids.events"), "max").unwrap_or(0),
            io: self.io.and_then(|place| io(place, device)),
            network: None,
            disk: None,
            pressure: self.pressures(),
        })
    }

    fn memory(&self) -> MemoryUsage {
        let dir = &self.memory.dir;
        let text = |name: &str| file::read(&dir.join(name)).unwrap_or_default();
        let number = |name: &str| file::number(&dir.join(name)).ok();
        match self.memory.version {
            Version::V2 => MemoryUsage {
                peak_bytes: number("memory.peak"),
                swap_bytes: number("memory.swap.current"),
                ..memory_v2(&text("memory.stat"), &text("memory.events"))
            },
            Version::V1 => MemoryUsage {
                peak_bytes: number("memory.max_usage_in_bytes"),
                kernel_bytes: number("memory.kmem.usage_in_bytes").unwrap_or(0),
                ..memory_v1(&text("memory.stat"), &text("memory.oom_control"))
            },
        }
    }

    fn pressures(&self) -> Option<Pressures> {
        let read = |name| pressure(&file::read(&self.v2.join(name)).ok()?);
        Some(Pressures {
            cpu: read("cpu.pressure")?,
            memory: read("memory.pressure")?,
            io: read("io.pressure")?,
        })
    }
}

/// `times` is `cpu.stat` of v2, `quota` that of the place where the quota is.
fn cpu(times: &str, quota: &str) -> CpuUsage {
    let get = |text, key| file::find(text, key).unwrap_or(0);
    CpuUsage {
        user_usec: get(times, "user_usec"),
        system_usec: get(times, "system_usec"),
        periods: get(quota, "nr_periods"),
        throttled_periods: get(quota, "nr_throttled"),
        // v1 counts nanoseconds under another name.
        throttled_usec: file::find(quota, "throttled_usec").unwrap_or(get(quota, "throttled_time") / 1000),
    }
}

fn memory_v2(stat: &str, events: &str) -> MemoryUsage {
    let get = |text, key| file::find(text, key).unwrap_or(0);
    MemoryUsage {
        anon_bytes: get(stat, "anon"),
        file_bytes: get(stat, "file"),
        kernel_bytes: get(stat, "kernel"),
        high_events: file::find(events, "high"),
        max_events: file::find(events, "max"),
        oom_kills: get(events, "oom_kill"),
        ..MemoryUsage::default()
    }
}

fn memory_v1(stat: &str, oom_control: &str) -> MemoryUsage {
    let get = |text, key| file::find(text, key).unwrap_or(0);
    MemoryUsage {
        anon_bytes: get(stat, "rss"),
        file_bytes: get(stat, "cache"),
        swap_bytes: file::find(stat, "swap"),
        oom_kills: get(oom_control, "oom_kill"),
        ..MemoryUsage::default()
    }
}

fn io(place: &Place, device: Option<Device>) -> Option<IoUsage> {
    let device = device?;
    let read = |name| file::read(&place.dir.join(name)).ok();
    Some(match place.version {
        Version::V2 => io_v2(&read("io.stat")?, device),
        Version::V1 => {
            io_v1(&read("blkio.throttle.io_service_bytes")?, &read("blkio.throttle.io_serviced")?, device)
        }
    })
}

/// Only the disk itself: what goes through a loop device on it is counted for both.
fn io_v2(stat: &str, device: Device) -> IoUsage {
    let device = device.to_string();
    let of_device = |line: &&str| line.split(' ').next() == Some(&device);
    let line = stat.lines().find(of_device).unwrap_or_default();
    let get = |key: &str| {
        let mut pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == key).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    IoUsage {
        read_bytes: get("rbytes"),
        write_bytes: get("wbytes"),
        read_ops: get("rios"),
        write_ops: get("wios"),
    }
}

fn io_v1(bytes: &str, operations: &str, device: Device) -> IoUsage {
    let get = |text: &str, kind: &str| {
        let prefix = format!("{device} {kind} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix)?.trim().parse().ok()).unwrap_or(0)
    };
    IoUsage {
        read_bytes: get(bytes, "Read"),
        write_bytes: get(bytes, "Write"),
        read_ops: get(operations, "Read"),
        write_ops: get(operations, "Write"),
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, then the same with `full`.
fn pressure(text: &str) -> Option<Pressure> {
    let stall = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let get = |key: &str| line.split(' ').find_map(|pair| pair.strip_prefix(key));
        Some(Stall { avg10: get("avg10=")?.parse().ok()?, total_usec: get("total=")?.parse().ok()? })
    };
    Some(Pressure { some: stall("some")?, full: stall("full")? })
}

#[cfg(test)]
mod tests;
