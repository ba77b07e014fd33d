//! The life of containers on the real kernel, with a real agent and real shims: starts, ends of every
//! kind, and an agent that dies at the worst of times.

use std::collections::BTreeSet;

use crate::exec;
use crate::host::{Host, PATIENCE, instance, on_a_node, pause, web};
use mogok_api::agent::{AgentEvent, CgroupMode, LogStream};
use mogok_api::app::{HealthCheck, IoLimits, Limits, RestartPolicy};
use mogok_api::id::InstanceId;
use mogok_api::instance::{
    BlobMount, ContainerKind, FailureCode, InstanceSpec, OutputFile, Phase, WarningCode,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Does the process run? One that waits for its parent to notice its end does not.
fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn once(script: &str) -> InstanceSpec {
    InstanceSpec {
        kind: ContainerKind::Build,
        release: None,
        restart: RestartPolicy::Never,
        ..instance(script)
    }
}

#[test]
fn a_web_instance_comes_up_answers_and_goes_without_a_trace() {
    on_a_node(async |host| {
        let spec = web();
        let mut events = host.client.events(None).await.unwrap();
        assert_eq!(host.want(std::slice::from_ref(&spec)).await.missing_blobs, []);
        let status = host.until_phase(spec.id, Phase::Up).await;
        assert_eq!(host.get(status.endpoint.unwrap()), "hello\n");

        let detail = host.client.instance(spec.id).await.unwrap();
        assert!(detail.usage.unwrap().pids > 0);
        let text = host.lines(None, "up").await;
        let said: Vec<_> = text.iter().map(|record| (record.stream, record.line.as_str())).collect();
        assert!(said.contains(&(LogStream::Platform, "started")), "{said:?}");
        assert!(said.contains(&(LogStream::Stdout, "serving")), "{said:?}");

        host.want(&[]).await;
        host.until_gone(spec.id).await;
        let mut phases = Vec::new();
        loop {
            match tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap() {
                AgentEvent::Changed { instance, .. } => phases.push(instance.phase),
                AgentEvent::Removed { id, .. } if id == spec.id => break,
                _ => {}
            }
        }
        phases.dedup();
        assert_eq!(phases, [Phase::Pending, Phase::Starting, Phase::Up, Phase::Stopping]);
        // Its last words are still there.
        let text = host.lines(text.last().map(|record| record.cursor.as_str()), "signal").await;
        assert!(text.iter().any(|record| record.line == "stopping"));
    });
}

#[test]
fn containers_outlive_their_agent_and_are_found_again() {
    on_a_node(async |host| {
        let (first, second) = (web(), instance("while true; do echo tick; sleep 0.1; done"));
        host.want(&[first.clone(), second.clone()]).await;
        let before = host.until_phase(first.id, Phase::Up).await;
        host.until_phase(second.id, Phase::Up).await;
        let pids = async |host: &Host| {
            let first = host.client.instance(first.id).await.unwrap();
            let second = host.client.instance(second.id).await.unwrap();
            (first.pid.unwrap(), first.shim_pid.unwrap(), second.pid.unwrap(), second.shim_pid.unwrap())
        };
        let then = pids(host).await;
        let read = host.lines(None, "tick").await;

        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            host.end(signal);
            // The network does without an agent too.
            assert_eq!(host.get(before.endpoint.unwrap()), "hello\n");
            host.start().await;
            let after = host.until_phase(first.id, Phase::Up).await;
            assert_eq!((after.endpoint, after.restarts, after.since), (before.endpoint, 0, before.since));
            assert_eq!(pids(host).await, then);
            assert_eq!(host.get(before.endpoint.unwrap()), "hello\n");
        }
        // A cursor of the dead agent's still means the same.
        let last = read.last().unwrap();
        let rest = host.lines(Some(&last.cursor), "tick").await;
        assert!(rest.iter().all(|record| record.cursor != last.cursor));
        // Lines of one container; those of two are in the order in which the agent has read them.
        assert!(rest.last().unwrap().at > last.at, "{last:#?} {rest:#?}\n{}", host.log());
        host.want(&[]).await;
        let all = host.lines(None, "stopping").await;
        let started = all.iter().filter(|record| record.line == "started").count();
        assert_eq!(started, 2, "started twice: {all:?}");
    });
}

#[test]
fn what_ended_while_no_agent_watched_is_known_and_started_once() {
    on_a_node(async |host| {
        let spec = instance("echo run $$; sleep 2; echo last words; exit 7");
        let build = once("sleep 1; exit 0");
        host.want(&[spec.clone(), build.clone()]).await;
        host.until_phase(spec.id, Phase::Up).await;
        host.until_phase(build.id, Phase::Up).await;
        let exit = host.state_dir().join("instances").join(spec.id.to_string()).join("exit.json");
        host.end(Signal::SIGKILL);
        let deadline = std::time::Instant::now() + PATIENCE;
        while !exit.exists() {
            assert!(std::time::Instant::now() < deadline);
            pause().await;
        }
        host.start().await;
        let status = host.until(spec.id, |status| status.restarts == 1 && status.phase == Phase::Up).await;
        assert_eq!(status.failure, None);
        let text = host.lines(None, "exited with status 7").await;
        assert!(text.iter().any(|record| record.line == "last words"));
        let status = host.until_phase(build.id, Phase::Exited).await;
        assert_eq!((status.exit.unwrap().code, status.restarts), (Some(0), 0));
    });
}

#[test]
fn what_a_container_uses_can_be_asked() {
    on_a_node(async |host| {
        let mut spec = web();
        let serve = spec.command.pop().unwrap();
        spec.command.push(format!("head -c 3000000 /dev/zero > /app/file; {serve}"));
        host.want(std::slice::from_ref(&spec)).await;
        let status = host.until_phase(spec.id, Phase::Up).await;
        assert_eq!(host.get(status.endpoint.unwrap()), "hello\n");
        let detail = host.client.instance(spec.id).await.unwrap();
        let usage = detail.usage.unwrap();
        assert!(usage.pids >= 2 && usage.cpu_usec > 0 && usage.memory.anon_bytes > 0, "{usage:?}");
        let disk = usage.disk.unwrap();
        // 16 MiB is all it may take.
        assert!((3_000_000..=16 << 20).contains(&disk.bytes) && disk.inodes >= 2, "{disk:?}");
        let network = usage.network.unwrap();
        // The request's handshake came in, the answer went out.
        assert!(network.received_packets >= 3 && network.sent_bytes > 6, "{network:?}");
        assert!(network.connections.is_some(), "{network:?}");
        let mut table = Vec::new();
        mogok_agent::inspect::ps(&host.client, false, &mut table).await.unwrap();
        let table = String::from_utf8(table).unwrap();
        assert!(table.contains(" MiB "), "{table}");
    });
}

#[test]
fn a_crashing_program_is_started_at_once_and_then_waits() {
    on_a_node(async |host| {
        let spec = instance("for n in 1 2 3; do echo line $n; done; exit 3");
        host.want(std::slice::from_ref(&spec)).await;
        let status =
            host.until(spec.id, |status| status.phase == Phase::Crashed && status.restarts == 1).await;
        assert_eq!(status.exit.unwrap().code, Some(3));
        assert_eq!(status.failure.unwrap().code, FailureCode::Crashed);
        assert_eq!(status.last_lines, ["line 1", "line 2", "line 3"]);
        let wait = (status.restart_at.unwrap() - status.since).num_seconds();
        assert!((8..=11).contains(&wait), "{wait}");
        // The wait goes on over a restart of the agent.
        host.end(Signal::SIGKILL);
        host.start().await;
        let again = host.until_phase(spec.id, Phase::Crashed).await;
        // Unless all this took a slow machine longer.
        let over = chrono::Utc::now() > status.restart_at.unwrap();
        assert!(over || (again.restart_at, again.restarts) == (status.restart_at, 1), "{again:?}");
        host.want(&[]).await;
        host.until_gone(spec.id).await;
    });
}

#[test]
fn the_agent_ends_what_breaks_a_rule() {
    on_a_node(async |host| {
        let limits = instance("").limits;
        let silent = InstanceSpec {
            listens: true,
            health: HealthCheck { path: None, boot_timeout_s: 1 },
            restart: RestartPolicy::Never,
            ..instance("sleep 60")
        };
        let endless = InstanceSpec { max_runtime_s: Some(1), ..once("sleep 60") };
        let hungry = InstanceSpec {
            limits: Limits { memory_bytes: 16 << 20, ..limits },
            ..once("sleep 60 & tail /dev/zero; sleep 60")
        };
        let unknown = InstanceSpec { image: "nothing".parse().unwrap(), ..once("true") };
        let strange = InstanceSpec { command: vec!["/bin/missing".into()], ..once("true") };
        host.want(&[silent.clone(), endless.clone(), hungry.clone(), unknown.clone(), strange.clone()]).await;
        for (spec, code) in [
            (silent, FailureCode::BootTimeout),
            (endless, FailureCode::RunTimeout),
            (hungry, FailureCode::Memory),
            (unknown, FailureCode::CannotStart),
            (strange, FailureCode::CannotStart),
        ] {
            let status = host.until_phase(spec.id, Phase::Exited).await;
            assert_eq!(status.failure.as_ref().map(|failure| failure.code), Some(code), "{status:?}");
            if code == FailureCode::Memory {
                assert!(status.exit.unwrap().out_of_memory);
            }
        }
    });
}

#[test]
fn a_build_that_is_stuck_at_its_process_limit_ends_and_an_app_is_warned() {
    on_a_node(async |host| {
        // Pid 1, the program, and no room for what it starts again and again.
        let bomb = r#"exec awk 'BEGIN { while (1) system("true") }'"#;
        let limits = Limits { pids: 2, cpu_millis: 100, ..instance("").limits };
        let build = InstanceSpec { limits: limits.clone(), max_runtime_s: Some(900), ..once(bomb) };
        let app = InstanceSpec { limits, ..instance(bomb) };
        host.want(&[build.clone(), app.clone()]).await;
        let mut events = host.client.events(None).await.unwrap();
        let status = host.until_phase(build.id, Phase::Exited).await;
        let failure = status.failure.unwrap();
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (FailureCode::Processes, "stuck at its limit of 2 processes and threads")
        );
        let warned = async {
            loop {
                if let AgentEvent::Warned { id, warning, .. } = events.next().await.unwrap().unwrap()
                    && (id, warning.code) == (app.id, WarningCode::Processes)
                {
                    return warning;
                }
            }
        };
        let warning = tokio::time::timeout(PATIENCE, warned).await.unwrap();
        for said in [&warning.message, "killed: processes, stuck at its limit of 2 processes and threads"] {
            host.lines(None, said).await;
        }
        assert_eq!(host.status(app.id).await.unwrap().phase, Phase::Up);
    });
}

#[test]
fn who_ignores_sigterm_is_killed_after_the_grace() {
    on_a_node(async |host| {
        let stubborn = InstanceSpec {
            stop_grace_s: 1,
            ..instance("trap '' TERM; echo set; while true; do sleep 1; done")
        };
        host.want(std::slice::from_ref(&stubborn)).await;
        host.lines(None, "set").await;
        host.want(&[]).await;
        host.until_gone(stubborn.id).await;
        host.lines(None, "(R12)").await;
    });
}

#[test]
fn a_build_gets_its_blobs_and_hands_over_its_output() {
    on_a_node(async |host| {
        let source = host.state_dir().join("../source");
        std::fs::write(&source, "the source").unwrap();
        let digest: mogok_api::name::Digest = {
            let sum = std::process::Command::new("sha256sum").arg(&source).output().unwrap().stdout;
            format!("sha256:{}", &String::from_utf8(sum).unwrap()[..64]).parse().unwrap()
        };
        let output = Some(OutputFile { path: "/output".into(), max_bytes: 1000 });
        let build = InstanceSpec {
            blobs: vec![BlobMount { digest: digest.clone(), path: "/source.tar".into() }],
            output: output.clone(),
            ..once("cat /source.tar > /output && echo built")
        };
        let large = InstanceSpec { output, ..once("head -c 5000 /dev/zero > /output") };
        let ack = host.want(&[build.clone(), large.clone()]).await;
        assert_eq!(ack.missing_blobs, std::slice::from_ref(&digest));
        host.until_phase(large.id, Phase::Exited).await;
        host.until_phase(build.id, Phase::Pending).await;
        host.client.put_blob(&digest, &source).await.unwrap();

        let status = host.until_phase(build.id, Phase::Exited).await;
        assert_eq!(status.failure, None, "{:?}", status.last_lines);
        assert_eq!(status.output.clone(), Some(digest), "a copy has the digest of its source");
        let fetched = host.state_dir().join("../fetched");
        host.client.get_blob(&status.output.unwrap(), &fetched, 1000).await.unwrap();
        assert_eq!(std::fs::read_to_string(fetched).unwrap(), "the source");
        let status = host.until_phase(large.id, Phase::Exited).await;
        assert_eq!(status.failure.unwrap().code, FailureCode::OutputTooLarge);
    });
}

#[test]
fn a_container_whose_shim_was_killed_is_not_started_beside_itself() {
    on_a_node(async |host| {
        let spec = instance("sleep 1000");
        host.want(std::slice::from_ref(&spec)).await;
        host.until_phase(spec.id, Phase::Up).await;
        for agent_lives in [true, false] {
            let detail = host.client.instance(spec.id).await.unwrap();
            if !agent_lives {
                host.end(Signal::SIGKILL);
            }
            kill(Pid::from_raw(detail.shim_pid.unwrap()), Signal::SIGKILL).unwrap();
            if !agent_lives {
                host.start().await;
            }
            host.until(spec.id, |status| {
                status.restarts > detail.status.restarts || status.restart_at.is_some()
            })
            .await;
            assert!(!runs(detail.pid.unwrap()), "it runs beside its successor");
            if agent_lives {
                host.until_phase(spec.id, Phase::Up).await;
            }
        }
    });
}

#[test]
fn debris_without_a_record_is_removed() {
    on_a_node(async |host| {
        let spec = instance("sleep 1000");
        host.want(std::slice::from_ref(&spec)).await;
        host.until_phase(spec.id, Phase::Up).await;
        let detail = host.client.instance(spec.id).await.unwrap();
        host.end(Signal::SIGKILL);
        // The record is torn, as after a power loss: the container cannot be known, so it is started afresh.
        let record = host.state_dir().join("instances").join(spec.id.to_string()).join("record.json");
        std::fs::write(record, b"{").unwrap();
        host.start().await;
        host.until_phase(spec.id, Phase::Up).await;
        let fresh = host.client.instance(spec.id).await.unwrap();
        assert_ne!(fresh.shim_pid, detail.shim_pid);
        let pids: BTreeSet<_> = [detail.pid, detail.shim_pid].into_iter().flatten().collect();
        for pid in pids {
            assert!(!runs(pid), "{pid} still runs");
        }
    });
}

#[test]
fn an_agent_that_is_killed_at_any_moment_converges() {
    on_a_node(async |host| {
        let mut old: Option<InstanceSpec> = None;
        for moment in (0..12).map(|n| std::time::Duration::from_millis(n * 25)) {
            let new = instance("echo begun; trap 'exit 0' TERM; while true; do sleep 0.05; done");
            // Starts one and stops one, and dies in the middle of both.
            host.want(std::slice::from_ref(&new)).await;
            tokio::time::sleep(moment).await;
            host.end(Signal::SIGKILL);
            host.start().await;
            host.until_phase(new.id, Phase::Up).await;
            if let Some(old) = old.replace(new.clone()) {
                host.until_gone(old.id).await;
            }
            // Once, whatever was found of the first attempt: an init, a shell and its sleep.
            let pids = host.processes(new.id);
            let detail = host.client.instance(new.id).await.unwrap();
            assert!(pids.contains(&detail.pid.unwrap()) && pids.len() <= 3, "after {moment:?}: {pids:?}");
            assert_eq!((detail.status.restarts, detail.status.failure), (0, None), "after {moment:?}");
            assert_eq!(host.containers(), [new.id.to_string()], "after {moment:?}");
        }
    });
}

#[test]
fn an_id_that_is_removed_and_wanted_anew_gets_its_new_spec() {
    on_a_node(async |host| {
        let first = instance("exec sleep 1000");
        host.want(std::slice::from_ref(&first)).await;
        host.until_phase(first.id, Phase::Up).await;
        // The agent may see the set between the two messages, or not: it comes to the same.
        for number in 0..5 {
            let next = InstanceSpec {
                id: first.id,
                stop_grace_s: 1,
                ..instance(&format!(
                    "trap 'exit 0' TERM; echo {number} > /tmp/number; while :; do sleep 0.1; done"
                ))
            };
            host.want(&[]).await;
            host.want(std::slice::from_ref(&next)).await;
            let deadline = std::time::Instant::now() + PATIENCE;
            loop {
                let request = exec::script("cat /tmp/number");
                if let Ok((_sender, mut receiver)) = host.client.exec(first.id, &request).await
                    && exec::rest(&mut receiver).await.0 == format!("{number}\n")
                {
                    break;
                }
                assert!(std::time::Instant::now() < deadline, "{number}\n{}", host.log());
                pause().await;
            }
        }
        // The same again is no other.
        let before = host.client.instance(first.id).await.unwrap().pid;
        host.end(Signal::SIGKILL);
        host.start().await;
        assert_eq!(host.client.instance(first.id).await.unwrap().pid, before);
    });
}

#[test]
fn writes_to_its_own_disk_are_held_back_or_the_limit_is_refused() {
    on_a_node(async |host| {
        let io = IoLimits { write_bytes: Some(1 << 20), ..IoLimits::default() };
        let spec =
            InstanceSpec { limits: Limits { io, ..instance("").limits }, ..instance("exec sleep 1000") };
        host.want(std::slice::from_ref(&spec)).await;
        if host.client.node().await.unwrap().cgroup_mode == CgroupMode::Hybrid {
            let status = host.until(spec.id, |status| status.failure.is_some()).await;
            let message = status.failure.unwrap().message;
            assert!(message.contains("io.max, so the limit cannot be enforced"), "{message}");
            return;
        }
        host.until_phase(spec.id, Phase::Up).await;
        let begun = std::time::Instant::now();
        exec::run(host, spec.id, "dd if=/dev/zero of=/app/file bs=64k count=48 oflag=direct 2>/dev/null")
            .await;
        let took = begun.elapsed();
        assert!(took > std::time::Duration::from_millis(2200), "3 MiB at 1 MiB/s took {took:?}");
    });
}

#[test]
fn a_record_under_another_name_runs_nothing() {
    on_a_node(async |host| {
        let spec = instance("exec sleep 1000");
        host.want(std::slice::from_ref(&spec)).await;
        let up = host.until_phase(spec.id, Phase::Up).await;
        host.end(Signal::SIGTERM);
        let refused = |cgroup: &str, pool: &str| {
            let agent = std::process::Command::new("timeout")
                .args(["20", env!("CARGO_BIN_EXE_mogok-agent"), "run", "--cgroup", cgroup, "--pool", pool])
                .args(["--cgroup-parent", "/", "--shim"])
                .arg(&host.shim)
                .args(["--state-dir".as_ref(), host.state_dir().as_os_str()])
                .args(["--socket".as_ref(), host.dir().join("other.sock").as_os_str()])
                .args(["--store".as_ref(), host.dir().join("store").as_os_str()])
                .output()
                .unwrap();
            String::from_utf8(agent.stderr).unwrap()
        };
        // Under another cgroup's name it would find nothing of what runs.
        let told = refused("mogok-elsewhere", "10.91.0.0/24");
        assert!(told.contains("are in another cgroup: start with --cgroup "), "{told}");
        // What runs has an address of the pool that there was.
        let own = host.cgroup_dir().file_name().unwrap().to_str().unwrap().to_owned();
        let told = refused(&own, "10.93.0.0/24");
        assert!(told.contains("1 containers run outside of --pool 10.93.0.0/24 and"), "{told}");
        assert!(told.contains("start with --pool 10.91.0.0/24 --port-range "), "{told}");
        let copy = InstanceId::new();
        let instances = host.state_dir().join("instances");
        std::fs::create_dir(instances.join(copy.to_string())).unwrap();
        let record = |id: InstanceId| instances.join(id.to_string()).join("record.json");
        std::fs::copy(record(spec.id), record(copy)).unwrap();
        host.start().await;
        host.until_gone(copy).await;
        assert!(!instances.join(copy.to_string()).exists());
        let after = host.client.instance(spec.id).await.unwrap().status;
        assert_eq!((after.phase, after.restarts), (up.phase, 0));
    });
}
