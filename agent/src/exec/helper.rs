//! Spawning `mogok-shim exec` and talking to it until its program runs.
//!
//! Invariant: the helper gets one socket and nothing else of the agent's; a failed start leaves no process.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use mogok_api::agent::exec::ExecRequest;
use mogok_shim::protocol::exec::{self, Exec, ExecReport, Size};
use mogok_shim::protocol::frame::FrameError;
use mogok_shim::sealed::Sealed;
use nix::spawn::{PosixSpawnFileActions, posix_spawn};
use nix::unistd::Pid;

use super::ExecError;
use crate::fail_point;
use crate::shim::{Process, end_child, fresh_session};

/// For the helper's report; its own bounds are shorter.
const PATIENCE: Duration = Duration::from_secs(25);

/// A helper whose program runs.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) process: Process,
    pub(super) socket: UnixStream,
    /// pidfd of the program.
    pub(super) program: OwnedFd,
    pub(super) ends: Ends,
}

/// Our ends of the program's streams.
#[derive(Debug)]
pub(super) enum Ends {
    Apart { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    Terminal(OwnedFd),
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> ExecError {
    move |source| ExecError::Io { operation, source }
}

/// Starts a helper and its program. Blocks, within a runtime.
pub(super) fn start(
    program: &Sealed,
    dir: &Path,
    init: BorrowedFd<'_>,
    request: &ExecRequest,
) -> Result<Started, ExecError> {
    let (socket, theirs) = UnixStream::pair().map_err(failed("make a socket"))?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(failed("set the socket up"))?;
    socket.set_write_timeout(Some(PATIENCE)).map_err(failed("set the socket up"))?;
    let pid = spawn(program, dir, theirs.as_fd()).map_err(failed("spawn the helper"))?;
    drop(theirs);
    let process = identify(pid).inspect_err(|_| end_child(pid))?;
    match talk(&socket, init, request) {
        Ok((program, ends)) => Ok(Started { process, socket, program, ends }),
        Err(error) => {
            // With it the program, if one was made.
            drop(process.kill());
            tokio::spawn(async move { process.ended().await });
            Err(error)
        }
    }
}

fn spawn(program: &Sealed, dir: &Path, socket: BorrowedFd<'_>) -> io::Result<Pid> {
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    let log = OpenOptions::new().create(true).append(true).open(dir.join("shim.log"))?;
    let mut files = PosixSpawnFileActions::init()?;
    // Three descriptors of ours are open, so none of these has the number of one before it.
    files.add_dup2(socket.as_raw_fd(), 0)?;
    files.add_dup2(null.as_raw_fd(), 1)?;
    files.add_dup2(log.as_raw_fd(), 2)?;
    let arguments = [
        c"mogok-shim".into(),
        c"exec".into(),
        c"--state-dir".into(),
        CString::new(dir.as_os_str().as_bytes())?,
    ];
    let path: CString = c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".into();
    #[cfg(not(feature = "failpoints"))]
    let environment = [path];
    #[cfg(feature = "failpoints")]
    let environment = [path, CString::new(crate::failpoint::variable())?];
    Ok(posix_spawn(&program.path(), &files, &fresh_session()?, &arguments, &environment)?)
}

/// The child `pid`, which nobody has waited for.
fn identify(pid: Pid) -> Result<Process, ExecError> {
    fail_point!(ExecSpawned);
    let process = Process::open(pid.as_raw(), None).map_err(failed("open a pidfd"))?;
    process.ok_or_else(|| failed("find the helper")(io::ErrorKind::NotFound.into()))
}

fn talk(
    socket: &UnixStream,
    init: BorrowedFd<'_>,
    request: &ExecRequest,
) -> Result<(OwnedFd, Ends), ExecError> {
    let asked = Exec {
        command: request.command.clone(),
        env: request.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: request.cwd.clone(),
        user: request.user.map(|user| (user.uid, user.gid)),
        terminal: request.terminal.map(|size| Size { rows: size.rows, columns: size.columns }),
    };
    let ends = if request.terminal.is_some() {
        exec::send(socket, &asked, &[init]).map_err(ExecError::Helper)?;
        None
    } else {
        let pipe = || io::pipe().map_err(failed("make a pipe"));
        let (stdin, stdout, stderr) = (pipe()?, pipe()?, pipe()?);
        let fds = [init, stdin.0.as_fd(), stdout.1.as_fd(), stderr.1.as_fd()];
        exec::send(socket, &asked, &fds).map_err(ExecError::Helper)?;
        Some(Ends::Apart { stdin: stdin.1.into(), stdout: stdout.0.into(), stderr: stderr.0.into() })
    };
    fail_point!(ExecAsked);
    let (report, fds) = exec::receive::<ExecReport>(socket).map_err(ExecError::Helper)?;
    fail_point!(ExecStarted);
    let mut fds = fds.into_iter();
    match (report, fds.next(), ends, fds.next()) {
        (ExecReport::Failed(failed), ..) => Err(ExecError::Step(failed)),
        (ExecReport::Started, Some(program), Some(ends), None) => Ok((program, ends)),
        (ExecReport::Started, Some(program), None, Some(master)) => Ok((program, Ends::Terminal(master))),
        (ExecReport::Started, ..) => {
            Err(ExecError::Helper(FrameError::Io(io::Error::other("not the descriptors of a start"))))
        }
    }
}
