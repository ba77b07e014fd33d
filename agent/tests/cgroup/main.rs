//! Limits bind and removals are whole, on the real kernel. Every test has a root cgroup of its own.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

mod events;
mod harness;
mod limits;
mod usage;

use std::time::{Duration, Instant};

use harness::{Root, alive, eventually, run_in, small};
use mogok_agent::cgroup::CgroupError;
use mogok_api::agent::CgroupMode;
use mogok_api::app::Limits;

#[test]
fn kill_reaches_every_process_and_remove_is_whole_and_idempotent() {
    let Some(root) = Root::new("kill") else { return };
    let (id, cgroup) = root.create(&small());
    let mut child = run_in(&cgroup, "sleep 1000 & sleep 1000 & wait");
    eventually("three processes", || cgroup.procs().unwrap().len() == 3);
    assert!(cgroup.populated().unwrap());
    assert_eq!(root.cgroups.list().unwrap(), [id]);
    assert!(matches!(root.cgroups.create(&id, &small()), Err(CgroupError::Occupied(_))));

    cgroup.remove().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!cgroup.v2_path().exists());
    assert!(cgroup.v1_paths().iter().all(|path| !path.exists()));
    cgroup.remove().unwrap();
    cgroup.kill().unwrap();
    assert!(!cgroup.populated().unwrap());
    assert!(root.cgroups.list().unwrap().is_empty());
}

#[test]
fn what_an_earlier_life_left_empty_is_made_anew() {
    let Some(root) = Root::new("anew") else { return };
    let (id, first) = root.create(&small());
    std::fs::create_dir(first.v2_path().join("child")).unwrap();
    let again = root.cgroups.create(&id, &small()).unwrap();
    assert!(!again.v2_path().join("child").exists());
    again.remove().unwrap();
}

#[test]
fn a_fork_bomb_is_capped() {
    let Some(root) = Root::new("fork") else { return };
    let (_, cgroup) = root.create(&small());
    let mut child = run_in(&cgroup, "i=0; while [ $i -lt 200 ]; do i=$((i+1)); sleep 1000 & done; wait");
    // dash gives up at the first fork that fails, and leaves 19 of the 200 behind.
    eventually("the cap is reached", || cgroup.procs().unwrap().len() == 19 && !alive(&mut child));
    cgroup.remove().unwrap();
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_cpu_quota_binds() {
    let Some(root) = Root::new("cpu") else { return };
    let (_, cgroup) = root.create(&Limits { cpu_millis: 200, ..small() });
    let mut child = run_in(&cgroup, "while :; do :; done");
    let used = || cgroup.usage().unwrap().cpu_usec;
    eventually("it runs", || used() > 0);
    // The quota is a matter of time: one second is ten periods. A machine that is itself held up counts what it missed as
    // used, or lets nobody run; so one second of several is enough. Without a quota none would be.
    let shares = (0..5).map(|_| {
        let (before, start) = (used(), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        (used() - before) as f64 / start.elapsed().as_micros() as f64
    });
    let mut seen = Vec::new();
    let bound = shares.inspect(|share| seen.push(*share)).any(|share| (0.05..0.30).contains(&share));
    cgroup.remove().unwrap();
    child.wait().unwrap();
    assert!(bound, "used {seen:.2?} of a core, wanted at most 0.20");
}

#[test]
fn a_frozen_container_stands_still_and_can_be_thawed_and_killed() {
    let Some(root) = Root::new("freeze") else { return };
    let (_, cgroup) = root.create(&small());
    let mut child = run_in(&cgroup, "while :; do :; done");
    let used = || cgroup.usage().unwrap().cpu_usec;
    eventually("it runs", || used() > 0);
    cgroup.freeze().unwrap();
    let before = used();
    // Standing still is a matter of time; a program that loops would have used most of it.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(used(), before);
    cgroup.thaw().unwrap();
    eventually("it goes on", || used() > before);
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    cgroup.remove().unwrap();
    assert!(matches!(cgroup.freeze(), Err(CgroupError::Write { .. })));
}

#[test]
fn page_cache_is_taken_back_on_demand() {
    let Some(root) = Root::new("reclaim") else { return };
    let (_, cgroup) = root.create(&small());
    if root.cgroups.mode() == CgroupMode::Hybrid {
        assert!(matches!(cgroup.reclaim(1 << 20), Err(CgroupError::NoReclaim(_))));
        return;
    }
    // What this test allocates itself is not the container's; a file that it writes is.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let script = format!("dd if=/dev/zero of={} bs=64k count=160; sync; sleep 1000", path.display());
    let mut child = run_in(&cgroup, &script);
    let used = || cgroup.usage().unwrap().memory_bytes;
    eventually("the file is cached", || used() > 10 << 20);
    eventually("the cache is clean and goes", || cgroup.reclaim(8 << 20).unwrap() && used() < 4 << 20);
    assert!(alive(&mut child));
    cgroup.remove().unwrap();
    child.wait().unwrap();
}

#[test]
fn figures() {
    let Some(root) = Root::new("figures") else { return };
    let mut made: Vec<Duration> = Vec::new();
    let mut removed: Vec<Duration> = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        let (_, cgroup) = root.create(&Limits::app());
        made.push(start.elapsed());
        let start = Instant::now();
        cgroup.remove().unwrap();
        removed.push(start.elapsed());
    }
    made.sort();
    removed.sort();
    eprintln!("cgroup create p50 {:?} p99 {:?}, remove p50 {:?}", made[25], made[49], removed[25]);
}
