//! New network namespaces, made by a thread that steps into each and back again.
//!
//! A namespace has no name and no mount: it lives as long as a descriptor or a process holds it, so
//! what a killed agent had not handed out vanishes with it, links included.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns, unshare};

use super::link::Links;
use super::{NetworkError, sysctl};

/// The namespace of the calling thread.
pub(super) fn current() -> Result<OwnedFd, NetworkError> {
    File::open("/proc/thread-self/ns/net")
        .map(OwnedFd::from)
        .map_err(|source| NetworkError::Namespace { operation: "open the current one", source })
}

/// A new namespace whose loopback alone has IPv6, and a netlink socket that stays inside. The calling thread is back in
/// `home` when this returns, whatever happened; where it cannot go back it may do nothing more.
pub(super) fn create(home: &OwnedFd) -> Result<(OwnedFd, Links), NetworkError> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetworkError::Namespace { operation: "make a new one", source: errno.into() })?;
    let made = furnish();
    setns(home, CloneFlags::CLONE_NEWNET).map_err(|errno| NetworkError::NamespaceLost(errno.into()))?;
    made
}

fn furnish() -> Result<(OwnedFd, Links), NetworkError> {
    let namespace = current()?;
    // The loopback is there already and keeps it: `localhost` is ::1 too, and many programs try that first.
    sysctl::disable_ipv6_later()?;
    Ok((namespace, Links::open()?))
}
