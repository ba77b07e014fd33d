//! The DNS servers of the host that a container can ask too: resolv.conf(5), IPv4, not on loopback.

use std::fs;
use std::net::Ipv4Addr;

/// The second is where systemd-resolved keeps the real servers behind its 127.0.0.53.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// The resolver of libc asks no more than three.
const MAX: usize = 3;

/// At most three; none when the host has only itself to ask.
pub(super) fn of_host() -> Vec<Ipv4Addr> {
    FILES
        .into_iter()
        .map(|file| parse(&fs::read_to_string(file).unwrap_or_default()))
        .find(|found| !found.is_empty())
        .unwrap_or_else(|| {
            tracing::warn!("no DNS server that containers could ask in resolv.conf");
            Vec::new()
        })
}

fn parse(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .filter(|address: &Ipv4Addr| !address.is_loopback() && !address.is_unspecified())
        .take(MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_a_container_can_reach() {
        let text = "# x\nsearch a.b\nnameserver 127.0.0.53\nnameserver fd00::1\n nameserver 192.0.2.53 # y\nnameserver\n";
        assert_eq!(parse(text), [Ipv4Addr::new(192, 0, 2, 53)]);
        let four = "nameserver 192.0.2.1\n".repeat(4);
        assert_eq!(parse(&four).len(), 3);
    }
}
