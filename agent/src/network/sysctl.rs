//! The few kernel switches the network turns. `/proc/sys/net` is that of the calling thread's network
//! namespace.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::NetworkError;

const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

fn write(path: PathBuf, value: &'static str) -> Result<(), NetworkError> {
    fs::write(&path, value).map_err(|source| NetworkError::Sysctl { path, value, source })
}

/// Turns IPv6 off on an interface; `default` is those that are yet to come into the namespace. A kernel without IPv6 needs nothing.
pub(super) fn disable_ipv6(interface: &str) -> Result<(), NetworkError> {
    match write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").into(), "1") {
        Err(NetworkError::Sysctl { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
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
