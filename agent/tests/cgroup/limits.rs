//! Each limit binds, and the neighbour beside it is unharmed.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use mogok_agent::cgroup::{Cgroup, CgroupError, Cgroups};
use mogok_api::agent::CgroupMode;
use mogok_api::app::{IoLimits, Limits};
use mogok_api::id::InstanceId;

use super::harness::{LoopDisk, PATIENCE, Root, alive, eventually, file, key, run_in, small};

const BUSY: &str = "while :; do :; done";

fn end(mut child: Child, cgroup: &Cgroup) {
    cgroup.remove().unwrap();
    child.wait().unwrap();
}

#[test]
fn cpu_weights_divide_one_cpu() {
    let Some(root) = Root::new("weight") else { return };
    // A quota out of reach: a virtual machine's clock jumps, and would make the heavy one use up its own.
    let on_one = Limits { cpus: Some("0".parse().unwrap()), cpu_millis: 100_000, ..small() };
    let (_, light) = root.create(&Limits { cpu_weight: 50, ..on_one.clone() });
    let (_, heavy) = root.create(&Limits { cpu_weight: 400, ..on_one });
    let children = [run_in(&light, BUSY), run_in(&heavy, BUSY)];
    let used = |cgroup: &Cgroup| cgroup.usage().unwrap().cpu_usec;
    eventually("both run", || used(&light) > 0 && used(&heavy) > 0);
    let before = (used(&light), used(&heavy));
    eventually("enough to compare", || used(&light) + used(&heavy) > before.0 + before.1 + 1_500_000);
    let (light_used, heavy_used) = (used(&light) - before.0, used(&heavy) - before.1);
    for (child, cgroup) in children.into_iter().zip([&light, &heavy]) {
        end(child, cgroup);
    }
    // 8 to 1 by weight.
    assert!(heavy_used > 3 * light_used, "{heavy_used} against {light_used} microseconds");
}

#[test]
fn a_cpu_set_binds_and_one_that_the_host_lacks_is_refused() {
    let Some(root) = Root::new("cpuset") else { return };
    let (_, cgroup) = root.create(&Limits { cpus: Some("0".parse().unwrap()), ..small() });
    let child = run_in(&cgroup, "exec sleep 1000");
    let status = format!("/proc/{}/status", child.id());
    let allowed = || {
        let status = std::fs::read_to_string(&status).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    };
    assert_eq!(allowed(), "0");
    end(child, &cgroup);
    let id = InstanceId::new();
    let absent = Limits { cpus: Some("0,8000".parse().unwrap()), ..small() };
    let refused = root.cgroups.create(&id, &absent);
    assert!(matches!(refused, Err(CgroupError::CpusMissing { .. })), "{refused:?}");
    assert!(root.cgroups.list().unwrap().is_empty());
}

#[test]
fn a_burst_is_saved_up_in_quiet_periods() {
    let Some(root) = Root::new("burst") else { return };
    let little = Limits { cpu_millis: 50, ..small() };
    let (_, plain) = root.create(&little);
    let (_, saving) = root.create(&Limits { cpu_burst_usec: 5_000, ..little });
    let script = "while :; do n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; sleep 0.3; done";
    let children = [run_in(&plain, script), run_in(&saving, script)];
    let count = |cgroup: &Cgroup, counter| key(&file(cgroup, &["cpu.stat"]), counter);
    eventually("a burst", || count(&saving, "nr_bursts") > 0);
    eventually("the other is held back", || count(&plain, "nr_throttled") > 0);
    assert_eq!(count(&plain, "nr_bursts"), 0);
    for (child, cgroup) in children.into_iter().zip([&plain, &saving]) {
        end(child, cgroup);
    }
}

#[test]
fn without_oom_group_the_rest_of_the_container_lives_on() {
    let Some(root) = Root::new("single") else { return };
    let (_, alone) = root.create(&Limits { oom_group: false, ..small() });
    let (_, neighbour) = root.create(&small());
    let mut other = run_in(&neighbour, "exec sleep 1000");
    let mut child = run_in(&alone, "dd if=/dev/zero of=/dev/null bs=200M count=1; exec sleep 1000");
    eventually("a kill", || alone.oom_kills().unwrap() > 0);
    eventually("the shell goes on", || {
        std::fs::read_to_string(format!("/proc/{}/comm", child.id())).is_ok_and(|name| name == "sleep\n")
    });
    assert!(alive(&mut child) && alive(&mut other));
    assert_eq!(neighbour.oom_kills().unwrap(), 0);
    end(child, &alone);
    end(other, &neighbour);
}

/// Sockets full of packets that nobody reads: 600 of some 400 KB each.
const SOCKETS: &str = r#"exec perl -e 'use Socket; $| = 1;
for (1..600) {
  socket(my $s, AF_INET, SOCK_DGRAM, 0) or die; setsockopt($s, SOL_SOCKET, SO_RCVBUF, pack("i", 4 << 20));
  bind($s, sockaddr_in(0, INADDR_LOOPBACK)) or die; my $to = getsockname($s); push @kept, $s;
  send($s, "x" x 60000, MSG_DONTWAIT, $to) for (1..20);
}
$0 = "filled"; sleep 1000'"#;

#[test]
fn what_sockets_hold_is_limited() {
    let Some(root) = Root::new("sockets") else { return };
    let limits = small();
    let (_, cgroup) = root.create(&limits);
    // Of the host; in pages, and given back a little at a time.
    let held = || {
        let stat = std::fs::read_to_string("/proc/net/sockstat").unwrap();
        let line = stat.lines().find(|line| line.starts_with("UDP:")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = held();
    let mut child = run_in(&cgroup, SOCKETS);
    let comm = format!("/proc/{}/comm", child.id());
    let mut most = 0;
    let begun = Instant::now();
    // To the end, or until it was killed for it; on v2 it is slowed down so much that it does not come there.
    while alive(&mut child) && begun.elapsed() < Duration::from_secs(8) {
        let filled = std::fs::read_to_string(&comm).is_ok_and(|name| name == "filled\n");
        most = most.max(held().saturating_sub(before));
        if filled {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = cgroup.oom_kills().unwrap();
    cgroup.remove().unwrap();
    let status = child.wait().unwrap();
    assert!(most > 1 << 20 || killed > 0, "{most} bytes were held; the program: {status}");
    assert!(most < limits.memory_bytes * 5 / 4, "{most} bytes beside a limit of {}", limits.memory_bytes);
}

#[test]
fn want_of_memory_ends_the_container_as_one_where_the_kernel_can() {
    let Some(root) = Root::new("group") else { return };
    let (_, cgroup) = root.create(&small());
    let mut child = run_in(&cgroup, "dd if=/dev/zero of=/dev/null bs=200M count=1; exec sleep 1000");
    eventually("a kill", || cgroup.oom_kills().unwrap() > 0);
    if root.cgroups.mode() == CgroupMode::Unified {
        eventually("nothing is left", || !cgroup.populated().unwrap());
        assert!(!child.wait().unwrap().success());
    } else {
        // The agent does it.
        assert!(alive(&mut child));
        cgroup.kill().unwrap();
        child.wait().unwrap();
    }
    cgroup.remove().unwrap();
}

#[test]
fn memory_high_holds_a_container_back_before_the_limit() {
    let Some(root) = Root::new("high") else { return };
    let high = Limits { memory_high_bytes: Some(12 << 20), ..small() };
    if root.cgroups.mode() == CgroupMode::Hybrid {
        let refused = root.cgroups.create(&InstanceId::new(), &high).unwrap_err();
        assert!(refused.to_string().starts_with("controller memory: "), "{refused}");
        assert!(root.cgroups.list().unwrap().is_empty());
        return;
    }
    let (_, cgroup) = root.create(&high);
    let mut child = run_in(&cgroup, "dd if=/dev/zero of=/dev/null bs=16M count=1; exec sleep 1000");
    eventually("it is held back", || key(&file(&cgroup, &["memory.events"]), "high") > 0);
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    assert!(alive(&mut child));
    end(child, &cgroup);
}

#[test]
fn swap_is_used_as_far_as_it_is_allowed() {
    let Some(root) = Root::new("swap") else { return };
    let limits = Limits { memory_bytes: 16 << 20, ..small() };
    let (_, without) = root.create(&limits);
    let (_, with) = root.create(&Limits { memory_swap_bytes: 64 << 20, ..limits });
    // A program that holds 24 MiB, of which 16 may be in memory. Of zeroes the kernel would keep nothing; and it takes
    // them in few calls, for behind each the kernel would make it wait, near its limit as it is.
    let script = "dd if=/dev/urandom bs=24M count=2 iflag=fullblock | sleep 1000";
    let children = [run_in(&without, script), run_in(&with, script)];
    eventually("who may not swap is killed", || without.oom_kills().unwrap() > 0);
    let host_swaps = std::fs::read_to_string("/proc/swaps").unwrap().lines().count() > 1;
    let swapped = |cgroup: &Cgroup| cgroup.usage().unwrap().memory.swap_bytes.unwrap_or(0);
    if host_swaps {
        eventually("the other swaps", || swapped(&with) > 4 << 20);
        assert_eq!(with.oom_kills().unwrap(), 0);
    } else {
        eventually("so is the other where there is no swap", || with.oom_kills().unwrap() > 0);
    }
    assert_eq!(swapped(&without), 0);
    for (child, cgroup) in children.into_iter().zip([&without, &with]) {
        end(child, cgroup);
    }
}

#[test]
fn disk_bandwidth_binds_and_the_neighbour_keeps_its_own() {
    let Some(root) = Root::new("io") else { return };
    let disk = LoopDisk::new(64 << 20);
    let cgroups = root.cgroups.clone().with_disk(&disk.path);
    let hybrid = root.cgroups.mode() == CgroupMode::Hybrid;
    let make = |bytes| {
        // v1 can hold readers back only, and refuses what it cannot do.
        let writing = IoLimits { write_bytes: Some(bytes), ..IoLimits::default() };
        let reading = IoLimits { read_bytes: Some(bytes), ..IoLimits::default() };
        let create = |io| cgroups.create(&InstanceId::new(), &Limits { io, ..small() });
        if hybrid {
            let refused = create(writing).unwrap_err().to_string();
            assert!(refused.contains("io.max, so the limit cannot be enforced"), "{refused}");
        }
        create(if hybrid { reading } else { writing }).unwrap()
    };
    let (slow, fast) = (make(1 << 20), make(1 << 30));
    let (from, to, direct) = match hybrid {
        true => (disk.path.display().to_string(), "/dev/null".to_owned(), "iflag=direct skip"),
        false => ("/dev/zero".to_owned(), disk.path.display().to_string(), "oflag=direct seek"),
    };
    let write = |block: u32| format!("dd if={from} of={to} bs=64k count=64 {direct}={block}");
    let start = Instant::now();
    let mut held_back = run_in(&slow, &write(0));
    let neighbour = run_in(&fast, &write(512)).wait().unwrap();
    assert!(neighbour.success());
    let neighbours = start.elapsed();
    assert!(held_back.wait().unwrap().success());
    let took = start.elapsed();
    slow.remove().unwrap();
    fast.remove().unwrap();
    // 4 MiB at 1 MiB/s; the first slice of time is free.
    assert!(took > Duration::from_millis(2500), "4 MiB at 1 MiB/s took {took:?}");
    assert!(neighbours < took, "the neighbour took {neighbours:?}, the other {took:?}");
}

#[test]
fn disk_bandwidth_binds_what_goes_through_the_page_cache() {
    let Some(root) = Root::new("writeback") else { return };
    if root.cgroups.mode() == CgroupMode::Hybrid {
        // Under v1 the kernel writes dirty pages back in its own name, and nobody's limit binds it.
        return;
    }
    let disk = LoopDisk::new(32 << 20);
    let files = disk.mounted();
    let cgroups = root.cgroups.clone().with_disk(&disk.path);
    let io = IoLimits { write_bytes: Some(1 << 20), ..IoLimits::default() };
    let cgroup = cgroups.create(&InstanceId::new(), &Limits { io, ..small() }).unwrap();
    let script = format!("dd if=/dev/zero of={}/file bs=64k count=64 conv=fsync", files.path().display());
    let start = Instant::now();
    assert!(run_in(&cgroup, &script).wait().unwrap().success());
    let took = start.elapsed();
    cgroup.remove().unwrap();
    assert!(took > Duration::from_millis(2500), "4 MiB at 1 MiB/s through the cache took {took:?}");
}

#[test]
fn disk_operations_bind() {
    let Some(root) = Root::new("iops") else { return };
    let disk = LoopDisk::new(16 << 20);
    let cgroups = root.cgroups.clone().with_disk(&disk.path);
    let io = IoLimits { read_ops: Some(50), ..IoLimits::default() };
    let cgroup = cgroups.create(&InstanceId::new(), &Limits { io, ..small() }).unwrap();
    let start = Instant::now();
    let script = format!("dd if={} of=/dev/null bs=4k count=150 iflag=direct", disk.path.display());
    assert!(run_in(&cgroup, &script).wait().unwrap().success());
    let took = start.elapsed();
    cgroup.remove().unwrap();
    assert!(took > Duration::from_secs(2) && took < PATIENCE, "150 reads at 50 a second took {took:?}");
}

#[test]
fn a_share_of_a_disk_that_knows_none_is_refused() {
    let Some(root) = Root::new("share") else { return };
    let disk = LoopDisk::new(1 << 20);
    let limits = Limits { io: IoLimits { weight: Some(50), ..IoLimits::default() }, ..small() };
    let on = |cgroups: &Cgroups| cgroups.create(&InstanceId::new(), &limits);
    let refused = on(&root.cgroups.clone().with_disk(&disk.path));
    assert!(matches!(refused, Err(CgroupError::NoShares(_))), "{refused:?}");
    // A tmpfs lies on no disk at all.
    let refused = on(&root.cgroups.clone().with_disk("/proc".as_ref()));
    assert!(matches!(refused, Err(CgroupError::NoDisk(_))), "{refused:?}");
    assert!(root.cgroups.list().unwrap().is_empty());
}

#[test]
fn a_share_is_set_where_the_cost_model_is_on() {
    let Some(root) = Root::new("cost") else { return };
    let disk = LoopDisk::new(1 << 20);
    let number =
        std::fs::read_to_string(Path::new("/sys/block").join(disk.path.file_name().unwrap()).join("dev"));
    let number = number.unwrap().trim().to_owned();
    let limits = Limits { io: IoLimits { weight: Some(200), ..IoLimits::default() }, ..small() };
    let made = || root.cgroups.clone().with_disk(&disk.path).create(&InstanceId::new(), &limits);
    let qos = Path::new("/sys/fs/cgroup/io.cost.qos");
    if root.cgroups.mode() == CgroupMode::Hybrid || !qos.exists() {
        assert!(matches!(made(), Err(CgroupError::NoShares(_))));
        return;
    }
    std::fs::write(qos, format!("{number} enable=1")).unwrap();
    let weight = made().map(|cgroup| file(&cgroup, &["io.weight"]));
    std::fs::write(qos, format!("{number} enable=0")).unwrap();
    assert!(weight.as_ref().is_ok_and(|weight| weight.trim() == "default 200"), "{weight:?}");
}

#[test]
fn a_share_is_set_where_bfq_schedules() {
    let Some(root) = Root::new("bfq") else { return };
    let disk = LoopDisk::new(1 << 20);
    let name = disk.path.file_name().unwrap().to_str().unwrap();
    let scheduler = format!("/sys/block/{name}/queue/scheduler");
    if std::fs::write(&scheduler, "bfq").is_err() {
        eprintln!("SKIP: this kernel has no bfq scheduler");
        return;
    }
    let limits = Limits { io: IoLimits { weight: Some(200), ..IoLimits::default() }, ..small() };
    let made = root.cgroups.clone().with_disk(&disk.path).create(&InstanceId::new(), &limits);
    let weight = made.map(|cgroup| file(&cgroup, &["io.bfq.weight", "blkio.bfq.weight"]));
    std::fs::write(&scheduler, "none").unwrap();
    assert!(weight.as_ref().is_ok_and(|weight| weight.trim().ends_with("109")), "{weight:?}");
}
