//! A new agent on a host where things are not as they should be: shims that do not answer, a wall clock
//! that was moved, debris of every kind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mogok_api::app::RestartPolicy;
use mogok_api::id::InstanceId;
use mogok_api::instance::{FailureCode, InstanceSpec, Phase};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::host::{Host, PATIENCE, instance, on_a_node, pause, web};

fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids {
        kill(Pid::from_raw(*pid), signal).unwrap();
    }
}

#[test]
fn a_shim_that_does_not_answer_is_not_lost_and_keeps_nobody_waiting() {
    on_a_node(async |host| {
        let deaf = instance("exec sleep 1000");
        host.want(std::slice::from_ref(&deaf)).await;
        host.until_phase(deaf.id, Phase::Up).await;
        let then = host.client.instance(deaf.id).await.unwrap();
        let shims = host.shims();
        signal_all(&shims, Signal::SIGSTOP);
        for _ in 0..2 {
            host.end(Signal::SIGKILL);
            host.start().await;
            let other = instance("exec sleep 1000");
            host.want(&[deaf.clone(), other.clone()]).await;
            host.until_phase(other.id, Phase::Up).await;
            let now = host.client.instance(deaf.id).await.unwrap();
            assert_eq!((now.pid, now.shim_pid, now.status.restarts), (then.pid, then.shim_pid, 0));
            assert_eq!(now.status.phase, Phase::Up);
        }
        // It can be stopped all the same: what nobody answers for is killed.
        host.want(&[]).await;
        host.until_gone(deaf.id).await;
        assert!(host.shims().is_empty());
    });
}

/// Rewrites a record while no agent runs.
fn edit(host: &Host, id: InstanceId, change: impl FnOnce(&mut serde_json::Value)) {
    let path = host.state_dir().join("instances").join(id.to_string()).join("record.json");
    let mut record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
}

#[test]
fn a_clock_that_was_moved_neither_kills_nor_hurries_nor_holds_up() {
    on_a_node(async |host| {
        // To the agents that come, these times are what they would be had the clock been moved meanwhile.
        let moved = |record: &mut serde_json::Value, hours: i64| {
            let by = chrono::TimeDelta::hours(hours);
            for path in ["/since", "/restart_at", "/run/started_at"] {
                if let Some(time) = record.pointer_mut(path)
                    && let Some(at) = time.as_str()
                {
                    let at: chrono::DateTime<chrono::Utc> = at.parse().unwrap();
                    *time = serde_json::to_value(at + by).unwrap();
                }
            }
        };
        let running = InstanceSpec { max_runtime_s: Some(600), ..instance("exec sleep 1000") };
        let crashing = instance("exit 3");
        host.want(&[running.clone(), crashing.clone()]).await;
        host.until_phase(running.id, Phase::Up).await;
        let waits =
            host.until(crashing.id, |status| status.phase == Phase::Crashed && status.restarts == 1).await;
        let wait = waits.restart_at.unwrap() - chrono::Utc::now();
        let due = Instant::now() + wait.to_std().unwrap_or_default();
        for hours in [-24, 48] {
            host.end(Signal::SIGKILL);
            edit(host, running.id, |record| moved(record, hours));
            edit(host, crashing.id, |record| moved(record, hours));
            host.start().await;
            let status = host.until_phase(running.id, Phase::Up).await;
            assert_eq!((status.restarts, status.failure), (0, None), "{hours} h");
            let restarts = host.status(crashing.id).await.unwrap().restarts;
            // A slow machine may have taken that long.
            assert!(restarts == 1 || Instant::now() > due, "restarted before its time, {hours} h");
        }
        // Due some 10 s after its end, by a clock that nobody moved.
        let status = host.until(crashing.id, |status| status.restarts == 2).await;
        assert_ne!(status.failure.map(|failure| failure.code), Some(FailureCode::CannotStart));
    });
}

#[test]
fn debris_of_every_kind_goes_and_what_runs_stays() {
    on_a_node(async |host| {
        let spec = web();
        host.want(std::slice::from_ref(&spec)).await;
        host.until_phase(spec.id, Phase::Up).await;
        let quiet = host.settled().await;
        let before = host.client.instance(spec.id).await.unwrap();
        for round in 0..3 {
            host.end(Signal::SIGKILL);
            let id = || InstanceId::new().to_string();
            let state = host.state_dir();
            // Directories with a torn record, none, or a file where a directory should be.
            for record in [Some("{"), Some(""), None] {
                let dir = state.join("instances").join(id());
                fs::create_dir(&dir).unwrap();
                if let Some(text) = record {
                    fs::write(dir.join("record.json"), text).unwrap();
                }
                fs::write(dir.join("record.new"), "half").unwrap();
            }
            fs::write(state.join("disks").join(format!("{}.img", id())), vec![0; 4096]).unwrap();
            fs::write(state.join("disks").join(format!("{}.new", id())), "half").unwrap();
            // The same names for what an agent never makes: directories, a file, a pipe that nobody writes to.
            for directory in [format!("{}.img", id()), format!("{}.new", id())] {
                fs::create_dir_all(state.join("disks").join(directory).join("inside")).unwrap();
            }
            fs::write(state.join("instances").join(id()), "").unwrap();
            let pipe = state.join("instances").join(id());
            fs::create_dir(&pipe).unwrap();
            mkfifo(&pipe.join("record.json"), Mode::S_IRWXU).unwrap();
            fs::write(state.join("journal/epoch"), b"\xff").unwrap();
            // A cgroup with a process, one with children, and one in a v1 hierarchy only.
            let lost = host.cgroup_dir().join(id());
            fs::create_dir(&lost).unwrap();
            let mut stray = Command::new("sleep").arg("1000").spawn().unwrap();
            fs::write(lost.join("cgroup.procs"), stray.id().to_string()).unwrap();
            fs::create_dir_all(host.cgroup_dir().join(id()).join("a/b")).unwrap();
            if let Some(pids) = host.cgroup_of("pids") {
                fs::create_dir(pids.join(id())).unwrap();
            }
            // A link of the agent's group for an address of the pool, and an element nobody holds.
            let group = Command::new("ip").args(["-d", "-o", "link"]).output().unwrap().stdout;
            let text = String::from_utf8(group).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            let group =
                words.windows(2).filter(|two| two[0] == "group").map(|two| two[1]).find(|g| *g != "default");
            let name = format!("mg0a5b00{:02x}", 0xe0 + round);
            for arguments in [
                vec!["link", "add", &name, "type", "veth", "peer", "name", "stray0"],
                vec!["link", "set", &name, "group", group.unwrap()],
            ] {
                assert!(Command::new("ip").args(arguments).status().unwrap().success());
            }
            // A loop device over a disk of nobody's.
            let disk = state.join("disks").join(format!("{}.img", id()));
            fs::write(&disk, vec![0; 1 << 20]).unwrap();
            let attached = Command::new("losetup").args(["--find", "--show"]).arg(&disk).output().unwrap();
            let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
            assert!(Command::new("losetup").args(["--detach", &device]).status().unwrap().success());

            host.start().await;
            let deadline = Instant::now() + PATIENCE;
            loop {
                let left = quiet.more_in(&host.look());
                if left.is_empty() {
                    break;
                }
                assert!(Instant::now() < deadline, "left behind:\n{left}\n{}", host.log());
                pause().await;
            }
            stray.wait().unwrap();
            let after = host.client.instance(spec.id).await.unwrap();
            assert_eq!((after.pid, after.shim_pid), (before.pid, before.shim_pid), "round {round}");
            assert_eq!(host.get(after.status.endpoint.unwrap()), "hello\n");
        }
        host.until_phase(spec.id, Phase::Up).await;
    });
}

#[test]
fn an_agent_that_has_lost_its_files_stops_nothing_until_it_is_told_to() {
    on_a_node(async |host| {
        let (kept, dropped) = (web(), web());
        host.want(&[kept.clone(), dropped.clone()]).await;
        host.until_phase(kept.id, Phase::Up).await;
        host.until_phase(dropped.id, Phase::Up).await;
        let before = host.client.instance(kept.id).await.unwrap();
        host.end(Signal::SIGKILL);

        fs::write(host.state_dir().join("desired.json"), "{").unwrap();
        host.spawn();
        let deadline = Instant::now() + PATIENCE;
        while host.agent_runs() {
            assert!(Instant::now() < deadline, "the agent goes by a set it cannot read");
            pause().await;
        }
        let log = host.log();
        assert!(log.contains("desired.json") && log.contains("move desired.json and desired.log"), "{log}");

        for name in ["desired.json", "desired.log"] {
            drop(fs::remove_file(host.state_dir().join(name)));
        }
        host.start().await;
        // Longer than a turn of the reconciler.
        for _ in 0..11 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for id in [kept.id, dropped.id] {
                assert_eq!(host.status(id).await.unwrap().phase, Phase::Up);
            }
        }
        host.want(std::slice::from_ref(&kept)).await;
        host.until_gone(dropped.id).await;
        let after = host.client.instance(kept.id).await.unwrap();
        assert_eq!((after.pid, after.status.restarts), (before.pid, 0));
    });
}

#[test]
fn an_agent_that_cannot_work_changes_nothing() {
    on_a_node(async |host| {
        let before = host.settled().await;
        let state = host.dir().join("other");
        let refused_with = |open_files: u32, socket: &Path, shim: &Path, pool: &str, more: &[&str]| {
            // One that is not refused ends as well.
            let agent = Command::new("timeout")
                .args(["20", "prlimit", &format!("--nofile={open_files}:{open_files}"), "--"])
                .arg(env!("CARGO_BIN_EXE_mogok-agent"))
                .args(["run", "--pool", pool, "--cgroup", "mogok-refused", "--cgroup-parent", "/"])
                .args(["--state-dir".as_ref(), state.as_os_str(), "--socket".as_ref(), socket.as_os_str()])
                .args(["--store".as_ref(), host.dir().join("store").as_os_str()])
                .args(["--shim".as_ref(), shim.as_os_str()])
                .args(more)
                .output()
                .unwrap();
            assert!(!agent.status.success());
            String::from_utf8(agent.stderr).unwrap()
        };
        let refused = |socket: &Path, shim: &Path, pool: &str, more: &[&str]| {
            refused_with(4096, socket, shim, pool, more)
        };
        let file = host.dir().join("file");
        fs::write(&file, "precious").unwrap();
        for (socket, why) in [
            (host.dir().join("agent.sock"), "another agent serves"),
            (file.clone(), "is no socket"),
            (host.dir().join("nowhere/agent.sock"), "cannot bind"),
        ] {
            let told = refused(&socket, &host.shim, "10.92.0.0/24", &[]);
            assert!(told.contains(why), "{told}");
        }
        let free = host.dir().join("other.sock");
        let told = refused_with(1000, &free, &host.shim, "10.92.0.0/24", &[]);
        assert!(told.contains("limit of open files is 1000"), "{told}");
        let lock = state.join("lock");
        fs::remove_file(&lock).unwrap();
        mkfifo(&lock, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let told = refused(&free, &host.shim, "10.92.0.0/24", &[]);
        assert!(told.contains("cannot open") && told.contains("/lock"), "{told}");
        fs::remove_file(&lock).unwrap();
        let told = refused(&free, Path::new("/nope"), "10.92.0.0/24", &[]);
        assert!(told.contains("/nope"), "{told}");
        let told = refused(&free, &host.shim, "10.92.0.0/24", &["--resolver", "127.0.0.1"]);
        assert!(told.contains("DNS resolver 127.0.0.1"), "{told}");
        // The first agent's pool, one that holds it, and one that the host is in itself.
        let lan = [
            ["link", "add", "lan0", "type", "veth", "peer", "name", "lan1"].as_slice(),
            &["addr", "add", "10.94.0.2/24", "dev", "lan0"],
            &["link", "set", "lan0", "up"],
        ];
        for arguments in lan {
            assert!(Command::new("ip").args(arguments).status().unwrap().success());
        }
        for pool in ["10.91.0.0/24", "10.91.0.0/16", "10.94.0.0/24", "10.94.0.64/26"] {
            let told = refused(&free, &host.shim, pool, &[]);
            assert!(told.contains("is in it: give --pool another network"), "{pool}: {told}");
        }
        assert!(Command::new("ip").args(["link", "del", "lan0"]).status().unwrap().success());
        assert_eq!(fs::read_to_string(file).unwrap(), "precious");
        let left: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
        let tables = Command::new("nft").args(["list", "tables"]).output().unwrap().stdout;
        assert!(!String::from_utf8(tables).unwrap().contains("mogok_refused"));
        assert!(!host.cgroup_dir().with_file_name("mogok-refused").exists());
        assert_eq!(before.more_in(&host.settled().await), "");
    });
}

/// Over the state directory while no agent works there.
fn mount_small(dir: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=48m")).unwrap();
}

#[test]
fn a_full_disk_neither_lies_nor_keeps_from_what_makes_room() {
    on_a_node(async |host| {
        host.end(Signal::SIGTERM);
        let state = host.state_dir();
        mount_small(&state);
        host.start().await;
        let ending = InstanceSpec { restart: RestartPolicy::Never, ..instance("sleep 3; echo over; exit 7") };
        let staying = instance("exec sleep 1000");
        host.want(&[ending.clone(), staying.clone()]).await;
        host.until_phase(staying.id, Phase::Up).await;
        host.until_phase(ending.id, Phase::Up).await;
        let full = fs::File::create(state.join("fill")).and_then(|mut fill| {
            loop {
                std::io::Write::write_all(&mut fill, &[1; 4096])?;
            }
        });
        assert_eq!(full.map(|(): ()| ()).unwrap_err().kind(), std::io::ErrorKind::StorageFull);

        let ended = host.until_phase(ending.id, Phase::Exited).await;
        assert_eq!(ended.exit.and_then(|exit| exit.code), Some(7), "{}", host.log());
        // A new agent takes over what runs.
        let before = host.client.instance(staying.id).await.unwrap();
        host.end(Signal::SIGKILL);
        host.start().await;
        let after = host.client.instance(staying.id).await.unwrap();
        assert_eq!((after.pid, after.status.restarts), (before.pid, 0));
        // And what makes room is taken.
        host.want(&[]).await;
        host.until_gone(staying.id).await;
        host.until_gone(ending.id).await;
        host.end(Signal::SIGTERM);
        umount2(&state, MntFlags::MNT_DETACH).unwrap();
        host.start().await;
    });
}
