//! Limits bind and removals are whole, on the real kernel. Every test has a root cgroup of its own.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, their helpers too")]

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mogok_agent::cgroup::{Cgroup, CgroupError, Cgroups};
use mogok_api::app::Limits;
use mogok_api::id::InstanceId;

struct Root {
    cgroups: Cgroups,
}

impl Root {
    /// `None`, said aloud, where the test cannot run.
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: cgroup tests need root");
            return None;
        }
        match Cgroups::detect(&format!("mogok-test-{name}-{}", std::process::id())) {
            Ok(cgroups) => Some(Self { cgroups }),
            Err(error) => {
                eprintln!("SKIP: {error}");
                None
            }
        }
    }

    fn create(&self, limits: &Limits) -> (InstanceId, Cgroup) {
        let id = InstanceId::new();
        let cgroup = self.cgroups.create(&id, limits).unwrap();
        (id, cgroup)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for id in self.cgroups.list().unwrap_or_default() {
            let _ = self.cgroups.open(&id).remove();
        }
        self.cgroups.remove_root();
    }
}

/// A shell that waits for a line, is put into the cgroup, and then runs `script`.
fn run_in(cgroup: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for dir in cgroup.v1_paths().iter().map(|path| path.as_path()).chain([cgroup.v2_path()]) {
        std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn alive(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_none()
}

fn small() -> Limits {
    Limits { memory_bytes: 32 << 20, pids: 20, cpu_millis: 1000, ..Limits::app() }
}

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

#[tokio::test]
async fn a_memory_bomb_is_killed_and_told_of() {
    let Some(root) = Root::new("memory") else { return };
    let (_, cgroup) = root.create(&small());
    let mut watch = cgroup.watch_oom().unwrap();
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    // The bomb is a child of the shell: on v1 the shell survives, and the agent must kill it.
    let mut child = run_in(&cgroup, "tail -c 200m /dev/zero | tail & wait; sleep 1000");
    let kills = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap().unwrap();
    assert!(kills.unwrap() >= 1);
    assert!(cgroup.oom_kills().unwrap() >= 1);
    assert!(cgroup.usage().unwrap().memory_bytes <= 32 << 20);
    cgroup.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    cgroup.remove().unwrap();
    // The watch ends with its cgroup, after at most the kills it has not told yet.
    let wait = Duration::from_secs(5);
    while tokio::time::timeout(wait, watch.next()).await.unwrap().unwrap().is_some() {}
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
    let before = cgroup.usage().unwrap().cpu_usec;
    let start = Instant::now();
    // The quota is a matter of time: one second is ten periods.
    std::thread::sleep(Duration::from_secs(1));
    let used = cgroup.usage().unwrap().cpu_usec - before;
    let share = used as f64 / start.elapsed().as_micros() as f64;
    cgroup.remove().unwrap();
    child.wait().unwrap();
    assert!((0.05..0.30).contains(&share), "used {share:.2} of a core, wanted at most 0.20");
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
