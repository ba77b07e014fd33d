//! The operator's hold on a running container, through the API and the command: freeze, thaw, reclaim.

use std::process::Command;
use std::time::{Duration, Instant};

use mogok_api::agent::client::ClientError;
use mogok_api::agent::{CgroupMode, ReclaimRequest};
use mogok_api::error::ErrorCode;
use mogok_api::id::InstanceId;
use mogok_api::instance::Phase;
use nix::sys::signal::Signal;

use crate::exec::{refused, run, script};
use crate::host::{Host, PATIENCE, instance, on_a_node, pause};

/// The refusal of a request.
fn reason<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (ErrorCode, String) {
    match answer {
        Err(ClientError::Refused { source, .. }) => (source.code, source.message),
        other => panic!("{other:?}"),
    }
}

async fn cpu_usec(host: &Host, id: InstanceId) -> u64 {
    host.client.instance(id).await.unwrap().usage.unwrap().cpu_usec
}

/// Standing still is a matter of time; a program that loops would use most of it.
async fn stands_still(host: &Host, id: InstanceId) -> bool {
    let before = cpu_usec(host, id).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    cpu_usec(host, id).await == before
}

#[test]
fn a_frozen_container_stands_still_over_agents_and_goes_on_when_it_is_thawed() {
    on_a_node(async |host| {
        let spec = instance("trap 'echo heard; exit 0' TERM; echo ready; while :; do :; done");
        host.want(std::slice::from_ref(&spec)).await;
        host.until_phase(spec.id, Phase::Up).await;
        host.lines(None, "ready").await;
        assert!(!stands_still(host, spec.id).await);
        for _ in 0..2 {
            host.client.freeze(spec.id).await.unwrap();
        }
        assert!(stands_still(host, spec.id).await);
        let detail = host.client.instance(spec.id).await.unwrap();
        assert!(detail.frozen && detail.status.phase == Phase::Up, "{detail:?}");
        let (code, message) = refused(host, spec.id, &script("true")).await;
        assert!(code == ErrorCode::Conflict && message.contains("is frozen: thaw it first"), "{message}");

        host.end(Signal::SIGKILL);
        host.start().await;
        let detail = host.client.instance(spec.id).await.unwrap();
        assert!(detail.frozen && detail.status.restarts == 0 && stands_still(host, spec.id).await);
        for _ in 0..2 {
            host.client.thaw(spec.id).await.unwrap();
        }
        assert!(!stands_still(host, spec.id).await);
        assert_eq!(run(host, spec.id, "echo joined").await, "joined\n");

        // Frozen again and not wanted any more: it still hears SIGTERM.
        host.client.freeze(spec.id).await.unwrap();
        host.want(&[]).await;
        let said = host.lines(None, "exited with status 0").await;
        for words in ["frozen by the operator", "thawed by the operator", "heard"] {
            assert!(said.iter().any(|record| record.line == words), "{words}: {said:#?}");
        }
        host.until_gone(spec.id).await;
    });
}

#[test]
fn what_cannot_be_held_is_refused_by_its_reason() {
    on_a_node(async |host| {
        let nobody = InstanceId::new();
        assert_eq!(reason(host.client.freeze(nobody).await).0, ErrorCode::NotFound);
        assert_eq!(reason(host.client.thaw(nobody).await).0, ErrorCode::NotFound);
        let little = ReclaimRequest { bytes: 1 };
        assert_eq!(reason(host.client.reclaim(nobody, little).await).0, ErrorCode::NotFound);

        let crashed = instance("exit 1");
        // Listens never, so it does not come up.
        let booting = mogok_api::instance::InstanceSpec { listens: true, ..instance("exec sleep 1000") };
        host.want(&[crashed.clone(), booting.clone()]).await;
        host.until(crashed.id, |status| status.phase == Phase::Crashed && status.restarts == 1).await;
        host.until_phase(booting.id, Phase::Starting).await;
        for (id, words) in [(crashed.id, "is not running"), (booting.id, "has not")] {
            let (code, message) = reason(host.client.freeze(id).await);
            assert!(code == ErrorCode::Conflict && message.contains(words), "{code:?} {message}");
        }
        assert_eq!(reason(host.client.reclaim(crashed.id, little).await).0, ErrorCode::Conflict);
    });
}

#[test]
fn memory_is_taken_back_where_the_host_can_and_else_the_reason_is_told() {
    on_a_node(async |host| {
        let spec = instance("head -c 8000000 /dev/zero > /app/file; echo written; exec sleep 1000");
        host.want(std::slice::from_ref(&spec)).await;
        host.lines(None, "written").await;
        let request = ReclaimRequest { bytes: 6 << 20 };
        if host.client.node().await.unwrap().cgroup_mode == CgroupMode::Hybrid {
            let (code, message) = reason(host.client.reclaim(spec.id, request).await);
            assert!(
                code == ErrorCode::Conflict && message.contains("cannot reclaim on demand"),
                "{code:?} {message}"
            );
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        // Dirty pages have to be written first.
        loop {
            let reclaimed = host.client.reclaim(spec.id, request).await.unwrap();
            if reclaimed.memory_bytes < 4 << 20 {
                break;
            }
            assert!(Instant::now() < deadline, "{reclaimed:?}");
            pause().await;
        }
        assert_eq!(host.status(spec.id).await.unwrap().restarts, 0);
    });
}

#[test]
fn the_commands_do_the_same() {
    on_a_node(async |host| {
        let spec = instance("while :; do :; done");
        host.want(std::slice::from_ref(&spec)).await;
        host.until_phase(spec.id, Phase::Up).await;
        let id = spec.id.to_string();
        let run = |arguments: &[&str]| {
            let output = Command::new(env!("CARGO_BIN_EXE_mogok-agent"))
                .args(arguments)
                .env("MOGOK_AGENT_SOCKET", host.dir().join("agent.sock"))
                .output()
                .unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        assert_eq!(run(&["freeze", &id]), (Some(0), String::new(), String::new()));
        assert!(host.client.instance(spec.id).await.unwrap().frozen);
        assert_eq!(run(&["thaw", &id]), (Some(0), String::new(), String::new()));
        assert!(!host.client.instance(spec.id).await.unwrap().frozen);
        let (status, out, err) = run(&["reclaim", &id, "4096"]);
        match host.client.node().await.unwrap().cgroup_mode {
            CgroupMode::Hybrid => {
                assert!(status == Some(1) && err.contains("cannot reclaim on demand"), "{err}")
            }
            CgroupMode::Unified => assert!(status == Some(0) && out.contains("it uses "), "{out}{err}"),
        }
        let (status, _, err) = run(&["freeze", &InstanceId::new().to_string()]);
        assert!(status == Some(1) && err.contains("is not on this node"), "{err}");
    });
}
