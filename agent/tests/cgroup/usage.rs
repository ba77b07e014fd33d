//! What a container uses is what it was made to use.

use mogok_agent::cgroup::Cgroup;
use mogok_api::agent::{CgroupMode, Usage};
use mogok_api::app::{IoLimits, Limits};
use mogok_api::id::InstanceId;

use super::harness::{LoopDisk, Root, eventually, run_in, small};

fn until(cgroup: &Cgroup, what: &str, done: impl Fn(&Usage) -> bool) -> Usage {
    let mut last = Usage::default();
    eventually(what, || {
        last = cgroup.usage().unwrap();
        done(&last)
    });
    last
}

#[test]
fn cpu_time_and_throttling_are_counted() {
    let Some(root) = Root::new("used-cpu") else { return };
    let (_, cgroup) = root.create(&Limits { cpu_millis: 100, ..small() });
    let (_, idle) = root.create(&small());
    let mut child = run_in(&cgroup, "while :; do :; done");
    let usage = until(&cgroup, "it is throttled", |usage| {
        usage.cpu.throttled_periods >= 5 && usage.cpu.throttled_usec > 0
    });
    // How the time divides into user's and system's is an estimate.
    assert!(usage.cpu.user_usec + usage.cpu.system_usec > 0 && usage.cpu_usec > 0, "{usage:?}");
    assert!(usage.cpu.periods >= usage.cpu.throttled_periods, "{usage:?}");
    let pressure =
        until(&cgroup, "pressure", |usage| usage.pressure.is_some_and(|p| p.cpu.some.total_usec > 0));
    assert_eq!(pressure.pids, 1);
    let idle = idle.usage().unwrap();
    assert_eq!((idle.cpu_usec, idle.cpu.throttled_periods, idle.pids), (0, 0, 0), "{idle:?}");
    cgroup.remove().unwrap();
    child.wait().unwrap();
}

#[test]
fn memory_is_told_apart_by_kind() {
    let Some(root) = Root::new("used-memory") else { return };
    let (_, cgroup) = root.create(&Limits { memory_bytes: 64 << 20, ..small() });
    let disk = LoopDisk::new(16 << 20);
    // The cache of a disk goes when nobody has it open.
    let _open = std::fs::File::open(&disk.path).unwrap();
    let script = format!(
        "dd if={} of=/dev/null bs=64k; dd if=/dev/zero bs=20M count=2 | sleep 1000",
        disk.path.display()
    );
    let mut child = run_in(&cgroup, &script);
    let usage = until(&cgroup, "20 MiB of its own", |usage| usage.memory.anon_bytes >= 20 << 20);
    assert!(usage.memory.file_bytes >= 12 << 20, "{usage:?}");
    // The kinds are read a moment later than the sum.
    assert!(usage.memory_bytes >= 20 << 20 && usage.memory_bytes <= 64 << 20, "{usage:?}");
    assert!(usage.memory.peak_bytes.is_none_or(|peak| peak >= 32 << 20), "{usage:?}");
    assert_eq!((usage.memory.oom_kills, usage.pids), (0, 3));
    let unified = root.cgroups.mode() == CgroupMode::Unified;
    assert_eq!((usage.memory.high_events.is_some(), usage.memory.max_events.is_some()), (unified, unified));
    cgroup.remove().unwrap();
    child.wait().unwrap();
}

#[test]
fn kills_and_refused_processes_are_counted() {
    let Some(root) = Root::new("used-events") else { return };
    let (_, cgroup) = root.create(&Limits { pids: 2, oom_group: false, ..small() });
    let bomb = "dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 1000 & sleep 1000";
    let mut child = run_in(&cgroup, bomb);
    let usage = until(&cgroup, "a kill and a refusal", |usage| {
        usage.memory.oom_kills > 0 && usage.pids_limit_hits > 0
    });
    assert!(usage.memory.max_events.is_none_or(|events| events > 0), "{usage:?}");
    cgroup.remove().unwrap();
    child.wait().unwrap();
}

#[test]
fn io_of_the_disk_is_counted() {
    let Some(root) = Root::new("used-io") else { return };
    let disk = LoopDisk::new(16 << 20);
    let cgroups = root.cgroups.clone().with_disk(&disk.path);
    let io = IoLimits { read_bytes: Some(1 << 30), ..IoLimits::default() };
    let id = InstanceId::new();
    let cgroup = cgroups.create(&id, &Limits { io, ..small() }).unwrap();
    let script = format!(
        "dd if=/dev/zero of={disk} bs=64k count=16 oflag=direct && dd if={disk} of=/dev/null bs=64k count=8 iflag=direct",
        disk = disk.path.display()
    );
    assert!(run_in(&cgroup, &script).wait().unwrap().success());
    // As an agent that found it again would.
    let used = cgroups.open(&id).usage().unwrap().io.unwrap();
    assert!(used.write_bytes >= 1 << 20 && used.write_ops >= 8, "{used:?}");
    assert!(used.read_bytes >= 512 << 10 && used.read_bytes < 4 << 20 && used.read_ops >= 4, "{used:?}");
    cgroup.remove().unwrap();
    // On v1 only who is limited is counted.
    let (_, plain) = root.create(&small());
    assert_eq!(plain.usage().unwrap().io.is_some(), root.cgroups.mode() == CgroupMode::Unified);
}
