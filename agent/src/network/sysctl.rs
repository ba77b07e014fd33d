//! The few kernel switches the network turns. `/proc/sys/net` is that of the calling thread's network
//! namespace.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use super::NetworkError;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

fn write(path: PathBuf, value: &'static str) -> Result<(), NetworkError> {
    fs::write(&path, value).map_err(|source| NetworkError::Sysctl { path, value, source })
}

/// Turns IPv6 off on what is yet to come into the calling thread's namespace.
pub(super) fn disable_ipv6_later() -> Result<(), NetworkError> {
    match write(Path::new(IPV6).join("default/disable_ipv6"), "1") {
        // A kernel without IPv6 needs nothing.
        Err(NetworkError::Sysctl { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The IPv6 switches of the links of one namespace. By a descriptor, because the kernel finds the namespace's own
/// `/proc/sys/net/ipv6` by going through those of all namespaces.
#[derive(Debug)]
pub(super) struct Ipv6(Option<OwnedFd>);

impl Ipv6 {
    /// Of the calling thread's namespace.
    pub(super) fn open() -> Result<Self, NetworkError> {
        match open(IPV6, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(links) => Ok(Self(Some(links))),
            Err(nix::errno::Errno::ENOENT) => Ok(Self(None)),
            Err(errno) => Err(Self::failed(PathBuf::from(IPV6))(errno.into())),
        }
    }

    /// Turns IPv6 off on a link.
    pub(super) fn disable(&self, link: &str) -> Result<(), NetworkError> {
        let Some(links) = &self.0 else { return Ok(()) };
        let path = Path::new(link).join("disable_ipv6");
        let written = openat(links, &path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|switch| File::from(switch).write_all(b"1"));
        written.map_err(Self::failed(Path::new(IPV6).join(path)))
    }

    fn failed(path: PathBuf) -> impl FnOnce(io::Error) -> NetworkError {
        move |source| NetworkError::Sysctl { path, value: "1", source }
    }
}

/// Does the host forward packets?
pub(super) fn forwards() -> bool {
    fs::read_to_string(FORWARD).is_ok_and(|value| value.trim() == "1")
}

/// Lets the host forward packets, and says so when it did not before.
pub(super) fn enable_forwarding() -> Result<(), NetworkError> {
    if forwards() {
        return Ok(());
    }
    write(FORWARD.into(), "1")?;
    tracing::info!(sysctl = "net.ipv4.ip_forward", "forwarding turned on for the egress policy internet");
    Ok(())
}
