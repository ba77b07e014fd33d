//! A container's limits as values of cgroup files, for both versions.
//!
//! Sources: `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/{memory,pids}.rst`,
//! `Documentation/scheduler/sched-bwc.rst`. Invariant: a value that does not take is an error, except
//! where the file only sharpens a limit that another file already enforces.

use std::io::ErrorKind;

use mogok_api::app::Limits;

use super::hierarchy::{Controller, Place, Version};
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
}

impl Setting {
    fn required(file: &'static str, value: impl ToString) -> Self {
        Self { file, value: value.to_string(), required: true }
    }

    fn where_present(file: &'static str, value: impl ToString) -> Self {
        Self { file, value: value.to_string(), required: false }
    }
}

/// Writes the limits of one controller into its directory.
pub(super) fn apply(controller: Controller, place: &Place, limits: &Limits) -> Result<(), CgroupError> {
    for setting in settings(controller, place.version, limits) {
        let path = place.dir.join(setting.file);
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

fn settings(controller: Controller, version: Version, limits: &Limits) -> Vec<Setting> {
    let weight = u64::from(limits.cpu_weight.clamp(1, 10_000));
    let quota = (u64::from(limits.cpu_millis) * CPU_PERIOD_USEC / 1000).max(CPU_QUOTA_MIN_USEC);
    match (controller, version) {
        (Controller::Cpu, Version::V2) => vec![
            Setting::required("cpu.weight", weight),
            Setting::required("cpu.max", format!("{quota} {CPU_PERIOD_USEC}")),
        ],
        (Controller::Cpu, Version::V1) => vec![
            // Weight 100 and shares 1024 are the defaults of the two versions.
            Setting::required("cpu.shares", (weight * 1024 / 100).clamp(2, 262_144)),
            Setting::required("cpu.cfs_period_us", CPU_PERIOD_USEC),
            Setting::required("cpu.cfs_quota_us", quota),
        ],
        (Controller::Memory, Version::V2) => vec![
            Setting::required("memory.max", limits.memory_bytes),
            // Above it the kernel reclaims and slows the container down before it must kill it.
            Setting::required("memory.high", limits.memory_bytes / 16 * 15),
            // Absent where the kernel was built without swap.
            Setting::where_present("memory.swap.max", 0),
            Setting::required("memory.oom.group", 1),
        ],
        (Controller::Memory, Version::V1) => vec![
            Setting::required("memory.limit_in_bytes", limits.memory_bytes),
            // Memory and swap together; never below the limit before, so it is set second.
            Setting::where_present("memory.memsw.limit_in_bytes", limits.memory_bytes),
        ],
        (Controller::Pids, _) => vec![Setting::required("pids.max", limits.pids)],
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn limits() -> Limits {
        Limits { memory_bytes: 512 << 20, cpu_weight: 50, cpu_millis: 1500, pids: 64, ..Limits::app() }
    }

    #[test]
    fn both_versions_say_the_same() {
        assert_eq!(
            settings(Controller::Cpu, Version::V2, &limits()),
            [Setting::required("cpu.weight", 50), Setting::required("cpu.max", "150000 100000")]
        );
        assert_eq!(
            settings(Controller::Cpu, Version::V1, &limits()),
            [
                Setting::required("cpu.shares", 512),
                Setting::required("cpu.cfs_period_us", 100_000),
                Setting::required("cpu.cfs_quota_us", 150_000)
            ]
        );
    }

    #[test]
    fn extremes_stay_within_what_the_kernel_takes() {
        let tiny = Limits { cpu_weight: 0, cpu_millis: 0, ..limits() };
        assert_eq!(settings(Controller::Cpu, Version::V1, &tiny)[0].value, "10");
        assert_eq!(settings(Controller::Cpu, Version::V1, &tiny)[2].value, "1000");
        let huge = Limits { cpu_weight: u32::MAX, cpu_millis: u32::MAX, ..limits() };
        assert_eq!(settings(Controller::Cpu, Version::V2, &huge)[0].value, "10000");
        assert_eq!(settings(Controller::Cpu, Version::V1, &huge)[0].value, "102400");
    }

    #[test]
    fn a_required_file_that_is_missing_names_the_controller() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { version: Version::V2, dir: dir.path().to_owned() };
        for file in ["memory.max", "memory.high"] {
            fs::write(dir.path().join(file), "max").unwrap();
        }
        let error = apply(Controller::Memory, &place, &limits()).unwrap_err();
        assert!(
            matches!(&error, CgroupError::LimitMissing { file, .. } if file.ends_with("memory.oom.group"))
        );
        fs::write(dir.path().join("memory.oom.group"), "0").unwrap();
        apply(Controller::Memory, &place, &limits()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("memory.max")).unwrap(), "536870912");
    }
}
