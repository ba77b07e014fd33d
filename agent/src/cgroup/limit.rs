//! A container's limits as values of cgroup files, for both versions.
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/{memory,pids,blkio-controller,cpusets}.rst`,
//! `Documentation/scheduler/sched-bwc.rst`, `Documentation/block/bfq-iosched.rst`. Invariant: a value that does not take is an error, except
//! where the file only sharpens a limit that another file already enforces.

use std::fmt::Display;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use mogok_api::app::{CpuList, IoLimits, Limits};

use super::device::Device;
use super::hierarchy::{Controller, Place, Version, inherit_cpuset};
use super::{CgroupError, file};

/// Microseconds over which a CPU quota counts (the kernel's default).
const CPU_PERIOD_USEC: u64 = 100_000;
/// The kernel takes no smaller quota.
const CPU_QUOTA_MIN_USEC: u64 = 1_000;

/// One value for one file.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    file: &'static str,
    value: String,
    /// The limit does not hold without it.
    required: bool,
    /// A new cgroup has this value most often, so it is looked at first: a write has the kernel go through all cgroups.
    usual: bool,
}

impl Setting {
    fn required(file: &'static str, value: impl ToString) -> Self {
        Self { file, value: value.to_string(), required: true, usual: false }
    }

    fn where_present(file: &'static str, value: impl ToString) -> Self {
        Self { required: false, ..Self::required(file, value) }
    }

    fn usual(file: &'static str, value: impl ToString) -> Self {
        Self { usual: true, ..Self::required(file, value) }
    }
}

/// Does a container with these limits need the controller?
pub(super) fn needs(controller: Controller, limits: &Limits) -> bool {
    match controller {
        Controller::Cpu | Controller::Memory | Controller::Pids => true,
        Controller::Io => limits.io != IoLimits::default(),
        Controller::Cpuset => limits.cpus.is_some(),
    }
}

/// Writes the limits of one controller into its directory. `disk` is where the writable layers lie, `tree`
/// the root of the v2 tree.
pub(super) fn apply(
    controller: Controller,
    place: &Place,
    limits: &Limits,
    disk: &Path,
    tree: &Path,
) -> Result<(), CgroupError> {
    if !needs(controller, limits) {
        return Ok(());
    }
    let settings = match controller {
        Controller::Cpu => cpu(place.version, limits),
        Controller::Memory => memory(place.version, limits),
        Controller::Pids => vec![Setting::required("pids.max", limits.pids)],
        Controller::Io => {
            let device = Device::below(disk)?;
            let mut settings = bandwidth(place.version, &limits.io, device);
            if let Some(weight) = limits.io.weight {
                settings.push(share(place.version, weight, Shares::of(device, tree)?));
            }
            settings
        }
        Controller::Cpuset => {
            if place.version == Version::V1 {
                inherit_cpuset(&place.dir)?;
            }
            limits.cpus.iter().map(|cpus| Setting::required("cpuset.cpus", cpus)).collect()
        }
    };
    let written = write(controller, place, &settings);
    match (controller, &limits.cpus) {
        // Also of a refused one: v1 takes no CPUs that the parent lacks.
        (Controller::Cpuset, Some(cpus)) => check_cpus(place, cpus).and(written),
        _ => written,
    }
}

fn write(controller: Controller, place: &Place, settings: &[Setting]) -> Result<(), CgroupError> {
    for setting in settings {
        let path = place.dir.join(setting.file);
        if setting.usual && file::read(&path).is_ok_and(|content| content.trim() == setting.value) {
            continue;
        }
        match file::write(&path, &setting.value) {
            Ok(()) => {}
            // A file that is not there cannot be created either: kernfs says EACCES or ENOENT.
            Err(_) if !path.exists() => {
                if setting.required {
                    return Err(CgroupError::LimitMissing { controller, file: path });
                }
            }
            Err(CgroupError::Write { source, .. })
                if !setting.required && source.kind() == ErrorKind::Unsupported => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Of the memory limit sockets may have as much again, divided by this. On v2 they have no limit of their own: what
/// they hold is part of the container's memory.
const SOCKET_SHARE: u64 = 4;

/// Microseconds that `cpu_millis` allows in one period.
fn quota(limits: &Limits) -> u64 {
    (u64::from(limits.cpu_millis) * CPU_PERIOD_USEC / 1000).max(CPU_QUOTA_MIN_USEC)
}

fn cpu(version: Version, limits: &Limits) -> Vec<Setting> {
    let weight = u64::from(limits.cpu_weight.clamp(1, 10_000));
    let quota = quota(limits);
    let mut settings = match version {
        Version::V2 => vec![
            Setting::required("cpu.weight", weight),
            Setting::required("cpu.max", format!("{quota} {CPU_PERIOD_USEC}")),
        ],
        Version::V1 => vec![
            // Weight 100 and shares 1024 are the defaults of the two versions.
            Setting::required("cpu.shares", (weight * 1024 / 100).clamp(2, 262_144)),
            Setting::usual("cpu.cfs_period_us", CPU_PERIOD_USEC),
            Setting::required("cpu.cfs_quota_us", quota),
        ],
    };
    if limits.cpu_burst_usec > 0 {
        let file = if version == Version::V2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" };
        settings.push(Setting::required(file, limits.cpu_burst_usec));
    }
    settings
}

fn memory(version: Version, limits: &Limits) -> Vec<Setting> {
    let both = limits.memory_bytes.saturating_add(limits.memory_swap_bytes);
    let mut settings = match version {
        Version::V2 => vec![
            Setting::required("memory.max", limits.memory_bytes),
            // Above it the kernel reclaims and slows the container down before it must kill it.
            Setting::required("memory.high", limits.memory_high()),
            // Absent where the kernel was built without swap.
            Setting::where_present("memory.swap.max", limits.memory_swap_bytes),
            Setting::required("memory.oom.group", u8::from(limits.oom_group)),
        ],
        Version::V1 => vec![
            Setting::required("memory.limit_in_bytes", limits.memory_bytes),
            // Memory and swap together; never below the limit before, so it is set second.
            Setting::where_present("memory.memsw.limit_in_bytes", both),
            // What sockets hold, of TCP and of UDP, is counted apart, and not at all before it has a limit; without one
            // a container could use up what the whole host has for sockets (cgroup-v1/memory.rst, 2.7.2).
            Setting::required("memory.kmem.tcp.limit_in_bytes", limits.memory_bytes / SOCKET_SHARE),
        ],
    };
    if let (Version::V1, Some(high)) = (version, limits.memory_high_bytes) {
        // v1 has nothing like it, and this refuses the container by the file's name.
        settings.push(Setting::required("memory.high", high));
    }
    settings
}

/// The files that take limits of a device's bandwidth, and what to write behind its number.
pub(super) fn of_a_device(place: &Place, limits: &Limits) -> Vec<(PathBuf, String)> {
    let settings = bandwidth(place.version, &limits.io, "");
    settings
        .into_iter()
        .map(|setting| (place.dir.join(setting.file), setting.value.trim_start().to_owned()))
        .collect()
}

/// As many a second as the kernel counts; v1 takes more for less (`blk_throttl.c`).
fn operations(limit: u64) -> u64 {
    limit.min(u32::MAX.into())
}

fn bandwidth(version: Version, io: &IoLimits, device: impl Display) -> Vec<Setting> {
    // v1 knows of none who wrote what: neither of pages that are written back, nor behind a container's loop device. The
    // file that it lacks refuses the container.
    let limits = [
        ("rbps", "blkio.throttle.read_bps_device", io.read_bytes),
        ("wbps", "io.max", io.write_bytes),
        ("riops", "blkio.throttle.read_iops_device", io.read_ops.map(operations)),
        ("wiops", "io.max", io.write_ops.map(operations)),
    ];
    let asked = limits.into_iter().filter_map(|(key, file, limit)| Some((key, file, limit?)));
    match version {
        Version::V1 => {
            asked.map(|(_, file, limit)| Setting::required(file, format!("{device} {limit}"))).collect()
        }
        Version::V2 => {
            let keys: Vec<String> = asked.map(|(key, _, limit)| format!("{key}={limit}")).collect();
            if keys.is_empty() {
                return Vec::new();
            }
            vec![Setting::required("io.max", format!("{device} {}", keys.join(" ")))]
        }
    }
}

/// What divides a disk by weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shares {
    /// The kernel's cost model, cgroup v2 only; the administrator turns it on in `io.cost.qos`.
    Cost,
    /// The BFQ scheduler.
    Bfq,
}

impl Shares {
    fn of(device: Device, tree: &Path) -> Result<Self, CgroupError> {
        // Absent on a kernel without it, and where v2 has no io controller.
        if file::read(&tree.join("io.cost.qos")).is_ok_and(|table| device.has_cost_model(&table)) {
            Ok(Self::Cost)
        } else if device.schedules_by_weight() {
            Ok(Self::Bfq)
        } else {
            Err(CgroupError::NoShares(device.to_string()))
        }
    }
}

fn share(version: Version, weight: u16, shares: Shares) -> Setting {
    let weight = u64::from(weight.clamp(1, 10_000));
    // BFQ counts to 1,000; both have 100 for everybody.
    let bfq = if weight <= 100 { weight } else { 100 + (weight - 100) / 11 };
    match (shares, version) {
        (Shares::Cost, _) => Setting::required("io.weight", format!("default {weight}")),
        (Shares::Bfq, Version::V2) => Setting::required("io.bfq.weight", bfq),
        (Shares::Bfq, Version::V1) => Setting::required("blkio.bfq.weight", bfq),
    }
}

/// v2 takes CPUs that the parent does not have, and then lets the container run on all of the parent's.
fn check_cpus(place: &Place, wanted: &CpuList) -> Result<(), CgroupError> {
    let path = place.dir.join(match place.version {
        Version::V1 => "cpuset.effective_cpus",
        Version::V2 => "cpuset.cpus.effective",
    });
    let content = file::read(&path)?;
    match content.trim().parse::<CpuList>() {
        Ok(effective) if effective == *wanted => Ok(()),
        _ => {
            Err(CgroupError::CpusMissing { wanted: wanted.to_string(), effective: content.trim().to_owned() })
        }
    }
}

#[cfg(test)]
mod tests;
