//! Values for both versions; a temporary directory stands in for cgroupfs.

use std::fs;

use super::*;

fn limits() -> Limits {
    Limits { memory_bytes: 512 << 20, cpu_weight: 50, cpu_millis: 1500, pids: 64, ..Limits::app() }
}

/// Never looked for on this host.
fn disk() -> Device {
    Device::new(254, 16)
}

#[test]
fn both_versions_say_the_same() {
    assert_eq!(
        cpu(Version::V2, &limits()),
        [Setting::required("cpu.weight", 50), Setting::required("cpu.max", "150000 100000")]
    );
    assert_eq!(
        cpu(Version::V1, &limits()),
        [
            Setting::required("cpu.shares", 512),
            Setting::usual("cpu.cfs_period_us", 100_000),
            Setting::required("cpu.cfs_quota_us", 150_000)
        ]
    );
    let io = IoLimits { write_bytes: Some(1_000_000), read_ops: Some(50), ..IoLimits::default() };
    assert_eq!(
        bandwidth(Version::V2, &io, disk()),
        [Setting::required("io.max", "254:16 wbps=1000000 riops=50")]
    );
    assert_eq!(
        bandwidth(Version::V1, &io, disk()),
        [
            Setting::required("io.max", "254:16 1000000"),
            Setting::required("blkio.throttle.read_iops_device", "254:16 50")
        ]
    );
}

#[test]
fn what_was_asked_for_besides_is_set() {
    let asked = Limits {
        cpu_burst_usec: 50_000,
        memory_high_bytes: Some(100 << 20),
        memory_swap_bytes: 64 << 20,
        oom_group: false,
        ..limits()
    };
    assert_eq!(cpu(Version::V2, &asked)[2], Setting::required("cpu.max.burst", 50_000));
    assert_eq!(cpu(Version::V1, &asked)[3], Setting::required("cpu.cfs_burst_us", 50_000));
    assert_eq!(
        memory(Version::V2, &asked),
        [
            Setting::required("memory.max", 512 << 20),
            Setting::required("memory.high", 100 << 20),
            Setting::where_present("memory.swap.max", 64 << 20),
            Setting::required("memory.oom.group", 0)
        ]
    );
    assert_eq!(
        memory(Version::V1, &asked),
        [
            Setting::required("memory.limit_in_bytes", 512 << 20),
            Setting::where_present("memory.memsw.limit_in_bytes", 576 << 20),
            Setting::required("memory.kmem.tcp.limit_in_bytes", 128 << 20),
            Setting::required("memory.high", 100 << 20)
        ]
    );
    let io = |io| Limits { io, ..limits() };
    assert!(!needs(Controller::Io, &limits()) && !needs(Controller::Cpuset, &limits()));
    assert!(needs(Controller::Io, &io(IoLimits { weight: Some(1), ..IoLimits::default() })));
    assert!(bandwidth(Version::V2, &IoLimits::default(), disk()).is_empty());
}

#[test]
fn weights_keep_their_middle_and_their_ends() {
    for (weight, bfq) in [(1, "1"), (100, "100"), (200, "109"), (10_000, "1000"), (u16::MAX, "1000")] {
        assert_eq!(share(Version::V2, weight, Shares::Bfq).value, bfq);
        assert_eq!(share(Version::V1, weight, Shares::Bfq).value, bfq);
    }
    assert_eq!(share(Version::V2, 200, Shares::Cost), Setting::required("io.weight", "default 200"));
}

#[test]
fn extremes_stay_within_what_the_kernel_takes() {
    let tiny = Limits { cpu_weight: 0, cpu_millis: 0, ..limits() };
    assert_eq!(cpu(Version::V1, &tiny)[0].value, "10");
    assert_eq!(cpu(Version::V1, &tiny)[2].value, "1000");
    let huge = Limits { cpu_weight: u32::MAX, cpu_millis: u32::MAX, ..limits() };
    assert_eq!(cpu(Version::V2, &huge)[0].value, "10000");
    assert_eq!(cpu(Version::V1, &huge)[0].value, "102400");
}

#[test]
fn a_required_file_that_is_missing_names_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place { version: Version::V2, dir: dir.path().to_owned() };
    for file in ["memory.max", "memory.high"] {
        fs::write(dir.path().join(file), "max").unwrap();
    }
    let apply = || apply(Controller::Memory, &place, &limits(), Path::new("/"), dir.path());
    let error = apply().unwrap_err();
    assert!(matches!(&error, CgroupError::LimitMissing { file, .. } if file.ends_with("memory.oom.group")));
    fs::write(dir.path().join("memory.oom.group"), "0").unwrap();
    apply().unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("memory.max")).unwrap(), "536870912");
}

#[test]
fn cpus_that_the_kernel_does_not_give_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place { version: Version::V2, dir: dir.path().to_owned() };
    fs::write(dir.path().join("cpuset.cpus"), "").unwrap();
    fs::write(dir.path().join("cpuset.cpus.effective"), "0-1\n").unwrap();
    let with = |cpus: &str| Limits { cpus: Some(cpus.parse().unwrap()), ..limits() };
    let apply = |limits: &Limits| apply(Controller::Cpuset, &place, limits, Path::new("/"), dir.path());
    apply(&with("0-1")).unwrap();
    let error = apply(&with("0-3")).unwrap_err();
    assert!(error.to_string().starts_with("controller cpuset: "), "{error}");
}

#[test]
fn a_disk_without_shares_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = Shares::of(disk(), dir.path()).unwrap_err();
    assert!(error.to_string().starts_with("controller io: disk 254:16 "), "{error}");
    fs::write(dir.path().join("io.cost.qos"), "254:16 enable=1 ctrl=auto\n").unwrap();
    assert_eq!(Shares::of(disk(), dir.path()).unwrap(), Shares::Cost);
}
