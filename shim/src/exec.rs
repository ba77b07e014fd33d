//! `mogok-shim exec --state-dir DIR`: joins one program into a running container and stays, outside of it,
//! until that has ended. The agent speaks [`crate::protocol::exec`] with it over standard input.
//!
//! Invariants: the program that runs here is a sealed copy; the agent gets one report; and the joined program
//! ends when the agent hangs up, when this process dies, or with the container.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use caps::Capability;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::dup2_stdin;

use crate::privilege;
use crate::protocol::StepFailed;
use crate::protocol::exec::{self, Exec, ExecReport};
use crate::protocol::frame::FrameError;
use crate::run::{RunError, SPEC_BYTES, parse_spec};
use crate::sandbox::{self, Joined, Streams, Target};
use crate::sealed::is_sealed;
use crate::spec::{Spec, file};
use crate::step::{At, SetupError, Step};
use crate::sys::clone::Child;
use crate::sys::descriptor;

mod supervise;

/// For every exchange with the agent, which sends its request at once and reads what it is sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Joins the program, reports, and stays to its end.
///
/// # Errors
/// When a step fails, which is also reported; or when its end cannot be waited for.
pub fn run(state_dir: &Path) -> Result<(), RunError> {
    #[cfg(feature = "failpoints")]
    crate::failpoint::be_helper();
    let socket = take_socket().map_err(RunError::Start)?;
    let failed = |error: SetupError| {
        let report = StepFailed {
            step: error.step.name().to_owned(),
            errno: error.source as i32,
            detail: error.detail.clone(),
        };
        // An agent that is gone needs no report.
        drop(exec::send(&socket, &ExecReport::Failed(report), &[]));
        RunError::Start(error)
    };
    let joined = start(state_dir, &socket).map_err(failed)?;
    let program = report(&socket, joined).map_err(RunError::Supervise)?;
    supervise::run(socket, &program).map_err(RunError::Supervise)
}

/// Standard input is the agent's socket; nothing else of the agent's is kept open.
fn take_socket() -> Result<UnixStream, SetupError> {
    let step = Step::Descriptors;
    descriptor::keep_only(&[]).at(step, "close_range")?;
    let socket: UnixStream = io::stdin().as_fd().try_clone_to_owned().at(step, "socket")?.into();
    socket.set_read_timeout(Some(PATIENCE)).at(step, "the agent's socket")?;
    socket.set_write_timeout(Some(PATIENCE)).at(step, "the agent's socket")?;
    let null = File::open("/dev/null").at(step, "/dev/null")?;
    dup2_stdin(&null).at(step, "/dev/null")?;
    Ok(socket)
}

fn start(state_dir: &Path, socket: &UnixStream) -> Result<Joined, SetupError> {
    let own = File::open("/proc/self/exe").at(Step::Sealed, "/proc/self/exe")?;
    if !is_sealed(&own) {
        return Err(Errno::EPERM).at(Step::Sealed, "this program can be written to");
    }
    drop(own);
    // For ps on the host; the file that is executed has no name.
    prctl::set_name(c"mogok-exec").at(Step::Sealed, "name")?;
    privilege::settle()?;
    let received = exec::receive::<Exec>(socket);
    let detail = received.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let errno = |error| match error {
        FrameError::Io(error) => error.raw_os_error().map_or(Errno::EPIPE, Errno::from_raw),
        FrameError::TooLong(_) | FrameError::Json(_) => Errno::EINVAL,
    };
    let (request, fds) = received.map_err(errno).at(Step::Request, detail)?;
    let target = target(&request, fds)?;
    let spec = asked_for(read_spec(state_dir)?, request)?;
    sandbox::join(&spec, &target)
}

fn target(request: &Exec, mut fds: Vec<OwnedFd>) -> Result<Target, SetupError> {
    let wrong = || Err(Errno::EINVAL).at(Step::Request, "descriptors");
    if fds.is_empty() {
        return wrong();
    }
    let init = fds.remove(0);
    let streams = match (request.terminal, <[OwnedFd; 3]>::try_from(fds)) {
        (None, Ok(streams)) => Streams::Apart(streams),
        (Some(size), Err(fds)) if fds.is_empty() => Streams::Terminal(size),
        _ => return wrong(),
    };
    Ok(Target { init, streams })
}

fn read_spec(state_dir: &Path) -> Result<Spec, SetupError> {
    let path = state_dir.join(file::SPEC);
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
    let mut bytes = Vec::new();
    let read = file.and_then(|file| file.take(SPEC_BYTES + 1).read_to_end(&mut bytes));
    if read.at(Step::ReadSpec, path.display())? as u64 > SPEC_BYTES {
        return Err(Errno::EFBIG).at(Step::ReadSpec, path.display());
    }
    parse_spec(&bytes)
}

/// The container's spec with the program that was asked for, under the same rules.
///
/// # Errors
/// `EINVAL` when the request breaks one; the detail says which.
pub fn asked_for(mut spec: Spec, request: Exec) -> Result<Spec, SetupError> {
    let Exec { command, env, cwd, user, terminal: _ } = request;
    let name = |variable: &str| variable.split_once('=').map(|(name, _)| name.to_owned());
    let names: Vec<_> = env.iter().map(|variable| name(variable)).collect();
    if names.iter().any(|name| name.as_ref().is_none_or(String::is_empty)) {
        return Err(Errno::EINVAL).at(Step::Request, "env: not NAME=value");
    }
    spec.env.retain(|variable| !names.contains(&name(variable)));
    spec.env.extend(env);
    spec.command = command;
    spec.cwd = cwd.unwrap_or(spec.cwd);
    (spec.uid, spec.gid) = user.unwrap_or((spec.uid, spec.gid));
    spec.check().map_err(|error| SetupError {
        step: Step::Request,
        detail: error.to_string(),
        source: Errno::EINVAL,
    })?;
    Ok(spec)
}

/// Hands the agent the program's pidfd, and its terminal, which is then the agent's alone: when the agent dies
/// the kernel hangs it up.
fn report(socket: &UnixStream, joined: Joined) -> io::Result<Child> {
    let Joined { program, terminal } = joined;
    let mut fds = vec![program.pidfd.as_fd()];
    fds.extend(terminal.iter().map(AsFd::as_fd));
    // When it has hung up, supervision ends the program.
    drop(exec::send(socket, &ExecReport::Started, &fds));
    fail_point!("exec/reported");
    privilege::keep(&[Capability::CAP_KILL]).map_err(io::Error::other)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Log, Writable};

    fn spec() -> Spec {
        Spec {
            id: "id".into(),
            hostname: "host".into(),
            layers: vec!["/layer".into()],
            writable: Writable::Tmpfs { bytes: 1 << 20, inodes: 64 },
            binds: vec![],
            files: vec![],
            id_base: 1 << 24,
            uid: 1000,
            gid: 1000,
            cgroup: "/cgroup".into(),
            cgroups_v1: vec![],
            disk_limits: vec![],
            command: vec!["/bin/app".into()],
            env: vec!["A=1".into(), "B=2".into()],
            cwd: "/app".into(),
            open_files: 64,
            file_bytes: None,
            tmp_bytes: 1 << 20,
            log: Log { file_bytes: 1 << 20, files: 2, rate_bytes: 1 << 20 },
        }
    }

    fn request() -> Exec {
        Exec { command: vec!["/bin/sh".into()], env: vec![], cwd: None, user: None, terminal: None }
    }

    #[test]
    fn what_was_asked_for_goes_over_what_the_app_has() {
        let asked = Exec { env: vec!["B=3=".into(), "C=".into()], user: Some((7, 8)), ..request() };
        let merged = asked_for(spec(), asked).unwrap();
        assert_eq!(merged.env, ["A=1", "B=3=", "C="]);
        assert_eq!((merged.uid, merged.gid, merged.cwd.as_str()), (7, 8, "/app"));
        assert_eq!(merged.command, ["/bin/sh"]);
    }

    #[test]
    fn garbage_is_refused_and_never_root() {
        let ids = [(0, 1000), (1000, 0), (65_536, 1000), (1000, u32::MAX), (u32::MAX, u32::MAX)];
        for user in ids {
            let error = asked_for(spec(), Exec { user: Some(user), ..request() }).unwrap_err();
            assert_eq!(error.step, Step::Request, "{user:?}");
        }
        for env in ["A", "=1", ""] {
            assert!(asked_for(spec(), Exec { env: vec![env.into()], ..request() }).is_err(), "{env:?}");
        }
        for command in [vec![], vec!["sh".into()], vec!["/bin/sh".into(), "a\0b".into()]] {
            assert!(
                asked_for(spec(), Exec { command: command.clone(), ..request() }).is_err(),
                "{command:?}"
            );
        }
        assert!(asked_for(spec(), Exec { cwd: Some("app".into()), ..request() }).is_err());
    }
}
