//! Says so when something is granted that no container can reach.
//!
//! Other machines are reached only by a host that forwards. Under [`super::Egress::Deny`] that is the operator's
//! to turn on: it concerns all of the host's links, not the containers' alone.

use std::net::{Ipv4Addr, UdpSocket};

use super::sysctl;

/// `by` is who grants. Once for all addresses: the remedy is one.
pub(super) fn tell_unreachable(by: &str, mut granted: impl Iterator<Item = Ipv4Addr>) {
    let elsewhere = |address: &Ipv4Addr| UdpSocket::bind((*address, 0)).is_err();
    if let Some(address) = granted.find(elsewhere)
        && !sysctl::forwards()
    {
        tracing::warn!(%address, by, "not reached: it is not this host's; set the sysctl net.ipv4.ip_forward to 1");
    }
}
