//! An agent and a shim that are replaced while containers run: a container keeps the shim that has started it,
//! of whatever version that is.

use std::fs;
use std::path::{Path, PathBuf};

use mogok_api::error::ErrorCode;
use mogok_api::instance::{InstanceSpec, Phase};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::exec::{refused, run, script};
use crate::host::{instance, on_a_node, web};

/// A real shim that speaks version 1 (feature `protocol-1`). `None`, said aloud, where it was not built.
fn old_shim() -> Option<PathBuf> {
    let shim = Path::new(env!("CARGO_BIN_EXE_mogok-agent")).with_file_name("protocol-1").join("mogok-shim");
    if !shim.is_file() {
        eprintln!("SKIP: there is no {}: run make build", shim.display());
        return None;
    }
    Some(shim)
}

/// Puts another program in the place of a file, as a package manager does.
fn install(program: &Path, at: &Path) {
    let beside = at.with_extension("new");
    fs::copy(program, &beside).unwrap();
    fs::rename(beside, at).unwrap();
}

#[test]
fn what_an_old_shim_has_started_goes_on_under_a_new_agent() {
    let Some(old) = old_shim() else { return };
    on_a_node(async move |host| {
        let new = host.shim.clone();
        host.shim = host.dir().join("mogok-shim");
        install(&old, &host.shim);
        host.end(Signal::SIGTERM);
        host.start().await;
        let web = web();
        let talker = instance("trap 'echo heard; exit 0' TERM; while true; do echo tick; sleep 0.1; done");
        host.want(&[web.clone(), talker.clone()]).await;
        let serving = host.until_phase(web.id, Phase::Up).await;
        host.until_phase(talker.id, Phase::Up).await;
        let before = host.client.instance(talker.id).await.unwrap();
        let told = host.state_dir().join("instances").join(talker.id.to_string()).join("started.json");
        let told = fs::read_to_string(told).unwrap();
        assert!(told.contains("\"version\":1") && !told.contains("oldest"), "no old shim: {told}");

        install(&new, &host.shim);
        host.end(Signal::SIGKILL);
        host.start().await;
        // Adopted, serving, heard.
        let after = host.client.instance(talker.id).await.unwrap();
        assert_eq!(
            (after.pid, after.shim_pid, after.status.restarts),
            (before.pid, before.shim_pid, 0),
            "started anew"
        );
        assert_eq!(host.get(serving.endpoint.unwrap()), "hello\n");
        let heard = host.lines(None, "tick").await;
        host.lines(heard.last().map(|record| record.cursor.as_str()), "tick").await;
        // Not joined.
        let (code, message) = refused(host, talker.id, &script("true")).await;
        assert!(
            code == ErrorCode::Conflict && message.contains("a shim that speaks version 1"),
            "{code:?} {message}"
        );
        // Beside what the new shim starts.
        let fresh = instance("exec sleep 1000");
        host.want(&[web.clone(), talker.clone(), fresh.clone()]).await;
        host.until_phase(fresh.id, Phase::Up).await;
        assert_eq!(run(host, fresh.id, "echo joined").await, "joined\n");

        // Its end is told, and what follows has the new shim.
        kill(Pid::from_raw(before.pid.unwrap()), Signal::SIGKILL).unwrap();
        host.until(talker.id, |status| status.restarts == 1 && status.phase == Phase::Up).await;
        assert_eq!(run(host, talker.id, "echo joined").await, "joined\n");
        // The other is stopped as ever.
        host.want(std::slice::from_ref(&talker)).await;
        host.until_gone(web.id).await;
        host.want(&[]).await;
        host.until_gone(talker.id).await;
    });
}

#[test]
fn an_old_shim_hands_sigterm_on_and_tells_how_it_ended() {
    let Some(old) = old_shim() else { return };
    on_a_node(async move |host| {
        let new = std::mem::replace(&mut host.shim, old);
        host.end(Signal::SIGTERM);
        host.start().await;
        let spec = instance("trap 'echo heard; exit 0' TERM; echo ready; while true; do sleep 0.1; done");
        host.want(std::slice::from_ref(&spec)).await;
        host.lines(None, "ready").await;
        host.shim = new;
        host.end(Signal::SIGTERM);
        host.start().await;
        host.want(&[]).await;
        let said = host.lines(None, "exited with status 0").await;
        assert!(said.iter().any(|record| record.line == "heard"), "{said:#?}");
        host.until_gone(spec.id).await;
    });
}

#[test]
fn a_shim_that_no_longer_understands_the_agent_keeps_its_container_and_can_be_stopped() {
    on_a_node(async |host| {
        let spec = InstanceSpec { stop_grace_s: 1, ..instance("while true; do echo tick; sleep 0.1; done") };
        host.want(std::slice::from_ref(&spec)).await;
        host.until_phase(spec.id, Phase::Up).await;
        let before = host.client.instance(spec.id).await.unwrap();
        host.end(Signal::SIGKILL);
        // As an agent finds it that was taken back by many versions.
        let file = host.state_dir().join("instances").join(spec.id.to_string()).join("started.json");
        let mut started: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        (started["version"], started["oldest"]) = (9.into(), 8.into());
        fs::write(&file, serde_json::to_vec(&started).unwrap()).unwrap();
        host.start().await;

        let after = host.client.instance(spec.id).await.unwrap();
        assert_eq!((after.pid, after.status.phase), (before.pid, Phase::Up));
        let heard = host.lines(None, "tick").await;
        host.lines(heard.last().map(|record| record.cursor.as_str()), "tick").await;
        let (code, message) = refused(host, spec.id, &script("true")).await;
        assert!(code == ErrorCode::Conflict && message.contains("versions 8 to 9"), "{code:?} {message}");
        host.want(&[]).await;
        host.until_gone(spec.id).await;
        assert!(host.log().contains("the shim speaks versions 8 to 9"), "{}", host.log());
    });
}
