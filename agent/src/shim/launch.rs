//! Spawning a shim: a new session with nothing of the agent's but the descriptors it is given, so
//! that neither the agent's death nor a signal to its group reaches it.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mogok_shim::protocol::{Report, StepFailed};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFlags};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

use super::spawner::Request;
use super::{Process, Spawner};
use crate::fail_point;

/// A report is one line; this is more than any.
const REPORT_LIMIT: u64 = 64 * 1024;
/// The descriptor the container's network namespace travels as.
const NETNS_FD: i32 = 3;

/// A container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{0}")]
    Step(StepFailed),
    #[error("cannot {operation} for the shim of {dir}", dir = dir.display())]
    Io { operation: &'static str, dir: PathBuf, source: io::Error },
    #[error("cannot execute {program}", program = program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("the shim said nothing within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the shim ended without a report, see {log}", log = log.display())]
    NoReport { log: PathBuf },
    #[error("the shim's report is not readable: {0:?}")]
    BadReport(String),
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoint::Injected),
}

/// What a shim that was spawned has yet to say.
#[derive(Debug)]
pub struct Pending {
    report: pipe::Receiver,
    dir: PathBuf,
}

/// Executes `program run --state-dir DIR [--netns-fd 3]` in a new session: stdin is `/dev/null`, stdout a
/// pipe that carries the report, stderr `DIR/shim.log`.
///
/// # Errors
/// When a descriptor or the process cannot be made; nothing runs then.
pub fn launch(
    spawner: &Spawner,
    program: &Path,
    dir: &Path,
    netns: Option<BorrowedFd<'_>>,
) -> Result<(Process, Pending), LaunchError> {
    let failed = |operation| {
        let dir = dir.to_owned();
        move |source: io::Error| LaunchError::Io { operation, dir, source }
    };
    let (reader, writer) = io::pipe().map_err(failed("make a pipe"))?;
    let report = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(failed("watch the pipe"))?;
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(failed("open /dev/null"))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.join("shim.log"))
        .map_err(failed("open shim.log"))?;

    let mut fds = vec![null.as_fd(), writer.as_fd(), log.as_fd()];
    fds.extend(netns);
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|source| spawn_error(program, source.into()));
    let mut arguments = vec![
        text(program.as_os_str().as_bytes())?,
        text(b"run")?,
        text(b"--state-dir")?,
        text(dir.as_os_str().as_bytes())?,
    ];
    if netns.is_some() {
        arguments.extend([text(b"--netns-fd")?, text(NETNS_FD.to_string().as_bytes())?]);
    }
    let path = text(b"PATH=/usr/sbin:/usr/bin:/sbin:/bin")?;
    #[cfg(not(feature = "failpoints"))]
    let environment = vec![path];
    #[cfg(feature = "failpoints")]
    let environment = vec![path, text(crate::failpoint::variable().as_bytes())?];
    let request = Request { program: program.to_owned(), arguments, environment };
    let pid = spawner.spawn(request, &fds).map_err(|errno| spawn_error(program, errno.into()))?;
    drop(writer);
    match identify(pid, dir) {
        Ok(process) => Ok((process, Pending { report, dir: dir.to_owned() })),
        Err(error) => {
            end_child(pid);
            Err(error)
        }
    }
}

/// Ends a child that was just spawned and must not go on without anybody who knows of it. Nobody has waited for
/// it, so the pid is its own.
pub(crate) fn end_child(pid: Pid) {
    if let Err(error) = kill(pid, Signal::SIGKILL).and_then(|()| waitpid(pid, None)) {
        tracing::error!(pid = pid.as_raw(), %error, "cannot end a process that was just spawned");
    }
}

/// The child `pid`, which nobody has waited for.
fn identify(pid: Pid, dir: &Path) -> Result<Process, LaunchError> {
    fail_point!(Spawned);
    let failed = |source| LaunchError::Io { operation: "open a pidfd", dir: dir.to_owned(), source };
    Process::open(pid.as_raw(), None)
        .map_err(failed)?
        .ok_or_else(|| LaunchError::NoReport { log: dir.join("shim.log") })
}

/// A session of its own, with default signal actions and none blocked.
pub(crate) fn fresh_session() -> nix::Result<PosixSpawnAttr> {
    let mut attributes = PosixSpawnAttr::init()?;
    // Rust ignores SIGPIPE and that would be inherited; the mask of this thread likewise.
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_sigmask(&SigSet::empty())?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::from_bits_retain(i32::from(libc::POSIX_SPAWN_SETSID)),
    )?;
    Ok(attributes)
}

fn spawn_error(program: &Path, source: io::Error) -> LaunchError {
    LaunchError::Spawn { program: program.to_owned(), source }
}

impl Pending {
    /// Waits for the shim's report, at most `deadline`.
    ///
    /// # Errors
    /// When a step of the set-up failed, or no report comes.
    pub async fn report(self, deadline: Duration) -> Result<mogok_shim::protocol::Started, LaunchError> {
        let Self { report, dir } = self;
        let mut line = String::new();
        let mut reader = BufReader::new(report.take(REPORT_LIMIT));
        let read = tokio::time::timeout(deadline, reader.read_line(&mut line)).await;
        match read {
            Err(_) => Err(LaunchError::Silent(deadline)),
            Ok(Err(source)) => Err(LaunchError::Io { operation: "read the report", dir, source }),
            Ok(Ok(0)) => Err(LaunchError::NoReport { log: dir.join("shim.log") }),
            Ok(Ok(_)) => match serde_json::from_str(&line) {
                Ok(Report::Started(started)) => Ok(started),
                Ok(Report::Failed(step)) => Err(LaunchError::Step(step)),
                Err(_) => Err(LaunchError::BadReport(line.chars().take(200).collect())),
            },
        }
    }
}
