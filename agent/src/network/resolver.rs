//! The DNS servers that containers ask: those of the settings, else those of the host that a container can
//! reach too: resolv.conf(5), IPv4, not on loopback.
//!
//! A container's 127.0.0.53 is its own loopback, so the stub of the host's systemd-resolved is none for it;
//! resolved keeps the servers behind the stub in a file of its own, for just this.

use std::fs;
use std::net::Ipv4Addr;

const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// The resolver of libc asks no more than three.
pub(super) const MAX: usize = 3;

/// Can this address be another's than the asking container's own?
pub(super) fn is_usable(address: Ipv4Addr) -> bool {
    !matches!(address.octets()[0], 0 | 127 | 224..)
}

/// The host's; at most three, and none when a container can ask none of them.
pub(super) fn of_host() -> Vec<Ipv4Addr> {
    choose(FILES.map(|file| fs::read_to_string(file).unwrap_or_default())).unwrap_or_else(|unusable| {
        let named = unusable.join(" ");
        tracing::warn!(
            %named,
            "containers cannot resolve names: the host's resolv.conf names no DNS server that they could ask \
             (IPv4, not on loopback): give --resolver ADDRESS, or let the host's own server listen on an address \
             that is not loopback and name that"
        );
        Vec::new()
    })
}

/// Those of the first text that has some; else what stands in all of them.
fn choose(texts: [String; 2]) -> Result<Vec<Ipv4Addr>, Vec<String>> {
    let mut unusable = Vec::new();
    for text in texts {
        let (found, other) = parse(&text);
        if !found.is_empty() {
            return Ok(found);
        }
        unusable.extend(other);
    }
    Err(unusable)
}

/// The servers that containers can ask, and the others as they stand there.
fn parse(text: &str) -> (Vec<Ipv4Addr>, Vec<String>) {
    let mut found = Vec::new();
    let mut other = Vec::new();
    for server in text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next())
    {
        match server.parse() {
            Ok(address) if is_usable(address) => found.push(address),
            _ => other.push(server.chars().take(64).collect()),
        }
    }
    found.truncate(MAX);
    other.truncate(MAX);
    (found, other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: &str = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";

    #[test]
    fn takes_what_a_container_can_reach() {
        let text = "# x\nsearch a.b\nnameserver 127.0.0.53\nnameserver fd00::1\n nameserver 192.0.2.53 # y\nnameserver\n";
        let (found, other) = parse(text);
        assert_eq!(found, [Ipv4Addr::new(192, 0, 2, 53)]);
        assert_eq!(other, ["127.0.0.53", "fd00::1"]);
        assert_eq!(parse(&"nameserver 192.0.2.1\n".repeat(4)).0.len(), 3);
    }

    #[test]
    fn behind_a_stub_are_the_servers_it_asks() {
        let behind = "nameserver 10.0.0.53\n";
        let ten = Ipv4Addr::new(10, 0, 0, 53);
        assert_eq!(choose([STUB.into(), behind.into()]), Ok(vec![ten]));
        // Who names servers for the host means them for everybody on it.
        assert_eq!(choose(["nameserver 192.0.2.1\n".into(), behind.into()]), Ok(vec![[192, 0, 2, 1].into()]));
    }

    #[test]
    fn a_host_that_asks_only_itself_is_told_apart() {
        let unusable = choose([STUB.into(), "nameserver ::1\n".into()]).unwrap_err();
        assert_eq!(unusable, ["127.0.0.53", "::1"]);
        assert_eq!(choose([String::new(), String::new()]), Err(vec![]));
    }
}
