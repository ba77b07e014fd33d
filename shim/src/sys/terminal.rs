//! Pseudo-terminals (pty(7)), as a joined process needs one: made in the container's own devpts, its
//! other side opened through the first and not by a path that might lead elsewhere. Nothing here allocates.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Lets the other side of `master` be opened.
///
/// # Errors
/// `ENOTTY` when it is no such terminal.
pub fn unlock(master: impl AsFd) -> Result<(), Errno> {
    let locked: libc::c_int = 0;
    // SAFETY: `locked` lives through the call, which reads an int (TIOCSPTLCK, ioctl_tty(2)).
    Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) })
        .map(drop)
}

/// The other side of `master`, close-on-exec; it does not become a controlling terminal.
///
/// # Errors
/// `EIO` while it is locked.
pub fn other_side(master: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the argument is an integer (TIOCGPTPEER, ioctl_tty(2)).
    let fd = Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the size that programs are told.
///
/// # Errors
/// `ENOTTY` when it is no terminal.
pub fn resize(terminal: impl AsFd, rows: u16, columns: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` lives through the call, which reads it (TIOCSWINSZ(2const)).
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}

/// Makes it the controlling terminal of the session that the caller leads.
///
/// # Errors
/// `EPERM` when the caller leads none, or has a terminal already.
pub fn control(terminal: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the argument is an integer: 0 steals no other session's terminal (TIOCSCTTY(2const)).
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}
