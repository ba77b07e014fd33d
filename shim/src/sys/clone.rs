//! Making processes by clone3(2): into a cgroup, into new namespaces, with a descriptor of the child.
//!
//! The child runs a closure on a copy of our memory and leaves with the status it returns, without
//! destructors, exit handlers or buffers of the parent's written twice. Invariant: the caller is
//! single-threaded, so no lock can be held in the child by a thread that is not there.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;

use super::exec;
use super::owner::Owner;

/// Of linux/sched.h; the constant of the `libc` crate is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child and its descriptor.
#[derive(Debug)]
pub struct Child {
    pub pidfd: OwnedFd,
    pub pid: i32,
}

/// Makes a child in the given new namespaces and, where given, in the cgroup of that directory (v2). A new user
/// namespace belongs to the host's user `owner`, where one is given. The child must not use descriptors or locks it was
/// not made to share.
///
/// # Errors
/// `EBUSY` when this process has more than one thread; `EPERM` when it may not act for the owner; otherwise those of
/// clone3(2).
pub fn child(
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
    owner: Option<u32>,
    run: impl FnOnce() -> i32,
) -> Result<Child, Errno> {
    if !single_threaded() {
        return Err(Errno::EBUSY);
    }
    let mut pidfd: i32 = -1;
    let mut flags = namespaces.bits() as u32 as u64 | libc::CLONE_PIDFD as u64;
    let mut cgroup_fd = 0;
    if let Some(cgroup) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        cgroup_fd = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: all zeroes is a valid clone_args: every field is an integer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = cgroup_fd;
    let owner = owner.map(Owner::new).transpose()?;
    // SAFETY: args and pidfd live through the call and the size is theirs. Without CLONE_VM and with no stack
    // given the child goes on with a copy of this stack, as after fork(2); that the process is single-threaded
    // was checked above, so the copied C library state is consistent.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match Errno::result(pid)? {
        0 => exec::exit(run()),
        pid => {
            drop(owner);
            // SAFETY: CLONE_PIDFD stored a new descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pidfd, pid: pid as i32 })
        }
    }
}

/// Makes a plain child of the child: no check and no allocation, for use between clone and exec.
///
/// # Errors
/// `EAGAIN` at the limit of processes, `ENOMEM`.
pub fn grandchild(run: impl FnOnce() -> i32) -> Result<i32, Errno> {
    // SAFETY: clone(2) with the flags of fork(2): a copy of everything. The caller descends from a
    // single-threaded process by clone3 above and has made no thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    match Errno::result(pid)? {
        0 => exec::exit(run()),
        pid => Ok(pid as i32),
    }
}

/// As [`grandchild`], but the new process is a child of the caller's parent, so that the caller can leave and
/// the parent learns how it ends.
///
/// # Errors
/// `EAGAIN` at the limit of processes, `ENOMEM`.
pub fn sibling(run: impl FnOnce() -> i32) -> Result<i32, Errno> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: as for `grandchild`; CLONE_PARENT only changes whose child it is (clone(2)).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match Errno::result(pid)? {
        0 => exec::exit(run()),
        pid => Ok(pid as i32),
    }
}

fn single_threaded() -> bool {
    // Field 20 of /proc/self/stat; the second field ends with the last parenthesis (proc_pid_stat(5)).
    std::fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|stat| stat.rsplit_once(") ")?.1.split(' ').nth(17)?.parse::<u32>().ok())
        == Some(1)
}
