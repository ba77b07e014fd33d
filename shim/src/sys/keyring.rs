//! A session keyring of the container's own, so that it never possesses the host's (keyctl(2)).

use nix::errno::Errno;

/// `KEYCTL_JOIN_SESSION_KEYRING` of linux/keyctl.h.
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Leaves the inherited session keyring for a new, empty, anonymous one. Without keys in the kernel there is
/// nothing to leave.
///
/// # Errors
/// `EDQUOT` at the quota of keys.
pub fn join_new_session() -> Result<(), Errno> {
    // SAFETY: a null name asks for an anonymous keyring; nothing is read or written.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match Errno::result(joined) {
        Err(Errno::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}
