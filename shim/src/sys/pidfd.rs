//! Process descriptors (pidfd_open(2), pidfd_send_signal(2)): a process named for good, not by a
//! number that may be another's tomorrow.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::signal::queued;

/// A descriptor of the process `pid`, readable (`POLLIN`) once it has ended, close-on-exec.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two integers and touches no memory (pidfd_open(2)).
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel made this descriptor for us, so nobody else owns it; it fits an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal, as kill(2) does; 0 only asks whether the process is there.
///
/// # Errors
/// `ESRCH` when it has been waited for, `EPERM`, `EINVAL`.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed and means that of kill(2) (pidfd_send_signal(2)).
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    Errno::result(sent).map(drop)
}

/// Sends a signal that carries a number, as sigqueue(3) does.
///
/// # Errors
/// `ESRCH`, `EPERM`, `EINVAL`, `EAGAIN` when too many are queued.
pub fn queue_signal(pidfd: impl AsFd, signal: i32, value: i32) -> Result<(), Errno> {
    let info = queued(signal, value);
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: `info` lives through the call and is a whole siginfo_t, which is what the kernel reads.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, &raw const info, 0) };
    Errno::result(sent).map(drop)
}

/// Moves the caller into those namespaces of the process that `namespaces` names, all or none; of a PID
/// namespace only its children (setns(2), with a pidfd from Linux 5.8 on).
///
/// # Errors
/// `ESRCH` when the process has ended, `EINVAL`, `EPERM`.
pub fn join(pidfd: impl AsFd, namespaces: CloneFlags) -> Result<(), Errno> {
    // SAFETY: integers only; the caller's view of files and ids changes, its memory does not.
    Errno::result(unsafe { libc::setns(pidfd.as_fd().as_raw_fd(), namespaces.bits()) }).map(drop)
}

/// Takes the exit status of a child that has ended; `None` while it runs.
///
/// # Errors
/// `ECHILD` when it is no child of ours or was waited for before.
pub fn try_wait(pidfd: impl AsFd) -> Result<Option<Ended>, Errno> {
    wait(libc::P_PIDFD, pidfd.as_fd().as_raw_fd() as libc::id_t)
}

/// Takes the exit status of any child that has ended; `None` while all of them run.
///
/// # Errors
/// `ECHILD` when there is no child.
pub fn try_wait_any() -> Result<Option<Ended>, Errno> {
    wait(libc::P_ALL, 0)
}

/// How a child ended. `code` and `signal` exclude each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub pid: i32,
    pub code: Option<i32>,
    /// Any number, real-time signals included.
    pub signal: Option<i32>,
}

fn wait(kind: libc::idtype_t, id: libc::id_t) -> Result<Option<Ended>, Errno> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` lives through the call (waitid(2)).
    let waited = unsafe { libc::waitid(kind, id, info.as_mut_ptr(), libc::WEXITED | libc::WNOHANG) };
    Errno::result(waited)?;
    // SAFETY: all zeroes is a valid siginfo_t, and the kernel fills it in or leaves it so.
    let info = unsafe { info.assume_init() };
    // SAFETY: after waitid the union holds pid and status; zero says that no child has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let exited = info.si_code == libc::CLD_EXITED;
    Ok(Some(Ended { pid, code: exited.then_some(status), signal: (!exited).then_some(status) }))
}
