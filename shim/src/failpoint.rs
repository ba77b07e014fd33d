//! Fail points: places where a test makes this process fail, wait or die. They are compiled in by the
//! feature `failpoints` alone, which release builds refuse.
//!
//! A process that passes one says its name to whoever listens on the socket `$MOGOK_FAILPOINTS` and waits
//! for one byte: [`FAIL`] makes the step fail, anything else and the end of the stream let it go on. So the
//! test knows what is passed, and in the time it holds an answer back it can kill whom it likes. Without a
//! listener nothing waits. Invariant: [`hit_in_child`] allocates nothing.

use std::env;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::unistd::read;

use crate::step::Step;
use crate::sys::{descriptor, pass};

#[cfg(not(debug_assertions))]
compile_error!("fail points are for tests: build without the feature `failpoints`, or in the dev profile");

/// The variable that names the socket.
pub const VARIABLE: &str = "MOGOK_FAILPOINTS";
/// The answer that makes a step fail, with [`ERROR`].
pub const FAIL: u8 = b'f';
/// What an injected failure looks like; no step of a start fails with this by itself.
pub const ERROR: Errno = Errno::ENOTRECOVERABLE;
/// Prefix of the names of a container's shim.
pub const SHIM: &str = "shim/";
/// Prefix of the names of a container's child between clone and exec.
pub const CHILD: &str = "child/";
/// Prefix of the names of the helper of an exec.
pub const HELPER: &str = "exec/";
/// Prefix of the names of what the helper clones, up to the program's exec.
pub const JOINER: &str = "joiner/";

/// The fail points of the two supervisions, beside one for each [`Step`].
pub const SUPERVISION: &[&str] = &[
    "shim/signal",
    "shim/program_ended",
    "shim/rest_killed",
    "shim/output_drained",
    "shim/exit_recorded",
    "shim/quit",
    "exec/reported",
    "exec/hung_up",
    "exec/program_ended",
    "exec/end_told",
];

/// Is this process the helper of an exec, or a copy of it?
static IS_HELPER: AtomicBool = AtomicBool::new(false);

/// The connection that the child inherits: after its steps it cannot reach the socket by name.
static LENT: OnceLock<UnixStream> = OnceLock::new();

/// From here on the points of this process are those of an exec.
pub(crate) fn be_helper() {
    IS_HELPER.store(true, Ordering::Relaxed);
}

/// Passes a fail point.
///
/// # Errors
/// [`ERROR`] when whoever listens wants the step to fail.
pub fn hit(point: &str) -> Result<(), Errno> {
    let Some(mut stream) = connect() else { return Ok(()) };
    if stream.write_all(format!("{point}\n").as_bytes()).is_err() {
        return Ok(());
    }
    let mut answer = [0];
    match stream.read(&mut answer) {
        Ok(1) if answer[0] == FAIL => Err(ERROR),
        _ => Ok(()),
    }
}

/// Passes the fail point of a step that went well.
pub(crate) fn passed<T>(result: Result<T, Errno>, step: Step) -> Result<T, Errno> {
    let value = result?;
    let prefix = if IS_HELPER.load(Ordering::Relaxed) { HELPER } else { SHIM };
    hit(&format!("{prefix}{step}"))?;
    Ok(value)
}

/// Connects for the child that is cloned next.
pub(crate) fn lend() {
    if LENT.get().is_none()
        && let Some(stream) = connect()
    {
        // There is one thread, so nobody was faster.
        let _ = LENT.set(stream);
    }
}

/// What [`descriptor::keep_only`] does for the child, but for the connection.
pub(crate) fn keep_only(kept: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let Some(stream) = LENT.get() else { return descriptor::keep_only(kept) };
    let mut all = [stream.as_fd(); 8];
    all.get_mut(..kept.len()).ok_or(Errno::EINVAL)?.copy_from_slice(kept);
    descriptor::keep_only(all.get(..=kept.len()).ok_or(Errno::EINVAL)?)
}

/// Passes the fail point of a step of the child's.
pub(crate) fn hit_in_child(step: Step) -> Result<(), Errno> {
    let Some(stream) = LENT.get() else { return Ok(()) };
    let mut line = [b'\n'; 64];
    let prefix = if IS_HELPER.load(Ordering::Relaxed) { JOINER } else { CHILD };
    let words = prefix.bytes().chain(step.name().bytes());
    let length = 1 + line[..63].iter_mut().zip(words).map(|(place, byte)| *place = byte).count();
    let mut answer = [0];
    // The listener may have hung up, and the child may have SIGPIPE's default again.
    match pass::send(stream, &line[..length], &[]).and_then(|_| read(stream, &mut answer)) {
        Ok(1) if answer[0] == FAIL => Err(ERROR),
        _ => Ok(()),
    }
}

fn connect() -> Option<UnixStream> {
    UnixStream::connect(env::var_os(VARIABLE)?).ok()
}
