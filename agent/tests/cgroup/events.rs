//! What happens to containers at their limits is told of, once, and an idle one costs nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mogok_agent::cgroup::{Attention, Hoard, Report, Sockets, Watch, Watcher};
use mogok_api::app::Limits;

use super::harness::{LoopDisk, Root, alive, eventually, run_in, small};

/// Longer than any timer of the watcher.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs into a process limit of 1 as fast as it can, and survives that.
const RUN_INTO_PROCESS_LIMIT: &str = r#"p='BEGIN { while (1) system("true") }'
    command -v awk && exec awk "$p"; exec busybox awk "$p""#;

async fn until(watch: &mut Watch, what: impl Fn(Report) -> bool) -> Report {
    let wait = async {
        loop {
            let report = watch.next().await.expect("the cgroup is there");
            if what(report) {
                return report;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("told in time")
}

#[tokio::test]
async fn a_memory_bomb_is_killed_and_told_of() {
    let Some(root) = Root::new("memory") else { return };
    let (watcher, _) = start();
    let (_, cgroup) = root.create(&small());
    let (_, neighbour) = root.create(&small());
    let mut other = run_in(&neighbour, "exec sleep 1000");
    let mut watch = watcher.watch(&cgroup, &small(), Attention::App, None).unwrap();
    let mut others_watch = watcher.watch(&neighbour, &small(), Attention::App, None).unwrap();
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    // The bomb is a child of the shell: on v1 the shell survives, and the agent must kill it.
    let mut child = run_in(&cgroup, "dd if=/dev/zero of=/dev/null bs=200M count=1 & wait; sleep 1000");
    let report = until(&mut watch, |report| report.memory_kills > 0).await;
    assert_eq!(report.memory_losses, 1);
    assert!(cgroup.oom_kills().unwrap() >= 1);
    assert!(cgroup.usage().unwrap().memory_bytes <= 32 << 20);
    cgroup.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    cgroup.remove().unwrap();
    // The watch ends with its cgroup, after at most what it has not told yet.
    while tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().is_some() {}
    let quiet = tokio::time::timeout(Duration::from_millis(10), others_watch.next()).await;
    assert!(quiet.is_err() && alive(&mut other), "{quiet:?}");
    neighbour.remove().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_kill_from_before_the_watch_is_told_of() {
    let Some(root) = Root::new("before") else { return };
    let (watcher, _) = start();
    let (_, cgroup) = root.create(&Limits { oom_group: false, ..small() });
    run_in(&cgroup, "dd if=/dev/zero of=/dev/null bs=200M count=1").wait().unwrap();
    let mut watch = watcher.watch(&cgroup, &small(), Attention::App, None).unwrap();
    until(&mut watch, |report| report.memory_kills > 0).await;
    cgroup.remove().unwrap();
}

#[tokio::test]
async fn who_needs_nearly_all_of_its_memory_is_told_and_who_caches_files_is_not() {
    let Some(root) = Root::new("shortage") else { return };
    let (watcher, _) = start();
    let limits = Limits { memory_bytes: 64 << 20, ..small() };
    let (_, cgroup) = root.create(&limits);
    // A build's, which is looked at more often where the kernel wakes nobody.
    let mut watch = watcher.watch(&cgroup, &limits, Attention::Build, None).unwrap();
    let disk = LoopDisk::new(96 << 20);
    // The cache of a disk goes when nobody has it open.
    let _open = std::fs::File::open(&disk.path).unwrap();
    let read = format!("dd if={} of=/dev/null bs=64k", disk.path.display());
    assert!(run_in(&cgroup, &read).wait().unwrap().success());
    assert!(cgroup.usage().unwrap().memory_bytes > 48 << 20, "the disk was not cached");
    let quiet = tokio::time::timeout(Duration::from_secs(2), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // A program that holds 61 MiB: its buffer is full, and nobody reads what it writes.
    let child = run_in(&cgroup, "dd if=/dev/zero bs=61M count=2 | sleep 1000");
    let report = until(&mut watch, |report| report.memory_high > 0).await;
    assert_eq!(report, Report { memory_high: 1, ..Report::default() });
    drop(watch);
    cgroup.remove().unwrap();
    { child }.wait().unwrap();
}

#[tokio::test]
async fn who_is_held_back_by_its_quota_is_told_and_its_neighbour_is_not() {
    let Some(root) = Root::new("throttled") else { return };
    let (watcher, _) = start();
    let limits = Limits { cpu_millis: 100, ..small() };
    let (_, cgroup) = root.create(&limits);
    let (_, neighbour) = root.create(&small());
    let mut watch = watcher.watch(&cgroup, &limits, Attention::App, None).unwrap();
    let mut others_watch = watcher.watch(&neighbour, &small(), Attention::App, None).unwrap();
    let children =
        [run_in(&cgroup, "while :; do :; done"), run_in(&neighbour, "while :; do sleep 0.05; done")];
    let report = until(&mut watch, |report| report.throttled > 0).await;
    assert_eq!(report, Report { throttled: 1, ..Report::default() });
    let quiet = tokio::time::timeout(Duration::from_millis(10), others_watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    cgroup.remove().unwrap();
    neighbour.remove().unwrap();
    for mut child in children {
        child.wait().unwrap();
    }
}

#[tokio::test]
async fn who_runs_into_its_process_limit_is_told_and_a_build_that_goes_on_is_stuck() {
    let Some(root) = Root::new("stuck") else { return };
    let (watcher, _) = start();
    let limits = Limits { pids: 1, cpu_millis: 100, ..small() };
    let (_, build) = root.create(&limits);
    let (_, app) = root.create(&limits);
    let mut build_watch = watcher.watch(&build, &limits, Attention::Build, None).unwrap();
    let mut app_watch = watcher.watch(&app, &limits, Attention::App, None).unwrap();
    let children = [run_in(&build, RUN_INTO_PROCESS_LIMIT), run_in(&app, RUN_INTO_PROCESS_LIMIT)];
    let report = until(&mut build_watch, |report| report.stuck).await;
    assert_eq!(report.process_limit, 1);
    let report = until(&mut app_watch, |report| report.process_limit > 0).await;
    assert!(!report.stuck);
    for (mut child, cgroup) in children.into_iter().zip([build, app]) {
        cgroup.remove().unwrap();
        child.wait().unwrap();
    }
}

/// Threads of this process that watch containers.
fn watchers() -> BTreeSet<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| Some(task.ok()?.path().to_str()?.to_owned()));
    names
        .filter(|task| std::fs::read_to_string(Path::new(task).join("comm")).is_ok_and(|n| n == "limits\n"))
        .collect()
}

/// How often a thread has gone to sleep.
fn sleeps(task: &str) -> u64 {
    let status = std::fs::read_to_string(Path::new(task).join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// A watcher, and its thread.
fn start() -> (Watcher, String) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = watchers();
    let watcher = Watcher::start().unwrap();
    let mut task = None;
    eventually("the thread has its name", || {
        task = watchers().difference(&before).next().cloned();
        task.is_some()
    });
    (watcher, task.unwrap())
}

/// Connections that nobody accepts, in a network namespace of their own.
const HOARD: &str = r#"exec unshare --net perl -e '
use Socket; system("ip link set lo up");
for (1..20) {
    socket(my $listener, PF_INET, SOCK_STREAM, 0); bind($listener, sockaddr_in(0, INADDR_LOOPBACK));
    listen($listener, 128); push @kept, $listener;
    for (1..100) {
        socket(my $s, PF_INET, SOCK_STREAM, 0); connect($s, getsockname($listener)) or die; syswrite($s, "x" x 60000);
    }
}
$0 = "filled"; sleep 1000'"#;

#[tokio::test]
async fn who_hoards_in_sockets_that_nobody_is_charged_for_is_told() {
    let Some(root) = Root::new("hoard") else { return };
    if let Err(error) = mogok_agent::cgroup::watch::sockets::check() {
        return eprintln!("SKIP: the kernel has no tcp_diag: {error}");
    }
    let (watcher, _) = start();
    let (_, cgroup) = root.create(&small());
    let mut child = run_in(&cgroup, HOARD);
    let comm = format!("/proc/{}/comm", child.id());
    eventually("it is full", || std::fs::read_to_string(&comm).is_ok_and(|name| name == "filled\n"));
    let sockets = Sockets::of_process(child.id().try_into().unwrap()).unwrap();
    let mut watch = watcher.watch(&cgroup, &small(), Attention::App, Some(sockets)).unwrap();
    let report = until(&mut watch, |report| report.hoard.is_some()).await;
    // The kernel itself has nothing against it.
    assert_eq!(report, Report { hoard: Some(Hoard::Sockets), ..Report::default() });
    assert!(alive(&mut child));
    cgroup.remove().unwrap();
    child.wait().unwrap();
}

/// Locks every second byte of files, some thousand bytes of each. `$many` locks, then names itself `filled`; what takes
/// them is a process that shares its descriptors with one that stays (`clone(CLONE_FILES)`), so that `/proc/locks` names
/// nobody who lives.
const LOCKS: &str = r#"exec perl -e '
use Fcntl; use POSIX ();
for (1..@MANY@ / 5000) {
    open(my $file, "+>", "/tmp/mogok-test-locks-$$"); unlink("/tmp/mogok-test-locks-$$"); push @kept, $file;
}
my $child = syscall(56, 0x400 | 17, 0, 0, 0, 0);
if ($child == 0) {
    for my $file (@kept) {
        for (1..5000) {
            my $lock = pack("s s x4 q q i x4", F_WRLCK, SEEK_SET, 2 * (5000 - $_), 1, 0);
            fcntl($file, F_SETLK, $lock) or POSIX::_exit(1);
        }
    }
    POSIX::_exit(0);
}
waitpid($child, 0); $? == 0 or die;
for my $file (@kept) { for (1..2) { open(my $copy, "+>&", $file); push @copies, $copy; } }
$0 = "filled"; sleep 1000'"#;

/// Whoever has many locks, seen as often as there are descriptors for them, is told of from the limit on.
#[tokio::test]
async fn who_hoards_locks_of_files_is_told_and_nobody_else() {
    let Some(root) = Root::new("locks") else { return };
    if let Err(error) = mogok_agent::cgroup::watch::locks::check() {
        return eprintln!("SKIP: the kernel does not tell how many locks there are: {error}");
    }
    let (watcher, _) = start();
    let fill = |many: usize| {
        let (_, cgroup) = root.create(&small());
        let child = run_in(&cgroup, &LOCKS.replace("@MANY@", &many.to_string()));
        let comm = format!("/proc/{}/comm", child.id());
        eventually("it is full", || std::fs::read_to_string(&comm).is_ok_and(|name| name == "filled\n"));
        let sockets = Sockets::of_process(child.id().try_into().unwrap()).unwrap();
        let watch = watcher.watch(&cgroup, &small(), Attention::App, Some(sockets)).unwrap();
        (cgroup, child, watch)
    };
    // As many as are no hoard.
    let (below, mut other, mut others_watch) = fill(95_000);
    let (cgroup, mut child, mut watch) = fill(105_000);
    let report = until(&mut watch, |report| report.hoard.is_some()).await;
    assert_eq!(report, Report { hoard: Some(Hoard::Locks), ..Report::default() });
    let quiet = tokio::time::timeout(Duration::from_secs(11), others_watch.next()).await;
    assert!(quiet.is_err() && alive(&mut child) && alive(&mut other), "{quiet:?}");
    for (cgroup, mut child) in [(cgroup, child), (below, other)] {
        cgroup.remove().unwrap();
        child.wait().unwrap();
    }
}

/// Locks of an eventfd, whose inode all of the host share; more than lead to a search, and a fraction of what one may have of
/// files of its own. Whoever looks never sees the same process twice: each millisecond another one has the table.
const SHARED_LOCKS: &str = r#"exec perl -e '
use Fcntl; use POSIX ();
open(my $event, "+<&=", syscall(290, 0, 0)); open(my $file, "+>", "/tmp/mogok-test-locks-$$"); unlink("/tmp/mogok-test-locks-$$");
for my $to ([$event, 200], [$file, 11000]) {
    for (1..$to->[1]) {
        my $lock = pack("s s x4 q q i x4", F_WRLCK, SEEK_SET, 2 * ($to->[1] - $_), 1, 0);
        fcntl($to->[0], F_SETLK, $lock) or die;
    }
}
if (fork() == 0) { sleep 1000 }
$0 = "filled";
while (1) {
    my $child = syscall(56, 0x400 | 17, 0, 0, 0, 0);
    POSIX::_exit(0) if $child > 0;
    select(undef, undef, undef, 0.001);
}'"#;

#[tokio::test]
async fn who_locks_what_the_whole_host_shares_is_told_early() {
    let Some(root) = Root::new("shared") else { return };
    if let Err(error) = mogok_agent::cgroup::watch::locks::check() {
        return eprintln!("SKIP: the kernel does not tell how many locks there are: {error}");
    }
    let (watcher, _) = start();
    let (_, cgroup) = root.create(&small());
    let mut child = run_in(&cgroup, SHARED_LOCKS);
    eventually("it hands its table on", || child.try_wait().unwrap().is_some());
    // One of its processes that stays.
    let stays =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name != "filled\n");
    let pid = cgroup.procs().unwrap().into_iter().find(stays).unwrap();
    let sockets = Sockets::of_process(pid).unwrap();
    let mut watch = watcher.watch(&cgroup, &small(), Attention::App, Some(sockets)).unwrap();
    let report = until(&mut watch, |report| report.hoard.is_some()).await;
    assert_eq!(report, Report { hoard: Some(Hoard::SharedLocks), ..Report::default() });
    cgroup.remove().unwrap();
}

#[test]
fn idle_containers_wake_nobody() {
    const CONTAINERS: usize = 100;
    let Some(root) = Root::new("idle") else { return };
    let (watcher, task) = start();
    let made: Vec<_> = (0..CONTAINERS).map(|_| root.create(&small()).1).collect();
    let watches: Vec<_> =
        made.iter().map(|cgroup| watcher.watch(cgroup, &small(), Attention::App, None).unwrap()).collect();
    // Until it has heard of all of them.
    eventually("the watcher is calm", || {
        let before = sleeps(&task);
        std::thread::sleep(Duration::from_secs(1));
        sleeps(&task) == before
    });
    let before = sleeps(&task);
    std::thread::sleep(Duration::from_secs(5));
    let woken = sleeps(&task) - before;
    drop(watches);
    made.iter().for_each(|cgroup| cgroup.remove().unwrap());
    // Cgroup v1 has one timer for all of them, every 30 s.
    assert!(woken <= 2, "{CONTAINERS} idle containers woke their watcher {woken} times in 5 s");
}
