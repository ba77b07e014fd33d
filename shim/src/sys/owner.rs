//! Whom new user namespaces belong to: the effective user id at the clone (user_namespaces(7)).
//!
//! What the kernel counts for each user (inotify instances, bytes of message queues, queued signals) is counted for the
//! owner as well (`kernel/ucount.c`). Were it root, all containers would share root's limits, and the host's programs
//! with them.

use nix::errno::Errno;

const SAME: libc::uid_t = libc::uid_t::MAX;
const NONE: libc::c_ulong = 0;

/// Does something as the owner of a user namespace, who has all capabilities in it (user_namespaces(7)).
///
/// # Errors
/// `EPERM` when this process may not act for others.
pub fn acting_for<T>(owner: u32, act: impl FnOnce() -> T) -> Result<T, Errno> {
    let _owner = Owner::new(owner)?;
    Ok(act())
}

/// While it lives this thread makes user namespaces for another user, with all its capabilities and its own rights to
/// files.
#[derive(Debug)]
pub(super) struct Owner {
    bits: i32,
    user: libc::uid_t,
}

impl Owner {
    /// Takes `CAP_SETPCAP` and `CAP_SETUID`.
    ///
    /// # Errors
    /// `EPERM`; `EINVAL` for no user.
    pub(super) fn new(owner: u32) -> Result<Self, Errno> {
        // SAFETY: prctl with integers only (PR_GET_SECUREBITS(2const)).
        let bits = Errno::result(unsafe { libc::prctl(libc::PR_GET_SECUREBITS, NONE, NONE, NONE, NONE) })?;
        // Or the capabilities would go with the user id.
        set_bits(bits | libc::SECBIT_NO_SETUID_FIXUP)?;
        // SAFETY: geteuid touches no memory and cannot fail.
        let this = Self { bits, user: unsafe { libc::geteuid() } };
        set_effective(owner)?;
        // SAFETY: setfsuid takes an integer; it changes the caller's rights to files alone, back to what they were.
        unsafe { libc::syscall(libc::SYS_setfsuid, this.user) };
        Ok(this)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Neither can fail: the user id is still the real one, and the capabilities were kept.
        let _ = set_effective(self.user);
        let _ = set_bits(self.bits);
    }
}

fn set_bits(bits: i32) -> Result<(), Errno> {
    // SAFETY: prctl with integers only (PR_SET_SECUREBITS(2const)).
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong, NONE, NONE, NONE) })
        .map(drop)
}

/// Of this thread only, unlike that of the C library.
fn set_effective(user: libc::uid_t) -> Result<(), Errno> {
    // SAFETY: setresuid takes integers and touches no memory.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, SAME, user, SAME) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_as_before_afterwards() {
        let status = || {
            let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let of = |line: &&str| ["Uid:", "CapEff:", "CapPrm:"].iter().any(|begin| line.starts_with(begin));
            own.lines().filter(of).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = status();
        match Owner::new(70_000) {
            Ok(owner) => {
                let uids: Vec<_> = status()[0].split_whitespace().skip(1).map(str::to_owned).collect();
                assert_eq!(uids[1], "70000");
                assert_eq!((&uids[0], &uids[0]), (&uids[2], &uids[3]));
                assert_eq!(status()[1..], before[1..], "capabilities are kept");
                drop(owner);
            }
            Err(errno) => eprintln!("SKIP: cannot change its user: {errno}"),
        }
        assert_eq!(status(), before);
    }
}
