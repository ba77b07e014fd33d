//! Descriptors that come by number: those inherited at the start, and all that must not be.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Takes over the inherited descriptor `number`, close-on-exec from now on. To be called once for each, at
/// the start of the program.
///
/// # Errors
/// `EBADF` when it is not open or one of the standard three.
pub fn adopt(number: i32) -> Result<OwnedFd, Errno> {
    if number < 3 {
        return Err(Errno::EBADF);
    }
    // SAFETY: fcntl on a number that is not open only fails.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by contract nobody in this program has taken it over before.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor but the standard three and `keep`, at most eight. For a process that owns no
/// other: at the start of the program, or in a cloned child, whose parent has a table of its own and
/// which never returns to an owner of one of those closed.
///
/// # Errors
/// `EINVAL` for more than eight; none else from Linux 5.9 on.
pub fn keep_only(keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut kept = [0_u32; 8];
    let kept = kept.get_mut(..keep.len()).ok_or(Errno::EINVAL)?;
    for (number, fd) in kept.iter_mut().zip(keep) {
        *number = fd.as_raw_fd() as u32;
    }
    kept.sort_unstable();
    let mut first = 3;
    for &number in kept.iter() {
        if number > first {
            close(first, number - 1)?;
        }
        first = first.max(number + 1);
    }
    close(first, u32::MAX)
}

fn close(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: integers only (close_range(2)); see `keep_only` for why nobody misses what is closed.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Marks every descriptor from 3 on to be closed by exec.
///
/// # Errors
/// `EINVAL` before Linux 5.11.
pub fn close_on_exec() -> Result<(), Errno> {
    // SAFETY: integers only; descriptors stay open, only their flag changes (close_range(2)).
    let marked = unsafe {
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_uint)
    };
    Errno::result(marked).map(drop)
}
