//! The column of programs that join a running container as an operator's do, by the agent's API, while the
//! tenant lies in wait for the helper that joins them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mogok_api::agent::client::{ClientError, ExecEvent};
use mogok_api::agent::exec::{ExecExit, ExecRequest, ExecUser};
use mogok_api::id::InstanceId;
use mogok_api::instance::{ContainerKind, InstanceSpec, Phase};

use super::node::{Node, PATIENCE};
use super::{Finding, PROBE, parse};
use crate::platform::bin_dir;

const RUNTIME: &str = "overwrite of the runtime's executable";
const LEAKED: &str = "leaked descriptors, cwd";
const JOIN: &str = "setns, ptrace on others";
const USER: &str = "exec with a garbage user";
/// How long helpers pass by the tenant that waits for one, less than it waits.
const PASSING: Duration = Duration::from_secs(7);

pub(super) fn findings(node: &mut Node, env: &[(String, String)]) -> Result<Vec<Finding>> {
    let mut app = node.spec(ContainerKind::App, &[PROBE, "wait"]);
    app.env.extend(env.iter().cloned());
    up(node, &app)?;
    let printed = join(node, app.id, &request(&[PROBE, "run"]))?;
    let Joined::Ended { output, .. } = printed else {
        anyhow::bail!("nothing can be executed: {printed:?}");
    };
    let mut findings = parse(output.lines())?;

    let directory = ExecRequest { cwd: Some("/proc/self/fd/0".to_owned()), ..request(&[PROBE, "euid"]) };
    findings.push(refused(LEAKED, "working_directory_through_a_descriptor", join(node, app.id, &directory)?));
    for (check, id) in [("user_0", 0), ("user_beyond_the_range", 1 << 20), ("user_minus_one", u32::MAX)] {
        let exec = ExecRequest { user: Some(ExecUser { uid: id, gid: id }), ..request(&[PROBE, "euid"]) };
        findings.push(refused(USER, check, join(node, app.id, &exec)?));
    }
    let shim = bin_dir().join("mogok-shim");
    let before = fs::read(&shim)?;
    let attack = join(node, app.id, &request(&["/bin/attack"]))?;
    let same = fs::read(&shim)? == before && fs::read(sealed(node)?)? == before;
    findings.push(Finding::new(RUNTIME, "interpreter_is_the_runtime", Some(same), format!("{attack:?}")));
    node.remove(app.id)?;
    findings.push(watched(node)?);
    Ok(findings)
}

/// What helpers are executed from: the copy of the shim that the agent holds in memory.
fn sealed(node: &Node) -> Result<PathBuf> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", node.agent_pid()))?;
    let mut paths = descriptors.flatten().map(|entry| entry.path());
    let held =
        |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"));
    paths.find(held).context("the agent holds no sealed copy of the shim")
}

fn up(node: &mut Node, spec: &InstanceSpec) -> Result<()> {
    node.add(spec)?;
    node.until(spec.id, |status| status.phase == Phase::Up).map(drop)
}

/// The tenant looks at every new process as fast as it can.
fn watched(node: &mut Node) -> Result<Finding> {
    let spec = node.spec(ContainerKind::App, &[PROBE, "watch"]);
    up(node, &spec)?;
    let begin = Instant::now();
    while begin.elapsed() < PASSING {
        // A program that is there for a while, so that it can be told from the helper before it.
        let passed = join(node, spec.id, &request(&["/bin/sleep", "0.1"]))?;
        ensure!(matches!(passed, Joined::Ended { .. }), "{passed:?}");
    }
    let status = node.until(spec.id, |status| status.phase == Phase::Exited)?;
    node.remove(spec.id)?;
    let got: Vec<_> =
        status.last_lines.iter().filter(|line| line.starts_with("probe: got")).cloned().collect();
    let met = status.last_lines.iter().find_map(|line| line.strip_prefix("probe: met "));
    let met: usize = met.context("the watch did not come to its end")?.parse()?;
    ensure!(met > 0, "the watch met no helper");
    let answer = if got.is_empty() { "nothing of it was got".to_owned() } else { got.join("; ") };
    Ok(Finding::new(JOIN, "helper_is_out_of_reach_while_it_joins", Some(got.is_empty()), answer))
}

fn request(command: &[&str]) -> ExecRequest {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    ExecRequest { command, env: [].into(), cwd: None, user: None, terminal: None }
}

#[derive(Debug)]
enum Joined {
    /// By the agent, or by the step of the helper that it names.
    Refused(String),
    Ended {
        exit: ExecExit,
        output: String,
    },
}

fn refused(threat: &str, check: &str, joined: Joined) -> Finding {
    match joined {
        Joined::Refused(why) => Finding::new(threat, check, Some(true), why),
        Joined::Ended { exit, output } => {
            Finding::new(threat, check, Some(false), format!("{exit:?} {}", output.trim()))
        }
    }
}

/// Runs one program in the container.
fn join(node: &Node, id: InstanceId, request: &ExecRequest) -> Result<Joined> {
    let talk = async {
        let (sender, mut receiver) = match node.client.exec(id, request).await {
            Ok(wire) => wire,
            Err(ClientError::Refused { source, .. }) => return Ok(Joined::Refused(source.to_string())),
            Err(error) => return Err(error.into()),
        };
        sender.end_of_stdin().await?;
        let mut output = Vec::new();
        loop {
            match receiver.next().await? {
                ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => output.extend(bytes),
                ExecEvent::Exit(exit) => {
                    let output = String::from_utf8_lossy(&output).into_owned();
                    return Ok(Joined::Ended { exit, output });
                }
            }
        }
    };
    node.block_on(async { tokio::time::timeout(PATIENCE, talk).await.context("the program does not end")? })
}
