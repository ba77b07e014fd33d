//! The nftables table as text for `nft -f -`. `element.rs` makes the single elements of a container.
//!
//! Rules never change while the agent runs; containers are elements of sets and maps, so a packet costs
//! the same with one container as with ten thousand, and so does an update. Pure. Only numbers and names
//! that were checked at the edge get into the text. `docs/adr/0011-node-network.md` tells why each rule is there.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;

use mogok_api::instance::ContainerKind;

use super::{Allocation, CONTAINER_PORT, Demand, Egress, NetworkConfig, Subnet, name};

/// What no container may reach: the ranges that are not globally reachable (IANA special-purpose
/// registry, RFC 6890), multicast and reserved. 169.254.0.0/16 has the clouds' metadata service.
const FORBIDDEN: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// A chain that exists as long as the table does.
pub(super) const PROBE: &str = "refused";

/// Bytes; four packets as segmentation offload makes them, so that the slowest link takes one.
const BURST: u64 = 256 * 1024;

/// One container, as the table sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) allocation: Allocation,
    /// May it reach the build grants?
    pub(super) build: bool,
    /// What it alone may reach.
    pub(super) grants: BTreeSet<SocketAddrV4>,
}

impl Entry {
    pub(super) fn new(allocation: Allocation, demand: Demand) -> Self {
        Self { allocation, build: demand.kind == ContainerKind::Build, grants: demand.grants }
    }
}

/// The table's text.
#[derive(Debug)]
pub(super) struct Ruleset {
    table: String,
    pool: Subnet,
    egress: Egress,
    grants: Vec<SocketAddrV4>,
    bandwidth: NonZeroU32,
    connections: NonZeroU32,
    resolvers: Vec<Ipv4Addr>,
}

impl Ruleset {
    pub(super) fn new(config: &NetworkConfig, resolvers: Vec<Ipv4Addr>) -> Self {
        Self {
            table: config.table.clone(),
            pool: config.pool,
            egress: config.egress,
            grants: config.build_grants.clone(),
            bandwidth: config.bandwidth,
            connections: config.connections,
            resolvers,
        }
    }

    pub(super) fn group(&self) -> u32 {
        name::group(&self.table)
    }

    /// The group of links that are about to be removed ([`super::link::Links::remove_all`]); under the same
    /// rules to the end.
    pub(super) fn dead_group(&self) -> u32 {
        self.group() ^ 1
    }

    pub(super) fn resolvers(&self) -> &[Ipv4Addr] {
        &self.resolvers
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Replaces the table, if any, in one transaction.
    ///
    /// Containers are matched by the group of their links; in the output hook by the pool, because there
    /// the interface is still the one from before the translation of the address (lo).
    pub(super) fn whole<'a>(&self, entries: impl Iterator<Item = &'a Entry> + Clone) -> String {
        let (table, pool, gateway) = (&self.table, self.pool, self.pool.gateway());
        let group = format!("{}-{}", self.group() & !1, self.group() | 1);
        let ports = elements(entries.clone().filter_map(|entry| {
            let allocation = &entry.allocation;
            allocation.host_port.map(|port| format!("{port} : {}", allocation.address))
        }));
        let published = elements(entries.clone().filter_map(|entry| {
            let allocation = &entry.allocation;
            allocation.host_port.map(|port| format!("{port} . {}", allocation.address))
        }));
        let sources = elements(
            entries
                .clone()
                .map(|entry| format!("\"{}\" . {}", entry.allocation.link, entry.allocation.address)),
        );
        let granted = elements(entries.clone().flat_map(|entry| {
            let from = entry.allocation.address;
            entry.grants.iter().map(move |to| format!("{from} . {} . {}", to.ip(), to.port()))
        }));
        let builders =
            elements(entries.filter(|entry| entry.build).map(|entry| entry.allocation.address.to_string()));
        let grants = elements(self.grants.iter().map(|grant| format!("{} . {}", grant.ip(), grant.port())));
        let resolvers = elements(self.resolvers.iter().map(Ipv4Addr::to_string));
        let forbidden = elements(FORBIDDEN.into_iter().map(str::to_owned));
        let elsewhere = match self.egress {
            Egress::Internet => "meta nfproto ipv4 accept",
            Egress::Deny => "",
        };
        let connections = self.connections;
        let over = self.over_bandwidth();
        format!(
            "table inet {table}
delete table inet {table}
table inet {table} {{
  map ports {{ type inet_service : ipv4_addr; {ports} }}
  set published {{ type inet_service . ipv4_addr; {published} }}
  set sources {{ type ifname . ipv4_addr; {sources} }}
  set builders {{ type ipv4_addr; {builders} }}
  set grants {{ type ipv4_addr . inet_service; {grants} }}
  set granted {{ type ipv4_addr . ipv4_addr . inet_service; {granted} }}
  set resolvers {{ type ipv4_addr; {resolvers} }}
  set forbidden {{ type ipv4_addr; flags interval; {forbidden} }}
  set flows {{ type ipv4_addr; size 65535; flags dynamic; }}
  set sent {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }}
  set received {{ type ipv4_addr; size 65535; flags dynamic,timeout; timeout 1m; }}

  chain origin {{ type filter hook prerouting priority raw; policy accept;
    meta iifgroup != {group} return
    meta nfproto != ipv4 drop
    iifname . ip saddr != @sources drop
    update @sent {{ ip saddr {over} }} drop
  }}
  chain delivery {{ type filter hook postrouting priority mangle; policy accept;
    meta oifgroup {group} ip daddr {pool} update @received {{ ip daddr {over} }} drop
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
    meta iifgroup != {group} ip daddr {gateway} dnat ip to tcp dport map @ports:{CONTAINER_PORT}
  }}
  chain local {{ type nat hook output priority -100; policy accept;
    ip daddr {gateway} dnat ip to tcp dport map @ports:{CONTAINER_PORT}
  }}
  chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool} meta oifgroup != {group} masquerade
  }}
  chain output {{ type filter hook output priority filter; policy accept;
    ip daddr {pool} meta l4proto tcp ct direction original ct status dnat ct original proto-dst . ip daddr != @published reject with tcp reset
  }}
  chain input {{ type filter hook input priority filter; policy accept;
    meta iifgroup != {group} return
    ct state established,related ct direction reply accept
    ct state new add @flows {{ ip saddr ct count over {connections} }} drop
    ip saddr . ip daddr . tcp dport @granted accept
    ip saddr @builders ip daddr . tcp dport @grants accept
    ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
    goto refused
  }}
  chain forward {{ type filter hook forward priority filter; policy accept;
    meta iifgroup {group} meta oifgroup {group} goto refused
    meta oifgroup {group} goto inbound
    meta iifgroup {group} goto outbound
  }}
  chain inbound {{
    ct state established,related ct direction reply accept
    meta l4proto tcp ct status dnat ct original proto-dst . ip daddr @published accept
    meta l4proto tcp ct status dnat reject with tcp reset
    drop
  }}
  chain outbound {{
    tcp flags syn tcp option maxseg size set rt mtu
    ct state established,related ct direction reply accept
    ct state new add @flows {{ ip saddr ct count over {connections} }} drop
    ip saddr . ip daddr . tcp dport @granted accept
    ip saddr @builders ip daddr . tcp dport @grants accept
    ip daddr @resolvers meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr @forbidden goto refused
    {elsewhere}
    goto refused
  }}
  chain refused {{
    limit rate 200/second burst 100 packets reject with icmp admin-prohibited
    drop
  }}
}}
"
        )
    }

    /// The match of a packet that goes beyond what a container may send or receive. It may save up a second's worth,
    /// which the kernel adds to the burst (`nft_limit.c`).
    fn over_bandwidth(&self) -> String {
        let rate = u64::from(self.bandwidth.get()) * 125_000;
        format!("limit rate over {rate} bytes/second burst {BURST} bytes")
    }

    /// Removes the table, whether it exists or not.
    pub(super) fn none(&self) -> String {
        format!("table inet {0}\ndelete table inet {0}\n", self.table)
    }
}

/// `elements = { ... };`, or nothing: an empty list is a syntax error.
fn elements(items: impl Iterator<Item = String>) -> String {
    let list = items.collect::<Vec<_>>().join(", ");
    if list.is_empty() { list } else { format!("elements = {{ {list} }};") }
}

#[cfg(test)]
mod tests;
