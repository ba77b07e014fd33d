//! Resource limits of another process (prlimit(2)): the shim sets those of its child, because raising
//! a hard limit takes a capability that the child does not have on the host.

use nix::errno::Errno;
use nix::sys::resource::Resource;

/// Sets the soft and the hard limit of `pid`: a child that has not been waited for, or 0 for the caller.
///
/// # Errors
/// `EPERM`, `EINVAL`, `ESRCH`.
pub fn set(pid: i32, resource: Resource, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` lives through the call, and a null old limit is allowed (prlimit(2)).
    let set = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource as libc::c_uint,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    Errno::result(set).map(drop)
}
