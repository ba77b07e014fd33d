//! The column of programs that join a running container through the shim's sealed helper, while the
//! tenant lies in wait for that helper.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mogok_api::agent::InstanceDetail;
use mogok_api::instance::{ContainerKind, InstanceSpec, Phase};
use mogok_shim::protocol::exec::{self, Exec, ExecEnd, ExecReport};
use mogok_shim::sealed::Sealed;
use mogok_shim::sys::pidfd;

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
    let sealed = Sealed::copy_of(&bin_dir().join("mogok-shim"))?;
    let mut app = node.spec(ContainerKind::App, &[PROBE, "wait"]);
    app.env.extend(env.iter().cloned());
    let detail = up(node, &app)?;
    let printed = join(&detail, &sealed, &request(&[PROBE, "run"]))?;
    let Joined::Ended { output, .. } = printed else {
        anyhow::bail!("nothing can be executed: {printed:?}");
    };
    let mut findings = parse(output.lines())?;

    let directory = Exec { cwd: Some("/proc/self/fd/0".to_owned()), ..request(&[PROBE, "euid"]) };
    findings.push(refused(
        LEAKED,
        "working_directory_through_a_descriptor",
        join(&detail, &sealed, &directory)?,
    ));
    for (check, user) in [("user_0", 0), ("user_beyond_the_range", 1 << 20), ("user_minus_one", u32::MAX)] {
        let exec = Exec { user: Some((user, user)), ..request(&[PROBE, "euid"]) };
        findings.push(refused(USER, check, join(&detail, &sealed, &exec)?));
    }
    let before = std::fs::read(bin_dir().join("mogok-shim"))?;
    let attack = join(&detail, &sealed, &request(&["/bin/attack"]))?;
    let same =
        std::fs::read(bin_dir().join("mogok-shim"))? == before && std::fs::read(sealed.path())? == before;
    findings.push(Finding::new(RUNTIME, "interpreter_is_the_runtime", Some(same), format!("{attack:?}")));
    node.remove(app.id)?;
    findings.push(watched(node, &sealed)?);
    Ok(findings)
}

fn up(node: &mut Node, spec: &InstanceSpec) -> Result<InstanceDetail> {
    node.add(spec)?;
    node.until(spec.id, |status| status.phase == Phase::Up)?;
    node.detail(spec.id)
}

/// The tenant looks at every new process as fast as it can.
fn watched(node: &mut Node, sealed: &Sealed) -> Result<Finding> {
    let spec = node.spec(ContainerKind::App, &[PROBE, "watch"]);
    let detail = up(node, &spec)?;
    let begin = Instant::now();
    while begin.elapsed() < PASSING {
        // A program that is there for a while, so that it can be told from the helper before it.
        let passed = join(&detail, sealed, &request(&["/bin/sleep", "0.1"]))?;
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

fn request(command: &[&str]) -> Exec {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    Exec { command, env: vec![], cwd: None, user: None, terminal: None }
}

#[derive(Debug)]
enum Joined {
    Refused { step: String, errno: i32 },
    Ended { end: ExecEnd, output: String },
}

fn refused(threat: &str, check: &str, joined: Joined) -> Finding {
    match joined {
        Joined::Refused { step, errno } => {
            let answer = format!("{step}: {:?}", nix::errno::Errno::from_raw(errno));
            Finding::new(threat, check, Some(true), answer)
        }
        Joined::Ended { end, output } => {
            Finding::new(threat, check, Some(false), format!("{end:?} {}", output.trim()))
        }
    }
}

/// Runs one program in the container, as the agent would.
fn join(container: &InstanceDetail, sealed: &Sealed, request: &Exec) -> Result<Joined> {
    let (socket, theirs) = UnixStream::pair()?;
    let mut helper = Command::new(sealed.path())
        .args(["exec", "--state-dir", &container.state_dir])
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let init = pidfd::open(container.pid.context("the container does not run")?)?;
    let (stdout, to_stdout) = std::io::pipe()?;
    let null = File::open("/dev/null")?;
    exec::send(&socket, request, &[init.as_fd(), null.as_fd(), to_stdout.as_fd(), to_stdout.as_fd()])?;
    drop(to_stdout);
    socket.set_read_timeout(Some(PATIENCE))?;
    let (report, _program) = exec::receive(&socket)?;
    let joined = match report {
        ExecReport::Failed(failed) => Joined::Refused { step: failed.step, errno: failed.errno },
        ExecReport::Started => {
            let mut output = String::new();
            File::from(OwnedFd::from(stdout)).read_to_string(&mut output)?;
            Joined::Ended { end: exec::receive(&socket)?.0, output }
        }
    };
    helper.wait()?;
    Ok(joined)
}
